"""Methods of pre-training, one module each.

The module of a method defines `Config` (a dataclass with the field `name`), `DISPLAY` (the name in tables) and
`build(config, setup)`, which returns a `Method`. See docs/add_a_method.md.
"""

import dataclasses
import difflib
import importlib
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any

import torch
from torch import nn

from intl_bench.core import config as configs
from intl_bench.core.errors import InputError
from pretrain.backbone import Backbone
from pretrain.projector import ProjectorConfig, build_projector


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setup:
    """The facts of a run from which a method is built.

    Attributes:
        make_backbone: returns a new backbone with random weights.
        projector: widths in the section `projector` of the recipe; a method with another head uses them too.
        batch_size: number of images of a batch, over all processes.
        images: number of training images, at least `batch_size`.
        classes: number of classes of the training set.
        epochs: number of epochs of the run.
        steps_per_epoch: number of steps of an epoch.
        views: number of views of each image.
        seed: seed of the run, for random numbers of the method (`intl_bench.core.seeding`).
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
        """Return a new backbone and the projector of INTL for its features."""
        backbone = self.make_backbone()
        return backbone, build_projector(backbone.num_features, self.projector)


class Method(nn.Module):
    """Base class of the methods, with a default for everything that a method may leave out.

    A subclass sets `backbone` and `projector` and defines `forward(views)`. The views are (m, 3, H, W); their sizes may
    differ. `forward` sets `embedding` and returns loss terms, scalars by name. The training loop minimizes their sum.
    """

    backbone: nn.Module
    projector: nn.Module
    """Features (N, F) -> embedding (N, d)."""
    embedding: torch.Tensor | None
    """Detached embedding of the first trained view of the last step, (m, d) of this process; for diagnostics."""
    momentum_encoder: nn.Sequential | None
    """Momentum network, whose first part is the backbone (see `pretrain.checkpoint.BRANCHES`); None if not used."""
    step: int = 0
    """Number of the step, from 0. The training loop sets it before each `forward`. Whatever depends on time or chance
    is a function of it, so a checkpoint does not store more."""
    labeled: bool = False
    """True if the method learns from labels: `forward(views, labels)` with int64 labels (m,). One view is enough."""
    capturable: bool = False
    """True if a step can be recorded once as a CUDA graph and replayed (`pretrain.accelerate`).

    The forward and backward pass then use nothing of the host that changes from step to step: not `step`, no random
    number, and no number that the device must return (`item`, a boolean index, `torch.linalg.eigh`, which checks its
    convergence). They change weights and buffers in place only. `after_step` is not recorded, so it may use all of
    these. Each replay overwrites the tensors that `forward` leaves for `after_step`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.embedding = None
        # Not a class attribute, which would hide the submodule of this name.
        self.momentum_encoder = None

    @property
    def constant_lr(self) -> Sequence[nn.Parameter]:
        """Parameters whose learning rate stays at the base learning rate of the recipe."""
        return ()

    def transform(self, z: torch.Tensor) -> torch.Tensor | None:
        """Return the whitened output (m, d) of an embedding (m, d) in one process; None if the method has none."""
        return None

    def after_step(self, progress: float) -> None:
        """Update what is not trained, after each step of the optimizer.

        Args:
            progress: completed share of the run, in (0, 1].
        """


def names() -> list[str]:
    """Return the names of all methods, sorted. A module whose name begins with _ is not a method."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_"))


def find(name: str) -> ModuleType:
    """Return the module of a method.

    Raises:
        InputError: no method has this name.
    """
    if name not in names():
        raise InputError(f"method.name={name}: unknown method; known: {', '.join(names())}")
    return importlib.import_module(f"{__name__}.{name}")


def parse(values: Mapping[str, Any], where: str) -> tuple[ModuleType, Any]:
    """Return the module of a method and its config for the section `method` of a recipe.

    Args:
        where: the recipe, for error messages.

    Raises:
        InputError: the method or one of its settings is unknown, or a value is invalid.
    """
    module = find(name := str(values.get("name", "intl")))
    own = [field.name for field in dataclasses.fields(module.Config)]
    others = [key for key in values if key not in own and not difflib.get_close_matches(key, own)]
    recipes = [path.stem for path in sorted((configs.CONFIGS / "pretrain").glob(f"*_{name}.yaml"))]
    if others and recipes:
        raise InputError(
            f"{where}, section method: {name} has no setting {others[0]!r}; is it of another method? known keys: "
            f"{', '.join(own)}; or start from a recipe of {name}: {', '.join(recipes)}"
        )
    return module, configs.build(module.Config, values, f"{where}, section method")
