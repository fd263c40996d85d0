"""One self-contained HTML page about all results: tables, seeds, curves, spectra, pictures, cost and commands."""

import html
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import intl_bench
from intl_bench.commands import ablation, commands_of
from intl_bench.core import planned
from intl_bench.core.errors import InputError
from intl_bench.core.inputs import read_text
from intl_bench.core.terminal import visible
from intl_bench.records import RecordStore, ResultRecord
from intl_bench.report.cost import cost_html, days_of, environment_html, gpus_of, pretrainings_of
from intl_bench.report.curves import curves_html
from intl_bench.report.label_free import label_free_html
from intl_bench.report.pictures import detections_html, picture_html
from intl_bench.report.seeds import dots_html
from intl_bench.report.spectra import spectra_html
from intl_bench.tables import build, tuning
from intl_bench.tables.frame import BuiltTable
from intl_bench.tables.html.grid import table_html
from intl_bench.tables.html.page import Page, identifier

__all__ = ["render"]


def render(results: Path, runs: Path) -> str:
    """Return the page.

    Args:
        results: the folder with `records/`, `ablations/` and `sweeps/`.
        runs: the folder of runs, whose logs give the curves.

    Raises:
        InputError: there is neither a record nor a log, or a record cannot be read.
    """
    records = RecordStore(results / "records").load()
    grids = {folder.name: RecordStore(folder / "records").load() for folder in _folders(results / "ablations")}
    sweeps = {
        folder.name: [one for part in (folder, folder / "search") for one in RecordStore(part / "records").load()]
        for folder in _folders(results / "sweeps")
    }
    # The record of a tuned method repeats the cost of the runs that it stands for.
    everything = [
        record for some in (records, *grids.values(), *sweeps.values()) for record in some if record.task != tuning.TASK
    ]
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
    built = _tables(records)
    missing: list[str] = []
    _section(page, "Results", "".join(_result(table, page) for table in built), missing, "intl-bench knn CHECKPOINT")
    _section(page, "Curves", curves, missing, "intl-bench pretrain; --runs names the folder of runs")
    _section(page, "Spectra", _spectra(records, grids), missing, "intl-bench ablation NAME")
    _section(
        page,
        "Choosing without labels",
        label_free_html(
            {results.name: records}
            | {f"ablations/{name}": some for name, some in grids.items()}
            | {f"sweeps/{name}": some for name, some in sweeps.items()}
        ),
        missing,
        "",  # few results have the four runs that it needs
    )
    _section(page, "Detections", detections_html(everything), missing, "intl-bench coco CHECKPOINT --visualize 4")
    _section(
        page,
        "Ablations",
        "".join(_grid(results, *item, page) for item in grids.items()),
        missing,
        "intl-bench ablation NAME",
    )
    _section(
        page, "Sweeps", "".join(_sweep(*item, page) for item in sweeps.items()), missing, "intl-bench sweep RECIPE"
    )
    if everything:
        _section(page, "Commands", _commands(built, grids), missing, "")
        _section(page, "Cost", cost_html(everything), missing, "")
        _section(page, "Environment", environment_html(everything), missing, "")
    if missing:
        items = "".join(f"<li>{html.escape(one)}</li>\n" for one in missing)
        page.add(f'<section class="none">\n<h2>Not in this report</h2>\n<ul>\n{items}</ul>\n</section>\n')
    return page.text()


def _folders(parent: Path) -> list[Path]:
    return [folder for folder in sorted(parent.glob("*/")) if not folder.name.startswith(".")]


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
    devices = dict.fromkeys(f"{gpu}" for record in records for gpu in record.hardware.get("gpus") or ())
    scales = dict.fromkeys(record.scale for record in records)
    facts = [
        ("Records", f"{len(records):,}"),
        ("Pre-trainings", f"{len(trained):,}"),
        ("Data sets", str(len({record.dataset for record in records}))),
        ("Scale", ", ".join(scales)),
        ("Computing time", planned.duration(seconds)),
        ("GPUs", ", ".join(devices) if any(map(gpus_of, records)) else "none"),
        ("Measured", days_of(records) if records else "nothing yet"),
    ]
    items = "".join(f"<div><dt>{name}</dt><dd>{html.escape(visible(text))}</dd></div>" for name, text in facts)
    return f'<dl class="facts">{items}</dl>\n'


def _tables(records: Sequence[ResultRecord]) -> list[BuiltTable]:
    """Build the tables that have a measured row; Table 4 stands before those of other data sets."""
    built = [*build(records, tables=["1", "2", "3", "4"]), *build(records)]
    measured = {table.number: table for table in built if table.measurements}
    return list(measured.values())


def _result(table: BuiltTable, page: Page) -> str:
    return table_html(table, page, level=3) + dots_html(table)


def _spectra(records: Sequence[ResultRecord], grids: dict[str, list[ResultRecord]]) -> str:
    text, opened = spectra_html(records), " open"
    for name, some in grids.items():
        if part := spectra_html(some):
            text += f"<details{opened}><summary>Ablation {html.escape(visible(name))}</summary>\n{part}</details>\n"
            opened = ""
    return text


def _grid(results: Path, name: str, records: Sequence[ResultRecord], page: Page) -> str:
    """Return the figures and the tables of an ablation and of its experiment without data."""
    folder = results / "ablations" / name
    parts = [
        picture_html(
            path,
            name=f"Figure of the ablation {name}",
            caption="Mean and standard deviation over the seeds."
            if path.parent == folder
            else f"Experiment {path.stem}.",
        )
        for path in sorted([*folder.glob("*.png"), *folder.glob("*/*.png")])
    ]
    if records:
        parts.append(f"<details><summary>Table</summary>\n{_own_table('ablation', name, records, page)}</details>\n")
    parts += [_plain_table(read_text(path, "the table")) for path in sorted(folder.glob("*/*.md"))]
    return f"<h3>{html.escape(visible(name))}</h3>\n{''.join(parts)}"


def _sweep(name: str, records: Sequence[ResultRecord], page: Page) -> str:
    """Return the table of equal tuning of a sweep; empty if none has ended."""
    tuned = [record for record in records if record.task == tuning.TASK]
    return f"<h3>{html.escape(visible(name))}</h3>\n{_own_table('tuning', name, tuned, page)}" if tuned else ""


def _own_table(table: str, name: str, records: Sequence[ResultRecord], page: Page) -> str:
    """Return a table of which the page has one for each folder of results."""
    markup = table_html(build(records, tables=[table])[0], page, level=4)
    return markup.replace(f"table-{table}", page.unused(f"table-{table}-{name}"))


def _plain_table(text: str) -> str:
    """Return a table of Markdown whose cells hold no bar."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[:1] + lines[2:]]
    body = "".join(f"<tr>{''.join(f'<td>{html.escape(visible(cell))}</td>' for cell in row)}</tr>\n" for row in rows)
    return f'<details><summary>Table</summary>\n<div class="scroll"><table>{body}</table></div>\n</details>\n'


def _commands(built: Sequence[BuiltTable], grids: dict[str, list[ResultRecord]]) -> str:
    """Return the commands that repeat each measured row, and each ablation."""
    parts = []
    for table in built:
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
    parts += [_block(f"Ablation {name}", [ablation(name, some)]) for name, some in grids.items() if some]
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
