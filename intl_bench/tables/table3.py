"""Table 3: transfer to COCO detection and instance segmentation."""

from collections.abc import Mapping

from intl_bench.records import ResultRecord
from intl_bench.tables.model import Column, Table

_DATASETS = ("coco", "coco2017")
_COLUMNS = tuple(
    Column(key=f"{kind}/{metric}", group=group, name=metric, flat=f"{short} {metric}")
    for kind, group, short in (("bbox", "COCO detection", "box"), ("segm", "COCO instance seg.", "mask"))
    for metric in ("AP50", "AP", "AP75")
)


def _place(record: ResultRecord) -> Mapping[str, str]:
    if record.task != "coco" or record.dataset not in _DATASETS:
        return {}
    return {column.key: column.key for column in _COLUMNS}


TABLE = Table(
    number="3",
    caption="Transfer learning: COCO object detection (box) and instance segmentation (mask), Mask R-CNN R50-C4.",
    published="table3",
    decimals=1,
    datasets=_DATASETS,
    label_keys=("schedule", "engine", "freeze_at", "percent"),
    schedules={"1x": "table3_1x", "2x": "table3_2x"},
    columns=lambda records: _COLUMNS,
    place=_place,
)
