"""The tables of the INTL paper (arXiv:2305.16789) as printed, and the known protocol of each row.

`tableN.csv` holds the printed cells, including `**bold**`. `tableN.json` holds the source, the protocols and the
footnotes. These files are never reformatted.

`table3_1x`, `table3_2x` and `voc_24k` have the same form. They hold values from many sources for one detector trained
with one schedule.
"""

import csv
import dataclasses
import json
from importlib import resources
from typing import Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class PublishedRow:
    """One printed row.

    Attributes:
        method: the printed name.
        cells: the printed text by column.
        bold: the columns that are printed in bold; "method" for the name.
        marks: the marks of the footnotes about this row.
        protocol: the known settings of the pre-training and of the evaluation.
        source: the source of the row; the source of the table if the row has none.
    """

    method: str
    cells: dict[str, str]
    bold: frozenset[str]
    marks: tuple[str, ...]
    protocol: dict[str, Any]
    source: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class PublishedTable:
    """A table with its rows in printed order.

    Attributes:
        notes: the footnotes as (mark, text). The mark is empty for a note about the whole table.
    """

    source: str
    rows: tuple[PublishedRow, ...]
    notes: tuple[tuple[str, str], ...]


def load(name: str) -> PublishedTable:
    """Read one packaged table, such as "table3"."""
    folder = resources.files(__name__)
    about = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
    lines = csv.DictReader((folder / f"{name}.csv").read_text(encoding="utf-8").splitlines())
    return PublishedTable(
        source=about["source"],
        rows=tuple(_row(line, about) for line in lines),
        notes=tuple((note.get("mark", ""), note["text"]) for note in about["notes"]),
    )


def _row(line: dict[str, str], about: dict[str, Any]) -> PublishedRow:
    plain = {column: text.removeprefix("**").removesuffix("**") for column, text in line.items()}
    method = plain.pop("method")
    details = {"source": about["source"], **about["rows"].get(method, {})}
    return PublishedRow(
        method=method,
        cells=plain,
        bold=frozenset(column for column, text in line.items() if text.startswith("**")),
        marks=tuple(note["mark"] for note in about["notes"] if method in note.get("rows", ())),
        source=details.pop("source"),
        protocol={**about["protocol"], **details},
    )
