"""Compare 5-NN accuracy after training on views of this project and on views of Pillow and torchvision.

    python benchmarks/quality.py data.kind=npz data.name=cifar10 data.root=PATH epochs=10 --seeds 3

Both train the recipe `cifar10_small_intl` with the same loop and the same initial weights, on the same images in the
same order. Only the code of the views and its random numbers differ. The arguments are overrides of the recipe.
"""

import argparse
import contextlib
import statistics
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from input import with_v1
from PIL import Image

from intl_bench import runs
from intl_bench.core import distributed
from intl_bench.core.seeding import permutation
from pretrain import states, train
from pretrain.images.data import ImageSource, normalization, open_source
from pretrain.images.loader import training_batches
from pretrain.recipe import Recipe, load_recipe


def reference_views(source: ImageSource, recipe: Recipe, steps_per_epoch: int) -> Iterator[list[torch.Tensor]]:
    transforms = [with_v1(view, *normalization(recipe.data)) for view in recipe.views]
    for epoch in range(recipe.epochs):
        order = permutation(recipe.seed, "order", epoch, len(source))
        for step in range(steps_per_epoch):
            some = order[step * recipe.batch_size : (step + 1) * recipe.batch_size]
            images = [Image.fromarray(source.image(index)) for index in some.tolist()]
            yield [torch.stack([transform(image) for image in images]) for transform in transforms]


def knn5(recipe: Recipe, reference: bool) -> float:
    """Return the 5-NN accuracy in percent after the epochs of the recipe."""
    torch.manual_seed(recipe.seed)  # seed of the transforms of torchvision
    with distributed.start(recipe.device) as process:
        source = open_source(recipe.data, "train")
        training = train.build_training(recipe, process, len(source))
        if reference:
            for views in reference_views(source, recipe, training.steps_per_epoch):
                metrics = training.optimize([view.to(process.device) for view in views])
        else:
            for batch in training_batches(
                source, recipe.views, seed=recipe.seed, batch_size=recipe.batch_size, last_step=training.total_steps
            ):
                metrics = training.take_step(batch)
        loss = metrics.values()["loss"]
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        path = Path("checkpoint.pt")
        states.save(path, training.state())
        (record,) = runs.run(runs.TaskRun(task="knn", checkpoint=path))
    print(f"{'reference' if reference else 'ours'}, seed {recipe.seed}: loss {loss:.4f}, {record.metrics}", flush=True)
    return record.metrics["knn5"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    root = [f"data.root={Path(o.partition('=')[2]).resolve()}" for o in options.overrides if o.startswith("data.root=")]
    recipes = [
        load_recipe("cifar10_small_intl", [*options.overrides, *root, f"seed={seed}"]) for seed in range(options.seeds)
    ]
    scores = {way: [knn5(recipe, way == "reference") for recipe in recipes] for way in ("reference", "ours")}
    print(f"| {recipes[0].epochs} epochs, 5-NN | mean | std | n |\n| --- | --- | --- | --- |")
    for way, values in scores.items():
        print(f"| {way} | {statistics.mean(values):.2f} | {statistics.stdev(values):.2f} | {len(values)} |")


if __name__ == "__main__":
    main()
