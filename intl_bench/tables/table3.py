"""Table 3: transfer to COCO detection and instance segmentation."""

from collections.abc import Mapping

from intl_bench.records import ResultRecord
from intl_bench.tables.model import Column, Table

DATASETS = ("coco", "coco2017")
COLUMNS = tuple(
    Column(key=f"{kind}/{metric}", group=group, name=metric, flat=f"{short} {metric}")
    for kind, group, short in (("bbox", "COCO detection", "box"), ("segm", "COCO instance seg.", "mask"))
    for metric in ("AP50", "AP", "AP75")
)


def places(record: ResultRecord, *, detector: str | None) -> Mapping[str, str]:
    """Return {column key: metric name} of a record of COCO with a kind of detector, "fpn", or None for R50-C4."""
    if record.task != "coco" or record.dataset not in DATASETS or record.protocol.get("detector") != detector:
        return {}
    return {column.key: column.key for column in COLUMNS}


def _place(record: ResultRecord) -> Mapping[str, str]:
    return places(record, detector=None)


TABLE = Table(
    number="3",
    caption="Transfer learning: COCO object detection (box) and instance segmentation (mask), Mask R-CNN R50-C4.",
    published="table3",
    decimals=1,
    datasets=DATASETS,
    label_keys=("schedule", "engine", "freeze_at", "percent"),
    schedules={"1x": "table3_1x", "2x": "table3_2x"},
    columns=lambda records: COLUMNS,
    place=_place,
)
