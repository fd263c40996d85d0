"""`intl-bench watch`: the state of a run on a terminal."""

import difflib
import itertools
import math
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from intl_bench import run_state
from intl_bench.core import inputs, json_lines, planned, terminal
from intl_bench.core.errors import InputError
from intl_bench.run_state import RunState

_RUNS = Path("runs")
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
_ABOUT = {
    "stopped": "its command, typed again, resumes it",
    "ended": "it left no state to resume from: it was killed early, or it is a score that is finished",
}


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
            logs = [below / run_state.LOG] if (below / run_state.LOG).exists() else list(below.rglob(run_state.LOG))
            if logs:
                return max(logs, key=lambda path: path.stat().st_mtime).parent
    if run is None:
        raise InputError(f"no run found in {_RUNS.absolute()}; start one with intl-bench pretrain demo")
    known = sorted(path.name for path in (_RUNS / "pretrain").glob("*") if path.is_dir())
    near = difflib.get_close_matches(run, known, n=1)
    hint = f"did you mean {near[0]}?" if near else f"runs here: {', '.join(known) or 'none'}"
    raise InputError(f"{run}: no run with a {run_state.LOG} there; expected the folder or the name of a run; {hint}")


def run(folder: Path) -> None:
    """Print the state of a run: on a terminal again and again until the run ends, elsewhere once."""
    live, drawn = sys.stdout.isatty(), 0
    try:
        while True:
            state = run_state.read(folder)
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


def show(run: RunState, width: int = 80) -> list[str]:
    """Return the state of a run as lines; only warnings and the next command may be longer than `width`."""
    log = run.folder / run_state.LOG
    rows, age = json_lines.rows(log), max(0.0, time.time() - log.stat().st_mtime)
    lines = [f"{run.folder}: {run.state}, last line {planned.duration(age)} ago"]
    lines += [_ABOUT[run.state]] if run.state in _ABOUT else []
    lines.append(_position(run))
    names = [name for name in _TITLES if any(name in row for row in rows)]
    others = [name for name in run.last if name not in (*_TITLES, *_POSITION) and "/" not in name]
    names += [name for name in others if isinstance(run.last[name], int | float)]
    for name in names[:_MOST]:
        values = [row[name] for row in rows if isinstance(row.get(name), int | float)]
        title, form = _TITLES.get(name, (name, ".4g"))
        if values:
            lines.append(f"  {title[:24]:<24} {values[-1]:>10{form}}  {_curve(values, width - 42)}")
    lines = [_fit(terminal.visible(line).rstrip(), width) for line in lines]
    lines += [terminal.visible(f"warning: {text}") for text in _warnings(run.folder)]
    follows = run.summary.get("next") if run.state == "finished" else None
    return lines + ([f"next: {follows}"] if follows else [])


def _position(run: RunState) -> str:
    if not run.last:
        return "no step is logged yet"
    step, epoch, seconds = run.step, run.last.get("epoch"), run.last.get("seconds")
    if not step or not run.steps or run.percent is None:
        return run.position
    text = f"[{'#' * (run.percent // 5):.<20}] {run.percent}%, step {step} of {run.steps}"
    text += f", epoch {epoch:g}" if isinstance(epoch, int | float) else ""
    if run.state == "running" and isinstance(seconds, int | float) and math.isfinite(seconds):
        text += f", about {planned.clock(seconds / step * max(0, run.steps - step))} left"
    return text


def _warnings(folder: Path) -> list[str]:
    """Return the last warnings of a run."""
    path = folder / "log.txt"
    lines = inputs.read_bytes(path).decode(errors="replace").splitlines() if path.exists() else []
    found = [line.partition("warning: ")[2] for line in lines if "warning: " in line]
    return list(dict.fromkeys(found))[-_WARNINGS:]


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
