"""Compare the times that `--dry-run` predicts for this machine with whole commands.

    python benchmarks/dry_run.py                                     on the CPU, five minutes on 2 idle cores
    python benchmarks/dry_run.py --photos IMAGENETTE                 scoring of photos too

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

from intl_bench import dry_run, runs
from pretrain import train
from pretrain.dry_run import machine, plan
from pretrain.recipe import load_recipe
from transfer.detection.annotations import generated

SHAPES = ["data.kind=shapes", "data.name=shapes", "workers=0"]
PRETRAIN = {
    "pretrain cifar10_small_intl on 4,096 generated images, 2 epochs": (
        "cifar10_small_intl",
        [*SHAPES, "data.size=4096", "epochs=2", "warmup_epochs=1"],
    ),
    "pretrain cifar10_r18_intl on 1,024 generated images, 1 epoch": (
        "cifar10_r18_intl",
        [*SHAPES, "data.size=1024", "epochs=1", "warmup_epochs=0", "batch_size=128"],
    ),
}
PHOTOS = {
    "pretrain imagenet_r50_intl with ResNet-18 on photos at 64 pixels, 20 steps": (
        "imagenet_r50_intl",
        [
            *("backbone.name=resnet18", "size=64", "batch_size=64", "projector.hidden=512", "projector.out=512"),
            *("precision=fp32", "max_steps=20"),
        ],
    )
}
TASKS = {
    "knn": ("knn", []),
    "linear, fixed features": ("linear", ["data.size=2000"]),
    "coco demo, 100 steps": ("coco", ["data.root=coco", "iterations=100", "milestones=[80]"]),
}
SCORED_PHOTOS = {
    "knn on photos, 1 of 10 images": ("knn", ["data.limit=0.1"]),
    "linear on photos, 1 of 10 images, 1 epoch": ("linear", ["data.limit=0.1", "epochs=1", "milestones=[]"]),
    "finetune on photos, 10%, 1 epoch": ("finetune", ["train_percent=10", "epochs=1", "batch_size=64"]),
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
    options = parser.parse_args()
    photos = options.photos and options.photos.resolve()
    os.chdir(tempfile.mkdtemp())
    print("| command | seconds predicted | measured | error |")
    print("| --- | --- | --- | --- |", flush=True)
    for name, case in PRETRAIN.items():
        pretrain(name, *case)
    demo = pretrain("pretrain demo, 1 epoch", "demo", ["epochs=1"]).rename("demo.pt")
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
