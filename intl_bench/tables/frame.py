"""A table's published and measured rows -> one tidy pandas DataFrame, one line a cell."""

import dataclasses
import json
from collections.abc import Collection, Sequence

import pandas as pd

from intl_bench import published
from intl_bench.records import ResultRecord
from intl_bench.tables.measured import measured_rows
from intl_bench.tables.model import MISSING, Cell, Column, Row, Table

_MEASURED = (
    "Measured cells: mean ± std (n), divisor n - 1, over n pre-trainings, each the mean of its transfer seeds. "
    "Bold: the best of at least two measured rows with the same data set, evaluation, scale and backbone, pre-trained "
    "on the same data from the same start for the same epochs. A row whose pre-training data or epochs are unknown is "
    "ranked with none, a random initialization with others of its kind only; measured and published rows are never "
    "ranked together."
)
_TYPES = {"mean": "float64", "std": "float64", "n": "Int64", "transfer_seeds": "Int64"}
_FIELDS = ["table", "row", "column"]
_FIELDS += [field.name for kind in (Row, Cell) for field in dataclasses.fields(kind) if field.name != "cells"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class BuiltTable:
    """A table ready for a format.

    `frame` has a line for every row and column, with the fields of `Row` and `Cell`, the table's number, the row's
    position and the column's key; what a cell does not have is null.
    """

    number: str
    caption: str
    columns: Sequence[Column]
    frame: pd.DataFrame
    notes: Sequence[tuple[str, str]]


def build_table(table: Table, records: Sequence[ResultRecord]) -> BuiltTable:
    """Picks the records that belong to the table and lays its rows out, the published ones first."""
    own = [record for record in records if any(metric in record.metrics for metric in table.place(record).values())]
    rows, notes = measured_rows(table, own)
    caption = table.caption
    if table.published:
        paper = published.load(table.published)
        caption += f" Source of the published rows: {paper.source}."
        rows = [*map(_published_row, paper.rows), *rows]
        notes = [*paper.notes, *notes]
    if own:
        notes += [("", note) for note in (table.about_measured, _MEASURED) if note]
    columns = table.columns(own)
    lines = [
        {"table": table.number, "row": position, "column": column.key}
        | {name: value for name, value in vars(row).items() if name != "cells"}
        | vars(row.cells.get(column.key, Cell()))
        for position, row in enumerate(rows)
        for column in columns
    ]
    frame = pd.DataFrame(lines, columns=_FIELDS).astype(_TYPES)
    _embolden(frame, {column.key for column in columns if column.ranked})
    return BuiltTable(number=table.number, caption=caption, columns=columns, frame=frame, notes=notes)


def _embolden(frame: pd.DataFrame, ranked_columns: Collection[str]) -> None:
    """Marks the best of each column among the measured cells that may be ranked together, where there are two."""
    ranked = frame[frame["rank_with"].notna() & frame["column"].isin(ranked_columns)]
    contests = ranked.groupby(["column", "rank_with"])["mean"]
    printed = frame["cell"].str.split().str[0]
    best = printed.loc[contests.transform("idxmax")].to_numpy()
    # Means that print alike are a tie: the digits behind them decide nothing.
    frame.loc[ranked.index, "bold"] = (contests.transform("size") > 1) & (printed.loc[ranked.index] == best)


def _published_row(row: published.PublishedRow) -> Row:
    cells = {}
    for column, text in row.cells.items():
        mean, _, std = text.partition("±")
        cells[column] = Cell(
            cell=text,
            bold=column in row.bold,
            mean=None if text == MISSING else float(mean),
            std=float(std) if std else None,
            n=row.protocol.get("seeds") if std else None,
            protocol=json.dumps(row.protocol, sort_keys=True, ensure_ascii=False),
        )
    return Row(
        kind="published",
        method=row.method,
        backbone=row.protocol["backbone"],
        scale="paper",
        label=row.method,
        bold_label="method" in row.bold,
        marks=" ".join(row.marks),
        source=row.source,
        cells=cells,
    )
