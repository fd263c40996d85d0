"""Table 2: a linear classifier and a 5-nearest-neighbors classifier on small and medium data sets."""

from collections.abc import Mapping, Sequence

from intl_bench.core.datasets import DATASETS
from intl_bench.records import ResultRecord
from intl_bench.tables.model import Column, Table

_PRINTED = ("cifar10", "cifar100", "imagenet100")  # the columns of the paper's table
_METRICS = {
    "linear": {"top1": "top1", "top5": "top5"},
    "knn": {"5nn": "knn5"},
}


def _columns(records: Sequence[ResultRecord]) -> Sequence[Column]:
    return [
        Column(key=f"{dataset}/{key}", group=title, name=name, flat=f"{title} {name}", dataset=dataset)
        for dataset in _PRINTED
        for title in [DATASETS[dataset].title]
        for key, name in (("top1", "top-1"), ("5nn", "5-nn"), ("top5", "top-5"))
    ]


def _place(record: ResultRecord) -> Mapping[str, str]:
    if record.dataset not in _PRINTED:
        return {}
    return {f"{record.dataset}/{column}": metric for column, metric in _METRICS.get(record.task, {}).items()}


TABLE = Table(
    number="2",
    caption="Classification accuracy of a linear classifier (top-1, top-5) and a 5-nearest-neighbors classifier.",
    about_published="Published rows: ResNet-18, two views, 1000 epochs at batch size 256 on CIFAR-10/100 and 400 "
    "epochs at batch size 128 on ImageNet-100.",
    published="table2",
    decimals=2,
    datasets=None,
    about_epochs="Measured top-1 and top-5 are those of the linear classifier's last epoch; the published ones are "
    "those of its best epoch on the validation images. 5-nn trains nothing, so it has no epochs.",
    columns=_columns,
    place=_place,
)
