"""PASCAL VOC's annotations, on a small generated VOCdevkit."""

from collections.abc import Callable
from pathlib import Path

import pytest
import voc_cases
from PIL import Image
from voc_cases import LISTS, OBJECTS, xml

from intl_bench.core.errors import InputError
from transfer.detection.annotations.objects import Annotations
from transfer.detection.annotations.split import read_split
from transfer.detection.annotations.voc import CLASS_NAMES
from transfer.detection.config import AnnotatedDataConfig


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return voc_cases.write(tmp_path)


def read(root: Path, split: str = "train", lists: tuple[str, ...] = LISTS) -> Annotations:
    config = AnnotatedDataConfig(kind="voc", root=str(root), name="voc0712", train=lists, test=lists)
    return read_split(config, split, masks=False)


def test_images_and_objects_are_read_in_order_with_their_fields(root: Path) -> None:
    found = read(root, "test")
    assert found.category_names == CLASS_NAMES
    assert len(found.category_ids) == 20
    assert [entry.image_id for entry in found.images] == [0, 1, 2]
    assert [found.file(i) for i in range(3)] == [root / y / "JPEGImages" / f"{name}.jpg" for y, name in OBJECTS]
    assert [[CLASS_NAMES[one.class_index] for one in entry.objects] for entry in found.images] == [
        ["dog", "cat"],
        ["person"],
        ["tvmonitor"],
    ]
    assert [one.difficult for one in found.images[0].objects] == [False, True]
    assert [one.box.tolist() for entry in found.images for one in entry.objects] == [
        [0, 0, 60, 50],
        [9, 19, 10, 20],
        [-1, 4, 61, 40],
        [9.5, 1, 33.25, 40],
    ]
    assert found.notes == ["boxes up to 1 pixel outside their image, clipped: 1"]


def test_voc_is_read_as_in_detectron2(root: Path) -> None:
    pytest.importorskip("detectron2")
    from detectron2.data.datasets.pascal_voc import load_voc_instances

    (root / "VOC2012" / "ImageSets" / "Main" / "trainval.txt").write_text("2008_000002\n2008_000003\n")
    (root / "VOC2012" / "Annotations" / "2008_000003.xml").write_text(xml(OBJECTS["VOC2007", "000005"]))
    Image.new("RGB", (60, 50)).save(root / "VOC2012" / "JPEGImages" / "2008_000003.jpg")
    theirs = [
        record
        for year in ("VOC2007", "VOC2012")
        for record in load_voc_instances(str(root / year), "trainval", CLASS_NAMES)
    ]
    ours = read(root)
    for index, (entry, record) in enumerate(zip(ours.images, theirs, strict=True)):
        assert str(ours.file(index)) == record["file_name"]
        assert (entry.height, entry.width) == (record["height"], record["width"])
        assert [(one.class_index, one.box.tolist()) for one in entry.objects] == [
            (other["category_id"], other["bbox"]) for other in record["annotations"]
        ]


def test_training_leaves_out_images_without_objects(root: Path) -> None:
    (root / "VOC2007" / "Annotations" / "000007.xml").write_text(xml([]))
    found = read(root)
    assert [entry.image_id for entry in found.images] == [0, 2]
    assert found.notes == ["images without objects, not used in training: 1"]


def replaced(old: str, new: str) -> Callable[[Path], object]:
    """Replace text in the XML file of the first image."""

    def change(root: Path) -> None:
        path = root / "VOC2007" / "Annotations" / "000005.xml"
        assert old in path.read_text()
        path.write_text(path.read_text().replace(old, new, 1))

    return change


def listing(text: str) -> Callable[[Path], object]:
    """Write `text` to the first list of images."""
    return lambda root: (root / "VOC2007" / "ImageSets" / "Main" / "trainval.txt").write_text(text)


ENTITY = '<!DOCTYPE a [<!ENTITY b "c">]><annotation>'
BAD: list[tuple[Callable[[Path], object], str]] = [
    (listing(""), "trainval.txt: no image names; expected one image name per line"),
    (listing("000005 1\n000007 -1\n"), "trainval.txt: line 1: '000005 1'; expected one image name per line"),
    (listing("000005\n../000007\n"), "trainval.txt: line 2: '../000007'; expected one image name per line"),
    (listing("000005\n000005\n"), "000005.jpg: listed twice"),
    (listing("000005\n000006\n"), "000006.xml: No such file"),
    (lambda root: (root / LISTS[1]).unlink(), "VOC2012/ImageSets/Main/trainval.txt: no such file"),
    (lambda root: (root / "VOC2007/JPEGImages/000005.jpg").unlink(), "000005.jpg: no such file"),
    (lambda root: (root / "VOC2007/JPEGImages/000005.jpg").write_bytes(b""), "the file is empty"),
    (lambda root: (root / "VOC2007/Annotations/000005.xml").write_bytes(b"\xff"), "not UTF-8 text"),
    (replaced("</annotation>", ""), "000005.xml: not complete XML"),
    (replaced("<annotation>", ENTITY), "000005.xml: declares a document type or entities"),
    (replaced("<width>60</width>", ""), "000005.xml: size: size/width: missing; expected a finite number"),
    (replaced("<width>60", "<width>61"), "image 'VOC2007/JPEGImages/000005.jpg': width x height 61 x 50; expected"),
    (replaced("<height>50", "<height>0"), "000005.xml: size/height: 0; expected a positive whole number"),
    (replaced("<height>50", "<height>50.5"), "000005.xml: size/height: 50.5; expected a positive whole number"),
    (replaced("<name>dog", "<name>wolf"), "000005.xml: object 1: name: 'wolf'; expected one of VOC's twenty classes"),
    (replaced("<name>cat</name>", ""), "000005.xml: object 2: name: ''; expected one of VOC's twenty classes"),
    (replaced("<xmin>1<", "<xmin>one<"), "000005.xml: object 1 (dog): bndbox/xmin: 'one'; expected a finite number"),
    (replaced("<ymax>50</ymax>", ""), "000005.xml: object 1 (dog): bndbox/ymax: missing; expected a finite number"),
    (replaced("<xmin>1<", "<xmin>nan<"), "000005.xml: object 1 (dog): bndbox/xmin: 'nan'; expected a finite number"),
    (replaced("<xmin>10<", "<xmin>12<"), "object 2 (cat): bndbox: 12, 20, 10, 20; expected xmin <= xmax"),
    (replaced("<ymax>50<", "<ymax>52<"), "object 1 (dog): bndbox: 1, 1, 60, 52; expected a box inside the image"),
    (replaced("<difficult>0", "<difficult>no"), "000005.xml: object 1 (dog): difficult: 'no'; expected 0 or 1"),
]


@pytest.mark.parametrize(("change", "message"), BAD, ids=[message[:60] for _, message in BAD])
def test_every_invalid_entry_is_reported_in_one_line(
    root: Path, change: Callable[[Path], object], message: str
) -> None:
    change(root)
    with pytest.raises(InputError) as error:
        read(root)
    assert error.value.exit_code == 2
    assert message in str(error.value)
    assert str(root) in str(error.value)
    assert str(error.value).isprintable()


def test_masks_are_refused(root: Path) -> None:
    with pytest.raises(InputError, match=r"set model\.masks=false"):
        read_split(AnnotatedDataConfig(kind="voc", root=str(root), train=LISTS), "train", masks=True)
