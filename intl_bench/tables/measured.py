"""The measured rows of a table and their footnotes.

Records that were not measured in the same way are never averaged and never ranked together.
"""

from collections.abc import Sequence

from intl_bench.records import ResultRecord
from intl_bench.tables.cells import DAGGER, averaged_columns, cells_of, mixed_settings
from intl_bench.tables.footnotes import footnote, short_footnote
from intl_bench.tables.grouping import dataset_in_label, rows_of
from intl_bench.tables.identities import natural_sort_key
from intl_bench.tables.labels import Label, labels_of
from intl_bench.tables.model import Note, Row, Table

_ONE_PRETRAINING = Note(
    "",
    f"{DAGGER} one pre-training: the standard deviation is over its transfer seeds only (their number in brackets). It "
    "does not include the variation between pre-trainings.",
    f"{DAGGER} over the transfer seeds of one pre-training.",
)


def measured_rows(table: Table, records: Sequence[ResultRecord]) -> tuple[list[Row], list[Note]]:
    """Return the measured rows of a table, and their footnotes.

    The order of the records does not matter.

    Raises:
        InputError: see `labeled_rows`.
    """
    rows, notes = [], []
    labeled = labeled_rows(table, records)
    averaged = averaged_columns(table, [group for _, group in labeled])
    for number, (label, group) in enumerate(labeled, start=1):
        cells, measurements = cells_of(table, group, averaged)
        used = list({id(one.record): one.record for some in measurements.values() for one in some}.values())
        row = Row(
            kind="measured",
            method=group[0].method,
            backbone=group[0].backbone,
            scale=group[0].scale,
            label=label.text,
            marks=str(number),
            source="this project",
            cells=cells,
            measurements=measurements,
        )
        rows.append(row)
        text = footnote(table, group, used, label.differences)
        notes.append(Note(row.marks, text, short_footnote(table, used)))
    if averaged:
        titles = {column.key: column.flat for column in table.columns(records)}
        text = f"Average: of {', '.join(titles[key] for key in averaged)}, which all measured rows have."
        for number, (_, group) in enumerate(labeled, start=1):
            if mixed := mixed_settings(table, group, averaged):
                text += f" Row {number} has none: its data sets differ in {', '.join(mixed)}."
        notes.append(Note("", text, text))
    if any(cell.std_over == "transfer" for row in rows for cell in row.cells.values()):
        notes.append(_ONE_PRETRAINING)
    return rows, notes


def labeled_rows(table: Table, records: Sequence[ResultRecord]) -> list[tuple[Label, list[ResultRecord]]]:
    """Return the records of each measured row with its label, in the order of the table.

    Raises:
        InputError: two records contradict each other, or would count the same weights twice. The message names both.
    """
    groups = rows_of(table, records)
    return sorted(
        zip(labels_of(table, groups), groups, strict=True),
        key=lambda pair: (
            *(pair[1][0].method, pair[1][0].backbone, pair[1][0].scale, dataset_in_label(table, pair[1][0])),
            natural_sort_key(pair[0].text),
            min((record.pretraining_sha256, record.evaluation_sha256) for record in pair[1]),
        ),
    )
