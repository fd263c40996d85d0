"""The table of sweeps: methods that had the same search of settings."""

from collections.abc import Mapping, Sequence

from intl_bench.records import ResultRecord
from intl_bench.tables.model import Column, Table

TASK = "sweep"
"""The task of the records of tuned methods."""

# column key: (group, name, metric)
_COLUMNS = {
    "val": ("Validation", "score", "val/score"),
    "top1": ("Linear", "top-1", "linear/top1"),
    "top5": ("Linear", "top-5", "linear/top5"),
    "5nn": ("Neighbors", "5-nn", "knn/knn5"),
    "diverged": ("Runs", "diverged %", "diverged"),
}


def _columns(records: Sequence[ResultRecord]) -> Sequence[Column]:
    measured = {metric for record in records for metric in record.metrics}  # a search by 5-NN has no linear score
    return [
        Column(key=key, group=group, name=name, flat=f"{group} {name}", ranked=key not in ("val", "diverged"))
        for key, (group, name, metric) in _COLUMNS.items()
        if metric in measured
    ]


def _place(record: ResultRecord) -> Mapping[str, str]:
    return {key: metric for key, (_, _, metric) in _COLUMNS.items()} if record.task == TASK else {}


TABLE = Table(
    number="tuning",
    caption="Equal tuning: every method had the same number of pre-trainings, the same values to choose from and the "
    "same images to choose on. The validation score is that of the chosen setting in the search, of one seed; all "
    "other columns are of the test images, after a pre-training on all training images. Rows of one search are ranked "
    "together.",
    published=None,
    decimals=2,
    datasets=(),
    label_keys=("chosen", "budget"),
    columns=_columns,
    place=_place,
)
