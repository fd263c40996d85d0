"""The built-in detector compared with stored numbers of Detectron2, and with Detectron2 itself if it is installed.

`INTL_BENCH_UPDATE_GOLDEN=1 pytest tests/detection/test_detection_parity.py` needs Detectron2 and writes the numbers.
`benchmarks/parity.py` prints the live comparison as a table.
"""

import dataclasses
import json
import os
from pathlib import Path

import numpy as np
import places
import pytest
import torch
from detection_cases import (
    SMALL,
    SMALL_FPN,
    Values,
    batch,
    calibrate,
    inference_values,
    relative,
    small_model,
    training_values,
)
from detectron2_cases import (
    detectron2_inference_values,
    detectron2_model,
    detectron2_training_values,
    float32_nms,
)
from PIL import Image as PILImage
from torch import Tensor

from intl_bench.core.seeding import generator
from transfer.detection.config import ModelConfig
from transfer.detection.modeling.fpn import assign_levels
from transfer.detection.structures import Target

GOLDEN = places.GOLDEN / "detection"
FILE_SIZES = [(150, 200), (112, 80), (70, 100)]  # sizes of the image files of `batch` before the resize

# The largest allowed difference, relative to the largest value. LIVE is for one machine with the same libraries. The
# others are for stored numbers: other processors and versions of torch round differently, and batch norms over few
# values enlarge the difference. An activation near 0 may change its sign, which changes gradients by about 1 percent.
LIVE, STORED, STORED_GRADIENT = 1e-5, 1e-3, 3e-2
MASK_IOU = 0.999


@pytest.fixture
def detectron2() -> None:
    pytest.importorskip("detectron2")


def both(
    config: ModelConfig, images: list[Tensor], targets: list[Target], sizes: list[tuple[int, int]]
) -> tuple[Values, Values]:
    """Run training and then inference in the built-in detector and in Detectron2, with the same weights."""
    ours = small_model(config)
    theirs = detectron2_model(config, ours.state_dict())
    values = training_values(ours, images, targets), detectron2_training_values(theirs, images, targets)
    calibrate(ours, images, targets)
    theirs.load_state_dict(ours.state_dict())
    return (
        values[0] | inference_values(ours, images, sizes),
        values[1] | detectron2_inference_values(theirs, images, sizes),
    )


def both_small(masks: bool = True) -> tuple[Values, Values]:
    config = dataclasses.replace(SMALL, masks=masks)
    return both(config, *batch(config), FILE_SIZES)


def both_small_pyramids(masks: bool = True, box_head: str = "2fc") -> tuple[Values, Values]:
    """Run `both` on images in which the regions have the sizes of several levels."""
    config = dataclasses.replace(SMALL_FPN, masks=masks, box_head=box_head)
    return both(config, *batch(config, scale=3), FILE_SIZES)


def both_float64(seed: int) -> tuple[Values, Values]:
    """Run training in float64 in both detectors, on a batch of `detection_cases`."""
    return both_in_float64(SMALL, *batch(seed=seed))


def both_in_float64(config: ModelConfig, images: list[Tensor], targets: list[Target]) -> tuple[Values, Values]:
    """Run training in float64 in both detectors."""
    ours = small_model(config).double()
    ours.proposal_generator.anchors.float()
    theirs = detectron2_model(config, ours.state_dict()).double()
    with float32_nms():
        values = detectron2_training_values(theirs, images, targets)
    return training_values(ours, images, targets), values


def mask_iou(ours: Tensor, theirs: Tensor) -> float:
    """Compute the smallest intersection over union of two stacks of masks (k, H, W) bool; 1 for two empty masks."""
    meet, join = (ours & theirs).sum(dim=(1, 2)), (ours | theirs).sum(dim=(1, 2))
    return float(torch.where(join > 0, meet / join, 1.0).min()) if len(ours) else 1.0


def assert_equal(ours: Values, theirs: Values, tolerance: float, *, gradients: float | None = None) -> None:
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        assert ours[name].shape == value.shape, name
        if name.startswith("pasted/"):
            assert mask_iou(ours[name], value) >= MASK_IOU, name
        else:
            largest = (gradients if name.startswith("grad/") else None) or tolerance
            assert relative(ours[name], value) <= (largest if value.is_floating_point() else 0), name


@pytest.mark.parametrize("masks", [True, False], ids=["mask", "faster"])
def test_small_detector_agrees_with_detectron2(detectron2: None, masks: bool) -> None:
    ours, theirs = both_small(masks)
    assert len(ours["scores/0"]) > 3
    assert ("loss_mask" in ours) == masks
    assert_equal(ours, theirs, LIVE)


@pytest.mark.parametrize(("masks", "box_head"), [(True, "2fc"), (True, "4conv1fc"), (False, "2fc")])
def test_small_pyramid_agrees_with_detectron2(detectron2: None, masks: bool, box_head: str) -> None:
    ours, theirs = both_small_pyramids(masks, box_head)
    assert len(ours["scores/0"]) > 3
    assert ("loss_mask" in ours) == masks
    boxes = torch.cat([ours[f"region_boxes/{n}"] for n in range(3)])
    assert torch.bincount(assign_levels(boxes, SMALL_FPN.strides[:4]), minlength=4).count_nonzero() >= 3
    assert_equal(ours, theirs, LIVE, gradients=10 * LIVE)  # sums over more positions; see the test in float64


@pytest.mark.parametrize("box_head", ["2fc", "4conv1fc"])
def test_gradients_of_a_pyramid_agree_in_float64(detectron2: None, box_head: str) -> None:
    config = dataclasses.replace(SMALL_FPN, box_head=box_head)
    assert_equal(*both_in_float64(config, *batch(config, scale=3)), LIVE)


@pytest.mark.parametrize("seed", [0, 40])
def test_gradients_agree_in_float64_for_other_batches(detectron2: None, seed: int) -> None:
    """These batches have activations near 0. The rounding of float64 does not change their signs."""
    assert_equal(*both_float64(seed), LIVE)


def coco_batch(test_data: Path, number: int = 0, divisor: int = 4) -> tuple[list[Tensor], list[Target]]:
    """One of the real images with at least three objects and polygons, its width and height divided by `divisor`."""
    folder = test_data / "coco_tiny"
    content = json.loads((folder / "annotations" / "instances_val2017.json").read_text())
    categories = sorted(category["id"] for category in content["categories"])
    usable = []
    for entry in content["images"]:
        objects = [o for o in content["annotations"] if o["image_id"] == entry["id"] and not o["iscrowd"]]
        if len(objects) >= 3 and all(isinstance(o["segmentation"], list) for o in objects):
            usable.append((entry, objects))
    entry, objects = usable[number]
    with PILImage.open(folder / "val2017" / entry["file_name"]) as file:
        size = (entry["width"] // divisor, entry["height"] // divisor)
        small = file.convert("RGB").resize(size, PILImage.Resampling.BILINEAR)
    boxes = torch.tensor([[o["bbox"][0], o["bbox"][1], o["bbox"][2], o["bbox"][3]] for o in objects]) / divisor
    boxes[:, 2:] += boxes[:, :2]
    classes = torch.tensor([categories.index(o["category_id"]) for o in objects])
    outlines = [[np.array(polygon) / divisor for polygon in o["segmentation"]] for o in objects]
    return [torch.from_numpy(np.array(small)).permute(2, 0, 1)], [Target(boxes, classes, outlines)]


FEW_REGIONS = ModelConfig(roi_batch=8, post_nms_test=8, score_threshold=0.02, detections_per_image=5)
FEW_REGIONS_FPN = dataclasses.replace(FEW_REGIONS, kind="fpn", pool_size=7, pre_nms_train=2000, post_nms_train=1000)


def both_resnet50(test_data: Path, config: ModelConfig = FEW_REGIONS) -> tuple[Values, Values]:
    """Run `both` at full width on a COCO image, with few regions."""
    images, targets = coco_batch(test_data)
    sizes = [(4 * images[0].shape[1] + 1, 4 * images[0].shape[2] + 3)]
    return both(config, images, targets, sizes)


@pytest.mark.data
@pytest.mark.parametrize("config", [FEW_REGIONS, FEW_REGIONS_FPN], ids=["c4", "fpn"])
def test_resnet50_agrees_with_detectron2_on_a_coco_image(
    detectron2: None, test_data: Path, config: ModelConfig
) -> None:
    ours, theirs = both_resnet50(test_data, config)
    assert len(ours["scores/0"]) > 0
    assert_equal(ours, theirs, LIVE)


def stored(values: Values, compressed: tuple[str, ...] = ("grad/",)) -> dict[str, np.ndarray]:
    """Compress values for the golden file.

    A gradient becomes its norm and two random projections. Bitmaps are packed. Other values stay unchanged.

    Args:
        compressed: the beginnings of the names of what is compressed as a gradient.
    """
    kept = {}
    for name, value in values.items():
        array = value.numpy()
        if name.startswith(compressed):
            flat = array.astype(np.float64).ravel()
            directions = generator(0, "directions", len(flat)).random((2, len(flat))) - 0.5
            projections = directions @ flat / np.linalg.norm(directions, axis=1)
            array = np.array([np.linalg.norm(flat), *projections], np.float32)
        elif array.dtype == bool:
            array = np.packbits(array)
        kept[name] = array
    return kept


@pytest.mark.parametrize("kind", ["c4", "fpn"])
def test_small_detector_agrees_with_numbers_stored_from_detectron2(kind: str) -> None:
    config, scale, compressed = SMALL, 1, ("grad/",)
    path = GOLDEN / "detectron2.npz"
    if kind == "fpn":
        config, scale, compressed = SMALL_FPN, 3, ("grad/", "features/", "anchors", "rpn_logits", "rpn_deltas")
        path = GOLDEN / "detectron2_fpn.npz"
    if os.environ.get("INTL_BENCH_UPDATE_GOLDEN"):
        _, theirs = both_small_pyramids() if kind == "fpn" else both_small()
        GOLDEN.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(path, **stored(theirs, compressed))
    images, targets = batch(config, scale=scale)
    model = small_model(config)
    values = training_values(model, images, targets)
    calibrate(model, images, targets)
    ours = stored(values | inference_values(model, images, FILE_SIZES), compressed)
    with np.load(path) as golden:
        assert ours.keys() == set(golden.files)
        for name, value in ours.items():
            wanted = golden[name]
            assert value.shape == wanted.shape, name
            if name.startswith(("pasted/", "mask_targets/")):
                differing = np.unpackbits(value ^ wanted).sum()
                assert differing <= 0.002 * max(1, np.unpackbits(wanted).sum()), name
            elif wanted.dtype.kind == "i":
                np.testing.assert_array_equal(value, wanted, err_msg=name)
            elif wanted.size:
                tolerance = STORED_GRADIENT if name.startswith(compressed) else STORED
                assert np.abs(value - wanted).max() <= tolerance * np.abs(wanted).max(), name
