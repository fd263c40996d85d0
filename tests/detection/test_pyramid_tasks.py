"""R50-FPN from the command line in an empty folder, on generated images: training, tables, `--eval-only`, costs."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from test_detection_tasks import IMAGES, NAMES, OURS, material, records, words  # noqa: F401
from test_trained_detectors import evaluation

from intl_bench import cli
from transfer.detection import build_model
from transfer.detection.config import ModelConfig

PYRAMID = ["--config", "r50_fpn_4conv1fc_1x", "model.pool_size=2", "model.fpn_channels=8", "model.fc_channels=16"]
PYRAMID += ["model.anchor_sizes=[8,16,32,64,128]"]


@pytest.fixture(autouse=True)
def _work_in_a_folder_with_only_the_material(
    material: Path,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in (OURS, IMAGES):
        Path(name).symlink_to(material / name)


def test_a_pyramid_from_checkpoint_to_table(capsys: pytest.CaptureFixture[str]) -> None:
    """R50-C4 on the same images has a row of its own. The detector of the file gives the numbers of the record."""
    assert cli.main(words("coco", OURS, *PYRAMID)) == 0
    (record,) = records()
    assert record.metrics.keys() == set(NAMES)
    stamp = {"detector": "fpn", "box_head": "4conv1fc", "schedule": "4 iterations of 2, drops at 3"}
    assert stamp.items() <= record.protocol.items()
    assert "fpn_channels 8" in record.protocol["detector_changes"]
    assert "kind" not in record.protocol["detector_changes"]
    assert record.evaluation["settings"]["model"]["kind"] == "fpn"

    file = Path("runs") / "coco" / record.key / "detector.pth"
    capsys.readouterr()
    assert cli.main(["coco", str(file), "--eval-only", f"data.root={IMAGES}", "workers=0", "device=cpu"]) == 0
    assert evaluation()["metrics"] == record.metrics

    assert cli.main(words("coco", OURS)) == 0
    c4 = next(one for one in records() if one.key != record.key)
    assert not {"detector", "box_head"} & c4.protocol.keys()
    assert not {"kind", "fpn_channels", "box_head", "fc_channels"} & c4.evaluation["settings"]["model"].keys()
    capsys.readouterr()
    assert cli.main(["tables", "--dataset", "figures"]) == 0
    rows = [line for line in capsys.readouterr().out.splitlines() if "measured, demo scale" in line]
    assert len(rows) == 2
    heads = [row.replace("\\", "") for row in rows]  # Markdown escapes the underscore
    assert ["detector fpn, box head 4conv1fc" in row for row in heads].count(True) == 1


def test_the_sizes_of_a_pyramid_of_detectron2_follow_from_its_weights() -> None:
    """A file of Detectron2's training has no settings. What weights do not tell is as published."""
    torch.manual_seed(0)
    network: dict[str, Any] = {"blocks": (1, 1, 1, 1), "bottleneck": False, "width": 8, "num_classes": 5}
    sizes = {"mask_channels": 8, "fpn_channels": 8, "fc_channels": 16, "pool_size": 7}
    state = build_model(ModelConfig(kind="fpn", **network, **sizes)).state_dict()
    torch.save({"model": state, "iteration": 5}, "model_final.pth")
    scored = ["--eval-only", f"data.root={IMAGES}", "data.name=figures", "test_min_size=64", "test_max_size=96"]
    scored += ["workers=0", "device=cpu", "model.score_threshold=0", "--engine", "builtin"]
    assert cli.main(["coco", "model_final.pth", *scored]) == 0
    model = evaluation()["settings"]["model"]
    assert {key: model[key] for key in sizes} == sizes
    assert (model["kind"], model["box_head"], model["pre_nms_test"]) == ("fpn", "2fc", 1000)
    assert records() == []


def test_a_detector_without_norms_in_its_pyramid_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    """Such are the detectors of Detectron2's own model zoo."""
    state = build_model(ModelConfig(kind="fpn", blocks=(1, 1, 1, 1), width=8, fpn_channels=8)).state_dict()
    plain = {key: value for key, value in state.items() if ".fpn_" not in key or ".norm." not in key}
    torch.save({"model": plain}, "m.pth")
    assert cli.main(["coco", "m.pth", "--eval-only", f"data.root={IMAGES}"]) == 2
    found = capsys.readouterr().err
    assert "no detector: backbone.fpn_lateral2.norm.weight is missing" in found
    assert "R50-FPN with norms in the pyramid" in found


@pytest.mark.parametrize("config", ["r50_fpn_1x", "r50_fpn_4conv1fc_1x"])
def test_costs_of_the_published_detectors(config: str, capsys: pytest.CaptureFixture[str]) -> None:
    data = [f"data.root={IMAGES}", "data.name=figures"]
    assert cli.main(["coco", "--init", "random", "--config", config, *data, "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert "90,000 steps" in printed
    assert "training" in printed


def test_an_anchor_size_too_few_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(words("coco", OURS, *PYRAMID, "model.anchor_sizes=[16,32]")) == 2
    assert "model.anchor_sizes=[16.0, 32.0]: expected 5 numbers" in capsys.readouterr().err


def test_a_converted_backbone_loads_into_the_pyramid_of_detectron2() -> None:
    """`convert --to detectron2` needs no other names: Detectron2 matches the ends of names."""
    pytest.importorskip("detectron2")
    from detectron2.checkpoint import DetectionCheckpointer

    from transfer.detection.config import DetectionConfig
    from transfer.detection.engines import detectron2 as engine

    torch.manual_seed(0)
    torch.save(torchvision.models.resnet18().state_dict(), "resnet18.pth")
    assert cli.main(["convert", "resnet18.pth", "converted.pkl", "--to", "detectron2"]) == 0
    network: dict[str, Any] = {"blocks": (2, 2, 2, 2), "bottleneck": False, "fpn_channels": 8, "fc_channels": 8}
    config = DetectionConfig(model=ModelConfig(kind="fpn", **network), device="cpu")
    model = engine.build_model(engine.settings(config, seed=0, output=Path("run")))
    DetectionCheckpointer(model).load("converted.pkl")
    expected = torch.load("resnet18.pth")
    loaded = model.backbone.bottom_up.state_dict()
    assert torch.equal(loaded["res5.1.conv2.weight"], expected["layer4.1.conv2.weight"])
    assert torch.equal(loaded["stem.conv1.norm.running_var"], expected["bn1.running_var"])
