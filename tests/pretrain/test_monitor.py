"""Scores during pre-training: right values, no effect on the weights, and a failure that ends no run."""

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from places import ROOT
from stopped_run import stop_after
from tiny_runs import train_build

from intl_bench.cli import main
from pretrain import monitor, states, train
from pretrain.images.data import open_source
from pretrain.monitor import evaluating, linear_probe, nearest, plan, stratified
from pretrain.recipe import Recipe, load_recipe

TINY = [
    *("data.size=192", "epochs=2", "batch_size=32", "warmup_epochs=0", "projector.hidden=16", "projector.out=16"),
    *("log_every=1", "spectrum_every=0", "workers=0", "device=cpu"),
]


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def tiny(name: str, *more: str) -> Recipe:
    return load_recipe("demo", [*TINY, f"name={name}", *more])


def rows(name: str) -> list[dict[str, float]]:
    return [json.loads(line) for line in Path(f"runs/pretrain/{name}/seed0/metrics.jsonl").read_text().splitlines()]


def scores(name: str) -> dict[int, dict[str, float]]:
    """Return the scores of the log by step."""
    found = {row["step"]: {key: row[key] for key in row if key.startswith("monitor/")} for row in rows(name)}
    return {step: values for step, values in found.items() if values}


def weights(path: Path) -> tuple[object, ...]:
    """Return the state of a run, without times."""
    state = states.load(path)[0]
    return tuple((name, tensor) for name, tensor in states.tensors({k: state[k] for k in ("method", "optimizer")}))


def assert_equal(one: Sequence[object], other: Sequence[object]) -> None:
    assert len(one) == len(other)
    for (name, a), (same, b) in zip(one, other, strict=True):  # type: ignore[misc]
        assert name == same
        assert torch.equal(a, b), name


@pytest.mark.parametrize("method", ["intl", "byol"])
def test_scores_change_no_weight(method: str) -> None:
    more = [] if method == "intl" else ["method={name: byol}"]  # with a momentum encoder
    silent = weights(train.run(tiny("silent", "monitor.every=0", *more)))
    assert_equal(weights(train.run(tiny("scored", "monitor.every=1", *more))), silent)
    assert list(scores("scored")) == [6, 12]
    assert not scores("silent")


def test_a_resumed_run_has_the_same_weights_and_scores() -> None:
    whole = weights(train.run(tiny("whole", "monitor.every=1")))
    for step in (5, 6):  # within an epoch, and at its end
        recipe = tiny(f"broken{step}", "monitor.every=1")
        stop_after(recipe, step)
        assert_equal(weights(train.run(recipe)), whole)
        expected = scores("whole")
        assert scores(recipe.name) == {at: expected[at] for at in expected if at > step}


@pytest.mark.slow
@pytest.mark.long
def test_two_processes_have_the_same_weights_with_and_without_scores() -> None:
    found = []
    for name, every in (("silent", 0), ("scored", 1)):
        words = ["pretrain", "demo", *TINY, f"name={name}", f"monitor.every={every}", "--processes", "2"]
        done = subprocess.run(
            [sys.executable, "-m", "intl_bench", *words],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
        )
        assert done.returncode == 0, done.stderr
        found.append(weights(Path(f"runs/pretrain/{name}/seed0/checkpoint.pt")))
    assert_equal(*found)
    assert list(scores("scored")) == [6, 12]


def test_the_scores_are_those_of_independent_classifiers() -> None:
    draw = np.random.default_rng(0)
    labels, answers = draw.integers(0, 5, 120), draw.integers(0, 5, 60)
    centers = draw.normal(size=(5, 20))
    x, y = (centers[one] + draw.normal(size=(len(one), 20)) for one in (labels, answers))
    given = [torch.from_numpy(one) for one in (x, labels, y)]
    expected = []
    for one in y:
        votes = np.bincount(labels[np.argsort(np.linalg.norm(x - one, axis=1), kind="stable")[:5]], minlength=5)
        expected.append(int(votes.argmax()))
    assert nearest(*given).tolist() == expected
    for few in (120, 15):  # more images than features, and fewer
        mean, std = x[:few].mean(0), x[:few].std(0, ddof=1)
        # The penalty as further equations, and the offset as a further unknown without a penalty.
        design = np.hstack([(x[:few] - mean) / std, np.ones((few, 1))])
        design = np.vstack([design, np.eye(20, 21) * (monitor.RIDGE * few) ** 0.5])
        targets = np.vstack([np.eye(5)[labels[:few]], np.zeros((20, 5))])
        weights = np.linalg.lstsq(design, targets, rcond=None)[0]
        expected = (np.hstack([(y - mean) / std, np.ones((60, 1))]) @ weights).argmax(1).tolist()
        assert linear_probe(given[0][:few], given[1][:few], given[2], 5).tolist() == expected


def test_classes_take_turns_and_the_choice_is_fixed() -> None:
    labels = np.array([0] * 90 + [1] * 9 + [2] * 3)
    chosen = stratified(labels, [0, 1, 2])
    assert sorted(chosen.tolist()) == list(range(102))
    assert np.bincount(labels[chosen[:9]]).tolist() == [3, 3, 3]
    assert np.bincount(labels[chosen[:21]]).tolist() == [9, 9, 3]
    assert np.array_equal(chosen, stratified(labels, [0, 1, 2]))
    assert not np.isin(labels[stratified(labels, [0, 2])], 1).any()


@pytest.mark.parametrize(
    ("every", "epochs", "images", "expected"),
    [
        (None, 800, 2 * 1_281_000, (40, 3072)),  # ImageNet: 20 times, all images
        (None, 6, 2 * 8192, (2, 983)),  # the demo
        (None, 2, 2 * 192, (0, 0)),  # nothing that 1% of the time can pay
        (0, 800, 1e6, (0, 0)),
        (1, 2, 2 * 192, (1, 768)),  # as asked
    ],
)
def test_the_plan_is_one_percent(every: int | None, epochs: int, images: float, expected: tuple[int, int]) -> None:
    found = plan(every, epochs=epochs, images=images)
    assert (found.every, found.images) == expected
    if every is None and found.every:
        assert found.images * (epochs / found.every) <= 0.01 * 3 * images * epochs


def test_parts_return_to_their_own_mode() -> None:
    training = train_build(tiny("mode"))
    training.method.backbone.bn1.eval()
    before = [part.training for part in training.method.modules()]
    with evaluating(training.method):
        assert not any(part.training for part in training.method.modules())
    assert [part.training for part in training.method.modules()] == before


def _folder(root: Path, splits: Sequence[str], classes: int = 2) -> Path:
    from PIL import Image

    source = open_source(load_recipe("demo", ["data.size=48"]).data, "train")
    for split in splits:
        for number in range(48):
            path = root / split / f"class{number % classes}" / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(source.image(number)).save(path)
    return root


@pytest.mark.parametrize(("splits", "held"), [(["train", "val"], "test"), (["train"], "held-out")])
def test_an_image_folder_is_scored_with_or_without_test_images(
    splits: list[str], held: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = _folder(tmp_path / "photos", splits)
    words = ["data.kind=imagefolder", f"data.root={root}", "data.name=photos", "epochs=1", "monitor.every=1"]
    assert main(["pretrain", "demo", *TINY, *words, "name=own"]) == 0
    assert f"{held} images of 2 classes" in capsys.readouterr().err
    (values,) = scores("own").values()
    assert 0 <= values["monitor/knn"] <= 100
    assert values["monitor/rank"] >= 1


@pytest.mark.parametrize("splits", [["train", "val"], ["train"]])
def test_a_bad_image_gives_its_place_to_the_next_one_of_its_class(
    splits: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = _folder(tmp_path / "photos", splits)
    words = ["data.kind=imagefolder", f"data.root={root}", "data.name=photos", "epochs=1", "monitor.every=1"]
    training = train_build(tiny("whole", *words, "data.on_bad_image=skip"))
    source = open_source(training.recipe.data, "train")
    before = monitor._open(training, source, 32, 30)
    bad = stratified(source.labels, [0, 1])[2]
    for split in splits:
        (root / split / source.files[bad].decode()).write_bytes(b"no image")
    after = monitor._open(training, source, 32, 30)
    assert (len(after.labels), after.train, after.classes) == (30, 20, 2)
    assert torch.equal(after.labels, before.labels)
    end = 30 if len(splits) == 1 else 20
    of_class = torch.nonzero(before.labels[:end] == source.labels[bad]).flatten()
    others = torch.nonzero(before.labels[:end] != source.labels[bad]).flatten()
    assert torch.equal(after.pixels[others], before.pixels[others])
    # The bad image is the second one of its class.
    assert torch.equal(after.pixels[of_class[1:-1]], before.pixels[of_class[2:]])
    assert main(["pretrain", "demo", *TINY, *words, "data.on_bad_image=skip", "name=own"]) == 0
    assert "warning" not in capsys.readouterr().err
    assert scores("own")
    assert main(["pretrain", "demo", *TINY, *words, "name=strict", "batch_size=24"]) == 2
    assert "; data.on_bad_image=skip trains on the next image instead" in capsys.readouterr().err


def test_a_run_that_is_too_short_for_scores_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = "no scores, because the run is too short for them; monitor.every=1 scores each epoch"
    root = _folder(tmp_path / "photos", ["train", "val"])
    words = ["data.kind=imagefolder", f"data.root={root}", "data.name=photos", "epochs=1", "batch_size=24"]
    assert main(["pretrain", "demo", *TINY, *words, "name=own"]) == 0
    last = capsys.readouterr().err.splitlines()[-3:]
    assert last[0].startswith("finished own seed 0: loss ")
    assert last[1] == text
    # The next command works as it is printed.
    command = shlex.split(last[2].removeprefix("next: intl-bench "))
    assert command[2:] == ["--config", "default", "size=32"]
    assert main([*command, "epochs=1", "batch_size=8", "workers=0", "device=cpu"]) == 0
    assert "linear INTL photos seed 0: " in capsys.readouterr().out
    assert json.loads(Path("runs/pretrain/own/seed0/summary.json").read_text())["about_scores"] == text
    train.run(tiny("silent", "monitor.every=0"))
    assert "no scores" not in capsys.readouterr().err


def test_one_class_is_one_warning(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = _folder(tmp_path / "photos", ["train"], classes=1)
    words = ["data.kind=imagefolder", f"data.root={root}", "data.name=photos", "epochs=1", "monitor.every=1"]
    assert main(["pretrain", "demo", *TINY, *words, "name=own"]) == 0
    assert (
        capsys.readouterr().err.count("warning: no more scores during this run: the training images have 1 class") == 1
    )
    assert not scores("own")


def test_a_failure_ends_the_scores_and_not_the_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    silent = weights(train.run(tiny("silent", "monitor.every=0")))

    def fail(*_: object) -> None:
        raise MemoryError("no memory")

    monkeypatch.setattr(monitor, "linear_probe", fail)
    assert_equal(weights(train.run(tiny("failed", "monitor.every=1"))), silent)
    assert capsys.readouterr().err.count("warning: no more scores during this run: no memory") == 1


def test_the_monitor_does_not_change_the_identity() -> None:
    from pretrain.recipe import decides_the_same

    assert decides_the_same(tiny("a"), tiny("b", "monitor.every=3", "keep_every=2"))
    path = train.run(tiny("own", "epochs=1"))
    assert main(["pretrain", "demo", *TINY, "epochs=1", "name=own", "monitor.every=1"]) == 0  # not refused
    assert path.exists()
