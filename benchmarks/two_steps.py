"""Do two steps of the ImageNet recipe of every method, with the real ResNet-50, heads and 224-pixel views.

    python benchmarks/two_steps.py /path/to/imagenet [--batch 32] [--methods simclr byol ...]

Any image folder will do. The run uses the size of ImageNet for queues and schedules, as the recipe expects. Only the
batch is smaller, and the settings that cannot exceed it. Each method runs in a separate process.
"""

import argparse
import resource
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from intl_bench.core.datasets import DATASETS
from intl_bench.core.distributed import start
from pretrain import methods, train
from pretrain.images.data import open_source
from pretrain.images.loader import training_batches
from pretrain.recipe import load_recipe


def two_steps(name: str, root: str, batch: int) -> str:
    """Do the two steps; return a line of a Markdown table."""
    overrides = [f"batch_size={batch}", f"data.root={root}", "workers=0", "precision=fp32"]
    if name in ("wmse", "cw_rgp"):
        overrides += [f"method.sub_batch={batch}"]
    if name == "wmse":
        overrides += [f"projector.out={batch // 2}"]
    recipe = load_recipe(f"imagenet_r50_{name}", overrides)
    source = open_source(recipe.data, "train")
    with start("auto") as process:
        training = train.build_training(recipe, process, DATASETS["imagenet"].train, 1000)
        began = time.perf_counter()
        batches = training_batches(source, recipe.views, seed=0, batch_size=batch, last_step=2)
        losses = [training.take_step(images).values()["loss"] for images in batches]
    parameters = sum(p.numel() for p in training.method.parameters()) / 1e6
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    steps = " / ".join(f"{loss:.4g}" for loss in losses)
    return (
        f"| {training.display} | {len(recipe.views)} | {parameters:.1f} | {steps} | "
        f"{(time.perf_counter() - began) / 2:.1f} | {peak:.1f} |"
    )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("root")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--methods", nargs="+", default=methods.names())
    options = parser.parse_args()
    if len(options.methods) == 1:
        print(two_steps(options.methods[0], options.root, options.batch))
        return
    print(f"batch {options.batch}, {torch.get_num_threads()} threads")
    print("| method | views | parameters, M | loss of step 1 / 2 | s per step | peak GiB |")
    print("| --- | --- | --- | --- | --- | --- |", flush=True)
    for name in options.methods:
        words = [sys.executable, __file__, options.root, "--batch", str(options.batch), "--methods", name]
        subprocess.run(words, check=False)


if __name__ == "__main__":
    main()
