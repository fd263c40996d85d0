"""Annotations of other programs through the command line: the score, or the line that says what is wrong."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from test_detection_tasks import SMALL

from intl_bench import cli
from intl_bench.records import RecordStore
from transfer.detection.annotations import generated

Document = dict[str, Any]
TEST = Path("annotations/instances_val2017.json")


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of torchvision, and images in COCO's layout."""
    folder = tmp_path_factory.mktemp("material")
    torch.manual_seed(0)
    torch.save(torchvision.models.resnet18().state_dict(), folder / "resnet18.pth")
    generated.write(folder / "images", train=6, test=3)
    return folder


@pytest.fixture
def root(material: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The images with annotations of their own, in the folder where the command runs."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "images" / "annotations").mkdir(parents=True)
    for name in ("train2017", "val2017"):
        (tmp_path / "images" / name).symlink_to(material / "images" / name)
        listing = f"annotations/instances_{name}.json"
        (tmp_path / "images" / listing).write_bytes((material / "images" / listing).read_bytes())
    Path("resnet18.pth").symlink_to(material / "resnet18.pth")
    return tmp_path / "images"


def run(*more: str) -> int:
    source = (
        "coco",
        "resnet18.pth",
        "--method",
        "Mine",
        "--engine",
        "builtin",
        "data.root=images",
        "data.name=figures",
    )
    return cli.main([*source, *SMALL, "model.score_threshold=0.001", *more])


def score() -> dict[str, float]:
    """Return the metrics of the newest record."""
    return max(RecordStore(Path("results") / "records").load(), key=lambda record: record.created).metrics


def evaluations() -> list[dict[str, Any]]:
    """Return the evaluations during the newest run, without their times."""
    path = max(Path("runs").glob("coco/*/metrics.jsonl"), key=lambda path: path.stat().st_mtime_ns)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows if "bbox/AP" in row]


def change(root: Path, edit: Callable[[Document], None], listing: Path = TEST) -> Document:
    """Change an annotation file, and return its old content."""
    document: Document = json.loads((root / listing).read_text())
    before = copy.deepcopy(document)
    edit(document)
    (root / listing).write_text(json.dumps(document))
    return before


def permute(document: Document) -> None:
    """Number the categories of the same names in another way, list them in another order, and write ids as text.

    Images keep their order, because it decides between detections with equal scores.
    """
    new = {1: 4, 2: 0, 3: -7, 4: 2**60 + 1, 5: 1}
    for row in document["categories"]:
        row["id"] = str(new[row["id"]])
    document["categories"].reverse()
    for row in document["annotations"]:
        row["category_id"] = str(new[row["category_id"]])
        row["id"] = row["id"] - 1
    for table, field in (("images", "id"), ("annotations", "image_id")):
        for row in document[table]:
            row[field] = str(2**60 + row[field])


def test_other_ids_of_the_same_names_score_the_same(root: Path) -> None:
    pytest.importorskip("faster_coco_eval")
    during = ("eval_every=2", "evaluator=faster-coco-eval", "visualize=1")
    assert run(*during) == 0
    expected = score()
    assert any(expected.values())
    during_training = evaluations()
    assert during_training
    change(root, permute)
    assert run(*during) == 0
    assert score() == expected
    assert evaluations() == during_training


def refused(capsys: pytest.CaptureFixture[str], *more: str) -> str:
    assert run(*more) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.isprintable()
    return line


def test_what_cannot_be_right_is_refused_in_one_line(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def rename(document: Document) -> None:
        document["categories"][0]["name"] = document["categories"][0]["name"].title() + " "

    before = change(root, rename)
    assert "the names differ only in case, spaces or hyphens" in refused(capsys)

    def normalize(document: Document) -> None:
        sizes = {one["id"]: (one["width"], one["height"]) for one in document["images"]}
        for row in document["annotations"]:
            if isinstance(row["segmentation"], list):
                size = sizes[row["image_id"]]
                row["segmentation"] = [[v / size[i % 2] for i, v in enumerate(part)] for part in row["segmentation"]]

    (root / TEST).write_text(json.dumps(before))
    change(root, normalize)
    line = refused(capsys)
    assert "annotation 2: segmentation: a mask from (0." in line
    assert "likely cause: the masks are from 0 to 1" in line

    def damage(document: Document) -> None:
        for row in document["annotations"][:3]:
            row["bbox"][2] = 1000
        document["images"][-1]["height"] += 1

    (root / TEST).write_text(json.dumps(before))
    change(root, damage)
    line = refused(capsys)
    assert "instances_val2017.json: " in line
    assert "faults of 2 kinds: (1) image 3: width x height" in line


def test_clipped_boxes_and_missing_fields_are_noted(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def loosen(document: Document) -> None:
        document["annotations"][3]["bbox"][2] += 200
        for row in document["annotations"]:
            del row["area"]
            if not row["iscrowd"]:
                del row["iscrowd"]

    change(root, loosen)
    assert "; expected a box [x, y, width, height] inside the image" in refused(capsys)
    assert run("data.boxes=clip") == 0
    notes = capsys.readouterr().err
    assert "boxes beyond their image, which training clips: 1, the first is annotation 4, [" in notes
    assert "annotations without iscrowd, which is 0 then: " in notes
    assert "annotations without area, which is that of the mask then: " in notes
    assert len(notes.splitlines()) == len(set(notes.splitlines()))
    (record,) = RecordStore(Path("results") / "records").load()
    assert record.metrics.keys() >= {"bbox/AP", "segm/AP"}


def test_utf_16_is_read(root: Path) -> None:
    (root / TEST).write_bytes((root / TEST).read_text().encode("utf-16"))
    assert run("model.masks=false", "iterations=1", "milestones=[]", "precise_bn=0") == 0
