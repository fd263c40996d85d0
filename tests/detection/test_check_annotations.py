"""`data check` and `data show` on detection data sets: faults, notes, counts, layouts, pictures."""

import copy
import json
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import test_coco_annotations as cases
import voc_cases
from PIL import Image

from intl_bench.cli import main
from intl_bench.core import config as configs
from intl_bench.core import data_folders
from pretrain.images.findings import Finding, Report
from transfer.detection.annotations import layouts
from transfer.detection.annotations.check import check
from transfer.detection.config import AnnotatedDataConfig

valid_document, write = cases.valid_document, cases.write_annotations
root = cases.root  # the fixture


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def config(root: Path) -> AnnotatedDataConfig:
    return AnnotatedDataConfig(root=str(root), name="case")


def find(report: Report, text: str) -> Finding:
    (found,) = [finding for finding in report.findings if text in finding.what]
    return found


def vary(root: Path) -> None:
    """Give each image its own pixels, which those of the other split do not have."""
    for number, path in enumerate(sorted(root.rglob("*.jpg")) + sorted(root.rglob("*.png"))):
        with Image.open(path) as image:
            width, height = image.size
        pixels = np.random.default_rng(number).integers(0, 255, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)


def test_valid_annotations(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    vary(root)
    assert main(["data", "check", str(root), "data.name=case"]) == 0
    printed = capsys.readouterr().out
    assert f"{root}: annotations of COCO's form, 2 categories" in " ".join(printed.split())
    assert "Nothing would stop a run." in printed
    assert printed.endswith("objects  train  val\ncat          3    3\ndog          1    1\n")


def test_all_faults_of_both_splits_are_found_at_once(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    vary(root)
    document = copy.deepcopy(valid_document())
    for row in document["annotations"][:3]:
        row["bbox"] = [0, 0, 500, 5]
    document["annotations"][3]["category_id"] = 99
    write(root, json.dumps(document))
    content = (root / "train2017" / "b.jpg").read_bytes()
    (root / "train2017" / "b.jpg").write_bytes(content[: len(content) // 2])
    (root / "val2017" / "sub" / "c.png").unlink()
    shutil.copy(root / "train2017" / "a.jpg", root / "val2017" / "a.jpg")
    report = check(config(root))
    boxes = find(report, "bbox: [0, 0, 500, 5]; expected a box")
    assert boxes.count == 3
    assert "(also 32, 33)" in boxes.what
    assert find(report, "category_id: 99 is not in this file").what.startswith("train: annotation 34")
    assert find(report, "c.png: no such file").what.startswith("val: ")
    (unreadable,) = find(report, "unreadable images").entries
    assert unreadable.startswith(f"{root.name}/train2017/b.jpg: ")
    assert len(find(report, "in train and val").entries) == 1
    assert find(report, "segmentation").stops
    assert report.stops == 5
    assert main(["data", "check", str(root), "data.name=case"]) == 2
    assert (
        capsys.readouterr()
        .err.splitlines()[-1]
        .endswith("5 kinds of faults would stop a run; what they are is printed above")
    )


def test_notes(root: Path) -> None:
    vary(root)
    document = copy.deepcopy(valid_document())
    document["categories"] += [{"id": 8, "name": "Dogs"}]
    document["annotations"] += [{**document["annotations"][1], "id": 50}, {**document["annotations"][1], "id": 51}]
    document["annotations"][-1] |= {"bbox": [10, 10, 1, 1], "category_id": 7}
    for split in ("train2017", "val2017"):
        write(root, json.dumps(document), split)
    report = check(config(root))
    assert list(find(report, "train: objects with the box").entries) == ["annotation 50 in a.jpg"]
    assert list(find(report, "train: boxes with a side of less than 2").entries) == ["annotation 51 in a.jpg"]
    assert list(find(report, "val: categories without an object").entries) == ["'Dogs'"]
    assert list(find(report, "names are almost equal").entries) == ["'dog' and 'Dogs'"]
    assert report.stops == 0
    assert report.groups == [("cat", [4, 4]), ("dog", [2, 2]), ("Dogs", [0, 0])]


def test_categories_that_differ_stop_a_run(root: Path) -> None:
    document = copy.deepcopy(valid_document())
    document["categories"][0]["name"] = "hound"
    write(root, json.dumps(document), "val2017")
    finding = find(check(config(root)), "its categories differ")
    assert finding.stops


def test_annotations_without_outlines_are_checked_without_masks(root: Path) -> None:
    document = copy.deepcopy(valid_document())
    for row in document["annotations"]:
        del row["segmentation"]
    for split in ("train2017", "val2017"):
        write(root, json.dumps(document), split)
    report = check(config(root))
    assert report.stops == 0
    assert "a run needs model.masks=false" in find(report, "train: no annotation has an outline").what


# Layouts


def move_to_roboflow(root: Path) -> dict[str, Any]:
    for split, name in (("train2017", "train"), ("val2017", "valid")):
        (root / split).rename(root / name)
        (root / "annotations" / f"instances_{split}.json").rename(root / name / "_annotations.coco.json")
    (root / "annotations").rmdir()
    files = {"train": ["train/_annotations.coco.json"], "test": ["valid/_annotations.coco.json"]}
    return {"name": root.name, **files, "train_images": "train", "test_images": "valid"}


def move_to_own_names(root: Path) -> dict[str, Any]:
    for split, name in (("train2017", "my_train"), ("val2017", "my_val")):
        (root / "images").mkdir(exist_ok=True)
        (root / split).rename(root / "images" / name.removeprefix("my_"))
        (root / "annotations" / f"instances_{split}.json").rename(root / "annotations" / f"{name}.json")
    files = {"train": ["annotations/my_train.json"], "test": ["annotations/my_val.json"]}
    return {"name": root.name, **files, "train_images": "images/train", "test_images": "images/val"}


@pytest.mark.parametrize("move", [move_to_roboflow, move_to_own_names])
def test_files_in_other_usual_places_are_found(
    root: Path, move: Callable[[Path], dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert layouts.find_files(root, "coco") == {}
    expected = move(root)
    assert data_folders.kind_of(root) == "coco"
    assert layouts.find_files(root, "coco") == expected
    assert main(["data", "check", str(root)]) == 0
    printed = capsys.readouterr().out
    assert "Nothing would stop a run." in printed
    typed = shlex.split(" ".join(printed.split()).partition("run on these files: ")[2].partition(" - ")[0])
    report = check(configs.build(AnnotatedDataConfig, {}, "typed", [word.removeprefix("data.") for word in typed]))
    assert report.stops == 0


def test_an_image_folder_with_other_json_files_is_an_image_folder(tmp_path: Path) -> None:
    (tmp_path / "train" / "a").mkdir(parents=True)
    (tmp_path / "val" / "a").mkdir(parents=True)
    (tmp_path / "annotations").mkdir()
    (tmp_path / "labels.json").write_text('{"a": 0}')
    (tmp_path / "annotations" / "x.json").write_text(json.dumps(valid_document()))
    assert data_folders.kind_of(tmp_path) == "imagefolder"
    (tmp_path / "train" / "a").rmdir()  # images that are not in folders of classes
    assert data_folders.kind_of(tmp_path) == "coco"
    (tmp_path / "annotations" / "x.json").write_text('{"a": 0}')
    assert data_folders.kind_of(tmp_path) == "imagefolder"


def test_coco_2014_has_other_files_beside_its_objects(root: Path) -> None:
    for split in ("train", "val"):
        path = root / "annotations" / f"instances_{split}2017.json"
        captions = {key: value for key, value in json.loads(path.read_bytes()).items() if key != "categories"}
        (path.parent / f"captions_{split}2014.json").write_text(json.dumps(captions))
        shutil.copy(path, path.parent / f"a_keypoints_{split}2014.json")
        path.rename(path.parent / f"instances_{split}2014.json")
        (root / f"{split}2017").rename(root / f"{split}2014")
    found = layouts.find_files(root, "coco")
    assert found["train"] == ["annotations/instances_train2014.json"]
    assert found["test"] == ["annotations/instances_val2014.json"]
    assert (found["train_images"], found["test_images"]) == ("train2014", "val2014")
    (root / "annotations" / "instances_train2014.json").rename(root / "annotations" / "instances_trainval2014.json")
    (root / "annotations" / "instances_val2014.json").rename(root / "annotations" / "instances_test2014.json")
    for other in root.glob("annotations/a_*"):
        other.unlink()
    found = layouts.find_files(root, "coco")
    assert found["train"] == ["annotations/instances_trainval2014.json"]
    assert found["test"] == ["annotations/instances_test2014.json"]


def test_voc_lists_are_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    devkit = voc_cases.write(tmp_path / "VOCdevkit")
    assert data_folders.kind_of(devkit) == "voc"
    assert layouts.find_files(devkit, "voc") == {}
    year = devkit / "VOC2007"
    lists = year / "ImageSets" / "Main"
    (lists / "trainval.txt").rename(lists / "train.txt")
    (lists / "val.txt").write_text("000007\n")
    assert data_folders.kind_of(year) == "voc"
    assert layouts.find_files(year, "voc") == {
        "name": "VOC2007",
        "train": ["ImageSets/Main/train.txt"],
        "test": ["ImageSets/Main/val.txt"],
    }
    (year / "Annotations" / "000005.xml").write_text("<annotation>")
    assert main(["data", "check", str(year)]) == 2
    printed = capsys.readouterr().out
    assert "000005.xml: not complete XML" in " ".join(printed.split())
    assert "\ntrain       2 " in printed, "the images of wrong annotations are decoded too"


# Pictures


def test_boxes_and_masks_are_drawn(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "show", str(root), "data.name=case", "--out", "shown.png"]) == 0
    assert "picture: shown.png; images with their objects: 2 of 2 train, 2 of 3 val" in capsys.readouterr().out
    with Image.open("shown.png") as image:
        assert image.mode == "RGB"
        assert image.width == 960
        pixels = np.asarray(image)
    plain = (np.abs(pixels.astype(int) - [0, 128, 0]) < 5).all(-1).mean()
    assert 0.1 < plain < 0.9, "the pictures are green where no object covers them"
    for seed in range(1, 5):
        assert main(["data", "show", str(root), "data.name=case", f"seed={seed}", "--out", f"{seed}.png"]) == 0
    assert len({Path(f"{seed}.png").read_bytes() for seed in range(1, 5)}) > 1
    assert main(["data", "show", str(root), "size=64"]) == 2
    assert "size=64: expected a setting of the data" in capsys.readouterr().err
