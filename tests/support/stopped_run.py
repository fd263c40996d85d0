"""A pre-training run as one that was stopped leaves it; and waiting for the moment to stop another process."""

import time
from collections.abc import Callable

from intl_bench.core import distributed
from pretrain import states, train
from pretrain.images.data import open_source
from pretrain.images.loader import training_batches
from pretrain.recipe import Recipe


def stop_after(recipe: Recipe, steps: int) -> None:
    """Leaves the run's folder as a run that was stopped after `steps` steps."""
    source = open_source(recipe.data, "train")
    with distributed.start("cpu") as process:
        training = train.build_training(recipe, process, len(source), len(source.class_names))
        for batch in training_batches(
            source, recipe.views, seed=recipe.seed, batch_size=recipe.batch_size, last_step=steps
        ):
            training.take_step(batch)
        states.save(recipe.checkpoint, training.state())


def wait(condition: Callable[[], object]) -> None:
    """Returns as soon as it holds, which has to be within five minutes."""
    deadline = time.monotonic() + 300
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)
