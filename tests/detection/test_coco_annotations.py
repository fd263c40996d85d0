"""COCO's annotations: what is read, what is corrected and counted, and the error for every invalid entry."""

import copy
import json
import math
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as pycocotools_mask

from intl_bench.core.errors import InputError
from transfer.detection import rle
from transfer.detection.annotations.image_sizes import image_size
from transfer.detection.annotations.objects import Annotations
from transfer.detection.annotations.split import read_split
from transfer.detection.config import AnnotatedDataConfig
from transfer.detection.evaluation.coco import evaluate_coco

Document = dict[str, Any]
SQUARE = [10, 10, 20, 10, 20, 20, 10, 20]
BITMAP = np.zeros((40, 30), bool)
BITMAP[5:30, 3:9] = True
STRING = pycocotools_mask.encode(np.asfortranarray(BITMAP.astype(np.uint8)))["counts"].decode()


def valid_document() -> Document:
    """Three images, the last without objects, with categories 3 and 7, a crowd, and all kinds of outlines."""

    def annotation(number: int, image: int, category: int, bbox: list[float], outline: Any, crowd: int = 0) -> Document:
        return {
            "id": number,
            "image_id": image,
            "category_id": category,
            "bbox": bbox,
            "segmentation": outline,
            "area": 100.5,
            "iscrowd": crowd,
        }

    return {
        "categories": [{"id": 7, "name": "dog"}, {"id": 3, "name": "cat"}],
        "images": [
            {"id": 20, "file_name": "b.jpg", "width": 30, "height": 40},
            {"id": 5, "file_name": "a.jpg", "width": 60, "height": 50},
            {"id": 9, "file_name": "sub/c.png", "width": 24, "height": 16},
        ],
        "annotations": [
            annotation(31, 20, 7, [3.1, 5.2, 6.3, 25], {"size": [40, 30], "counts": STRING}),
            annotation(32, 5, 3, [10, 10, 10, 10], [SQUARE]),
            annotation(33, 20, 3, [0, 0, 30, 40], {"size": [40, 30], "counts": [0, 100, 1100]}, crowd=1),
            annotation(34, 20, 3, [1.25, 2, 19, 18], [SQUARE, [1, 2, 3.5, 4, 5, 6]]),
        ],
    }


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A data set with the annotations of `valid_document()` in both splits."""
    for split in ("train2017", "val2017"):
        (tmp_path / split / "sub").mkdir(parents=True)
        for entry in valid_document()["images"]:
            size = (entry["width"], entry["height"])
            Image.new("RGB", size, "green").save(tmp_path / split / entry["file_name"])
        write_annotations(tmp_path, json.dumps(valid_document()), split)
    return tmp_path


def write_annotations(root: Path, text: str, split: str = "train2017") -> Path:
    path = root / "annotations" / f"instances_{split}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    return path


def read(root: Path, split: str = "train", masks: bool = True) -> Annotations:
    return read_split(AnnotatedDataConfig(root=str(root), name="case"), split, masks=masks)


def test_images_and_objects_are_read_in_order_with_their_fields(root: Path) -> None:
    found = read(root, "test")
    assert found.category_ids == (3, 7)
    assert found.category_names == ("cat", "dog")
    assert [entry.image_id for entry in found.images] == [5, 9, 20]
    assert [entry.file_name for entry in found.images] == ["a.jpg", "sub/c.png", "b.jpg"]
    assert [(entry.height, entry.width) for entry in found.images] == [(50, 60), (16, 24), (40, 30)]
    assert found.images[1].objects == []
    encoded, crowd, polygons = found.images[2].objects
    assert [one.annotation_id for one in (encoded, crowd, polygons)] == [31, 33, 34]
    assert [one.class_index for one in (encoded, crowd, polygons)] == [1, 0, 0]
    assert [one.crowd for one in (encoded, crowd, polygons)] == [False, True, False]
    # The corners are computed in float32, as in Detectron2.
    corner = np.float32([3.1, 5.2])
    assert encoded.box.tolist() == [*corner.tolist(), *(corner + np.float32([6.3, 25])).tolist()]
    assert isinstance(encoded.outline, dict)
    assert np.array_equal(rle.to_bitmap(np.array(encoded.outline["counts"]), 40, 30), BITMAP)
    assert isinstance(polygons.outline, list)
    assert [part.tolist() for part in polygons.outline] == [SQUARE, [1, 2, 3.5, 4, 5, 6]]
    assert found.notes == []
    assert read(root, "test", masks=False).images[2].objects[2].outline is None


def test_training_leaves_out_images_without_objects_or_with_only_crowds(root: Path) -> None:
    document = valid_document()
    document["images"].append({"id": 1, "file_name": "d.jpg", "width": 8, "height": 8})
    document["annotations"].append({**document["annotations"][2], "id": 1, "image_id": 1, "bbox": [0, 0, 8, 8]})
    document["annotations"][-1]["segmentation"] = {"size": [8, 8], "counts": [0, 64]}
    Image.new("RGB", (8, 8)).save(root / "train2017" / "d.jpg")
    write_annotations(root, json.dumps(document))
    found = read(root)
    assert [entry.image_id for entry in found.images] == [5, 20]
    assert found.notes == [
        "images without objects, not used in training: 1",
        "images with only crowd regions, not used in training: 1",
        "crowd regions, not used in training: 2",
    ]


Change = Callable[[Document, Path], None]


def field(table: str, row: int, **values: Any) -> Change:
    """Set fields of one row; the value ... removes a field."""

    def change(document: Document, root: Path) -> None:
        for name, value in values.items():
            if value is ...:
                del document[table][row][name]
            else:
                document[table][row][name] = value

    return change


def top(**values: Any) -> Change:
    """Set keys of the document; the value ... removes a key."""

    def change(document: Document, root: Path) -> None:
        for name, value in values.items():
            if value is ...:
                del document[name]
            else:
                document[name] = value

    return change


def file(change: Callable[[Path], object]) -> Change:
    """Change the file of the image with id 20."""
    return lambda document, root: (change(root / "train2017" / "b.jpg"), None)[1]


def bbox(*values: Any) -> Change:
    return field("annotations", 1, bbox=list(values))


def outline(value: Any) -> Change:
    return field("annotations", 0, segmentation=value)


def rotate_by_exif(path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (30, 40)).save(path, exif=exif)


def replace_file(path: Path, make: Callable[[Path], object]) -> None:
    path.unlink()
    make(path)


ONE = {"id": 8, "file_name": "a.jpg", "width": 60, "height": 50}
BAD: list[tuple[Change, str]] = [
    (top(images=...), "images: missing; expected a list"),
    (top(annotations=...), "annotations: missing; expected a list"),
    (top(categories=...), "categories: missing; expected a list"),
    (top(images=[]), "images: an empty list"),
    (top(annotations=[]), "annotations: an empty list"),
    (top(categories=[]), "categories: an empty list"),
    (top(images={"5": {}}), "images: {'5': {}}; expected a list"),
    (top(annotations=[7]), "annotations[0]: 7; expected an object"),
    (field("images", 1, id=...), "images[1]: id: missing; expected a whole number"),
    (field("images", 1, id="5a"), "images[1]: id: '5a'; expected a whole number"),
    (field("images", 1, id=5.5), "images[1]: id: 5.5; expected a whole number"),
    (field("images", 1, id=True), "images[1]: id: True; expected a whole number"),
    (field("images", 1, id=2**70), "images[1]: id: 1.1805916207174113e+21; expected"),
    (field("images", 1, id=20), "image 20: id: used twice; expected a different id for each image"),
    (field("images", 0, width=...), "image 20: width: missing"),
    (field("images", 0, height="40"), "image 20: height: '40'; expected a positive whole number of pixels"),
    (field("images", 0, height=0), "image 20: height: 0; expected a positive whole number of pixels"),
    (field("images", 0, width=-30), "image 20: width: -30; expected a positive whole number of pixels"),
    (field("images", 0, width=31), "image 20: width x height 31 x 40; expected 30 x 40, the size of "),
    (field("images", 0, width=40, height=30), "b.jpg with its EXIF orientation applied"),
    (file(rotate_by_exif), "image 20: width x height 30 x 40; expected 40 x 30, the size of "),
    (field("images", 0, file_name=...), "image 20: file_name: missing"),
    (field("images", 0, file_name=3), "image 20: file_name: 3; expected the name of a file"),
    (field("images", 0, file_name="a.jpg"), "image 5: file_name: 'a.jpg' is used by another image"),
    (field("images", 0, file_name="../b.jpg"), "image 20: file_name: '../b.jpg'; expected a file inside"),
    (field("images", 0, file_name="/etc/passwd"), "image 20: file_name: '/etc/passwd'; expected a file inside"),
    (field("images", 0, file_name=""), "image 20: file_name: ''; expected a file inside"),
    (field("images", 0, file_name="b\njpg"), r"image 20: file_name: 'b\njpg'; expected a file inside"),
    (field("images", 0, file_name="b\0jpg"), r"image 20: file_name: 'b\x00jpg'; expected a file inside"),
    (field("images", 0, file_name="x.jpg"), "x.jpg: no such file; expected the image file of an annotation"),
    (file(Path.unlink), "b.jpg: no such file; expected the image file of an annotation"),
    (file(lambda path: path.write_bytes(b"")), "b.jpg: the file is empty; expected an image"),
    (file(lambda path: path.write_text("no image")), "b.jpg: not a readable image"),
    (file(lambda path: path.write_bytes(path.read_bytes()[:100])), "b.jpg: not a readable image"),
    (file(lambda path: replace_file(path, Path.mkdir)), "b.jpg: a folder; expected a regular file"),
    (file(lambda path: replace_file(path, os.mkfifo)), "b.jpg: a named pipe; expected a regular file"),
    (field("categories", 0, id=...), "categories[0]: id: missing"),
    (field("categories", 0, id=3), "category 3: id: used twice"),
    (field("categories", 0, name=...), "category 7: name: missing; expected text"),
    (field("annotations", 0, id=...), "annotations[0]: id: missing"),
    (field("annotations", 1, id=31), "annotation 31: id: used twice; expected a different id for each annotation"),
    (field("annotations", 1, id=None), "annotations[1]: id: None; expected a whole number"),
    (field("annotations", 1, image_id=...), "annotation 32: image_id: missing"),
    (field("annotations", 1, image_id=6), "annotation 32: image_id: 6 is not in this file"),
    (field("annotations", 1, image_id="x"), "annotation 32: image_id: 'x'; expected the id of an image"),
    (field("annotations", 1, category_id=0), "annotation 32: category_id: 0 is not in this file"),
    (field("annotations", 1, category_id=90), "annotation 32: category_id: 90 is not in this file"),
    (field("annotations", 1, category_id=...), "annotation 32: category_id: missing"),
    (field("annotations", 1, iscrowd=2), "annotation 32: iscrowd: 2; expected 0 or 1"),
    (field("annotations", 1, iscrowd="0"), "annotation 32: iscrowd: '0'; expected 0 or 1"),
    (field("annotations", 1, ignore=1), "annotation 32: ignore: 1; expected 0"),
    (field("annotations", 1, bbox=...), "annotation 32: bbox: missing; expected [x, y, width, height] in pixels"),
    (field("annotations", 1, bbox={"x": 1}), "annotation 32: bbox: {'x': 1}; expected [x, y, width, height]"),
    (bbox(), "annotation 32: bbox: []; expected [x, y, width, height]"),
    (bbox(1, 2, 3), "annotation 32: bbox: [1, 2, 3]; expected [x, y, width, height]"),
    (bbox(1, 2, "3", 4), "annotation 32: bbox: '3'; expected plain numbers"),
    (bbox(1, 2, None, 4), "annotation 32: bbox: None; expected plain numbers"),
    (bbox(1, 2, 10**400, 4), "annotation 32: bbox: 1000"),
    (bbox(1, 2, math.nan, 4), "annotation 32: bbox: [1, 2, nan, 4]; expected finite numbers"),
    (bbox(1, 2, math.inf, 4), "annotation 32: bbox: [1, 2, inf, 4]; expected finite numbers"),
    (bbox(10, 10, -5, 4), "annotation 32: bbox: [10, 10, -5, 4]; expected a width and a height of 0 or more"),
    (
        bbox(20, 10, 50, 4),
        "annotation 32: bbox: [20, 10, 50, 4]; expected a box [x, y, width, height] inside the image",
    ),
    (bbox(-1.5, 10, 20, 4), "inside the image of 60 x 50 pixels"),
    (bbox(10, 48, 20, 3.5), "inside the image of 60 x 50 pixels"),
    (outline(...), "annotation 31: segmentation: missing; expected a list of polygons"),
    (outline(None), "annotation 31: segmentation: None; expected a list of polygons"),
    (outline([1, 2, 3, 4, 5, 6]), "annotation 31: segmentation: 1; expected a list of numbers for each polygon"),
    (outline([[1, 2, 3, 4, 5, 6, 7]]), "annotation 31: segmentation: a polygon of 7 numbers; expected x0, y0, x1"),
    (outline([[1, 2, 3, 4, 5, "6"]]), "annotation 31: segmentation: '6'; expected plain numbers"),
    (outline([[1, 2, 3, 4, 5, [6]]]), "annotation 31: segmentation: [6]; expected plain numbers"),
    (outline([SQUARE, [1, 2, 3, 4, 5, math.nan]]), "annotation 31: segmentation: nan; expected finite coordinates"),
    (outline({"size": [40, 30]}), "annotation 31: segmentation: counts None; expected a list of whole numbers"),
    (outline({"counts": [0, 1200]}), "annotation 31: segmentation: size None; expected the image's [height, width]"),
    (outline({"size": [30, 40], "counts": [0, 1200]}), "annotation 31: segmentation: size [30, 40]; expected"),
    (outline({"size": [40, 30], "counts": [0, 1199]}), "annotation 31: segmentation: counts with a sum of 1199"),
    (outline({"size": [40, 30], "counts": [1300, -100]}), "(the smallest is -100); expected lengths of runs"),
    (outline({"size": [40, 30], "counts": [0, 1199.5]}), "annotation 31: segmentation: counts [0, 1199.5]; expected"),
    (outline({"size": [40, 30], "counts": STRING[:-1]}), "annotation 31: segmentation: counts"),
    (outline({"size": [40, 30], "counts": "nonsense!"}), "counts 'nonsense!'; expected pycocotools' string"),
    (outline({"size": [40, 30], "counts": ""}), "annotation 31: segmentation: counts ''; expected pycocotools' string"),
]


@pytest.mark.parametrize(("change", "message"), BAD, ids=[message[:60] for _, message in BAD])
def test_every_invalid_entry_is_reported_in_one_line(root: Path, change: Change, message: str) -> None:
    document = copy.deepcopy(valid_document())
    change(document, root)
    write_annotations(root, json.dumps(document))
    with pytest.raises(InputError) as error:
        read(root)
    assert error.value.exit_code == 2
    assert message in str(error.value)
    assert str(root / "train2017") in str(error.value) or str(root / "annotations") in str(error.value)
    assert str(error.value).isprintable()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (field("annotations", 1, area="9"), "annotation 32: area: '9'; expected a number of square pixels"),
        (field("annotations", 1, area=math.nan), "annotation 32: area: nan; expected a finite number"),
        (field("annotations", 1, area=-1), "annotation 32: area: -1.0; expected a finite number"),
    ],
)
def test_fields_that_only_the_evaluation_needs_are_checked_in_the_test_split(
    root: Path, change: Change, message: str
) -> None:
    document = copy.deepcopy(valid_document())
    change(document, root)
    write_annotations(root, json.dumps(document))
    assert len(read(root)) == 2  # the training split is valid
    write_annotations(root, json.dumps(document), "val2017")
    with pytest.raises(InputError) as error:
        read(root, "test")
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not valid JSON"),
        ("no JSON", "not valid JSON"),
        (json.dumps(valid_document())[:-100], "not valid JSON"),
        ("[]", "contains []; expected an object with images"),
        ("[" * 100_000, "not valid JSON"),
    ],
    ids=["empty", "text", "truncated", "list", "deep"],
)
def test_a_file_that_is_not_an_instances_json_is_refused(root: Path, text: str, message: str) -> None:
    path = write_annotations(root, text)
    with pytest.raises(InputError) as error:
        read(root)
    assert str(error.value).startswith(f"{path}: {message}")
    assert "\n" not in str(error.value)


def test_missing_and_binary_files_are_refused(root: Path) -> None:
    write_annotations(root, json.dumps(valid_document())).write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match=r"instances_train2017\.json: not valid JSON"):
        read(root)
    with pytest.raises(InputError, match="no such folder"):
        read_split(AnnotatedDataConfig(root=str(root), test_images="nowhere"), "test", masks=True)
    with pytest.raises(InputError, match=r"x\.json: no such file; intl-bench data check .* looks for"):
        read_split(AnnotatedDataConfig(root=str(root), train=("x.json",)), "train", masks=True)
    with pytest.raises(InputError, match=r"data\.root is not set"):
        read_split(AnnotatedDataConfig(), "train", masks=True)


def test_training_on_only_crowds_is_refused(root: Path) -> None:
    document = valid_document()
    document["annotations"] = document["annotations"][2:3]
    write_annotations(root, json.dumps(document))
    with pytest.raises(InputError, match="no image has an object to train on"):
        read(root)


# Corrections


@pytest.mark.parametrize(
    ("change", "notes", "objects"),
    [
        (bbox(-0.9, 0, 61.5, 50.4), ["boxes up to 1 pixel outside their image, clipped: 1"], 4),
        (bbox(10.5, 11, 1.03, 0.0), ["boxes without width or height, not used in training: 1"], 4),
    ],
)
def test_corrections_are_counted(root: Path, change: Change, notes: list[str], objects: int) -> None:
    document = copy.deepcopy(valid_document())
    change(document, root)
    write_annotations(root, json.dumps(document), "val2017")
    found = read(root, "test")
    assert found.notes == notes
    assert sum(len(entry.objects) for entry in found.images) == objects
    kept = {one.annotation_id: one for entry in found.images for one in entry.objects}
    assert kept[34].outline is not None
    assert [len(part) for part in kept[34].outline] == [8, 6]
    assert kept[33].outline == {"size": [40, 30], "counts": [0, 100, 1100]}


@pytest.mark.parametrize(
    ("polygons", "notes"),
    [
        ([[1, 2, 3, 4], SQUARE], ["polygons of fewer than three points, left out: 1"]),
        (
            [[1, 2, 3, 4], []],
            ["polygons of fewer than three points, left out: 2", "objects without a valid polygon, left out: 1"],
        ),
    ],
)
def test_short_polygons_are_left_out_and_objects_of_nothing_else_are_refused_in_test(
    root: Path, polygons: list[list[int]], notes: list[str]
) -> None:
    document = copy.deepcopy(valid_document())
    outline(polygons)(document, root)
    write_annotations(root, json.dumps(document))
    assert read(root).notes[: len(notes)] == notes
    path = write_annotations(root, json.dumps(document), "val2017")
    if len(notes) == 1:
        assert read(root, "test").notes[:1] == notes
        return
    for reader in (lambda: read(root, "test"), lambda: evaluate_coco(path, [])):
        with pytest.raises(InputError, match="a polygon of 4 numbers; expected at least one of 6 numbers or more"):
            reader()


@pytest.mark.parametrize("place", [0, 1])
@pytest.mark.parametrize("short", [[], [1, 2], [1, 2, 3, 4]])
def test_a_short_polygon_beside_a_valid_one_changes_no_score(root: Path, short: list[int], place: int) -> None:
    """pycocotools gives the shorter one no pixel if it comes last, and fails if it comes first."""
    document, shifted = valid_document(), [8, 10, 18, 10, 18, 20, 8, 20]
    detections = [
        {"image_id": 5, "category_id": 3, "score": score, "segmentation": encode(polygon, 50, 60)}
        for score, polygon in ((0.9, shifted), (0.8, SQUARE))
    ]
    scores = []
    for polygons in ([SQUARE], [short, SQUARE] if place == 0 else [SQUARE, short]):
        document["annotations"][1]["segmentation"] = polygons
        document["annotations"][1]["area"] = None  # computed from the mask
        path = write_annotations(root, json.dumps(document), "val2017")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            scores.append(evaluate_coco(path, detections, iou_types=("segm",)))
    assert scores[0] == scores[1]
    assert 0 < scores[0]["segm/AP"] < 100


def encode(polygon: list[int], height: int, width: int) -> Document:
    encoded = pycocotools_mask.merge(pycocotools_mask.frPyObjects([polygon], height, width))
    return {"size": [height, width], "counts": encoded["counts"].decode()}


def test_an_object_without_an_outline_among_others_is_left_out_of_training(root: Path) -> None:
    document = copy.deepcopy(valid_document())
    outline([])(document, root)
    path = write_annotations(root, json.dumps(document))
    found = read(root)
    assert found.notes[0] == "objects without a valid polygon, left out: 1"
    assert 31 not in found.annotation_ids
    assert found.outlines is not None
    assert [len(part) for part in found.outlines.parts(found.annotation_ids.tolist().index(34))] == [8, 6]
    write_annotations(root, json.dumps(document), "val2017")
    for reader in (lambda: read(root, "test"), lambda: evaluate_coco(path, [])):
        with pytest.raises(InputError, match="annotation 31: segmentation: empty; expected a list of polygons"):
            reader()
    for row in document["annotations"]:
        row["segmentation"] = []
    write_annotations(root, json.dumps(document))
    with pytest.raises(InputError, match=r"segmentation: empty; expected .* \(4 such: 31, 32, 33, 34\)"):
        read(root)


def test_run_lengths_may_be_written_as_floats(root: Path) -> None:
    document, runs = copy.deepcopy(valid_document()), [0, 100, 1100]
    outline({"size": [40, 30], "counts": [float(run) for run in runs]})(document, root)
    path = write_annotations(root, json.dumps(document), "val2017")
    first = read(root, "test").images[2].objects[0]
    assert first.outline == {"size": [40, 30], "counts": runs}
    found = [{"image_id": 20, "category_id": 7, "score": 1.0, "segmentation": first.outline}]
    counts = pycocotools_mask.frPyObjects(found[0]["segmentation"], 40, 30)["counts"].decode()
    found[0]["segmentation"] = {"size": [40, 30], "counts": counts}
    assert evaluate_coco(path, found, iou_types=("segm",))["segm/AP50"] > 0


def test_ignore_beside_iscrowd_says_nothing_new(root: Path) -> None:
    document = copy.deepcopy(valid_document())
    document["annotations"][2]["ignore"] = 1
    write_annotations(root, json.dumps(document))
    assert read(root).crowd.tolist() == [False, False, True, False]


def test_outlines_are_not_checked_without_masks(root: Path) -> None:
    document = copy.deepcopy(valid_document())
    outline(...)(document, root)
    write_annotations(root, json.dumps(document))
    assert read(root, masks=False).outlines is None


# Comparison with independent readers


@pytest.mark.data
@pytest.mark.parametrize("split", ["train", "test"])
def test_coco_is_read_as_in_detectron2(test_data: Path, split: str) -> None:
    pytest.importorskip("detectron2")
    from detectron2.data.build import filter_images_with_only_crowd_annotations
    from detectron2.data.datasets.coco import load_coco_json
    from detectron2.structures import BoxMode

    folder = test_data / "coco_tiny"
    name = {"train": "train2017", "test": "val2017"}[split]
    theirs = load_coco_json(str(folder / "annotations" / f"instances_{name}.json"), str(folder / name), f"own {split}")
    if split == "train":
        theirs = filter_images_with_only_crowd_annotations(theirs)
    ours = read(folder, split)
    assert len(ours) == len(theirs)
    for index, (entry, record) in enumerate(zip(ours.images, theirs, strict=True)):
        assert str(ours.file(index)) == record["file_name"]
        assert (entry.image_id, entry.height, entry.width) == tuple(
            record[key] for key in ("image_id", "height", "width")
        )
        for one, other in zip(entry.objects, record["annotations"], strict=True):
            assert one.class_index == other["category_id"]
            assert one.crowd == other["iscrowd"]
            assert one.box.tolist() == BoxMode.convert(other["bbox"], BoxMode.XYWH_ABS, BoxMode.XYXY_ABS)
            if one.crowd:
                assert isinstance(one.outline, dict)
                bitmap = rle.to_bitmap(np.array(one.outline["counts"]), entry.height, entry.width)
                assert np.array_equal(bitmap, pycocotools_mask.decode(other["segmentation"]))
            else:
                assert isinstance(one.outline, list)
                assert [part.tolist() for part in one.outline] == other["segmentation"]


def test_run_length_encodings_equal_those_of_pycocotools() -> None:
    random = np.random.default_rng(0)
    for _ in range(200):
        height, width = random.integers(1, 300, 2)
        bitmap = random.random((height, width)) < random.random() ** 4
        theirs = pycocotools_mask.encode(np.asfortranarray(bitmap.astype(np.uint8)))
        encoding = rle.from_bitmap(bitmap)
        assert np.array_equal(pycocotools_mask.decode(pycocotools_mask.frPyObjects(encoding, height, width)), bitmap)
        assert rle.decode_counts(theirs["counts"]).tolist() == encoding["counts"]
        assert np.array_equal(rle.to_bitmap(np.array(encoding["counts"]), height, width), bitmap)


@pytest.mark.data
def test_sizes_from_headers_equal_those_of_pillow(test_data: Path) -> None:
    for file in sorted(test_data.glob("*/*/*.jpg")) + sorted(test_data.glob("imagenet_sample/*/*/*")):
        with Image.open(file) as image:
            assert image_size(str(file)) == image.size
    assert file.is_file()


@pytest.mark.parametrize("orientation", range(9))
@pytest.mark.parametrize("kind", ["exif", "xmp", "png"])
def test_size_follows_the_exif_orientation(tmp_path: Path, orientation: int, kind: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / ("a.png" if kind == "png" else "a.jpg")
    if kind == "xmp":
        Image.new("RGB", (30, 40)).save(path, xmp=f'<x tiff:Orientation="{orientation}"/>'.encode(), progressive=True)
    else:
        Image.new("RGB", (30, 40)).save(path, exif=exif)
    with Image.open(path) as image:
        rotated = image.getexif().get(0x0112) in (5, 6, 7, 8)
    assert rotated == (orientation >= 5)
    assert image_size(str(path)) == ((40, 30) if rotated else (30, 40))
