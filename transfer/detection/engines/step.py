"""A training step of the built-in engine: the losses of a batch, their gradients and the optimizer step."""

import contextlib
import dataclasses
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from intl_bench.core import distributed
from intl_bench.core.copies import send
from intl_bench.core.errors import DivergedError, InputError
from intl_bench.core.seeding import torch_seed
from pretrain import states
from pretrain.finite import Guard
from pretrain.sync_batch_norm import synchronize
from transfer.detection import MaskRCNN
from transfer.detection.config import DetectionConfig, ModelConfig
from transfer.detection.data import Batch
from transfer.detection.engines import saved
from transfer.detection.engines.optim import build_sgd, learning_rate
from transfer.detection.modeling.mask_rcnn import check_targets, largest_size
from transfer.detection.structures import Target, Whole


@dataclasses.dataclass
class Run:
    """A training run.

    Attributes:
        model: the detector.
        parallel: the detector as a module for all processes.
        identity: settings that a state to resume from must have.
        iteration: number of completed steps.
        log_mark: see `JsonLines`.
    """

    config: DetectionConfig
    seed: int
    process: distributed.Process
    model: MaskRCNN
    parallel: Any
    optimizer: torch.optim.SGD
    guard: Guard
    identity: dict[str, Any]
    iteration: int = 0
    log_mark: dict[str, int] | None = None

    def losses(self, batch: Batch, purpose: str, whole: Whole | None = None) -> dict[str, Tensor]:
        """Compute the losses on images of this process; `purpose` names the stream of random numbers.

        Args:
            whole: the images of this process in the batch, if `batch` has a part of them.
        """
        with self.autocast():
            losses: dict[str, Tensor] = self.parallel(*self._inputs(batch, purpose), whole)
        return losses

    def _inputs(self, batch: Batch, purpose: str) -> tuple[list[Tensor], list[Target], list[torch.Generator]]:
        device = self.process.device
        generators = []
        for position in batch.positions:
            generator = torch.Generator(device)
            generators.append(generator.manual_seed(torch_seed(self.seed, purpose, batch.iteration, position)))
        images = [send(image.pixels, device) for image in batch.images]
        return images, _send_targets(batch, self.config.model, device), generators

    def add_gradients(self, batch: Batch, purpose: str = "detection sampling") -> Tensor:
        """Compute the losses on this process's images of a batch, and add their gradients, in `accumulate` parts.

        Returns:
            (5,) losses, or (4,) without masks.
        """
        parts = batch.split(self.config.accumulate)
        whole = self._measure(batch, parts, purpose) if len(parts) > 1 else None
        total: Tensor | None = None
        for number, part in enumerate(parts, start=1):
            last = number == len(parts)
            # Several processes average the gradients once, after the last part.
            with contextlib.nullcontext() if last or self.process.world_size == 1 else self.parallel.no_sync():
                losses = torch.stack(list(self.losses(part, purpose, whole).values()))
                losses.sum().backward()
            total = losses.detach() if total is None else total + losses.detach()
        assert total is not None
        return total

    def _measure(self, batch: Batch, parts: list[Batch], purpose: str) -> Whole:
        """Measure what the losses of a part need to know about all images of this process.

        The regions of each part are drawn once more for that, without gradients. This is cheap, because it needs
        neither the last stage nor the backward pass. The statistics of the batch norms do not change.
        """
        size = largest_size([image.pixels for image in batch.images])
        before = [buffer.clone() for buffer in self.model.buffers()]
        with self.autocast():
            counts = [self.model.count_regions(*self._inputs(part, purpose), size) for part in parts]
        for buffer, value in zip(self.model.buffers(), before, strict=True):
            buffer.copy_(value)
        regions, foreground = map(sum, zip(*counts, strict=True))
        return Whole(len(batch.images), *size, regions, foreground)

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.process.device.type, torch.bfloat16, enabled=self.config.precision == "bf16")

    def take_step(self, batch: Batch) -> Tensor:
        """Take one step on this process's images of a batch.

        Returns:
            (6,) losses and their sum, or (5,) without masks.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.config, self.iteration)
        self.optimizer.zero_grad(set_to_none=True)
        try:
            losses = self.add_gradients(batch)
        except DivergedError as error:
            raise DivergedError(f"diverged in step {self.iteration + 1}: {error}") from error
        self.iteration += 1
        self.guard.step(self.iteration, losses.sum())
        return torch.cat([losses, losses.sum()[None]])

    def restore(self, path: Path) -> None:
        """Continue from the newest intact state, if there is one."""
        state = saved.load_state(path, self.identity, self.config.iterations)
        if state is not None:
            states.restore_weights(self.model, state["model"], path)
            states.restore_optimizer(self.optimizer, state.get("optimizer"), path)
            self.iteration, self.log_mark = state["iteration"], state.get("log")


def make_run(
    model: MaskRCNN, config: DetectionConfig, seed: int, process: distributed.Process, identity: dict[str, Any]
) -> Run:
    """Put a detector on the device, and share it among the processes; the run is at iteration 0.

    Raises:
        InputError: a CPU does not support the width with channels_last, or `accumulate` does not divide the images of a
            process.
    """
    if config.batch_size // process.world_size % config.accumulate:
        raise InputError(
            f"accumulate={config.accumulate}: a process has {config.batch_size // process.world_size} images of a "
            "batch; expected a divisor of this number"
        )
    model.to(process.device).train()
    if config.channels_last:
        if process.device.type == "cpu" and config.model.width < 16:
            # oneDNN 3.13 writes outside its buffers in the backward pass of strided convolutions of this width.
            raise InputError(
                f"channels_last=true: a CPU does not support model.width={config.model.width}; expected a width of at "
                "least 16; set channels_last=false"
            )
        model.to(memory_format=torch.channels_last)
    if process.world_size > 1:
        synchronize(model)
    optimizer = build_sgd(model, config)
    return Run(
        config=config,
        seed=seed,
        process=process,
        model=model,
        parallel=process.parallel(model),
        optimizer=optimizer,
        guard=Guard(model, optimizer, process.device),
        identity=identity,
    )


def _send_targets(batch: Batch, config: ModelConfig, device: torch.device) -> list[Target]:
    """Check the ground truth of a batch and copy it to `device`, with one copy for boxes and one for classes."""
    targets = [image.target for image in batch.images if image.target is not None]
    check_targets(targets, config)
    counts = [len(target.boxes) for target in targets]
    boxes = send(torch.cat([target.boxes for target in targets]), device).split(counts)
    classes = send(torch.cat([target.classes for target in targets]), device).split(counts)
    return [
        target._replace(boxes=own_boxes, classes=own_classes)
        for target, own_boxes, own_classes in zip(targets, boxes, classes, strict=True)
    ]
