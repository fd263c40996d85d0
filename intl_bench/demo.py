"""`intl-bench demo`: pre-train, score and tabulate three seeds on generated images, on a CPU and offline."""

import statistics
from pathlib import Path

from intl_bench import runs, tables
from intl_bench.core.config import load
from intl_bench.records import RecordStore, ResultRecord
from pretrain import train
from pretrain.recipe import load_recipe
from transfer.detection.annotations import generated
from transfer.detection.config import DetectionConfig
from transfer.features import RANDOM

_SEEDS = (0, 1, 2)
_RESULTS = Path("runs") / "demo"
_TRAIN, _TEST = 400, 100  # number of images for detection


def run() -> None:
    """Run three pre-trainings, score each beside random initialization, and print Tables 1-3.

    The scores are those of a linear classifier, 5-NN and Mask R-CNN.
    """
    generated.write(Path(load(DetectionConfig, "demo", "coco").data.root), train=_TRAIN, test=_TEST)
    records: list[ResultRecord] = []
    for seed in _SEEDS:
        checkpoint = train.run(load_recipe("demo", [f"seed={seed}"]))
        for task, config in (("knn", None), ("linear", None), ("coco", "demo")):
            for init in ("checkpoint", "random"):
                plan = runs.TaskRun(
                    task=task, checkpoint=checkpoint, config=config, seeds=[seed], init=init, results=_RESULTS
                )
                records += runs.run(plan)
    print()
    print(tables.render(RecordStore(_RESULTS / "records").load(), tables=("1", "2", "3"), format="markdown"))
    print()
    scores = (("linear", "top1", "linear top-1"), ("knn", "knn5", "5-NN"), ("coco", "bbox/AP50", "box AP50"))
    for task, metric, name in scores:
        trained, random = (
            statistics.mean(r.metrics[metric] for r in records if r.task == task and (r.method == RANDOM) is chance)
            for chance in (False, True)
        )
        print(f"{name}: {trained:.1f} after pre-training, {random:.1f} at random initialization (3 seeds, demo scale)")
