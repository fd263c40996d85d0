"""The command `intl-bench spectrum`: spectra of several checkpoints side by side, as a table and a plot."""

import io
import json
import math
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from tabulate import tabulate

from intl_bench.core import files
from intl_bench.core.errors import InputError
from intl_bench.core.escapes import csv_text, escape_markdown
from intl_bench.core.terminal import visible
from intl_bench.spectra.measure import Spectra, measure_checkpoint
from intl_bench.spectra.values import curve, json_values
from intl_bench.tables.text import grid, paragraph
from pretrain import spectrum
from pretrain.spectrum import Spectrum

FORMATS = ("text", "markdown", "csv", "json")
_HEADINGS = "Checkpoint,Spectrum of,Samples x dim.,RankMe,alpha,Condition,1 / condition,Largest,Vanishing,Collapse"
_FLOOR = 1e-10  # lowest value in a plot, relative to the highest
_NOTES = f"""\
- The eigenvalues are those of the covariance over the samples, in eval mode, of images without augmentation. The
  transformed output is of one batch. RankMe is the effective rank. alpha is the exponent in eigenvalue ~ rank^-alpha
  over ranks {spectrum.FIRST_RANK} to {spectrum.LAST_RANK} (alpha-ReQ). Largest is the share of the first eigenvalue in
  the sum of all.
- Collapse is complete if all vectors are nearly equal (standard deviation below {spectrum.COMPLETE} after scaling them
  to the length sqrt(dim.)). It is dimensional if RankMe is below {spectrum.LOW_RANK:.0%} of the largest possible
  rank, or if one direction has more than {spectrum.ONE_DIRECTION:.0%} of the variance. It is undefined if a number is
  not finite.
- An eigenvalue vanishes if it is below {spectrum.VANISHING:g} of their mean.
"""


def run(paths: Sequence[Path], *, layout: str, overrides: Sequence[str], images: int, out: Path, format: str) -> str:
    """Measure checkpoints and write their plot; return the table.

    Args:
        paths: the checkpoints.
        layout: see `measure_checkpoint`.
        overrides: see `measure_checkpoint`.
        images: see `measure_checkpoint`.
        out: the PNG file of the plot.
        format: the format of the table, one of `FORMATS`.

    Raises:
        InputError: there is no checkpoint, `out` does not end in .png, the format is unknown, or a checkpoint cannot
            be measured (see `measure_checkpoint`).
    """
    if not paths:
        raise InputError("no CHECKPOINT; expected at least one, such as runs/pretrain/demo/seed0/checkpoint.pt")
    if out.suffix != ".png":
        raise InputError(f"--out {out}: not a PNG file; expected a name that ends in .png")
    if format not in FORMATS:
        raise InputError(f"--format {format}: unknown format; choose from {', '.join(FORMATS)}")
    found = [measure_checkpoint(path, layout=layout, overrides=overrides, images=images) for path in paths]
    files.write_bytes(out, draw(found))
    print(f"plot: {out}", file=sys.stderr)
    return table(found, format)


def table(measured: Sequence[Spectra], format: str) -> str:
    """Return a table with a line for each spectrum.

    Args:
        format: "text", which fits the terminal; "markdown"; "csv" with all digits; or "json" with all digits and the
            eigenvalues.
    """
    rows = [row for label, one in labeled(measured).items() for row in _rows(label, one)]
    if format == "csv":
        lines = [{key: value for key, value in row.items() if key != "curve"} for row in rows]
        return csv_text(pd.DataFrame(lines))
    if format == "json":
        return json.dumps([json_values(row) for row in rows], indent=1, ensure_ascii=False) + "\n"
    cells = [
        [
            row["checkpoint"] if format == "text" else escape_markdown(row["checkpoint"]),
            row["of"],
            f"{row['samples']} x {row['dimension']}",
            f"{_short(row['rank'], '.1f')} of {min(row['samples'], row['dimension'])}",
            _short(row["alpha"], ".2f"),
            _short(row["condition"], ".3g"),
            _short(row["inverse_condition"], ".2g"),
            _short(row["largest"], ".1%"),
            _short(row["vanishing"], ".0%"),
            row["collapse"],
        ]
        for row in rows
    ]
    names = _HEADINGS.split(",")
    if format == "text":
        notes = re.findall(r"- (.*?\.)\n(?=- |$)", _NOTES, flags=re.DOTALL)
        return "\n".join([grid(names, cells, texts=(1, len(names) - 1)), "", *(paragraph(n, "-") for n in notes), ""])
    align = ["left", "left", *["right"] * 7, "left"]
    pipe = tabulate(cells, headers=names, tablefmt="pipe", colalign=align, disable_numparse=True)
    return f"{pipe}\n\n{_NOTES}"


def plot(axes: Any, curves: Mapping[str, Mapping[str, Any]], *, relative: bool = True, log_rank: bool = True) -> Any:
    """Draw eigenvalues over their rank; return the lines in the order of the labels.

    Eigenvalues below 1e-10 of the highest, such as zeros, are drawn at 1e-10 of the highest; a text in the axes then
    says so. A spectrum that is not finite has a label without a line.

    Args:
        axes: axes of matplotlib.
        curves: {label: the result of `values.curve`, or the details of a record}.
        relative: whether eigenvalues are divided by their mean; equal eigenvalues then lie at 1.
        log_rank: whether the axis of the ranks is logarithmic.
    """
    shown = {
        label: np.array(one["eigenvalues"]) / (one["mean"] or 1 if relative else 1) for label, one in curves.items()
    }
    floor = _FLOOR * max((float(values.max()) for values in shown.values() if len(values)), default=0.0) or _FLOOR
    lines = []
    for label, values in shown.items():
        name = label if len(values) else f"{label} (not finite)"
        lines += axes.plot(curves[label]["ranks"], np.maximum(values, floor), label=name, linewidth=1.5)
    if any((values < floor).any() for values in shown.values()):
        axes.text(0.02, 0.02, f"at {floor:.0e}: this value or less", transform=axes.transAxes, fontsize=7, color="0.4")
    axes.set_yscale("log")
    if log_rank:
        axes.set_xscale("log")
    if not any(len(values) for values in shown.values()):
        axes.set_xlim(1, 10)  # a logarithmic axis without data needs limits
    if relative:
        axes.axhline(1.0, color="0.6", linewidth=0.8, zorder=0)
    axes.set_xlabel("rank")
    axes.set_ylabel("eigenvalue / mean eigenvalue" if relative else "eigenvalue")
    axes.grid(alpha=0.3)
    return lines


def draw(measured: Sequence[Spectra]) -> bytes:
    """Return a PNG with a panel for each of features, embedding and transformed output, and a line per checkpoint.

    Raises:
        InputError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
        from matplotlib.lines import Line2D
    except ModuleNotFoundError as error:
        raise InputError("the plot needs the package matplotlib; run pip install matplotlib") from error

    checkpoints = labeled(measured)
    names = [name for name in ("features", "embedding", "transformed") if any(name in one.spectra for one in measured)]
    figure = Figure(figsize=(4.4 * max(2, len(names)), 3.8 + 0.35 * len(checkpoints)), layout="constrained")
    panels = figure.subplots(1, len(names), squeeze=False)[0]
    for axes, name in zip(panels, names, strict=True):
        here = {label: one.spectra[name] for label, one in checkpoints.items() if name in one.spectra}
        lines = plot(axes, {label: curve(one) for label, one in here.items()})
        for line, (label, one) in zip(lines, here.items(), strict=True):
            line.set(color=f"C{list(checkpoints).index(label)}", label=_caption(one))
        axes.set_title(name)
        axes.legend(fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.16), frameon=False)
    # A dollar sign would begin a formula.
    names = [label.replace("$", r"\$") for label in checkpoints]
    handles = [Line2D([], [], color=f"C{number}", label=name) for number, name in enumerate(names)]
    figure.legend(handles=handles, loc="outside lower center", fontsize=8)
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=130)
    return stream.getvalue()


def labeled(measured: Sequence[Spectra]) -> dict[str, Spectra]:
    """Return the spectra by label. Checkpoints with equal labels get their paths appended."""
    labels = [one.label for one in measured]
    return {visible(one.label if labels.count(one.label) == 1 else f"{one.label} {one.path}"): one for one in measured}


def _rows(label: str, measured: Spectra) -> list[dict[str, Any]]:
    rows = []
    for name, one in measured.spectra.items():
        numbers = one.numbers()
        about: dict[str, Any] = {
            "checkpoint": label,
            "path": visible(str(measured.path)),
            "dataset": visible(measured.dataset),
            "of": name,
        }
        about |= {
            "samples": one.samples,
            "dimension": one.dimension,
            "collapse": spectrum.kind(numbers, one.largest_rank),
        }
        rows.append({**about, **numbers, "curve": curve(one)})
    return rows


def _caption(one: Spectrum) -> str:
    numbers = one.numbers()
    rank, exponent = _short(numbers["rank"], ".1f"), _short(numbers["alpha"], ".2f")
    return f"RankMe {rank}, α {exponent}, collapse: {spectrum.kind(numbers, one.largest_rank)}"


def _short(value: float, form: str) -> str:
    return "∞" if math.isinf(value) else "–" if math.isnan(value) else f"{value:{form}}"
