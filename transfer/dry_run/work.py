"""What a task would do with a seed: its images, and its phases with their costs."""

import collections
import dataclasses
from collections.abc import Callable
from typing import Any

import torch

from pretrain.backbone import Backbone
from pretrain.checkpoint import Checkpoint
from pretrain.dry_run import costs
from pretrain.dry_run.costs import Cost, Operation
from pretrain.dry_run.machine import Machine, Preparation


@dataclasses.dataclass(frozen=True, kw_only=True)
class Phase:
    """A part of a task: steps of equal cost.

    Attributes:
        name: in words.
        steps: number of steps.
        cost: of a step.
        images: number of images that are prepared in all steps.
        weights: bytes of the parameters.
        trained: bytes of the parameters that a step trains.
        shared: whether all seeds of a checkpoint share the results, which are cached.
    """

    name: str
    steps: int
    cost: Cost
    images: int = 0
    weights: int = 0
    trained: int = 0
    shared: bool = False

    def seconds(self, device: costs.Device) -> float:
        """Estimate the time of all steps on a device, without the preparation of images."""
        return self.steps * costs.step_seconds(self.cost, device, trained=self.trained)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Work:
    """The work of a task for a seed.

    Attributes:
        data: the images in words.
        batch: a batch and the steps in words; "" if the task has none.
        phases: the parts of the task; empty if their costs are not known.
        preparation: time to prepare an image; None if no image could be opened.
        workers: number of processes that load images.
        state: bytes of a state to resume from; 0 if the task writes none.
        results: bytes of what stays, such as features and detectors.
    """

    data: str
    batch: str = ""
    phases: tuple[Phase, ...] = ()
    preparation: Preparation | None = None
    workers: int = 0
    state: int = 0
    results: int = 0

    @property
    def memory(self) -> int:
        """Bytes of the weights, gradients, momentum and intermediate results of the largest step."""
        return max((phase.cost.peak + phase.weights + 2 * phase.trained for phase in self.phases), default=0)

    def seconds(self, device: costs.Device, here: Machine, seeds: int = 1) -> float:
        """Estimate the time for some seeds, one after the other.

        Args:
            device: a GPU, without the preparation of images; or that of this machine, with the preparation if it was
                measured.
            here: this machine.
        """
        total = 0.0
        for phase in self.phases:
            one = phase.seconds(device)
            if device is here.device:
                one = here.seconds(one, phase.images, self.preparation or Preparation(), self.workers)
            total += one * (1 if phase.shared else seeds)
        return total


def one_operation(*, flops: int = 0, bytes: int = 0, count: int = 1) -> Cost:
    """Return the cost of `count` equal float32 operations."""
    return Cost(operations=collections.Counter({Operation(flops, "matmul32", bytes): count}), saved=0, peak=0)


def added(*parts: Cost) -> Cost:
    """Return the cost of some work that follows each other."""
    operations: collections.Counter[Operation] = collections.Counter()
    for part in parts:
        operations.update(part.operations)
    return Cost(operations=operations, saved=0, peak=max(part.peak for part in parts))


def empty_backbone(checkpoint: Checkpoint) -> Backbone:
    """Return the network of a checkpoint without weights, which takes no memory."""
    with torch.device("meta"):
        return Backbone(checkpoint.architecture)


def count(module: torch.nn.Module, forward: Callable[[], Any], *, gradients: bool) -> Cost:
    """Count a pass with a module, whose parameters lose their data."""
    with costs.without_data():
        costs.strip(module)
        return costs.count(forward) if gradients else costs.count_forward(forward)


def bytes_of(module: torch.nn.Module, *, trained: bool = False) -> int:
    """Return the bytes of the parameters of a module: of all, or of those that are trained."""
    return sum(4 * parameter.numel() for parameter in module.parameters() if parameter.requires_grad or not trained)
