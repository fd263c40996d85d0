"""Transfer to many data sets: logistic regression on frozen features, and few-shot episodes."""

from collections.abc import Callable, Mapping, Sequence

from intl_bench.core.datasets import DATASETS
from intl_bench.records import ResultRecord
from intl_bench.tables.model import Column, Table

# The order of the rows of Kornblith et al. (2019), Table 1
_USUAL = (
    *("food101", "cifar10", "cifar100", "sun397", "cars", "aircraft", "voc07", "dtd", "pets", "caltech101"),
    "flowers102",
)
_AVERAGE = "average"
_LOGISTIC = "Logistic regression"
_DATA_SET = ("metric", "data.kind", "data.size")
_CLASSIFIER = ("decays", "least_decay", "largest_decay", "val_share", "val_seed", "tolerance", "iterations")
_FEW_SHOT = ("episodes", "ways", "shots", "queries", "episode_seed")


def _columns(group: str, without: str = "") -> Callable[[Sequence[ResultRecord]], Sequence[Column]]:
    """Return the function that returns the columns: the usual data sets, others with records, and the average."""

    def columns(records: Sequence[ResultRecord]) -> Sequence[Column]:
        others = sorted({record.dataset for record in records} - {*_USUAL})
        titles = {name: DATASETS[name].title if name in DATASETS else name for name in (*_USUAL, *others)}
        titles.pop(without, None)
        for name in others if group == _LOGISTIC else ():  # the caption states the metrics of the usual data sets
            metrics = {record.protocol.get("metric") for record in records if record.dataset == name}
            if metrics == {"mean_per_class"}:
                titles[name] += " (mean per class)"
        own = [Column(key=name, group=group, name=title, flat=title, dataset=name) for name, title in titles.items()]
        return [*own, Column(key=_AVERAGE, group=group, name="Average", flat="Average")]

    return columns


def _place(record: ResultRecord) -> Mapping[str, str]:
    return {record.dataset: str(record.protocol.get("metric"))} if record.task == "transfer" else {}


def _place_episodes(record: ResultRecord) -> Mapping[str, str]:
    return {record.dataset: "few_shot"} if record.task == "transfer" and "few_shot" in record.metrics else {}


TABLE = Table(
    number="transfer",
    caption="Transfer to many data sets: logistic regression on the frozen features. Aircraft, Pets, Caltech-101 and "
    "Flowers-102: mean of the accuracies of the classes; VOC07: 11-point mAP; others: top-1.",
    about_published="Published rows: ResNet-50, not from the paper.",
    published="transfer",
    decimals=1,
    datasets=None,
    average=_AVERAGE,
    own_settings=(*_DATA_SET, *_FEW_SHOT),
    columns=_columns(_LOGISTIC),
    place=_place,
)
EPISODES = Table(
    number="few-shot",
    caption="Few-shot classification by class means of the frozen features: the mean accuracy of random episodes. The "
    "half width of its 95% interval is few_shot_ci95 in the records.",
    published=None,
    decimals=1,
    datasets=None,
    average=_AVERAGE,
    own_settings=(*_DATA_SET, *_CLASSIFIER),
    columns=_columns("Few-shot episodes", without="voc07"),
    place=_place_episodes,
)
