"""The picture of the images with the lowest AP: their selection, their order, and the drawn objects and detections."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as rle

from intl_bench.core.errors import InputError
from transfer.detection.annotations.objects import Annotations
from transfer.detection.annotations.split import read_split
from transfer.detection.config import AnnotatedDataConfig
from transfer.detection.evaluation.coco import evaluate_coco, image_precisions
from transfer.detection.evaluation.visualize import draw_worst
from transfer.detection.rle import from_bitmap

WIDTH, HEIGHT = 240, 180
BOXES = ([20.0, 30.0, 80.0, 60.0], [130.0, 50.0, 70.0, 100.0])


def square(box: list[float]) -> list[list[float]]:
    x, y, width, height = box
    return [[x, y, x + width, y, x + width, y + height, x, y + height]]


@pytest.fixture
def truth(tmp_path: Path) -> Annotations:
    """Seven gray images with two objects each, except that the sixth has none and the seventh has only crowds."""
    (tmp_path / "val").mkdir()
    content: dict[str, Any] = {"images": [], "annotations": []}
    content["categories"] = [{"id": 3, "name": "boat"}, {"id": 7, "name": "naïve"}]
    for number in range(1, 8):
        Image.new("RGB", (WIDTH, HEIGHT), (128, 128, 128)).save(tmp_path / "val" / f"{number}.png")
        content["images"].append({"id": number, "file_name": f"{number}.png", "height": HEIGHT, "width": WIDTH})
        for box, category in zip(BOXES, (3, 7), strict=True) if number != 6 else ():
            entry = {"id": len(content["annotations"]) + 1, "image_id": number, "category_id": category, "bbox": box}
            pixels = rle.decode(rle.frPyObjects(square(box), HEIGHT, WIDTH)[0])
            crowd = from_bitmap(pixels > 0)
            outline = {"iscrowd": 1, "segmentation": crowd} if number == 7 else {"segmentation": square(box)}
            content["annotations"].append({"iscrowd": 0, "area": box[2] * box[3], **entry, **outline})
    (tmp_path / "val.json").write_text(json.dumps(content))
    config = AnnotatedDataConfig(root=str(tmp_path), name="boats", test=("val.json",), test_images="val")
    return read_split(config, "test", masks=True)


def found(image: int, category: int, box: list[float], *, score: float = 0.9, masked: bool = True) -> dict[str, Any]:
    result: dict[str, Any] = {"image_id": image, "category_id": category, "score": score, "bbox": box}
    if masked:
        code = rle.frPyObjects(square(box), HEIGHT, WIDTH)[0]
        result["segmentation"] = {"size": code["size"], "counts": code["counts"].decode()}
    return result


def shifted(box: list[float], by: float) -> list[float]:
    return [box[0] + by, *box[1:]]


@pytest.fixture
def results() -> list[dict[str, Any]]:
    """Detections: exact in image 1, half of the objects in 2 and 5, shifted in 3, and none in 4."""
    entries = [found(1, 3, BOXES[0]), found(1, 7, BOXES[1]), found(2, 3, BOXES[0]), found(5, 7, BOXES[1])]
    entries += [found(3, 3, shifted(BOXES[0], 12)), found(3, 7, shifted(BOXES[1], 10)), found(6, 3, BOXES[0])]
    return entries


def test_images_are_in_order_of_ap_and_images_without_objects_are_left_out(
    truth: Annotations, results: list[dict[str, Any]], tmp_path: Path
) -> None:
    precisions = image_precisions(truth, results)
    assert np.isnan(precisions[5:]).all()
    assert precisions[[0, 1, 3, 4]] == pytest.approx([100, 50, 0, 50])
    # IoU 68/92 = 0.739 and 60/80 = 0.75: five and six of the ten thresholds.
    assert precisions[2] == pytest.approx(55)
    assert draw_worst(truth, results, 9, tmp_path / "worst.png") == [4, 2, 5, 3, 1]
    assert draw_worst(truth, results, 2, tmp_path / "worst.png") == [4, 2]


def test_the_ap_of_an_image_equals_coco_evaluation_of_that_image(
    truth: Annotations, results: list[dict[str, Any]], tmp_path: Path
) -> None:
    content = json.loads(truth.path.read_text())
    for index, image in enumerate(content["images"][:5]):
        own = [entry for entry in content["annotations"] if entry["image_id"] == image["id"]]
        path = tmp_path / "alone.json"
        path.write_text(json.dumps({**content, "images": [image], "annotations": own}))
        mine = [result for result in results if result["image_id"] == image["id"]]
        alone = evaluate_coco(path, mine, iou_types=("bbox",))
        assert image_precisions(truth, results)[index] == pytest.approx(alone["bbox/AP"], abs=1e-9)


def test_the_picture_shows_annotations_on_the_left_and_detections_on_the_right(
    truth: Annotations, results: list[dict[str, Any]], tmp_path: Path
) -> None:
    path = tmp_path / "new folder" / "worst.png"
    draw_worst(truth, results, 2, path)
    picture = np.asarray(Image.open(path))
    rows, columns = picture.shape[:2]
    assert columns == 960
    assert rows == 2 * (14 + 360)
    image = picture[14:374]
    left, right = image[:, :480], image[:, 480:]
    assert (right == 128).all(), "image 4 has no detections"
    x, y = (round(2 * (BOXES[0][i] + BOXES[0][i + 2] / 2)) for i in (0, 1))
    assert tuple(left[y, x]) not in ((128, 128, 128), (0, 0, 0)), "the mask covers the object"
    assert (left[-3:] == 128).all()
    second = picture[14 + 374 :]
    one = second[y, x]
    x, y = (round(2 * (BOXES[1][i] + BOXES[1][i + 2] / 2)) for i in (0, 1))
    assert (second[y, x] != second[y, 480 + x]).any(), "the second object was missed"
    assert (second[y, x] != one).any(), "each object has its own color"


def test_two_detections_of_one_class_have_two_colors_and_unsure_ones_are_not_drawn(
    truth: Annotations, tmp_path: Path
) -> None:
    detections = [found(4, 3, BOXES[0], score=0.9), found(4, 3, BOXES[1], score=0.5)]

    def colors(threshold: float | None = None) -> list[tuple[int, ...]]:
        given = {} if threshold is None else {"threshold": threshold}
        only = truth.select(truth.image_ids == 4, [])
        draw_worst(only, detections, 1, tmp_path / "worst.png", **given)
        picture = np.asarray(Image.open(tmp_path / "worst.png"))[14:, 480:]
        return [tuple(picture[round(2 * (box[1] + box[3] / 2)), round(2 * (box[0] + box[2] / 2))]) for box in BOXES]

    first, second = colors()
    gray = (128, 128, 128)
    assert len({first, second, gray}) == 3
    assert colors(0.6) == [first, gray]
    assert colors(0.95) == [gray, gray]


def test_the_picture_is_reproducible_and_masks_are_optional(
    truth: Annotations, results: list[dict[str, Any]], tmp_path: Path
) -> None:
    paths = [tmp_path / f"{i}.png" for i in range(3)]
    for path in paths[:2]:
        draw_worst(truth, results, 3, path)
    assert paths[0].read_bytes() == paths[1].read_bytes()
    boxes = [{key: value for key, value in result.items() if key != "segmentation"} for result in results]
    draw_worst(truth, boxes, 3, paths[2])
    pictures = [np.asarray(Image.open(path)) for path in paths]
    assert pictures[0].shape == pictures[2].shape
    assert (pictures[0] != pictures[2]).any()


def test_pictures_without_detections_and_without_objects(truth: Annotations, tmp_path: Path) -> None:
    assert draw_worst(truth, [], 2, tmp_path / "worst.png") == [1, 2]
    empty = truth.select(truth.image_ids == 6, [])
    assert draw_worst(empty, [found(6, 3, BOXES[0])], 2, tmp_path / "worst.png") == []
    assert Image.open(tmp_path / "worst.png").width == 480


def test_a_missing_image_is_named(truth: Annotations, tmp_path: Path) -> None:
    (tmp_path / "val" / "2.png").unlink()
    with pytest.raises(InputError, match=r"2\.png"):
        draw_worst(truth, [], 2, tmp_path / "worst.png")


@pytest.mark.data
def test_the_worst_photographs_are_drawn(test_data: Path, tmp_path: Path) -> None:
    annotations = read_split(AnnotatedDataConfig(root=str(test_data / "coco_tiny")), "test", masks=True)
    random = np.random.default_rng(0)
    results = []
    for image in annotations.images:
        for item in image.objects:
            x0, y0, x1, y1 = (item.box + random.normal(0, 4, 4)).tolist()
            box = [x0, y0, max(1.0, x1 - x0), max(1.0, y1 - y0)]
            category = annotations.category_ids[item.class_index]
            results.append(found(image.image_id, category, box, score=float(random.uniform()), masked=False))
    worst = draw_worst(annotations, results, 4, tmp_path / "worst.png")
    precisions = dict(zip(annotations.image_ids.tolist(), image_precisions(annotations, results).tolist(), strict=True))
    scored = sorted(value for value in precisions.values() if value >= 0)
    assert [precisions[image_id] for image_id in worst] == scored[:4]
    assert Image.open(tmp_path / "worst.png").width == 960
