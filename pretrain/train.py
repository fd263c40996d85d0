"""The training loop: from a recipe to a checkpoint, in one process or many.

A run that was killed at any step resumes with the same command and ends with the same weights, on a CPU bit for bit.
The order of the images and every random parameter are functions of (seed, epoch, image, view). A checkpoint holds the
rest.

The host does not wait for the device. The metrics of a step are read while the device computes the next step. A
checkpoint is written in the background.
"""

import contextlib
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from intl_bench.core import config as configs
from intl_bench.core import distributed, energy, files
from intl_bench.core.copies import fetch, send
from intl_bench.core.errors import DamagedError, InputError
from intl_bench.core.locks import lock
from intl_bench.core.seeding import torch_seed
from intl_bench.core.signals import StopRequest
from intl_bench.core.transcript import Transcript
from pretrain import accelerate, checkpoint, loop, methods, states, warm_start
from pretrain.backbone import Backbone
from pretrain.finite import gradient_norm, skip_if_not_finite
from pretrain.images.data import normalization, open_source
from pretrain.images.fingerprint import fingerprint
from pretrain.images.loader import Batch, steps_per_epoch
from pretrain.images.views import augment
from pretrain.optim import build_optimizer, group_lr, set_lr
from pretrain.recipe import Inputs, Recipe, check_same_run, from_dict
from pretrain.schedules import warmup_cosine
from pretrain.spectrum import capture_first_output
from pretrain.step_metrics import StepMetrics
from pretrain.sync_batch_norm import synchronize

_OTHERWISE = "give this run another name with name=... (a grid: with name: in its file)"
_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclasses.dataclass
class Training:
    """The state of a run: the content of a checkpoint, and what a step needs."""

    recipe: Recipe
    process: distributed.Process
    display: str
    method: methods.Method
    model: nn.Module
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    autocast: torch.dtype | None
    steps_per_epoch: int
    images: int
    classes: int
    normalization: tuple[tuple[float, ...], tuple[float, ...]]
    inputs: Inputs = dataclasses.field(default_factory=Inputs)
    step: int = 0
    seconds: float = 0.0
    gpu_seconds: float | None = 0.0  # None: of an earlier version, which did not count them
    gpu_joules: float | None = 0.0  # up to the start of this session
    bad_files: set[str] = dataclasses.field(default_factory=set)
    log_mark: dict[str, int] | None = None  # see `JsonLines`
    recorded: accelerate.Recorded | None = None
    # Of the latest step: the names of the loss terms, and the features of the view whose embedding the method keeps.
    terms: list[str] = dataclasses.field(default_factory=list)
    features: torch.Tensor | None = None

    def __post_init__(self) -> None:
        self._meter = energy.Meter()

    @property
    def labeled(self) -> bool:
        """Whether the method learns from labels."""
        return self.method.labeled

    @property
    def total_steps(self) -> int:
        return self.recipe.total_steps(self.steps_per_epoch)

    @property
    def epochs(self) -> int:
        """Number of epochs of the whole run. The last one may be a part, with `max_steps`."""
        return -(-self.total_steps // self.steps_per_epoch)

    def views(self, batch: Batch) -> list[torch.Tensor]:
        """Return the views of this process's part of a global batch."""
        return [
            augment(crops.to(self.process.device, non_blocking=True), parameters, *self.normalization)
            for crops, parameters in zip(batch.crops, batch.parameters, strict=True)
        ]

    def take_step(self, batch: Batch, *, stop: int = 0, save: bool = False) -> StepMetrics:
        """Make the views of this process's part of a global batch and call `optimize`."""
        device = self.process.device
        views = self.views(batch)
        self.bad_files.update(batch.bad_files)
        labels = send(batch.labels, device) if self.labeled else None
        return self.optimize(views, labels, stop=stop, save=save)

    def optimize(
        self, views: list[torch.Tensor], labels: torch.Tensor | None = None, *, stop: int = 0, save: bool = False
    ) -> StepMetrics:
        """Take one step without waiting for the device.

        Args:
            views: each (m, 3, S, S), of this process's images.
            labels: (m,) int64, for a method that learns from labels.
            stop, save: requests of this process to all processes. `stop` is the number of a signal.

        Returns:
            The loss terms, their sum, the norm of the gradient, and the requests of all processes.
        """
        recipe, device = self.recipe, self.process.device
        base = recipe.base_lr * recipe.batch_size / 256
        lr = warmup_cosine(
            self.step,
            total=self.total_steps,
            warmup=recipe.warmup_steps(self.steps_per_epoch),
            base=base,
            final_ratio=recipe.final_lr_ratio,
        )
        # Always on a GPU, so that recorded and ordinary steps round alike.
        in_tensor = device.type == "cuda" or self.recorded is not None
        for group in self.optimizer.param_groups:
            set_lr(group, group_lr(group, scheduled=lr, base=base), in_tensor=in_tensor)
        self.method.step = self.step
        numbers = (self.recorded or self.work)(views, labels)
        self.step += 1
        self.method.after_step(self.step / self.total_steps)

        asked = distributed.largest(send(torch.tensor([stop, save], dtype=torch.float32), device))
        finite = {*self.terms, "loss"}
        return StepMetrics(
            step=self.step,
            epoch=(self.step - 1) // self.steps_per_epoch,
            lr=lr,
            names=[*self.terms, "loss", "gradient_norm"],
            numbers=fetch(torch.cat([numbers, asked])),
            # The scaler skips a step whose half-precision gradients overflow; training continues.
            finite=finite if self.scaler.is_enabled() else finite | {"gradient_norm"},
        )

    def work(self, views: Sequence[torch.Tensor], labels: torch.Tensor | None) -> torch.Tensor:
        """Compute a step (see `accelerate.Work`); return the loss terms, their sum and the norm of the gradient."""
        if self.recipe.channels_last:
            views = [view.contiguous(memory_format=torch.channels_last) for view in views]
        autocast = torch.autocast(self.process.device.type, dtype=self.autocast, enabled=self.autocast is not None)
        with autocast, capture_first_output(self.method.backbone) as features:
            terms = self.model(views) if labels is None else self.model(views, labels)
        loss = torch.stack(list(terms.values())).sum()
        self.terms, self.features = list(terms), features[0]

        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()
        self.scaler.unscale_(self.optimizer)
        norm = gradient_norm(self.model)
        if not self.scaler.is_enabled():  # a scaler does this itself
            skip_if_not_finite(self.optimizer, norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return torch.stack([*(term.detach().float() for term in terms.values()), loss.detach().float(), norm.float()])

    def count(self, seconds: float) -> None:
        """Add the time of a step to the cost of the run."""
        self.seconds += seconds
        if self.gpu_seconds is not None and self.process.device.type == "cuda":
            self.gpu_seconds += seconds * self.process.world_size

    def gpu_cost(self) -> dict[str, float | None]:
        """Return the time and the energy of all GPUs, as far as they are known."""
        joules = self._meter.joules()
        return {
            "gpu_seconds": self.gpu_seconds and round(self.gpu_seconds, 1),
            "gpu_joules": None if joules is None or self.gpu_joules is None else round(self.gpu_joules + joules, 1),
        }

    def state(self) -> dict[str, Any]:
        """Return the content of a checkpoint."""
        # A checkpoint does not depend on how steps were taken. Learning rates are stored as numbers.
        optimizer = self.optimizer.state_dict()
        for group in optimizer["param_groups"]:
            group["lr"] = float(group["lr"])
            if "capturable" in group:  # of Adam
                group["capturable"] = False
        return {
            "method": self.method.state_dict(),
            "optimizer": optimizer,
            "scaler": self.scaler.state_dict(),
            "step": self.step,
            "steps_per_epoch": self.steps_per_epoch,
            "display": self.display,
            "config": configs.to_dict(self.recipe),
            "log": self.log_mark,
            "inputs": dataclasses.asdict(self.inputs),
            "details": {
                "images": self.images,
                "classes": self.classes,
                "seconds": round(self.seconds, 1),
                **self.gpu_cost(),
                "bad_images": len(self.bad_files),
                "bad_files": sorted(self.bad_files),
                "momentum_target": self.method.momentum_encoder is not None,
            },
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from the state of a checkpoint of the same recipe, images and initial weights.

        Raises:
            InputError: the state belongs to another recipe, data set or architecture.
        """
        path = self.recipe.checkpoint
        states.require_fields(path, state, states.PRETRAINING)
        with checkpoint.readable(path):
            read = Inputs(**state.get("inputs", {}))
        check_same_run(self.recipe, self.inputs, from_dict(state["config"], f"checkpoint {path}"), read)
        if read.data is None and self.process.is_main:
            print(f"{path}: written by an earlier version, without a fingerprint of the images", file=sys.stderr)
        self.inputs = read  # an unknown fingerprint stays unknown, as do the images of the first steps
        if state["steps_per_epoch"] != self.steps_per_epoch:
            raise InputError(
                f"{path}: written with {state['steps_per_epoch']} steps an epoch, but the data set now gives "
                f"{self.steps_per_epoch}; restore the data set, or add --fresh to start over"
            )
        states.restore_weights(self.method, state["method"], path)
        states.restore_optimizer(self.optimizer, state["optimizer"], path)
        if self.scaler.is_enabled() and state["scaler"]:
            self.scaler.load_state_dict(state["scaler"])
        details = state["details"]
        self.step, self.seconds = state["step"], details["seconds"]
        self.gpu_seconds, self.gpu_joules = details.get("gpu_seconds"), details.get("gpu_joules")
        self.bad_files, self.log_mark = set(details["bad_files"]), state.get("log")


def build_training(
    recipe: Recipe,
    process: distributed.Process,
    n_images: int,
    n_classes: int = 1000,
) -> Training:
    """Build a run at step 0. The recipe's seed alone determines its weights.

    Args:
        n_images, n_classes: of the training set. Only a method that learns from labels uses `n_classes`.

    Raises:
        InputError: the batch is larger than the data set, or the method does not fit the rest of the recipe.
    """
    module, config = methods.parse(recipe.method, "method")
    steps = steps_per_epoch(n_images, recipe.batch_size)
    setup = methods.Setup(
        make_backbone=lambda: Backbone(recipe.backbone),
        projector=recipe.projector,
        batch_size=recipe.batch_size,
        images=n_images,
        classes=n_classes,
        epochs=recipe.epochs,
        steps_per_epoch=steps,
        views=len(recipe.views),
        seed=recipe.seed,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(torch_seed(recipe.seed, "init"))
        try:
            method: methods.Method = module.build(config, setup)
        except ValueError as error:
            raise InputError(f"method {config.name}: {error}") from error
    if len(recipe.views) < 2 and not method.labeled:
        raise InputError(
            f"views: {module.DISPLAY} compares at least two views of each image, found {len(recipe.views)}"
        )
    autocast, inputs = _DTYPES.get(recipe.precision), Inputs()
    if autocast == torch.float16 and process.device.type == "cpu":
        autocast, inputs = torch.bfloat16, Inputs(computed_in="bf16")
        if process.is_main:
            print("precision=fp16: computed in bf16, because a CPU is twenty times slower in fp16", file=sys.stderr)
    if process.world_size > 1:
        synchronize(method)
    # In one call: a later change of the format would leave 1x1 kernels as they are, which costs copies in each step.
    memory_format = torch.channels_last if recipe.channels_last else torch.preserve_format
    method.to(process.device, memory_format=memory_format)  # type: ignore[call-overload]  # missing in its annotations
    method.train()
    return Training(
        recipe=recipe,
        process=process,
        display=module.DISPLAY,
        method=method,
        model=process.parallel(method),
        optimizer=build_optimizer(
            method,
            name=recipe.optimizer,
            momentum=recipe.momentum,
            weight_decay=recipe.weight_decay,
            decay_one_dimensional=recipe.decay_one_dimensional,
            one_dimensional_lr_ratio=recipe.one_dimensional_lr_ratio,
            trust_coefficient=recipe.trust_coefficient,
            clip_trust=recipe.clip_trust,
            constant_lr=method.constant_lr,
        ),
        scaler=torch.amp.GradScaler(process.device.type, enabled=autocast == torch.float16),
        autocast=autocast,
        steps_per_epoch=steps,
        images=n_images,
        classes=n_classes,
        normalization=normalization(recipe.data),
        inputs=inputs,
    )


def run(recipe: Recipe, *, fresh: bool = False, command: Sequence[str] | None = None) -> Path:
    """Train to the last epoch and return the path of the checkpoint. A run that was interrupted resumes.

    The run's folder receives `checkpoint.pt` every `save_minutes` and on a signal, `backbone.safetensors` at the end,
    `metrics.jsonl`, TensorBoard events, and the files of `pretrain.run_folder`. The folder is locked during the run.

    Args:
        fresh: discard what the folder holds.
        command: the words after `intl-bench`, for `command.txt`.

    Raises:
        InputError, ResourceError, DivergedError: see `intl_bench.core.errors`.
        Preempted: a signal arrived; the state is saved.
    """
    started = distributed.start(recipe.device, deterministic=recipe.deterministic, fixed_shapes=True)
    with started as process, StopRequest() as stop, contextlib.ExitStack() as locked:
        transcript = locked.enter_context(Transcript())
        source = open_source(recipe.data, "train")
        training = build_training(recipe, process, len(source), len(source.class_names))
        # Only the first process needs the folder. The others may be on machines that do not share its disk.
        distributed.from_main(lambda: locked.enter_context(lock(recipe.folder, otherwise=_OTHERWISE)))
        state = None if fresh else distributed.from_main(lambda: states.load_newest(recipe.checkpoint))
        initial = distributed.from_main(lambda: warm_start.find(recipe, training.method, state))
        training.inputs = Inputs(
            data=distributed.from_main(lambda: fingerprint(source)),
            initial_weights=None if initial is None else initial.sha256,
            extends=None if initial is None else initial.extends,
            computed_in=training.inputs.computed_in,
        )
        if state is not None:
            training.restore(state)
        elif initial is not None:
            loaded = warm_start.apply(initial, training.method)
            if process.is_main:
                print(f"init: {loaded}", file=sys.stderr)
        distributed.from_main(lambda: _prepare_folder(training, fresh))  # only now, after every check of the new run
        if training.step < training.total_steps:
            accelerate.apply(training)
            loop.train(training, source, stop, transcript, command)
        elif process.is_main:
            print(f"{recipe.checkpoint}: already finished; nothing to train", file=sys.stderr)
        exported = recipe.folder / "backbone.safetensors"
        if process.is_main and not _is_intact(exported):
            about = checkpoint.from_state(
                recipe.checkpoint, "", training.state(), training.method.backbone.state_dict()
            )
            checkpoint.export_backbone(exported, about)
    return recipe.checkpoint


def discard(recipe: Recipe) -> None:
    """Remove what a run's folder holds; raises `InputError` if another process works there."""
    with lock(recipe.folder, otherwise=_OTHERWISE):
        files.remove_contents(recipe.folder)


def _prepare_folder(training: Training, fresh: bool) -> None:
    if training.step < training.total_steps:  # before the old run is removed, because the new one may be refused
        states.require_space(training.recipe.checkpoint, training.state(), more=loop.kept(training))
    if fresh:
        files.remove_contents(training.recipe.folder)


def _is_intact(exported: Path) -> bool:
    """Return whether the backbone was exported and its file is not damaged."""
    try:
        return exported.exists() and bool(files.verify(exported, required=True))
    except DamagedError as error:
        print(f"{error}; writing it again", file=sys.stderr)
        return False
