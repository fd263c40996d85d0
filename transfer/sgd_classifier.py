"""A classifier trained by SGD on augmented images: a linear layer on a frozen backbone, or both fine-tuned together.

A call that was stopped at any step resumes and ends with the same weights. The order and the crops are functions of
(seed, epoch, image). The state file holds the rest. The source is the authors' evaluate.py.
"""

import dataclasses
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from intl_bench.core import distributed
from intl_bench.core.copies import send
from intl_bench.core.errors import DamagedError, DivergedError
from intl_bench.core.identity import identity
from intl_bench.core.inputs import shorten
from intl_bench.core.json_lines import JsonLines
from intl_bench.core.progress import Progress
from intl_bench.core.seeding import torch_seed
from intl_bench.core.signals import StopRequest
from pretrain import states
from pretrain.backbone import Backbone
from pretrain.checkpoint import Checkpoint
from pretrain.finite import Guard
from pretrain.images.data import ImageSource
from pretrain.images.loader import Batch, evaluation_batches, steps_per_epoch, training_batches
from pretrain.images.views import ViewConfig, augment
from transfer.features import build_backbone_of
from transfer.precision import DEFAULT, autocast, unused
from transfer.scores import correct, last_and_best, percentages
from transfer.task import Outcome

_TEST_BATCH = 256
_REMEDY = "lower the learning rate, or check the data"
_STATE = {"model": dict, "optimizer": dict, "history": list, "bad_files": list}  # types of the fields of a state


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """The settings that determine the result, together with the checkpoint and the images.

    Attributes:
        head_lr, backbone_lr: for a batch of 256 images. backbone_lr = 0 freezes the backbone in eval mode.
        milestones: epochs after which the learning rates fall to a tenth.
        resize, crop: of the test images. `crop` is also the size of the training images.
        mean, std: per channel, for pixels in 0..1.
        precision: of the backbone, one of `transfer.precision.PRECISIONS`. The classifier and the loss are float32.
        stop_epoch: end after this epoch and score the test images once. None trains all epochs and scores after each.
    """

    seed: int
    epochs: int
    batch_size: int
    head_lr: float
    backbone_lr: float
    weight_decay: float
    milestones: tuple[int, ...]
    resize: int | None
    crop: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    precision: str = DEFAULT
    drop_last: bool = True
    stop_epoch: int | None = None

    def unused(self) -> set[str]:
        """See `intl_bench.core.identity.identity`."""
        names = {"stop_epoch"} if self.stop_epoch is None else set()
        return names | unused(self.precision) | without_last_batch(self.drop_last)


def without_last_batch(drop_last: bool) -> set[str]:
    """Return what `unused` of a configuration leaves out: `drop_last`, if it is set, as in all earlier versions."""
    return {"drop_last"} if drop_last else set()


class Classifier(nn.Module):
    """A linear layer on a backbone. Weights start as N(0, 0.01), biases as 0. A frozen backbone stays in eval mode."""

    def __init__(self, backbone: Backbone, classes: int, *, frozen: bool, seed: int, precision: str = DEFAULT) -> None:
        super().__init__()
        self.backbone, self.frozen, self.precision = backbone.requires_grad_(not frozen), frozen, precision
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(torch_seed(seed, "classifier init"))
            self.fc = nn.Linear(backbone.num_features, classes)
            nn.init.normal_(self.fc.weight, std=0.01)
            nn.init.zeros_(self.fc.bias)

    def train(self, mode: bool = True) -> "Classifier":
        super().train(mode)
        self.backbone.train(mode and not self.frozen)
        return self

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Compute the logits (N, classes) float32 of images (N, 3, H, W)."""
        with autocast(self.precision, images.device):
            features = self.backbone(images)
        logits: torch.Tensor = self.fc(features.float())
        return logits

    @property
    def trained(self) -> nn.Module:
        """The module whose weights a state file holds."""
        return self.fc if self.frozen else self


@dataclasses.dataclass
class _Run:
    settings: Settings
    process: distributed.Process
    classifier: Classifier
    model: nn.Module
    optimizer: torch.optim.SGD
    guard: Guard
    steps_per_epoch: int
    identity: dict[str, Any]
    loss: torch.Tensor  # sum over the steps of the epoch so far
    step: int = 0
    history: list[dict[str, float]] = dataclasses.field(default_factory=list)
    bad_files: list[str] = dataclasses.field(default_factory=list)
    log_mark: dict[str, int] | None = None  # see `JsonLines`

    @property
    def total_steps(self) -> int:
        return (self.settings.stop_epoch or self.settings.epochs) * self.steps_per_epoch

    def take_step(self, batch: Batch) -> None:
        """Take one step on this process's part of a batch."""
        settings, device = self.settings, self.process.device
        drops = sum(self.step // self.steps_per_epoch >= milestone for milestone in settings.milestones)
        scale = settings.batch_size / 256 * 0.1**drops
        for group, lr in zip(self.optimizer.param_groups, (settings.head_lr, settings.backbone_lr), strict=False):
            group["lr"] = lr * scale
        crops = batch.crops[0].to(device, non_blocking=True)
        images = augment(crops, batch.parameters[0], settings.mean, settings.std)
        logits = self.model(images.contiguous(memory_format=torch.channels_last))
        loss = functional.cross_entropy(logits, send(batch.labels, device))
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.step += 1
        self.guard.step(self.step, loss)
        self.bad_files = sorted({*self.bad_files, *batch.bad_files})
        self.loss += loss.detach()

    @torch.inference_mode()
    def test(self, source: ImageSource, workers: int) -> dict[str, float]:
        """Score the test images. Each process scores its share with the weights and buffers of the first process."""
        settings, process = self.settings, self.process
        counts = torch.zeros(3, dtype=torch.int64, device=process.device)
        share = process.share(len(source))
        batches = evaluation_batches(
            source,
            resize=settings.resize,
            crop=settings.crop,
            mean=settings.mean,
            std=settings.std,
            batch_size=_TEST_BATCH,
            first=share.start,
            last=share.stop,
            workers=workers,
            device=process.device,
        )
        process.broadcast_buffers(self.classifier)  # each process has its own running statistics
        self.classifier.eval()
        for images, labels in batches:
            logits = self.classifier(images.contiguous(memory_format=torch.channels_last))
            not_finite = (~torch.isfinite(logits)).any(1).sum()
            counts += torch.stack([*correct(logits, send(labels, process.device)), not_finite])
        distributed.sum_counts(counts)
        self.classifier.train()
        *right, bad = counts.tolist()
        if bad:
            raise DivergedError(
                f"diverged by step {self.step}: the outputs for {bad} test images are not finite; {_REMEDY}"
            )
        return percentages(right, len(source), self.classifier.fc.out_features)

    def state(self) -> dict[str, Any]:
        """Return what a state file holds."""
        return {
            "identity": self.identity,
            "model": self.classifier.trained.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "loss": self.loss,
            "step": self.step,
            "history": self.history,
            "bad_files": self.bad_files,
            "log": self.log_mark,
        }

    def restore(self, path: Path) -> None:
        """Continue from the newest intact state, if there is one.

        Raises:
            InputError: see `pretrain.states.load_own`.
        """
        state = distributed.from_main(
            lambda: states.load_own(path, self.identity, _STATE, position="step", most=self.total_steps)
        )
        if state is None:
            return
        self._require_scores(state, path)
        states.restore_weights(self.classifier.trained, state["model"], path)
        states.restore_optimizer(self.optimizer, state["optimizer"], path)
        if "loss" in state:  # not in the states of earlier versions
            self.loss = state["loss"].to(self.process.device)
        self.step, self.history, self.bad_files = state["step"], state["history"], state["bad_files"]
        self.log_mark = state.get("log")

    def _require_scores(self, state: dict[str, Any], path: Path) -> None:
        """Refuse a state whose scores, sum of losses or names of images are impossible."""
        epochs, loss = state["step"] // self.steps_per_epoch, state.get("loss", self.loss)
        expected = epochs if self.settings.stop_epoch is None else int(epochs == self.settings.stop_epoch)
        rows = [row if isinstance(row, dict) and "top1" in row else {"": None} for row in state["history"]]
        scores = [score for row in rows for score in row.values()]
        if len(rows) != expected or not all(isinstance(score, float) and 0 <= score <= 100 for score in scores):
            raise DamagedError(f"{path}: history is {shorten(state['history'])}; expected scores of {expected} epochs")
        if not isinstance(loss, torch.Tensor) or (loss.shape, loss.dtype) != (self.loss.shape, self.loss.dtype):
            raise DamagedError(f"{path}: loss is {shorten(loss)}; expected one number")
        if not all(isinstance(name, str) for name in state["bad_files"]):
            raise DamagedError(f"{path}: bad_files is {shorten(state['bad_files'])}; expected names of files")


def train_classifier(
    checkpoint: Checkpoint,
    train: ImageSource,
    test: ImageSource,
    settings: Settings,
    *,
    device: str,
    workers: int,
    folder: Path,
    deterministic: bool = False,
) -> Outcome:
    """Train a classifier as `fit` does and report the last epoch.

    Returns:
        `top1` and `top5` (with more than five classes) of the last epoch, `best_top1` and `best_top5` of the best.

    Raises:
        InputError, DivergedError, Preempted: see `fit`.
    """
    path = folder / "state.pt"
    history, bad = fit(
        checkpoint, train, test, settings, device=device, workers=workers, path=path, deterministic=deterministic
    )
    metrics, best_epoch = last_and_best(history)
    return Outcome(metrics=metrics, details={"best_epoch": best_epoch, **counts(train, test, bad)})


def counts(train: ImageSource, test: ImageSource, bad: int) -> dict[str, int]:
    """Return the details of a record about its images; `bad` of them could not be decoded."""
    numbers = {"train_images": len(train), "test_images": len(test), "classes": len(train.class_names)}
    return {"bad_images": bad, **numbers}


def fit(
    checkpoint: Checkpoint,
    train: ImageSource,
    test: ImageSource,
    settings: Settings,
    *,
    device: str,
    workers: int,
    path: Path,
    deterministic: bool = False,
) -> tuple[list[dict[str, float]], int]:
    """Train on randomly cropped and flipped images with SGD (momentum 0.9) and score the test images every epoch.

    `path`, such as state_NAME.pt, receives the state after every epoch and on a signal, and metrics_NAME.jsonl beside
    it a line for each epoch. With `drop_last`, images that do not fill the last batch of an epoch are left out of that
    epoch. Under `torchrun` the processes divide every batch; batch norms are not synchronized, as in the authors' code.
    With `deterministic` the weights are the same bit for bit on a GPU too.

    Returns:
        the scores after each epoch, or after `stop_epoch` alone: `top1` and, with more than five classes, `top5`; and
        the number of images that could not be decoded.

    Raises:
        InputError: the weights or the state do not fit, an image cannot be read, or the batch is too large.
        DivergedError: the mean loss of an epoch was not finite.
        Preempted: a signal arrived; the state is saved.
    """
    with distributed.start(device, deterministic=deterministic) as process, StopRequest() as stop:
        run = _prepare(checkpoint, train, test, settings, process)
        run.restore(path)
        distributed.from_main(lambda: states.require_space(path, run.state()))
        view = ViewConfig(size=settings.crop, interpolation="bilinear", jitter_p=0.0, grayscale_p=0.0)
        batches = training_batches(
            train,
            [view],
            seed=settings.seed,
            batch_size=settings.batch_size,
            first_step=run.step,
            last_step=run.total_steps,
            rank=process.rank,
            world_size=process.world_size,
            workers=workers,
            device=process.device,
            drop_last=settings.drop_last,
        )
        _loop(run, batches, test, stop, workers, path)
    return run.history, len(run.bad_files)


def _prepare(
    checkpoint: Checkpoint, train: ImageSource, test: ImageSource, settings: Settings, process: distributed.Process
) -> _Run:
    """Build a run at step 0."""
    frozen = settings.backbone_lr == 0
    classifier = Classifier(
        build_backbone_of(checkpoint),
        len(train.class_names),
        frozen=frozen,
        seed=settings.seed,
        precision=settings.precision,
    )
    classifier.to(process.device).to(memory_format=torch.channels_last).train()
    groups = [classifier.fc] if frozen else [classifier.fc, classifier.backbone]
    parameters = [{"params": list(group.parameters())} for group in groups]
    # Not fused on a CPU: existing records were made with the plain update, which rounds differently.
    fused = process.device.type == "cuda"
    optimizer = torch.optim.SGD(parameters, lr=0.0, momentum=0.9, weight_decay=settings.weight_decay, fused=fused)
    return _Run(
        settings=settings,
        process=process,
        classifier=classifier,
        model=process.parallel(classifier),
        optimizer=optimizer,
        guard=Guard(classifier, optimizer, process.device),
        steps_per_epoch=steps_per_epoch(
            len(train), settings.batch_size, drop_last=settings.drop_last, world_size=process.world_size
        ),
        identity={
            "weights": checkpoint.weights_sha256,
            "train_images": len(train),
            "test_images": len(test),
            **identity(settings),
        },
        loss=torch.zeros((), device=process.device),
    )


def _loop(run: _Run, batches: Iterator[Batch], test: ImageSource, stop: StopRequest, workers: int, path: Path) -> None:
    process, start = run.process, run.step
    log = None
    if process.is_main:
        log = JsonLines(
            path.with_name(f"{path.stem.replace('state', 'metrics', 1)}.jsonl"),
            lambda row: row["step"] <= start,
            run.log_mark,
        )
    progress = Progress(
        run.total_steps,
        done=run.step,
        images_per_step=run.settings.batch_size,
        label="linear" if run.classifier.frozen else "finetune",
        enabled=process.is_main,
    )
    vote = distributed.StopVote(stop, process.device)
    ended = time.perf_counter()
    with states.Writer() as writer:
        for batch in batches:
            waited = time.perf_counter() - ended
            run.take_step(batch)
            epoch_done = run.step % run.steps_per_epoch == 0
            if epoch_done:
                # Once an epoch, because reading the loss of each step would make the host wait for a GPU.
                run.guard.require_finite(_REMEDY)
                epoch, mean = run.step // run.steps_per_epoch, float(run.loss) / run.steps_per_epoch
                run.loss = torch.zeros_like(run.loss)
                if run.settings.stop_epoch in (None, epoch):
                    run.history.append(run.test(test, workers))
            progress.step(waited, run.history[-1] if run.history else None)
            if epoch_done and log is not None:
                rates = {"img/s": progress.images_per_second, "data": progress.data_share}
                lr = run.optimizer.param_groups[0]["lr"]
                log.append(
                    {"step": run.step, "epoch": epoch, "lr": lr, "loss": mean, **(run.history or [{}])[-1], **rates}
                )
            stopping = vote.ask()
            if stopping and not epoch_done:
                run.guard.require_finite(_REMEDY)
            if log is not None and (epoch_done or stopping):
                run.log_mark = log.mark()
                writer.save(path, run.state())
            if stopping and run.step < run.total_steps:
                writer.wait()
                progress.close()
                where = f"after step {run.step} of {run.total_steps}, saved in {path}"
                distributed.stop_together(stop, where, stopping)
            ended = time.perf_counter()
    progress.close()
