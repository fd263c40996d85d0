"""Curves of trainings, from the logs in the folders of their runs."""

import contextlib
import html
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from intl_bench import run_state
from intl_bench.core import json_lines, planned
from intl_bench.core.terminal import visible
from intl_bench.records import ResultRecord
from intl_bench.report.charts import Line, legend, line_chart
from intl_bench.tables.identities import natural_sort_key

_CLOCKS = ("epoch", "step", "iteration")
_SPEED = ("seconds", "img/s", "data")
_FIRST = ("loss", "monitor/", "top1", "rank", "/AP")  # parts of the names of curves that are shown at once


def curves_html(runs: Path, records: Sequence[ResultRecord]) -> str:
    """Return the curves of all runs below a folder; an empty text if there is no log."""
    return "".join(_figures(name, folders) for name, folders in [*_pretrainings(runs), *_scores(runs, records)])


def _pretrainings(runs: Path) -> list[tuple[str, dict[str, Path]]]:
    """Return the folders with a log by name and seed."""
    found: dict[str, dict[str, Path]] = defaultdict(dict)
    for path in sorted((runs / "pretrain").glob("*/seed*/metrics.jsonl"), key=lambda path: natural_sort_key(str(path))):
        name, seed = path.parts[-3:-1]
        found[f"Pre-training {name}"][seed.replace("seed", "seed ")] = path.parent
    return list(found.items())


def _scores(runs: Path, records: Sequence[ResultRecord]) -> list[tuple[str, dict[str, Path]]]:
    """Return the folders with a log of the scoring tasks, which are named by the keys of records."""
    found: dict[str, dict[str, Path]] = defaultdict(dict)
    for record in records:
        folder = runs / record.task / record.key
        if (folder / "metrics.jsonl").exists():
            seed = f"seed {record.transfer_seed}"
            if record.pretrain_seed not in (None, record.transfer_seed):
                seed = f"pre-training seed {record.pretrain_seed}, {seed}"
            found[f"{record.task} on {record.dataset}: {record.method}"][seed] = folder
    return sorted(found.items())


def _read(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a log that have a position."""
    return [row for row in json_lines.rows(path) if any(_is_number(row.get(clock)) for clock in _CLOCKS)]


def _figures(name: str, folders: Mapping[str, Path]) -> str:
    logs = {seed: _read(folder / "metrics.jsonl") for seed, folder in folders.items()}
    if not any(logs.values()):
        return ""
    keys = {
        key: None
        for rows in logs.values()
        for row in rows
        for key, value in row.items()
        if key not in (*_CLOCKS, *_SPEED) and _is_number(value)
    }
    shown = sorted(
        (key for key in keys if key == "loss" or any(part in key for part in _FIRST[1:])), key=lambda key: key != "loss"
    )
    first = "".join(_chart(key, logs) for key in shown)
    rest = "".join(_chart(key, logs) for key in sorted(keys) if key not in shown)
    more = f'<summary>More curves</summary>\n<div class="figures">\n{rest}</div>\n'
    more = f'<details class="extra">{more}</details>\n' if rest else ""
    names = [visible(seed) for seed in logs]
    figures = f'{legend(names)}<div class="figures">\n{first}</div>\n{more}'
    return f"<h3>{html.escape(visible(name))}</h3>\n{_about(folders)}{figures}"


def _about(folders: Mapping[str, Path]) -> str:
    """Return what the folders of runs say about their states, their time and their early signs."""
    items = ""
    for seed, folder in folders.items():
        run = run_state.read(folder)
        text = f"{seed}: {run.state}, {run.position}." if run.state in ("running", "stopped") else ""
        with contextlib.suppress(ValueError, TypeError, LookupError):
            summary = run.summary
            device = f"{summary['processes']} x {summary['device']}"
            end = f"{seed}: {run.state}, {planned.duration(float(summary['seconds']))}, {device}."
            text = end + "".join(f" Warning: {sign}." for sign in summary["warnings"])
        items += f"<li>{html.escape(visible(text))}</li>\n" if text else ""
    return f'<ul class="caption">\n{items}</ul>\n' if items else ""


def _chart(key: str, logs: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    lines = []
    having = [row for rows in logs.values() for row in rows if _is_number(row.get(key))]
    clock = max(_CLOCKS, key=lambda clock: sum(_is_number(row.get(clock)) for row in having))
    for name, rows in logs.items():
        points = [(row[clock], row[key]) for row in rows if _is_number(row.get(clock)) and _is_number(row.get(key))]
        lines.append(Line(name, [x for x, _ in points], [y for _, y in points]))
    chart = line_chart(lines, x=clock, y=key)
    title = html.escape(visible(key).replace("_", " "))
    return f"<figure><h4>{title}</h4>{chart}</figure>\n" if chart else ""


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and -1e300 < value < 1e300
