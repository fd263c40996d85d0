"""A tiny run for tests of methods: images of 8 x 8 pixels, a backbone of two layers, batches of 32."""

import dataclasses
import importlib.util
import inspect
from collections.abc import Callable, Container, Iterable
from typing import Any

import authors
import pytest
import torch
from torch import nn

from pretrain import methods
from pretrain.methods import Method, Setup
from pretrain.projector import ProjectorConfig

BATCH, SIZE = 32, 8


def method_class(name: str) -> type[Method]:
    """Return the class of a method: the return type of `build`."""
    found: type[Method] = inspect.get_annotations(methods.find(name).build, eval_str=True)["return"]
    return found


LIGHTLY = [name for name in methods.names() if hasattr(methods.find(name), "lightly")]
CAPTURABLE = [name for name in methods.names() if method_class(name).capturable]

needs_lightly = pytest.mark.skipif(importlib.util.find_spec("lightly") is None, reason="lightly is not installed")


def marked(names: Iterable[str]) -> list[Any]:
    """Return parameters of a test for methods; those that need lightly are skipped if it is not installed."""
    return [pytest.param(name, marks=[needs_lightly] * (name in LIGHTLY)) for name in names]


def mostly_slow(names: Iterable[str], checked: Container[str]) -> list[Any]:
    """Return parameters of a test for methods; all are slow except those in `checked`, which `make check` also runs."""
    marks = {name: [pytest.mark.slow] * (name not in checked) for name in names}
    return [pytest.param(*p.values, marks=[*p.marks, *marks[p.values[0]]]) for p in marked(marks)]


class TinyBackbone(nn.Sequential):
    """Images (N, 3, H, W) -> features (N, 24)."""

    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(3, 16, 3, bias=False), nn.BatchNorm2d(16), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten()
        )
        self.append(nn.Linear(64, 24))
        self.num_features = 24


@dataclasses.dataclass(frozen=True, kw_only=True)
class Given(Setup):
    """A setup with a given backbone and projector."""

    encoder: Any

    def make_encoder(self) -> Any:
        return self.encoder


def setup(**changes: Any) -> Setup:
    """Return the setup of the tiny run: 4 epochs of 8 steps, embeddings of 16 features.

    Args:
        changes: other values of `Setup`, or `encoder`, a given backbone and projector.
    """
    values: dict[str, Any] = {
        "make_backbone": TinyBackbone,
        "projector": ProjectorConfig(hidden=32, out=16, layers=3),
        "batch_size": BATCH,
        "images": 256,
        "classes": 10,
        "epochs": 4,
        "steps_per_epoch": 8,
        "views": 2,
        "seed": 0,
    }
    return (Given if "encoder" in changes else Setup)(**(values | changes))


def views(step: int = 0, n: int = 2, sizes: tuple[int, ...] = ()) -> list[torch.Tensor]:
    """Return views of one batch, (32, 3, 8, 8) float64 each: a common part with different noise for each view."""
    sizes = sizes or (SIZE,) * n
    common = authors.noise(f"method_cases/{step}", BATCH, 3, SIZE, SIZE).double()
    return [
        (common + 0.3 * authors.noise(f"method_cases/{step}/{i}", BATCH, 3, SIZE, SIZE).double())[..., :s, :s]
        for i, s in enumerate(sizes)
    ]


def assert_resumes(build: Callable[..., Any], part: str) -> None:
    """Assert that three steps, then two steps of a second instance with the same state, give the bits of five steps.

    Args:
        build: builds the method; `seed` changes its initialization.
        part: a name in the state, which must be present.
    """

    def train(method: Any, first: int, last: int) -> None:
        optimizer = torch.optim.SGD([p for p in method.parameters() if p.requires_grad], lr=0.1)
        for method.step in range(first, last):
            optimizer.zero_grad()
            sum(method(views(method.step)).values()).backward()
            optimizer.step()
            method.after_step((method.step + 1) / 8)

    whole, first, second = build(), build(), build(seed=2)
    train(whole, 0, 5)
    train(first, 0, 3)
    second.load_state_dict(first.state_dict())
    train(second, 3, 5)
    assert part in whole.state_dict()
    assert all(torch.equal(value, second.state_dict()[key]) for key, value in whole.state_dict().items())
