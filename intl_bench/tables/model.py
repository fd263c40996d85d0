"""The parts of a table. A `Table` defines the columns, and to which of them the metrics of a record belong."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from intl_bench.records import ResultRecord

MISSING = "–"


class Note(NamedTuple):
    """A footnote in full, and its short form, which is empty for a note that only the full notes have.

    The mark is empty for a note about the whole table.
    """

    mark: str
    text: str
    short: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Column:
    """One column of a table.

    Attributes:
        key: the column's key in `Row.cells`, in CSV and in JSON.
        group: the heading above this column and its neighbors of the same group.
        name: the heading below the group's heading.
        flat: the whole heading, for formats with one line of headings.
        ranked: whether the best value is bold. False for a quantity that is neither better nor worse, such as a
            condition number.
        dataset: the data set that this column shows; empty if the whole table shows the same ones.
    """

    key: str
    group: str
    name: str
    flat: str
    ranked: bool = True
    dataset: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Table:
    """One table of results.

    Attributes:
        about_published: follows the caption of a table with published rows.
        published: name of the paper's table in `intl_bench.published`; None if the paper has no such table.
        decimals: number of decimals of a measured mean; the paper prints that table with as many.
        datasets: the data sets that the columns stand for without naming them. The label of a row that was measured on
            another data set names it. None if the columns name their data set.
        column_setting: the dotted key of the pre-training setting of which each column shows one value, such as
            "settings.batch_size" in Table 4. A row may hold pre-trainings with several values of this setting.
        label_keys: the protocol keys whose values are in the label of every measured row.
        about_epochs: a note below a table with a measured top-1 or top-5, about the epoch of these.
        schedules: the detection schedules to which the table can be limited, each with the name of its published rows
            in `intl_bench.published`.
        average: the key of the column with the mean of a row's other columns, those that all rows have; "" if none.
        own_settings: with `average`, the dotted keys of the evaluation's settings that may differ between the columns
            that are averaged: those that belong to the data set, and those that the scores do not depend on.
        columns: returns the columns, given the records that are in the table.
        place: returns {column key: metric name} for one record; empty if the record does not belong to this table.
    """

    number: str
    caption: str
    about_published: str = ""
    published: str | None
    decimals: int
    datasets: tuple[str, ...] | None
    column_setting: str | None = None
    label_keys: tuple[str, ...] = ()
    about_epochs: str = ""
    schedules: Mapping[str, str] = dataclasses.field(default_factory=dict)
    average: str = ""
    own_settings: tuple[str, ...] = ()
    columns: Callable[[Sequence[ResultRecord]], Sequence[Column]]
    place: Callable[[ResultRecord], Mapping[str, str]]

    def only(self, schedule: str) -> "Table":
        """Return this table limited to the rows of one of its `schedules`."""
        return dataclasses.replace(
            self,
            number=f"{self.number}-{schedule}",
            caption=f"{self.caption} Only the {schedule} schedule.",
            published=self.schedules[schedule],
            place=lambda record: self.place(record) if record.protocol.get("schedule") == schedule else {},
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cell:
    """One cell of a table: the text that is shown and the numbers behind it.

    Attributes:
        cell: the text.
        bold: whether the text is bold.
        mean: mean over the pre-trainings, each the mean of its transfer seeds.
        std: standard deviation (divisor n - 1) over what `std_over` names; None for a single value.
        n: number of pre-trainings. A published cell has it only if the paper prints a standard deviation.
        transfer_seeds: number of transfer seeds, the largest of any pre-training; None for a published cell.
        std_over: "pre-training" if there are several pre-trainings; "transfer" if there is one pre-training with
            several transfer seeds; None for a single value and for a published cell. CSV and JSON call it "spread".
        protocol: the protocol as JSON text.
        rank_with: the measured cells of a column are ranked together if this text is equal. A cell with None, such as a
            published one, is never ranked.
    """

    cell: str = MISSING
    bold: bool = False
    mean: float | None = None
    std: float | None = None
    n: int | None = None
    transfer_seeds: int | None = None
    std_over: str | None = None
    protocol: str | None = None
    rank_with: str | None = None


class Measurement(NamedTuple):
    """A metric of one record in a cell."""

    value: float
    record: ResultRecord


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """A published or a measured row.

    Attributes:
        kind: "published" or "measured".
        marks: the marks of the row's footnotes, separated by spaces.
        cells: the cells that have a value, by column key.
        measurements: what the measured cells are made of, by column key.
    """

    kind: str
    method: str
    backbone: str
    scale: str
    label: str
    bold_label: bool = False
    marks: str
    source: str
    cells: Mapping[str, Cell]
    measurements: Mapping[str, Sequence[Measurement]] = dataclasses.field(default_factory=dict)
