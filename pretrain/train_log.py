"""Log of a pre-training run."""

import io
import math
import os
import socket
import sys
import time
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from intl_bench.core import files
from intl_bench.core.json_lines import JsonLines
from intl_bench.core.progress import Progress
from pretrain.step_metrics import StepMetrics

if typing.TYPE_CHECKING:
    from pretrain.train import Training


class Log:
    """Log of the first process: a progress line, `metrics.jsonl` and TensorBoard events.

    On resume, entries of steps that will be repeated are removed from the files.
    """

    def __init__(self, training: "Training") -> None:
        self.training, recipe, self.waited = training, training.recipe, 0.0
        self.reported = training.step
        self.progress = Progress(
            training.total_steps,
            done=training.step,
            images_per_step=recipe.batch_size,
            label=f"pretrain {recipe.name}",
            enabled=training.process.is_main,
        )
        if training.process.is_main:
            path = recipe.folder / "metrics.jsonl"
            self.lines = JsonLines(path, lambda row: row["step"] <= training.step, training.log_mark)
            self.board = _Board(recipe.folder / "tensorboard", purge_step=training.step + 1 if training.step else None)

    def write(self, metrics: StepMetrics, more: Mapping[str, float] | None = None) -> None:
        """Count a step, and log it if it is due; a second call for the same step does nothing.

        A step is due every `log_every` steps, at the end of an epoch, and if `more` is given.

        Args:
            metrics: metrics of the step.
            more: further values to log, by name.

        Raises:
            DivergedError: a metric that must be finite is not; raised on every process.
        """
        values = metrics.values()
        if metrics.step == self.reported:
            return
        self.reported = metrics.step
        self.progress.step(self.waited, {"loss": values["loss"]})
        self.waited = 0.0
        due = metrics.step % self.training.recipe.log_every == 0 or metrics.step % self.training.steps_per_epoch == 0
        if self.training.process.is_main and (due or more is not None):
            rates = {"img/s": self.progress.images_per_second, "data": self.progress.data_share}
            row = {**values, **rates, **(more or {})}
            self.lines.append(
                {"step": metrics.step, **{key: value if math.isfinite(value) else None for key, value in row.items()}}
            )
            self.board.add(row, metrics.step)

    def close(self) -> None:
        """End the progress line."""
        self.progress.close()


class _Board:
    """A file of TensorBoard events, a by-product: the first failure ends it with one warning, and the run goes on.

    `SummaryWriter` is not used, because it writes in a thread, which prints a traceback if the disk is full.

    Args:
        folder: the folder of the file.
        purge_step: the first step whose values in earlier files are no longer valid.
    """

    def __init__(self, folder: Path, *, purge_step: int | None) -> None:
        name = f"events.out.tfevents.{int(time.time()):010d}.{socket.gethostname()}.{os.getpid()}"
        self.path: Path | None = folder / name
        self._write([{"file_version": "brain.Event:2"}])
        if purge_step is not None:
            self._write([{"session_log": {"status": "START"}, "step": purge_step}])

    def add(self, row: Mapping[str, float], step: int) -> None:
        """Write the values of a step by name."""
        self._write(
            [{"summary": {"value": [{"tag": tag, "simple_value": value}]}, "step": step} for tag, value in row.items()]
        )

    def _write(self, events: list[dict[str, Any]]) -> None:
        if self.path is None:
            return
        try:
            from tensorboard.compat.proto.event_pb2 import Event
            from tensorboard.summary.writer.record_writer import RecordWriter

            content = io.BytesIO()
            for event in events:
                RecordWriter(content).write(Event(wall_time=time.time(), **event).SerializeToString())
            files.append_bytes(self.path, content.getvalue())
        except Exception as error:  # also whatever the import of a broken package raises
            reason = " ".join(str(error).split()) or type(error).__name__
            print(f"warning: no more TensorBoard events: {reason}", file=sys.stderr)
            self.path = None
