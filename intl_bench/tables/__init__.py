"""Tables of records and published values, as text, Markdown, LaTeX with BibTeX, CSV, JSON or HTML.

To add a table, write a module with a `TABLE` and add a line to `TABLES`.
"""

import difflib
import sys
from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence, Set

from intl_bench.core.datasets import DATASETS, canonical
from intl_bench.core.errors import InputError
from intl_bench.records import ResultRecord
from intl_bench.tables import ablation, fpn, table1, table2, table3, table4, transfer, tuning, voc
from intl_bench.tables.call import CallableModule
from intl_bench.tables.compare import compare
from intl_bench.tables.formats import FORMATS
from intl_bench.tables.frame import NOTES, BuiltTable, belonging, build_table
from intl_bench.tables.model import Table
from intl_bench.tables.own import has_own_place, own_table
from intl_bench.tables.per_class import per_class as of_classes
from intl_bench.tables.per_class import turn

__all__ = ["FORMATS", "TABLES", "build", "own_tables", "render", "render_comparison"]
TABLES: dict[str, Table] = {
    "1": table1.TABLE,
    "2": table2.TABLE,
    "3": table3.TABLE,
    "4": table4.TABLE,
    "voc": voc.TABLE,
    "fpn": fpn.TABLE,
    "transfer": transfer.TABLE,
    "few-shot": transfer.EPISODES,
    "ablation": ablation.TABLE,
    "tuning": tuning.TABLE,
}
_PAPER = ("1", "2", "3", "4", "voc", "fpn", "transfer", "few-shot")
_IF_MEASURED = ("voc", "fpn", "transfer", "few-shot", "tuning")
_TIDY = ("csv", "json")  # formats with a line for each cell, in which a table is never turned


def render(
    records: Iterable[ResultRecord],
    *,
    tables: Sequence[str] | None = None,
    format: str = "markdown",
    schedule: str | None = None,
    datasets: Sequence[str] | None = None,
    measured_only: bool = False,
    notes: str = "full",
    per_class: bool = False,
) -> str:
    """Return tables with their published and measured rows as text.

    The order of the records does not matter.

    Args:
        tables: keys of `TABLES`. None selects tables 1, 2 and 3, the tables voc, fpn, transfer, few-shot and tuning if
            a record is in them, and one table for each data set with records that these do not have; with `schedule`
            all tables that have it, fpn only if a record is in it.
        format: one of `FORMATS`.
        schedule: limits a detection table to the published and measured rows of one schedule, such as "2x".
        datasets: limits the tables, their columns and the records to these data sets.
        measured_only: leaves out the published rows and what has no measured value.
        notes: "full", "short" or "none".
        per_class: shows the AP of each class, for detection tables; these have no published rows.

    Raises:
        InputError: a table, format, schedule or data set does not exist (the message lists the choices), or nothing
            that was asked for was measured.
    """
    _check("format", format, FORMATS)
    built = build(
        records,
        tables=tables,
        schedule=schedule,
        datasets=datasets,
        measured_only=measured_only,
        notes=notes,
        per_class=per_class,
    )
    return FORMATS[format]([turn(table) for table in built] if per_class and format not in _TIDY else built)


def build(
    records: Iterable[ResultRecord],
    *,
    tables: Sequence[str] | None = None,
    schedule: str | None = None,
    datasets: Sequence[str] | None = None,
    measured_only: bool = False,
    notes: str = "full",
    per_class: bool = False,
) -> list[BuiltTable]:
    """Return tables as data; see `render`."""
    _check("notes", notes, NOTES)
    records, chosen = _select(list(records), tables, schedule, datasets)
    if per_class:
        chosen, records = of_classes(chosen, records)
    if measured_only:
        chosen = [table for table in chosen if belonging(table, records)]
    if not any(table.published or belonging(table, records) for table in chosen):
        what = f" on {', '.join(datasets)}" if datasets else ""
        raise InputError(
            f"tables: nothing measured{what}{' for these tables' if tables else ''}; expected records; "
            "score a checkpoint first, such as with intl-bench knn, or name their folder with --results"
        )
    wanted = None if datasets is None else {canonical(name) for name in datasets}
    return [build_table(table, records, datasets=wanted, measured_only=measured_only, notes=notes) for table in chosen]


def render_comparison(
    records: Iterable[ResultRecord],
    first: str,
    second: str,
    *,
    tables: Sequence[str] | None = None,
    format: str = "markdown",
    schedule: str | None = None,
    datasets: Sequence[str] | None = None,
    per_class: bool = False,
) -> str:
    """Return the differences between two measured rows, with their intervals, as text.

    Args:
        first, second: a method, words of a label, TABLE:NUMBER, or with a single table the number of a row.
        format: "text", "markdown", "csv" or "json".
        tables, schedule, datasets, per_class: as for `render`.

    Raises:
        InputError: as for `render`; or there is no such row, or more than one, or both names are of one row.
    """
    records, chosen = _select(list(records), tables, schedule, datasets)
    if per_class:
        chosen, records = of_classes(chosen, records)
    return compare(chosen, records, first, second, format)


def _select(
    records: list[ResultRecord], tables: Sequence[str] | None, schedule: str | None, datasets: Sequence[str] | None
) -> tuple[list[ResultRecord], list[Table]]:
    """Return the chosen tables, and the records without those of other data sets than the chosen ones."""
    chosen = _chosen(records, tables, schedule, with_voc=datasets is not None)
    if datasets is None:
        return records, chosen
    _check_datasets(datasets, records)
    wanted = {canonical(name) for name in datasets}
    records = [record for record in records if canonical(record.dataset) in wanted]
    return records, [table for table in chosen if _shows(table, wanted) or belonging(table, records)]


def _chosen(
    records: Sequence[ResultRecord], tables: Sequence[str] | None, schedule: str | None, *, with_voc: bool
) -> list[Table]:
    if schedule is not None:
        _check("schedule", schedule, sorted({name for table in TABLES.values() for name in table.schedules}))
        with_schedule = [number for number, table in TABLES.items() if schedule in table.schedules]
        for number in tables or ():
            _check("table", number, TABLES)
            if number not in with_schedule:
                raise InputError(f"table {number!r} has no {schedule} schedule; choose from {', '.join(with_schedule)}")
        default = [number for number in with_schedule if number != "fpn" or belonging(fpn.TABLE, records)]
        return [TABLES[number].only(schedule) for number in tables or default]
    if tables is not None:
        for number in tables:
            _check("table", number, TABLES)
        return [TABLES[number] for number in tables]
    more = [name for name in _IF_MEASURED if (name == "voc" and with_voc) or belonging(TABLES[name], records)]
    return [*(TABLES[number] for number in ("1", "2", "3", *more)), *own_tables(records)]


def own_tables(records: Sequence[ResultRecord]) -> list[Table]:
    """Return a table for each data set with records that the paper's tables do not have."""
    in_paper = {id(record) for number in _PAPER for record in belonging(TABLES[number], records)}
    others: dict[str, list[ResultRecord]] = defaultdict(list)
    for record in records:
        if id(record) not in in_paper and has_own_place(record):
            others[record.dataset].append(record)
    return [own_table(name, others[name]) for name in sorted(others)]


def _shows(table: Table, datasets: Set[str]) -> bool:
    """Return whether a table has published values of one of these data sets."""
    shown = {column.dataset for column in table.columns([])} - {""} or set(table.datasets or ())
    return table.published is not None and not datasets.isdisjoint(map(canonical, shown))


def _check_datasets(names: Sequence[str], records: Sequence[ResultRecord]) -> None:
    known = {canonical(record.dataset) for record in records} | set(DATASETS)
    for name in names:
        if canonical(name) not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise InputError(
                f"data set {name!r}: no record and no published value{hint or ';'} expected one of "
                f"{', '.join(sorted(known))}"
            )


def _check(kind: str, name: str, choices: Collection[str]) -> None:
    if name not in choices:
        raise InputError(f"{kind} {name!r}: no such {kind}; choose from {', '.join(choices)}")


sys.modules[__name__].__class__ = CallableModule
