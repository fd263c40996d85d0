"""Methods of pre-training, one file each.

A method file defines `Config` (its dataclass, with a `name`), `DISPLAY` (its name in tables) and
`build(config, setup) -> Method`; `LABELED = True` where the method learns from labels, which it then gets as a second
argument. docs/add_a_method.md shows one.
"""

import dataclasses
import importlib
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any, Protocol

import torch
from torch import nn

from intl_bench.core import config as configs
from intl_bench.core.errors import InputError
from pretrain.backbone import Backbone
from pretrain.projector import ProjectorConfig, build_projector


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setup:
    """What a run tells its method, to build itself from.

    Attributes:
        make_backbone: makes a new backbone, randomly initialized.
        projector: widths of the recipe's `projector` section, for whatever head the method has.
        batch_size: images of a batch, over all processes.
        images, classes: of the training set; there are no fewer than one batch.
        views: how many each image gets.
        seed: of the run, for draws of the method's own (`core.seeding`).
    """

    make_backbone: Callable[[], Backbone]
    projector: ProjectorConfig
    batch_size: int
    images: int
    classes: int
    epochs: int
    steps_per_epoch: int
    views: int
    seed: int

    def make_encoder(self) -> tuple[Backbone, nn.Sequential]:
        """A new backbone, and INTL's projector for its features."""
        backbone = self.make_backbone()
        return backbone, build_projector(backbone.num_features, self.projector)


class Method(Protocol):
    """What the training loop needs of a method; it is a `torch.nn.Module` as well.

    A method may also have, and the loop and the diagnostics then use:
    `step`, set to the number of the step, from 0, before each `forward`: what depends on time or chance is a function
    of it, so that nothing needs saving; `constant_lr`, parameters whose learning rate stays at the recipe's base;
    `target`, a momentum network, an `nn.Sequential` whose first part is the backbone (see `checkpoint.BRANCHES`);
    `transform(z)`, the whitened output (m, d) of an embedding (m, d), computed by one process alone;
    `capturable`, True where a step of the method can be recorded once as a CUDA graph and replayed
    (`pretrain.accelerate`). Forward and backward pass then use nothing of the host that changes from step to step:
    neither `step`, nor a number that the device has to tell (`item`, a boolean index, `torch.linalg.eigh`, which asks
    whether it converged), nor a draw. They change weights and buffers in place only. `after_step` is not recorded, so
    it may; tensors that `forward` leaves for it are written anew by each replay. A method that does not say is taken
    for one that cannot.
    """

    backbone: nn.Module
    projector: nn.Module
    """Features (N, F) -> embedding (N, d)."""
    embedding: torch.Tensor | None
    """Detached embedding of the last step's first trained view, (m, d) of this process; for diagnostics."""

    def forward(self, views: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
        """Loss terms, scalars, that the loop adds up; `views` are (m, 3, H, W), sizes may differ between views."""

    def after_step(self, progress: float) -> None:
        """Called after each optimizer step with the share of the run that is done, in (0, 1]."""


def names() -> list[str]:
    """The names of the methods, in order; a file that begins with _ is no method."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_"))


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
