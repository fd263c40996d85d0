"""What explains a run in its folder: settings, command, printed lines, pictures and a summary. All are by-products."""

import shlex
import time
import typing
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import torch
from omegaconf import OmegaConf

from intl_bench.core import config as configs
from intl_bench.core import datasets, files, json_lines, planned
from intl_bench.core.by_products import ByProducts
from intl_bench.core.errors import DivergedError, Preempted
from intl_bench.core.transcript import Transcript, note
from pretrain import pictures
from pretrain.train_log import Log

if typing.TYPE_CHECKING:
    from pretrain.train import Training

CURVES_FROM = 10.0  # seconds; drawing takes one of them, so a shorter run has no curves
_CURVES_SHARE = 0.01  # of the time, for drawing the curves again


class RunFolder:
    """The files of the first process that explain a run."""

    def __init__(self, training: "Training", log: Log, transcript: Transcript) -> None:
        self.training, self.log, self.transcript = training, log, transcript
        self.folder = training.recipe.folder
        self.files = ByProducts(self.folder)
        self._next_curves = time.perf_counter() + 60
        self._typed = False

    def begin(self, command: Sequence[str] | None) -> None:
        """Write the settings, the command, and what was printed so far.

        Args:
            command: the words after `intl-bench`; None for a call from Python, such as a cell of a grid.
        """
        self._typed = command is not None
        config = self.folder / "config.yaml"
        words = ["pretrain", str(config)] if command is None else [word for word in command if word != "--in-job"]
        now = f"{datetime.now().astimezone():%Y-%m-%d %H:%M:%S %z}"
        at = f", from step {self.training.step}" if self.training.step else ""
        self.files.append("log.txt", f"# {now}{at}\n")
        self.transcript.send_to(lambda line: self.files.append("log.txt", line))
        self.files.append("command.txt", f"# {now}{at}\n{shlex.join(['intl-bench', *words])}\n")
        head = f"# The settings of this run. To repeat it: intl-bench pretrain {config} name=NEW\n"
        settings = OmegaConf.to_yaml(configs.to_dict(self.training.recipe))
        self.files.write("config.yaml", lambda: f"{head}{settings}".encode())

    def views(self, views: Sequence[torch.Tensor]) -> None:
        """Draw the views of the first step of a session, unless an earlier session has."""
        if not (self.folder / "views.png").exists():
            self.files.write("views.png", lambda: pictures.draw_views(views, *self.training.normalization))

    def curves(self, *, last: bool = False) -> None:
        """Draw the curves if it is time."""
        now = time.perf_counter()
        if self.training.seconds < CURVES_FROM or (now < self._next_curves and not last):
            return
        self.files.write("curves.png", self._draw_curves)
        self._next_curves = time.perf_counter() + max(60, (time.perf_counter() - now) / _CURVES_SHARE)

    def _draw_curves(self) -> bytes:
        lines = json_lines.rows(self.folder / "metrics.jsonl")
        rows = [{"epoch": row["step"] / self.training.steps_per_epoch, **row} for row in lines]
        recipe = self.training.recipe
        return pictures.draw_curves(rows, f"{recipe.name}, seed {recipe.seed}: {self.training.display}")

    def end(self, scores: Mapping[str, float], about_scores: str, error: BaseException | None = None) -> None:
        """Write the summary and draw the curves; print loss, scores and time of a finished run.

        A run that was typed as a command ends with the next command. A grid scores its runs itself.
        """
        if error is None:
            self.curves(last=True)
        # Within the guard of by-products: after a fault of a GPU, asking for its memory fails too.
        self.files.write("summary.json", lambda: files.json_text(self.summary(scores, about_scores, error)).encode())
        if error is None:
            note(self._sentence(scores))
            if about_scores and not scores:
                note(about_scores)
            if self._typed:
                note(f"next: {next_command(self.training)}")
        else:
            self.transcript.keep(f"{_state(error)}: {_reason(error)}")

    def _sentence(self, scores: Mapping[str, float]) -> str:
        recipe, loss = self.training.recipe, self.log.latest.get("loss")
        parts = [] if loss is None else [f"loss {loss:.4g}"]
        parts += [f"{title} {scores[f'monitor/{name}']:.1f}%" for name, title in SCORES.items() if scores]
        took = planned.clock(self.training.seconds)
        return f"finished {recipe.name} seed {recipe.seed}: {', '.join(parts)}, in {took}"

    def summary(self, scores: Mapping[str, float], about_scores: str, error: BaseException | None) -> dict[str, Any]:
        """Return the content of `summary.json`.

        Args:
            scores: the latest of `Monitor.score`.
            about_scores: `Monitor.about`.
            error: what ended the run; None for a finished run.
        """
        training, progress = self.training, self.log.progress
        recipe = training.recipe
        cuda = training.process.device.type == "cuda"
        return {
            "name": recipe.name,
            "seed": recipe.seed,
            "method": training.display,
            "dataset": recipe.data.dataset,
            "scale": recipe.scale,
            "state": _state(error),
            "reason": None if error is None else _reason(error),
            "step": training.step,
            "steps": training.total_steps,
            "epoch": round(training.step / training.steps_per_epoch, 4),
            "epochs": training.epochs,
            "images": training.images,
            "loss": self.log.latest.get("loss"),
            "scores": {name.removeprefix("monitor/"): round(value, 4) for name, value in scores.items()},
            "about_scores": about_scores,
            "warnings": self.log.signs.found,
            "bad_images": len(training.bad_files),
            "seconds": round(training.seconds, 1),
            **training.gpu_cost(),
            "images_per_second": round(progress.images_per_second, 1),
            "data_share": round(progress.data_share, 4),
            "processes": training.process.world_size,
            "device": torch.cuda.get_device_name() if cuda else "cpu",
            "gpu_memory_mib": round(torch.cuda.max_memory_allocated() / 2**20) if cuda else None,
            "ended": datetime.now(UTC).isoformat(timespec="seconds"),
            "next": next_command(training) if error is None else None,
        }


def next_command(training: "Training") -> str:
    """Return the command that scores a finished run: in minutes, where the paper has no protocol for the images."""
    recipe = training.recipe
    words = ["intl-bench", "linear", str(recipe.checkpoint)]
    if recipe.data.kind == "imagefolder" and recipe.data.dataset not in datasets.DATASETS:
        words += ["--config", "default", f"size={max(view.size for view in recipe.views)}"]
    return shlex.join(words)


def _state(error: BaseException | None) -> str:
    if error is None:
        return "finished"
    if isinstance(error, DivergedError):
        return "diverged"
    return "stopped" if isinstance(error, Preempted | KeyboardInterrupt) else "failed"


def _reason(error: BaseException) -> str:
    return " ".join(str(error).split())


SCORES = {"knn": "5-NN", "linear": "linear probe"}
