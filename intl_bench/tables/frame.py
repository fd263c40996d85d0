"""The published and the measured rows of a table as one tidy pandas DataFrame with a line for each cell."""

import dataclasses
import json
import re
from collections.abc import Collection, Mapping, Sequence
from decimal import Decimal

import pandas as pd

from intl_bench import published
from intl_bench.core.terminal import visible
from intl_bench.records import ResultRecord
from intl_bench.tables.cells import rounded
from intl_bench.tables.measured import measured_rows
from intl_bench.tables.model import MISSING, Cell, Column, Measurement, Note, Row, Table

_CHOSEN = (
    'A row with "chosen on" shows what its selection chose: the epoch, and the settings and k that its protocol names. '
    "If it was chosen on the test images, it is too high by the luck of that choice."
)
_MEASURED = (
    "Measured cells: mean ± std (n), divisor n - 1, over n pre-trainings, each the mean of its transfer seeds. "
    "Bold: the best of at least two measured rows with the same data set, evaluation, scale and backbone, pre-trained "
    "on the same data from the same start for the same epochs. A row whose pre-training data or epochs are unknown is "
    "ranked with none, a random initialization with others of its kind only; measured and published rows are never "
    "ranked together."
)
_MEASURED_SHORT = "Measured cells: mean ± std (n) over n pre-trainings."
_ONE_PRETRAINING = "†: over the transfer seeds of one pre-training."
NOTES = ("full", "short", "none")
_TYPES = {"mean": "float64", "std": "float64", "n": "Int64", "transfer_seeds": "Int64"}
_FIELDS = ["table", "row", "column"]
_NOT_SHOWN = ("cells", "measurements")  # of a row
_FIELDS += [field.name for kind in (Row, Cell) for field in dataclasses.fields(kind) if field.name not in _NOT_SHOWN]
_OUTPUT_NAMES = {"std_over": "spread"}  # fields whose name in CSV and JSON is another one


@dataclasses.dataclass(frozen=True, kw_only=True)
class BuiltTable:
    """A table with its rows, which `intl_bench.tables.formats` turns into text. Control characters are escaped.

    Attributes:
        frame: a line for each row and column. Its columns are the table's number, the row's position, the column's key
            and the fields of `Row` and `Cell` (`Cell.std_over` is the column "spread"). A missing value is null.
        notes: the footnotes as (mark, text). The mark is empty for a note about the whole table.
        measurements: what the measured cells are made of, by the row's position and the column's key.
        datasets: see `Table`.
        head: the heading above the labels of the rows.
    """

    number: str
    caption: str
    columns: Sequence[Column]
    frame: pd.DataFrame
    notes: Sequence[tuple[str, str]]
    measurements: Mapping[tuple[int, str], Sequence[Measurement]]
    datasets: tuple[str, ...] | None
    head: str = "Method"


def build_table(
    table: Table,
    records: Sequence[ResultRecord],
    *,
    datasets: Collection[str] | None = None,
    measured_only: bool = False,
    notes: str = "full",
) -> BuiltTable:
    """Build a table from the records that belong to it. The published rows come first.

    Args:
        datasets: limits the columns to those of some data sets; None keeps all. The records are already limited.
        measured_only: leaves out the published rows, and the columns without a measured value.
        notes: one of `NOTES`.
    """
    own = belonging(table, records)
    rows, footnotes = measured_rows(table, own)
    caption = table.caption
    if table.published and not measured_only:
        paper = published.load(table.published)
        caption = f"{caption} {table.about_published} Source of the published rows: {paper.source}.".replace("  ", " ")
        rows = [*map(_published_row, paper.rows), *rows]
        footnotes = [*(Note(mark, text, _clause(text) if mark else "") for mark, text in paper.notes), *footnotes]
    if own:
        if table.about_epochs and any(_is_of_an_epoch(table, record) for record in own):
            footnotes.append(Note("", table.about_epochs))
        if any("chosen_on" in record.protocol for record in own):
            footnotes.append(Note("", _CHOSEN))
        footnotes.append(Note("", _MEASURED, _MEASURED_SHORT))
    columns = [
        column for column in table.columns(own) if not (datasets and column.dataset) or column.dataset in datasets
    ]
    if measured_only:
        columns = [column for column in columns if any(column.key in row.cells for row in rows)]
    if notes == "none":
        rows = [dataclasses.replace(row, marks="") for row in rows]
        if any(cell.std_over == "transfer" for row in rows for cell in row.cells.values()):
            caption += f" {_ONE_PRETRAINING}"
    texts = {"full": [note[:2] for note in footnotes], "short": [(n.mark, n.short) for n in footnotes if n.short]}
    lines = [
        {"table": table.number, "row": position, "column": column.key}
        | {name: value for name, value in vars(row).items() if name not in _NOT_SHOWN}
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
        notes=[(mark, visible(text)) for mark, text in texts.get(notes, [])],
        measurements={
            (position, column): some for position, row in enumerate(rows) for column, some in row.measurements.items()
        },
        datasets=table.datasets,
    )


def belonging(table: Table, records: Sequence[ResultRecord]) -> list[ResultRecord]:
    """Return the records that have a value in a table."""
    return [record for record in records if any(metric in record.metrics for metric in table.place(record).values())]


def _is_of_an_epoch(table: Table, record: ResultRecord) -> bool:
    """Return whether a record has a top-1 or top-5 of the last epoch of a trained classifier in a table."""
    shown = record.metrics.keys() & table.place(record).values()
    if record.protocol.get("chosen_on") is not None:
        return False
    return record.task in ("linear", "finetune") and not shown.isdisjoint({"top1", "top5"})


def _clause(text: str) -> str:
    """Return the first clause of a footnote, without what is after a semicolon, a colon or the first sentence."""
    return re.split(r"[;:] |\.(?= [A-Z]|$)", text)[0] + "."


def _embolden(frame: pd.DataFrame, ranked_columns: Collection[str]) -> None:
    """Make the best of at least two measured cells bold, among the cells of a column that are ranked together."""
    ranked = frame[frame["rank_with"].notna() & frame["column"].isin(ranked_columns)]
    for _, together in ranked.groupby(["column", "rank_with"]):
        lines = together.to_dict("records")
        best = max(lines, key=lambda line: line["mean"])
        tied = [_is_tie(line["cell"], line["mean"], best["cell"], best["mean"]) for line in lines]
        frame.loc[together.index, "bold"] = [len(lines) > 1 and tie for tie in tied]


def _is_tie(cell: str, mean: float, best_cell: str, best_mean: float) -> bool:
    """Return whether two means are equal in the digits that both cells print."""
    decimals = min(-int(Decimal(text.split()[0]).as_tuple().exponent) for text in (cell, best_cell))
    return rounded(mean, decimals) == rounded(best_mean, decimals)


def _published_row(row: published.PublishedRow) -> Row:
    cells = {}
    for column, text in row.cells.items():
        mean, _, std = text.partition("±")
        seeds = row.protocol.get("seeds") if std else None
        cells[column] = Cell(
            cell=" ".join([mean, *(["±", std] if std else []), *([f"({seeds})"] if seeds else [])]),
            bold=column in row.bold,
            mean=None if text == MISSING else float(mean),
            std=float(std) if std else None,
            n=seeds,
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
