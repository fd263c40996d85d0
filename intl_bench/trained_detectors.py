"""Score a trained detector without training it.

No record is written: a record states a training, which is unknown for a detector of Detectron2, and which has a record
already for one of this project. The numbers are in `evaluation.json` of a folder of their own.
"""

import contextlib
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from intl_bench import provenance, runs
from intl_bench.core import config as configs
from intl_bench.core import files, inputs
from intl_bench.core.distributed import is_main_process
from intl_bench.core.errors import InputError
from intl_bench.core.identity import digest, identity
from intl_bench.core.locks import lock
from intl_bench.core.machine import limit_workers
from intl_bench.score_lines import describe
from transfer import find_task
from transfer.detection.detectors import Detector
from transfer.detection.task import read_annotations

# Settings that change the detections of a trained detector.
_SETTINGS = ("model", "engine", "precision", "channels_last", "test_min_size", "test_max_size")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """A detector, and how it is scored.

    Attributes:
        config: a protocol's file. Without it a detector of this project has its own settings, and another one those of
            the default protocol.
        fresh: score again.
    """

    task: str
    detector: Path
    config: str | None = None
    overrides: Sequence[str] = ()
    fresh: bool = False


def prepare(plan: Plan) -> tuple[Detector, Any]:
    """Return the detector and the resolved configuration of a plan.

    Raises:
        InputError: the file has no detector, or a configuration, key or value is unknown.
    """
    task = find_task(plan.task)
    assert task.read_detector is not None
    assert task.default is not None
    detector = task.read_detector(plan.detector)
    values, where = dict(detector.settings), f"detector {plan.detector}"
    if plan.config is not None or not detector.is_ours:
        path = configs.find(plan.config or task.default, plan.task)
        where = f"config {path.parent.name}/{path.name}"
        for key, value in configs.read(path, plan.task).items():
            values[key] = {**values.get(key, {}), **value} if isinstance(value, dict) else value
        values["model"] = {**values["model"], **detector.settings["model"]}
    config = task.resolve(limit_workers(configs.build(task.config, values, where, plan.overrides), plan.overrides))
    kind = config.data.kind
    if kind != plan.task:
        raise InputError(f"{plan.detector}: a detector of data.kind={kind}; run intl-bench {kind} --eval-only")
    return detector, config


def score(plan: Plan) -> dict[str, Any]:
    """Score a detector, unless that was done before, and return the content of `evaluation.json`.

    Raises:
        InputError: the detector, the annotations or the images are invalid.
    """
    task = find_task(plan.task)
    assert task.evaluate is not None
    detector, config = prepare(plan)
    known = identity(config)
    about = {
        "task": plan.task,
        "dataset": config.data.dataset,
        "detector_sha256": detector.sha256,
        "settings": {key: known[key] for key in _SETTINGS},
        "data": {"test": read_annotations(config, "test").fingerprint()},
    }
    folder = Path("runs") / plan.task / digest(about)[:16]
    path = folder / "evaluation.json"
    with lock(folder) if is_main_process() else contextlib.nullcontext():
        done = path.exists() and not plan.fresh
        if done:
            found: dict[str, Any] = inputs.read_json(path, "the evaluation")
        else:
            outcome = task.evaluate(detector, config, folder)
            found = {
                **about,
                "detector": str(detector.path),
                "training": detector.settings if detector.is_ours else "unknown",
                "metrics": outcome.metrics,
                "details": outcome.details,
                "code": provenance.code(),
                "libraries": provenance.libraries(),
                "hardware": provenance.hardware(),
                "created": runs.now(),
            }
        if is_main_process():
            if not done:
                files.write_text(path, files.json_text(found))
            if config.visualize and task.draw is not None and not task.draw(config, folder, folder / "worst.png"):
                raise InputError(f"{folder}: the detections are not there any more; add --fresh")
            note = "already there" if done else "no training, no record"
            what = f"{plan.task} {detector.path} {config.data.dataset}"
            print(describe(what, found["metrics"], f"{note}; {path}"), flush=True)
    return found
