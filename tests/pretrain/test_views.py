"""Test the operations on crops against torchvision and PIL, one by one and together; test independence of the batch."""

import itertools
import math

import numpy as np
import pytest
import torch
from PIL import ImageFilter
from torchvision.transforms.v2 import functional as reference

from intl_bench.core.seeding import uniforms
from pretrain.images import views
from pretrain.images.views import PARAMETER_DRAWS, ViewConfig, augment, draw_parameters

JITTER = (
    reference.adjust_brightness,
    reference.adjust_contrast,
    reference.adjust_saturation,
    reference.adjust_hue,
)
AS_IS = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}


def pictures(count: int, size: int = 48) -> torch.Tensor:
    """Return smooth random colors with gray, black and white patches, (count, 3, size, size) uint8."""
    coarse = torch.rand(count, 3, 6, 6, generator=torch.Generator().manual_seed(count)) * 1.6 - 0.3
    images = torch.nn.functional.interpolate(coarse, (size, size), mode="bilinear").clamp(0, 1).mul(255).to(torch.uint8)
    images[:, :, :4] = images[:, :1, :4]
    images[:, :, :4, :4], images[:, :, 4:8, :4] = 0, 255
    return images


def rows(count: int) -> torch.Tensor:
    """Return parameters that change nothing."""
    parameters = torch.zeros(count, views.PARAMETERS)
    parameters[:, views.FACTORS] = torch.tensor([1.0, 1.0, 1.0, 0.0])
    parameters[:, views.ORDER] = torch.arange(4.0)
    return parameters


def one_by_one(crops: torch.Tensor, parameters: torch.Tensor) -> torch.Tensor:
    """Apply the functions of torchvision to each sample."""
    results = []
    for image, row in zip(crops.float().div(255), parameters, strict=True):
        if row[views.JITTER]:
            for number in row[views.ORDER].int().tolist():
                image = JITTER[number](image, float(row[views.FACTORS][number]))
        if row[views.GRAY]:
            image = reference.rgb_to_grayscale(image, 3)
        if sigma := float(row[views.SIGMA]):
            image = reference.gaussian_blur(image, [2 * math.ceil(4 * sigma) + 1] * 2, [sigma, sigma])
        if row[views.SOLARIZE]:
            image = reference.solarize(image, 128 / 255)
        results.append(image.flip(2) if row[views.FLIP] else image)
    return torch.stack(results)


def assert_same(ours: torch.Tensor, theirs: torch.Tensor, most: float = 2e-5) -> None:
    assert ours.shape == theirs.shape
    assert ours.dtype == torch.float32
    assert (ours - theirs).abs().max() <= most


def test_neutral_parameters_change_nothing() -> None:
    crops = pictures(3)
    assert torch.equal(augment(crops, rows(3), **AS_IS), crops.float().div(255))


@pytest.mark.parametrize("number", range(4))
def test_each_jitter_as_torchvision(number: int) -> None:
    parameters = rows(12)
    low, high = ((0.4, 1.6), (0.4, 1.6), (0.0, 2.0), (-0.5, 0.5))[number]
    parameters[:, views.FACTORS][:, number] = torch.linspace(low, high, 12)
    parameters[::5, views.JITTER] = 1
    parameters[1::2, views.JITTER] = 1
    crops = pictures(12)
    ours = augment(crops, parameters, **AS_IS)
    assert_same(ours, one_by_one(crops, parameters))
    untouched = parameters[:, views.JITTER] == 0
    assert torch.equal(ours[untouched], crops[untouched].float().div(255))


def test_every_order_of_the_jitters_in_one_batch() -> None:
    orders = torch.tensor(list(itertools.permutations(range(4))), dtype=torch.float32)
    parameters = rows(24)
    parameters[:, views.JITTER] = 1
    parameters[:, views.FACTORS] = torch.tensor([1.4, 0.6, 1.2, 0.1])
    parameters[:, views.ORDER] = orders
    crops = pictures(1).expand(24, -1, -1, -1).contiguous()
    ours = augment(crops, parameters, **AS_IS)
    assert_same(ours, one_by_one(crops, parameters))
    assert (ours[0] - ours[-1]).abs().max() > 0.02


@pytest.mark.parametrize(("column", "values"), [(views.GRAY, 1.0), (views.SOLARIZE, 1.0), (views.FLIP, 1.0)])
def test_each_flag_as_torchvision(column: int, values: float) -> None:
    parameters = rows(5)
    parameters[[0, 3], column] = values
    crops = pictures(5)
    crops[0, :, 10, :3] = torch.tensor([127, 128, 129], dtype=torch.uint8)
    ours = augment(crops, parameters, **AS_IS)
    assert_same(ours, one_by_one(crops, parameters))
    assert torch.equal(ours[[1, 2, 4]], crops[[1, 2, 4]].float().div(255))


def test_channels_last_as_channels_first() -> None:
    crops, parameters = pictures(20), drawn(20)
    last = crops.contiguous(memory_format=torch.channels_last)
    assert torch.equal(augment(last, parameters, **AS_IS), augment(crops, parameters, **AS_IS))


def test_solarization_inverts_level_128_and_above() -> None:
    crops = torch.tensor([127, 128, 255], dtype=torch.uint8).view(1, 1, 1, 3).expand(1, 3, 3, 3)
    parameters = rows(1)
    parameters[0, views.SOLARIZE] = 1
    levels = augment(crops, parameters, **AS_IS)[0, 0, 0].mul(255).round()
    assert levels.tolist() == [127, 127, 0]


def test_blur_as_torchvision() -> None:
    parameters = rows(9)
    parameters[:8, views.SIGMA] = torch.tensor([0.1, 0.3, 0.5, 0.99, 1.0, 1.26, 1.7, 2.0])
    crops = pictures(9)
    assert_same(augment(crops, parameters, **AS_IS), one_by_one(crops, parameters))


@pytest.mark.parametrize("sigma", [0.5, 1.0, 1.5, 2.0])
def test_blur_as_pil_inside(sigma: float) -> None:
    """PIL approximates a Gaussian by three box blurs with rounding: noise differs by at most 5 levels, 1 on average."""
    noise = torch.randint(0, 256, (1, 3, 64, 64), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    blurred = reference.to_pil_image(noise[0]).filter(ImageFilter.GaussianBlur(radius=sigma))

    def differences(sigma: float) -> torch.Tensor:
        parameters = rows(1)
        parameters[:, views.SIGMA] = sigma
        ours = augment(noise, parameters, **AS_IS)[0].mul(255)
        return (ours - reference.pil_to_tensor(blurred))[:, 8:-8, 8:-8].abs()

    assert differences(sigma).max() <= 5
    assert differences(sigma).mean() <= 1
    assert min(differences(0.85 * sigma).mean(), differences(1.15 * sigma).mean()) > 1.2


def drawn(count: int, size: int = 48) -> torch.Tensor:
    config = ViewConfig(size=size, blur_p=0.5, solarize_p=0.3)
    uniform = uniforms(7, "test", 0, np.arange(count), 0, PARAMETER_DRAWS)
    return torch.from_numpy(draw_parameters(config, uniform))


def test_everything_together_as_torchvision() -> None:
    crops, parameters = pictures(64), drawn(64)
    ours, theirs = augment(crops, parameters, **AS_IS), one_by_one(crops, parameters)
    # Rounding may move a value across the solarization threshold, which changes it by one level.
    assert_same(ours, theirs, most=1.01 / 255)
    assert (ours - theirs).abs().mean() < 1e-5


def test_normalization() -> None:
    crops, parameters = pictures(8), drawn(8)
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)
    plain = augment(crops, parameters, **AS_IS)
    assert_same(augment(crops, parameters, mean, std), reference.normalize(plain, mean, std))


def test_a_sample_does_not_depend_on_its_batch() -> None:
    """The result does not depend on the parts that a CPU processes either: 400 pictures are more than one part."""
    crops, parameters = pictures(400), drawn(400)
    assert crops[:, 0].numel() > views._PART
    before = crops.clone(), parameters.clone()
    together = augment(crops, parameters, **AS_IS)
    alone = torch.cat([augment(crops[i : i + 1], parameters[i : i + 1], **AS_IS) for i in range(0, 400, 9)])
    assert_same(together[::9], alone, most=1.01 / 255)
    assert (together[::9] - alone).abs().mean() < 1e-6
    assert torch.equal(crops, before[0])
    assert torch.equal(parameters, before[1])


def test_blur_keeps_its_precision_under_autocast() -> None:
    crops, parameters = pictures(6), drawn(6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = augment(crops, parameters, **AS_IS)
    assert torch.equal(half, augment(crops, parameters, **AS_IS))


@pytest.mark.gpu
def test_gpu_as_cpu_without_waiting() -> None:
    crops, parameters = pictures(64), drawn(64)
    on_device = crops.cuda()
    augment(on_device, parameters, **AS_IS)
    torch.cuda.set_sync_debug_mode("error")
    try:
        result = augment(on_device, parameters, **AS_IS)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert_same(result.cpu(), augment(crops, parameters, **AS_IS), most=1.01 / 255)


@pytest.mark.parametrize(
    "wrong",
    [
        {"size": 0},
        {"min_scale": 0.0},
        {"min_scale": 0.5, "max_scale": 0.4},
        {"max_scale": 1.1},
        {"jitter_p": 1.2},
        {"flip_p": float("nan")},
        {"hue": 0.6},
        {"brightness": -0.1},
        {"contrast": float("inf")},
        {"blur_sigma_min": 0.0},
        {"blur_sigma_max": 0.05},
        {"size": 8, "blur_p": 0.5},
    ],
)
def test_wrong_values_are_named(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        ViewConfig(**wrong)
