"""A tiny run for tests of methods: 8x8 images, a backbone of two layers, batches of 32."""

import dataclasses
import importlib.util
from collections.abc import Callable, Iterable
from typing import Any

import authors
import pytest
import torch
from torch import nn

from pretrain.methods import Setup
from pretrain.projector import ProjectorConfig

BATCH, SIZE = 32, 8
LIGHTLY = ("barlow_twins", "byol", "dino", "mocov2", "simclr", "simsiam", "swav")  # methods that are built from it
# Their step can be recorded as a CUDA graph.
CAPTURABLE = ["barlow_twins", "byol", "intl", "iternorm", "mocov2", "simclr", "simsiam", "supervised", "vicreg"]

needs_lightly = pytest.mark.skipif(importlib.util.find_spec("lightly") is None, reason="lightly is not installed")


def marked(names: Iterable[str]) -> list[Any]:
    """Methods to parametrize a test by; without lightly it skips those that need it."""
    return [pytest.param(name, marks=[needs_lightly] * (name in LIGHTLY)) for name in names]


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
    """A run whose backbone and projector are there already."""

    encoder: Any

    def make_encoder(self) -> Any:
        return self.encoder


def setup(**changes: Any) -> Setup:
    """The tiny run; 4 epochs of 8 steps, 16 features; `encoder` would be its backbone and projector."""
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
    """Views of one batch, (32, 3, 8, 8) float64 each: a common part and noise of each view's own."""
    sizes = sizes or (SIZE,) * n
    common = authors.noise(f"method_cases/{step}", BATCH, 3, SIZE, SIZE).double()
    return [
        (common + 0.3 * authors.noise(f"method_cases/{step}/{i}", BATCH, 3, SIZE, SIZE).double())[..., :s, :s]
        for i, s in enumerate(sizes)
    ]


def assert_resumes(build: Callable[..., Any], part: str) -> None:
    """Three steps, then two of another instance that has the first one's state, are five steps, bit for bit.

    Args:
        build: makes the method, of another initialization with `seed`.
        part: of the state that would be missed.
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
