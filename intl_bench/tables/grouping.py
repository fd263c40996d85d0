"""Which records share a row: those of one pre-training and of one evaluation a task, by their identities alone."""

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import TypeVar

from intl_bench.core.errors import InputError
from intl_bench.core.identity import digest
from intl_bench.records import ResultRecord
from intl_bench.tables.identities import flatten, natural, without
from intl_bench.tables.model import Table

T = TypeVar("T")


def rows_of(table: Table, records: Sequence[ResultRecord]) -> list[list[ResultRecord]]:
    """The records of each row of a table.

    A row has one pre-training, or several of different images that share no column. It may hold several tasks and data
    sets, but only one evaluation for each task on each of them, and for each column.

    Raises:
        InputError: records that contradict each other, or would count the same weights twice.
    """
    _refuse_contradictions(records)
    pretraining = {id(record): trained(table, record) for record in records}
    rows = []
    for same in partition(records, lambda r: (r.method, r.backbone, r.scale, r.schema, dataset_in_label(table, r))):
        share = _may_share(table, same, pretraining)
        for part in [same] if share else partition(same, lambda r: pretraining[id(r)]):
            for version in _by_images(part):
                rows += _by_evaluation(table, version)
    for row in rows:
        _refuse_double_count(row)
    return rows


def trained(table: Table, record: ResultRecord) -> str:
    """Digest of a record's pre-training, whatever the setting that the table's columns spread over."""
    if table.spread is None:
        return record.pretraining_sha256
    return digest(without(record.pretraining, spread_key(table, record)))


def spread_key(table: Table, record: ResultRecord) -> str:
    """The dotted key of the record's pre-training that the table's columns spread over; "" if they do not."""
    if record.schema == 1 and table.spread:
        return table.spread.replace("settings.", "known.pretrain_")
    return table.spread or ""


def task_of(record: ResultRecord) -> str:
    """The task, together with the share of the labels where that makes it another column."""
    if record.task != "finetune":
        return record.task
    return f"finetune {float(record.protocol.get('train_percent') or 0):g}%"


def dataset_in_label(table: Table, record: ResultRecord) -> str:
    """The data set, where the table's columns do not say it."""
    return "" if table.datasets is None or record.dataset in table.datasets else record.dataset


def partition(items: Iterable[T], key: Callable[[T], Hashable]) -> list[list[T]]:
    """The items in lists of equal key, in the order of the keys."""
    parts: dict[Hashable, list[T]] = defaultdict(list)
    for item in items:
        parts[key(item)].append(item)
    return [parts[key] for key in sorted(parts)]  # type: ignore[type-var]


def evaluation_of(record: ResultRecord) -> tuple[str, str]:
    """What tells a record's evaluation from another: the data set's name and the digest of all else."""
    return record.dataset, record.evaluation_sha256


def flat_evaluation(table: Table, record: ResultRecord) -> dict[str, str]:
    """The flattened identity of a record's evaluation, with the data set's name where the columns do not say it."""
    return {**flatten(record.evaluation), **({} if table.datasets is None else {"dataset": record.dataset})}


def _may_share(table: Table, records: Sequence[ResultRecord], pretraining: Mapping[int, str]) -> bool:
    """Whether the pre-trainings, by a record's `id`, may share a row, as a method's on CIFAR-10 and on CIFAR-100 do.

    Each needs known images of its own and columns of its own.
    """
    images = {pretraining[id(record)]: record.pretraining.get("data") for record in records}
    if len(images) == 1:
        return True
    apart = all(isinstance(data, str) for data in images.values()) and len(set(images.values())) == len(images)
    return apart and _one_each((column, pretraining[id(r)]) for r in records for column in table.place(r))


def _one_each(pairs: Iterable[tuple[Hashable, Hashable]]) -> bool:
    """Whether each place, the first of a pair, has one and the same second."""
    found: dict[Hashable, Hashable] = {}
    return all(found.setdefault(place, what) == what for place, what in pairs)


def _places(table: Table, record: ResultRecord) -> list[Hashable]:
    """Where a row may have a single evaluation; not only in a column, as columns may spread over pre-trainings."""
    return [*table.place(record), (record.dataset, task_of(record))]


def _by_images(records: list[ResultRecord]) -> list[list[ResultRecord]]:
    """Splits where one data set had other images at another time, so that a row's tasks were all scored on the same."""

    def where(record: ResultRecord) -> tuple[str, str]:
        # Fine-tuning has a list of its training images, and each share of the labels its own.
        return record.dataset, task_of(record) if record.task == "finetune" else ""

    def images(record: ResultRecord) -> str:
        return str(sorted(record.evaluation.get("data", {}).items()))

    versions: dict[tuple[str, str], set[str]] = defaultdict(set)
    for record in records:
        if "data" in record.evaluation:
            versions[where(record)].add(images(record))
    order = {place: sorted(some) for place, some in versions.items()}
    return partition(records, lambda r: order[where(r)].index(images(r)) if "data" in r.evaluation else 0)


def _by_evaluation(table: Table, records: list[ResultRecord]) -> list[list[ResultRecord]]:
    if _one_each((place, evaluation_of(record)) for record in records for place in _places(table, record)):
        return [records]
    flat = {evaluation_of(record): flat_evaluation(table, record) for record in records}
    evaluations: dict[str, dict[Hashable, set[tuple[str, str]]]] = defaultdict(lambda: defaultdict(set))
    for record in records:
        for place in _places(table, record):
            evaluations[task_of(record)][place].add(evaluation_of(record))
    # Evaluations differ from one data set to another anyway; what they differ in on one of them numbers them on all.
    numbers: dict[str, dict[tuple[str, str], int]] = {}
    for task, by_place in evaluations.items():
        varied = sorted({key for some in by_place.values() for key in varying([flat[one] for one in some])})
        told = {one: tuple(flat[one].get(key, "") for key in varied) for some in by_place.values() for one in some}
        order = sorted(set(told.values()), key=lambda values: [natural(value) for value in values])
        places = {values: place for place, values in enumerate(order)}
        numbers[task] = {one: places[values] for one, values in told.items()}
    # The first evaluation of each task shares a row, then the second of each, and so on.
    return partition(records, lambda r: numbers[task_of(r)][evaluation_of(r)])


def varying(flats: Sequence[dict[str, str]]) -> list[str]:
    """The dotted keys in which flattened identities differ."""
    keys = {key: None for flat in flats for key in flat}
    return [key for key in keys if len({flat.get(key) for flat in flats}) > 1]


def _refuse_contradictions(records: Sequence[ResultRecord]) -> None:
    seen: dict[Hashable, ResultRecord] = {}
    for record in sorted(records, key=lambda r: (r.file, r.key)):
        if record.weights_sha256 is None:
            continue
        # Whatever the transfer seed: a pre-training has the same weights for all of them.
        same = (record.task, record.method, record.dataset, record.pretraining_sha256, record.evaluation_sha256)
        first = seen.setdefault((*same, record.pretrain_seed), record)
        if first.weights_sha256 != record.weights_sha256:
            raise InputError(
                f"{_file(first)} and {_file(record)}: the same {record.task} of the same pre-training and seed, but "
                f"of different weights, {first.weights_sha256:.8} and {record.weights_sha256:.8}; remove the wrong "
                "one or keep them in different folders"
            )


def _refuse_double_count(row: Sequence[ResultRecord]) -> None:
    seen: dict[str, ResultRecord] = {}
    for record in sorted(row, key=lambda r: (r.file, r.key)):
        if record.weights_sha256 is None:
            continue
        first = seen.setdefault(record.weights_sha256, record)
        if first.pretrain_seed != record.pretrain_seed:
            raise InputError(
                f"{_file(first)} and {_file(record)}: the same weights counted as two pre-trainings, of seed "
                f"{_seed(first)} and seed {_seed(record)}; remove the wrong one or keep them in different folders"
            )


def _file(record: ResultRecord) -> str:
    return record.file or f"record {record.key}"


def _seed(record: ResultRecord) -> str:
    return "unknown" if record.pretrain_seed is None else str(record.pretrain_seed)
