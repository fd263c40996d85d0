"""The runs and the records of a working directory, as rows for people."""

import contextlib
import json
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from intl_bench.core import inputs, locks, planned
from intl_bench.core.errors import InputError
from intl_bench.records import RecordStore, ResultRecord

Row = Mapping[str, str]
_TAIL = 2**16  # bytes of a log that hold its last line
_MAIN = ("bbox/AP", "top1")  # the metric of a record that is shown, or its first one


def runs(folder: Path = Path("runs")) -> list[Row]:
    """Return the runs of `intl-bench pretrain` and the unfinished ones of the tasks, the latest first."""
    trained = {run for run in folder.glob("pretrain/*/seed*") if run.is_dir()}  # not the locks beside them
    scoring = {state.parent for state in folder.glob("*/*/state*.pt")}
    return [_run(run) for run in sorted(trained | scoring, key=_changed, reverse=True)]


def _run(run: Path) -> Row:
    last, summary = _last_line(run / "metrics.jsonl"), _summary(run)
    finished = (run / "backbone.safetensors").exists()
    state = str(summary.get("state", "finished" if finished else "stopped"))
    state = "running" if locks.is_held(run) else state
    loss = last.get("loss")
    return {
        "name": str(run),
        "state": state,
        "progress": _progress(run, last, summary, state),
        "loss": f"{loss:.4g}" if isinstance(loss, float | int) and math.isfinite(loss) else "",
        "age": planned.duration(max(0.0, time.time() - _changed(run))),
    }


def _summary(run: Path) -> dict[str, Any]:
    """Return what a run wrote at its end; {} if it goes on, was killed, or is of an earlier version."""
    path = run / "summary.json"
    with contextlib.suppress(OSError, ValueError, InputError):
        if path.stat().st_mtime >= (run / "metrics.jsonl").stat().st_mtime:  # else of an earlier session
            found = inputs.read_json(path, "summary")
            return found if isinstance(found, dict) else {}
    return {}


def _progress(run: Path, last: Mapping[str, Any], summary: Mapping[str, Any], state: str) -> str:
    step, total = last.get("step", last.get("iteration")), summary.get("steps")
    if state == "finished":
        return f"step {step}" if step else ""
    if total is None:
        total, saved = _planned(run / "checkpoint.pt")
        step = step if isinstance(step, int) else saved
    if total and step is not None:
        return f"step {step} of {total} ({100 * step // total}%)"
    return f"step {step}" if step else f"epoch {last['epoch']}" if "epoch" in last else ""


def _planned(checkpoint: Path) -> tuple[int | None, int | None]:
    """Return the number of steps of a run and that of its checkpoint; None if there is no readable checkpoint."""
    import torch  # only for unfinished runs

    with contextlib.suppress(Exception):  # it is missing, damaged, or being replaced
        state = torch.load(checkpoint, map_location="cpu", mmap=True, weights_only=True)
        planned_steps = int(state["config"]["epochs"]) * int(state["steps_per_epoch"])
        return min(planned_steps, state["config"].get("max_steps") or planned_steps), int(state["step"])
    return None, None


def _last_line(log: Path) -> dict[str, Any]:
    """Return the last complete line of a log with one JSON object a line; {} if there is none."""
    with contextlib.suppress(OSError, ValueError), inputs.open_file(log) as stream:
        stream.seek(max(0, stream.seek(0, 2) - _TAIL))
        for line in reversed(stream.read().splitlines()):
            with contextlib.suppress(ValueError):
                found = json.loads(line)
                return found if isinstance(found, dict) else {}
    return {}


def _changed(run: Path) -> float:
    """Return the time at which a file of a run's folder was written last."""
    times = [0.0]
    for file in run.iterdir():
        with contextlib.suppress(OSError):  # it was just removed or replaced
            times.append(file.stat().st_mtime)
    return max(times)


def records(results: Path) -> list[Row]:
    """Return the records in a folder of results, the latest first.

    Raises:
        InputError: a file is not a record.
    """
    found = RecordStore(results / "records").load()
    return [_record(record) for record in sorted(found, key=lambda record: record.created_at, reverse=True)]


def _record(record: ResultRecord) -> Row:
    metric = next((name for name in (*_MAIN, *record.metrics) if name in record.metrics), None)
    trained, seed = record.pretrain_seed, record.transfer_seed
    return {
        "name": record.key,
        "task": record.task,
        "method": record.method,
        "dataset": record.dataset,
        "score": "" if metric is None else f"{record.metrics[metric]:.2f} {metric}",
        "seed": str(seed) if trained in (None, seed) else f"{trained}, {seed}",
        "scale": record.scale,
        "date": record.created[:10],
        "file": record.file,
    }
