"""COCO's average precision: both evaluators, the published case of 100 images, and malformed files."""

import contextlib
import copy
import io
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import places
import pytest
import torch
from pycocotools import mask as rle
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from intl_bench.core.errors import InputError
from transfer.detection import masks
from transfer.detection.evaluation.coco import evaluate_coco, to_results
from transfer.detection.structures import Detections

GOLDEN = places.GOLDEN / "evaluation" / "coco_val2014_100.json"
NAMES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
SIDE = 320


def bitmap(box: list[float]) -> np.ndarray:
    """Draw an ellipse in a box, (SIDE, SIDE) uint8."""
    x, y, width, height = box
    rows, columns = np.mgrid[:SIDE, :SIDE]
    inside = ((columns - x) / width - 0.5) ** 2 + ((rows - y) / height - 0.5) ** 2 <= 0.25
    return np.asfortranarray(inside.astype(np.uint8))


def encoded(box: list[float]) -> dict[str, Any]:
    code = rle.encode(bitmap(box))
    return {"size": code["size"], "counts": code["counts"].decode()}


def uncompressed(box: list[float]) -> dict[str, Any]:
    pixels = bitmap(box).ravel(order="F")
    bounds = np.flatnonzero(np.diff(pixels)) + 1
    counts = np.diff([0, *bounds, pixels.size]).tolist()
    return {"size": [SIDE, SIDE], "counts": counts if pixels[0] == 0 else [0, *counts]}


def random_case(seed: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return annotations and detections with many special cases.

    They have objects of all sizes, crowds, images without objects or without detections, equal scores, and more than
    100 detections in the second image.
    """
    random = np.random.default_rng(seed)
    truth: dict[str, Any] = {
        "images": [{"id": 10 * i + 7, "height": SIDE, "width": SIDE} for i in range(8)],
        "categories": [{"id": number, "name": str(number)} for number in (1, 3, 90)],
        "annotations": [],
    }
    results: list[dict[str, Any]] = []

    def box() -> list[float]:
        width, height = random.choice([12, 25, 60, 150], 2) * random.uniform(0.8, 1.2, 2)
        return [*random.uniform(0, [SIDE - width, SIDE - height]).tolist(), float(width), float(height)]

    def result(image: int, category: int, at: list[float]) -> None:
        score = round(float(random.uniform()), 1)  # many equal scores
        entry = {"image_id": image, "category_id": category, "score": score, "bbox": at, "segmentation": encoded(at)}
        results.append(entry)

    for number, image in enumerate(truth["images"]):
        for _ in range(0 if number == 0 else random.integers(1, 7)):
            at, category = box(), int(random.choice([1, 3]))
            x, y, width, height = at
            crowd = int(random.uniform() < 0.2)
            outline: Any = [[x, y, x + width, y, x + width, y + height, x, y + height]]
            truth["annotations"].append(
                {
                    "id": len(truth["annotations"]) + 1,
                    "image_id": image["id"],
                    "category_id": category,
                    "bbox": at,
                    "area": width * height,
                    "iscrowd": crowd,
                    "segmentation": uncompressed(at) if crowd else outline,
                }
            )
            if number != 3:
                for _ in range(random.integers(0, 3)):
                    moved = np.asarray(at) + random.normal(0, 2, 4)
                    result(image["id"], category, [*moved[:2].tolist(), *np.abs(moved[2:]).tolist()])
        if number != 3:
            result(image["id"], int(random.choice([1, 3, 90])), box())
    for _ in range(101):
        result(truth["images"][1]["id"], 1, box())
    return truth, results


def write(folder: Path, value: Any, name: str = "truth.json") -> Path:
    path = folder / name
    path.write_text(json.dumps(value))
    return path


def plain_pycocotools(truth: Path, results: list[dict[str, Any]], iou_type: str) -> list[float]:
    """Evaluate as in the demonstration of pycocotools.

    For masks the boxes are removed, because pycocotools would take the area of the box instead of that of the mask.
    """
    field = {"bbox": "bbox", "segm": "segmentation"}[iou_type]
    kept = [{key: entry[key] for key in ("image_id", "category_id", "score", field)} for entry in results]
    with contextlib.redirect_stdout(io.StringIO()):
        annotations = COCO(str(truth))
        evaluation = COCOeval(annotations, annotations.loadRes(kept), iou_type)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return [100 * value for value in evaluation.stats]


@pytest.mark.parametrize("seed", range(6))
def test_both_evaluators_agree_with_plain_pycocotools(tmp_path: Path, seed: int, capfd) -> None:
    pytest.importorskip("faster_coco_eval")
    truth, results = random_case(seed)
    path = write(tmp_path, truth)
    before = copy.deepcopy(results)
    found = evaluate_coco(path, results)
    assert results == before, "the caller's detections were changed"
    assert capfd.readouterr() == ("", "")
    for iou_type in ("bbox", "segm"):
        for name, value in zip(NAMES, plain_pycocotools(path, results, iou_type), strict=True):
            assert found.get(f"{iou_type}/{name}", -100) == pytest.approx(value, abs=1e-12)
    assert 0 < found["bbox/AP"] < 100
    assert 0 < found["segm/AP"] < 100
    fast = evaluate_coco(path, write(tmp_path, results, "results.json"), evaluator="faster-coco-eval")
    assert list(fast) == list(found)
    assert max(abs(fast[name] - found[name]) for name in found) < 1e-12


def test_the_area_of_a_detected_mask_is_not_that_of_its_box(tmp_path: Path) -> None:
    """Boxes in the results do not change the numbers of the masks. In plain pycocotools they do."""
    truth, results = random_case(0)
    path = write(tmp_path, truth)
    without = [{key: value for key, value in entry.items() if key != "bbox"} for entry in results]
    assert evaluate_coco(path, results, iou_types=("segm",)) == evaluate_coco(path, without, iou_types=("segm",))


@pytest.mark.parametrize("evaluator", ["pycocotools", "faster-coco-eval"])
def test_published_numbers_of_cocoapi(evaluator: str) -> None:
    """cocoapi publishes results for 100 images of val2014. The golden file names their origin."""
    published = json.loads(GOLDEN.read_text())
    default = Path(__file__).resolve().parents[3] / "shared" / "data" / "coco_val2014_100"
    folder = Path(os.environ.get("INTL_BENCH_COCO_100", default))
    if not folder.is_dir():
        pytest.skip(f"cocoapi's 100 images are not at {folder}; set INTL_BENCH_COCO_100 (see {GOLDEN.name})")
    if evaluator != "pycocotools":
        pytest.importorskip("faster_coco_eval")
    for iou_type, numbers in published["metrics"].items():
        files = folder / published["annotations"], folder / published["results"][iou_type]
        found = evaluate_coco(*files, iou_types=(iou_type,), evaluator=evaluator)
        assert found.keys() == {f"{iou_type}/{name}" for name in NAMES}
        for name, number in numbers.items():
            assert found[f"{iou_type}/{name}"] == pytest.approx(100 * number, abs=1e-10)


@pytest.mark.parametrize("evaluator", ["pycocotools", "faster-coco-eval"])
def test_objects_of_unknown_images_and_categories_do_not_count(tmp_path: Path, evaluator: str) -> None:
    if evaluator != "pycocotools":
        pytest.importorskip("faster_coco_eval")
    truth, results = random_case(2)
    expected = evaluate_coco(write(tmp_path, truth), results, evaluator=evaluator)
    for change in ({"image_id": 4}, {"category_id": 2}):
        truth["annotations"].append({**truth["annotations"][0], **change})
    assert evaluate_coco(write(tmp_path, truth), results, evaluator=evaluator) == expected


@pytest.mark.parametrize("evaluator", ["pycocotools", "faster-coco-eval"])
def test_no_detections_score_zero(tmp_path: Path, evaluator: str) -> None:
    if evaluator != "pycocotools":
        pytest.importorskip("faster_coco_eval")
    truth, _ = random_case(1)
    found = evaluate_coco(write(tmp_path, truth), [], evaluator=evaluator)
    assert {"bbox/AP", "bbox/AP50", "bbox/AP75", "segm/AP", "segm/AP50", "segm/AP75"} <= set(found)
    assert set(found.values()) == {0.0}


@pytest.mark.parametrize("evaluator", ["pycocotools", "faster-coco-eval"])
def test_perfect_detections_score_100_and_metrics_without_objects_are_left_out(tmp_path: Path, evaluator: str) -> None:
    """The annotation ids start at 0, which means "not matched" in pycocotools."""
    if evaluator != "pycocotools":
        pytest.importorskip("faster_coco_eval")
    boxes = [[10.0, 20.0, 200.0, 150.0], [150.0, 160.0, 120.0, 140.0]]
    entries = [
        {"image_id": 5, "category_id": 2, "bbox": box, "segmentation": encoded(box), "area": 20000.0} for box in boxes
    ]
    truth = {
        "images": [{"id": 5, "height": SIDE, "width": SIDE}, {"id": 6, "height": 20, "width": 30}],
        "categories": [{"id": 2, "name": "ellipse"}, {"id": 4, "name": "absent"}],
        "annotations": [{**entry, "id": i, "iscrowd": 0} for i, entry in enumerate(entries)],
    }
    results = [{**entry, "score": 0.9} for entry in entries]
    found = evaluate_coco(write(tmp_path, truth), results, evaluator=evaluator)
    ones = ("AP", "AP50", "AP75", "APl", "AR1", "AR10", "AR100", "ARl")
    assert set(found) == {f"{kind}/{name}" for kind in ("bbox", "segm") for name in ones}
    expected = {key: 50.0 if key.endswith("/AR1") else 100.0 for key in found}  # one detection of two objects
    assert found == pytest.approx(expected, abs=1e-9)


BOX = [1.0, 2.0, 30.0, 40.0]
GOOD = {"image_id": 17, "category_id": 3, "score": 0.5, "bbox": BOX, "segmentation": encoded(BOX)}
WRONG: list[tuple[dict[str, Any], str]] = [
    ({"image_id": 4}, "image_id is 4"),
    ({"image_id": None}, "image_id is None"),
    ({"category_id": 2}, "category_id is 2"),
    ({"bbox": [1, 2, 3]}, r"bbox is \[1, 2, 3\]"),
    ({"bbox": [1, 2, 3, float("nan")]}, "bbox is"),
    ({"bbox": [1, 2, -3, 4]}, "bbox is"),
    ({"score": float("inf")}, "score is inf"),
    ({"score": "0.5"}, "score is '0.5'"),
    ({"score": True}, "score is True"),
    ({"segmentation": [[0, 0, 5, 0, 5, 5]]}, "expected compressed RLE"),
    ({"segmentation": {**encoded(BOX), "size": [SIDE, SIDE + 1]}}, "size is"),
    ({"segmentation": {"size": [SIDE, SIDE], "counts": "é"}}, "counts are not valid"),
]


@pytest.mark.parametrize(("change", "message"), WRONG)
def test_a_malformed_detection_is_named_in_one_line(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    path = write(tmp_path, random_case(0)[0])
    with pytest.raises(InputError, match=rf"^detections\[1\]: .*{message}") as error:
        evaluate_coco(path, [GOOD, {**GOOD, **change}])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("field", list(GOOD))
def test_a_missing_field_is_named(tmp_path: Path, field: str) -> None:
    path = write(tmp_path, random_case(0)[0])
    results = write(tmp_path, [{key: value for key, value in GOOD.items() if key != field}], "results.json")
    with pytest.raises(InputError, match=rf"results.json\[0\]: {field} is missing"):
        evaluate_coco(path, results)


def test_invalid_files_and_settings_are_refused(tmp_path: Path) -> None:
    truth, results = random_case(0)
    path = write(tmp_path, truth)
    with pytest.raises(InputError, match="expected a list"):
        evaluate_coco(path, write(tmp_path, {"results": []}, "results.json"))
    with pytest.raises(InputError, match=r"cannot read .*absent\.json"):
        evaluate_coco(tmp_path / "absent.json", results)
    (tmp_path / "half.json").write_text('{"images": [')
    with pytest.raises(InputError, match=r"half\.json: not valid JSON"):
        evaluate_coco(tmp_path / "half.json", results)
    with pytest.raises(InputError, match=r"contains \[\]; expected an object with images"):
        evaluate_coco(write(tmp_path, [], "list.json"), results)
    with pytest.raises(InputError, match="evaluator=cocoeval: expected pycocotools or faster-coco-eval"):
        evaluate_coco(path, results, evaluator="cocoeval")
    with pytest.raises(InputError, match="iou_types: 'keypoints'"):
        evaluate_coco(path, results, iou_types=("keypoints",))
    for change, message in (
        ({"bbox": [1, 2, float("nan"), 4]}, r"bbox: \[1, 2, nan, 4\]; expected finite numbers"),
        ({"segmentation": []}, "segmentation: empty; expected a list of polygons"),
        ({"segmentation": {"size": [SIDE, SIDE], "counts": [5]}}, "segmentation: counts with a sum of 5"),
    ):
        broken = copy.deepcopy(truth)
        broken["annotations"][2].update(change)
        with pytest.raises(InputError, match=rf"broken.json: annotation 3: {message}"):
            evaluate_coco(write(tmp_path, broken, "broken.json"), results)


def test_results_contain_the_detections() -> None:
    boxes = torch.tensor([[0.1, 10.7, 30.3, 50.9], [-2.0, 0.0, 41.0, 32.5], [5.0, 5.0, 35.0, 30.0]])
    scores = torch.tensor([0.9, 0.9, 0.1])
    found = Detections(boxes, scores, torch.tensor([1, 0, 1]), None)
    results = json.loads(json.dumps(to_results(9, found, (4, 77), 60, 40)))
    assert [entry["image_id"] for entry in results] == [9, 9, 9]
    assert [entry["category_id"] for entry in results] == [77, 4, 77]
    assert [entry["score"] for entry in results] == scores.tolist()
    corners = [[x, y, x + width, y + height] for x, y, width, height in (entry["bbox"] for entry in results)]
    assert corners == boxes.tolist()
    assert all("segmentation" not in entry for entry in results)


def test_results_contain_the_pasted_masks() -> None:
    boxes = torch.tensor([[0.1, 10.7, 30.3, 50.9], [-2.0, 0.0, 41.0, 32.5], [5.0, 5.0, 35.0, 30.0]])
    probabilities = torch.rand(3, 14, 14, generator=torch.Generator().manual_seed(0))
    found = Detections(boxes, torch.ones(3), torch.zeros(3, dtype=torch.int64), probabilities)
    expected = masks.paste(probabilities, boxes, 60, 40).numpy()
    assert expected.any((1, 2)).all()
    for pixels in (2**26, 1):  # all masks at a time, and one at a time
        results = json.loads(json.dumps(to_results(9, found, (4,), 60, 40, paste_pixels=pixels)))
        assert all((rle.decode(e["segmentation"]) == m).all() for e, m in zip(results, expected, strict=True))


def test_without_detections_the_results_are_empty() -> None:
    none = Detections(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64), torch.zeros(0, 14, 14))
    assert to_results(9, none, (4,), 60, 40) == []
