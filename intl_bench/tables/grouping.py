"""Group records into rows. Only the identities of the pre-training and of the evaluation decide."""

import itertools
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import TypeVar

from intl_bench.core.errors import InputError
from intl_bench.core.identity import digest
from intl_bench.records import ResultRecord
from intl_bench.tables.identities import flatten, natural_sort_key, without
from intl_bench.tables.model import Table

T = TypeVar("T")


def rows_of(table: Table, records: Sequence[ResultRecord]) -> list[list[ResultRecord]]:
    """Group the records of a table into rows.

    A row holds one pre-training, or several that were trained on different data sets and have no column in common. It
    may hold several tasks and data sets, but only one evaluation for each task on each data set, and for each column.

    Raises:
        InputError: records contradict each other, or the same weights would count twice.
    """
    _refuse_contradictions(records)
    pretraining = {id(record): pretraining_digest(table, record) for record in records}
    rows = []
    for same in partition(
        records, lambda r: (r.method, r.backbone, r.scale, r.schema == 1, dataset_in_label(table, r))
    ):
        share = _may_share(table, same, pretraining)
        for part in [same] if share else partition(same, lambda r: pretraining[id(r)]):
            for version in _by_images(part):
                rows += _by_evaluation(table, version)
    for row in rows:
        _refuse_double_count(row)
    return rows


def pretraining_digest(table: Table, record: ResultRecord) -> str:
    """Return the digest of a record's pre-training without the setting that the table's columns show."""
    if table.column_setting is None:
        return record.pretraining_sha256
    return digest(without(record.pretraining, column_setting_of(table, record)))


def column_setting_of(table: Table, record: ResultRecord) -> str:
    """Return the dotted key of `Table.column_setting` in the record's pre-training; "" if the table has none."""
    if record.schema == 1 and table.column_setting:
        return table.column_setting.replace("settings.", "known.pretrain_")
    return table.column_setting or ""


def task_of(record: ResultRecord) -> str:
    """Return the task. For fine-tuning it includes the percentage of the labels, because each has its own columns."""
    if record.task != "finetune":
        return record.task
    return f"finetune {float(record.protocol.get('train_percent') or 0):g}%"


def dataset_in_label(table: Table, record: ResultRecord) -> str:
    """Return the name of the data set if the table's columns do not show it, else ""."""
    return "" if table.datasets is None or record.dataset in table.datasets else record.dataset


def partition(items: Iterable[T], key: Callable[[T], Hashable]) -> list[list[T]]:
    """Return the items in lists of equal keys, sorted by key."""
    parts: dict[Hashable, list[T]] = defaultdict(list)
    for item in items:
        parts[key(item)].append(item)
    return [parts[key] for key in sorted(parts)]  # type: ignore[type-var]


def evaluation_of(record: ResultRecord) -> tuple[str, str]:
    """Return the identity of a record's evaluation: the name of the data set and the digest of everything else."""
    return record.dataset, record.evaluation_sha256


def flat_evaluation(table: Table, record: ResultRecord) -> dict[str, str]:
    """Return the flattened identity of a record's evaluation.

    It has the name of the data set if the table's columns do not show it.
    """
    return {**flatten(record.evaluation), **({} if table.datasets is None else {"dataset": record.dataset})}


def _may_share(table: Table, records: Sequence[ResultRecord], pretraining: Mapping[int, str]) -> bool:
    """Return whether the pre-trainings of records may share a row, such as a method on CIFAR-10 and on CIFAR-100.

    Records of a single pre-training may. Of several pre-trainings the images must be known, and no two of them may have
    the same images, data sets of one name (one of which may be a part of the other), or a column in common.

    Args:
        pretraining: {id(record): digest of its pre-training}.
    """
    images = {pretraining[id(record)]: record.pretraining.get("data") for record in records}
    if len(images) == 1:
        return True
    names = {pretraining[id(record)]: record.protocol.get("pretrain_dataset") for record in records}
    different = all(
        all(isinstance(one, str) for one in some.values()) and len(set(some.values())) == len(some)
        for some in (images, names)
    )
    return different and _one_each((column, pretraining[id(r)]) for r in records for column in table.place(r))


def _one_each(pairs: Iterable[tuple[Hashable, Hashable]]) -> bool:
    """Return whether pairs with the same first element have the same second element."""
    found: dict[Hashable, Hashable] = {}
    return all(found.setdefault(first, second) == second for first, second in pairs)


def _places(table: Table, record: ResultRecord) -> list[Hashable]:
    """Return the places of a record in a row: its columns, and its data set with its task.

    A row holds one evaluation for each place. The columns alone are not enough, because each may show another
    pre-training (`Table.column_setting`).
    """
    return [*table.place(record), (record.dataset, task_of(record))]


def _by_images(records: list[ResultRecord]) -> list[list[ResultRecord]]:
    """Split the records if a data set had different images at different times.

    So all tasks of a row were scored on the same images.
    """

    def where(record: ResultRecord) -> tuple[str, str]:
        # Each fine-tuning percentage has its own list of training images.
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
    first_made: dict[tuple[str, str], str] = {}
    for record in records:
        one = evaluation_of(record)
        first_made[one] = min(record.created, first_made.get(one, record.created))
    evaluations: dict[str, dict[Hashable, set[tuple[str, str]]]] = defaultdict(lambda: defaultdict(set))
    for record in records:
        for place in _places(table, record):
            evaluations[task_of(record)][place].add(evaluation_of(record))
    # Evaluations on different data sets always differ. The keys that differ between evaluations on the same data set
    # decide the number of an evaluation on every data set.
    numbers: dict[str, dict[tuple[str, str], int]] = {}
    for task, by_place in evaluations.items():
        varied = sorted({key for some in by_place.values() for key in varying([flat[one] for one in some])})
        shared = [key for key in varied if key.removeprefix("settings.") not in table.own_settings]
        settings = {
            one: [natural_sort_key(flat[one].get(key, "")) for key in shared]
            for some in by_place.values()
            for one in some
        }
        # Each data set may have its own value of `own_settings`. Of several evaluations that differ in these alone, the
        # first one that was made is in the row of the other data sets.
        versions = {
            one: [*own, _rank(one, [other for other in settings if settings[other] == own], first_made)]
            for one, own in settings.items()
        }
        order = [version for version, _ in itertools.groupby(sorted(versions.values()))]
        numbers[task] = {one: order.index(version) for one, version in versions.items()}
    # The first evaluations of all tasks share a row, then the second evaluations, and so on.
    return partition(records, lambda r: numbers[task_of(r)][evaluation_of(r)])


def _rank(one: tuple[str, str], others: Iterable[tuple[str, str]], first_made: Mapping[tuple[str, str], str]) -> int:
    """Return how many of some evaluations are on the same data set as one and were made earlier."""
    return sum(other[0] == one[0] and (first_made[other], other) < (first_made[one], one) for other in others)


def varying(flats: Sequence[dict[str, str]]) -> list[str]:
    """Return the dotted keys in which flattened identities differ."""
    keys = {key: None for flat in flats for key in flat}
    return [key for key in keys if len({flat.get(key) for flat in flats}) > 1]


def _refuse_contradictions(records: Sequence[ResultRecord]) -> None:
    seen: dict[Hashable, ResultRecord] = {}
    for record in sorted(records, key=lambda r: (r.file, r.key)):
        if record.weights_sha256 is None:
            continue
        # A pre-training has the same weights for all scores, whose columns stand side by side in a row. The version of
        # PyTorch may decide those of a random initialization.
        random = "initialization" in record.pretraining
        score = (record.task, record.dataset, record.evaluation_sha256) if random else ()
        first = seen.setdefault((record.method, record.pretraining_sha256, record.pretrain_seed, *score), record)
        if first.weights_sha256 != record.weights_sha256:
            raise InputError(
                f"{_file(first)} and {_file(record)}: different weights ({first.weights_sha256:.8} and "
                f"{record.weights_sha256:.8}) of the same pre-training and seed; delete the records of one of them, or "
                "move them to another folder"
            )


def _refuse_double_count(row: Sequence[ResultRecord]) -> None:
    seen: dict[str, ResultRecord] = {}
    for record in sorted(row, key=lambda r: (r.file, r.key)):
        if record.weights_sha256 is None:
            continue
        first = seen.setdefault(record.weights_sha256, record)
        if first.pretrain_seed != record.pretrain_seed:
            raise InputError(
                f"{_file(first)} and {_file(record)}: the same weights count as two pre-trainings, of seed "
                f"{_seed(first)} and seed {_seed(record)}; "
                "delete the wrong record or move one of them to another folder"
            )


def _file(record: ResultRecord) -> str:
    return record.file or f"record {record.key}"


def _seed(record: ResultRecord) -> str:
    return "unknown" if record.pretrain_seed is None else str(record.pretrain_seed)
