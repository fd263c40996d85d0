"""COCO detection with a feature pyramid. The paper has no such table; the published rows are from other sources."""

from collections.abc import Mapping

from intl_bench.records import ResultRecord
from intl_bench.tables import table3
from intl_bench.tables.model import Table


def _place(record: ResultRecord) -> Mapping[str, str]:
    return table3.places(record, detector="fpn")


TABLE = Table(
    number="FPN",
    caption="Transfer learning: COCO object detection (box) and instance segmentation (mask), Mask R-CNN R50-FPN.",
    about_published="Published rows: 1x schedule, not from the paper.",
    published="fpn_1x",
    decimals=1,
    datasets=table3.DATASETS,
    label_keys=("schedule", "box_head", "engine", "freeze_at", "percent"),
    schedules={"1x": "fpn_1x", "2x": "fpn_2x"},
    columns=lambda records: table3.COLUMNS,
    place=_place,
)
