"""Test that compiled networks and recorded steps train as eager ones, or that one line says why they are not used."""

import copy
import dataclasses
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from authors import noise
from method_cases import CAPTURABLE, marked, mostly_slow
from recorded_twin import recorder
from tiny_runs import tiny, train_build
from torch import Tensor

from pretrain import accelerate, methods, states, train
from pretrain.recipe import load_recipe
from pretrain.train import Training

OTHERS = sorted({*methods.names()} - {*CAPTURABLE})


def steps(training: Training, numbers: range) -> list[dict[str, float]]:
    """Do one step per number, each on its own views and labels; return the metrics of the steps."""
    metrics = []
    for number in numbers:
        views = [noise(f"{number}/{i}", 32, 3, view.size, view.size) for i, view in enumerate(training.recipe.views)]
        labels = torch.arange(32) * (number + 1) % 10 if training.labeled else None
        metrics.append(training.optimize(views, labels).values())
    return metrics


def assert_same(one: Training, other: Training) -> None:
    for key, value in one.method.state_dict().items():
        assert torch.equal(value, other.method.state_dict()[key]), key
    for a, b in zip(one.optimizer.state.values(), other.optimizer.state.values(), strict=True):
        assert all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize("name", mostly_slow(CAPTURABLE, checked=("intl",)))
@pytest.mark.parametrize("more", ["", "optimizer=lars weight_decay=0.1", "optimizer=adamw precision=bf16"])
def test_recorded_is_eager_bit_for_bit(name: str, more: str) -> None:
    """Compare weights, momentum, running statistics, metrics of every step and monitored tensors, with a schedule."""
    eager, recorded = (train_build(tiny(name, *more.split())) for _ in range(2))
    recorded.recorded = accelerate.Recorded(recorded.work, recorded.optimizer, recorder(recorded))
    assert steps(eager, range(8)) == steps(recorded, range(8))
    assert_same(eager, recorded)
    assert torch.equal(eager.features, recorded.features)
    assert torch.equal(eager.method.embedding, recorded.method.embedding)


@pytest.mark.parametrize("more", [["method.momentum_target=true"], []], ids=["momentum target", "six views"])
def test_recorded_multi_crop(more: list[str]) -> None:
    recipe = tiny("intl", *more)
    recipe = recipe if more else dataclasses.replace(recipe, views=recipe.views[:1] * 6)
    eager, recorded = (train_build(recipe) for _ in range(2))
    recorded.recorded = accelerate.Recorded(recorded.work, recorded.optimizer, recorder(recorded))
    assert steps(eager, range(6)) == steps(recorded, range(6))
    assert_same(eager, recorded)


@pytest.mark.parametrize("name", ["cw_rgp", "shuffled_dbn"])
def test_the_recorder_detects_numbers_drawn_by_the_host(name: str) -> None:
    """These methods are not recorded, because a graph would repeat the permutations of one step."""
    eager, recorded = (train_build(tiny(name)) for _ in range(2))
    recorded.recorded = accelerate.Recorded(recorded.work, recorded.optimizer, recorder(recorded))
    assert steps(eager, range(6)) != steps(recorded, range(6))


def test_a_recorded_run_resumes_exactly() -> None:
    """After a resume, steps are eager until the next recording."""
    whole, first, second = (train_build(tiny("intl")) for _ in range(3))
    for training in (whole, first, second):
        training.recorded = accelerate.Recorded(training.work, training.optimizer, recorder(training))
    steps(whole, range(12))
    steps(first, range(5))
    second.restore(copy.deepcopy(first.state()))
    steps(second, range(5, 12))
    assert_same(whole, second)
    assert all(type(group["lr"]) is float for group in second.state()["optimizer"]["param_groups"])


def test_adam_of_any_checkpoint_can_be_recorded() -> None:
    """PyTorch cannot record Adam if a group is not `capturable`; groups are restored from a checkpoint."""
    asked, state = list[list[bool]](), dict[str, Any]()
    for _ in range(2):
        training = train_build(tiny("intl", "optimizer=adamw"))
        record = recorder(training)

        def noted(work: Callable[[], Tensor], training: Training = training, record: Any = record) -> Any:
            asked.append([group["capturable"] for group in training.optimizer.param_groups])
            return record(work)

        training.recorded = accelerate.Recorded(training.work, training.optimizer, noted)
        if state:
            training.restore(state)
        steps(training, range(training.step, training.step + 5))
        state = copy.deepcopy(training.state())
        assert not any(group["capturable"] for group in state["optimizer"]["param_groups"])
    assert asked == [[True] * len(asked[0])] * 2


def test_a_cpu_does_not_record_and_prints_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    training = train_build(tiny("intl", "graph=true"))
    accelerate.apply(training)
    assert training.recorded is None
    assert capsys.readouterr().err == "graph=true: not used here, only a GPU replays a recorded step\n"

    accelerate.apply(train_build(tiny("intl")))
    assert capsys.readouterr().err == ""


@pytest.mark.slow
def test_without_a_compiler_a_run_prints_a_line_and_continues(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "intl_bench", "pretrain", "demo", "device=cpu", "compile=true", "epochs=1"]
    command += ["data.size=64", "batch_size=32"]
    environment = os.environ | {"CXX": str(tmp_path / "none"), "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}
    run = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    (line,) = (line for line in run.stderr.splitlines() if "compile=true" in line)
    assert line.startswith("compile=true: not used here, PyTorch cannot compile on this machine (")
    assert (tmp_path / "runs/pretrain/demo/seed0/backbone.safetensors").exists()


@pytest.mark.parametrize("name", marked(OTHERS))
def test_a_gpu_does_not_record_steps_that_depend_on_the_host(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    training = train_build(tiny(name, "graph=true"))
    training.process = copy.copy(training.process)
    object.__setattr__(training.process, "device", torch.device("cuda", 0))
    accelerate.apply(training)
    assert training.recorded is None
    reason = f"a step of {training.display} depends on numbers that the host draws or counts"
    assert capsys.readouterr().err == f"graph=true: not used here, {reason}\n"


@pytest.mark.slow
def test_compiled_networks_train_alike_and_reproducibly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    small = ["device=cpu", "epochs=1", "warmup_epochs=0", "batch_size=16", "data.size=64", "base_lr=0.05"]

    def trained(name: str, *more: str) -> dict[str, torch.Tensor]:
        return states.load(train.run(load_recipe("demo", [*small, f"name={name}", *more])))[0]["method"]

    eager, compiled, again = trained("eager"), trained("one", "compile=true"), trained("two", "compile=true")
    assert compiled.keys() == eager.keys()
    for key, value in compiled.items():
        assert torch.equal(value, again[key]), key
        torch.testing.assert_close(value, eager[key], rtol=1e-2, atol=1e-3)
    assert any(not torch.equal(value, eager[key]) for key, value in compiled.items())  # it was compiled
    assert Path("runs/pretrain/one/seed0/backbone.safetensors").exists()
