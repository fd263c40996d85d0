"""Records and published values -> tables, as markdown, LaTeX, CSV, JSON or HTML.

A new table is one module with a `TABLE` and one line in `TABLES`.
"""

from collections.abc import Collection, Iterable, Sequence

from intl_bench.core.errors import InputError
from intl_bench.records import ResultRecord
from intl_bench.tables import table1, table2, table3, table4
from intl_bench.tables.formats import FORMATS
from intl_bench.tables.frame import build
from intl_bench.tables.model import Table

TABLES: dict[str, Table] = {
    "1": table1.TABLE,
    "2": table2.TABLE,
    "3": table3.TABLE,
    "4": table4.TABLE,
}


def render(
    records: Iterable[ResultRecord], *, tables: Sequence[str] = ("1", "2", "3"), format: str = "markdown"
) -> str:
    """The tables with the published rows and the measured ones; the order of `records` does not matter.

    Raises:
        InputError: an unknown table or format; the message lists the choices.
    """
    for number in tables:
        _check("table", number, TABLES)
    _check("format", format, FORMATS)
    records = list(records)
    return FORMATS[format]([build(TABLES[number], records) for number in tables])


def _check(what: str, name: str, choices: Collection[str]) -> None:
    if name not in choices:
        raise InputError(f"{what} {name!r}: no such {what}; choose from {', '.join(choices)}")
