"""Records for tables, and functions that return the parts of a table that tests check."""

import copy
import hashlib
import json
from typing import Any

from intl_bench.records import ResultRecord
from intl_bench.tables import TABLES, render

COCO = {"schedule": "2x", "iterations": 180000, "lr": 0.02, "batch_size": 16, "engine": "detectron2"}
COCO_1X = {**COCO, "schedule": "1x", "iterations": 90000}
LINEAR = {"epochs": 100, "lr": 0.2, "selection": "last"}
KNN = {"k": 5, "distance": "euclidean", "weights": "uniform"}
R50 = {"pretrain_epochs": 800, "pretrain_batch_size": 256, "pretrain_views": "2x224"}
_WEIGHTS = ("method", "pretraining", "pretrain_seed")  # the fields that decide the digest of the weights
R18 = {"pretrain_epochs": 1000, "pretrain_batch_size": 256, "pretrain_dataset": "cifar10"}


def sha(*what: object) -> str:
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()


def identities(dataset: str, backbone: str, protocol: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the identities that a real run with the settings in `protocol` would have."""
    prefix = "pretrain_"
    settings = {key.removeprefix(prefix): value for key, value in protocol.items() if key.startswith(prefix)}
    return {
        "pretraining": {
            "settings": {"epochs": 100, "backbone": {"name": backbone, "stem": "imagenet"}, **settings},
            "data": sha("images", settings.get("dataset", "imagenet")),
            "initial_weights": None,
            "progress": "complete",
            "branch": "online",
        },
        "evaluation": {
            "settings": {key: value for key, value in protocol.items() if not key.startswith(prefix)},
            "data": {"train": sha(dataset, "train"), "test": sha(dataset, "test")},
        },
    }


RANDOM = {"initialization": "random", "settings": {"backbone": {"name": "resnet18", "stem": "imagenet"}}}


def make(task: str, dataset: str, metrics: dict[str, float], protocol: dict[str, Any], **changes: Any) -> ResultRecord:
    """Return a record whose identities hold the settings of `protocol`. Its weights depend on its pre-training."""
    values: dict[str, Any] = {
        "task": task,
        "method": "INTL",
        "dataset": dataset,
        "backbone": "resnet18",
        "metrics": metrics,
        "details": {},
        "pretrain_seed": 0,
        "transfer_seed": 0,
        "protocol": protocol,
        "scale": "reduced",
        "checkpoint_sha256": "ab" * 32,
        "config": {},
        "code": {},
        "libraries": {},
        "hardware": {},
        "wall_time_s": 1.0,
        "peak_memory_mib": 1.0,
        "created": "2024-05-31T12:00:00+00:00",
        **changes,
    }
    values = {**identities(dataset, values["backbone"], protocol), **values}
    return ResultRecord(**{"weights_sha256": sha([values[name] for name in _WEIGHTS]), **values})


def synthetic() -> list[ResultRecord]:
    """Return records with many cases.

    They have three seeds and one seed, missing cells, the schedules 1x and 2x, several scales, two ranked methods and
    an additional data set.
    """
    r50 = {"backbone": "resnet50", "scale": "paper"}
    linear_r50, coco = {**LINEAR, **R50}, {**COCO, **R50}
    records = [
        make("linear", "imagenet", {"top1": 73.05, "top5": 91.2, "best_top1": 73.4}, linear_r50, **r50),
        make("linear", "imagenet", {"top1": 71.0}, linear_r50, method="VICReg", **r50),
        make("linear", "imagenet", {"top1": 11.0}, linear_r50, method="VICReg", backbone="resnet50", scale="demo"),
        make("voc", "voc", {"bbox/AP": 57.0}, coco, **r50),
        make("linear", "cifar10", {"top1": 92.105, "top5": 99.8}, {**LINEAR, **R18}),
        make("knn", "cifar10", {"knn5": 89.9}, {**KNN, **R18}),
        make("linear", "shapes", {"top1": 55.0, "top5": 99.0}, {**LINEAR, **R18, "pretrain_dataset": "shapes"}),
        make("linear", "cifar10", {"top1": 92.1149, "top5": 99.7}, {**LINEAR, **R18}, method="BYOL"),
        make("linear", "cifar10", {"top1": 93.0}, {**LINEAR, **R18, "epochs": 500}, method="BYOL"),
        make("knn", "cifar10", {"knn5": 10.0}, KNN, method="Random init", pretraining=RANDOM),
    ]
    for percent, top1 in ((1, 55.5), (10, 68.25)):
        protocol = {"epochs": 20, "selection": "last", "train_percent": percent, **R50}
        records.append(make("finetune", "imagenet", {"top1": top1, "top5": 80.0 + percent}, protocol, **r50))
        records.append(make("finetune", "imagenet100", {"top1": top1 + 9}, protocol, **r50))
    for seed, ap in enumerate((61.1, 61.2, 61.3)):
        metrics = {"bbox/AP50": ap, "bbox/AP": ap - 20, "segm/AP": ap - 25.5}
        records.append(make("coco", "coco", metrics, coco, transfer_seed=seed, **r50))
        metrics = {"bbox/AP50": 60.0 + seed, "bbox/AP": 40.0, "segm/AP": 35.0}
        records.append(make("coco", "coco", metrics, coco, method="MoCo v2", pretrain_seed=seed, **r50))
    records.append(make("coco", "coco", {"bbox/AP50": 59.0, "bbox/AP": 39.0}, {**COCO_1X, **R50}, **r50))
    for size, top1 in ((32, 60.0), (256, 64.95), (2048, 66.0)):
        protocol = {**LINEAR, "pretrain_epochs": 100, "pretrain_batch_size": size}
        records.append(make("linear", "imagenet", {"top1": top1}, protocol, backbone="resnet50"))
    return records


NASTY = ["<script>alert(1)</script>", "a|b", "a_b&c%", "[x](y) *z* `q` ~~$^{\\", "two\n\nlines", "[1em] first"]


def nasty() -> list[ResultRecord]:
    """Return records of COCO and of own data sets whose names are markup."""
    records = [make("coco", "coco", {"bbox/AP": 1.0}, {"note": name, "schedule": "1x"}, method=name) for name in NASTY]
    return [*records, *(make("linear", name, {"top1": 1.0}, {"note": name}) for name in NASTY)]


def cells(records: list[ResultRecord], table: str) -> list[dict[str, Any]]:
    """Return the measured cells that have a value, of one of the paper's tables or of the table of a data set."""
    chosen: dict[str, Any] = {"tables": (table,)} if table in TABLES else {"datasets": (table,)}
    (content,) = json.loads(render(records, **chosen, format="json"))
    return [cell for cell in content["cells"] if cell["kind"] == "measured" and cell["mean"] is not None]


def shown(records: list[ResultRecord], table: str) -> list[tuple[int, str, str]]:
    """Return (row, column, text) of the measured cells. Rows count from 0."""
    found = cells(records, table)
    first = min(cell["row"] for cell in found)
    return sorted((cell["row"] - first, cell["column"], cell["cell"]) for cell in found)


def with_settings(identity: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Return a copy with changed values at dotted keys."""
    changed = copy.deepcopy(identity)
    for key, value in changes.items():
        *path, last = key.split(".")
        place: Any = changed
        for part in path:
            place = place[int(part)] if isinstance(place, list) else place.setdefault(part, {})
        place[last] = value
    return changed


def trained(
    changes: dict[str, Any], *, top1: float = 60.0, evaluation: dict[str, Any] | None = None, **more: Any
) -> ResultRecord:
    """Return a record of a linear classifier on CIFAR-10 with changed identities.

    Args:
        changes: dotted keys and values for the identity of the pre-training.
        evaluation: dotted keys and values for the identity of the evaluation.
    """
    base = make("linear", "cifar10", {"top1": top1}, {**LINEAR, **R18})
    pretraining = with_settings(
        base.pretraining, {"settings.projector": {"out": 32}, "settings.views": [{"jitter_p": 0.8}, {"jitter_p": 0.8}]}
    )
    more = {"pretraining": with_settings(pretraining, changes), **more}
    return make(
        "linear",
        "cifar10",
        {"top1": top1},
        {**LINEAR, **R18},
        evaluation=with_settings(base.evaluation, evaluation or {}),
        **more,
    )


def labels(records: list[ResultRecord], table: str = "2") -> list[str]:
    """Return the labels of the measured rows in their order."""
    return list(dict.fromkeys(cell["label"] for cell in cells(records, table)))


def label_with(*differences: str) -> str:
    """Return the expected label of a row with these differences."""
    return f"INTL (ResNet-18, {', '.join(differences)}; measured, reduced scale)"


def spectrum(rank: float, alpha: float | None, inverse: float) -> dict[str, object]:
    """Return a spectrum with these numbers."""
    numbers = {"rank": rank, "alpha": alpha, "inverse_condition": inverse}
    return {"ranks": [1], "eigenvalues": [1.0], "count": 1, "mean": 1.0, "numbers": numbers}


def record_pair(place: int, top1: float, rank: float, alpha: float | None, inverse: float) -> list[ResultRecord]:
    """Return the end of a pre-training and its linear score."""
    about = {**R18, "pretrain_lr": place}
    score = make("linear", "cifar10", {"top1": top1}, {**LINEAR, **about})
    details = {
        "weights_sha256": score.weights_sha256,
        "spectra": {"features": spectrum(rank, alpha, inverse)},
        "pretrain": {"seconds": 1.0},
    }
    return [
        score,
        make("pretrain", "cifar10", {"diverged": 0.0}, about, evaluation={}, weights_sha256=None, details=details),
    ]
