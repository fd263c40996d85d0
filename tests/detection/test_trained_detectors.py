"""Scoring a trained detector without training: `--eval-only`, from the command line."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2_engine_cases import MODEL
from test_detection_tasks import IMAGES, OURS, material, records, words  # noqa: F401

from intl_bench import cli
from transfer.detection import build_model


@pytest.fixture(autouse=True)
def _work_in_a_folder_with_only_the_material(
    material: Path,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in (OURS, IMAGES):
        Path(name).symlink_to(material / name)


def evaluation() -> dict[str, Any]:
    (path,) = Path("runs").glob("*/*/evaluation.json")
    content: dict[str, Any] = json.loads(path.read_text())
    return content


def test_a_detector_of_this_project_has_the_numbers_of_its_record(capsys: pytest.CaptureFixture[str]) -> None:
    """Its settings are in the file. Only the place of the data and the device are not."""
    assert cli.main(words("coco")) == 0
    (record,) = records()
    file = Path("runs") / "coco" / record.key / "detector.pth"
    kept = (file.parent / "detections.json").read_bytes()
    command = ["coco", str(file), "--eval-only", f"data.root={IMAGES}", "workers=0", "device=cpu"]
    capsys.readouterr()
    assert cli.main(command) == 0
    printed = capsys.readouterr()
    assert "(no training, no record; runs/coco/" in printed.out
    assert "loss" not in printed.err
    found = evaluation()
    assert found["metrics"] == record.metrics
    assert found["details"]["per_category"] == record.details["per_category"]
    assert found["training"]["iterations"] == 4
    (other,) = (path for path in Path("runs").glob("coco/*/detections.json") if path.parent != file.parent)
    assert other.read_bytes() == kept == (file.parent / "detections.json").read_bytes()
    assert records() == [record]

    assert cli.main([*command, "--visualize", "2"]) == 0
    printed = capsys.readouterr()
    assert "already there" in printed.out
    assert "detecting" not in printed.err
    assert (other.parent / "worst.png").read_bytes().startswith(b"\x89PNG")
    assert cli.main([*command, "--dry-run"]) == 0
    assert f"detector   {file}, of this project\n" in capsys.readouterr().out
    assert cli.main(["voc", *command[1:]]) == 2  # VOC's metric of a data set of COCO
    assert "a detector of data.kind=coco; run intl-bench coco --eval-only" in capsys.readouterr().err
    content = torch.load(file, weights_only=True)
    content["intl_bench"]["settings"] = {}
    torch.save(content, "forged.pth")
    assert cli.main(["coco", "forged.pth", *command[2:]]) == 2
    assert "its field intl_bench is damaged" in capsys.readouterr().err


def foreign(**changes: Any) -> Path:
    """Write a detector as Detectron2's training does, with fields that only Detectron2 reads."""
    torch.manual_seed(0)
    state = build_model(MODEL).state_dict()
    state = {key: value for key, value in state.items() if not key.endswith("num_batches_tracked")}
    state["proposal_generator.anchor_generator.cell_anchors.0"] = torch.zeros(15, 4)
    state["pixel_mean"] = torch.tensor([123.675, 116.28, 103.53])[:, None, None]
    state |= changes
    torch.save({"model": {k: v for k, v in state.items() if v is not None}, "iteration": 5}, "model_final.pth")
    return Path("model_final.pth")


SCORED = ["--eval-only", f"data.root={IMAGES}", "data.name=figures", "test_min_size=64", "test_max_size=96"]
SCORED += ["workers=0", "device=cpu", "model.score_threshold=0", "--engine", "builtin", "model.detections_per_image=5"]


def test_the_network_of_a_detector_of_detectron2_follows_from_its_weights(capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(1)
    head = build_model(MODEL).roi_heads
    classes = {
        "roi_heads.box_predictor.cls_score.weight": torch.randn(6, head.box_predictor.cls_score.in_features),
        "roi_heads.box_predictor.cls_score.bias": torch.zeros(6),
        "roi_heads.box_predictor.bbox_pred.weight": head.box_predictor.bbox_pred.weight.detach()[:20],
        "roi_heads.box_predictor.bbox_pred.bias": torch.zeros(20),
        "roi_heads.mask_head.predictor.weight": head.mask_head.predictor.weight.detach()[:5],
        "roi_heads.mask_head.predictor.bias": torch.zeros(5),
    }
    assert cli.main(["coco", str(foreign(**classes)), *SCORED]) == 0
    found = evaluation()
    model = found["settings"]["model"]
    assert (model["blocks"], model["width"], model["mask_channels"], model["num_classes"]) == ([3, 4, 6, 3], 8, 8, 5)
    assert found["training"] == "unknown"
    assert found["details"]["test_images"] == 4
    assert records() == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["coco", OURS], "no detector: backbone.stem.conv1.weight is missing; expected detector.pth"),
        (["coco", "model_final.pth"], "5 categories; expected 80, as model_final.pth detects"),
        (["coco", "plain.pth"], "no detector: roi_heads.res5.norm.weight is missing"),
        (["coco", "nan.pth"], "roi_heads.res5.norm.weight is not finite"),
        (["coco", "model_final.pth", "--method", "X"], "--method has no use, because no record is written"),
        (["coco"], "--eval-only: no file; expected a trained detector"),
        (["coco", "nowhere.pth"], "nowhere.pth: no such file"),
    ],
)
def test_what_is_no_detector_of_these_images_is_refused_in_one_line(
    words: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    norm = "roi_heads.res5.norm.weight"
    foreign(**{norm: None}).rename("plain.pth")
    foreign(**{norm: torch.full((256,), torch.nan)}).rename("nan.pth")
    foreign()
    assert cli.main([*words, *SCORED]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert not Path("runs").exists() or not [*Path("runs").glob("*/*/evaluation.json")]


def test_fresh_keeps_the_finished_detector_until_the_new_one_is_finished(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A stopped `--fresh` is resumed by the command without it."""
    from transfer.detection.engines import builtin

    command = words("coco", OURS, "checkpoint_every=1")
    assert cli.main(command) == 0
    (record,) = records()
    folder = Path("runs") / "coco" / record.key
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    (folder / "own notes.txt").write_text("of the earlier run")

    def fail(*args: Any, **named: Any) -> None:
        raise MemoryError

    with monkeypatch.context() as patched:
        patched.setattr(builtin, "_precise_batch_norm", fail)
        assert cli.main([*command, "--fresh"]) != 0
    assert {name: (folder / name).read_bytes() for name in before} == before
    assert records() == [record]
    capsys.readouterr()
    assert cli.main(command) == 0
    assert "already there" not in capsys.readouterr().out
    (again,) = records()
    assert again.created >= record.created
    assert again.metrics == record.metrics
    assert {path.name for path in folder.iterdir()} == {*before, "tensorboard"}
    assert (folder / "detector.pth").read_bytes() == before["detector.pth"]
    assert cli.main(command) == 0
    assert "already there" in capsys.readouterr().out
