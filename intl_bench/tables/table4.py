"""Table 4: INTL with different batch sizes of the pre-training."""

from collections.abc import Mapping, Sequence

from intl_bench.records import ResultRecord
from intl_bench.tables.identities import value_at
from intl_bench.tables.model import Column, Table

_PRINTED = (32, 64, 128, 256, 512, 1024)


def _columns(records: Sequence[ResultRecord]) -> Sequence[Column]:
    sizes = sorted({*_PRINTED, *(int(key) for record in records for key in _place(record))})
    return [Column(key=str(size), group="Batch size", name=str(size), flat=f"Batch {size}") for size in sizes]


def _place(record: ResultRecord) -> Mapping[str, str]:
    size = value_at(record.pretraining, "known.pretrain_batch_size" if record.schema == 1 else "settings.batch_size")
    if (record.task, record.dataset, record.method) != ("linear", "imagenet", "INTL") or not isinstance(size, int):
        return {}
    return {str(size): "top1"}


TABLE = Table(
    number="4",
    caption="Effect of the pre-training batch size on INTL: top-1 accuracy of a linear classifier on ImageNet.",
    published="table4",
    decimals=1,
    datasets=("imagenet",),
    column_setting="settings.batch_size",
    columns=_columns,
    place=_place,
)
