"""The tables of the INTL paper (arXiv:2305.16789) as printed, with what is known about how each row was measured.

`tableN.csv` holds what the paper prints, `**bold**` included; `tableN.json` holds the source, the protocols and the
footnotes. Neither is ever reformatted.

`table3_1x`, `table3_2x` and `voc_24k` hold, in the same form, what many sources print about the same detector, trained
by one schedule.
"""

import csv
import dataclasses
import json
from importlib import resources
from typing import Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class PublishedRow:
    """One printed row: `cells` and `method` are the printed text, `bold` names the columns printed in bold.

    `source` is the row's own, or its table's.
    """

    method: str
    cells: dict[str, str]
    bold: frozenset[str]
    marks: tuple[str, ...]
    protocol: dict[str, Any]
    source: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class PublishedTable:
    """Rows in printed order; `notes` are (mark, text), the mark empty where a note is about the whole table."""

    source: str
    rows: tuple[PublishedRow, ...]
    notes: tuple[tuple[str, str], ...]


def load(name: str) -> PublishedTable:
    """Reads one packaged table, such as "table3"."""
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
