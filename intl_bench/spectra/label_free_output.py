"""The correlations of `label_free` as a table, and their figure."""

import dataclasses
import io
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd
from tabulate import tabulate

from intl_bench.core import files
from intl_bench.core.errors import InputError
from intl_bench.core.escapes import csv_text, escape_markdown
from intl_bench.core.terminal import visible
from intl_bench.spectra.label_free import (
    NUMBERS,
    SPECTRA,
    Correlation,
    Run,
    axis_title,
    axis_values,
    correlate,
    read,
    runs_of,
)
from intl_bench.tables.text import grid, paragraph

FORMATS = ("text", "markdown", "csv", "json")
_HEADINGS = ("Runs", "Spectrum of", "Number", "n", "Spearman", "95% interval", "Kendall", "chosen", "best", "mean")
_NOTES = (
    "n: runs with spectra and this score. The interval is a bootstrap over pre-trainings, each with its seeds.",
    "A number is ranked as its paper claims: a higher RankMe, an alpha nearer to 1, a lower condition number. So a "
    "positive correlation agrees with the claim.",
    "chosen: the score of the run with the highest number; best and mean: of all runs.",
)
_EXPECTED = "expected the runs of a grid: run intl-bench ablation NAME, or name their folder, such as results/project"


def run(folders: Sequence[Path], *, out: Path, format: str) -> str:
    """Write the figure of the score with the most runs; return the table.

    Raises:
        InputError: a folder does not exist, a record cannot be read, no run has spectra and a score, `out` does not end
            in .png, or the format is unknown.
    """
    if out.suffix != ".png":
        raise InputError(f"--out {out}: not a PNG file; expected a name that ends in .png")
    if format not in FORMATS:
        raise InputError(f"--format {format}: unknown format; choose from {', '.join(FORMATS)}")
    runs = runs_of(read(folders))
    found = correlate(runs)
    if not found:
        where = ", ".join(map(str, folders))
        raise InputError(f"label-free: fewer than four runs in {where} have spectra and one score; {_EXPECTED}")
    score = found[0].score
    files.write_bytes(out, draw(score, runs[score], found))
    print(f"figure: {out}", file=sys.stderr)
    return table(found, format)


def table(found: Sequence[Correlation], format: str) -> str:
    """Return a table for each score, with a line for each number of each spectrum; csv and json have all digits."""
    values = [dataclasses.asdict(one) for one in found]
    if format == "csv":
        return csv_text(pd.DataFrame(values))
    if format == "json":
        known = [{key: None if value != value else value for key, value in row.items()} for row in values]  # NaN
        return json.dumps(known, indent=1, ensure_ascii=False) + "\n"
    parts = []
    for score in dict.fromkeys(one.score for one in found):
        here = [one for one in found if one.score == score]
        cells = [
            [
                one.runs if format == "text" else escape_markdown(one.runs),
                one.spectrum,
                one.number if format == "text" else escape_markdown(one.number),
                f"{one.n} ({one.pretrainings} pre-trainings)" if one.pretrainings < one.n else str(one.n),
                f"{one.spearman:.2f}",
                f"{one.low:.2f} to {one.high:.2f}",
                f"{one.kendall:.2f}",
                *(f"{value:.2f}" for value in (one.chosen, one.best, one.mean)),
            ]
            for one in here
        ]
        if format == "text":
            parts.append(f"{paragraph(score)}\n\n{grid(_HEADINGS, cells, texts=(1, 2))}\n")
        else:
            align = ["left", "left", "left", *["right"] * 7]
            pipe = tabulate(cells, headers=_HEADINGS, tablefmt="pipe", colalign=align, disable_numparse=True)
            parts.append(f"**{escape_markdown(visible(score))}**\n\n{pipe}\n")
    notes = "\n".join(paragraph(note, "-") if format == "text" else f"- {note}" for note in _NOTES)
    return "\n".join([*parts, notes, ""])


def draw(score: str, runs: Sequence[Run], found: Sequence[Correlation]) -> bytes:
    """Return a PNG: the score over each number of each spectrum, with a color for each folder of records."""
    from matplotlib.figure import Figure

    known: Mapping[tuple[str, str], Correlation] = {
        (one.spectrum, one.number): one for one in found if (one.runs, one.score) == ("all", score)
    }
    shown = [spectrum for spectrum in SPECTRA if any(one == spectrum for one, _ in known)]
    figure = Figure(figsize=(13, 3.9 * len(shown) + 0.4), layout="constrained")
    panels = figure.subplots(len(shown), len(NUMBERS), squeeze=False, sharey=True)
    grids = sorted({run.grids[0] for run in runs})
    for spectrum, row in zip(shown, panels, strict=True):
        for number, axes in zip(NUMBERS, row, strict=True):
            points = axis_values(runs, spectrum, number)
            for color, name in enumerate(grids):
                own = [(value, run.score) for run, value in points if run.grids[0] == name]
                axes.scatter([x for x, _ in own], [y for _, y in own], s=14, alpha=0.75, color=f"C{color}")
            if one := known.get((spectrum, number)):
                hidden = one.n - len(points)
                text = f"Spearman {one.spearman:.2f}, Kendall {one.kendall:.2f}, n = {one.n}"
                axes.set_title(text + (f" ({hidden} infinite)" if hidden else ""), fontsize=9)
            axes.set_xlabel(f"{spectrum}: {axis_title(number)}")
            axes.grid(alpha=0.3)
            if number == "RankMe":
                axes.set_xscale("log")
                axes.set_ylabel(score.partition(",")[0] + " (%)")
    handles = [panels[0][0].scatter([], [], color=f"C{color}", s=14) for color in range(len(grids))]
    # A dollar sign would begin a formula.
    names = [visible(name).replace("$", r"\$") for name in grids]
    figure.legend(handles, names, loc="outside lower center", ncols=4, fontsize=8)
    figure.suptitle(visible(score).replace("$", r"\$"), fontsize=10)
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=130)
    return stream.getvalue()
