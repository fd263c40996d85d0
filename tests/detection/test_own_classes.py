"""Detection with classes of one's own: a COCO file with one class, and a folder in VOC's layout with its own names."""

import contextlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from voc_cases import xml

from intl_bench import cli
from intl_bench.core.errors import InputError
from intl_bench.records import RecordStore, ResultRecord
from pretrain import train
from pretrain.recipe import load_recipe
from transfer.detection.annotations.objects import Annotations
from transfer.detection.annotations.split import read_split
from transfer.detection.annotations.voc import CLASS_NAMES
from transfer.detection.config import AnnotatedDataConfig

SMALL = [
    *("iterations=2", "milestones=[1]", "warmup_iterations=1", "batch_size=2", "lr=0.01", "precise_bn=1"),
    *("min_sizes=[48]", "max_size=96", "test_min_size=48", "test_max_size=96", "workers=0", "device=cpu"),
    *("model.anchor_sizes=[16,32]", "model.mask_channels=8", "model.rpn_batch=16", "model.roi_batch=8"),
    *("model.pool_size=4", "model.pre_nms_train=50", "model.post_nms_train=10", "model.score_threshold=0.01"),
    *("model.pre_nms_test=30", "model.post_nms_test=10"),
]
NAMES = ["Zelle rund", "Zelle", "été"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    tiny = ["data.size=64", "batch_size=32", "max_steps=1", "projector.hidden=32", "projector.out=32", "device=cpu"]
    with contextlib.chdir(folder):
        return train.run(load_recipe("demo", tiny)).absolute()


def draw(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (50, 60, 3), np.uint8)).save(path)


@pytest.fixture
def coco(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Four images with one class, whose id is 7; the file has boxes only."""
    monkeypatch.chdir(tmp_path)
    for split in ("train", "val"):
        images = [{"id": i, "file_name": f"{i}.jpg", "width": 60, "height": 50} for i in range(4)]
        boxes = [{"id": i + 1, "image_id": i, "category_id": 7, "bbox": [5 + i, 6, 30, 20]} for i in range(4)]
        for i in range(4):
            draw(tmp_path / "screws" / split / f"{i}.jpg", i)
        document = {"images": images, "annotations": boxes, "categories": [{"id": 7, "name": "screw"}]}
        (tmp_path / "screws" / f"{split}.json").write_text(json.dumps(document))
    return tmp_path / "screws"


@pytest.fixture
def voc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Four images in PNG with three classes in the training list, and two test images without the last class."""
    monkeypatch.chdir(tmp_path)
    root = tmp_path / "cells"
    for folder in ("Annotations", "ImageSets/Main"):
        (root / folder).mkdir(parents=True)
    for number in range(6):
        draw(root / "JPEGImages" / f"cell {number}.{'PNG' if number == 1 else 'png'}", number)
        objects = [(NAMES[number % 2], 0, (3, 4, 40, 30)), (NAMES[2 if number < 4 else 0], 0, (20, 10, 50, 45))]
        (root / "Annotations" / f"cell {number}.xml").write_text(xml(objects))
    for name, numbers in (("train", range(4)), ("test", range(4, 6))):
        (root / "ImageSets/Main" / f"{name}.txt").write_text("".join(f"cell {number}\n" for number in numbers))
    return root


COCO = ["data.name=screws", "data.train=train.json", "data.test=val.json", "data.train_images=train"]
COCO += ["data.test_images=val", "model.masks=false"]
VOC = ["data.name=cells", "data.train=ImageSets/Main/train.txt", "data.test=ImageSets/Main/test.txt"]


def score(*words: str) -> ResultRecord:
    assert cli.main([*words, *SMALL, "--engine", "builtin"]) == 0
    (record,) = RecordStore(Path("results/records")).load()
    return record


def read(root: Path, split: str, name: str = "cells") -> Annotations:
    lists = {"train": ("ImageSets/Main/train.txt",), "test": ("ImageSets/Main/test.txt",)}
    return read_split(AnnotatedDataConfig(kind="voc", root=str(root), name=name, **lists), split, masks=False)


def test_coco_with_one_class(coco: Path, checkpoint: Path) -> None:
    record = score("coco", str(checkpoint), f"data.root={coco}", *COCO)
    assert record.details["categories"] == 1
    assert record.details["per_category"]["bbox"].keys() == {"screw"}
    assert record.details["per_category"]["bbox"]["screw"] == pytest.approx(record.metrics["bbox/AP"])
    results = json.loads((Path("runs/coco") / record.key / "detections.json").read_text())
    assert {result["category_id"] for result in results} == {7}


def test_voc_with_classes_of_its_own(voc: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = score("voc", str(checkpoint), f"data.root={voc}", *VOC)
    assert (
        "3 classes, found in the files of the training images: 'Zelle', 'Zelle rund', 'été'" in capsys.readouterr().err
    )
    assert record.details["per_category"]["bbox"].keys() == set(NAMES)
    detector = Path("runs/voc") / record.key / "detector.pth"
    assert cli.main(["voc", str(detector), "--eval-only", f"data.root={voc}", "device=cpu"]) == 0
    assert f"box {record.metrics['bbox/AP']:.2f}" in capsys.readouterr().out


def test_the_classes_are_those_of_the_training_images(voc: Path) -> None:
    train, test = (read(voc, split) for split in ("train", "test"))
    assert train.category_names == test.category_names == tuple(sorted(NAMES))
    names = [[train.category_names[one.class_index] for one in image.objects] for image in test.images]
    assert names == [["Zelle rund", "Zelle rund"], ["Zelle", "Zelle rund"]]
    assert [train.file(i).suffix for i in range(4)] == [".png", ".PNG", ".png", ".png"]
    assert test.notes == []


def test_a_class_without_training_images_is_refused(voc: Path) -> None:
    path = voc / "Annotations" / "cell 5.xml"
    path.write_text(path.read_text().replace("Zelle rund", "zelle"))
    with pytest.raises(InputError) as error:
        read(voc, "test")
    assert "cell 5.xml: object 2: name: 'zelle'; expected one of the training images' classes ('Zelle'," in str(
        error.value
    )
    with pytest.raises(InputError, match=r"twenty classes.*take the classes of your own files with data\.name=NAME"):
        read(voc, "train", "voc0712")


def test_voc_keeps_its_twenty_classes(voc: Path) -> None:
    for path in (voc / "Annotations").iterdir():
        path.write_text(xml([("dog", 0, (3, 4, 40, 30))]))
    with pytest.raises(InputError, match=r"JPEGImages/cell 0\.jpg: no such file"):
        read(voc, "train", "voc0712")
    for path in (voc / "JPEGImages").iterdir():
        shutil.move(path, path.with_suffix(".jpg"))
    assert read(voc, "train", "VOC").category_names == CLASS_NAMES
    assert read(voc, "train", "dogs").category_names == ("dog",)
