"""The built-in engine. It trains the detector, estimates the statistics of its batch norms, and detects in test images.

A killed run resumes with the same call. On a CPU it then ends with exactly the same weights, because the batches and
all random draws depend only on (seed, iteration, image), and the state file holds everything else.
"""

import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from intl_bench.core import distributed
from intl_bench.core.copies import send
from intl_bench.core.errors import DivergedError
from intl_bench.core.progress import Progress
from intl_bench.core.seeding import torch_seed
from intl_bench.core.signals import StopRequest
from pretrain import states
from pretrain.finite import Features
from transfer.detection import build_model
from transfer.detection.annotations.objects import Annotations
from transfer.detection.config import DetectionConfig
from transfer.detection.data import Batch, test_images, training_batches
from transfer.detection.engines import saved
from transfer.detection.engines.log import RunLog
from transfer.detection.engines.optim import learning_rate
from transfer.detection.engines.step import Run, make_run
from transfer.detection.evaluation.coco import to_results
from transfer.detection.modeling.resnet import freeze, load_backbone

_LOG_EVERY = 20

Result = dict[str, Any]
Evaluate = Callable[[list[Result]], dict[str, float]]


def run(
    backbone: dict[str, Tensor],
    config: DetectionConfig,
    seed: int,
    *,
    folder: Path,
    train: Annotations,
    test: Annotations,
    identity: dict[str, Any],
    evaluate: Evaluate,
    process: distributed.Process,
    stop: StopRequest,
    about: dict[str, Any] | None = None,
) -> list[Result]:
    """Train a detector on `train` and detect in `test`.

    Args:
        backbone: weights with Detectron2's names (`transfer.convert.to_detectron2`).
        folder: receives `state.pt`, which the same call resumes from, `metrics.jsonl`, TensorBoard events, and after
            training `detector.pth` with Detectron2's parameter names.
        identity: settings that a state to resume from must have.
        evaluate: scores detections; it is called every `config.eval_every` iterations.
        about: facts that `detector.pth` also holds; see `saved.write_detector`.

    Returns:
        The detections in `test` as COCO results, on the first process only.

    Raises:
        InputError: weights, state or data are invalid.
        DivergedError: a loss is not finite.
        Preempted: a signal stopped the run; the state is saved.
    """
    path = folder / saved.STATE
    run = _prepare(backbone, config, seed, process, identity)
    run.restore(path)
    distributed.from_main(
        lambda: states.require_space(path, {"model": run.model.state_dict(), "momentum": [*run.model.parameters()]})
    )
    if run.iteration < config.iterations:
        _loop(run, train, test, evaluate, stop, folder)
    if config.precise_bn:
        _precise_batch_norm(run, train, stop)
    states.require_finite(run.model.state_dict(), where="before the detection in the test images")
    results = _detect(run, test, stop)
    if process.is_main:
        saved.write_detector(folder, run.model, about)
    return results


def detect(
    weights: dict[str, Tensor],
    config: DetectionConfig,
    *,
    test: Annotations,
    process: distributed.Process,
    stop: StopRequest,
) -> list[Result]:
    """Detect in `test` with a trained detector.

    Args:
        weights: of all layers, with Detectron2's names.

    Returns:
        The detections as COCO results, on the first process only.

    Raises:
        InputError: weights or images are invalid.
        Preempted: a signal stopped the run.
    """
    model = build_model(config.model)
    saved.load_weights(model, weights)
    return _detect(make_run(model, config, 0, process, {}), test, stop)


def _prepare(
    backbone: dict[str, Tensor],
    config: DetectionConfig,
    seed: int,
    process: distributed.Process,
    identity: dict[str, Any],
) -> Run:
    """Build a run at iteration 0."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(torch_seed(seed, "detector init"))
        model = build_model(config.model)
    load_backbone(model, backbone)
    freeze(model.backbone, config.freeze_at)
    return make_run(model, config, seed, process, identity)


def _batches(run: Run, annotations: Annotations, first: int, last: int, purpose: str) -> Iterator[Batch]:
    config, process = run.config, run.process
    return training_batches(
        annotations,
        seed=run.seed,
        batch_size=config.batch_size,
        min_sizes=config.min_sizes,
        max_size=config.max_size,
        masks=config.model.masks,
        first_iteration=first,
        last_iteration=last,
        rank=process.rank,
        world_size=process.world_size,
        workers=config.workers,
        pin=process.device.type == "cuda",
        purpose=purpose,
    )


def _loop(run: Run, train: Annotations, test: Annotations, evaluate: Evaluate, stop: StopRequest, folder: Path) -> None:
    config, process = run.config, run.process
    log = RunLog(folder, run.iteration, run.log_mark) if process.is_main else None
    if log is not None and config.accumulate > 1:
        print(
            f"accumulate={config.accumulate}: batch norms use the statistics of "
            f"{config.batch_size // config.accumulate} of the {config.batch_size} images at a time; otherwise the "
            "gradients are those of the whole batch",
            file=sys.stderr,
        )
    progress = Progress(
        config.iterations,
        done=run.iteration,
        images_per_step=config.batch_size,
        label=f"{config.data.kind} seed {run.seed}",
        enabled=process.is_main,
    )
    names = ["loss_rpn_cls", "loss_rpn_loc", "loss_cls", "loss_box_reg"] + ["loss_mask"] * config.model.masks + ["loss"]
    totals, steps, values = torch.zeros(len(names), device=process.device), 0, dict[str, float]()
    vote = distributed.StopVote(stop, process.device)
    ended = time.perf_counter()
    for batch in _batches(run, train, run.iteration, config.iterations, "detection order"):
        waited = time.perf_counter() - ended
        totals += run.take_step(batch)
        steps += 1
        stopping = vote.ask()
        last = run.iteration == config.iterations
        saving = run.iteration % config.checkpoint_every == 0 or last or stopping > 0
        if saving or run.iteration % _LOG_EVERY == 0:
            # The losses are not read in every step, because each time the host waits for the GPU.
            run.guard.require_finite("lower lr, or increase warmup_iterations")
            values = dict(zip(names, (totals / steps).tolist(), strict=True))
            if log is not None:
                lr = learning_rate(config, run.iteration - 1)
                log.append(run.iteration, {"lr": lr, "img/s": progress.images_per_second, **values})
            totals.zero_()
            steps = 0
        progress.step(waited, {"loss": values["loss"]} if values else None)
        if saving and log is not None:
            saved.save_state(log.lines, run.identity, run.model, run.optimizer, run.iteration)
        if stopping and not last:
            progress.close()
            where = f"after step {run.iteration} of {config.iterations}, saved in {folder / 'state.pt'}"
            distributed.stop_together(stop, where, stopping)
        if config.eval_every and run.iteration % config.eval_every == 0 and not last:
            results = _detect(run, test, stop)
            if log is not None:
                log.append(run.iteration, evaluate(results))
        ended = time.perf_counter()
    progress.close()


def _precise_batch_norm(run: Run, train: Annotations, stop: StopRequest) -> None:
    """Replace the running statistics by those of `precise_bn` batches with the current weights.

    The method is that of Wu and Johnson, "Rethinking 'Batch' in BatchNorm" (2021), in the implementation of fvcore.
    """
    with warnings.catch_warnings(action="ignore"):  # fvcore compiles functions in a way that PyTorch deprecates
        from fvcore.nn.precise_bn import update_bn_stats

    count = run.config.precise_bn
    batches = _batches(run, train, 0, count, "precise bn order")
    label = f"{run.config.data.kind} seed {run.seed}: batch norm statistics"
    progress = Progress(count, label=label, enabled=run.process.is_main)

    def losses(batch: Batch) -> None:
        try:
            run.losses(batch, "precise bn sampling")
        except DivergedError as error:
            raise DivergedError(f"diverged while estimating batch norm statistics: {error}") from error
        progress.step()
        _stop_between(run, stop, "while estimating batch norm statistics")

    class Forward(nn.Module):
        """A module for fvcore, which searches it for batch norms and calls it with a batch."""

        def __init__(self) -> None:
            super().__init__()
            self.model = run.model

        def forward(self, batch: Batch) -> None:
            losses(batch)

    update_bn_stats(Forward(), batches, count)
    progress.close()


@torch.inference_mode()
def _detect(run: Run, test: Annotations, stop: StopRequest) -> list[Result]:
    """Detect in all test images. Each process takes a share and uses the statistics of the first process."""
    config, process = run.config, run.process
    process.broadcast_buffers(run.model)  # the statistics differ between processes
    run.model.eval()
    share = process.share(len(test))
    images = test_images(
        test,
        min_size=config.test_min_size,
        max_size=config.test_max_size,
        first=share.start,
        last=share.stop,
        workers=config.workers,
        pin=process.device.type == "cuda",
    )
    progress = Progress(len(share), label=f"{config.data.kind} seed {run.seed}: detecting", enabled=process.is_main)
    features = Features(run.model.backbone, process.device)
    results = []
    for image in images:
        with run.autocast():
            (found,) = run.model.detect([send(image.pixels, process.device)], [(image.height, image.width)])
        results += to_results(image.image_id, found, test.category_ids, image.height, image.width)
        progress.step()
        _stop_between(run, stop, "while detecting")
    progress.close()
    features.require_finite("a test image")
    run.model.train()
    return distributed.collect(results)


def _stop_between(run: Run, stop: StopRequest, where: str) -> None:
    if run.process.world_size == 1 and stop.received is not None:
        raise stop.error(f"{where}, after all {run.iteration} steps were saved")
