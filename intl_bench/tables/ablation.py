"""The table of an ablation: accuracy, and the rank and the condition number of the spectra."""

from collections.abc import Mapping, Sequence

from intl_bench.records import ResultRecord
from intl_bench.tables.model import Column, Table

TASK = "pretrain"
"""The task of the records that describe the end of a pre-training."""

# column key: (group, name, metric, task)
_COLUMNS = {
    "top1": ("Accuracy", "top-1", "top1", "linear"),
    "5nn": ("Accuracy", "5-nn", "knn5", "knn"),
    "rank": ("Embedding", "rank %", "embedding/rank", TASK),
    "condition": ("Embedding", "log10 condition", "embedding/log10_condition", TASK),
    "whitened_rank": ("Transformed", "rank %", "transformed/rank", TASK),
    "whitened_condition": ("Transformed", "log10 condition", "transformed/log10_condition", TASK),
    "diverged": ("Runs", "diverged %", "diverged", TASK),
}

SHOWN = {task for _, _, _, task in _COLUMNS.values()}


def _columns(records: Sequence[ResultRecord]) -> Sequence[Column]:
    return [
        Column(key=key, group=group, name=name, flat=f"{group} {name}", ranked=group == "Accuracy")
        for key, (group, name, _, _) in _COLUMNS.items()
    ]


def _place(record: ResultRecord) -> Mapping[str, str]:
    return {key: metric for key, (_, _, metric, task) in _COLUMNS.items() if task == record.task}


TABLE = Table(
    number="ablation",
    caption="Ablation: accuracy of a linear classifier and of 5 nearest neighbors; RankMe as a share of the largest "
    "possible rank and the condition number (missing where it is infinite), of the embedding and of its transformed "
    "(whitened) output; pre-trainings whose loss became infinite or undefined.",
    published=None,
    decimals=2,
    datasets=("cifar10",),
    columns=_columns,
    place=_place,
)
