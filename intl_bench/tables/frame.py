"""The published and the measured rows of a table as one tidy pandas DataFrame with a line for each cell."""

import dataclasses
import json
from collections.abc import Collection, Sequence

import pandas as pd

from intl_bench import published
from intl_bench.core.terminal import visible
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
_OUTPUT_NAMES = {"std_over": "spread"}  # fields whose name in CSV and JSON is another one


@dataclasses.dataclass(frozen=True, kw_only=True)
class BuiltTable:
    """A table with its rows, which `intl_bench.tables.formats` turns into text. Control characters are escaped.

    Attributes:
        frame: a line for each row and column. Its columns are the table's number, the row's position, the column's key
            and the fields of `Row` and `Cell` (`Cell.std_over` is the column "spread"). A missing value is null.
        notes: the footnotes as (mark, text). The mark is empty for a note about the whole table.
    """

    number: str
    caption: str
    columns: Sequence[Column]
    frame: pd.DataFrame
    notes: Sequence[tuple[str, str]]


def build_table(table: Table, records: Sequence[ResultRecord]) -> BuiltTable:
    """Build a table from the records that belong to it. The published rows come first."""
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
    frame = pd.DataFrame(lines, columns=_FIELDS).astype(_TYPES).rename(columns=_OUTPUT_NAMES)
    _embolden(frame, {column.key for column in columns if column.ranked})
    return BuiltTable(
        number=table.number,
        caption=caption,
        columns=[
            dataclasses.replace(column, group=visible(column.group), name=visible(column.name)) for column in columns
        ],
        frame=frame.map(lambda value: visible(value) if isinstance(value, str) else value),
        notes=[(mark, visible(text)) for mark, text in notes],
    )


def _embolden(frame: pd.DataFrame, ranked_columns: Collection[str]) -> None:
    """Make the best of at least two measured cells bold, among the cells of a column that are ranked together."""
    ranked = frame[frame["rank_with"].notna() & frame["column"].isin(ranked_columns)]
    means = ranked.groupby(["column", "rank_with"])["mean"]
    printed = frame["cell"].str.split().str[0]
    best = printed.loc[means.transform("idxmax")].to_numpy()
    # Means whose printed digits are equal are a tie.
    frame.loc[ranked.index, "bold"] = (means.transform("size") > 1) & (printed.loc[ranked.index] == best)


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
