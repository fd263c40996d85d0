"""Test supervised pre-training: cross-entropy, labels in the training loop, and two processes."""

import authors
import pytest
import torch
from method_cases import setup, views

from intl_bench.core.distributed import Process
from pretrain import train
from pretrain.images.data import open_source
from pretrain.images.loader import training_batches
from pretrain.methods import supervised
from pretrain.recipe import load_recipe

LABELS = torch.arange(32) % 10


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_loss_is_cross_entropy(smoothing: float) -> None:
    config = supervised.Config(label_smoothing=smoothing)
    method = authors.fill(supervised.build(config, setup()), "supervised").double()
    images = views()
    terms = method(images, LABELS)
    targets = torch.full((32, 10), smoothing / 10, dtype=torch.float64).scatter(
        1, LABELS[:, None], 1 - smoothing + smoothing / 10
    )
    losses = []
    for view in images:
        logits = method.projector(method.backbone(view))
        losses.append(-(targets * (logits - logits.logsumexp(1, keepdim=True))).sum(1).mean())
    assert terms.keys() == {"cross_entropy"}
    torch.testing.assert_close(terms["cross_entropy"].double(), sum(losses) / 2, rtol=1e-12, atol=0)


def test_the_loop_hands_over_the_labels() -> None:
    """Steps on one batch lower its loss, which is possible only with the labels of its images."""
    recipe = load_recipe(
        "demo", ["method={name: supervised}", "data.size=400", "batch_size=64", "base_lr=0.2", "warmup_epochs=0"]
    )
    source = open_source(recipe.data, "train")
    process = Process(rank=0, world_size=1, device=torch.device("cpu"))
    training = train.build_training(recipe, process, len(source), len(source.class_names))
    (batch,) = training_batches(source, recipe.views, seed=0, batch_size=64, first_step=0, last_step=1)
    losses = [training.take_step(batch).values()["loss"] for _ in range(8)]
    assert losses[-1] < 0.8 * losses[0]
    with pytest.raises(ValueError, match="Expected input batch_size"):
        training.optimize([view.float() for view in views()], LABELS[:5])


def test_one_view_is_enough() -> None:
    recipe = load_recipe("demo", ["method={name: supervised}", "views=[{size: 32}]"])
    process = Process(rank=0, world_size=1, device=torch.device("cpu"))
    assert train.build_training(recipe, process, 8192, 10).labeled
    with pytest.raises(ValueError, match=r"views: INTL compares at least two views of each image, found 1"):
        train.build_training(load_recipe("demo", ["views=[{size: 32}]"]), process, 8192)


def test_bad_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="label_smoothing=1"):
        supervised.Config(label_smoothing=1.0)
