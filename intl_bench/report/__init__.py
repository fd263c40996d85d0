"""One self-contained HTML page about all results: tables, seeds, curves, spectra, pictures, cost and commands."""

import html
import itertools
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import intl_bench
from intl_bench.core.errors import InputError
from intl_bench.core.inputs import read_text
from intl_bench.core.terminal import visible
from intl_bench.records import RecordStore, ResultRecord
from intl_bench.report.commands import commands_of
from intl_bench.report.cost import cost_html, duration, environment_html, gpus_of, pretrainings_of
from intl_bench.report.curves import curves_html
from intl_bench.report.pictures import detections_html, picture_html
from intl_bench.report.seeds import dots_html
from intl_bench.report.spectra import spectra_html
from intl_bench.tables import TABLES
from intl_bench.tables.frame import BuiltTable, build_table
from intl_bench.tables.html.grid import table_html
from intl_bench.tables.html.page import Page, identifier

__all__ = ["render"]


def render(results: Path, runs: Path) -> str:
    """Return the page.

    Args:
        results: the folder with `records/` and `ablations/`.
        runs: the folder of runs, whose logs give the curves.

    Raises:
        InputError: there is neither a record nor a log, or a record cannot be read.
    """
    records = RecordStore(results / "records").load()
    grids = {folder.name: RecordStore(folder / "records").load() for folder in _grids(results)}
    everything = [*records, *itertools.chain.from_iterable(grids.values())]
    curves = curves_html(runs, everything)
    if not everything and not curves:
        raise InputError(
            f"report: no record in {results / 'records'} and no log in {runs / 'pretrain'}; expected results; score a "
            "checkpoint first, such as with intl-bench knn, or name the folders with --results and --runs"
        )
    page = Page(
        title="Report",
        about=visible(f"intl-bench {intl_bench.__version__}, {datetime.now(UTC):%d %B %Y}, from {results}"),
    )
    page.add(_facts(everything))
    tables = _tables(records)
    missing: list[str] = []
    _section(page, "Results", "".join(_result(table, page) for table in tables), missing, "intl-bench knn CHECKPOINT")
    _section(page, "Curves", curves, missing, "intl-bench pretrain; --runs names the folder of runs")
    _section(page, "Spectra", _spectra(records, grids), missing, "intl-bench ablation NAME")
    _section(page, "Detections", detections_html(everything), missing, "intl-bench coco CHECKPOINT --visualize 4")
    _section(
        page,
        "Ablations",
        "".join(_grid(results, *item, page) for item in grids.items()),
        missing,
        "intl-bench ablation NAME",
    )
    if everything:
        _section(page, "Commands", _commands(tables, grids), missing, "")
        _section(page, "Cost", cost_html(everything), missing, "")
        _section(page, "Environment", environment_html(everything), missing, "")
    if missing:
        items = "".join(f"<li>{html.escape(one)}</li>\n" for one in missing)
        page.add(f'<section class="none">\n<h2>Not in this report</h2>\n<ul>\n{items}</ul>\n</section>\n')
    return page.text()


def _grids(results: Path) -> list[Path]:
    folders = sorted((results / "ablations").glob("*/"))
    return [folder for folder in folders if not folder.name.startswith(".")]


def _section(page: Page, name: str, markup: str, missing: list[str], remedy: str) -> None:
    """Add a section; one that is empty is listed at the end of the page, with the command that fills it."""
    if markup:
        page.link(name, name)
        page.add(f'<section>\n<h2 id="{identifier(name)}">{name}</h2>\n{markup}</section>\n')
    elif remedy:
        missing.append(f"{name}: {remedy}")


def _facts(records: Sequence[ResultRecord]) -> str:
    trained = pretrainings_of(records)
    seconds = sum(record.wall_time_s for record in records if record.task != "pretrain")
    seconds += sum(float(record.details["pretrain"]["seconds"]) for record in trained)
    days = sorted(record.created[:10] for record in records)
    devices = dict.fromkeys(f"{gpu}" for record in records for gpu in record.hardware.get("gpus") or ())
    scales = dict.fromkeys(record.scale for record in records)
    facts = [
        ("Records", f"{len(records):,}"),
        ("Pre-trainings", f"{len(trained):,}"),
        ("Data sets", str(len({record.dataset for record in records}))),
        ("Scale", ", ".join(scales)),
        ("Computing time", duration(seconds)),
        ("GPUs", ", ".join(devices) if any(map(gpus_of, records)) else "none"),
        ("Measured", " – ".join(dict.fromkeys((days[0], days[-1])))) if days else ("Measured", "nothing yet"),
    ]
    items = "".join(f"<div><dt>{name}</dt><dd>{html.escape(visible(text))}</dd></div>" for name, text in facts)
    return f'<dl class="facts">{items}</dl>\n'


def _tables(records: Sequence[ResultRecord]) -> list[BuiltTable]:
    """Build the tables that have a measured row."""
    built = [build_table(table, records) for table in TABLES.values()]
    return [table for table in built if table.measurements]


def _result(table: BuiltTable, page: Page) -> str:
    return table_html(table, page, level=3) + dots_html(table)


def _spectra(records: Sequence[ResultRecord], grids: dict[str, list[ResultRecord]]) -> str:
    parts = [("", spectra_html(records)), *((name, spectra_html(some)) for name, some in grids.items())]
    return "".join(
        f"{f'<h3>{html.escape(visible(name))}</h3>' if name else ''}\n{text}" for name, text in parts if text
    )


def _grid(results: Path, name: str, records: Sequence[ResultRecord], page: Page) -> str:
    """Return the figures and the table of an ablation."""
    folder = results / "ablations" / name
    parts = [
        picture_html(
            path, name=f"Figure of the ablation {name}", caption=f"{name}: mean and standard deviation over seeds."
        )
        for path in sorted(folder.glob("*.png"))
    ]
    if records:
        table = build_table(TABLES["ablation"], records)
        markup = table_html(table, page, level=4).replace(
            'id="table-ablation', f'id="table-ablation-{identifier(name)}'
        )
        parts.append(f"<details><summary>Table</summary>\n{markup}</details>\n")
    parts += [
        f"<pre>{html.escape(visible(read_text(path, 'the table')))}</pre>\n" for path in folder.glob(f"{name}.md")
    ]
    return f"<h3>{html.escape(visible(name))}</h3>\n{''.join(parts)}"


def _commands(tables: Sequence[BuiltTable], grids: dict[str, list[ResultRecord]]) -> str:
    """Return the commands that repeat each measured row, and each ablation."""
    parts = []
    for table in tables:
        rows = [
            (line["method"], line["marks"], line["row"])
            for line in table.frame.drop_duplicates("row").to_dict("records")
            if line["kind"] == "measured"
        ]
        for method, mark, row in rows:
            found = {
                id(one.record): one.record
                for (number, _), some in table.measurements.items()
                if number == row
                for one in some
            }
            name = f"Table {table.number}, {method} [{mark}]"
            parts.append(_block(name, commands_of(list(found.values()))))
    parts += [_block(f"Ablation {name}", [f"intl-bench ablation {name}"]) for name, some in grids.items() if some]
    about = (
        '<p class="caption">A command states the settings that differ from the recipe or protocol it names. The same '
        "seeds on the same images give the same numbers up to rounding.</p>\n"
    )
    return about + "".join(parts) if parts else ""


def _block(name: str, commands: Sequence[str]) -> str:
    text = html.escape(visible("\n".join(commands)))
    return (
        f'<div class="command"><h4>{html.escape(visible(name))}</h4><button type="button" class="copy">Copy</button>'
        f"<pre>{text}</pre></div>\n"
    )
