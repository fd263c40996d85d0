"""COCO's annotations: what is read, what is mended and counted, and the one line for everything else."""

import copy
import json
import math
import os
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
from transfer.detection.config import DataConfig

Document = dict[str, Any]
SQUARE = [10, 10, 20, 10, 20, 20, 10, 20]
BITMAP = np.zeros((40, 30), bool)
BITMAP[5:30, 3:9] = True
STRING = pycocotools_mask.encode(np.asfortranarray(BITMAP.astype(np.uint8)))["counts"].decode()


def good() -> Document:
    """Three images, the last without objects; categories 3 and 7; a crowd; all kinds of outlines."""

    def one(number: int, image: int, category: int, bbox: list[float], outline: Any, crowd: int = 0) -> Document:
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
            one(31, 20, 7, [3.1, 5.2, 6.3, 25], {"size": [40, 30], "counts": STRING}),
            one(32, 5, 3, [10, 10, 10, 10], [SQUARE]),
            one(33, 20, 3, [0, 0, 30, 40], {"size": [40, 30], "counts": [0, 100, 1100]}, crowd=1),
            one(34, 20, 3, [10.25, 10, 10, 10], [SQUARE, [1, 2, 3.5, 4, 5, 6]]),
        ],
    }


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The folder of `good()` for both splits."""
    for split in ("train2017", "val2017"):
        (tmp_path / split / "sub").mkdir(parents=True)
        for entry in good()["images"]:
            size = (entry["width"], entry["height"])
            Image.new("RGB", size, "green").save(tmp_path / split / entry["file_name"])
        put(tmp_path, json.dumps(good()), split)
    return tmp_path


def put(root: Path, text: str, split: str = "train2017") -> Path:
    path = root / "annotations" / f"instances_{split}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    return path


def read(root: Path, split: str = "train", masks: bool = True) -> Annotations:
    return read_split(DataConfig(root=str(root), name="case"), split, masks=masks)


def test_what_is_read(root: Path) -> None:
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
    # Added up in float32, as Detectron2 does, and kept exactly.
    corner = np.float32([3.1, 5.2])
    assert encoded.box.tolist() == [*corner.tolist(), *(corner + np.float32([6.3, 25])).tolist()]
    assert isinstance(encoded.outline, dict)
    assert np.array_equal(rle.to_bitmap(np.array(encoded.outline["counts"]), 40, 30), BITMAP)
    assert isinstance(polygons.outline, list)
    assert [part.tolist() for part in polygons.outline] == [SQUARE, [1, 2, 3.5, 4, 5, 6]]
    assert found.notes == []
    assert read(root, "test", masks=False).images[2].objects[2].outline is None


def test_training_leaves_out_images_without_single_objects(root: Path) -> None:
    document = good()
    document["images"].append({"id": 1, "file_name": "d.jpg", "width": 8, "height": 8})
    document["annotations"].append({**document["annotations"][2], "id": 1, "image_id": 1, "bbox": [0, 0, 8, 8]})
    document["annotations"][-1]["segmentation"] = {"size": [8, 8], "counts": [0, 64]}
    Image.new("RGB", (8, 8)).save(root / "train2017" / "d.jpg")
    put(root, json.dumps(document))
    found = read(root)
    assert [entry.image_id for entry in found.images] == [5, 20]
    assert found.notes == [
        "images without objects, not trained on: 1",
        "images with crowd regions alone, not trained on: 1",
        "crowd regions, not trained on: 2",
    ]


Change = Callable[[Document, Path], None]


def field(table: str, row: int, **values: Any) -> Change:
    """Sets fields of one row; ... removes one."""

    def change(document: Document, root: Path) -> None:
        for name, value in values.items():
            if value is ...:
                del document[table][row][name]
            else:
                document[table][row][name] = value

    return change


def top(**values: Any) -> Change:
    def change(document: Document, root: Path) -> None:
        for name, value in values.items():
            if value is ...:
                del document[name]
            else:
                document[name] = value

    return change


def file(change: Callable[[Path], object]) -> Change:
    return lambda document, root: (change(root / "train2017" / "b.jpg"), None)[1]


def bbox(*values: Any) -> Change:
    return field("annotations", 1, bbox=list(values))


def outline(value: Any) -> Change:
    return field("annotations", 0, segmentation=value)


def turned(path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (30, 40)).save(path, exif=exif)


def replaced(path: Path, make: Callable[[Path], object]) -> None:
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
    (field("images", 1, id="5"), "images[1]: id: '5'; expected a whole number"),
    (field("images", 1, id=5.0), "images[1]: id: 5.0; expected a whole number"),
    (field("images", 1, id=True), "images[1]: id: True; expected a whole number"),
    (field("images", 1, id=2**70), "images[1]: id: 1.1805916207174113e+21; expected"),
    (field("images", 1, id=20), "image 20: id: used twice; expected an id of its own for each image"),
    (field("images", 0, width=...), "image 20: width: missing"),
    (field("images", 0, height="40"), "image 20: height: '40'; expected a positive whole number of pixels"),
    (field("images", 0, height=0), "image 20: height: 0; expected a positive whole number of pixels"),
    (field("images", 0, width=-30), "image 20: width: -30; expected a positive whole number of pixels"),
    (field("images", 0, width=31), "image 20: width x height 31 x 40; the file "),
    (field("images", 0, width=40, height=30), "b.jpg is 30 x 40 (its EXIF orientation applied)"),
    (file(turned), "image 20: width x height 30 x 40; the file "),
    (field("images", 0, file_name=...), "image 20: file_name: missing"),
    (field("images", 0, file_name=3), "image 20: file_name: 3; expected the image file's name"),
    (field("images", 0, file_name="a.jpg"), "image 5: file_name: 'a.jpg' is another image's too"),
    (field("images", 0, file_name="../b.jpg"), "image 20: file_name: '../b.jpg'; expected a file inside"),
    (field("images", 0, file_name="/etc/passwd"), "image 20: file_name: '/etc/passwd'; expected a file inside"),
    (field("images", 0, file_name=""), "image 20: file_name: ''; expected a file inside"),
    (field("images", 0, file_name="b\njpg"), r"image 20: file_name: 'b\njpg'; expected a file inside"),
    (field("images", 0, file_name="b\0jpg"), r"image 20: file_name: 'b\x00jpg'; expected a file inside"),
    (field("images", 0, file_name="x.jpg"), "x.jpg: no such file; the annotations list it"),
    (file(Path.unlink), "b.jpg: no such file; the annotations list it"),
    (file(lambda path: path.write_bytes(b"")), "b.jpg: the file is empty; expected an image"),
    (file(lambda path: path.write_text("no image")), "b.jpg: not a readable image"),
    (file(lambda path: path.write_bytes(path.read_bytes()[:100])), "b.jpg: not a readable image"),
    (file(lambda path: replaced(path, Path.mkdir)), "b.jpg: not a regular file"),
    (file(lambda path: replaced(path, os.mkfifo)), "b.jpg: not a regular file"),
    (field("categories", 0, id=...), "categories[0]: id: missing"),
    (field("categories", 0, id=3), "category 3: id: used twice"),
    (field("categories", 0, name=...), "category 7: name: missing; expected text"),
    (field("annotations", 0, id=...), "annotations[0]: id: missing"),
    (field("annotations", 1, id=31), "annotation 31: id: used twice; expected an id of its own for each annotation"),
    (field("annotations", 1, id=None), "annotations[1]: id: None; expected a whole number"),
    (field("annotations", 1, image_id=...), "annotation 32: image_id: missing"),
    (field("annotations", 1, image_id=6), "annotation 32: image_id: 6 is not in this file"),
    (field("annotations", 1, image_id="5"), "annotation 32: image_id: '5'; expected the id of an image"),
    (field("annotations", 1, category_id=0), "annotation 32: category_id: 0 is not in this file"),
    (field("annotations", 1, category_id=90), "annotation 32: category_id: 90 is not in this file"),
    (field("annotations", 1, category_id=...), "annotation 32: category_id: missing"),
    (field("annotations", 1, iscrowd=2), "annotation 32: iscrowd: 2; expected 0 or 1"),
    (field("annotations", 1, iscrowd="0"), "annotation 32: iscrowd: '0'; expected 0 or 1"),
    (field("annotations", 1, iscrowd=False), "annotation 32: iscrowd: False; expected 0 or 1"),
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
    (outline([]), "annotation 31: segmentation: empty; expected a list of polygons"),
    (outline([1, 2, 3, 4, 5, 6]), "annotation 31: segmentation: 1; expected each polygon to be a list"),
    (outline([[1, 2, 3, 4, 5, 6, 7]]), "annotation 31: segmentation: a polygon of 7 numbers; expected x0, y0, x1"),
    (outline([[1, 2, 3, 4, 5, "6"]]), "annotation 31: segmentation: '6'; expected plain numbers"),
    (outline([[1, 2, 3, 4, 5, [6]]]), "annotation 31: segmentation: [6]; expected plain numbers"),
    (outline([SQUARE, [1, 2, 3, 4, 5, math.nan]]), "annotation 31: segmentation: nan; expected finite coordinates"),
    (outline({"size": [40, 30]}), "annotation 31: segmentation: counts None; expected a list of whole numbers"),
    (outline({"counts": [0, 1200]}), "annotation 31: segmentation: size None; expected the image's [height, width]"),
    (outline({"size": [30, 40], "counts": [0, 1200]}), "annotation 31: segmentation: size [30, 40]; expected"),
    (outline({"size": [40, 30], "counts": [0, 1199]}), "annotation 31: segmentation: counts that add up to 1199"),
    (outline({"size": [40, 30], "counts": [1300, -100]}), "(the smallest is -100); expected lengths that add up"),
    (outline({"size": [40, 30], "counts": [0, 1200.0]}), "annotation 31: segmentation: counts [0, 1200.0]; expected"),
    (outline({"size": [40, 30], "counts": STRING[:-1]}), "annotation 31: segmentation: counts"),
    (outline({"size": [40, 30], "counts": "nonsense!"}), "counts 'nonsense!'; expected pycocotools' string"),
    (outline({"size": [40, 30], "counts": ""}), "annotation 31: segmentation: counts ''; expected pycocotools' string"),
]


@pytest.mark.parametrize(("change", "message"), BAD, ids=[message[:60] for _, message in BAD])
def test_one_line_for_everything_wrong(root: Path, change: Change, message: str) -> None:
    document = copy.deepcopy(good())
    change(document, root)
    put(root, json.dumps(document))
    with pytest.raises(InputError) as error:
        read(root)
    assert error.value.exit_code == 2
    assert message in str(error.value)
    assert str(root / "train2017") in str(error.value) or str(root / "annotations") in str(error.value)
    assert str(error.value).isprintable()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (field("annotations", 1, id=0), "annotations 0: id: 0; expected a number from 1 on"),
        (field("annotations", 1, iscrowd=...), "annotation 32: iscrowd: missing; expected 0 or 1"),
        (field("annotations", 1, area=...), "annotation 32: area: missing; expected a number of square pixels"),
        (field("annotations", 1, area="9"), "annotation 32: area: '9'; expected a number of square pixels"),
        (field("annotations", 1, area=math.nan), "annotation 32: area: nan; expected a finite number"),
        (field("annotations", 1, area=-1), "annotation 32: area: -1.0; expected a finite number"),
    ],
)
def test_what_the_evaluator_needs_besides(root: Path, change: Change, message: str) -> None:
    document = copy.deepcopy(good())
    change(document, root)
    put(root, json.dumps(document))
    assert len(read(root)) == 2  # enough for training
    put(root, json.dumps(document), "val2017")
    with pytest.raises(InputError) as error:
        read(root, "test")
    assert message.replace("annotations 0", "annotation 0") in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not complete JSON"),
        ("no JSON", "not complete JSON"),
        (json.dumps(good())[:-100], "not complete JSON"),
        ("[]", "holds []; expected COCO's object"),
        ("[" * 100_000, "not complete JSON"),
    ],
    ids=["empty", "text", "truncated", "list", "deep"],
)
def test_no_annotation_file(root: Path, text: str, message: str) -> None:
    path = put(root, text)
    with pytest.raises(InputError) as error:
        read(root)
    assert str(error.value).startswith(f"{path}: {message}")
    assert "\n" not in str(error.value)


def test_missing_paths(root: Path) -> None:
    put(root, json.dumps(good())).write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match=r"instances_train2017\.json: not complete JSON"):
        read(root)
    with pytest.raises(InputError, match="no such folder"):
        read_split(DataConfig(root=str(root), test_images="nowhere"), "test", masks=True)
    with pytest.raises(InputError, match="cannot read the annotations"):
        read_split(DataConfig(root=str(root), train=("x.json",)), "train", masks=True)
    with pytest.raises(InputError, match=r"data\.root is not set"):
        read_split(DataConfig(), "train", masks=True)


def test_crowds_alone_are_nothing_to_train_on(root: Path) -> None:
    document = good()
    document["annotations"] = document["annotations"][2:3]
    put(root, json.dumps(document))
    with pytest.raises(InputError, match="no image has an object to train on"):
        read(root)


# What is mended, and counted


@pytest.mark.parametrize(
    ("change", "notes", "objects"),
    [
        (bbox(-0.9, 0, 61.5, 50.4), ["boxes up to 1 pixel outside their image, clipped: 1"], 4),
        (bbox(10.5, 11, 1.03, 0.0), ["boxes without width or height, not trained on: 1"], 4),
    ],
)
def test_mended_and_counted(root: Path, change: Change, notes: list[str], objects: int) -> None:
    document = copy.deepcopy(good())
    change(document, root)
    put(root, json.dumps(document), "val2017")
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
            ["polygons of fewer than three points, left out: 2", "objects without another polygon, left out: 1"],
        ),
    ],
)
def test_short_polygons_are_left_out_of_training_and_refused_in_test(
    root: Path, polygons: list[list[int]], notes: list[str]
) -> None:
    document = copy.deepcopy(good())
    outline(polygons)(document, root)
    put(root, json.dumps(document))
    whole = read(root).notes
    assert whole[: len(notes)] == notes
    put(root, json.dumps(document), "val2017")
    with pytest.raises(InputError, match="a polygon of 4 numbers; expected at least 6"):
        read(root, "test")


def test_outlines_are_not_looked_at_without_masks(root: Path) -> None:
    document = copy.deepcopy(good())
    outline(...)(document, root)
    put(root, json.dumps(document))
    assert read(root, masks=False).outlines is None


# Against independent readers


@pytest.mark.data
@pytest.mark.parametrize("split", ["train", "test"])
def test_as_detectron2_reads_real_coco(test_data: Path, split: str) -> None:
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


def test_run_lengths_as_pycocotools() -> None:
    random = np.random.default_rng(0)
    for _ in range(200):
        height, width = random.integers(1, 300, 2)
        bitmap = random.random((height, width)) < random.random() ** 4
        theirs = pycocotools_mask.encode(np.asfortranarray(bitmap.astype(np.uint8)))
        encoding = rle.from_bitmap(bitmap)
        assert np.array_equal(pycocotools_mask.decode(pycocotools_mask.frPyObjects(encoding, height, width)), bitmap)
        assert rle.decode_string(theirs["counts"]).tolist() == encoding["counts"]
        assert np.array_equal(rle.to_bitmap(np.array(encoding["counts"]), height, width), bitmap)


@pytest.mark.data
def test_sizes_of_real_images_as_decoded(test_data: Path) -> None:
    for file in sorted(test_data.glob("*/*/*.jpg")) + sorted(test_data.glob("imagenet_sample/*/*/*")):
        with Image.open(file) as image:
            assert image_size(str(file)) == image.size
    assert file.is_file()


@pytest.mark.parametrize("orientation", range(9))
@pytest.mark.parametrize("kind", ["exif", "xmp", "png"])
def test_size_of_turned_images(tmp_path: Path, orientation: int, kind: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / ("a.png" if kind == "png" else "a.jpg")
    if kind == "xmp":
        Image.new("RGB", (30, 40)).save(path, xmp=f'<x tiff:Orientation="{orientation}"/>'.encode(), progressive=True)
    else:
        Image.new("RGB", (30, 40)).save(path, exif=exif)
    with Image.open(path) as image:
        turned = image.getexif().get(0x0112) in (5, 6, 7, 8)
    assert turned == (orientation >= 5)
    assert image_size(str(path)) == ((40, 30) if turned else (30, 40))
