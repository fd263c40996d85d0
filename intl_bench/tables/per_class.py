"""Detection tables with the AP of each class: a line for each class, and columns for each measured row."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from intl_bench.core.datasets import DATASETS, canonical
from intl_bench.core.errors import InputError
from intl_bench.core.terminal import visible
from intl_bench.records import ResultRecord
from intl_bench.tables.frame import BuiltTable, belonging
from intl_bench.tables.identities import natural_sort_key
from intl_bench.tables.model import MISSING, Column, Table

_TITLES = {"bbox": "box", "segm": "mask"}
_ALL = "all classes"


def per_class(tables: Sequence[Table], records: Sequence[ResultRecord]) -> tuple[list[Table], list[ResultRecord]]:
    """Return the tables that have classes with a column for each class, and the records that are in them.

    The metrics of these records are the AP of each class, such as "bbox/AP/person", and the mean over the classes.

    Raises:
        InputError: no record of these tables holds the AP of its classes.
    """
    found, members = [], []
    for table in tables:
        own = [_by_class(record) for record in belonging(table, records) if record.details.get("per_category")]
        if own:
            found.append(_table(table, own))
            members += own
    if not found:
        raise InputError(
            f"--per-class: no record of table {', '.join(table.number for table in tables)} holds the AP of its "
            "classes; expected records of coco or voc; score a checkpoint first, such as with intl-bench coco"
        )
    return found, members


def turn(table: BuiltTable) -> BuiltTable:
    """Return a built table of classes with a line for each class, because a page has no room for 80 columns."""
    old = {(line["row"], line["column"]): line for line in table.frame.to_dict("records")}
    rows = {row: line for (row, _), line in old.items()}
    names = {row: _heading(line) for row, line in rows.items()}
    metrics = list(dict.fromkeys(_parts(column.key)[0] for column in table.columns))
    titles = {_parts(column.key)[1]: column.name for column in table.columns}
    columns = [
        Column(key=f"{row}/{metric}", group=names[row], name=_title(metric), flat=f"{names[row]} {_title(metric)}")
        for row in rows
        for metric in metrics
        if any((row, column.key) in table.measurements for column in table.columns if _parts(column.key)[0] == metric)
    ]
    lines, measurements = [], {}
    for position, (name, title) in enumerate(titles.items()):
        for column in columns:
            row, _, metric = column.key.partition("/")
            where = int(row), f"{metric}/{name}" if name else metric
            line: dict[Any, Any] = old.get(where) or {**rows[int(row)], **_NOTHING}
            about = {"row": position, "column": column.key, "label": title, "method": title, "marks": ""}
            lines.append({**line, **about})
            if where in table.measurements:
                measurements[position, column.key] = table.measurements[where]
    frame = pd.DataFrame(lines, columns=list(table.frame.columns)).astype(table.frame.dtypes)
    return dataclasses.replace(table, head="Class", columns=columns, frame=frame, measurements=measurements)


_NOTHING: dict[Any, Any] = {"cell": MISSING, "bold": False} | dict.fromkeys(
    ("mean", "std", "n", "transfer_seeds", "spread", "protocol", "rank_with")
)


def _heading(line: Mapping[Any, Any]) -> str:
    """Return the name of a measured row: short if a footnote has the rest of its label."""
    return f"{line['method']}, {line['scale']} scale [{line['marks']}]" if line["marks"] else str(line["label"])


def _by_class(record: ResultRecord) -> ResultRecord:
    """Return a record whose metrics are those of its classes and their means."""
    metrics: dict[str, float] = {}
    for kind, values in record.details["per_category"].items():
        metric = kind if "/" in kind else f"{kind}/AP"
        metrics |= {f"{metric}/{name}": value for name, value in values.items()}
        if metric in record.metrics:
            metrics[metric] = record.metrics[metric]
    return dataclasses.replace(record, metrics=metrics)


def _table(table: Table, records: Sequence[ResultRecord]) -> Table:
    own = {id(record) for record in records}
    order = {name: place for place, name in enumerate(_class_names(records))}

    def key(metric: str) -> tuple[object, ...]:
        start, name = _parts(metric)
        return list(_TITLES).index(start.partition("/")[0]), start, order.get(name, len(order)), natural_sort_key(name)

    metrics = sorted({metric for record in records for metric in record.metrics}, key=key)
    columns = [
        Column(key=metric, group=_title(start), name=name or _ALL, flat=f"{_title(start)} {name or _ALL}")
        for metric in metrics
        for start, name in [_parts(metric)]
    ]
    return dataclasses.replace(
        table,
        number=f"{table.number}-per-class",
        caption=f"{table.caption} AP of each class.",
        about_published="",
        published=None,
        schedules={},
        columns=lambda _: columns,
        place=lambda record: {metric: metric for metric in record.metrics} if id(record) in own else {},
    )


def _class_names(records: Sequence[ResultRecord]) -> list[str]:
    """Return the names of the means and of the classes of a published data set, in its order."""
    facts = DATASETS.get(canonical(records[0].dataset))
    return ["", *(facts.class_names if facts else ())]


def _parts(key: str) -> tuple[str, str]:
    """Return the metric and the class of a column, such as "bbox/AP" and "person"; a mean has no class."""
    kind, metric, *name = key.split("/", 2)
    return f"{kind}/{metric}", "".join(name)


def _title(metric: str) -> str:
    kind, _, name = metric.partition("/")
    return visible(f"{_TITLES.get(kind, kind)} {name}")
