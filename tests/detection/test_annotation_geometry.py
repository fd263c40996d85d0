"""Boxes, masks and areas in wrong units, forms and places: what is refused, with which cause, and what passes."""

import copy
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from intl_bench.core.errors import InputError
from transfer.detection.annotations import generated, geometry
from transfer.detection.annotations.objects import Annotations
from transfer.detection.annotations.split import read_split
from transfer.detection.config import AnnotatedDataConfig

Entry = dict[str, Any]
Change = Callable[[Entry, int, int], None]


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Generated images in COCO's layout."""
    folder = tmp_path_factory.mktemp("figures")
    generated.write(folder, train=1, test=12)
    return folder


def read(root: Path, document: Entry, *, masks: bool = True, boxes: str = "refuse") -> Annotations:
    path = root / "annotations" / "changed.json"
    path.write_text(json.dumps(document))
    config = AnnotatedDataConfig(root=str(root), name="figures", test=(f"annotations/{path.name}",), boxes=boxes)
    return read_split(config, "test", masks=masks)


def document(root: Path) -> Entry:
    found: Entry = json.loads((root / "annotations" / "instances_val2017.json").read_text())
    return found


def apply(root: Path, change: Change, count: int | None = None) -> Entry:
    """Change the first `count` annotations of the test split, by default all."""
    changed = document(root)
    sizes = {entry["id"]: (entry["width"], entry["height"]) for entry in changed["images"]}
    for entry in changed["annotations"][:count]:
        change(entry, *sizes[entry["image_id"]])
    return changed


def points(move: Callable[[float, float, int, int], tuple[float, float]]) -> Change:
    """Move the points of polygons. Run-length encodings stay."""

    def change(entry: Entry, width: int, height: int) -> None:
        if isinstance(entry["segmentation"], list):
            entry["segmentation"] = [
                [v for x, y in zip(part[::2], part[1::2], strict=True) for v in move(x, y, width, height)]
                for part in entry["segmentation"]
            ]

    return change


def box(convert: Callable[..., tuple[float, ...]]) -> Change:
    """Convert boxes; `convert` gets x, y, width and height of the box, and width and height of the image."""
    return lambda entry, width, height: entry.update(bbox=list(convert(*entry["bbox"], width, height)))


def as_bitmap_by_row(entry: Entry, width: int, height: int) -> None:
    """Encode the box as a bitmap row by row, the order that NumPy has by default."""
    x, y, w, h = (int(value) for value in entry["bbox"])
    pixels = np.zeros((height, width), bool)
    pixels[y : y + h, x : x + w] = True
    flat = np.concatenate([[False], pixels.ravel(), [not pixels[-1, -1]]])
    counts = np.diff(np.flatnonzero(flat[1:] != flat[:-1]), prepend=0)
    entry["segmentation"] = {"size": [height, width], "counts": counts.tolist()}


MASKS: list[tuple[Change, str]] = [
    (points(lambda x, y, w, h: (x / w, y / h)), "the masks are from 0 to 1"),
    (points(lambda x, y, w, h: (100 * x / w, 60 * y / h)), ""),
    (points(lambda x, y, w, h: (50 * x / w, 50 * y / h)), "the masks are of images resized to 50 x 50"),
    (points(lambda x, y, w, h: (y, x)), "x and y of the masks are swapped"),
    (points(lambda x, y, w, h: (x / 4, y / 4)), "the masks are of an image resized by 0.25 x 0.25"),
    (points(lambda x, y, w, h: (x * 3, y * 3)), "the masks are of an image resized by 3 x 3"),
    (points(lambda x, y, w, h: (x * 512 / w, y * 512 / h)), "the masks are of images resized to 512 x 512"),
    (points(lambda x, y, w, h: (x + w, y)), ""),
    (as_bitmap_by_row, "the run-length encodings go row by row"),
    (box(lambda x, y, w, h, *size: (x, y, x + w, y + h)), "the boxes are corners [x0, y0, x1, y1]"),
    (box(lambda x, y, w, h, *size: (y, x, y + h, x + w)), "the boxes are corners [y0, x0, y1, x1]"),
    (box(lambda x, y, w, h, *size: (x + w / 2, y + h / 2, w, h)), "the boxes are [center x, center y, width, height]"),
    (box(lambda x, y, w, h, *size: (y, x, h, w)), "the boxes are [y, x, height, width]"),
    (box(lambda x, y, w, h, a, b: (x / a, y / b, w / a, h / b)), "the boxes are [x, y, width, height] from 0 to 1"),
    (
        box(lambda x, y, w, h, a, b: ((x + w / 2) / a, (y + h / 2) / b, w / a, h / b)),
        "the boxes are [center x, center y, width, height] from 0 to 1",
    ),
    (
        box(lambda x, y, w, h, a, b: (y / b, x / a, (y + h) / b, (x + w) / a)),
        "the boxes are corners [y0, x0, y1, x1] from 0 to 1",
    ),
]


@pytest.mark.parametrize(("change", "cause"), MASKS)
@pytest.mark.parametrize("boxes", ["refuse", "clip"])
def test_masks_that_do_not_fit_their_boxes_are_refused_with_the_cause(
    material: Path, change: Change, cause: str, boxes: str
) -> None:
    with pytest.raises(InputError) as error:
        read(material, apply(material, change), boxes=boxes)
    message = str(error.value)
    assert message.startswith(f"{material}/annotations/changed.json: ")
    assert f"likely cause: {cause}" in message or not cause
    assert " such: " in message
    assert "annotation " in message
    assert message.isprintable()
    assert len(message) < 2000


def test_a_part_of_the_masks_in_another_unit_is_refused(material: Path) -> None:
    change, cause = MASKS[0]
    with pytest.raises(InputError, match=rf"annotation 2: segmentation: .*{cause}"):
        read(material, apply(material, change, 4))


def test_outlines_are_not_read_without_masks(material: Path) -> None:
    assert read(material, apply(material, MASKS[0][0]), masks=False).notes == []


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 1.0, 3.0])
@pytest.mark.parametrize("rounded", [False, True])
def test_loose_and_rounded_boxes_pass_without_a_note(material: Path, share: float, rounded: bool) -> None:
    def loosen(entry: Entry, width: int, height: int) -> None:
        x, y, w, h = entry["bbox"]
        x0, y0 = max(0, x - share * w), max(0, y - share * h)
        x1, y1 = min(width, x + w + 0.5 * share * w), min(height, y + h + 2 * share * h)
        if rounded:
            x0, y0, x1, y1 = math.floor(x0), math.floor(y0), math.floor(x1), math.floor(y1)
        entry["bbox"] = [x0, y0, x1 - x0, y1 - y0]

    assert read(material, apply(material, loosen)).notes == []


def test_masks_without_pixels_are_counted_and_refused_if_all_are(material: Path) -> None:
    empty = points(lambda x, y, w, h: (5, 5))
    notes = read(material, apply(material, empty, 3)).notes
    assert len(notes) == 2  # the areas differ too
    assert notes[0].startswith("masks without pixels: 2, the first is annotation 2, a mask from (5, 5) to (5, 5)")

    def clear(entry: Entry, width: int, height: int) -> None:
        entry["segmentation"] = {"size": [height, width], "counts": [width * height]}

    with pytest.raises(InputError, match=r"annotation 1: segmentation: .* expected a mask with pixels"):
        read(material, apply(material, clear))


def test_masks_beyond_their_image_are_counted(material: Path) -> None:
    wide = points(lambda x, y, w, h: (x if x < 0.9 * w else w + 4, y))
    notes = read(material, apply(material, wide)).notes
    assert notes[0].startswith("masks beyond their image: ")


@pytest.mark.parametrize("masks", [False, True])
def test_areas_in_another_unit_are_counted(material: Path, masks: bool) -> None:
    def scale(entry: Entry, width: int, height: int) -> None:
        entry["area"] /= width * height

    (note,) = read(material, apply(material, scale), masks=masks).notes
    assert note.startswith("areas, which tell small objects from large ones, that differ from the area of the ")
    assert f"{'mask' if masks else 'box'}: " in note
    assert "the first is annotation " in note


# Boxes without masks


@st.composite
def boxes(draw: st.DrawFn, least: int = 1, side: int = 40) -> tuple[np.ndarray, np.ndarray]:
    """Return corners (m, 4) of boxes anywhere in images, and the sizes (m, 2) of the images."""
    random = np.random.default_rng(draw(st.integers(0, 10**6)))
    count = draw(st.integers(least, 60))
    sizes = random.integers(side, 700, (4, 2))[random.integers(0, 4, count)]
    low = random.uniform(0, 0.9, (count, 2)) * sizes
    high = low + np.maximum(random.uniform(0, 1, (count, 2)) * (sizes - low), 2)
    return np.concatenate([low, np.minimum(high, sizes)], 1), sizes


def to_xywh(corners: np.ndarray) -> np.ndarray:
    return np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], 1)


@hypothesis.given(boxes())
def test_valid_boxes_have_no_finding(case: tuple[np.ndarray, np.ndarray]) -> None:
    corners, sizes = case
    for clip in (False, True):
        assert list(geometry.check_boxes(corners, sizes, geometry.CORNERS, clip=clip)) == []
        assert list(geometry.check_boxes(to_xywh(corners), sizes, geometry.XYWH, clip=clip)) == []


@hypothesis.given(boxes(), st.sampled_from([1.0, 100.0]))
def test_boxes_from_0_to_1_and_in_percent_are_a_fault(case: tuple[np.ndarray, np.ndarray], most: float) -> None:
    corners, sizes = case
    share = corners / np.tile(sizes, 2)
    hypothesis.assume(most == 1 or (len(corners) >= 30 and (sizes >= 150).all()))
    hypothesis.assume((share[:, :2].min(0) <= 0.15).all() and (share[:, 2:].max(0) >= 0.75).all())
    for form, given_boxes in ((geometry.CORNERS, most * share), (geometry.XYWH, most * to_xywh(share))):
        findings = list(geometry.check_boxes(given_boxes, sizes, form, clip=True))
        assert [finding.fault for finding in findings] == [True]
        assert len(findings[0].objects) == len(corners)
        assert findings[0].cause == ("coordinates from 0 to 1" if most == 1 else "coordinates in percent")


@hypothesis.given(boxes(least=20), st.sampled_from(["corners", "centers", "swapped"]))
def test_boxes_of_another_form_are_a_fault_with_the_cause(case: tuple[np.ndarray, np.ndarray], form: str) -> None:
    corners, sizes = case
    changed = to_xywh(corners)
    if form == "corners":
        changed, cause = corners, "corners [x0, y0, x1, y1]"
    elif form == "centers":
        changed[:, :2] += changed[:, 2:] / 2
        cause = "[center x, center y, width, height]"
    else:
        changed, cause = changed[:, [1, 0, 3, 2]], "[y, x, height, width]"
    findings = list(geometry.check_boxes(changed, sizes, geometry.XYWH, clip=True))
    edges = np.concatenate([changed[:, :2], changed[:, :2] + changed[:, 2:]], 1)
    beyond = (edges[:, 2:] > sizes + 1).any(1)
    hypothesis.assume(beyond.sum() >= max(3, 0.02 * len(beyond)))
    assert [finding.fault for finding in findings] == [True]
    assert cause in findings[0].cause
    assert findings[0].objects.tolist() == np.flatnonzero(beyond).tolist()


def test_one_small_box_beyond_its_image_does_not_make_all_boxes_centers() -> None:
    changed = np.tile([50.0, 40.0, 8.0, 8.0], (40, 1))
    changed[0, :2] = 95, 40  # 3 pixels beyond the right edge; as centers all boxes are inside
    sizes = np.tile([100, 80], (40, 1))
    for clip in (False, True):
        (finding,) = geometry.check_boxes(changed, sizes, geometry.XYWH, clip=clip)
        assert (finding.fault, finding.cause, finding.objects.tolist()) == (not clip, "", [0])


def test_a_box_beyond_its_image_is_refused_or_clipped(material: Path) -> None:
    changed = document(material)
    entry = changed["annotations"][3]
    x, y, _, h = entry["bbox"]
    entry["bbox"] = [x, y, 1000, h]
    with pytest.raises(InputError, match=r"annotation 4: bbox: .*inside the image"):
        read(material, copy.deepcopy(changed), masks=False)
    found = read(material, changed, masks=False, boxes="clip")
    assert found.notes[0].startswith("boxes beyond their image, which training clips: 1, the first is annotation 4, [")
    assert found.boxes[found.annotation_ids == 4].tolist() == [[x, y, x + 1000, y + h]]


@pytest.mark.parametrize(("count", "fault"), [(999, True), (1001, False)])
def test_one_mask_of_a_thousand_outside_its_box_is_counted(count: int, fault: bool) -> None:
    """A large file is not refused for a slip."""
    boxes = np.tile([10.0, 20.0, 30.0, 40.0], (count, 1))
    bounds = geometry.corners(boxes, geometry.XYWH)
    bounds[5] += 200
    sizes = np.full((count, 2), 640)
    (found,) = geometry.check_masks(boxes, sizes, bounds, lambda: np.full((count, 4), np.nan))
    assert (found.kind, found.objects.tolist(), found.fault) == ("masks outside their boxes", [5], fault)


def test_boxes_of_whole_objects_around_masks_of_visible_parts_are_counted() -> None:
    """Masks of the upper 40% of all boxes fit a resized image too."""
    boxes = np.array([[10.0 + 7 * i, 5.0, 40.0 + i, 100.0] for i in range(12)])
    bounds = geometry.corners(boxes, geometry.XYWH)
    bounds[:, 3] = bounds[:, 1] + 40
    sizes = np.full((12, 2), 640)
    found = list(geometry.check_masks(boxes, sizes, bounds, lambda: np.full((12, 4), np.nan)))
    assert not any(one.fault for one in found)
    (fault,) = (one for one in geometry.check_masks(boxes, sizes, bounds / 3, lambda: np.full((12, 4), np.nan)))
    assert fault.fault
    assert "resized" in fault.cause
