"""The state of a run, read from its folder. It never writes and needs no PyTorch."""

import contextlib
import dataclasses
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from intl_bench.core import config as configs
from intl_bench.core import inputs, json_lines, locks
from intl_bench.core.errors import InputError

LOG = "metrics.jsonl"


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunState:
    """What the folder of a run tells.

    Attributes:
        folder: of the run.
        state: "running"; the state of `summary.json`; "finished"; "stopped" if a state is left to resume from; "ended"
            if the folder does not tell how.
        last: the last line of the log.
        summary: the content of `summary.json`; empty if the run goes on, was killed, or is of an earlier version.
        step: the last step that is logged.
        steps: of the whole run; in the first epoch it may be off by one in a hundred.
    """

    folder: Path
    state: str
    last: Mapping[str, Any]
    summary: Mapping[str, Any]
    step: int | None
    steps: int | None

    @property
    def percent(self) -> int | None:
        """The share of the steps that is done; 100 only at the end. None if it is not known."""
        return min(100, 100 * self.step // self.steps) if self.step is not None and self.steps else None

    @property
    def position(self) -> str:
        """The last step or epoch in words; empty if none is logged."""
        if self.percent is not None and self.state != "finished":
            return f"step {self.step} of {self.steps} ({self.percent}%)"
        return f"step {self.step}" if self.step else f"epoch {self.last['epoch']}" if "epoch" in self.last else ""


def read(folder: Path) -> RunState:
    """Read the state of a run. Damaged files count as missing ones."""
    last, summary = json_lines.last(folder / LOG), _summary(folder)
    step = next((last[clock] for clock in ("step", "iteration") if isinstance(last.get(clock), int)), None)
    steps = summary.get("steps")
    return RunState(
        folder=folder,
        state="running" if locks.is_held(folder) else str(summary.get("state") or _end(folder)),
        last=last,
        summary=summary,
        step=step,
        steps=steps if isinstance(steps, int) else _planned_steps(folder, last),
    )


def _summary(folder: Path) -> dict[str, Any]:
    path = folder / "summary.json"
    with contextlib.suppress(OSError, InputError):
        if path.stat().st_mtime >= (folder / LOG).stat().st_mtime:  # else of an earlier session
            found = inputs.read_json(path, "summary")
            return found if isinstance(found, dict) else {}
    return {}


def _end(folder: Path) -> str:
    """Return how a run without a summary ended: a pre-training of an earlier version or that was killed, or a score."""
    if (folder / "backbone.safetensors").exists():
        return "finished"
    if (folder / "checkpoint.pt").exists() or any(folder.glob("state*.pt")):  # a score removes its own at its end
        return "stopped"
    return "finished" if (folder / "detector.pth").exists() else "ended"


def _planned_steps(folder: Path, last: Mapping[str, Any]) -> int | None:
    """Return the steps of a run from its settings and from the epoch of its last step; None if they do not tell."""
    path = folder / "config.yaml"
    with contextlib.suppress(OSError, ValueError, TypeError, LookupError, ArithmeticError, InputError):
        if path.exists():
            settings = configs.read(path)
            planned = int(settings["epochs"]) * round(last["step"] / last["epoch"])
            return min(planned, int(settings["max_steps"] or sys.maxsize))
    return None
