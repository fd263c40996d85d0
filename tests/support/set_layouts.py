"""Tiny data sets in the folders that torchvision's data sets have on disk."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from intl_bench.core.datasets import VOC_CLASSES


def image(path: Path, value: int = 100) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((12, 14, 3), value, np.uint8)).save(path)


def lines(path: Path, *text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in text))


def food101(root: Path) -> None:
    for split in ("train", "test"):
        listed = {name: [f"{name}/{split}{n}" for n in range(2)] for name in ("apple_pie", "waffles")}
        for name in (one for some in listed.values() for one in some):
            image(root / "food-101" / "images" / f"{name}.jpg")
        lines(root / "food-101" / "meta" / f"{split}.json", json.dumps(listed))
        lines(root / "food-101" / "meta" / "classes.txt", *listed)


def aircraft(root: Path) -> None:
    folder = root / "fgvc-aircraft-2013b" / "data"
    lines(folder / "variants.txt", "707-320", "A 300")
    for number, split in enumerate(("train", "val", "test")):
        names = [f"{number}00{n}" for n in range(2)]
        lines(folder / f"images_variant_{split}.txt", f"{names[0]} A 300", f"{names[1]} 707-320")
        for name in names:
            image(folder / "images" / f"{name}.jpg")


def dtd(root: Path) -> None:
    folder = root / "dtd" / "dtd"
    for split in ("train", "val", "test"):
        names = [f"{name}/{name}_{split}.jpg" for name in ("banded", "dotted")]
        lines(folder / "labels" / f"{split}1.txt", *names)
        for name in names:
            image(folder / "images" / name)


def pets(root: Path) -> None:
    folder = root / "oxford-iiit-pet"
    (folder / "images").mkdir(parents=True)
    for split in ("trainval", "test"):
        lines(folder / "annotations" / f"{split}.txt", f"Abyssinian_{split} 1 1 1", f"beagle_{split} 2 2 1")
        for name in ("Abyssinian", "beagle"):
            image(folder / "images" / f"{name}_{split}.jpg")


def cars(root: Path) -> None:
    io = pytest.importorskip("scipy.io")
    folder = root / "stanford_cars"
    (folder / "devkit").mkdir(parents=True)
    kind = [("bbox_x1", "i4"), ("class", "i4"), ("fname", "O")]
    for split, path in (("train", "devkit/cars_train_annos.mat"), ("test", "cars_test_annos_withlabels.mat")):
        rows = np.array([(1, 2, f"{split}1.jpg"), (1, 1, f"{split}2.jpg")], kind)
        io.savemat(folder / path, {"annotations": rows})
        for name in rows["fname"]:
            image(folder / f"cars_{split}" / name)
    io.savemat(folder / "devkit" / "cars_meta.mat", {"class_names": np.array(["AM General", "Acura"], object)})


def flowers102(root: Path) -> None:
    io = pytest.importorskip("scipy.io")
    folder = root / "flowers-102"
    for number in range(1, 7):
        image(folder / "jpg" / f"image_{number:05d}.jpg")
    io.savemat(folder / "setid.mat", {"trnid": [4, 2], "valid": [1, 3], "tstid": [5, 6]})
    io.savemat(folder / "imagelabels.mat", {"labels": [1, 1, 2, 2, 102, 1]})


def sun397(root: Path) -> None:
    folder = root / "SUN397"
    lines(folder / "ClassName.txt", "/a/abbey", "/a/apartment_building/outdoor")
    for split in ("Training", "Testing"):
        names = [f"a/abbey/sun_{split}.jpg", f"a/apartment_building/outdoor/sun_{split}.jpg"]
        lines(folder / f"{split}_01.txt", *(f"/{name}" for name in names))
        for name in names:
            image(folder / name)


def caltech101(root: Path) -> None:
    for name in ("BACKGROUND_Google", "accordion"):
        for number in range(33):
            image(root / "caltech101" / "101_ObjectCategories" / name / f"image_{number:04d}.jpg")


def voc07(root: Path) -> None:
    folder = root / "VOCdevkit" / "VOC2007"
    for number, split in enumerate(("train", "val", "test")):
        for index, name in enumerate(VOC_CLASSES):
            first = {0: "1", 14: "1", 19: "0"}.get(index, "-1")  # an aeroplane, a person, a difficult tvmonitor
            second = "1" if index == 19 else "-1"
            rows = (f"00000{number}  {first}", f"00001{number} {second}")
            lines(folder / "ImageSets" / "Main" / f"{name}_{split}.txt", *rows)
        for name in (f"00000{number}", f"00001{number}"):
            image(folder / "JPEGImages" / f"{name}.jpg")


LAYOUTS: dict[str, Callable[[Path], None]] = {
    "food101": food101,
    "cars": cars,
    "aircraft": aircraft,
    "dtd": dtd,
    "pets": pets,
    "flowers102": flowers102,
    "sun397": sun397,
    "caltech101": caltech101,
    "voc07": voc07,
}
