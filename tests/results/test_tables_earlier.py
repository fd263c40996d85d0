"""Rows of records from an earlier version. Their settings are unknown, so each pre-training has its own row."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from table_cases import LINEAR, label_with, labels, make, sha, shown

from intl_bench.records import RecordStore
from intl_bench.tables import render


def earlier(folder: Path, dataset: str, batch_size: int = 256, top1: float = 60.0, **changes: Any) -> None:
    """Write a file in the format of the first version."""
    protocol = {**LINEAR, "pretrain_epochs": 100, "pretrain_batch_size": batch_size}
    values = dataclasses.asdict(make("linear", dataset, {"top1": top1}, protocol, **changes))
    for name in ("pretraining", "evaluation", "weights_sha256", "file"):
        del values[name]
    path = folder / "linear" / f"{sha(dataset, protocol, changes)}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values | {"schema": 1, "config_sha256": "cd" * 32}))


def test_records_of_an_earlier_version_share_no_row_with_others(tmp_path: Path) -> None:
    earlier(tmp_path, "cifar10")
    (old,) = RecordStore(tmp_path).load()
    new = make("linear", "cifar10", {"top1": 61.0}, old.protocol)
    elsewhere = make("linear", "cifar100", {"top1": 62.0}, old.protocol)
    records = [old, new, elsewhere]
    assert labels(records) == [
        label_with("recorded by an earlier version"),
        "INTL (ResNet-18; measured, reduced scale)",
    ]
    assert len(shown(records, "2")) == 3
    text = render(records)
    assert text.count("Recorded by an earlier version: settings unknown beyond those listed.") == 1


def test_one_row_never_holds_records_of_two_versions(tmp_path: Path) -> None:
    earlier(tmp_path, "cifar10")
    (old,) = RecordStore(tmp_path).load()
    new = make("linear", "cifar100", {"top1": 62.0}, LINEAR)
    assert {row for row, _, _ in shown([old, new], "2")} == {0, 1}


@pytest.mark.parametrize("method", ["INTL", "Random init"])
def test_each_pre_training_of_an_earlier_version_is_a_row_with_its_transfer_seeds(method: str, tmp_path: Path) -> None:
    """Equal summaries and seeds are no contradiction, because settings outside the summary may differ."""
    for weights, pretrain_seed, first in (("1a2b3c4d", 0, 60.0), ("2b3c4d5e", 0, 70.0), ("3c4d5e6f", 1, 80.0)):
        own: dict[str, Any] = {
            "checkpoint_sha256": weights + "0" * 56,
            "pretrain_seed": pretrain_seed,
            "method": method,
        }
        for seed in (0, 1):
            earlier(tmp_path, "cifar10", top1=first + seed, transfer_seed=seed, **own)
    records = RecordStore(tmp_path).load()
    # The deviation of two values with a difference of 1 is 1 / sqrt(2).
    assert shown(records, "2") == [
        (row, "cifar10/top1", f"{mean} ± 0.71 (2†)") for row, mean in enumerate(("60.50", "70.50", "80.50"))
    ]
    assert labels(records) == [
        label_with("recorded by an earlier version", f"pre-training weights {weights}").replace("INTL", method)
        for weights in ("1a2b3c4d", "2b3c4d5e", "3c4d5e6f")
    ]


def test_weights_are_in_the_label_also_if_many_settings_differ(tmp_path: Path) -> None:
    earlier(tmp_path, "cifar10")
    (old,) = RecordStore(tmp_path).load()
    records = [
        dataclasses.replace(old, pretraining={"schema": 1, "known": known, "weights": sha(known, seed)})
        for seed in (0, 1)
        for known in ({f"pretrain_{name}": int(name == other) for name in "abc"} for other in "abcd")
    ]
    assert len(set(labels(records))) == 8
    assert all("pre-training weights" in label for label in labels(records))


def test_batch_sizes_have_columns_and_other_settings_have_rows(tmp_path: Path) -> None:
    for size, weights in ((32, "1a2b3c4d"), (64, "2b3c4d5e")):
        earlier(tmp_path, "imagenet", size, checkpoint_sha256=weights + "0" * 56)
    records = RecordStore(tmp_path).load()
    for size, decay, top1 in ((256, 0.1, 61.0), (32, 0.1, 60.0), (32, 0.2, 62.0)):
        protocol = {**LINEAR, "pretrain_batch_size": size, "pretrain_weight_decay": decay}
        records.append(make("linear", "imagenet", {"top1": top1}, protocol))
    assert shown(records, "4") == [
        (0, "256", "61.0 (1)"),
        (0, "32", "60.0 (1)"),
        (1, "32", "62.0 (1)"),
        (2, "32", "60.0 (1)"),
        (3, "64", "60.0 (1)"),
    ]
    assert labels(records, "4") == [
        label_with("pre-training weight_decay 0.1"),
        label_with("pre-training weight_decay 0.2"),
        label_with("recorded by an earlier version", "pre-training weights 1a2b3c4d"),
        label_with("recorded by an earlier version", "pre-training weights 2b3c4d5e"),
    ]
