"""A step in several parts: the same gradients as in one part."""

import dataclasses

import pytest
import torch
from detection_cases import SMALL, SMALL_FPN, batch, small_model

from intl_bench.core import distributed
from intl_bench.core.errors import InputError
from intl_bench.core.identity import identity
from transfer.detection.config import DetectionConfig, ModelConfig
from transfer.detection.data import Batch
from transfer.detection.engines import step
from transfer.detection.structures import Image

MAIN = distributed.Process(rank=0, world_size=1, device=torch.device("cpu"))


def gradients(
    accumulate: int, *, frozen: bool, masks: bool = True, base: ModelConfig = SMALL
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Compute the losses and the gradients of four images of different sizes, one of them without objects, in float64.

    Args:
        frozen: whether the batch norms use their running statistics.
    """
    model = small_model(dataclasses.replace(base, masks=masks)).double()
    model.proposal_generator.anchors.float()
    config = DetectionConfig(model=model.config, batch_size=4, accumulate=accumulate, engine="builtin")
    run = step.make_run(model, config, 0, MAIN, {})
    for module in model.modules():
        if frozen and isinstance(module, torch.nn.BatchNorm2d):
            module.eval()
    pixels, targets = batch(model.config)
    pixels, targets = [*pixels, pixels[0].flip(2)[:, :80, :100]], [*targets, targets[2]]
    images = [Image(each, 0, 0, 0, target) for each, target in zip(pixels, targets, strict=True)]
    before = {name: value.clone() for name, value in model.named_buffers()}
    losses = run.add_gradients(Batch(5, images, [0, 1, 2, 3]))
    if frozen:
        assert all(torch.equal(value, before[name]) for name, value in model.named_buffers())
    return losses, {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


@pytest.mark.parametrize(
    ("accumulate", "masks", "base"), [(2, True, SMALL), (4, True, SMALL), (2, False, SMALL), (2, True, SMALL_FPN)]
)
def test_gradients_equal_those_of_one_part(accumulate: int, masks: bool, base: ModelConfig) -> None:
    """The parts have different numbers of foreground regions, so a mean over the parts would be wrong."""
    losses, expected = gradients(1, frozen=True, masks=masks, base=base)
    parts, found = gradients(accumulate, frozen=True, masks=masks, base=base)
    torch.testing.assert_close(parts.double(), losses.double(), rtol=1e-6, atol=0)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        assert gradient.dtype == torch.float64
        assert (found[name] - gradient).abs().max() <= 1e-10 * gradient.abs().max(), name


def test_with_statistics_of_a_batch_only_the_batch_norms_make_a_difference() -> None:
    _, expected = gradients(1, frozen=False)
    _, found = gradients(2, frozen=False)
    assert found.keys() == expected.keys()
    assert any(
        (found[name] - gradient).abs().max() > 1e-3 * gradient.abs().max() for name, gradient in expected.items()
    )


def test_one_part_is_not_part_of_the_identity() -> None:
    one, two = DetectionConfig(), DetectionConfig(accumulate=2)
    assert "accumulate" not in identity(one)
    assert identity(two) == identity(one) | {"accumulate": 2}


def test_parts_must_be_equal() -> None:
    with pytest.raises(ValueError, match="accumulate=3: does not divide batch_size=16"):
        DetectionConfig(accumulate=3)
    process = dataclasses.replace(MAIN, world_size=4)
    config = DetectionConfig(accumulate=8)
    with pytest.raises(InputError, match="accumulate=8: a process has 4 images"):
        step.make_run(small_model(), config, 0, process, {})
