"""`intl-bench watch`: the state of a run, read from its folder. It never writes and needs no PyTorch."""

import contextlib
import dataclasses
import difflib
import itertools
import json
import math
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from intl_bench.core import config as configs
from intl_bench.core import inputs, locks, planned, terminal
from intl_bench.core.errors import InputError

_RUNS = Path("runs")
_LOG = "metrics.jsonl"
_EVERY = 2.0  # seconds between two looks
_BARS = "▁▂▃▄▅▆▇█"
_WARNINGS = 3
# The values that are shown first, with their titles and formats. Other numbers of a line follow in its order.
_TITLES = {
    "loss": ("loss", ".4g"),
    "monitor/knn": ("5-NN", ".1f"),
    "monitor/linear": ("linear probe", ".1f"),
    "monitor/rank": ("effective rank", ".1f"),
    "lr": ("learning rate", ".3g"),
    "gradient_norm": ("gradient norm", ".3g"),
    "img/s": ("images per second", ".0f"),
    "data": ("waiting for images", ".0%"),
}
_POSITION = ("step", "iteration", "epoch", "seconds")
_MOST = 12  # values


@dataclasses.dataclass(frozen=True, kw_only=True)
class State:
    """What the folder of a run tells.

    Attributes:
        folder: of the run.
        state: "running", or the state of `summary.json`, or "ended" if there is none.
        rows: the lines of the log.
        epochs: of the whole run; None if the folder does not tell.
        age: seconds since the log was written.
        warnings: the last warnings.
        next: the command that follows, if the run finished.
    """

    folder: Path
    state: str
    rows: Sequence[dict[str, Any]]
    epochs: int | None
    age: float
    warnings: Sequence[str]
    next: str | None


def find(run: str | None) -> Path:
    """Return the folder of a run.

    Args:
        run: a folder, a file in it, or a name; of several runs, such as seeds, the one that wrote last. None means all
            runs below `runs/`.

    Raises:
        InputError: there is no such run.
    """
    places = [_RUNS] if run is None else [Path(run), _RUNS / "pretrain" / run, _RUNS / run]
    for place in places:
        below = place if place.is_dir() else place.parent if place.is_file() else None
        if below is not None:
            logs = [below / _LOG] if (below / _LOG).exists() else list(below.rglob(_LOG))
            if logs:
                return max(logs, key=lambda path: path.stat().st_mtime).parent
    if run is None:
        raise InputError(f"no run found in {_RUNS.absolute()}; start one with intl-bench pretrain demo")
    known = sorted(path.name for path in (_RUNS / "pretrain").glob("*") if path.is_dir())
    near = difflib.get_close_matches(run, known, n=1)
    hint = f"did you mean {near[0]}?" if near else f"runs here: {', '.join(known) or 'none'}"
    raise InputError(f"{run}: no run with a {_LOG} there; expected the folder or the name of a run; {hint}")


def read(folder: Path) -> State:
    """Read the state of a run. A line that is being written is left out."""
    path = folder / _LOG
    rows = []
    for line in inputs.read_bytes(path).splitlines():
        with contextlib.suppress(ValueError):
            row = json.loads(line)
            if isinstance(row, dict):
                rows.append(row)
    written = path.stat().st_mtime
    summary, epochs = dict[str, Any](), None
    with contextlib.suppress(OSError, ValueError, InputError):
        if (folder / "summary.json").stat().st_mtime >= written:  # else of an earlier session
            summary = dict(json.loads(inputs.read_bytes(folder / "summary.json")))
    with contextlib.suppress(OSError, ValueError, TypeError, InputError):
        epochs = int(configs.read(folder / "config.yaml")["epochs"]) if (folder / "config.yaml").exists() else None
    warnings = []
    if (folder / "log.txt").exists():
        lines = inputs.read_bytes(folder / "log.txt").decode(errors="replace").splitlines()
        warnings = [line.partition("warning: ")[2] for line in lines if "warning: " in line]
    return State(
        folder=folder,
        state="running" if locks.is_held(folder) else str(summary.get("state", "ended")),
        rows=rows,
        epochs=epochs,
        age=max(0.0, time.time() - written),
        warnings=list(dict.fromkeys(warnings))[-_WARNINGS:],
        next=summary.get("next"),
    )


def run(folder: Path) -> None:
    """Print the state of a run: on a terminal again and again until the run ends, elsewhere once."""
    live, drawn = sys.stdout.isatty(), 0
    try:
        while True:
            state = read(folder)
            width = shutil.get_terminal_size((80, 24)).columns
            lines = show(state, width=width)
            if drawn:
                terminal.move_up(drawn)
            print("\n".join(lines), flush=True)
            drawn = sum(max(1, -(-len(line) // width)) for line in lines)  # the terminal breaks long lines
            if not live or state.state != "running":
                return
            time.sleep(_EVERY)
    except KeyboardInterrupt:
        print("the run goes on")


def show(state: State, width: int = 80) -> list[str]:
    """Return the state of a run as lines; only warnings and the next command may be longer than `width`."""
    last = state.rows[-1] if state.rows else {}
    lines = [f"{state.folder}: {state.state}, last line {_ago(state.age)}"]
    if state.state == "ended":
        lines.append("it wrote no summary: it was killed, or its folder is of an earlier version")
    lines.append(_position(last, state.epochs, running=state.state == "running"))
    names = [name for name in _TITLES if any(name in row for row in state.rows)]
    others = [name for name in last if name not in (*_TITLES, *_POSITION) and "/" not in name]
    names += [name for name in others if isinstance(last[name], int | float)]
    for name in names[:_MOST]:
        values = [row[name] for row in state.rows if isinstance(row.get(name), int | float)]
        title, form = _TITLES.get(name, (name, ".4g"))
        if values:
            lines.append(f"  {title[:24]:<24} {values[-1]:>10{form}}  {_curve(values, width - 42)}")
    lines = [_fit(terminal.visible(line).rstrip(), width) for line in lines]
    lines += [terminal.visible(f"warning: {text}") for text in state.warnings]
    return lines + ([f"next: {state.next}"] if state.next and state.state == "finished" else [])


def _position(last: dict[str, Any], epochs: int | None, *, running: bool) -> str:
    if not last:
        return "no step is logged yet"
    step = next((f"{name} {last[name]}" for name in ("step", "iteration") if name in last), "")
    epoch, seconds = last.get("epoch"), last.get("seconds")
    if epochs is None or not isinstance(epoch, int | float):
        return step
    share = min(1.0, epoch / epochs)
    left = ""
    if running and isinstance(seconds, int | float) and epoch > 0:
        left = f", about {planned.clock(seconds / epoch * (epochs - epoch))} left"
    filled = round(20 * share)
    return f"[{'#' * filled}{'.' * (20 - filled)}] {share:.0%}, epoch {epoch:g} of {epochs}, {step}{left}"


def _curve(values: Sequence[float], width: int) -> str:
    """Return the values as a small curve of means, or their first value where a terminal has no such characters."""
    values = [value for value in values if math.isfinite(value)]
    if len(values) < 2 or width < 8:
        return ""
    try:
        _BARS.encode(getattr(sys.stdout, "encoding", None) or "ascii")
    except UnicodeEncodeError:
        return f"at first {values[0]:.4g}"
    count = min(width, len(values), 32)
    edges = [round(number * len(values) / count) for number in range(count + 1)]
    means = [sum(values[a:b]) / (b - a) for a, b in itertools.pairwise(edges)]
    low, high = min(means), max(means)
    scale = (len(_BARS) - 1) / (high - low) if high > low else 0.0
    return "".join(_BARS[round((mean - low) * scale)] for mean in means)


def _fit(line: str, width: int) -> str:
    return line if len(line) <= width else f"{line[: width - 3]}..."


def _ago(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s ago"
    for unit, size in (("days", 86400), ("hours", 3600)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit} ago"
    return f"{seconds / 60:.0f} min ago"
