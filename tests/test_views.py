"""Views against torchvision and PIL: each operation, each distribution, and what a batch must not change."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFilter
from torchvision.transforms import ColorJitter, RandomResizedCrop
from torchvision.transforms.v2 import functional as reference

from intl_bench.core.seeding import generator
from pretrain import views
from pretrain.views import ViewConfig, augment, centre, crop, draw_parameters, random_resized_crop_box

JITTER = (
    reference.adjust_brightness,
    reference.adjust_contrast,
    reference.adjust_saturation,
    reference.adjust_hue,
)
AS_IS = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
DRAWS = 10_000


def pictures(count: int, size: int = 48) -> torch.Tensor:
    """Smooth random colours with gray, black and white patches: (count, 3, size, size) uint8."""
    coarse = torch.rand(count, 3, 6, 6, generator=torch.Generator().manual_seed(count)) * 1.6 - 0.3
    images = torch.nn.functional.interpolate(coarse, (size, size), mode="bilinear").clamp(0, 1).mul(255).to(torch.uint8)
    images[:, :, :4] = images[:, :1, :4]
    images[:, :, :4, :4], images[:, :, 4:8, :4] = 0, 255
    return images


def rows(count: int) -> torch.Tensor:
    """Parameters that change nothing."""
    parameters = torch.zeros(count, views.PARAMETERS)
    parameters[:, views.FACTORS] = torch.tensor([1.0, 1.0, 1.0, 0.0])
    parameters[:, views.ORDER] = torch.arange(4.0)
    return parameters


def one_by_one(crops: torch.Tensor, parameters: torch.Tensor) -> torch.Tensor:
    """What torchvision's functions make of each sample."""
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


def test_no_change_is_no_change() -> None:
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


def test_solarisation_turns_level_128_and_above() -> None:
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
    """PIL takes three box blurs of whole levels for a Gaussian: on noise 5 levels apart at most, 1 on average."""
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
    return torch.from_numpy(np.stack([draw_parameters(config, generator(7, "test", index)) for index in range(count)]))


def test_everything_together_as_torchvision() -> None:
    crops, parameters = pictures(64), drawn(64)
    ours, theirs = augment(crops, parameters, **AS_IS), one_by_one(crops, parameters)
    # A value within rounding of the solarisation threshold may fall on its other side: one level.
    assert_same(ours, theirs, most=1.01 / 255)
    assert (ours - theirs).abs().mean() < 1e-5


def test_normalisation() -> None:
    crops, parameters = pictures(8), drawn(8)
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)
    plain = augment(crops, parameters, **AS_IS)
    assert_same(augment(crops, parameters, mean, std), reference.normalize(plain, mean, std))


def test_a_sample_does_not_depend_on_its_batch() -> None:
    """Nor on the parts that a CPU takes a batch in: 400 of these pictures are more than one part."""
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


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
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


@pytest.mark.data
def test_crops_of_photos_as_pil(test_data) -> None:
    files = sorted((test_data / "imagenet_sample").glob("*/*/*.JPEG"))
    assert files
    wrong = total = 0
    for index, file in enumerate(files):
        with Image.open(file) as photo:
            image = photo.convert("RGB")
        pixels = np.array(image)
        before = pixels.copy()
        for size in (224, 96, 32):
            box = random_resized_crop_box(image.height, image.width, ViewConfig(size=size), generator(0, "test", index))
            ours = crop(pixels, box, size)
            theirs = reference.resized_crop(image, *box, [size, size], reference.InterpolationMode.BICUBIC)
            wrong += int(((ours.int() - reference.pil_to_tensor(theirs).int()).abs() > 2).sum())
            total += ours.numel()
        assert np.array_equal(pixels, before)
    assert wrong / total < 2e-4


@pytest.mark.data
def test_test_view_of_photos_as_pil(test_data) -> None:
    for file in sorted((test_data / "imagenet_sample").glob("val/*/*.JPEG")):
        with Image.open(file) as photo:
            image = photo.convert("RGB")
        theirs = reference.center_crop(reference.resize(image, [256]), [224, 224])
        ours = centre(np.array(image), 256, 224)
        assert (ours.int() - reference.pil_to_tensor(theirs).int()).abs().max() <= 2


def test_whole_image_is_its_own_crop() -> None:
    image = pictures(1)[0].permute(1, 2, 0).contiguous().numpy()
    result = crop(image, (0, 0, 48, 48), 48)
    assert np.array_equal(result.permute(1, 2, 0).numpy(), image)
    result.zero_()
    assert image.any()


def assert_same_distribution(ours: list[float], theirs: list[float]) -> None:
    """Two-sample Kolmogorov-Smirnov test, p > 0.01 by the asymptotic critical value sqrt(-ln(0.01 / 2) / 2)."""
    a, b = np.sort(ours), np.sort(theirs)
    points = np.concatenate([a, b])
    distance = np.abs(np.searchsorted(a, points, "right") / len(a) - np.searchsorted(b, points, "right") / len(b)).max()
    assert distance * math.sqrt(len(a) * len(b) / (len(a) + len(b))) < math.sqrt(-math.log(0.01 / 2) / 2)


@pytest.mark.parametrize(("height", "width", "scale"), [(375, 500, (0.08, 1.0)), (300, 100, (0.2, 0.857))])
def test_boxes_are_distributed_as_torchvisions(height: int, width: int, scale: tuple[float, float]) -> None:
    torch.manual_seed(0)
    image = torch.empty(3, height, width)
    theirs = np.array([RandomResizedCrop.get_params(image, list(scale), [3 / 4, 4 / 3]) for _ in range(DRAWS)])
    config, stream = ViewConfig(min_scale=scale[0], max_scale=scale[1]), generator(0, "test")
    ours = np.array([random_resized_crop_box(height, width, config, stream) for _ in range(DRAWS)])
    for column in range(4):
        assert_same_distribution(ours[:, column], theirs[:, column])
    assert_same_distribution(ours[:, 2] * ours[:, 3], theirs[:, 2] * theirs[:, 3])
    assert_same_distribution(ours[:, 3] / ours[:, 2], theirs[:, 3] / theirs[:, 2])


def test_boxes_reach_every_edge() -> None:
    torch.manual_seed(0)
    theirs = {RandomResizedCrop.get_params(torch.empty(3, 3, 4), [0.08, 1.0], [3 / 4, 4 / 3]) for _ in range(DRAWS)}
    stream = generator(0, "test")
    assert {random_resized_crop_box(3, 4, ViewConfig(), stream) for _ in range(DRAWS)} == theirs


@pytest.mark.parametrize(("height", "width"), [(10, 1000), (1000, 11), (1, 1), (30, 45), (1, 7)])
def test_central_crop_where_none_fits(height: int, width: int) -> None:
    config = ViewConfig(min_scale=1.0, max_scale=1.0)
    ratio = [3 / 4, 4 / 3]
    theirs = RandomResizedCrop.get_params(torch.empty(3, height, width), [1.0, 1.0], ratio)
    assert random_resized_crop_box(height, width, config, generator(0, "test")) == theirs


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 3000), st.integers(1, 3000), st.floats(1e-6, 1), st.floats(1e-6, 1), st.integers(0, 2**62))
def test_boxes_lie_inside(height: int, width: int, a: float, b: float, seed: int) -> None:
    config = ViewConfig(min_scale=min(a, b), max_scale=max(a, b))
    top, left, h, w = random_resized_crop_box(height, width, config, generator(seed, "test"))
    assert 0 <= top <= top + h <= height
    assert 0 <= left <= left + w <= width
    assert min(h, w) >= 1


@pytest.mark.parametrize("strengths", [(0.4, 0.4, 0.2, 0.1), (1.5, 0.8, 0.0, 0.5)])
def test_jitter_factors_are_distributed_as_torchvisions(strengths: tuple[float, float, float, float]) -> None:
    torch.manual_seed(0)
    jitter = ColorJitter(*strengths)
    ranges = [jitter.brightness, jitter.contrast, jitter.saturation, jitter.hue]
    theirs = [ColorJitter.get_params(*ranges) for _ in range(DRAWS)]
    names = ("brightness", "contrast", "saturation", "hue")
    config, stream = ViewConfig(**dict(zip(names, strengths, strict=True))), generator(0, "test")
    ours = np.stack([draw_parameters(config, stream) for _ in range(DRAWS)])
    for number in range(4):
        off = 0.0 if number == 3 else 1.0
        expected = [off if values[1 + number] is None else values[1 + number] for values in theirs]
        assert_same_distribution(ours[:, views.FACTORS][:, number], np.float32(expected))
        assert_same_distribution(ours[:, views.ORDER][:, number], [float(values[0][number]) for values in theirs])


def test_all_orders_are_equally_likely() -> None:
    stream = generator(0, "test")
    orders = [tuple(draw_parameters(ViewConfig(), stream)[views.ORDER]) for _ in range(24 * 500)]
    counts = np.unique(orders, axis=0, return_counts=True)[1]
    assert len(counts) == 24
    assert ((counts - 500) ** 2 / 500).sum() < 41.6  # chi square with 23 degrees of freedom, p = 0.01


def test_probabilities_and_sigma() -> None:
    config = ViewConfig(jitter_p=0.8, grayscale_p=0.2, blur_p=0.5, solarize_p=0.1, flip_p=0.35)
    stream = generator(0, "test")
    ours = np.stack([draw_parameters(config, stream) for _ in range(DRAWS)])
    flags = ours[:, [views.JITTER, views.GRAY, views.SIGMA, views.SOLARIZE, views.FLIP]] > 0
    for share, p in zip(flags.mean(axis=0), (0.8, 0.2, 0.5, 0.1, 0.35), strict=True):
        assert abs(share - p) < 3 * math.sqrt(p * (1 - p) / DRAWS)
    # No two of the decisions go together.
    correlation = np.corrcoef(flags.T) - np.eye(5)
    assert np.abs(correlation).max() < 4 / math.sqrt(DRAWS)
    sigma = ours[flags[:, 2], views.SIGMA]
    uniform = np.linspace(0.1, 2.0, DRAWS)
    assert_same_distribution(sigma, uniform)


@pytest.mark.parametrize(("p", "flag"), [(0.0, False), (1.0, True)])
def test_certain_and_impossible(p: float, flag: bool) -> None:
    config = ViewConfig(jitter_p=p, grayscale_p=p, blur_p=p, solarize_p=p, flip_p=p)
    stream = generator(0, "test")
    ours = np.stack([draw_parameters(config, stream) for _ in range(500)])
    columns = [views.JITTER, views.GRAY, views.SIGMA, views.SOLARIZE, views.FLIP]
    assert ((ours[:, columns] > 0) == flag).all()


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
