"""Training on 1, 5 or 10 percent of COCO's images: `data.percent` and `data.fold`."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from table_cases import COCO, make

from intl_bench import cli
from intl_bench.core import config as configs
from intl_bench.core.errors import InputError
from intl_bench.core.identity import identity
from intl_bench.records import RecordStore
from intl_bench.tables import render
from transfer.coco import TASK
from transfer.detection.annotations.coco import draw_part
from transfer.detection.annotations.split import read_split
from transfer.detection.config import AnnotatedDataConfig, DetectionConfig

SMALL = [
    *("iterations=1", "milestones=[1]", "warmup_iterations=1"),
    *("batch_size=2", "precise_bn=1", "min_sizes=[48]", "max_size=96", "test_min_size=64", "test_max_size=96"),
    *("workers=0", "device=cpu", "model.rpn_batch=16", "model.roi_batch=8", "model.pool_size=4"),
    *("model.pre_nms_train=50", "model.post_nms_train=10", "model.pre_nms_test=30", "model.post_nms_test=10"),
]


def drawn_by_stac(images: list[dict[str, Any]], percent: float, fold: int) -> set[int]:
    """Return the ids of the images in STAC's file, by the global generator of NumPy as in its script."""
    state = np.random.get_state()  # noqa: NPY002
    np.random.seed(fold)  # noqa: NPY002
    chosen = set(np.random.choice(range(len(images)), size=int(percent / 100.0 * len(images))).tolist())  # noqa: NPY002
    np.random.set_state(state)  # noqa: NPY002
    return {image["id"] for number, image in enumerate(images) if number in chosen}


@pytest.mark.parametrize(("percent", "fold"), [(10.0, 1), (50.0, 1), (50.0, 2)])
def test_the_images_are_those_of_the_literature(test_data: Path, percent: float, fold: int) -> None:
    root = test_data / "coco_tiny"
    images = json.loads((root / "annotations" / "instances_train2017.json").read_text())["images"]
    everything = read_split(AnnotatedDataConfig(root=str(root)), "train", masks=True)
    part = AnnotatedDataConfig(root=str(root), percent=percent, fold=fold)
    found = read_split(part, "train", masks=True)
    expected = drawn_by_stac(images, percent, fold) & set(everything.image_ids.tolist())
    assert 0 < len(expected) < len(everything)
    assert found.image_ids.tolist() == sorted(expected)
    kept = {image.file_name: image.objects for image in everything.images}
    assert all(len(image.objects) == len(kept[image.file_name]) for image in found.images)
    assert f"({percent:g}%, fold {fold})" in found.notes[-2] + found.notes[-1] + "".join(found.notes)
    assert found.fingerprint() != everything.fingerprint()
    test = [read_split(one, "test", masks=True).fingerprint() for one in (part, AnnotatedDataConfig(root=str(root)))]
    assert test[0] == test[1]


@pytest.mark.parametrize(("percent", "images"), [(1, 1174), (5, 5764), (10, 11285)])
def test_numbers_of_images_of_coco(percent: float, images: int) -> None:
    assert draw_part(118_287, percent, 1).sum() == images


def test_the_order_of_the_file_decides_and_not_that_of_the_ids(test_data: Path, tmp_path: Path) -> None:
    root = test_data / "coco_tiny"
    content = json.loads((root / "annotations" / "instances_train2017.json").read_text())
    content["images"].sort(key=lambda image: -image["id"])
    (tmp_path / "turned.json").write_text(json.dumps(content))
    config = AnnotatedDataConfig(root=str(root), train=(str(tmp_path / "turned.json"),), percent=50)
    found = read_split(config, "train", masks=False)
    assert set(found.image_ids.tolist()) <= drawn_by_stac(content["images"], 50, 1)


def test_identity_protocol_and_label_state_the_part_and_the_default_changes_neither() -> None:
    usual = DetectionConfig(engine="builtin")
    part = configs.build(DetectionConfig, {"engine": "builtin"}, "test", ["data.percent=5", "data.fold=2"])
    assert not {"percent", "fold"} & identity(usual)["data"].keys()
    assert identity(part)["data"] == {**identity(usual)["data"], "percent": 5.0, "fold": 2}
    assert TASK.protocol(usual)["percent"] is None
    protocol = {**COCO, "percent": TASK.protocol(part)["percent"]}
    assert "percent 5 (fold 2); measured" in render([make("coco", "coco", {"bbox/AP": 1.0}, protocol)], tables=["3"])


@pytest.mark.data
def test_a_part_from_the_command_line(
    test_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save(torchvision.models.resnet18().state_dict(), "resnet18.pth")
    command = ["coco", "resnet18.pth", "--from", "torchvision", *SMALL, "--engine", "builtin"]
    root = f"data.root={test_data / 'coco_tiny'}"
    assert cli.main([*command, root, "data.percent=50", "data.fold=2", "--dry-run"]) == 0
    planned = capsys.readouterr().out
    assert cli.main([*command, root, "data.percent=50", "data.fold=2"]) == 0
    (record,) = RecordStore(Path("results/records")).load()
    used = record.details["train_images"]
    assert used == len(read_split(AnnotatedDataConfig(root=root[10:], percent=50, fold=2), "train", masks=True))
    assert f"{used} training images" in " ".join(planned.split())
    assert record.protocol["percent"] == "50 (fold 2)"
    capsys.readouterr()
    # What the run would refuse, the dry run refuses. Without the images it takes a part of the published number.
    for more in ([], ["--dry-run"]):
        assert cli.main([*command, root, "data.percent=0.5", *more]) == 2
        assert "data.percent=0.5: less than one of 50 images" in capsys.readouterr().err
    assert cli.main([*command, "data.root=nowhere", "data.percent=10", "--dry-run"]) == 0
    assert "11,726 training images" in " ".join(capsys.readouterr().out.split())


def test_faults() -> None:
    with pytest.raises(InputError, match=r"data.percent=0.1: less than one of 50 images; expected at least 2"):
        draw_part(50, 0.1, 1)
    with pytest.raises(ValueError, match=r"data.percent=10: expected data.kind=coco"):
        AnnotatedDataConfig(kind="voc", percent=10)
    with pytest.raises(ValueError, match=r"percent=0"):
        AnnotatedDataConfig(percent=0)
