"""`intl-bench demo`: pre-train, score and tabulate three seeds on generated images, on a CPU and offline."""

import statistics
import time
from collections.abc import Sequence
from pathlib import Path

from intl_bench import runs
from intl_bench.core import planned
from intl_bench.core.config import load
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
_SECONDS = {"pre-train INTL": 29, "5-NN": 6, "linear classifier": 6, "Mask R-CNN": 34}
_TASKS = {"5-NN": ("knn", None), "linear classifier": ("linear", None), "Mask R-CNN": ("coco", "demo")}
_SCORES = (("linear", "top1", "linear top-1"), ("knn", "knn5", "5-NN"), ("coco", "bbox/AP50", "box AP50"))


def run() -> None:
    """Run three pre-trainings, score each beside random initialization, and print the tables of their data sets.

    The scores are those of a linear classifier, 5-NN and Mask R-CNN. The first table comes after the first two scores.
    """
    generated.write(Path(load(DetectionConfig, "demo", "coco").data.root), train=_TRAIN, test=_TEST)
    records: list[ResultRecord] = []
    steps = [(seed, name) for seed in _SEEDS for name in _SECONDS]
    pace = _Pace([_SECONDS[name] for _, name in steps])
    for number, (seed, name) in enumerate(steps):
        print(f"step {number + 1} of {len(steps)}: {name}, seed {seed}; {pace.left(number)} left", flush=True)
        recipe = load_recipe("demo", [f"seed={seed}"])
        if name not in _TASKS:
            train.run(recipe)
            continue
        task, config = _TASKS[name]
        for init in ("checkpoint", "random"):
            plan = runs.TaskRun(
                task=task, checkpoint=recipe.checkpoint, config=config, seeds=[seed], init=init, results=_RESULTS
            )
            records += runs.run(plan)
        if number == 2:
            print(f"\n{render(_records(), measured_only=True, notes='none')}\n", flush=True)
    print(f"\n{render(_records(), notes='short')}\n")
    for task, metric, name in _SCORES:
        trained, random = (
            statistics.mean(r.metrics[metric] for r in records if r.task == task and (r.method == RANDOM) is chance)
            for chance in (False, True)
        )
        print(f"{name}: {trained:.1f} after pre-training, {random:.1f} at random initialization (3 seeds, demo scale)")


def _records() -> list[ResultRecord]:
    return RecordStore(_RESULTS / "records").load()


class _Pace:
    """The time that is left, from the time that the finished steps took beside the time that they take on two cores.

    A step that an earlier command finished takes no time, and tells nothing.
    """

    def __init__(self, expected: Sequence[float]) -> None:
        self.expected = expected
        self.at = time.perf_counter()
        self.spent = self.planned = 0.0

    def left(self, done: int) -> str:
        """Return the time left after `done` steps; to call before each step."""
        now = time.perf_counter()
        if done and now - self.at > 0.2 * self.expected[done - 1]:
            self.spent, self.planned = self.spent + now - self.at, self.planned + self.expected[done - 1]
        self.at = now
        seconds = sum(self.expected[done:]) * (self.spent / self.planned if self.planned else 1.0)
        return f"about {planned.duration(seconds)}"
