"""`max_steps=` and `size=`: a run that ends earlier, and views of another size."""

from pathlib import Path

import pytest
from tiny_runs import tiny, train_build

from intl_bench.cli import main
from intl_bench.core.errors import InputError
from intl_bench.core.identity import identity
from pretrain import states, train
from pretrain.checkpoint import online
from pretrain.images.data import DataConfig, open_source
from pretrain.monitor import Monitor
from pretrain.recipe import load_recipe
from pretrain.schedules import warmup_cosine

QUICK = ["data.size=160", "batch_size=32", "projector.hidden=32", "projector.out=32", "log_every=1", "workers=0"]


def test_the_schedule_fits_into_the_steps() -> None:
    recipe = tiny("intl", "epochs=100", "warmup_epochs=3", "max_steps=200")
    whole = tiny("intl", "epochs=100", "warmup_epochs=3")
    assert (whole.total_steps(50), whole.warmup_steps(50)) == (5000, 150)
    assert (recipe.total_steps(50), recipe.warmup_steps(50)) == (200, 20)  # at most a tenth
    assert (recipe.total_steps(2), recipe.warmup_steps(2)) == (200, 6)  # 100 epochs of 2 steps are 200
    assert (recipe.total_steps(1), recipe.warmup_steps(1)) == (100, 3)  # the epochs end first
    rates = [
        warmup_cosine(step, total=200, warmup=20, base=1.0, final_ratio=recipe.final_lr_ratio) for step in range(200)
    ]
    assert max(rates) == rates[19] == 1.0
    assert rates[-1] == pytest.approx(recipe.final_lr_ratio)


def test_a_shortened_run_is_complete(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["pretrain", "demo", *QUICK, "data.limit=100", "max_steps=7"]
    assert main([*words, "name=once"]) == 0
    once, _ = states.load(Path("runs/pretrain/once/seed0/checkpoint.pt"))
    made = online(Path("once"), "", once)
    assert (once["step"], once["steps_per_epoch"], once["details"]["images"]) == (7, 3, 100)
    assert (made.progress, made.epoch, made.unfinished) == ("complete", 2, False)
    assert made.pretraining()["settings"]["max_steps"] == 7

    assert main([*words, "name=once"]) == 0
    assert "already finished; nothing to train" in capsys.readouterr().err


def test_a_shortened_run_is_scored_as_often_as_one_of_its_length() -> None:
    short, whole = (train_build(tiny("intl", *words)) for words in (["epochs=100", "max_steps=23"], ["epochs=4"]))
    source = open_source(DataConfig(kind="shapes", size=100), "train")
    assert (short.steps_per_epoch, short.total_steps, short.epochs) == (6, 23, 4)
    assert (whole.total_steps, whole.epochs) == (24, 4)
    assert Monitor(short, source).plan == Monitor(whole, source).plan


def test_other_steps_are_another_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "max_steps" not in identity(tiny("intl"))
    monkeypatch.chdir(tmp_path)
    words = [*QUICK, "name=a", "epochs=1"]
    train.run(load_recipe("demo", [*words, "max_steps=2"]))
    with pytest.raises(InputError, match=r"belongs to another configuration \(max_steps: 2 -> 3\)"):
        train.run(load_recipe("demo", [*words, "max_steps=3"]))


def test_one_size_for_all_views() -> None:
    recipe = load_recipe("demo", ["size=48"])
    assert [view.size for view in recipe.views] == [48, 48]
    assert [view.solarize_p for view in recipe.views] == [0.0, 0.2]
    assert recipe.size is None
    assert load_recipe("demo", ["size=32"]) == load_recipe("demo")
    assert identity(load_recipe("demo", ["size=32"])) == identity(load_recipe("demo"))
    crops = load_recipe("imagenet_r50_intl_multicrop_100ep", ["size=112"])
    assert [view.size for view in crops.views] == [112, 112, 96, 80, 64, 48]  # half of 224, ..., 96
    with pytest.raises(InputError, match="size=0"):
        load_recipe("demo", ["size=0"])
