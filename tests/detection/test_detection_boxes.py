"""Parts of the detector compared with independent formulas: boxes, matching, sampling, anchors, pooling and masks."""

import math

import numpy as np
import pytest
import torch
from detection_cases import TINY, generators, outline, relative
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.ops import roi_align

from intl_bench.core.seeding import generator
from transfer.detection.config import ModelConfig
from transfer.detection.masks import crop_targets, paste
from transfer.detection.modeling import boxes as box_ops
from transfer.detection.modeling.anchors import Anchors
from transfer.detection.modeling.pooling import Bins, compute_bins, images_of, pool

coordinates = st.integers(0, 12)
some_boxes = st.lists(st.tuples(coordinates, coordinates, coordinates, coordinates), min_size=1, max_size=6)


def tensor(boxes: list[tuple[int, int, int, int]]) -> torch.Tensor:
    """Convert boxes to a tensor and sort their corners. Empty boxes are kept."""
    ordered = [(min(a, c), min(b, d), max(a, c), max(b, d)) for a, b, c, d in boxes]
    return torch.tensor(ordered, dtype=torch.float32)


@given(some_boxes, some_boxes)
@settings(max_examples=50)
def test_iou_equals_a_count_of_unit_squares(first: list, second: list) -> None:
    def squares(box: torch.Tensor) -> set[tuple[int, int]]:
        x0, y0, x1, y1 = box.int().tolist()
        return {(x, y) for x in range(x0, x1) for y in range(y0, y1)}

    first, second = tensor(first), tensor(second)
    overlaps = box_ops.iou(first, second)
    for i, a in enumerate(map(squares, first)):
        for j, b in enumerate(map(squares, second)):
            assert overlaps[i, j].item() == pytest.approx(len(a & b) / len(a | b) if a & b else 0.0)


@given(some_boxes, st.data())
@settings(max_examples=50)
def test_matching_follows_its_definition(objects: list, data: st.DataObject) -> None:
    boxes = tensor(data.draw(some_boxes))
    overlaps = box_ops.iou(tensor(objects), boxes)
    for low_quality in (False, True):
        chosen, labels = box_ops.match(overlaps, 0.3, 0.7, low_quality=low_quality)
        for n in range(len(boxes)):
            best = overlaps[:, n].max()
            assert overlaps[chosen[n], n] == best
            label = 1 if best >= 0.7 else 0 if best < 0.3 else -1
            if low_quality and any(row[n] == row.max() for row in overlaps):
                label = 1
            assert labels[n] == label


def test_an_overlap_at_a_threshold_gets_the_upper_label() -> None:
    overlaps = torch.tensor([[0.29, 0.3, 0.69, 0.7, 0.71]])
    assert box_ops.match(overlaps, 0.3, 0.7)[1].tolist() == [0, -1, -1, 1, 1]
    assert box_ops.match(torch.tensor([[0.49, 0.5, 0.51]]), 0.5, 0.5)[1].tolist() == [0, 1, 1]


def test_without_objects_every_box_is_background() -> None:
    objects, labels = box_ops.match(torch.zeros(0, 5), 0.3, 0.7, low_quality=True)
    assert objects.tolist() == labels.tolist() == [0] * 5


some_labels = st.lists(st.sampled_from([-1, 0, 1]), min_size=1, max_size=40)


@given(st.lists(some_labels, min_size=1, max_size=3), st.integers(1, 20), st.integers(0, 5))
@settings(max_examples=50)
def test_sampling_fills_each_image_with_background_independently_of_the_others(
    labels: list[list[int]], count: int, seed: int
) -> None:
    kinds = [torch.tensor(some) for some in labels]
    drawn = box_ops.sample(kinds, count, 0.25, generators(len(kinds), seed))
    for n, (kind, (foreground, background)) in enumerate(zip(kinds, drawn, strict=True)):
        assert len(foreground) == min(labels[n].count(1), count // 4)
        assert len(background) == min(labels[n].count(0), count - len(foreground))
        assert set(kind[foreground].tolist()) <= {1}
        assert set(kind[background].tolist()) <= {0}
        assert len({*foreground.tolist(), *background.tolist()}) == len(foreground) + len(background)
        ((alone, others),) = box_ops.sample([kind], count, 0.25, generators(1, seed + n))
        assert torch.equal(alone, foreground)
        assert torch.equal(others, background)


@pytest.mark.parametrize("weights", [(1.0, 1.0), (10.0, 5.0)])
def test_decoding_undoes_encoding_and_limits_growth(weights: tuple[float, float]) -> None:
    draw = generator(0, "boxes")
    corners = torch.from_numpy(draw.random((2, 20, 2)) * 100)
    sizes = torch.from_numpy(1 + draw.random((2, 20, 2)) * 50)
    boxes, targets = torch.cat([corners, corners + sizes], dim=2).float()
    deltas = box_ops.encode(boxes, targets, weights)
    torch.testing.assert_close(box_ops.decode(deltas[:, None], boxes, weights)[:, 0], targets, rtol=1e-5, atol=1e-4)
    huge = box_ops.decode(torch.tensor([[[0.0, 0.0, 1e4, 1e4]]]), torch.tensor([[0.0, 0.0, 16.0, 32.0]]), weights)
    assert (huge[0, 0, 2:] - huge[0, 0, :2]).tolist() == pytest.approx([1000, 2000], rel=1e-5)


def test_decoding_is_in_float32() -> None:
    boxes, deltas = torch.tensor([[1000.3, 7.0, 1100.7, 80.0]]), torch.tensor([[[0.5, 0.25, 0.0, 0.0]]])
    half = box_ops.decode(deltas.bfloat16(), boxes, (1.0, 1.0))
    assert half.dtype == torch.float32
    assert torch.equal(half, box_ops.decode(deltas, boxes, (1.0, 1.0)))


def test_anchors_have_exact_sizes_in_the_order_of_rows() -> None:
    anchors = Anchors(ModelConfig())([(3, 5)])
    assert anchors.shape == (3 * 5 * 15, 4)
    for row, column, size, ratio in [(0, 0, 0, 0), (2, 3, 4, 2), (1, 4, 2, 1)]:
        x0, y0, x1, y1 = anchors[((row * 5 + column) * 5 + size) * 3 + ratio].tolist()
        assert ((x0 + x1) / 2, (y0 + y1) / 2) == pytest.approx((16 * column, 16 * row), abs=1e-4)
        assert (y1 - y0) / (x1 - x0) == pytest.approx((0.5, 1, 2)[ratio])
        assert (x1 - x0) * (y1 - y0) == pytest.approx((32 << size) ** 2)
    assert Anchors(TINY).strides == (16,)


REGIONS = [
    [[3.0, 5.0, 90.0, 60.0], [0.0, 0.0, 112.0, 80.0], [50.2, 10.1, 50.9, 79.0]],
    [[100.0, 70.0, 112.0, 80.0], [-9.0, 30.0, 80.0, 109.0], [30.0, 30.0, 30.0, 30.0], [7.0, 7.0, 7.00001, 9.0]],
]


def bins_of(boxes: list[torch.Tensor], maps: torch.Tensor, *, size: int, steps: tuple[int, ...] = (1,)) -> list[Bins]:
    """Compute the bins of the boxes of each image on maps with stride 4."""
    joined, images = torch.cat(boxes), images_of(boxes)
    levels = torch.zeros_like(images)
    return compute_bins(joined, images, levels, [maps.shape], [4], size=size, steps=steps, dtype=maps.dtype)


@pytest.mark.parametrize("size", [14, 7, 4])
def test_pooling_equals_torchvisions_roi_align(size: int) -> None:
    """Values and gradients are equal for large and small regions, for regions across the border and for empty ones."""
    draw = generator(0, "maps")
    maps = torch.from_numpy(draw.random((2, 3, 20, 28)))
    boxes = [torch.tensor(some, dtype=torch.float64) for some in REGIONS]
    steps = (1, 2)
    for step, bins in zip(steps, bins_of(boxes, maps, size=size, steps=steps), strict=True):
        first, second = maps.clone().requires_grad_(), maps.clone().requires_grad_()
        pooled = pool([first], bins)
        wanted = roi_align(second, boxes, size, spatial_scale=1 / 4, aligned=True)[:, :, ::step, ::step]
        assert pooled.shape == wanted.shape
        assert relative(pooled.detach(), wanted.detach()) < 1e-12
        weights = torch.from_numpy(draw.random(tuple(wanted.shape)))
        (pooled * weights).sum().backward()
        (wanted * weights).sum().backward()
        assert relative(first.grad, second.grad) < 1e-12


def test_pooling_without_regions_is_empty() -> None:
    maps = torch.ones(1, 3, 5, 5)
    (bins,) = bins_of([torch.zeros(0, 4)], maps, size=4)
    assert pool([maps], bins).shape == (0, 3, 4, 4)


def test_pooling_a_region_longer_than_the_map_gives_means() -> None:
    maps, boxes = torch.ones(1, 1, 20, 20), [torch.tensor([[-80.0, -80, 160, 160]])]
    (bins,) = bins_of(boxes, maps, size=6)
    inside = torch.zeros(6, 6)
    inside[2:4, 2:4] = 1
    torch.testing.assert_close(pool([maps], bins)[0, 0], inside)


def bilinear_values(mask: np.ndarray, box: np.ndarray, height: int, width: int) -> np.ndarray:
    """Interpolate a mask at the centers of the pixels, with 0 outside the mask."""
    m = len(mask)
    padded = np.pad(mask, 1)
    result = np.zeros((height, width))
    for y in range(height):
        for x in range(width):
            v = (y + 0.5 - box[1]) / (box[3] - box[1]) * m - 0.5
            u = (x + 0.5 - box[0]) / (box[2] - box[0]) * m - 0.5
            if -1 < v < m and -1 < u < m:
                i, j = math.floor(v), math.floor(u)
                b, a = v - i, u - j
                corner = padded[i + 1 : i + 3, j + 1 : j + 3]
                result[y, x] = np.array([1 - b, b]) @ corner @ np.array([1 - a, a])
    return result


def test_masks_are_pasted_at_exact_positions() -> None:
    draw = generator(0, "masks")
    boxes = np.array([[2.3, 4.7, 17.1, 21.2], [-3.5, 10.0, 6.25, 40.0], [5.0, 5.0, 5.4, 6.0]], np.float32)
    masks = draw.random((3, 7, 7)).astype(np.float32)
    pasted = paste(torch.from_numpy(masks), torch.from_numpy(boxes), 30, 25)
    assert pasted.shape == (3, 30, 25)
    for mask, box, found in zip(masks, boxes, pasted.numpy(), strict=True):
        values = bilinear_values(mask, box, 30, 25)
        clear = np.abs(values - 0.5) > 1e-4
        assert np.array_equal(found[clear], values[clear] >= 0.5)
    assert paste(torch.zeros(0, 7, 7), torch.zeros(0, 4), 30, 25).shape == (0, 30, 25)


def test_mask_targets_are_the_parts_inside_the_boxes() -> None:
    box = np.array([10.0, 20.0, 50.0, 60.0])
    square = [np.array([10.0, 20, 50, 20, 50, 60, 10, 60])]
    bitmap = np.zeros((80, 90), bool)
    bitmap[20:60, 10:30] = True  # the left half
    boxes = torch.tensor([box, box, [-30.0, -20, 10, 20], box], dtype=torch.float32)
    targets = crop_targets([square, bitmap, []], torch.tensor([0, 1, 0, 2]), boxes, 14)
    assert targets[0].all()
    assert torch.equal(targets[1], (torch.arange(14) < 7).expand(14, 14))
    assert not targets[2].any()
    assert not targets[3].any()


def test_a_side_below_a_tenth_of_a_pixel_counts_as_a_tenth() -> None:
    thin = [np.array([10.0, 20, 10.05, 20, 10.05, 60, 10, 60])]
    (target,) = crop_targets([thin], torch.tensor([0]), torch.tensor([[10.0, 20, 10.05, 60]]), 14)
    assert torch.equal(target, (torch.arange(14) < 7).expand(14, 14))


def test_polygons_and_bitmaps_give_nearly_the_same_targets() -> None:
    draw = generator(1, "outlines")
    box = np.array([20.0, 30.0, 100.0, 90.0])
    star = outline(box, draw, "polygon", 120, 130)
    y, x = np.mgrid[:120, :130]
    inside = crop_targets([star], torch.tensor([0]), torch.tensor([[0.0, 0, 130, 120]]), 260)[0].numpy()
    bitmap = inside[
        np.minimum((y + 0.5) / 120 * 260, 259).astype(int), np.minimum((x + 0.5) / 130 * 260, 259).astype(int)
    ]
    boxes = torch.tensor([[20.0, 30, 100, 90], [40.0, 40, 120, 80]])
    targets = [crop_targets([mask], torch.tensor([0, 0]), boxes, 14) for mask in (star, bitmap)]
    assert (targets[0] ^ targets[1]).sum() < 0.08 * targets[0].sum()
