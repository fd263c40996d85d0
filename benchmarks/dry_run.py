"""Compare the times that `--dry-run` predicts for this machine with whole commands.

    python benchmarks/dry_run.py                                     on the CPU, a minute on 2 idle cores
    python benchmarks/dry_run.py --photos IMAGENETTE                 photos too
    python benchmarks/dry_run.py --processor-time                    on a busy machine

Each command runs in a folder of its own, after its prediction. The time of a command is that of its work, without the
start of Python. Photos are an image folder, such as Imagenette at 96 pixels.
"""

import argparse
import contextlib
import io
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from intl_bench import dry_run, runs
from pretrain import train
from pretrain.dry_run import machine, plan
from pretrain.recipe import load_recipe
from transfer.detection.annotations import generated

SHAPES = ["data.kind=shapes", "data.name=shapes", "workers=0"]
PRETRAIN = {
    "pretrain cifar10_r18_intl on 512 generated images, 1 epoch": (
        "cifar10_r18_intl",
        [*SHAPES, "data.size=512", "epochs=1", "warmup_epochs=0", "batch_size=128"],
    ),
    "pretrain demo on 4,096 images, 1 epoch": ("demo", ["epochs=1", "data.size=4096"]),
}
PHOTOS = {"pretrain own_images at 64 pixels, 40 steps": ("own_images", ["max_steps=40", "workers=0"])}
TASKS = {
    "knn, 2,500 images": ("knn", ["data.size=2000"]),
    "linear, fixed features, 2,500 images": ("linear", ["data.size=2000", "data.limit=1500"]),
    "coco demo, 40 steps": ("coco", ["data.root=coco", "iterations=40", "milestones=[30]"]),
}
SCORED_PHOTOS = {
    "knn on 4,872 photos": ("knn", ["data.limit=0.1", "workers=0"]),
    "finetune on 947 of 9,469 photos, 1 epoch": ("finetune", ["train_percent=10", "epochs=1", "workers=0"]),
}


def timed(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
        work()
    return time.perf_counter() - started


def report(name: str, predicted: float, measured: float) -> None:
    print(f"| {name} | {predicted:.1f} | {measured:.1f} | {predicted / measured - 1:+.0%} |", flush=True)


def pretrain(name: str, recipe_name: str, overrides: list[str]) -> Path:
    recipe = load_recipe(recipe_name, [*overrides, "device=cpu", "name=timed"])
    made = plan.make_plan(recipe, here=machine.measure.__wrapped__("cpu"), devices=())
    hours = made.estimates[0].hours
    assert hours is not None
    report(name, 3600 * hours, timed(lambda: train.run(recipe, fresh=True)))
    return recipe.checkpoint


def score(name: str, task: str, checkpoint: Path, overrides: list[str]) -> None:
    config = "demo" if task == "coco" else None
    words = [*overrides, "device=cpu"]
    made = runs.TaskRun(task=task, checkpoint=checkpoint, config=config, overrides=words, fresh=True)
    _, read, resolved = runs.prepare(made)
    here = machine.measure.__wrapped__("cpu")
    predicted = dry_run.work_of(task, read, resolved, here).seconds(here.device, here)
    report(name, predicted, timed(lambda: runs.run(made)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, help="an image folder")
    parser.add_argument("--processor-time", action="store_true", help="of one core, for a busy machine")
    options = parser.parse_args()
    if options.processor_time:
        torch.set_num_threads(1)
        time.perf_counter = time.process_time
    photos = options.photos and options.photos.resolve()
    os.chdir(tempfile.mkdtemp())
    print("| command | seconds predicted | measured | error |")
    print("| --- | --- | --- | --- |", flush=True)
    for name, case in PRETRAIN.items():
        demo = pretrain(name, *case)
    demo = demo.rename("demo.pt")
    generated.write(Path("coco"), train=120, test=40)
    for name, (task, overrides) in TASKS.items():
        score(name, task, demo, overrides)
    if photos is not None:
        where = [f"data.root={photos}", "data.name=photos", "data.kind=imagefolder"]
        for name, (recipe, overrides) in PHOTOS.items():
            trained = pretrain(name, recipe, [*overrides, *where])
        for name, (task, overrides) in SCORED_PHOTOS.items():
            score(name, task, trained, overrides)


if __name__ == "__main__":
    main()
