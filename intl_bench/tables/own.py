"""The table of one data set: everything measured on it that the paper's tables do not have."""

import re
from collections.abc import Mapping, Sequence

from intl_bench.core.datasets import DATASETS
from intl_bench.records import ResultRecord
from intl_bench.tables.identities import natural_sort_key
from intl_bench.tables.model import Column, Table

_CLASSIFIED = {"top1": "top-1", "top5": "top-5"}
_PARTS = {"bbox": ("Detection", "box"), "segm": ("Instance segmentation", "mask")}
_DETECTED = ("AP50", "AP", "AP75")
_TASKS = ("linear", "knn", "finetune", "coco", "voc")  # the order of the columns


def own_table(dataset: str, records: Sequence[ResultRecord]) -> Table:
    """Return the table of the data set of some records. It has the columns for which there is a value."""
    own = {id(record) for record in records}

    def place(record: ResultRecord) -> Mapping[str, str]:
        if id(record) not in own:
            return {}
        return {column.key: metric for metric, column in _columns_of(record).items()}

    return Table(
        number=dataset,
        caption=f"Results on {DATASETS[dataset].title if dataset in DATASETS else dataset} that the paper's tables do "
        "not have.",
        published=None,
        decimals=2,
        datasets=(dataset,),
        label_keys=("detector", "box_head", "schedule", "engine", "freeze_at", "percent"),
        about_epochs="Top-1 and top-5 are those of the last epoch.",
        columns=_columns,
        place=place,
    )


def has_own_place(record: ResultRecord) -> bool:
    """Return whether a record has a metric that the table of its data set shows."""
    return bool(_columns_of(record))


def _columns(records: Sequence[ResultRecord]) -> Sequence[Column]:
    found = {(record.task, column.key): column for record in records for column in _columns_of(record).values()}

    def order(place: tuple[str, str]) -> tuple[object, ...]:
        task, key = place
        metric = key.rpartition("/")[2]
        detected = _DETECTED.index(metric) if metric in _DETECTED else -1
        start = key.removesuffix(metric) if detected >= 0 else key
        return (_TASKS.index(task) if task in _TASKS else len(_TASKS), task, natural_sort_key(start), detected)

    return [found[place] for place in sorted(found, key=order)]


def _columns_of(record: ResultRecord) -> dict[str, Column]:
    """Return {metric: its column} of a record. The ends of pre-trainings and sweeps have tables."""
    task, found = record.task, {}
    percent = f"{float(record.protocol.get('train_percent') or 0):g}%"
    for metric in record.metrics:
        part, _, name = metric.rpartition("/")
        if task == "linear" and metric in _CLASSIFIED:
            parts = (f"linear/{metric}", "Linear", _CLASSIFIED[metric], f"Linear {_CLASSIFIED[metric]}")
        elif task == "knn" and (k := re.fullmatch(r"knn(\d+)", metric)):
            parts = (f"knn/{k[1]}", "Neighbors", f"{k[1]}-nn", f"{k[1]}-nn")
        elif task == "knn" and metric == "knn":
            parts = ("knn/chosen", "Neighbors", "k chosen", "k-nn, k chosen")
        elif task == "finetune" and metric in _CLASSIFIED:
            short = f"{percent} {_CLASSIFIED[metric]}"
            parts = (f"finetune/{percent}/{metric}", "Fine-tuned", short, f"Fine-tuned {short}")
        elif task in ("coco", "voc") and part in _PARTS and name in _DETECTED:
            group, short = _PARTS[part]
            parts = (f"{task}/{metric}", group, name, f"{short} {name}")
        elif task not in (*_TASKS, "pretrain", "sweep"):
            parts = (f"{task}/{metric}", task, metric, f"{task} {metric}")
        else:
            continue
        key, group, heading, flat = parts
        found[metric] = Column(key=key, group=group, name=heading, flat=flat)
    return found
