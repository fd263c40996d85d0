"""Cells: nested seeds, which cells are ranked together, and the notes."""

from typing import Any

import pytest
from table_cases import COCO, KNN, LINEAR, R18, RANDOM, cells, labels, make, sha, shown, trained, with_settings

from intl_bench.records import ResultRecord
from intl_bench.tables import render


def nested(values: dict[int | None, list[float]]) -> list[ResultRecord]:
    """Return records with values given as {pre-training seed: [value for each transfer seed]}."""
    return [
        trained({}, top1=value, pretrain_seed=seed, transfer_seed=transfer_seed)
        for seed, top1 in values.items()
        for transfer_seed, value in enumerate(top1)
    ]


@pytest.mark.parametrize(
    ("values", "cell", "n", "transfer_seeds", "std_over"),
    [
        # The means are 60, 61 and 62. Their deviations from 61 are -1, 0 and 1: sqrt((1 + 0 + 1) / 2) = 1
        (
            {0: [59.0, 60.0, 61.0], 1: [60.0, 61.0, 62.0], 2: [61.5, 62.0, 62.5]},
            "61.0 ± 1.0 (3)",
            3,
            3,
            "pre-training",
        ),
        # The same means from 2, 1 and 3 transfer seeds. The mean of all six values is 61.17
        ({0: [58.0, 62.0], 1: [61.0], 2: [60.0, 62.0, 64.0]}, "61.0 ± 1.0 (3)", 3, 3, "pre-training"),
        ({0: [70.33, 70.44, 70.55]}, "70.44 ± 0.11 (3†)", 1, 3, "transfer"),
        ({None: [70.33, 70.44, 70.55]}, "70.44 ± 0.11 (3†)", 1, 3, "transfer"),
        ({0: [61.2]}, "61.20 (1)", 1, 1, None),
    ],
)
def test_cells_average_transfer_seeds_within_pre_trainings(
    values: dict[int | None, list[float]], cell: str, n: int, transfer_seeds: int, std_over: str | None
) -> None:
    (found,) = cells(nested(values), "2")
    got = [found[name] for name in ("cell", "n", "transfer_seeds", "spread")]
    assert got == [cell, n, transfer_seeds, std_over]


def test_a_deviation_over_transfer_seeds_only_has_a_mark_and_a_note() -> None:
    note = (
        "- † one pre-training: the standard deviation is over its transfer seeds only (their number in brackets). It "
        "does not include the variation between pre-trainings."
    )
    assert render(nested({0: [60.0, 61.0]})).splitlines().count(note) == 1
    assert "†" not in render(nested({0: [60.0, 61.0], 1: [60.0, 61.0]}))
    assert r"60.50 $\pm$ 0.71 (2$\dagger$)" in render(nested({0: [60.0, 61.0]}), format="latex")


@pytest.mark.parametrize(
    ("seeds", "counts"),
    [
        ([0, 1], "2 pre-training seeds, 1 transfer seed, 2 records."),
        ([0, None], "1 pre-training seed, an unknown pre-training seed, 1 transfer seed, 2 records."),
        ([None], "An unknown pre-training seed, 1 transfer seed, 1 record."),
    ],
)
def test_a_footnote_counts_seeds(seeds: list[int | None], counts: str) -> None:
    assert f". {counts}" in render(nested({seed: [60.0] for seed in seeds}))


def best(first: ResultRecord, second: ResultRecord) -> list[str]:
    """Return the methods whose cells are bold."""
    return sorted({cell["method"] for cell in cells([first, second], "2") if cell["bold"]})


@pytest.mark.parametrize(
    ("changes", "ranked"),
    [
        ({"settings.weight_decay": 0.5, "settings.batch_size": 32, "branch": "momentum"}, True),
        ({"settings.epochs": 10}, False),
        ({"progress": "step 120 of 320"}, False),
        ({"data": sha("other images")}, False),
        ({"initial_weights": sha("a warm start")}, False),
        ({"settings.backbone.stem": "cifar"}, False),
    ],
)
def test_bold_compares_equal_budgets_of_pre_training_only(changes: dict[str, Any], ranked: bool) -> None:
    assert best(trained({}), trained(changes, top1=61.0, method="B")) == (["B"] if ranked else [])


@pytest.mark.parametrize(
    "changes",
    [{"scale": "paper"}, {"evaluation": {"data.test": sha("other images")}}, {"evaluation": {"settings.lr": 0.4}}],
)
def test_bold_compares_equal_evaluations_and_scales_only(changes: dict[str, Any]) -> None:
    assert best(trained({}), trained({}, top1=61.0, method="B", **changes)) == []


@pytest.mark.parametrize("changes", [{"data": None}, {"settings.epochs": None}])
def test_unknown_pre_trainings_are_never_ranked(changes: dict[str, Any]) -> None:
    assert best(trained(changes), trained(changes, top1=61.0, method="B")) == []


def test_checkpoints_of_other_projects_are_never_ranked() -> None:
    both = {"pretraining": {"source": "moco", "epochs": 200, "group": "one"}}
    assert best(trained({}, **both), trained({}, top1=61.0, method="B", **both)) == []


def test_random_initializations_are_ranked_only_with_random_initializations() -> None:
    random = {"pretraining": RANDOM}
    assert best(trained({}, **random), trained({}, top1=61.0, method="B", **random)) == ["B"]
    other = with_settings(RANDOM, {"settings.backbone.stem": "cifar"})
    assert best(trained({}, **random), trained({}, top1=61.0, method="B", pretraining=other)) == []
    assert best(trained({}), trained({}, top1=61.0, method="Random init", **random)) == []


def test_footnote_lists_code_versions_if_they_differ() -> None:
    one = {"version": "0.1.0", "commit": "3e8c003" + "0" * 33, "modified": False}
    other = {"version": "0.1.0", "commit": "6c4d954" + "0" * 33, "modified": True}
    neither = {"version": "0.2.0", "commit": None, "modified": None}
    records = [trained({}, pretrain_seed=seed, code=code) for seed, code in enumerate((other, one, neither, one))]
    assert "Code versions: 0.1.0 (3e8c003), 0.1.0 (6c4d954, modified), 0.2.0." in render(records)
    assert "Code versions" not in render([records[1], records[3]])


def test_footnote_explains_the_scale_adapted() -> None:
    sentence = "Measured at adapted scale: the recipe's training differs from its source, as its header says."
    assert sentence in render([trained({}, scale="adapted")])
    assert "as its header says" not in render([trained({})])


def test_note_on_the_epoch_of_the_scores_needs_measured_rows() -> None:
    note = "last epoch; the published ones are those of its best epoch on the validation images."
    assert note not in render([], tables=("1", "2"))
    assert render([trained({})], tables=("1", "2")).count(note) == 1
    imagenet = make("linear", "imagenet", {"top1": 70.0}, LINEAR)
    assert render([trained({}), imagenet], tables=("1", "2", "4")).count(note) == 2


@pytest.mark.parametrize(
    ("dataset", "images", "in_label"),
    [
        ("cifar10", 5170, ", 5,170 training images"),
        ("cifar10", 50_000, ""),
        ("shapes", 5170, ""),
        ("cifar10", None, ""),
    ],
)
def test_label_shows_a_reduced_number_of_training_images(dataset: str, images: int | None, in_label: str) -> None:
    records = [make("linear", dataset, {"top1": 70.0}, {**LINEAR, **R18, "train_images": images})]
    table = "2" if dataset == "cifar10" else dataset
    assert labels(records, table) == [f"INTL (ResNet-18{in_label}; measured, reduced scale)"]


def test_label_names_the_reduced_data_set_and_ignores_shares_of_labels() -> None:
    records = [
        make(task, dataset, metrics, {**protocol, "train_images": images})
        for task, dataset, metrics, protocol, images in (
            ("linear", "cifar10", {"top1": 70.0}, LINEAR, 5170),
            ("knn", "cifar100", {"knn5": 60.0}, KNN, 50_000),
            ("linear", "cifar100", {"top1": 70.0}, LINEAR, 50_000),
        )
    ]
    assert labels(records) == ["INTL (ResNet-18, 5,170 training images of cifar10; measured, reduced scale)"]
    share = make("finetune", "imagenet", {"top1": 50.0}, {**LINEAR, "train_percent": 1, "train_images": 12_811})
    assert labels([share], "1") == ["INTL (ResNet-18; measured, reduced scale)"]


def test_each_cell_of_a_row_counts_its_own_seeds() -> None:
    records = [
        make(
            "coco",
            "coco",
            {"bbox/AP": 40.0 + seed, "segm/AP": 30.0} if seed else {"bbox/AP": 40.0},
            COCO,
            pretrain_seed=seed,
        )
        for seed in (0, 1)
    ]
    assert shown(records, "3") == [(0, "bbox/AP", "40.5 ± 0.71 (2)"), (0, "segm/AP", "30.0 (1)")]
