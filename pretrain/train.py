"""The training loop: from a recipe to a checkpoint, in one process or many, resumable exactly.

Killed at any step, the same command goes on and ends with the same weights, bit for bit on a CPU: the order of the
images and every random parameter are functions of (seed, epoch, image, view), and a checkpoint holds the rest.
"""

import dataclasses
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.tensorboard import SummaryWriter

from intl_bench.core import config as configs
from intl_bench.core import distributed, files
from intl_bench.core.errors import DivergedError, InputError
from intl_bench.core.progress import Progress
from intl_bench.core.seeding import torch_seed
from intl_bench.core.signals import StopRequest
from pretrain import checkpoint, methods, spectrum
from pretrain.backbone import Backbone
from pretrain.data import normalization, open_source
from pretrain.loader import Batch, steps_per_epoch, training_batches
from pretrain.optim import build_sgd
from pretrain.projector import build_projector
from pretrain.recipe import Recipe, check_same_run
from pretrain.schedules import warmup_cosine
from pretrain.sync_batch_norm import synchronize
from pretrain.views import augment

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclasses.dataclass
class Training:
    """The state of a run: what a checkpoint holds, and the machinery to take a step."""

    recipe: Recipe
    process: distributed.Process
    display: str
    method: Any
    model: nn.Module
    optimizer: torch.optim.SGD
    scaler: torch.amp.GradScaler
    autocast: torch.dtype | None
    steps_per_epoch: int
    images: int
    normalization: tuple[tuple[float, ...], tuple[float, ...]]
    step: int = 0
    seconds: float = 0.0
    bad_files: set[str] = dataclasses.field(default_factory=set)

    @property
    def total_steps(self) -> int:
        return self.recipe.epochs * self.steps_per_epoch

    def take_step(self, batch: Batch) -> dict[str, float]:
        """One step on this process's part of a global batch; returns the loss terms, their sum, LR and gradient norm.

        Raises:
            DivergedError: a loss term or a gradient is not finite; the weights are as they were before the step.
        """
        recipe, device = self.recipe, self.process.device
        lr = warmup_cosine(
            self.step,
            total=self.total_steps,
            warmup=recipe.warmup_epochs * self.steps_per_epoch,
            base=recipe.base_lr * recipe.batch_size / 256,
            final_ratio=recipe.final_lr_ratio,
        )
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        views = [
            augment(crops.to(device, non_blocking=True), parameters, *self.normalization)
            for crops, parameters in zip(batch.crops, batch.parameters, strict=True)
        ]
        if recipe.channels_last:
            views = [view.contiguous(memory_format=torch.channels_last) for view in views]

        with torch.autocast(device.type, dtype=self.autocast, enabled=self.autocast is not None):
            terms = self.model(views)
        loss = torch.stack(list(terms.values())).sum()
        values = {name: float(term.detach()) for name, term in terms.items()} | {"loss": float(loss.detach())}
        self._require_finite(values)

        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()
        self.scaler.unscale_(self.optimizer)
        norm = torch.nn.utils.get_total_norm(p.grad for p in self.model.parameters() if p.grad is not None)
        if not self.scaler.is_enabled():  # the scaler skips a step whose half-precision gradients overflow
            self._require_finite({"gradient norm": float(norm)})
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.step += 1
        self.method.after_step(self.step / self.total_steps)
        self.bad_files.update(batch.bad_files)
        return {**values, "lr": lr, "gradient_norm": float(norm)}

    def _require_finite(self, values: dict[str, float]) -> None:
        bad = [f"{name} = {value}" for name, value in values.items() if value - value != 0]
        if bad:
            raise DivergedError(
                f"diverged at step {self.step} (epoch {self.step // self.steps_per_epoch}): {', '.join(bad)}; "
                "the weights were left as before this step; lower base_lr, or use precision=fp32"
            )

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds."""
        return {
            "method": self.method.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "step": self.step,
            "steps_per_epoch": self.steps_per_epoch,
            "display": self.display,
            "config": configs.to_dict(self.recipe),
            "details": {
                "images": self.images,
                "seconds": round(self.seconds, 1),
                "bad_images": len(self.bad_files),
                "bad_files": sorted(self.bad_files),
            },
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Continues from a checkpoint's state of the same recipe.

        Raises:
            InputError: it belongs to another recipe, data set or architecture.
        """
        path = self.recipe.checkpoint
        check_same_run(self.recipe, state["config"])
        if state["steps_per_epoch"] != self.steps_per_epoch:
            raise InputError(
                f"{path}: written with {state['steps_per_epoch']} steps an epoch, the data set now gives "
                f"{self.steps_per_epoch}: it has changed; restore it, or start over with --fresh"
            )
        try:
            self.method.load_state_dict(state["method"])
            self.optimizer.load_state_dict(state["optimizer"])
        except (RuntimeError, ValueError, KeyError) as error:
            reason = " ".join(str(error).split())[:200]
            raise InputError(
                f"{path}: its weights are of another architecture: {reason}; start over with --fresh"
            ) from error
        if self.scaler.is_enabled() and state["scaler"]:
            self.scaler.load_state_dict(state["scaler"])
        self.step, self.seconds = state["step"], state["details"]["seconds"]
        self.bad_files = set(state["details"]["bad_files"])


def build(recipe: Recipe, process: distributed.Process, n_images: int) -> Training:
    """A run at step 0, initialised from the recipe's seed alone.

    Raises:
        InputError: the batch does not fit the data set or the method.
    """
    module, config = methods.parse(recipe.method, "method")
    steps = steps_per_epoch(n_images, recipe.batch_size)

    def make_encoder() -> tuple[nn.Module, nn.Module]:
        backbone = Backbone(recipe.backbone)
        return backbone, build_projector(backbone.num_features, recipe.projector)

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(torch_seed(recipe.seed, "init"))
        try:
            method = module.build(
                config, make_encoder, batch_size=recipe.batch_size, embedding_dim=recipe.projector.out
            )
        except ValueError as error:
            raise InputError(f"method {config.name}: {error}") from error
    autocast = _DTYPES.get(recipe.precision)
    if autocast == torch.float16 and process.device.type == "cpu":
        autocast = torch.bfloat16
        if process.is_main:
            print("precision=fp16: computed in bf16, for a CPU takes twenty times as long in fp16", file=sys.stderr)
    if process.world_size > 1:
        method = synchronize(method, process.device)
    method.to(process.device, memory_format=torch.channels_last if recipe.channels_last else torch.preserve_format)
    method.train()
    return Training(
        recipe=recipe,
        process=process,
        display=module.DISPLAY,
        method=method,
        model=process.parallel(method),
        optimizer=build_sgd(
            method,
            momentum=recipe.momentum,
            weight_decay=recipe.weight_decay,
            decay_one_dimensional=recipe.decay_one_dimensional,
        ),
        scaler=torch.amp.GradScaler(process.device.type, enabled=autocast == torch.float16),
        autocast=autocast,
        steps_per_epoch=steps,
        images=n_images,
        normalization=normalization(recipe.data),
    )


def run(recipe: Recipe, *, fresh: bool = False) -> Path:
    """Trains to the last epoch, or goes on from where the run's folder stands; returns the checkpoint's path.

    The folder receives `checkpoint.pt` after every epoch and on a signal, `backbone.safetensors` at the end,
    `metrics.jsonl` and TensorBoard events.

    Raises:
        InputError, ResourceError, DivergedError: as the exit codes say.
        Preempted: a signal came; the state is saved.
    """
    with distributed.start(recipe.device) as process, StopRequest() as stop:
        source = open_source(recipe.data, "train")
        training = build(recipe, process, len(source))
        if fresh and process.is_main:  # only now that nothing stands in the way of the new run
            shutil.rmtree(recipe.folder, ignore_errors=True)
        distributed.barrier()
        if recipe.checkpoint.exists():
            state, _ = checkpoint.load(recipe.checkpoint)
            training.restore(state)
        if training.step < training.total_steps:
            _loop(training, source, stop)
        exported = recipe.folder / "backbone.safetensors"
        if process.is_main and not exported.exists():
            checkpoint.export_backbone(exported, training.method.backbone.state_dict(), configs.to_dict(recipe))
    return recipe.checkpoint


def _loop(training: Training, source: Any, stop: StopRequest) -> None:
    recipe, process = training.recipe, training.process
    log = _Log(recipe.folder, training.step) if process.is_main else None
    progress = Progress(
        training.total_steps,
        done=training.step,
        images_per_step=recipe.batch_size,
        label=f"pretrain {recipe.name}",
        enabled=process.is_main,
    )
    batches = training_batches(
        source,
        recipe.views,
        seed=recipe.seed,
        batch_size=recipe.batch_size,
        first_step=training.step,
        last_step=training.total_steps,
        rank=process.rank,
        world_size=process.world_size,
        workers=recipe.workers,
        pin=process.device.type == "cuda",
    )
    ended = time.perf_counter()
    for batch in batches:
        waited = time.perf_counter() - ended
        values = training.take_step(batch)
        if recipe.spectrum_every and (
            training.step % recipe.spectrum_every == 0 or training.step == training.total_steps
        ):
            values |= _spectrum(training)
        epoch_done = training.step % training.steps_per_epoch == 0
        stopping = distributed.any_process(stop.received is not None, process.device)
        progress.step(waited, {"loss": values["loss"]})
        if log is not None and (training.step % recipe.log_every == 0 or epoch_done or stopping):
            log.write(training.step, values | {"img/s": progress.images_per_second, "data": progress.data_share})
        training.seconds += time.perf_counter() - ended
        if epoch_done or stopping:
            training.bad_files = distributed.union(training.bad_files)
            if process.is_main:
                checkpoint.save(recipe.checkpoint, training.state())
        if stopping and training.step < training.total_steps:
            progress.close()
            distributed.barrier()  # the launcher ends all processes when one ends; the first may still be writing
            raise stop.error(f"after step {training.step} of {training.total_steps}, saved in {recipe.checkpoint}")
        ended = time.perf_counter()
    progress.close()
    if log is not None:
        log.close()


def _spectrum(training: Training) -> dict[str, float]:
    embedding = distributed.gather(training.method.embedding)
    if not training.process.is_main:
        return {}
    values = spectrum.summary(embedding)
    sentence = spectrum.collapse(values)
    if sentence:
        print(f"warning: step {training.step}: {sentence}", file=sys.stderr)
    return values


class _Log:
    """`metrics.jsonl` and TensorBoard events; on resume both forget the steps that will be done again."""

    def __init__(self, folder: Path, step: int) -> None:
        self.lines = files.JsonLines(folder / "metrics.jsonl", keep=lambda row: row["step"] <= step)
        self.board = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1 if step else None)

    def write(self, step: int, values: dict[str, float]) -> None:
        self.lines.append(
            {"step": step, **{key: value if value - value == 0 else None for key, value in values.items()}}
        )
        for name, value in values.items():
            self.board.add_scalar(name, value, step)

    def close(self) -> None:
        self.board.close()
