"""The runs and the records of a working directory, as rows for people."""

import contextlib
import math
import time
from collections.abc import Mapping
from pathlib import Path

from intl_bench import run_state
from intl_bench.core import planned
from intl_bench.records import RecordStore, ResultRecord

Row = Mapping[str, str]
_MAIN = ("bbox/AP", "top1")  # the metric of a record that is shown, or its first one


def runs(folder: Path = Path("runs")) -> list[Row]:
    """Return the runs of `intl-bench pretrain` and the unfinished ones of the tasks, the latest first."""
    trained = {run for run in folder.glob("pretrain/*/seed*") if run.is_dir()}  # not the locks beside them
    scoring = {state.parent for state in folder.glob("*/*/state*.pt")}
    return [_run(run) for run in sorted(trained | scoring, key=_changed, reverse=True)]


def _run(folder: Path) -> Row:
    run = run_state.read(folder)
    loss = run.last.get("loss")
    return {
        "name": str(folder),
        "state": run.state,
        "progress": run.position,
        "loss": f"{loss:.4g}" if isinstance(loss, float | int) and math.isfinite(loss) else "",
        "age": planned.duration(max(0.0, time.time() - _changed(folder))),
    }


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
