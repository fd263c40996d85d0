"""`intl-bench spectrum`: spectra of checkpoints side by side, as a table and a plot; and as parts of records."""

import io
import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from tabulate import tabulate

from intl_bench.core import files
from intl_bench.core.errors import InputError
from intl_bench.spectra.measure import IMAGES, Spectra, data_config, measure_backbone, measure_run
from pretrain import spectrum
from pretrain.checkpoint import Origin
from pretrain.spectrum import Spectrum
from transfer import features
from transfer.convert import interpret
from transfer.formats import safe_load

FORMATS = ("markdown", "csv", "json")
_POINTS = 256  # of a curve
_FLOOR = 1e-10  # lowest value drawn, as a share of the highest
_NOTES = f"""\
- Eigenvalues of the covariance over the samples, in eval mode, of images that are not augmented; the transformed output
  is of one batch. RankMe is the effective rank; alpha the exponent of eigenvalue ~ rank^-alpha over ranks
  {spectrum.FIRST_RANK} to {spectrum.LAST_RANK} (alpha-ReQ); largest is the first eigenvalue's share of their sum.
- Collapse is complete where all vectors are nearly the same (standard deviation below {spectrum.COMPLETE} after scaling
  them to the length sqrt(dim.)), dimensional where more than {spectrum.DIMENSIONAL:.0%} of the eigenvalues vanish
  (are below {spectrum.VANISHING:g} of their mean), undefined where a number is not finite.
"""


def measure_checkpoint(
    path: Path, *, layout: str = "auto", overrides: Sequence[str] = (), images: int = IMAGES
) -> Spectra:
    """The spectra of a checkpoint: of one of our training runs as `measure_run`, else of its features.

    Args:
        layout: whose checkpoint it is, as for `transfer.convert.read`.

    Raises:
        InputError: as these two.
    """
    content = safe_load.read(path)
    checkpoint = interpret(content, layout)
    recipe = checkpoint.recipe
    if checkpoint.origin is Origin.TRAINED and checkpoint.branch == "online":
        return measure_run(path, content.data, overrides=overrides, images=images)
    return measure_backbone(
        features.build_backbone_of(checkpoint),
        path=path,
        label=f"{checkpoint.method} ({path.name})",
        data=data_config(None if recipe is None else recipe.data, checkpoint.preprocessing, overrides),
        size=max(view.size for view in recipe.views) if recipe is not None else 224,
        images=images,
    )


def run(paths: Sequence[Path], *, layout: str, overrides: Sequence[str], images: int, out: Path, format: str) -> str:
    """Measures checkpoints and writes their plot to `out`; returns the table.

    Raises:
        InputError: no checkpoint, a file that is no .png, an unknown format, or what `measure` raises.
    """
    if not paths:
        raise InputError("expected at least one CHECKPOINT, such as runs/pretrain/demo/seed0/checkpoint.pt")
    if out.suffix != ".png":
        raise InputError(f"--out {out}: expected a file that ends in .png")
    if format not in FORMATS:
        raise InputError(f"--format {format}: expected {', '.join(FORMATS)}")
    found = [measure_checkpoint(path, layout=layout, overrides=overrides, images=images) for path in paths]
    files.write_bytes(out, draw(found))
    print(f"plot: {out}", file=sys.stderr)
    return table(found, format)


def table(measured: Sequence[Spectra], format: str) -> str:
    """A line for each spectrum: as "markdown", as "csv" with all digits, or as "json" with the eigenvalues too."""
    rows = [row for label, one in labeled(measured).items() for row in _rows(label, one)]
    if format == "csv":
        lines = [{key: value for key, value in row.items() if key != "curve"} for row in rows]
        return pd.DataFrame(lines).to_csv(index=False, lineterminator="\n")
    if format == "json":
        return json.dumps([_plain(row) for row in rows], indent=1, ensure_ascii=False) + "\n"
    cells = [
        [
            row["checkpoint"].replace("|", r"\|"),
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
    names = "Checkpoint,Spectrum of,Samples x dim.,RankMe,alpha,Condition,1 / condition,Largest,Vanishing,Collapse"
    align = ["left", "left", *["right"] * 7, "left"]
    grid = tabulate(cells, headers=names.split(","), tablefmt="pipe", colalign=align, disable_numparse=True)
    return f"{grid}\n\n{_NOTES}"


def record_values(measured: Spectra) -> tuple[dict[str, float], dict[str, Any]]:
    """What a record holds of a checkpoint's spectra.

    Returns:
        metrics: of each, such as "embedding": `embedding/rank`, RankMe in percent of the largest possible;
            `embedding/inverse_condition`, from 0 to 1, and `embedding/log10_condition`; `embedding/std`. Left out where
            it is not finite.
        details: `spectra`, with for each `samples`, `dimension`, `collapse`, `numbers` (None for one that is not
            finite) and what `curve` returns.
    """
    metrics: dict[str, float] = {}
    details = {}
    for name, one in measured.spectra.items():
        numbers = one.numbers()
        values = {
            "rank": 100 * numbers["rank"] / min(one.samples, one.dimension),
            "inverse_condition": numbers["inverse_condition"],
            "log10_condition": -math.log10(numbers["inverse_condition"] or math.nan),
            "std": numbers["std"],
        }
        # RankMe's 1e-7 lifts a full rank a little above the largest possible.
        metrics |= {f"{name}/{key}": min(value, 100.0) for key, value in values.items() if math.isfinite(value)}
        about = {"samples": one.samples, "dimension": one.dimension, "collapse": spectrum.kind(numbers)}
        details[name] = {**about, "numbers": _plain(numbers), **curve(one)}
    return metrics, {"spectra": details}


def curve(one: Spectrum) -> dict[str, Any]:
    """At most 256 eigenvalues, all or evenly spread in log rank, as plain numbers.

    Returns:
        `ranks` (from 1) and `eigenvalues`, both empty where a spectrum is not finite; of all of them `count` and `mean`
        (0 where not finite).
    """
    values = one.eigenvalues.numpy()
    count, finite = len(values), bool(np.isfinite(values).all())
    ranks = np.arange(1, count + 1)
    if count > _POINTS:
        ranks = np.unique(np.geomspace(1, count, _POINTS).round().astype(int))
    if not finite:
        ranks = ranks[:0]
    mean = float(values.mean()) if finite else 0.0
    return {"ranks": ranks.tolist(), "eigenvalues": values[ranks - 1].tolist(), "count": count, "mean": mean}


def plot(axes: Any, curves: Mapping[str, Mapping[str, Any]], *, relative: bool = True, log_rank: bool = True) -> Any:
    """Draws eigenvalues over their rank; returns the lines, one for each label, in this order.

    What is below 1e-10 of the highest, such as zeros, is drawn there, which the axes then say; a spectrum that is not
    finite gets its label alone.

    Args:
        axes: of matplotlib.
        curves: as `curve` makes them, also from the details of a record.
        relative: over the mean eigenvalue, so that equal eigenvalues lie at 1.
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
        axes.text(
            0.02, 0.02, f"drawn at {floor:.0e}: so much or less", transform=axes.transAxes, fontsize=7, color="0.4"
        )
    axes.set_yscale("log")
    if log_rank:
        axes.set_xscale("log")
    if not any(len(values) for values in shown.values()):
        axes.set_xlim(1, 10)  # an empty axis has no logarithms
    if relative:
        axes.axhline(1.0, color="0.6", linewidth=0.8, zorder=0)
    axes.set_xlabel("rank")
    axes.set_ylabel("eigenvalue / mean eigenvalue" if relative else "eigenvalue")
    axes.grid(alpha=0.3)
    return lines


def draw(measured: Sequence[Spectra]) -> bytes:
    """A PNG: a panel each for features, embedding and transformed output, a line for each checkpoint.

    Raises:
        InputError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
        from matplotlib.lines import Line2D
    except ModuleNotFoundError as error:
        raise InputError("a plot needs matplotlib: pip install matplotlib") from error

    checkpoints = labeled(measured)
    names = [name for name in ("features", "embedding", "transformed") if any(name in one.spectra for one in measured)]
    figure = Figure(figsize=(4.4 * max(2, len(names)), 3.8 + 0.35 * len(checkpoints)), layout="constrained")
    panels = figure.subplots(1, len(names), squeeze=False)[0]
    for axes, name in zip(panels, names, strict=True):
        here = {label: one.spectra[name] for label, one in checkpoints.items() if name in one.spectra}
        lines = plot(axes, {label: curve(one) for label, one in here.items()})
        for line, (label, one) in zip(lines, here.items(), strict=True):
            line.set(color=f"C{list(checkpoints).index(label)}", label=_caption(one.numbers()))
        axes.set_title(name)
        axes.legend(fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.16), frameon=False)
    handles = [Line2D([], [], color=f"C{number}", label=label) for number, label in enumerate(checkpoints)]
    figure.legend(handles=handles, loc="outside lower center", fontsize=8)
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=130)
    return stream.getvalue()


def labeled(measured: Sequence[Spectra]) -> dict[str, Spectra]:
    """By label; with the path where two have the same."""
    labels = [one.label for one in measured]
    return {one.label if labels.count(one.label) == 1 else f"{one.label} {one.path}": one for one in measured}


def _rows(label: str, measured: Spectra) -> list[dict[str, Any]]:
    rows = []
    for name, one in measured.spectra.items():
        numbers = one.numbers()
        about: dict[str, Any] = {
            "checkpoint": label,
            "path": str(measured.path),
            "dataset": measured.dataset,
            "of": name,
        }
        about |= {"samples": one.samples, "dimension": one.dimension, "collapse": spectrum.kind(numbers)}
        rows.append({**about, **numbers, "curve": curve(one)})
    return rows


def _caption(numbers: Mapping[str, float]) -> str:
    rank, exponent = _short(numbers["rank"], ".1f"), _short(numbers["alpha"], ".2f")
    return f"RankMe {rank}, α {exponent}, collapse: {spectrum.kind(numbers)}"


def _short(value: float, form: str) -> str:
    return "∞" if math.isinf(value) else "–" if math.isnan(value) else f"{value:{form}}"


def _plain(value: Any) -> Any:
    """The same with None for numbers that JSON does not have."""
    if isinstance(value, Mapping):
        return {key: _plain(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_plain(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
