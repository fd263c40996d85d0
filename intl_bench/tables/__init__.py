"""Records and published values -> tables, as markdown, LaTeX, CSV, JSON or HTML.

A new table is one module with a `TABLE` and one line in `TABLES`.
"""

from collections.abc import Collection, Iterable, Sequence

from intl_bench.core.errors import InputError
from intl_bench.records import ResultRecord
from intl_bench.tables import ablation, table1, table2, table3, table4, voc
from intl_bench.tables.formats import FORMATS
from intl_bench.tables.frame import build_table
from intl_bench.tables.model import Table

TABLES: dict[str, Table] = {
    "1": table1.TABLE,
    "2": table2.TABLE,
    "3": table3.TABLE,
    "4": table4.TABLE,
    "voc": voc.TABLE,
    "ablation": ablation.TABLE,
}
_DEFAULT = ("1", "2", "3")


def render(
    records: Iterable[ResultRecord],
    *,
    tables: Sequence[str] | None = None,
    format: str = "markdown",
    schedule: str | None = None,
) -> str:
    """The tables with the published rows and the measured ones; the order of `records` does not matter.

    Args:
        tables: which; None takes 1, 2 and 3, or all that have the schedule.
        format: one of `FORMATS`.
        schedule: limits a detection table to the measured and published rows of one schedule, such as "2x".

    Raises:
        InputError: an unknown table, format or schedule; the message lists the choices.
    """
    if schedule is not None:
        _check("schedule", schedule, sorted({name for table in TABLES.values() for name in table.schedules}))
        having = [number for number, table in TABLES.items() if schedule in table.schedules]
    if tables is None:
        tables = _DEFAULT if schedule is None else having
    for number in tables:
        _check("table", number, TABLES)
        if schedule is not None and number not in having:
            raise InputError(f"table {number!r} has no {schedule} schedule; choose from {', '.join(having)}")
    _check("format", format, FORMATS)
    records = list(records)
    chosen = [TABLES[number] if schedule is None else TABLES[number].only(schedule) for number in tables]
    return FORMATS[format]([build_table(table, records) for table in chosen])


def _check(what: str, name: str, choices: Collection[str]) -> None:
    if name not in choices:
        raise InputError(f"{what} {name!r}: no such {what}; choose from {', '.join(choices)}")
