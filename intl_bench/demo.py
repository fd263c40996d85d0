"""`intl-bench demo`: pre-train, score and tabulate three seeds on generated images, on a CPU and offline."""

import statistics
import time
from collections.abc import Sequence
from pathlib import Path

from intl_bench import runs
from intl_bench.core import planned
from intl_bench.core.config import load
from intl_bench.launch.seeds import run_in_parallel
from intl_bench.records import RecordStore, ResultRecord
from intl_bench.tables import render
from pretrain import train
from pretrain.recipe import load_recipe
from transfer.detection.annotations import generated
from transfer.detection.config import DetectionConfig
from transfer.features import RANDOM

_SEEDS = (0, 1, 2)
_RESULTS = Path("runs") / "demo"
_TRAIN, _TEST = 400, 100  # number of images for detection
# The steps of a seed, and the seconds of each on two cores, from which the time left is estimated.
_DETECTION = "Mask R-CNN"
_SECONDS = {"pre-train INTL": 29, "5-NN": 6, "linear classifier": 6, _DETECTION: 34}
_REST = 180  # seconds of all seeds after the first table, side by side
_TASKS = {"5-NN": ("knn", None), "linear classifier": ("linear", None), _DETECTION: ("coco", "demo")}
_SCORES = (("linear", "top1", "linear top-1"), ("knn", "knn5", "5-NN"), ("coco", "bbox/AP50", "box AP50"))


def run() -> None:
    """Run three pre-trainings, score each beside random initialization, and print the tables of their data sets.

    The scores are those of a linear classifier, 5-NN and Mask R-CNN. The first table comes after the first scores of
    the first seed. Then the seeds go on side by side, each on its share of the cores.
    """
    generated.write(Path(load(DetectionConfig, "demo", "coco").data.root), train=_TRAIN, test=_TEST)
    first = [name for name in _SECONDS if name != _DETECTION]
    steps = len(_SECONDS) * len(_SEEDS)
    started, expected, pace = time.perf_counter(), 0, 1.0
    for number, name in enumerate(first):
        left = (sum(_SECONDS[other] for other in first[number:]) + _REST) * pace
        print(
            f"step {number + 1} of {steps}: {name}, seed {_SEEDS[0]}; about {planned.duration(left)} left", flush=True
        )
        _step(name, _SEEDS[0])
        expected += _SECONDS[name]
        pace = (time.perf_counter() - started) / expected
    print(f"\n{render(_records(), measured_only=True, notes='none')}\n")
    print(
        f"steps {len(first) + 1} to {steps} of {steps}: {_DETECTION}, and seeds {_SEEDS[1]} and {_SEEDS[2]}, side by "
        f"side; about {planned.duration(_REST * pace)} left",
        flush=True,
    )
    run_in_parallel({f"seed {seed}": ["demo", "--only-seed", str(seed)] for seed in _SEEDS})
    records = _records()
    print(f"\n{render(records, notes='short')}\n")
    for task, metric, name in _SCORES:
        trained, random = (_mean(records, task, metric, chance=chance) for chance in (False, True))
        print(f"{name}: {trained:.1f} after pre-training, {random:.1f} at random initialization (3 seeds, demo scale)")


def run_seed(seed: int) -> None:
    """Run the steps of one seed that have no results yet."""
    for name in _SECONDS:
        _step(name, seed)


def _step(name: str, seed: int) -> None:
    recipe = load_recipe("demo", [f"seed={seed}"])
    if name not in _TASKS:
        train.run(recipe)
        return
    task, config = _TASKS[name]
    for init in ("checkpoint", "random"):
        runs.run(
            runs.TaskRun(
                task=task, checkpoint=recipe.checkpoint, config=config, seeds=[seed], init=init, results=_RESULTS
            )
        )


def _mean(records: Sequence[ResultRecord], task: str, metric: str, *, chance: bool) -> float:
    """Return the mean over the seeds; the latest record of a seed counts."""
    found = sorted((r for r in records if r.task == task), key=lambda record: record.created_at)
    scores = {r.transfer_seed: r.metrics[metric] for r in found if (r.method == RANDOM) is chance}
    return statistics.mean(scores[seed] for seed in _SEEDS)


def _records() -> list[ResultRecord]:
    return RecordStore(_RESULTS / "records").load()
