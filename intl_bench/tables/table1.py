"""Table 1: ImageNet, linear classification and semi-supervised fine-tuning on 1% and 10% of the labels."""

from collections.abc import Mapping

from intl_bench.records import ResultRecord
from intl_bench.tables.model import Column, Table

# The paper prints the two top-1 columns of the semi-supervised part before the two top-5 columns.
_COLUMNS = (
    Column(key="linear/top1", group="Linear", name="top-1", flat="Linear top-1"),
    Column(key="linear/top5", group="Linear", name="top-5", flat="Linear top-5"),
    Column(key="semi1/top1", group="Semi-supervised", name="1% top-1", flat="1% top-1"),
    Column(key="semi10/top1", group="Semi-supervised", name="10% top-1", flat="10% top-1"),
    Column(key="semi1/top5", group="Semi-supervised", name="1% top-5", flat="1% top-5"),
    Column(key="semi10/top5", group="Semi-supervised", name="10% top-5", flat="10% top-5"),
)


def _place(record: ResultRecord) -> Mapping[str, str]:
    percent = record.protocol.get("train_percent")
    part = None
    if record.dataset != "imagenet":
        return {}
    if record.task == "linear":
        part = "linear"
    elif record.task == "finetune" and percent in (1, 10):
        part = f"semi{percent:.0f}"
    return {f"{part}/top1": "top1", f"{part}/top5": "top5"} if part else {}


TABLE = Table(
    number="1",
    caption="Evaluation on ImageNet: linear classification on top of the frozen representations, and semi-supervised "
    "classification fine-tuned on 1% and 10% of ImageNet.",
    about_published="Published rows: ResNet-50.",
    published="table1",
    decimals=1,
    datasets=("imagenet",),
    about_epochs="Measured top-1 and top-5 are those of the classifier's last epoch; the published ones are those of "
    "its best epoch on the validation images.",
    columns=lambda records: _COLUMNS,
    place=_place,
)
