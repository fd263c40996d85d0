"""Data sets in the folders that torchvision's data sets have on disk: lists, labels, validation images, errors."""

import sys
from pathlib import Path

import numpy as np
import pytest
from set_layouts import LAYOUTS, caltech101, dtd, lines, pets, voc07
from torchvision import datasets as sets

from intl_bench.core import datasets
from intl_bench.core.data_folders import labeled_kinds
from intl_bench.core.errors import InputError, ResourceError
from pretrain.images import data as image_data
from pretrain.images.data import DataConfig, FileSource
from pretrain.images.fingerprint import fingerprint
from pretrain.images.torchvision_sets import KINDS

# By kind: labels and file names of the training images, and which of them are validation images
EXPECTED: dict[str, tuple[list[int], list[str], list[int] | None]] = {
    "food101": ([0, 0, 1, 1], ["images/apple_pie/train0.jpg", "images/waffles/train1.jpg"], None),
    "cars": ([1, 0], ["cars_train/train1.jpg", "cars_train/train2.jpg"], None),
    "aircraft": ([1, 0, 1, 0], ["data/images/0000.jpg", "data/images/1001.jpg"], [0, 0, 1, 1]),
    "dtd": ([0, 1, 0, 1], ["dtd/images/banded/banded_train.jpg", "dtd/images/dotted/dotted_val.jpg"], [0, 0, 1, 1]),
    "pets": ([0, 1], ["images/Abyssinian_trainval.jpg", "images/beagle_trainval.jpg"], None),
    "flowers102": ([1, 0, 0, 1], ["jpg/image_00004.jpg", "jpg/image_00003.jpg"], [0, 0, 1, 1]),
    "sun397": ([0, 1], ["a/abbey/sun_Training.jpg", "a/apartment_building/outdoor/sun_Training.jpg"], None),
    "voc07": ([1 + 2**14, 2**19] * 2, ["JPEGImages/000000.jpg", "JPEGImages/000011.jpg"], [0, 0, 1, 1]),
}


def open_set(kind: str, root: Path, split: str = "train", **more: object) -> FileSource:
    config = DataConfig(kind=kind, root=str(root), name="tiny", **more)  # type: ignore[arg-type]
    source = image_data.open_source(config, split, multi_label=True)
    assert isinstance(source, FileSource)
    return source


@pytest.fixture(autouse=True)
def _accept_tiny_flowers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sets.Flowers102, "_check_integrity", lambda self: True)  # compares digests of the real lists


@pytest.mark.parametrize("kind", EXPECTED)
def test_the_layout_of_torchvision_is_read(kind: str, tmp_path: Path) -> None:
    LAYOUTS[kind](tmp_path)
    source = open_set(kind, tmp_path)
    labels, ends, validation = EXPECTED[kind]
    assert source.labels.tolist() == labels
    assert [source.files[0].decode(), source.files[-1].decode()] == ends
    assert None is validation is source.validation or source.validation.tolist() == validation
    assert all(source.image(index).shape == (12, 14, 3) for index in range(len(source)))
    test = open_set(kind, tmp_path, "test")
    assert test.class_names == source.class_names
    assert not {*test.files.tolist()} & {*source.files.tolist()}
    assert fingerprint(test) != fingerprint(source)


@pytest.mark.parametrize("kind", [kind for kind in LAYOUTS if kind not in ("cars", "flowers102")])
def test_the_folder_itself_may_be_the_root_and_is_recognized(kind: str, tmp_path: Path) -> None:
    LAYOUTS[kind](tmp_path)
    (folder,) = tmp_path.iterdir()
    assert open_set(kind, folder).files.tolist() == open_set(kind, tmp_path).files.tolist()
    assert labeled_kinds(tmp_path) == labeled_kinds(folder) == [kind]


def test_every_kind_has_a_case() -> None:
    assert {*KINDS} == {*LAYOUTS}


def test_caltech101_has_30_training_images_of_a_class(tmp_path: Path) -> None:
    caltech101(tmp_path)
    train, test = (open_set("caltech101", tmp_path, split) for split in ("train", "test"))
    assert np.bincount(train.labels).tolist() == [30, 30]
    assert np.bincount(test.labels).tolist() == [3, 3]
    assert len({*train.files.tolist()} | {*test.files.tolist()}) == 66
    lines(tmp_path / "caltech101" / "train.txt", "accordion/image_0004.jpg 1", "BACKGROUND_Google/image_0000.jpg 0")
    for split in ("train", "test"):  # the other split would be drawn, with images of the list
        with pytest.raises(InputError, match=r"found one of train\.txt and test\.txt; expected both lists, or none"):
            open_set("caltech101", tmp_path, split)
    lines(tmp_path / "caltech101" / "test.txt", "accordion/image_0003.jpg 1")
    listed, test = (open_set("caltech101", tmp_path, split) for split in ("train", "test"))
    assert (listed.labels.tolist(), listed.files[0]) == ([1, 0], b"accordion/image_0004.jpg")
    assert (test.labels.tolist(), test.files[0]) == ([1], b"accordion/image_0003.jpg")


def test_caltech101_has_its_name_with_any_split() -> None:
    """The lists of Ericsson et al. have 2,416 and 6,728 images; 3,060 and 6,084 are drawn without them."""
    names = [str(number) for number in range(102)]
    for split, images in (("train", 2416), ("test", 6728)):
        datasets.check_images("caltech101", "caltech101", "", names, split, images=images, size=None)
    with pytest.raises(InputError, match="expected at most 9,144"):
        datasets.check_images("caltech101", "caltech101", "", names, "test", images=9145, size=None)


def test_a_set_that_is_not_there_says_what_is_expected(tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"no data set dtd; expected \S+/dtd/dtd/labels/train1.txt.*data.download=true"
    ):
        open_set("dtd", tmp_path)
    pets(tmp_path)
    with pytest.raises(InputError, match=r"did you mean data\.kind=pets"):
        open_set("dtd", tmp_path)


@pytest.mark.parametrize(
    ("kind", "path", "text", "match"),
    [
        ("food101", "food-101/meta/train.json", "{", "food-101: the train images of food101 cannot be listed"),
        ("pets", "oxford-iiit-pet/annotations/trainval.txt", "Abyssinian_1\n", "cannot be listed"),
        ("pets", "oxford-iiit-pet/annotations/trainval.txt", "Abyssinian_1 0 1 1\n", "labels -1 to -1 of 1 classes"),
        ("sun397", "SUN397/Training_01.txt", "/b/bar/sun_1.jpg\n", "b/bar/sun_1.jpg' is in no class folder"),
        ("voc07", "VOCdevkit/VOC2007/ImageSets/Main/cat_train.txt", "000000 2\n", "expected IMAGE and 1, 0 or -1"),
        ("voc07", "VOCdevkit/VOC2007/ImageSets/Main/cat_train.txt", "000009 1\n", "lists other images"),
        ("aircraft", "fgvc-aircraft-2013b/data/images_variant_val.txt", "1 A 400\n", "KeyError"),
    ],
)
def test_a_damaged_list_is_one_line(kind: str, path: str, text: str, match: str, tmp_path: Path) -> None:
    LAYOUTS[kind](tmp_path)
    (tmp_path / path).write_text(text)
    with pytest.raises(InputError, match=match) as error:
        open_set(kind, tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", ["cars", "flowers102"])
def test_lists_of_matlab_need_scipy(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mark = {"cars": "stanford_cars/devkit/cars_train_annos.mat", "flowers102": "flowers-102/setid.mat"}[kind]
    lines(tmp_path / mark, "")
    monkeypatch.setitem(sys.modules, "scipy", None)
    monkeypatch.setitem(sys.modules, "scipy.io", None)
    with pytest.raises(InputError, match="pip install scipy"):
        open_set(kind, tmp_path)


def test_images_with_several_classes_are_for_tasks_that_can_use_them(tmp_path: Path) -> None:
    voc07(tmp_path)
    config = DataConfig(kind="voc07", root=str(tmp_path), name="tiny")
    with pytest.raises(InputError, match="several classes; score it with intl-bench transfer"):
        image_data.open_source(config, "train")


def test_some_images_can_be_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dtd(tmp_path)
    source = open_set("dtd", tmp_path, skip=("*/dotted_val.jpg",))
    assert source.labels.tolist() == [0, 1, 0]
    assert source.validation is not None
    assert source.validation.tolist() == [False, False, True]
    assert "data.skip leaves out 1 file" in capsys.readouterr().err


def test_only_sets_of_torchvision_are_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"data\.kind=imagefolder cannot be downloaded"):
        DataConfig(kind="imagefolder", download=True)

    def download(self: sets.DTD) -> None:
        dtd(Path(self.root))

    monkeypatch.setattr(sets.DTD, "_download", download)
    assert len(open_set("dtd", tmp_path, download=True)) == 4

    def fail(self: sets.OxfordIIITPet) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(sets.OxfordIIITPet, "_download", fail)
    with pytest.raises(ResourceError, match=r"pets was not downloaded \(no route to host\); download it by hand"):
        open_set("pets", tmp_path / "pets", download=True)
