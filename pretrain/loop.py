"""The steps of a run, and what happens between them: saving, stopping, logging and scoring."""

import time
import typing
from collections.abc import Sequence
from pathlib import Path

from intl_bench.core import distributed
from intl_bench.core.signals import StopRequest
from intl_bench.core.transcript import Transcript, note
from pretrain import states
from pretrain.images.data import ArraySource, FileSource
from pretrain.images.loader import training_batches
from pretrain.monitor import Monitor
from pretrain.run_folder import SCORES, RunFolder
from pretrain.spectrum import batch_spectra
from pretrain.step_metrics import StepMetrics
from pretrain.train_log import Log

if typing.TYPE_CHECKING:
    from pretrain.train import Training


def train(
    training: "Training",
    source: ArraySource | FileSource,
    stop: StopRequest,
    transcript: Transcript,
    command: Sequence[str] | None,
) -> None:
    """Take the remaining steps of a run.

    Args:
        transcript, command: see `RunFolder`.

    Raises:
        InputError, ResourceError, DivergedError: see `intl_bench.core.errors`.
        Preempted: a signal arrived; the state is saved.
    """
    log = Log(training)
    monitor = Monitor(training, source)
    folder = RunFolder(training, log, transcript) if training.process.is_main else None
    if folder is not None:
        folder.begin(command)
    try:
        _steps(training, source, stop, log, monitor, folder)
    except BaseException as error:
        if folder is not None:
            folder.end(monitor.latest, monitor.about(), error)
        raise
    if folder is not None:
        folder.end(monitor.latest, monitor.about())


def _steps(
    training: "Training",
    source: ArraySource | FileSource,
    stop: StopRequest,
    log: Log,
    monitor: Monitor,
    folder: RunFolder | None,
) -> None:
    recipe, process = training.recipe, training.process
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
        device=process.device,
    )
    before: StepMetrics | None = None
    ended = saved = time.perf_counter()
    with states.Writer() as writer:
        for batch in batches:
            log.waited += time.perf_counter() - ended
            wanted = stop.received or 0
            save = process.is_main and time.perf_counter() - saved >= 60 * recipe.save_minutes
            saved = time.perf_counter() if save else saved
            if before is None and folder is not None:
                folder.views(training.views(batch))
            metrics = training.take_step(batch, stop=wanted, save=save)
            if before is not None:  # read while the device computes this step
                log.write(before)
            # A single process knows its own request. Several learn the requests of all with the previous step.
            if process.world_size == 1:
                stopping, saving = wanted, save
            else:
                stopping, saving = before.asked() if before is not None else (0, False)
            last = training.step == training.total_steps
            measured = _measure(training, log, monitor, metrics, last=last)
            if measured is not None:
                log.write(metrics, measured)
            training.count(time.perf_counter() - ended)
            kept = _kept_path(training)
            if last or stopping or saving or kept:
                log.write(metrics)  # raises an error if the step was not finite
                training.bad_files = distributed.union(training.bad_files)
                if process.is_main:
                    training.log_mark = log.lines.mark()
                    if kept and not kept.exists():  # one of a session that was killed is the same
                        writer.save(kept, training.state(), keep=0)
                    if last or stopping or saving:
                        writer.save(recipe.checkpoint, training.state())
            if folder is not None:
                folder.curves()
            if stopping and not last:
                writer.wait()
                log.close()
                where = f"after step {training.step} of {training.total_steps}, saved in {recipe.checkpoint}"
                distributed.stop_together(stop, where, stopping)
            before, ended = metrics, time.perf_counter()
    log.close()


def _measure(
    training: "Training", log: Log, monitor: Monitor, metrics: StepMetrics, *, last: bool
) -> dict[str, float] | None:
    """Measure what is due after a step: spectra of the batch, and scores.

    Returns:
        The values by name, on the first process; {} on the others; None if nothing is due.
    """
    recipe, step = training.recipe, training.step
    spectra_due, scores_due = recipe.spectrum_every and (last or step % recipe.spectrum_every == 0), monitor.due(step)
    found: dict[str, float] = {}
    if spectra_due:
        assert training.features is not None
        found, largest_rank = batch_spectra(training.method, training.features)
        if found:
            log.signs.embedding(found, largest_rank, step, "of a batch")
    if scores_due and training.process.is_main:
        metrics.values()  # raises an error instead of scoring weights that are not finite
        scores = monitor.score()
        log.shown = {name: scores[f"monitor/{name}"] for name in SCORES if scores}
        if scores:
            found |= scores
            numbers = {name.removeprefix("monitor/"): value for name, value in scores.items()}
            log.signs.embedding(numbers, monitor.largest_rank, step, "in eval mode")
            texts = [f"{title} {scores[f'monitor/{name}']:.1f}%" for name, title in SCORES.items()]
            epoch = step // training.steps_per_epoch
            note(f"epoch {epoch} of {training.epochs}: {', '.join(texts)}, effective rank {scores['monitor/rank']:.0f}")
    return found if spectra_due or scores_due else None


def kept(training: "Training") -> int:
    """Return the number of checkpoints that `keep_every` still adds."""
    every = training.recipe.keep_every * training.steps_per_epoch
    return training.total_steps // every - training.step // every if every else 0


def _kept_path(training: "Training") -> Path | None:
    """Return the file of a checkpoint that stays, if one is due after this step."""
    recipe = training.recipe
    every = recipe.keep_every * training.steps_per_epoch
    if not every or training.step % every:
        return None
    return recipe.folder / f"epoch{training.step // training.steps_per_epoch:04d}.pt"
