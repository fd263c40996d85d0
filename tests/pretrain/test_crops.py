"""Test crops against torchvision and PIL, and crops of a whole batch against crops of single images."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms import RandomResizedCrop
from torchvision.transforms.v2 import functional as reference

from intl_bench.core.seeding import uniforms
from pretrain.images.crops import BOX_DRAWS, ResidentImages, center, crop, draw_shapes, fit_boxes
from pretrain.images.views import ViewConfig

CPU = torch.device("cpu")
RATIO = [3 / 4, 4 / 3]


def drawn(config: ViewConfig, count: int, height: int, width: int, seed: int = 0) -> np.ndarray:
    """Draw boxes (count, 4)."""
    uniform = uniforms(seed, "test", 0, np.arange(count), 0, BOX_DRAWS)
    return fit_boxes(draw_shapes(config, uniform), height, width)


def noise(count: int, height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, height, width, 3), np.uint8)


@pytest.mark.data
def test_photos_as_pil(test_data) -> None:
    files = sorted((test_data / "imagenet_sample").glob("*/*/*.JPEG"))
    assert files
    wrong = total = 0
    for index, file in enumerate(files):
        with Image.open(file) as photo:
            image = photo.convert("RGB")
        pixels = np.array(image)
        before = pixels.copy()
        for size in (224, 96, 32):
            box = drawn(ViewConfig(size=size), 1, image.height, image.width, seed=index)[0].tolist()
            ours = crop(pixels, box, size)
            theirs = reference.resized_crop(image, *box, [size, size], reference.InterpolationMode.BICUBIC)
            wrong += int(((ours.int() - reference.pil_to_tensor(theirs).int()).abs() > 2).sum())
            total += ours.numel()
        assert np.array_equal(pixels, before)
    assert wrong / total < 2e-4


@pytest.mark.data
def test_center_view_of_photos_as_pil(test_data) -> None:
    for file in sorted((test_data / "imagenet_sample").glob("val/*/*.JPEG")):
        with Image.open(file) as photo:
            image = photo.convert("RGB")
        theirs = reference.center_crop(reference.resize(image, [256]), [224, 224])
        ours = center(np.array(image), 256, 224)
        assert (ours.int() - reference.pil_to_tensor(theirs).int()).abs().max() <= 2


def test_whole_image_is_its_own_crop() -> None:
    image = noise(1, 48, 48)[0]
    before = image.copy()
    result = crop(image, (0, 0, 48, 48), 48)
    assert np.array_equal(result.permute(1, 2, 0).numpy(), image)
    result.zero_()
    assert np.array_equal(image, before)


def places(indices: np.ndarray, boxes: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.column_stack([indices, boxes]))


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize(
    ("height", "width", "size"), [(32, 32, 32), (32, 40, 16), (41, 23, 48), (1, 5, 3), (96, 64, 12), (128, 96, 4)]
)
def test_crops_of_a_batch_equal_crops_of_single_images(height: int, width: int, size: int, interpolation: str) -> None:
    """Compare bit for bit: enlarged and reduced crops, any part of a batch, any precision of float32 products."""
    images, indices = noise(50, height, width), np.arange(120) * 7 % 50
    boxes = drawn(ViewConfig(size=size, min_scale=0.01), 120, height, width)
    boxes[0] = 0, 0, height, width
    resident = ResidentImages(images, CPU)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        together = resident.crops(places(indices, boxes), size, interpolation)
    alone = torch.stack(
        [crop(images[index], box, size, interpolation) for index, box in zip(indices, boxes.tolist(), strict=True)]
    )
    assert together.dtype == torch.uint8
    assert torch.equal(together, alone)
    assert torch.equal(resident.crops(places(indices[5:8], boxes[5:8]), size, interpolation), alone[5:8])


@pytest.mark.parametrize("size", [16, 32, 48])
def test_crops_of_a_batch_as_pil(size: int) -> None:
    """PIL does the two passes in the other order, and rounds and clamps between them: avoid extreme values."""
    images = noise(60, 32, 40) // 2 + 64
    boxes = drawn(ViewConfig(size=size), 60, 32, 40)
    ours = ResidentImages(images, CPU).crops(places(np.arange(60), boxes), size)
    theirs = [
        reference.pil_to_tensor(
            reference.resized_crop(Image.fromarray(image), *box, [size, size], reference.InterpolationMode.BICUBIC)
        )
        for image, box in zip(images, boxes.tolist(), strict=True)
    ]
    differences = (ours.int() - torch.stack(theirs).int()).abs()
    assert differences.max() <= 2
    assert (differences > 1).float().mean() < 1e-3


@pytest.mark.gpu
def test_gpu_as_cpu_without_waiting() -> None:
    images, boxes = noise(60, 32, 40), drawn(ViewConfig(size=32), 60, 32, 40)
    resident = ResidentImages(images, torch.device("cuda"))
    resident.crops(places(np.arange(60), boxes), 32)
    torch.cuda.set_sync_debug_mode("error")
    try:
        ours = resident.crops(places(np.arange(60), boxes), 32)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(ours.cpu(), ResidentImages(images, CPU).crops(places(np.arange(60), boxes), 32))


def test_boxes_reach_every_edge() -> None:
    torch.manual_seed(0)
    image = torch.empty(3, 3, 4)
    theirs = {RandomResizedCrop.get_params(image, [0.08, 1.0], RATIO) for _ in range(10_000)}
    assert set(map(tuple, drawn(ViewConfig(), 10_000, 3, 4).tolist())) == theirs


@pytest.mark.parametrize(("height", "width"), [(10, 1000), (1000, 11), (1, 1), (30, 45), (1, 7)])
def test_central_crop_if_no_box_fits(height: int, width: int) -> None:
    theirs = RandomResizedCrop.get_params(torch.empty(3, height, width), [1.0, 1.0], RATIO)
    config = ViewConfig(min_scale=1.0, max_scale=1.0)
    assert drawn(config, 3, height, width).tolist() == [list(theirs)] * 3


@settings(max_examples=200)
@given(st.integers(1, 3000), st.integers(1, 3000), st.floats(1e-6, 1), st.floats(1e-6, 1), st.integers(0, 2**62))
def test_boxes_lie_inside(height: int, width: int, a: float, b: float, seed: int) -> None:
    boxes = drawn(ViewConfig(min_scale=min(a, b), max_scale=max(a, b)), 20, height, width, seed)
    corners, sides = boxes[:, :2], boxes[:, 2:]
    assert (corners >= 0).all()
    assert (sides >= 1).all()
    assert (corners + sides <= [height, width]).all()
