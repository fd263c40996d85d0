"""Log of a pre-training run."""

import math
import typing
from collections.abc import Mapping

from intl_bench.core.board import Board
from intl_bench.core.json_lines import JsonLines
from intl_bench.core.progress import Progress
from pretrain.signs import Signs
from pretrain.step_metrics import StepMetrics

if typing.TYPE_CHECKING:
    from pretrain.train import Training


class Log:
    """Log of the first process: a progress line, `metrics.jsonl` and TensorBoard events.

    On resume, entries of steps that will be repeated are removed from the files.

    Attributes:
        latest: the metrics of the last step that was written.
        signs: early signs of a run that goes wrong.
        shown: further values of the progress line, such as the latest scores, by name.
    """

    def __init__(self, training: "Training") -> None:
        self.training, recipe, self.waited = training, training.recipe, 0.0
        self.reported, self.signs = training.step, Signs(training)
        self.latest: dict[str, float] = {}
        self.shown: dict[str, float] = {}
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
            self.board = Board(recipe.folder / "tensorboard", purge_step=training.step + 1 if training.step else None)

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
        self.reported, self.latest = metrics.step, values
        self.progress.step(self.waited, {"loss": values["loss"], **self.shown})
        self.signs.step(values["loss"], self.waited, metrics.step)
        self.waited = 0.0
        due = metrics.step % self.training.recipe.log_every == 0 or metrics.step % self.training.steps_per_epoch == 0
        if self.training.process.is_main and (due or more is not None):
            rates = {"img/s": self.progress.images_per_second, "data": self.progress.data_share}
            row = {**values, **rates, **(more or {})}
            position = {"step": metrics.step, "epoch": round(metrics.step / self.training.steps_per_epoch, 4)}
            self.lines.append(position | {key: value if math.isfinite(value) else None for key, value in row.items()})
            self.board.add(row, metrics.step)

    def close(self) -> None:
        """End the progress line."""
        self.progress.close()
