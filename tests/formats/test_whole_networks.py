"""Whole networks (`torch.save(model)`) and settings objects: the tensors are read, and no class of the file is used."""

import argparse
import collections
import enum
import functools
import os
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from layout_cases import State, random_state
from torch import nn

from intl_bench.cli import main
from intl_bench.core.errors import InputError
from pretrain.backbone import Backbone, BackboneConfig
from transfer.convert import load_backbone
from transfer.formats.modules import Inert, dictionaries
from transfer.formats.safe_load import read

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def absent(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Any]]:
    """Return a function that defines a class in a package, which is gone when the file is read (`vanish`)."""
    names: list[str] = []

    def define(name: str, *bases: type, **body: Any) -> Any:
        *packages, kind = name.split(".")
        for depth in range(1, len(packages) + 1):
            module = ".".join(packages[:depth])
            if module not in sys.modules:
                sys.modules[module] = types.ModuleType(module)
                names.append(module)
        made = types.new_class(kind, bases, exec_body=lambda space: space.update(body, __module__=".".join(packages)))
        setattr(sys.modules[".".join(packages)], kind, made)
        return made

    def vanish() -> None:
        while names:
            sys.modules.pop(names.pop(), None)

    define.vanish = vanish  # type: ignore[attr-defined]
    yield define
    vanish()


def network(seed: int = 0) -> tuple[nn.Module, State]:
    """Return a small network with random weights, and these."""
    state = random_state("resnet10_narrow", seed)
    model = Backbone(BackboneConfig(name="resnet10_narrow"))
    model.load_state_dict(state)
    return model, state


def converts(path: Path, state: State, *options: str) -> None:
    """Run `intl-bench convert` and compare every tensor."""
    out = path.with_name("out.pth")
    assert main(["convert", str(path), str(out), "--to", "torchvision", *options]) == 0
    written = torch.load(out, weights_only=True)
    assert list(written) == list(state)
    assert all(torch.equal(written[key], value) for key, value in state.items())


def test_a_network_of_torchvision(tmp_path: Path, capsys: Capture) -> None:
    model = torchvision.models.resnet18()
    torch.save(model, tmp_path / "model.pth")
    state = {key: value for key, value in model.state_dict().items() if not key.startswith("fc.")}
    converts(tmp_path / "model.pth", state)
    assert "torchvision, resnet18 (imagenet stem) at the top of the file" in capsys.readouterr().out


@pytest.mark.parametrize("wrap", [lambda model: model, nn.DataParallel, lambda model: {"model": model, "epoch": 3}])
def test_a_network_of_an_absent_package(
    wrap: Callable[[nn.Module], Any], absent: Callable[..., Any], tmp_path: Path
) -> None:
    """Its classes, the functions in it, its optimizer and enumerations are stored by names that are not imported."""
    model, state = network()
    kind = absent("company.models.Net", nn.Module)
    absent("company.models.loss", object)
    color = enum.Enum("Color", "RED", module="company.models")
    sys.modules["company.models"].Color = color  # type: ignore[attr-defined]
    net = kind()
    net.backbone, net.head = model, nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    net.criterion, net.color, net.norm = (
        sys.modules["company.models"].loss,
        color.RED,
        functools.partial(nn.BatchNorm2d),
    )  # type: ignore[attr-defined]
    net.register_buffer("scratch", torch.ones(3), persistent=False)
    torch.save(wrap(net), tmp_path / "model.pth")
    absent.vanish()  # type: ignore[attr-defined]
    converts(tmp_path / "model.pth", state)
    assert "company" not in sys.modules
    content = read(tmp_path / "model.pth").data
    tensors = content.get("model", content)
    assert not any("scratch" in key for key in tensors)
    assert {key.removeprefix("module.") for key in tensors if "head" in key} == {"head.0.weight", "head.0.bias"}


def test_settings_do_not_stop_the_reading(absent: Callable[..., Any], tmp_path: Path) -> None:
    """Settings are namespaces, dictionaries, lists in slots, enumerations, optimizers, and networks."""
    model, state = network()
    config = absent("company.config.Config", dict)(lr=0.1)
    config.name = "mine"
    slots = absent("company.config.Slots", object, __slots__=("a",))()
    slots.a = 1
    mode = enum.Enum("Mode", "TRAIN", module="company.config")
    sys.modules["company.config"].Mode = mode  # type: ignore[attr-defined]
    settings = {
        "args": argparse.Namespace(lr=0.1, device=torch.device("cpu"), dtype=torch.float16),
        "space": types.SimpleNamespace(a=1),
        "config": config,
        "slots": slots,
        "mode": mode.TRAIN,
        "criterion": nn.CrossEntropyLoss(),
        "schedule": torch.optim.lr_scheduler.CosineAnnealingLR(torch.optim.SGD(model.parameters(), 0.1), 3),
        "counts": collections.Counter("aab"),
        "function": torch.nn.functional.relu,
        "named": absent("company.config.Pair", collections.namedtuple("Pair", "a b"))(1, 2),
    }
    for old in (False, True):
        checkpoint = {"state_dict": state, "hyper_parameters": settings | ({"criterion": 0} if old else {})}
        torch.save(checkpoint, tmp_path / "last.ckpt", _use_new_zipfile_serialization=not old)
        if old:
            absent.vanish()  # type: ignore[attr-defined]
        converts(tmp_path / "last.ckpt", state)


def test_a_checkpoint_of_lightly_train(absent: Callable[..., Any], tmp_path: Path, capsys: Capture) -> None:
    """`lightly_train/_checkpoint.py`: weights of DINO, and the exported networks as they are."""
    (model, teacher), (_, student) = network(0), network(1)
    wrapper = absent("lightly_train._models.torchvision.resnet.ResNetModelWrapper", nn.Module)()
    wrapper._features = model
    embedding = absent("lightly_train._models.embedding_model.EmbeddingModel", nn.Module)()
    embedding.wrapped_model = wrapper
    weights = {f"teacher_embedding_model.wrapped_model._features.{key}": value for key, value in teacher.items()}
    weights |= {f"student_embedding_model.wrapped_model._features.{key}": value for key, value in student.items()}
    models = {"model": model, "wrapped_model": wrapper, "embedding_model": embedding}
    facts = {"version": "0.14.1", "models": models, "normalize_args": {"mean": [0.5] * 3, "std": [0.5] * 3}}
    torch.save({"state_dict": weights, "lightly_train": facts, "epoch": 3}, tmp_path / "last.ckpt")
    absent.vanish()  # type: ignore[attr-defined]
    converts(tmp_path / "last.ckpt", teacher)
    output = capsys.readouterr().out
    assert "lightly-train:teacher, resnet10_narrow" in output
    assert "see lightly_train/normalize_args" in output
    assert "--from lightly-train:student reads state_dict/student_embedding_model" in output
    converts(tmp_path / "last.ckpt", student, "--from", "lightly-train:student")


def test_an_old_network_with_source_code_is_refused(tmp_path: Path) -> None:
    torch.save(nn.Linear(2, 2), tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    with pytest.raises(InputError, match=r"a whole network of PyTorch before 1\.6, with its source code; .*state_dict"):
        read(tmp_path / "old.pth")


class _Run:
    """Unpickled, it calls a function."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize("old", [False, True])
def test_calls_inside_a_network_are_refused(old: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    _, state = network()
    for call, name in (
        (_Run(os.system, "touch canary"), r"(posix|os)\.system"),
        (_Run(nn.Linear, 2, 2), r"torch\.\S+"),
    ):
        torch.save({"model": state, "settings": [call]}, "a.pth", _use_new_zipfile_serialization=not old)
        reason = rf"asks for {name}, which could run code; no code was run"
        with pytest.raises(InputError, match=f"{reason}|of PyTorch before 1.6" if old else reason):
            load_backbone("a.pth")
    assert not Path("canary").exists()


def module(parts: dict[Any, Any], **more: Any) -> Inert:
    found = Inert()
    found.__setstate__({"_parameters": {}, "_buffers": {}, "_modules": parts} | more)
    return found


def test_networks_that_grow_without_end_are_refused() -> None:
    """A network that contains itself, two parts in two parts in ..., long names; odd values are left out."""
    cycle = module({})
    cycle.state["_modules"]["again"] = cycle
    shared = module({})
    for _ in range(40):
        shared = module({"a": shared, "b": shared})
    long = module({"a" * 600: module({"b" * 600: module({})})})
    for network in (cycle, shared, long):
        with pytest.raises(ValueError, match="a network with more than 100000 parts, 100 levels or 1000 characters"):
            dictionaries({"model": network})
    odd = module({1: module({}), "x": 3}, _parameters={2: torch.ones(1), "w": torch.ones(1), "n": None}, _buffers=5)
    assert list(dictionaries(odd)) == ["w"]
    assert dictionaries(Inert()).__class__ is Inert


def test_too_many_names_are_refused(tmp_path: Path) -> None:
    classes = [types.new_class(f"C{n}", exec_body=lambda space: space.update(__module__="many")) for n in range(600)]
    sys.modules["many"] = types.ModuleType("many")
    try:
        for one in classes:
            setattr(sys.modules["many"], one.__name__, one)
        torch.save({"classes": classes}, tmp_path / "a.pth")
    finally:
        del sys.modules["many"]
    with pytest.raises(InputError, match="600 classes and functions; expected at most 500"):
        read(tmp_path / "a.pth")
