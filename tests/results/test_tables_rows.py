"""Rows: which records share a row, how labels distinguish rows, contradictions, and the time for many records."""

import dataclasses
import re
import time
from pathlib import Path
from typing import Any

import pytest
from table_cases import (
    COCO,
    KNN,
    LINEAR,
    R18,
    RANDOM,
    cells,
    label_with,
    labels,
    make,
    sha,
    shown,
    trained,
    with_settings,
)

from intl_bench import cli
from intl_bench.records import RecordStore, ResultRecord
from intl_bench.tables import render


def test_each_value_of_a_sweep_has_a_row() -> None:
    records = [
        trained({"settings.weight_decay": decay}, top1=top1 + seed, pretrain_seed=seed)
        for decay, top1 in ((1e-05, 60.0), (0.5, 70.0), (0.001, 65.0))
        for seed in (0, 1)
    ]
    # The deviation of two values with a difference of 1 is 1 / sqrt(2).
    row = "cifar10/top1"
    assert shown(records, "2") == [
        (0, row, "60.50 ± 0.71 (2)"),
        (1, row, "65.50 ± 0.71 (2)"),
        (2, row, "70.50 ± 0.71 (2)"),
    ]
    differences = [f"pre-training weight_decay {decay}" for decay in ("1e-05", "0.001", "0.5")]
    assert labels(records) == [label_with(one) for one in differences]
    text = render(records).replace("\\", "")
    assert all(f"Unlike rows of the same name: {one}. 2 pre" in text for one in differences)


@pytest.mark.parametrize(
    ("changes", "difference"),
    [
        ({"settings.projector.out": 64}, "pre-training projector.out 64"),
        ({"settings.views.0.jitter_p": 0.0}, "pre-training views.0.jitter_p 0.0"),
        ({"settings.channels_last": False}, "pre-training channels_last no"),
        ({"settings.data.mean": [0.5, 0.25]}, "pre-training data.mean 0.5 0.25"),
        ({"data": "1a2b3c4d" + "0" * 56}, "pre-training data 1a2b3c4d"),
        ({"initial_weights": "1a2b3c4d" + "0" * 56}, "pre-training initial weights 1a2b3c4d"),
        ({"progress": "step 120 of 320"}, "pre-training progress step 120 of 320"),
        ({"branch": "momentum"}, "pre-training branch momentum"),
    ],
)
def test_a_difference_of_pre_trainings_gives_a_row_and_is_in_its_label(
    changes: dict[str, Any], difference: str
) -> None:
    records = [trained({}), trained(changes, top1=61.0)]
    assert {cell["cell"] for cell in cells(records, "2")} == {"60.00 (1)", "61.00 (1)"}
    assert label_with(difference) in labels(records)


@pytest.mark.parametrize(
    ("changes", "difference"),
    [
        ({"settings.lr": 0.4}, "lr 0.4"),
        ({"settings.data.mean": "checkpoint"}, "data.mean checkpoint"),
        ({"data.test": "1a2b3c4d" + "0" * 56}, "test data 1a2b3c4d"),
        ({"data.train": "1a2b3c4d" + "0" * 56}, "training data 1a2b3c4d"),
    ],
)
def test_a_difference_of_evaluations_gives_a_row_and_is_in_its_label(changes: dict[str, Any], difference: str) -> None:
    records = [trained({}), trained({}, top1=61.0, evaluation=changes)]
    assert {cell["cell"] for cell in cells(records, "2")} == {"60.00 (1)", "61.00 (1)"}
    assert label_with(difference) in labels(records)


def test_a_label_has_three_settings_and_the_footnote_has_all() -> None:
    changes = {
        "data": "1a2b3c4d" + "0" * 56,
        "settings.a_setting_with_a_long_name": 1,
        "settings.lr": 0.5,
        "settings.projector.out": 64,
        "settings.views.1.jitter_p": 0.0,
    }
    records = [trained({key: 2 for key in changes if "long" in key or "lr" in key}), trained(changes, top1=61.0)]
    first = ["pre-training lr 0.5", "pre-training projector.out 64", "pre-training views.1.jitter_p 0.0"]
    more = ["pre-training a_setting_with_a_long_name 1", "pre-training data 1a2b3c4d"]
    assert label_with(*first[:2], f"{first[2]} and 2 more") in labels(records)
    assert f"Unlike rows of the same name: {', '.join([*first, *more])}." in render(records).replace("\\", "")


def test_a_label_starts_with_the_most_distinctive_setting() -> None:
    # The settings with short names have two values only. The setting with the long name has three.
    records = [
        trained({f"settings.{name}": min(n, 1) for name in "abcd"} | {"settings.the_swept_setting": n})
        for n in range(3)
    ]
    assert [label.split(", ")[1] for label in labels(records)] == [
        f"pre-training the_swept_setting {n}" for n in range(3)
    ]


def test_settings_come_before_a_fingerprint_that_alone_distinguishes_all_rows() -> None:
    records = [
        trained({"settings.first": first, "settings.other": other, "data": sha(first, other)})
        for first, other in ((0, 0), (0, 1), (1, 1))
    ]
    expected = [
        label_with(
            f"pre-training first {first}", f"pre-training other {other}", f"pre-training data {sha(first, other):.8}"
        )
        for first, other in ((0, 0), (0, 1), (1, 1))
    ]
    assert labels(records) == expected


def test_evaluations_on_different_data_sets_are_not_compared() -> None:
    records = [
        make("linear", "cifar10", {"top1": 90.0}, {**LINEAR, **R18}),
        make("linear", "cifar10", {"top1": 91.0}, {**LINEAR, **R18, "epochs": 500}),
        make("linear", "cifar100", {"top1": 50.0}, {**LINEAR, **R18, "epochs": 500}),
        make("knn", "cifar100", {"knn5": 40.0}, {**KNN, **R18}),
    ]
    assert labels(records) == [label_with("linear epochs 100"), label_with("linear epochs 500")]
    # The evaluations of 500 epochs on both data sets share a row.
    assert shown(records, "2") == [
        (0, "cifar10/top1", "90.00 (1)"),
        (0, "cifar100/5nn", "40.00 (1)"),
        (1, "cifar10/top1", "91.00 (1)"),
        (1, "cifar100/top1", "50.00 (1)"),
    ]


def test_rows_without_a_common_data_set_have_different_labels() -> None:
    records = [
        make("linear", dataset, {"top1": 50.0}, {**LINEAR, "pretrain_dataset": dataset, "pretrain_epochs": epochs})
        for dataset, epochs in (("cifar10", 1), ("cifar10", 2), ("cifar100", 3), ("imagenet100", 3))
    ]
    assert len(labels(records)) == 4


def test_random_initializations_with_different_stems_have_different_rows() -> None:
    other = with_settings(RANDOM, {"settings.backbone.stem": "cifar"})
    records = [
        make("knn", "cifar10", {"knn5": 30.0}, KNN, method="Random init", pretraining=RANDOM),
        make("knn", "cifar10", {"knn5": 31.0}, KNN, method="Random init", pretraining=other),
    ]
    assert labels(records) == [
        f"Random init (ResNet-18, pre-training backbone.stem {stem}; measured, reduced scale)"
        for stem in ("cifar", "imagenet")
    ]


def foreign(top1: float, **fields: Any) -> ResultRecord:
    """Return a record of a checkpoint of another project. `weights` and `group` go into its identity."""
    given = {key: fields.pop(key) for key in ("weights", "group") if key in fields}
    identity = {"source": "moco", "epochs": 200, **given}
    return make("linear", "cifar10", {"top1": top1}, LINEAR, pretraining=identity, **fields)


def test_checkpoints_of_other_projects_are_averaged_only_as_seeds_of_a_group() -> None:
    one, other = "1a2b3c4d" + "0" * 56, "5e6f7a8b" + "0" * 56
    files = [
        foreign(top1, weights=weights, weights_sha256=weights, pretrain_seed=None)
        for weights, top1 in ((one, 60.0), (other, 62.0))
    ]
    assert labels(files) == [label_with("pre-training weights 1a2b3c4d"), label_with("pre-training weights 5e6f7a8b")]
    group = [foreign(60.0 + 2 * seed, group="mine", pretrain_seed=seed) for seed in (0, 1)]
    assert shown(group, "2") == [(0, "cifar10/top1", "61.0 ± 1.4 (2)")]
    groups = [*group, foreign(70.0, group="theirs")]
    assert labels(groups) == [label_with("pre-training group mine"), label_with("pre-training group theirs")]


def test_labels_show_the_kind_of_identity_if_kinds_differ() -> None:
    records = [trained({}), foreign(61.0, group="mine"), trained({}, pretraining=RANDOM)]
    assert labels(records) == [
        label_with("pre-training source moco"),
        label_with("random initialization"),
        "INTL (ResNet-18; measured, reduced scale)",
    ]


@pytest.mark.parametrize(
    ("table", "task", "names"), [("3", "coco", ("coco", "coco2017")), ("voc",) * 2 + (("voc", "voc0712"),)]
)
@pytest.mark.parametrize("alike", [False, True])
@pytest.mark.parametrize("own_pre_training", [False, True])
def test_two_data_sets_of_one_column_never_share_a_row(
    table: str, task: str, names: tuple[str, str], alike: bool, own_pre_training: bool
) -> None:
    """This also holds if the data sets differ in their names only."""
    records = [
        make(
            task,
            dataset,
            {"bbox/AP": ap},
            {**COCO, **({"pretrain_dataset": dataset} if own_pre_training else {})},
            transfer_seed=seed,
            **({"evaluation": {"settings": {}}} if alike else {}),
        )
        for dataset, ap in zip(names, (40.0, 42.0), strict=True)
        for seed in (0, 1)
    ]
    assert {(column, cell) for _, column, cell in shown(records, table)} == {
        ("bbox/AP", "40.0 ± 0.00 (2†)"),
        ("bbox/AP", "42.0 ± 0.00 (2†)"),
    }
    assert {row for row, _, _ in shown(records, table)} == {0, 1}
    found = [re.search(r"data set (\w+)", label) for label in labels(records, table)]
    assert {match[1] for match in found if match} == set(names)


def test_columns_of_different_evaluations_never_share_a_row() -> None:
    records = [
        make("linear", "imagenet", {"top1": 60.0}, {**LINEAR, "lr": lr, "pretrain_batch_size": size})
        for size, lr in ((32, 0.1), (64, 0.2))
    ]
    assert shown(records, "4") == [(0, "32", "60.0 (1)"), (1, "64", "60.0 (1)")]
    assert labels(records, "4") == [label_with("lr 0.1"), label_with("lr 0.2")]


def elsewhere(changes: dict[str, Any], dataset: str = "cifar100") -> ResultRecord:
    """Return the record of `trained` on another data set; it was trained on it if `changes` has other images."""
    record = dataclasses.replace(trained(changes), dataset=dataset)
    named = {"pretrain_dataset": dataset} if "data" in changes else {}
    return dataclasses.replace(record, protocol={**record.protocol, **named})


def test_a_part_of_a_data_set_and_the_whole_never_share_a_row() -> None:
    """They have other images, but one name, and the columns do not show which one was scored."""
    part = {"settings.data.limit": 200, "settings.max_steps": 3, "data": sha("a part")}
    records = [trained({}), dataclasses.replace(elsewhere({}), pretraining=trained(part).pretraining)]
    assert {row for row, _, _ in shown(records, "2")} == {0, 1}


@pytest.mark.parametrize(
    ("first", "second", "rows"),
    [
        ({}, {}, {0}),
        ({"settings.lr": 0.4}, {"settings.lr": 0.5}, {0, 1}),
        ({"settings.lr": 0.4}, {"settings.lr": 0.5, "data": sha("other images")}, {0}),
        ({"data": None}, {"data": None}, {0}),
        ({"data": None}, {"settings.lr": 0.5, "data": sha("other images")}, {0, 1}),
        ({"settings.lr": 0.4, "data": None}, {"settings.lr": 0.5, "data": None}, {0, 1}),
    ],
)
def test_pre_trainings_share_a_row_only_if_their_images_are_known_and_differ(
    first: dict[str, Any], second: dict[str, Any], rows: set[int]
) -> None:
    records = [trained(first), elsewhere(second)]
    assert {row for row, _, _ in shown(records, "2")} == rows
    assert len(set(labels(records))) == len(rows)


def test_pre_trainings_with_a_common_column_have_different_rows() -> None:
    other = {"data": sha("other images")}
    records = [trained({}), elsewhere(other), elsewhere({})]
    assert [(row, column) for row, column, _ in shown(records, "2")] in (
        [(0, "cifar10/top1"), (0, "cifar100/top1"), (1, "cifar100/top1")],
        [(0, "cifar100/top1"), (1, "cifar10/top1"), (1, "cifar100/top1")],
    )


def test_checkpoints_of_other_projects_never_share_a_row() -> None:
    files = [
        dataclasses.replace(foreign(60.0, weights=sha(dataset), pretrain_seed=None), dataset=dataset)
        for dataset in ("cifar10", "cifar100")
    ]
    assert {row for row, _, _ in shown(files, "2")} == {0, 1}


def on(dataset: str, task: str, evaluation: dict[str, Any], pretraining: dict[str, Any] | None = None) -> ResultRecord:
    """Return a record of one task on one data set with changed identities."""
    base = make(task, dataset, {"top1": 60.0} if task == "linear" else {"knn5": 50.0}, R18)
    return dataclasses.replace(
        base,
        evaluation=with_settings(base.evaluation, evaluation),
        pretraining=with_settings(base.pretraining, pretraining or {}),
        weights_sha256=None,
    )


def test_a_difference_in_one_task_only_names_the_task() -> None:
    mean, own = {"settings.data.mean": [0.1, 0.1, 0.1]}, {"settings.data.mean": "checkpoint"}
    records = [on("cifar10", task, values) for task, values in (("linear", mean), ("linear", own), ("knn", own))]
    differences = ["linear data.mean 0.1 0.1 0.1", "linear data.mean checkpoint"]
    assert labels(records) == [label_with(one) for one in differences]
    assert all(f"Unlike rows of the same name: {one}." in render(records) for one in differences)
    # If both tasks have both evaluations, the task is not named. A task without an evaluation does not count.
    records.append(make("pretrain", "cifar10", {"diverged": 0.0}, R18, evaluation={}))
    assert labels([*records, on("cifar10", "knn", mean)], "ablation") == [
        label_with("data.mean 0.1 0.1 0.1"),
        label_with("data.mean checkpoint"),
    ]


def test_evaluations_without_a_common_data_set_are_compared_by_task() -> None:
    pairs = [("cifar10", 100), ("cifar100", 200), ("imagenet100", 300), ("cifar10", 400)]
    records = [on(dataset, "linear", {"settings.epochs": epochs}) for dataset, epochs in pairs]
    assert {re.split(", |;", label)[1] for label in labels(records)} == {f"epochs {epochs}" for _, epochs in pairs}


def test_a_difference_on_one_data_set_only_names_task_and_data_set() -> None:
    few, many = {"settings.epochs": 100}, {"settings.epochs": 500}
    records = [
        on("cifar10", "linear", few, {"settings.lr": 0.1}),
        on("cifar100", "linear", many, {"settings.lr": 0.1}),
        on("cifar10", "linear", many, {"settings.lr": 0.2}),
        on("cifar100", "linear", many, {"settings.lr": 0.2}),
    ]
    assert labels(records) == [
        label_with(f"pre-training lr {lr}", f"linear on cifar10 epochs {epochs}")
        for lr, epochs in ((0.1, 100), (0.2, 500))
    ]


def written(folder: Path, *records: ResultRecord) -> list[str]:
    """Write records; return the names of their files."""
    return [RecordStore(folder).append(record).name for record in records]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weights_sha256": "b" * 64}, "different weights"),
        ({"weights_sha256": "b" * 64, "transfer_seed": 1}, "different weights"),
        ({"weights_sha256": "b" * 64, "task": "knn", "metrics": {"knn5": 30.0}}, "different weights"),
        ({"pretrain_seed": 1}, "the same weights count as two pre-trainings, of seed 0 and seed 1"),
        ({"pretrain_seed": None}, "the same weights count as two pre-trainings"),
    ],
)
def test_a_contradiction_is_an_error_that_names_both_files(
    changes: dict[str, Any], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = trained({}, weights_sha256="a" * 64)
    names = written(tmp_path / "records", first, dataclasses.replace(first, **changes))
    assert cli.main(["tables", "--results", str(tmp_path)]) == 2
    line = capsys.readouterr().err
    assert message in line
    assert all(name in line for name in names)
    assert line.count("\n") == 1


@pytest.mark.parametrize(
    "changes",
    [
        {"weights_sha256": None},
        {"weights_sha256": "b" * 64, "pretrain_seed": 1},
        {"weights_sha256": "b" * 64, "method": "BYOL"},
        {"pretrain_seed": 1, "method": "BYOL"},
        {"weights_sha256": "b" * 64, "task": "knn", "metrics": {"knn5": 30.0}, "pretraining": RANDOM},
    ],
)
def test_unknown_or_different_weights_are_no_contradiction(changes: dict[str, Any]) -> None:
    first = trained({}, weights_sha256="a" * 64)
    if "pretraining" in changes:
        first = dataclasses.replace(first, pretraining=RANDOM)
    assert "measured" in render([first, dataclasses.replace(first, **changes)])


@pytest.mark.slow
def test_two_thousand_records_are_fast(tmp_path: Path) -> None:
    """The time must not grow with the square of the number. The limit leaves room for slow processors."""
    store = RecordStore(tmp_path)
    for n in range(2000):
        changes = {f"settings.setting_{key}": key * 0.125 for key in range(70)} | {"settings.swept": n // 2}
        store.append(trained(changes, pretrain_seed=n % 2, details={"losses": [0.125 * i for i in range(100)]}))
    started = time.process_time()
    text = render(store.load())
    assert time.process_time() - started < 6
    assert text.count("pre-training swept") == 2 * 1000  # label and footnote
    assert text.count("60.00 ± 0.00 (2)") == 1000
