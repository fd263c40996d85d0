"""What a table is: a `Table` says which columns there are and where a record's metrics go."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

from intl_bench.records import ResultRecord

MISSING = "–"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Column:
    """A column under its group's heading; `flat` is its whole heading where there is one line of headings.

    What is neither better nor worse, such as a condition number, is not `ranked`.
    """

    key: str
    group: str
    name: str
    flat: str
    ranked: bool = True


@dataclasses.dataclass(frozen=True, kw_only=True)
class Table:
    """One table of results.

    Attributes:
        published: name of the paper's table in `intl_bench.published`, None if it has none.
        decimals: of a measured mean, as the paper prints that table.
        datasets: what the columns stand for by themselves; a row measured on something else says so in its label.
            None where the columns name their dataset.
        spread: the dotted key of the pre-training's identity that the columns spread over, such as
            "settings.batch_size", so that a row may hold several of its values.
        told: the protocol keys whose values every measured row says in its label.
        about_measured: a note for a table with measured rows.
        schedules: the detection schedules that the table can be limited to, each with the name of its published rows
            in `intl_bench.published`.
        columns: the columns, given the records that are in the table.
        place: column key -> metric name for one record; empty if the record is not for this table.
    """

    number: str
    caption: str
    published: str | None
    decimals: int
    datasets: tuple[str, ...] | None
    spread: str | None = None
    told: tuple[str, ...] = ()
    about_measured: str = ""
    schedules: Mapping[str, str] = dataclasses.field(default_factory=dict)
    columns: Callable[[Sequence[ResultRecord]], Sequence[Column]]
    place: Callable[[ResultRecord], Mapping[str, str]]

    def only(self, schedule: str) -> "Table":
        """The table with the rows of one of its `schedules` alone."""
        return dataclasses.replace(
            self,
            number=f"{self.number}-{schedule}",
            caption=f"{self.caption} Only the {schedule} schedule.",
            published=self.schedules[schedule],
            place=lambda record: self.place(record) if record.protocol.get("schedule") == schedule else {},
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cell:
    """A value as shown and as it is.

    `n` counts pre-trainings; `spread` says what `std` is over: "pre-training" (their means over transfer seeds) or, of
    a single pre-training, its "transfer" seeds. `transfer_seeds` is their number, the largest of any pre-training.
    Both are None for a published cell. `protocol` is JSON text. `rank_with` is equal for the measured cells of a column
    that may be ranked together, and None for one that is ranked with none, such as a published one.
    """

    cell: str = MISSING
    bold: bool = False
    mean: float | None = None
    std: float | None = None
    n: int | None = None
    transfer_seeds: int | None = None
    spread: str | None = None
    protocol: str | None = None
    rank_with: str | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """A published or a measured row; `marks` are those of its footnotes, `cells` those it has, by column key."""

    kind: str
    method: str
    backbone: str
    scale: str
    label: str
    bold_label: bool = False
    marks: str
    source: str
    cells: Mapping[str, Cell]
