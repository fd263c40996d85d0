"""`selection`: epoch, rates and k that are chosen on a part of the training images; the test images are read once."""

import dataclasses
import json
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transfer_cases import make_checkpoint, make_folder, packaged

from intl_bench import protocol
from intl_bench.core.errors import DivergedError, InputError, Preempted
from intl_bench.core.identity import identity
from pretrain.images import sample
from pretrain.images.data import DataConfig, open_source
from pretrain.images.fingerprint import fingerprint
from transfer import features, find_task, finetune, knn, linear, selection, sgd_classifier
from transfer.probe import train_probe

SHAPES = DataConfig(kind="shapes", size=400)
LINEAR: dict[str, Any] = {"data": SHAPES, "workers": 0, "device": "cpu", "epochs": 12, "batch_size": 50, "lr": 0.1}
FINETUNE = ["workers=0", "device=cpu", "epochs=3", "batch_size=8", "crop=16", "resize=18", "train_percent=10"]


@pytest.fixture(autouse=True)
def _in_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def own_parts(data: DataConfig, share: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """The indices of the training images that train and that choose, from `data.holdout`."""
    whole = open_source(data, "train")
    held = sample.held_out(whole.labels, share, seed=seed, setting="x")
    return np.flatnonzero(~held), np.flatnonzero(held)


def extracted(data: DataConfig) -> tuple[features.Features, features.Features]:
    config = linear.LinearConfig(**{**LINEAR, "data": data})
    with features.distributed.start("cpu") as process:
        return features.extract_both(make_checkpoint(), config, process)


def test_the_part_is_that_of_a_held_out_data_set_and_every_class_is_in_both() -> None:
    config = linear.LinearConfig(**LINEAR, selection="val", val_share=0.2, val_seed=3)
    held = dataclasses.replace(SHAPES, holdout=0.2, holdout_seed=3)
    train, test = (open_source(held, split) for split in ("train", "test"))
    assert (len(train), len(test)) == (320, 80)
    assert np.bincount(test.labels).tolist() == [8] * 10
    digests = linear.TASK.fingerprints(config)
    assert digests["val"] == fingerprint(test)
    assert digests["train"] == fingerprint(open_source(SHAPES, "train"))
    assert "val" not in linear.TASK.fingerprints(linear.LinearConfig(**LINEAR))
    other = linear.LinearConfig(**LINEAR, selection="val", val_share=0.2)
    assert linear.TASK.fingerprints(other)["val"] != digests["val"]
    whole = open_source(SHAPES, "train")
    both = np.concatenate([train.images, test.images])  # type: ignore[union-attr]
    assert sorted(image.tobytes() for image in both) == sorted(image.tobytes() for image in whole.images)  # type: ignore[union-attr]


def test_held_out_test_images_are_not_the_test_images_and_these_are_not_read(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "photos", train=8)
    for path in (folder / "val").rglob("*.png"):
        path.unlink()
    held = DataConfig(root=str(folder), holdout=0.25)
    train, test = (open_source(held, split) for split in ("train", "test"))
    assert (len(train), len(test)) == (18, 6)
    assert {Path(test.file(i)).parent.parent.name for i in range(6)} == {"train"}


@pytest.mark.parametrize(("count", "message"), [(1, "a single training image"), (2, "leaves a class without images")])
def test_a_part_that_empties_a_class_is_refused(count: int, message: str) -> None:
    labels = np.array([0] * 40 + [1] * count)
    with pytest.raises(InputError, match=message):
        sample.held_out(labels, 0.9, seed=0, setting="val_share=0.9")


def test_the_default_changes_no_identity_and_a_selection_is_in_it() -> None:
    for config in (linear.LinearConfig(**LINEAR), knn.KnnConfig(data=SHAPES), finetune.FinetuneConfig()):
        assert not {"selection", "choose", "val_share", "val_seed"} & identity(config).keys()
        assert "chosen_on" not in find_task(type(config).__module__.split(".")[1]).protocol(config)
    on_test = linear.LinearConfig(**LINEAR, selection="best-on-test", val_share=0.3)
    assert identity(on_test).keys() - identity(linear.LinearConfig(**LINEAR)).keys() == {"selection"}
    chosen = linear.LinearConfig(**LINEAR, selection="val", choose=linear.LinearChoices(lr=(0.1, 1.0)))
    assert identity(chosen)["choose"] == {"lr": [0.1, 1.0]}
    assert "lr" not in identity(chosen)
    stated = linear.protocol(chosen)
    assert stated["chosen_on"] == "0.1 of the training images, seed 0"
    assert (stated["selection"], stated["chosen_from"], stated["lr"]) == ("epoch, lr", "lr 0.1 1", None)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["choose.lr=[0.1,1]"], r"choose\.lr=\[0\.1, 1\.0\]: selection=last chooses nothing; add selection=val"),
        (["selection=val", "choose.lr=[1,1]"], "has a value twice"),
        (["selection=test"], "expected last, val or best-on-test"),
        (["selection=val", "val_share=1"], "val_share=1"),
        (["selection=val", "choose.k=[1]"], "choose.k"),
    ],
)
def test_a_selection_that_means_nothing_is_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        packaged("linear", "cifar10", overrides=overrides)


def test_only_the_published_selection_keeps_the_scale_of_the_paper() -> None:
    usual, on_test, on_val = (
        packaged("linear", "cifar10", overrides=["data.kind=cifar10", *more])
        for more in ([], ["selection=best-on-test"], ["selection=val"])
    )
    same = [protocol.same_protocol(usual, other) for other in (on_test, on_val)]
    assert same == [True, False]


def test_linear_on_features_is_the_best_of_all_trainings_then_trained_on_all_images() -> None:
    rates, decays = (1e-4, 3e-3, 0.1), (0.0, 0.3)
    choices = linear.LinearChoices(lr=rates, weight_decay=decays)
    config = linear.LinearConfig(**LINEAR, selection="val", val_share=0.25, choose=choices)
    outcome = linear.run(make_checkpoint(), config, 4, folder=Path("work"))
    train, test = extracted(SHAPES)
    fit, val = map(torch.from_numpy, own_parts(SHAPES, 0.25))
    options = {"classes": 10, "seed": 4, "epochs": 12, "batch_size": 50, "final_lr": 1e-6}
    found = []
    for lr in rates:
        for decay in decays:
            one = [tensor[rows] for rows in (fit, val) for tensor in train]
            history = train_probe(*one, **options, lr=lr, weight_decay=decay).history  # type: ignore[arg-type]
            found += [(row["top1"], -len(found) - e, lr, decay, e) for e, row in enumerate(history)]
    top1, _, lr, decay, epoch = max(found)
    assert outcome.details["chosen"] == {"epoch": epoch + 1, "lr": lr, "weight_decay": decay}
    assert outcome.metrics["val_top1"] == top1
    again = train_probe(*train, *test, **options, lr=lr, weight_decay=decay).history[epoch]  # type: ignore[arg-type]
    assert {name: outcome.metrics[name] for name in again} == again
    assert sorted(outcome.metrics) == ["top1", "top5", "val_top1", "val_top5"]
    assert outcome.details["train_images"] == 400
    assert outcome.details["val_images"] == 100
    assert len(outcome.details["candidates"]) == 6


def test_best_on_test_is_the_best_epoch_that_the_record_of_the_last_epoch_has() -> None:
    usual, best = (
        linear.run(make_checkpoint(), linear.LinearConfig(**LINEAR, selection=name), 1, folder=Path("work"))
        for name in ("last", "best-on-test")
    )
    assert best.metrics == {"top1": usual.metrics["best_top1"], "top5": usual.metrics["best_top5"]}
    assert best.details["best_epoch"] == usual.details["best_epoch"]
    assert usual.metrics["top1"] < usual.metrics["best_top1"]  # otherwise this test shows nothing


def test_k_is_chosen_on_the_part_and_all_images_vote() -> None:
    config = knn.KnnConfig(data=SHAPES, workers=0, device="cpu", selection="val", val_share=0.25)
    outcome = knn.run(make_checkpoint(), config, 0, folder=Path("work"))
    train, test = extracted(SHAPES)
    fit, val = map(torch.from_numpy, own_parts(SHAPES, 0.25))

    def top1(features, labels, other, wanted, k: int) -> float:
        distances = torch.cdist(other.double(), features.double())
        votes = torch.nn.functional.one_hot(labels[distances.argsort(dim=1, stable=True)[:, :k]], 10).sum(1)
        return 100 * float((votes.argmax(1) == wanted).double().mean())

    ks = (1, 2, 5, 10, 20, 50, 100, 200)
    scores = [top1(train.features[fit], train.labels[fit], train.features[val], train.labels[val], k) for k in ks]
    k = ks[int(np.argmax(scores))]
    assert outcome.details["chosen"] == {"k": k}
    assert outcome.metrics == pytest.approx({"knn": top1(*train, *test, k), "val_knn": max(scores)})
    assert [row["knn"] for row in outcome.details["candidates"]] == pytest.approx(scores)
    on_test = dataclasses.replace(config, selection="best-on-test", choose=knn.KnnChoices(k=(1, 5, 20)))
    best = knn.run(make_checkpoint(), on_test, 0, folder=Path("work"))
    assert best.metrics == pytest.approx({"knn": max(top1(*train, *test, k) for k in (1, 5, 20))})
    few = dataclasses.replace(config, choose=knn.KnnChoices(k=(5, 301)))
    with pytest.raises(InputError, match=r"choose\.k=\[5, 301\]: there are only 300 training images"):
        knn.run(make_checkpoint(), few, 0, folder=Path("work"))


def test_default_values_of_k_larger_than_the_images_are_left_out() -> None:
    labels = np.repeat(np.arange(3), 10)
    on_test, val = (packaged("knn", "cifar10", overrides=[f"selection={how}"]) for how in ("best-on-test", "val"))
    assert knn.values_of_k(on_test, labels) == [1, 2, 5, 10, 20]  # type: ignore[arg-type]
    assert knn.values_of_k(dataclasses.replace(val, val_share=0.4), labels) == [1, 2, 5, 10]  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"k=5: there are only 3 training images; expected at most 3; lower k"):
        knn.values_of_k(knn.KnnConfig(), labels[:3])


def finetuning(root: Path, *more: str) -> finetune.FinetuneConfig:
    words = [f"data.root={root}", *FINETUNE, "label_seed=0", "val_share=0.4", *more]
    config = packaged("finetune", "imagefolder", overrides=words)
    assert isinstance(config, finetune.FinetuneConfig)
    return config


def test_finetuning_chooses_within_its_labels_and_reads_the_test_images_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = make_folder(tmp_path / "photos", train=60)
    config = finetuning(root, "selection=val", "choose.head_lr=[0.01,3]")
    tested: list[int] = []
    plain = sgd_classifier._Run.test

    def counted(run: Any, source: Any, workers: int) -> dict[str, float]:
        tested.append(len(source))
        return plain(run, source, workers)

    monkeypatch.setattr(sgd_classifier._Run, "test", counted)
    outcome = finetune.run(make_checkpoint(), config, 0, folder=Path("work"))
    assert tested == [7] * 6 + [12]  # 7 of the 18 labeled images choose, in 3 epochs of two rates
    assert outcome.details["train_images"] == 18
    assert outcome.details["val_images"] == 7
    epoch = outcome.details["chosen"]["epoch"]
    rows = [json.loads(line) for line in Path("work/metrics.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == list(range(1, epoch + 1))
    assert rows[-1]["top1"] == outcome.metrics["top1"]
    assert finetune.TASK.fingerprints(config).keys() == {"train", "test", "val"}
    # The weights are those of a usual training with the chosen rate at that epoch.
    usual = finetuning(root, f"head_lr={outcome.details['chosen']['head_lr']}")
    finetune.run(make_checkpoint(), usual, 0, folder=Path("usual"))
    scores = [json.loads(line)["top1"] for line in Path("usual/metrics.jsonl").read_text().splitlines()]
    assert scores[epoch - 1] == outcome.metrics["top1"]


def test_a_stopped_choice_resumes_and_gives_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = make_folder(tmp_path / "photos", train=60)
    config = finetuning(root, "selection=val", "choose.head_lr=[0.01,3]")
    whole = finetune.run(make_checkpoint(), config, 0, folder=Path("whole"))
    steps = 0
    plain = sgd_classifier._Run.take_step

    def stopping(run: Any, batch: Any) -> None:
        nonlocal steps
        plain(run, batch)
        steps += 1
        if steps == 9:  # within the second rate: a rate takes 3 epochs of 2 steps
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(sgd_classifier._Run, "take_step", stopping)
    with pytest.raises(Preempted):
        finetune.run(make_checkpoint(), config, 0, folder=Path("parts"))
    assert finetune.run(make_checkpoint(), config, 0, folder=Path("parts")) == whole
    assert steps == 12 + whole.details["chosen"]["epoch"] * 3


def test_a_rate_that_diverges_is_not_chosen_and_only_such_ones_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    config = linear.LinearConfig(**LINEAR, selection="val", choose=linear.LinearChoices(lr=(1.0, 2.0, 3.0)))
    labels = np.arange(100) % 10

    def train(values: Any, part: Any, stop_epoch: int | None, name: str) -> selection.History:
        if values["lr"] != good:
            raise DivergedError("too fast")
        return [{"top1": 50.0}]

    good = 2.0
    metrics, details = selection.train_selected(config, labels, train)
    assert metrics == {"top1": 50.0, "val_top1": 50.0}
    assert details["chosen"] == {"epoch": 1, "lr": 2.0}
    assert [row["top1"] for row in details["candidates"]] == [None, 50.0, None]
    good = 9.0
    with pytest.raises(DivergedError, match="every combination of settings diverged, the last one: too fast"):
        selection.train_selected(config, labels, train)
