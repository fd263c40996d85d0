"""Training states: what is kept, what is refused, and what a run does with a damaged one."""

import math
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from stopped_run import stop_after
from torch import nn

from intl_bench import cli
from intl_bench.core import distributed, files
from intl_bench.core.errors import DamagedError, DivergedError, InputError
from pretrain import states, train
from pretrain.recipe import Recipe, load_recipe
from transfer.convert import read

pytestmark = pytest.mark.slow  # many short trainings, a minute together

TINY = ["data.size=192", "batch_size=32", "epochs=1", "projector.hidden=32", "projector.out=32", "workers=0"]
TINY += ["spectrum_every=0", "log_every=1"]


@pytest.fixture(autouse=True)
def _in_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def tiny(*overrides: str) -> Recipe:
    return load_recipe("demo", [*TINY, *overrides])


def weights(path: Path) -> dict[str, torch.Tensor]:
    return states.load(path)[0]["method"]


def same(a: Any, b: Any) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def flip(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 4
    path.write_bytes(content)


DAMAGE: dict[str, Callable[[Path], object]] = {
    "flipped bit": lambda path: flip(path, path.stat().st_size // 2),
    "flipped bit in the digest": lambda path: flip(path, -1),
    "flipped bit before the digest": lambda path: flip(path, -66),
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-100]),
    "no digest": lambda path: path.write_bytes(path.read_bytes()[:-82]),
    "empty": lambda path: path.write_bytes(b""),
    "not finite": lambda path: write_not_finite(path),
}


def write_not_finite(path: Path) -> None:
    state, _ = states.load(path)
    state["method"]["backbone.bn1.running_var"][0] = math.inf
    files.write_digested(path, lambda stream: torch.save(state, stream))


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_state_gives_way_to_the_one_before(damage: str, capsys: pytest.CaptureFixture[str]) -> None:
    whole = weights(train.run(tiny()))
    recipe = tiny("name=broken")
    for step in (1, 2, 3):
        stop_after(recipe, step)
    assert sorted(path.name for path in recipe.folder.iterdir()) == [
        "checkpoint.1.pt",
        "checkpoint.2.pt",
        "checkpoint.pt",
    ]
    DAMAGE[damage](recipe.checkpoint)
    capsys.readouterr()
    assert same(weights(train.run(recipe)), whole)
    warnings = [line for line in capsys.readouterr().err.splitlines() if "continuing from" in line]
    assert len(warnings) == 1
    assert f"continuing from the state before, {files.earlier(recipe.checkpoint, 1)}" in warnings[0]
    assert (recipe.folder / "checkpoint.pt.damaged").exists()


def test_a_missing_state_gives_way_to_the_one_before(capsys: pytest.CaptureFixture[str]) -> None:
    """Without hard links, the newest state is missing for a moment."""
    recipe = tiny()
    for step in (1, 2):
        stop_after(recipe, step)
    recipe.checkpoint.unlink()
    state = states.load_newest(recipe.checkpoint)
    assert state is not None
    assert state["step"] == 1
    assert "checkpoint.pt is missing; continuing from the state before" in capsys.readouterr().err


def test_a_run_whose_states_are_all_damaged_says_so() -> None:
    recipe = tiny()
    for step in (1, 2, 3):
        stop_after(recipe, step)
    for path in recipe.folder.glob("*.pt"):
        flip(path, 1000)
    with pytest.raises(DamagedError, match=r"checkpoint\.pt: damaged.*no earlier state is intact; add --fresh"):
        train.run(recipe)
    assert len(list(recipe.folder.glob("*.pt"))) == 3


def test_a_state_of_a_later_version_is_not_replaced_by_an_older_one() -> None:
    recipe = tiny()
    for step in (1, 2):
        stop_after(recipe, step)
    state, _ = states.load(recipe.checkpoint)
    files.write_digested(recipe.checkpoint, lambda stream: torch.save({**state, "format": 99}, stream))
    with pytest.raises(InputError, match="found format 99; expected 1 or 2 or 3 or 4; update intl-bench"):
        train.run(recipe)


@pytest.mark.parametrize("file", ["method.backbone.bn1.running_mean", "optimizer.state.0.momentum_buffer"])
def test_a_state_with_numbers_that_are_not_finite_is_never_written(file: str) -> None:
    recipe = tiny()
    stop_after(recipe, 2)
    state, digest = states.load(recipe.checkpoint)
    tensor = dict(states.tensors(state))[file]
    tensor.view(-1)[-1] = math.nan
    with pytest.raises(DivergedError, match=f"diverged by step 2; it is not saved in .*: {file} is not finite"):
        states.save(recipe.checkpoint, state)
    assert states.load(recipe.checkpoint)[1] == digest


@pytest.mark.parametrize("step", [1, 4, 6])
@pytest.mark.parametrize("what", ["gradient", "buffer", "momentum"])
def test_a_number_that_is_not_finite_in_any_step_leaves_a_run_that_goes_on(
    what: str, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The recipe has six steps, so a fault in the last one is found before there is a result."""
    whole = weights(train.run(tiny()))
    recipe, optimize = tiny("name=broken", "save_minutes=0"), train.Training.optimize

    def broken(self: train.Training, *args: Any, **named: Any) -> Any:
        weight = self.method.backbone.conv1.weight
        hooks = []
        if self.step == step - 1:
            if what == "gradient":
                hooks.append(weight.register_hook(lambda gradient: gradient * math.inf))
            elif what == "buffer":
                self.method.backbone.bn1.running_var[0] = math.nan
            else:
                self.optimizer.state[weight]["momentum_buffer"][0] = math.nan
        found = optimize(self, *args, **named)
        for hook in hooks:
            hook.remove()
        return found

    monkeypatch.setattr(train.Training, "optimize", broken)
    with pytest.raises(DivergedError):
        train.run(recipe)
    assert not (recipe.folder / "backbone.safetensors").exists()
    monkeypatch.undo()
    assert same(weights(train.run(recipe)), whole)


def test_a_gradient_that_is_not_finite_changes_no_weight() -> None:
    recipe = tiny()
    process = distributed.Process(rank=0, world_size=1, device=torch.device("cpu"))
    for optimizer in ("sgd", "lars", "adamw"):
        training = train.build_training(load_recipe("demo", [*TINY, f"optimizer={optimizer}"]), process, 192, 10)
        views = [torch.randn(32, 3, 32, 32) for _ in recipe.views]
        training.optimize(views)
        before = {name: value.clone() for name, value in states.tensors(training.optimizer.state_dict())}
        before |= {name: value.detach().clone() for name, value in training.method.named_parameters()}
        hook = training.method.backbone.conv1.weight.register_hook(lambda gradient: gradient * math.nan)
        training.optimize(views)
        hook.remove()
        after = dict(states.tensors(training.optimizer.state_dict())) | dict(training.method.named_parameters())
        assert all(torch.equal(before[name], after[name]) for name in before)


FORGED: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "step beyond the end": (lambda s: s.update(step=10**6), "step is 1000000; expected a number from 0 to 6"),
    "negative step": (lambda s: s.update(step=-1), "step is -1"),
    "no step": (lambda s: s.pop("step"), "step is missing; expected int"),
    "step as text": (lambda s: s.update(step="3"), "step is str; expected int"),
    "step as a truth": (lambda s: s.update(step=True), "step is bool; expected int"),
    "no steps per epoch": (lambda s: s.update(steps_per_epoch=0), "step is 3; expected a number from 0 to 0"),
    "no name": (lambda s: s.update(display=None), "display is NoneType; expected str"),
    "no recipe": (lambda s: s.update(config=[1]), "config is list; expected dict"),
    "epochs as text": (lambda s: s["config"].update(epochs="1"), "step is 3; expected a number from 0 to 0"),
    "no seconds": (lambda s: s["details"].pop("seconds"), "details.seconds is None"),
    "bad files": (lambda s: s["details"].update(bad_files=[1]), "details.bad_files"),
    "weights as a list": (lambda s: s.update(method=[1]), "method is list"),
    "a weight as text": (lambda s: s["method"].update({"backbone.bn1.weight": "x"}), "another architecture"),
    "a weight less": (lambda s: s["method"].pop("backbone.bn1.weight"), "another architecture"),
    "a sparse weight": (
        lambda s: s["method"].update({"backbone.fc": torch.eye(3).to_sparse()}),
        "method.backbone.fc is not a dense tensor",
    ),
    "no optimizer": (lambda s: s.update(optimizer={}), "its optimizer has other parameters"),
    "an expanded momentum of another shape": (
        lambda s: s["optimizer"]["state"][0].update(momentum_buffer=torch.zeros(1).expand(10**6)),
        "the state of parameter 0 of its optimizer is .*1000000.*; expected",
    ),
    "a momentum of another type": (
        lambda s: s["optimizer"]["state"][0].update(
            momentum_buffer=s["optimizer"]["state"][0]["momentum_buffer"].double()
        ),
        "torch.float64",
    ),
    "a momentum more": (lambda s: s["optimizer"]["state"].update({999: {}}), "its optimizer has other parameters"),
    "inputs of another kind": (lambda s: s.update(inputs={"x": "y"}), "not those of this version"),
    "an input as a number": (lambda s: s.update(inputs={"data": 5}), "inputs is {'data': 5}; expected digests"),
    "a format as a tensor": (lambda s: s.update(format=torch.ones(2)), "found format tensor"),
    "the state of a task": (lambda s: s.pop("method"), "method is missing; expected dict"),
    "a mark as a list": (lambda s: s.update(log=[1]), "log is .1.; expected numbers of bytes and crc32"),
    "a mark of texts": (lambda s: s.update(log={"bytes": "a", "crc32": 1}), "log is {'bytes': 'a'"),
    "endless seconds": (lambda s: s["details"].update(seconds=10**400), "details holds more than plain values"),
    "infinite seconds": (lambda s: s["details"].update(seconds=math.inf), "details holds more than plain values"),
    "a tensor among details": (lambda s: s["details"].update(images=torch.ones(2)), "details holds more than"),
    "keys of several types": (lambda s: s["details"].update({5: 5}), "details holds more than plain values"),
    "half a character": (lambda s: s.update(display="\ud800"), "display holds more than plain values"),
    "an empty name": (lambda s: s.update(display=""), "display is empty"),
    "weights as truths": (
        lambda s: s["method"].update({"backbone.bn1.weight": s["method"]["backbone.bn1.weight"].bool()}),
        "backbone.bn1.weight has torch.bool, expected torch.float32",
    ),
}


@pytest.mark.parametrize("name", FORGED)
def test_a_forged_state_ends_in_one_line(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The digest of a forged file is right, so every field is checked."""
    change, message = FORGED[name]
    recipe = tiny()
    stop_after(recipe, 3)
    state, _ = states.load(recipe.checkpoint)
    change(state)
    files.write_digested(recipe.checkpoint, lambda stream: torch.save(state, stream))
    assert cli.main(["pretrain", "demo", *TINY]) == 2
    *_, line = capsys.readouterr().err.splitlines()
    assert re.match(f"intl-bench: .*{message}", line)
    # A command that reads only the backbone needs fewer fields.
    for command in ("knn", "spectrum"):
        code = cli.main([command, str(recipe.checkpoint), "data.size=40"])
        error = capsys.readouterr().err
        assert (code == 0 and "bug" not in error) or (code == 2 and re.search(r"intl-bench: .*checkpoint\.pt: ", error))


def test_the_memory_of_a_restored_optimizer_is_its_own() -> None:
    """Fused kernels trust shapes and strides. A file may hold a tensor whose numbers are all one number in memory."""
    layer = nn.Linear(3, 2)
    stored = {
        "state": {0: {"momentum_buffer": torch.ones(1).expand(2, 3)}},
        "param_groups": [{"lr": 1e9, "nesterov": True}],
    }
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1, momentum=0.9, fused=True)
    states.restore_optimizer(optimizer, stored, Path("x.pt"))
    buffer = optimizer.state[layer.weight]["momentum_buffer"]
    assert buffer.stride() == layer.weight.stride()
    assert torch.equal(buffer, torch.ones(2, 3))
    assert (optimizer.param_groups[0]["lr"], optimizer.param_groups[0]["nesterov"]) == (0.1, False)
    layer(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    assert layer.bias in optimizer.state


def test_a_disk_without_room_is_refused_at_the_start(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**6, 10**6 - 9, 9))
    assert cli.main(["pretrain", "demo", *TINY]) == 4
    assert "9 B are free; expected" in capsys.readouterr().err
    assert not list(Path().rglob("*.pt"))


def test_a_fresh_run_that_is_refused_keeps_the_old_one(monkeypatch: pytest.MonkeyPatch) -> None:
    train.run(tiny())
    before = {path: path.read_bytes() for path in Path("runs").rglob("*") if path.is_file()}
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**6, 10**6 - 9, 9))
    assert cli.main(["pretrain", "demo", *TINY, "projector.hidden=4096", "--fresh"]) == 4
    assert before == {path: path.read_bytes() for path in Path("runs").rglob("*") if path.is_file()}


def test_a_damaged_export_is_written_again(capsys: pytest.CaptureFixture[str]) -> None:
    recipe = tiny()
    train.run(recipe)
    exported = recipe.folder / "backbone.safetensors"
    before = exported.read_bytes()
    for damage in (lambda: flip(exported, 5000), exported.unlink, lambda: exported.write_bytes(before[:300])):
        damage()
        train.run(recipe)
        assert exported.read_bytes() == before


def test_an_export_tells_how_not_where() -> None:
    """The bytes of two runs on two machines are equal, and hold no path of a user."""
    one, two = tiny("name=one"), tiny("name=one", "workers=1", "device=cpu", "save_minutes=3")
    found = []
    for recipe in (one, two):
        train.run(recipe, fresh=True)
        found.append((recipe.folder / "backbone.safetensors").read_bytes())
    assert found[0] == found[1]
    assert read(one.folder / "backbone.safetensors").pretraining() == read(one.checkpoint).pretraining()
    for name in (b"workers", b"root", b"device", b"seconds", b"bad_files"):
        assert name not in found[0]


def test_fresh_empties_a_folder_behind_a_link(tmp_path: Path) -> None:
    recipe = tiny()
    (tmp_path / "elsewhere").mkdir()
    recipe.folder.parent.mkdir(parents=True)
    recipe.folder.symlink_to(tmp_path / "elsewhere")
    train.run(recipe)
    (recipe.folder / "note").touch()
    train.run(recipe, fresh=True)
    assert recipe.folder.is_symlink()
    assert not (recipe.folder / "note").exists()
    assert not files.earlier(recipe.checkpoint, 1).exists()


def write_as_before(path: Path, state: dict[str, Any]) -> None:
    """Write a file as earlier versions did, with its digest in NAME.sha256."""
    torch.save(state, path)
    path.with_name(f"{path.name}.sha256").write_text(f"{files.sha256(path)}  {path.name}\n")


@pytest.mark.parametrize("number", [1, 2, 3])
def test_a_state_of_each_earlier_format_resumes(number: int, capsys: pytest.CaptureFixture[str]) -> None:
    momentum = "method={name: intl, momentum_target: true}"
    whole = weights(train.run(tiny(momentum)))
    recipe = tiny(momentum, "name=earlier")
    stop_after(recipe, 3)
    state, _ = states.load(recipe.checkpoint)
    del state["log"]
    if number < 3:
        state["method"] = states.earlier_names(state["method"])
        assert any(name.startswith("target.") for name in state["method"])
    if number < 2:
        del state["inputs"]
    write_as_before(recipe.checkpoint, {**state, "format": number})
    assert same(weights(train.run(recipe)), whole)
    assert not recipe.checkpoint.with_name("checkpoint.pt.sha256").exists()
    assert "continuing" not in capsys.readouterr().err
    before = files.earlier(recipe.checkpoint, 1)  # its digest has moved with it
    flip(before, 3000)
    with pytest.raises(DamagedError):
        states.load(before)


def test_a_damaged_state_of_an_earlier_format_is_noticed() -> None:
    recipe = tiny()
    stop_after(recipe, 3)
    state, _ = states.load(recipe.checkpoint)
    write_as_before(recipe.checkpoint, {**state, "format": 3})
    flip(recipe.checkpoint, 3000)
    with pytest.raises(DamagedError, match="its content does not match its SHA-256"):
        train.run(recipe)


OWN = {"model": dict, "optimizer": dict}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"step": 7}, "step is 7; expected 0 to 6"),
        ({"step": -1}, "step is -1; expected 0 to 6"),
        ({"step": 1.0}, "step is float; expected int"),
        ({"model": [1]}, "model is list; expected dict"),
        ({"identity": "x"}, "identity is str; expected dict"),
        ({"identity": {"lr": 2}}, r"belongs to another run \(lr: 2 -> 1\); add --fresh"),
    ],
)
def test_the_state_of_a_task_is_checked(change: dict[str, Any], message: str) -> None:
    path, state = Path("state.pt"), {"identity": {"lr": 1}, "model": {}, "optimizer": {}, "step": 6}
    assert states.load_own(path, {"lr": 1}, OWN, position="step", most=6) is None
    states.save(path, state)
    assert states.load_own(path, {"lr": 1}, OWN, position="step", most=6) is not None
    states.save(path, state | change)
    with pytest.raises(InputError, match=message):
        states.load_own(path, {"lr": 1}, OWN, position="step", most=6)
