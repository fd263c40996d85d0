"""PASCAL VOC detection. The paper has no such table; the published rows are from other sources."""

from collections.abc import Mapping

from intl_bench.records import ResultRecord
from intl_bench.tables.model import Column, Table

_DATASETS = ("voc", "voc0712")
_COLUMNS = tuple(
    Column(key=f"bbox/{metric}", group="VOC07 detection", name=metric, flat=f"box {metric}")
    for metric in ("AP50", "AP", "AP75")
)


def _place(record: ResultRecord) -> Mapping[str, str]:
    if record.task != "voc" or record.dataset not in _DATASETS or "detector" in record.protocol:
        return {}
    return {column.key: column.key for column in _COLUMNS}


TABLE = Table(
    number="VOC",
    caption="Transfer learning: PASCAL VOC object detection, Faster R-CNN R50-C4, trained on VOC07+12, tested on "
    "VOC07.",
    about_published="Published rows: 24k schedule, not from the paper.",
    published="voc_24k",
    decimals=1,
    datasets=_DATASETS,
    label_keys=("schedule", "engine", "freeze_at"),
    schedules={"24k": "voc_24k"},
    columns=lambda records: _COLUMNS,
    place=_place,
)
