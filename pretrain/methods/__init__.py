"""Self-supervised methods, one file each.

A method file defines `Config` (its dataclass, with a `name`), `DISPLAY` (its name in tables) and
`build(config, make_encoder, *, batch_size) -> Method`.
"""

import importlib
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any, Protocol

import torch
from torch import nn

from intl_bench.core import config as configs
from intl_bench.core.errors import InputError


class Method(Protocol):
    """What the training loop needs of a method; it is a `torch.nn.Module` as well."""

    backbone: nn.Module
    embedding: torch.Tensor | None
    """Detached embedding of the last step's first trained view, (m, d) of this process; for diagnostics."""

    def forward(self, views: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
        """Loss terms, scalars, that the loop adds up; `views` are (m, 3, H, W), sizes may differ between views."""

    def after_step(self, progress: float) -> None:
        """Called after each optimiser step with the share of the run that is done, in (0, 1]."""


Encoder = Callable[[], tuple[nn.Module, nn.Module]]
"""Makes a new backbone and projector."""


def names() -> list[str]:
    """The methods there are."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def find(name: str) -> ModuleType:
    """The module of a method.

    Raises:
        InputError: there is none of that name.
    """
    if name not in names():
        raise InputError(f"method.name={name}: unknown method; known: {', '.join(names())}")
    return importlib.import_module(f"{__name__}.{name}")


def parse(values: Mapping[str, Any], where: str) -> tuple[ModuleType, Any]:
    """The method module and its config dataclass for the `method:` section of a recipe."""
    module = find(str(values.get("name", "intl")))
    return module, configs.build(module.Config, values, f"{where}, section method")
