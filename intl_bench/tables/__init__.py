"""Tables of records and published values, as Markdown, LaTeX, CSV, JSON or HTML.

To add a table, write a module with a `TABLE` and add a line to `TABLES`.
"""

import sys
from collections.abc import Collection, Iterable, Sequence

from intl_bench.core.errors import InputError
from intl_bench.records import ResultRecord
from intl_bench.tables import ablation, table1, table2, table3, table4, voc
from intl_bench.tables.call import CallableModule
from intl_bench.tables.formats import FORMATS
from intl_bench.tables.frame import build_table
from intl_bench.tables.model import Table

__all__ = ["FORMATS", "TABLES", "render"]
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
    """Return tables with their published and measured rows as text.

    The order of the records does not matter.

    Args:
        tables: keys of `TABLES`. None selects tables 1, 2 and 3, or with `schedule` all tables that have it.
        format: one of `FORMATS`.
        schedule: limits a detection table to the published and measured rows of one schedule, such as "2x".

    Raises:
        InputError: a table, format or schedule does not exist. The message lists the choices.
    """
    if schedule is not None:
        _check("schedule", schedule, sorted({name for table in TABLES.values() for name in table.schedules}))
        with_schedule = [number for number, table in TABLES.items() if schedule in table.schedules]
    if tables is None:
        tables = _DEFAULT if schedule is None else with_schedule
    for number in tables:
        _check("table", number, TABLES)
        if schedule is not None and number not in with_schedule:
            raise InputError(f"table {number!r} has no {schedule} schedule; choose from {', '.join(with_schedule)}")
    _check("format", format, FORMATS)
    records = list(records)
    chosen = [TABLES[number] if schedule is None else TABLES[number].only(schedule) for number in tables]
    return FORMATS[format]([build_table(table, records) for table in chosen])


def _check(kind: str, name: str, choices: Collection[str]) -> None:
    if name not in choices:
        raise InputError(f"{kind} {name!r}: no such {kind}; choose from {', '.join(choices)}")


sys.modules[__name__].__class__ = CallableModule
