"""The CIFAR-10 recipe of every method, reduced so that a CPU trains it in a second."""

import torch

from intl_bench.core import config as configs
from intl_bench.core import distributed
from pretrain import train
from pretrain.recipe import Recipe, load_recipe

# Further changes of the CIFAR-10 recipe of a method, for 192 images in batches of 32.
OVERRIDES = {
    "mocov2": ["method.queue=64"],
    "swav": [
        "method.queue=64",
        "method.queue_from_epoch=1",
        "method.freeze_prototypes_epochs=1",
        "method.prototypes=30",
    ],
    "dino": ["method.outputs=48", "method.warmup_epochs=1"],
    "byol": ["method.predictor_hidden=32"],
    "wmse": ["method.sub_batch=32", "projector.out=16"],
    "cw_rgp": ["method.sub_batch=16", "projector.out=128"],
}
TINY = [
    *("backbone.name=resnet10_narrow", "backbone.stem=imagenet", "projector.hidden=32", "projector.out=64"),
    *("batch_size=32", "epochs=2", "warmup_epochs=1", "precision=fp32", "workers=0", "log_every=1", "spectrum_every=6"),
    *("data.kind=npz", "data.name=cifar10", "data.root=sample.npz"),
]


def has_recipe(name: str) -> bool:
    """Whether a method has a CIFAR-10 recipe."""
    return (configs.CONFIGS / "pretrain" / f"cifar10_r18_{name}.yaml").is_file()


def tiny(name: str, *more: str) -> Recipe:
    """Return the tiny recipe of a method; without a CIFAR-10 recipe, `demo` with the defaults of the method."""
    changes = [*TINY, *OVERRIDES.get(name, []), "name=tiny", *more]
    if has_recipe(name):
        return load_recipe(f"cifar10_r18_{name}", changes)
    return load_recipe("demo", [f"method={{name: {name}}}", *changes])


def train_build(recipe: Recipe) -> train.Training:
    """Build the run of a recipe in this process, for 192 images of 10 classes."""
    process = distributed.Process(rank=0, world_size=1, device=torch.device("cpu"))
    return train.build_training(recipe, process, 192, 10)
