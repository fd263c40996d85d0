"""Records -> measured rows: grouped by protocol, averaged over seeds, the best one in bold.

Records that were not measured the same way are never averaged and never ranked together.
"""

import json
import re
import statistics
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from decimal import ROUND_HALF_UP, Decimal
from typing import TypeVar

from intl_bench.records import ResultRecord
from intl_bench.tables.model import Cell, Row, Table

T = TypeVar("T")
Protocol = dict[str, str | int | float | bool | None]


def summarize(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and standard deviation (divisor n - 1; None for one value), correctly rounded, so in any order the same."""
    return statistics.mean(values), statistics.stdev(values) if len(values) > 1 else None


def cell_text(values: Sequence[float], decimals: int) -> str:
    """How a measured cell looks: `61.2 ± 0.08 (3)`, or `61.2 (1)` for one value."""
    mean, std = summarize(values)
    spread = "" if std is None else f" ± {_rounded(std, 2)}"
    return f"{_rounded(mean, decimals)}{spread} ({len(values)})"


def measured_rows(table: Table, records: Iterable[ResultRecord]) -> tuple[list[Row], list[tuple[str, str]]]:
    """The measured rows of a table and their footnotes as (mark, text); the order of the records does not matter."""
    groups: list[list[ResultRecord]] = []
    for same in _partition(records, lambda r: (r.method, r.backbone, r.scale, _dataset_in_label(table, r))):
        groups += _by_protocol(table, same)
    rows, notes = [], []
    for number, (group, label) in enumerate(zip(groups, _labels(table, groups), strict=True), start=1):
        cells, used = _cells(table, group)
        row = Row(
            kind="measured",
            method=group[0].method,
            backbone=group[0].backbone,
            scale=group[0].scale,
            label=label,
            marks=str(number),
            source="this project",
            cells=cells,
        )
        rows.append(row)
        notes.append((row.marks, _note(table, group, used)))
    return rows, notes


def _by_protocol(table: Table, records: list[ResultRecord]) -> list[list[ResultRecord]]:
    """Splits the records of one method into rows.

    A row may hold several data sets, each with its own pre-training, but only one pre-training for each of them and
    one evaluation for each task on each of them.
    """

    def trained(record: ResultRecord) -> str:
        return _text(_pretraining(table, record))

    one_each = _agree(records, lambda r: r.dataset, trained)
    rows = [records] if one_each else sorted(_partition(records, trained), key=lambda row: _natural(trained(row[0])))
    return [part for row in rows for part in _by_evaluation(row)]


def _by_evaluation(records: list[ResultRecord]) -> list[list[ResultRecord]]:
    if _agree(records, lambda r: (r.dataset, _task(r)), lambda r: _text(_evaluation(r))):
        return [records]
    protocols: dict[str, set[str]] = defaultdict(set)
    for record in records:
        protocols[_task(record)].add(_text(_evaluation(record)))
    # The first protocol of each task shares a row, then the second of each, and so on.
    return _partition(records, lambda r: sorted(protocols[_task(r)]).index(_text(_evaluation(r))))


def _cells(table: Table, group: list[ResultRecord]) -> tuple[dict[str, Cell], list[ResultRecord]]:
    """The cells of one row, and the records that are in them."""
    placed: dict[str, dict[tuple[int, int], ResultRecord]] = defaultdict(dict)
    for record in sorted(group, key=lambda r: (r.created_at, r.key, sorted(r.metrics.items()))):
        for column, metric in table.place(record).items():
            if metric in record.metrics:
                # A repetition with the seeds of an earlier one replaces it: it is no further sample.
                placed[column][record.pretrain_seed, record.transfer_seed] = record
    cells, used = {}, {}
    for column, by_seeds in placed.items():
        used.update({id(record): record for record in by_seeds.values()})
        values = [record.metrics[table.place(record)[column]] for record in by_seeds.values()]
        mean, std = summarize(values)
        first = next(iter(by_seeds.values()))
        evaluation = _evaluation(first)
        cells[column] = Cell(
            cell=cell_text(values, table.decimals),
            mean=mean,
            std=std,
            n=len(values),
            protocol=_text({"evaluation": evaluation, "pretraining": _pretraining(table, first)}),
            rank_with=_text({"dataset": first.dataset, "scale": first.scale, "evaluation": evaluation}),
        )
    return cells, list(used.values())


def _labels(table: Table, groups: list[list[ResultRecord]]) -> list[str]:
    """One label a row; rows that would read alike also say the first protocol values that tell them apart."""
    plain, stamps = [], []
    for group in groups:
        first = group[0]
        backbone = re.sub(r"^resnet(?=\d)", "ResNet-", first.backbone).replace("_", " ")
        stamp: dict[str, set[str]] = defaultdict(set)
        for record in group:
            for key, value in {**_evaluation(record), **_pretraining(table, record)}.items():
                stamp[key].add(_value(value))
        always = [f"{key} {'/'.join(sorted(stamp[key]))}" for key in table.told if key in stamp]
        about = ", ".join(filter(None, [backbone, _dataset_in_label(table, first), *always]))
        plain.append((f"{first.method} ({about}", f"; measured, {first.scale} scale)"))
        stamps.append(stamp)
    labels = []
    for (start, end), stamp in zip(plain, stamps, strict=True):
        rivals = [other for label, other in zip(plain, stamps, strict=True) if label == (start, end)]
        told = ""
        for key in sorted(stamp, key=lambda key: (key != "schedule", key)):
            apart = [other for other in rivals if key in other and other[key].isdisjoint(stamp[key])]
            if apart:
                rivals = [other for other in rivals if other not in apart]
                told += (
                    f", {key.replace('pretrain_', 'pre-training ').replace('_', ' ')} {'/'.join(sorted(stamp[key]))}"
                )
        labels.append(start + told + end)
    return labels


def _note(table: Table, group: list[ResultRecord], used: list[ResultRecord]) -> str:
    several = len({record.dataset for record in used}) > 1
    trained = [(record.dataset, _sentence(_pretraining(table, record))) for record in used]
    tasks = [
        (f"{_task(record)} on {record.dataset}" if several else _task(record), _sentence(_evaluation(record)))
        for record in used
    ]
    counts = [
        _count(len({record.pretrain_seed for record in used}), "pre-training seed"),
        _count(len({record.transfer_seed for record in used}), "transfer seed"),
        _count(len(used), "record"),
    ]
    if len(group) > len(used):
        counts.append(f"{_count(len(group) - len(used), 'older record')} of the same seeds left out")
    return (
        f"Measured at {group[0].scale} scale. Pre-training: {_clauses(trained, name_single=False)}. "
        f"Evaluation: {_clauses(tasks, name_single=True)}. {', '.join(counts)}."
    )


def _clauses(items: list[tuple[str, str]], *, name_single: bool) -> str:
    """`items` are (what, text). Each text once, after all it is about; a single text may go without."""
    about: dict[str, set[str]] = defaultdict(set)
    for what, text in items:
        about[text].add(what)
    if len(about) == 1 and not name_single:
        return items[0][1]
    return "; ".join(sorted(f"{' and '.join(sorted(whats))}: {text}" for text, whats in about.items()))


def _task(record: ResultRecord) -> str:
    """The task, together with the share of the labels where that makes it another column."""
    if record.task != "finetune":
        return record.task
    return f"finetune {float(record.protocol['train_percent'] or 0):g}%"


def _evaluation(record: ResultRecord) -> Protocol:
    named = {"train_percent"} if record.task == "finetune" else set()
    return {k: v for k, v in record.protocol.items() if not k.startswith("pretrain_") and k not in named}


def _pretraining(table: Table, record: ResultRecord) -> Protocol:
    return {k: v for k, v in record.protocol.items() if k.startswith("pretrain_") and k != table.spread}


def _dataset_in_label(table: Table, record: ResultRecord) -> str:
    return "" if table.datasets is None or record.dataset in table.datasets else record.dataset


def _agree(items: Iterable[T], where: Callable[[T], Hashable], what: Callable[[T], Hashable]) -> bool:
    """Whether `what` is one and the same for all items with the same `where`."""
    return len({(where(item), what(item)) for item in items}) == len({where(item) for item in items})


def _partition(items: Iterable[T], key: Callable[[T], Hashable]) -> list[list[T]]:
    """The items in lists of equal key, in the order of the keys."""
    parts: dict[Hashable, list[T]] = defaultdict(list)
    for item in items:
        parts[key(item)].append(item)
    return [parts[key] for key in sorted(parts)]  # type: ignore[type-var]


def _natural(text: str) -> list[tuple[float, str]]:
    """Sorts numbers in a text as numbers: a batch of 128 before one of 1024."""
    parts = re.split(r"(\d+(?:\.\d+)?)", text)
    return [(float(part) if n % 2 else 0.0, part) for n, part in enumerate(parts)]


def _text(value: Mapping[str, object]) -> str:
    return json.dumps(value, sort_keys=True, ensure_ascii=False)


def _sentence(protocol: Protocol) -> str:
    words = {key: key.removeprefix("pretrain_").replace("_", " ") for key in sorted(protocol)}
    return ", ".join(f"{word} {_value(protocol[key])}" for key, word in words.items()) or "not stated"


def _value(value: str | int | float | bool | None) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "not stated" if value is None else str(value)


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _rounded(value: float, decimals: int) -> str:
    # Through the shortest decimal form, so that 0.005 is a half and not the binary number just beside it.
    return str(Decimal(repr(value)).quantize(Decimal(1).scaleb(-decimals), ROUND_HALF_UP))
