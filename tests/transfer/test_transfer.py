"""Transfer to other data sets: scores by their definitions, the choice without test images, few-shot episodes."""

from pathlib import Path

import numpy as np
import pytest
import torch
from set_layouts import LAYOUTS
from test_logistic import newton
from transfer_cases import CPU, make_checkpoint, make_folder, packaged

from intl_bench import runs
from intl_bench.cli import main
from intl_bench.core.errors import InputError
from intl_bench.core.identity import identity
from intl_bench.records import RecordStore
from pretrain.images.data import normalization, open_source
from transfer import few_shot, find_task
from transfer.features import extract
from transfer.scores import mean_average_precision, mean_per_class
from transfer.task import Outcome
from transfer.transfer import TransferConfig, _validation

SMALL = ["resize=16", "crop=16", "workers=0", "device=cpu"]
TASK = find_task("transfer")


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def score(name: str, *overrides: str) -> Outcome:
    checkpoint = make_checkpoint()
    config = packaged("transfer", name, checkpoint, [*SMALL, *overrides])
    return TASK.run(checkpoint, config, 0, folder=Path("work"))


def eleven_points(scores: np.ndarray, present: np.ndarray) -> float:
    """The 11-point average precision by its definition; images of equal scores count together."""
    points = []
    for threshold in np.unique(scores):
        chosen = scores >= threshold
        points.append((present[chosen].sum() / present.sum(), present[chosen].mean()))
    return float(np.mean([max(p for r, p in points if r >= level / 10 - 1e-12) for level in range(11)]))


@pytest.mark.parametrize("levels", [3, 1000])
def test_mean_average_precision_is_that_of_the_definition(levels: int) -> None:
    rng = np.random.default_rng(levels)
    scores, present = rng.integers(levels, size=(60, 5)) / levels, rng.random((60, 5)) < [0.5, 0.2, 0.05, 1.0, 0.0]
    expected = 100 * np.mean([eleven_points(scores[:, k], present[:, k]) for k in range(5) if present[:, k].any()])
    found = mean_average_precision(torch.from_numpy(scores), torch.from_numpy(present))
    assert found == pytest.approx(expected, abs=1e-9)
    order = rng.permutation(60)
    assert mean_average_precision(torch.from_numpy(scores[order]), torch.from_numpy(present[order])) == found


def test_the_mean_per_class_counts_every_class_once() -> None:
    truth = torch.tensor([0, 0, 0, 0, 2, 2, 3])
    predicted = torch.tensor([0, 0, 0, 1, 2, 0, 0])
    assert mean_per_class(predicted, truth) == pytest.approx(100 * (0.75 + 0.5 + 0) / 3)


def test_few_shot_episodes_are_those_of_the_definition() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(6, size=300)
    labels[:5] = 6  # a class with too few images
    features = rng.normal(size=(300, 8)) + 0.7 * rng.normal(size=(7, 8))[labels]
    values = torch.from_numpy(features).float()
    settings = {"ways": 5, "shots": 5, "queries": 15, "seed": 3}
    mean, half = few_shot.accuracy(values, labels, episodes=40, **settings)
    singles = [few_shot.accuracy(values, labels, episodes=n, **settings)[0] * n for n in range(1, 41)]
    each = np.diff([0, *singles])  # the accuracies of single episodes
    assert mean == pytest.approx(each.mean())
    assert half == pytest.approx(1.96 * each.std() / 40**0.5, rel=1e-6)
    assert np.allclose(each * 75 / 100, np.round(each * 75 / 100), atol=1e-6)  # 75 queries
    assert 40 < mean < 90
    apart = torch.from_numpy(np.eye(7)[labels]).float()
    assert few_shot.accuracy(apart, labels, episodes=10, **settings) == (100, 0)
    chance, _ = few_shot.accuracy(
        torch.randn(300, 8, generator=torch.Generator().manual_seed(0)), labels, episodes=200, **settings
    )
    assert 17 < chance < 23


def test_the_score_is_that_of_an_independent_fit_with_the_chosen_decay(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "images", classes=4, train=15, test=10)
    with pytest.raises(InputError, match=r"classes with 20 images .*: 4; expected at least 5 \(ways=\); set ways=4, "):
        score("imagefolder", f"data.root={root}")
    outcome = score("imagefolder", f"data.root={root}", "decays=12", "tolerance=1e-6", "ways=4", "episodes=2")
    config = packaged("transfer", "imagefolder", make_checkpoint(), [*SMALL, f"data.root={root}"])
    train, test = (open_source(config.data, split) for split in ("train", "test"))
    look = {"normalization": normalization(config.data), "resize": 16, "crop": 16, "interpolation": "bicubic"}
    features, asked = (
        extract(make_checkpoint(), source, process=CPU, workers=0, **look).features.double().numpy()
        for source in (train, test)
    )
    weights = newton(features, np.eye(4)[train.labels], outcome.details["weight_decay"], several=False)
    right = (asked @ weights[:, :-1].T + weights[:, -1]).argmax(1) == test.labels
    assert outcome.metrics["top1"] == pytest.approx(100 * right.mean(), abs=2.6)  # one of 40 images
    assert outcome.metrics["mean_per_class"] == pytest.approx(outcome.metrics["top1"])
    assert outcome.details["validation_images"] == 12
    assert len(outcome.details["validation_scores"]) == 12
    assert outcome.details["validation_score"] == pytest.approx(max(outcome.details["validation_scores"]), abs=1e-3)
    assert 0 <= outcome.metrics["few_shot"] <= 100


def test_the_test_images_do_not_choose(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "images", classes=3, train=15, test=4)
    before = score("imagefolder", f"data.root={root}", "decays=9", "episodes=0")
    names = sorted((root / "val").iterdir())
    for number, name in enumerate([names[1], names[2], names[0]]):
        name.rename(root / "val" / f"moved{number}")
    for name, number in zip(names, range(3), strict=True):
        (root / "val" / f"moved{number}").rename(name)
    after = score("imagefolder", f"data.root={root}", "decays=9", "episodes=0")
    chosen = ("weight_decay", "validation_scores", "steps")
    assert [before.details[key] for key in chosen] == [after.details[key] for key in chosen]
    assert before.metrics["top1"] != after.metrics["top1"]


def test_several_classes_are_scored_by_mean_average_precision(tmp_path: Path) -> None:
    LAYOUTS["voc07"](tmp_path / "voc")
    outcome = score("voc07", "data.kind=voc07", "data.name=tiny", f"data.root={tmp_path / 'voc'}", "decays=3")
    assert [*outcome.metrics] == ["mAP"]
    assert outcome.details["classes"] == 20
    assert outcome.details["validation_images"] == 2


def test_a_class_without_an_image_to_fit_is_refused() -> None:
    class Source:
        validation = None
        labels = np.array([0] * 9 + [1])

        def __len__(self) -> int:
            return len(self.labels)

    with pytest.raises(InputError, match=r"val_share=0\.2: class number 1 has a single training image"):
        _validation(Source(), TransferConfig())  # type: ignore[arg-type]


def test_validation_images_of_a_data_set_choose(tmp_path: Path) -> None:
    LAYOUTS["dtd"](tmp_path / "dtd")
    words = ["data.kind=dtd", "data.name=tiny", f"data.root={tmp_path / 'dtd'}", "val_share=0.9"]
    outcome = score("default", *words, "episodes=0")
    assert outcome.details["validation_images"] == 2
    assert "few_shot" not in outcome.metrics
    one, other = (
        identity(packaged("transfer", "default", None, ["data.kind=dtd", f"val_share={share}"])) for share in (0.2, 0.3)
    )
    assert one == other


@pytest.mark.parametrize("setting", ["val_share=0.3", "decays=44", "interpolation=bilinear", "metric=mean_per_class"])
def test_another_protocol_is_another_evaluation(setting: str) -> None:
    plain, other = (packaged("transfer", "default", None, changes) for changes in ([], [setting]))
    assert identity(plain) != identity(other)
    assert TASK.protocol(plain) != TASK.protocol(other)


def test_the_metric_must_fit_the_images() -> None:
    with pytest.raises(InputError, match=r"metric=mAP: data\.kind=imagefolder is scored by top1 or mean_per_class"):
        packaged("transfer", "default", None, ["metric=mAP"])
    with pytest.raises(InputError, match=r"metric=top1: data\.kind=voc07 is scored by mAP"):
        packaged("transfer", "default", None, ["data.kind=voc07"])


def test_the_command_finds_the_kind_and_the_protocol(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for kind in ("pets", "dtd"):
        LAYOUTS[kind](tmp_path / "sets")
    plan = runs.TaskRun(task="transfer", checkpoint=make_checkpoint(), overrides=[f"data.root={tmp_path}/sets"])
    with pytest.raises(InputError, match=r"holds dtd, pets; choose one with data\.kind=dtd"):
        runs.prepare(plan)
    plan = runs.TaskRun(task="transfer", checkpoint=make_checkpoint(), overrides=["data.root=sets/oxford-iiit-pet"])
    _, _, config = runs.prepare(plan)
    assert (config.data.kind, config.metric) == ("pets", "mean_per_class")
    root = make_folder(tmp_path / "own", classes=5, train=12, test=8)
    words = ["transfer", "--init", "random", f"data.root={root}", "decays=2", "episodes=3", "size=16", "workers=0"]
    assert main(["pretrain", "demo", "max_steps=1", "data.size=64", "batch_size=32", "device=cpu"]) == 0
    words.insert(1, "runs/pretrain/demo/seed0/checkpoint.pt")
    assert main([*words, "--dry-run", "--verbose"]) == 0
    plan_text = capsys.readouterr().out
    assert "60 training images and 40 test images of 5 classes" in plan_text
    assert "principal axes" in plan_text
    assert not Path("results").exists()
    assert main(words) == 0
    assert "few_shot" in capsys.readouterr().out
    (record,) = [one for one in RecordStore(Path("results/records")).load() if one.task == "transfer"]
    assert record.dataset == "own"
    assert record.metrics.keys() == {"top1", "mean_per_class", "few_shot", "few_shot_ci95"}
    for plan in ([], ["--dry-run"]):
        assert main([*words, "ways=6", *plan]) == 2
        assert "classes with 20 images (shots=5 + queries=15): 5; expected at least 6" in capsys.readouterr().err
    missing = ["transfer", words[1], "data.root=nofolder"]
    assert main(missing) == 2
    assert "data.root=nofolder: no such file or folder" in capsys.readouterr().err
    assert main([*words, "episodes=1"]) == 0
    (one,) = [
        one for one in RecordStore(Path("results/records")).load() if one.key != record.key and one.task == "transfer"
    ]
    assert one.metrics.keys() == {"top1", "mean_per_class", "few_shot"}
    assert record.protocol["few_shot"] == "5-way 5-shot, 15 queries, 3 episodes, seed 0"
