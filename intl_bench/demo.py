"""`intl-bench demo`: pre-train, score and tabulate on generated images, three seeds, on a CPU and offline."""

import statistics
from pathlib import Path

from intl_bench import runs, tables
from intl_bench.records import RecordStore, ResultRecord
from pretrain import train
from pretrain.recipe import load_recipe

_SEEDS = (0, 1, 2)
_RESULTS = Path("runs") / "demo"


def run() -> None:
    """Three pre-trainings, each scored by linear classifier and 5-NN beside random initialisation; then Tables 1-3."""
    records: list[ResultRecord] = []
    for seed in _SEEDS:
        checkpoint = train.run(load_recipe("demo", [f"seed={seed}"]))
        for task in ("knn", "linear"):
            for init in ("checkpoint", "random"):
                plan = runs.Plan(task=task, checkpoint=checkpoint, seeds=[seed], init=init, results=_RESULTS)
                records += runs.run(plan)
    print()
    print(tables.render(RecordStore(_RESULTS / "records").load(), tables=("1", "2", "3"), format="markdown"))
    print()
    for task, metric, name in (("linear", "top1", "linear top-1"), ("knn", "knn5", "5-NN")):
        trained, random = (
            statistics.mean(
                r.metrics[metric] for r in records if r.task == task and (r.method == "Random init") is chance
            )
            for chance in (False, True)
        )
        print(f"{name}: {trained:.1f} after pre-training, {random:.1f} at random initialisation (3 seeds, demo scale)")
