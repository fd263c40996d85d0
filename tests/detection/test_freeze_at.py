"""Detectors whose first stages are not trained: `freeze_at`, in both engines."""

import dataclasses
from pathlib import Path

import detectron2_engine_cases as cases
import pytest
import torch
from detection_cases import SMALL, SMALL_FPN, batch, calibrate, relative, small_model, training_values
from detectron2_cases import detectron2_model, detectron2_training_values, float32_nms
from table_cases import COCO, make

from intl_bench.core.distributed import Process
from intl_bench.core.identity import identity
from intl_bench.tables import render
from transfer.coco import TASK
from transfer.detection.config import DetectionConfig, ModelConfig
from transfer.detection.engines import builtin, detectron2_settings
from transfer.detection.engines.optim import build_sgd
from transfer.detection.modeling.resnet import freeze

HERE = Process(rank=0, world_size=1, device=torch.device("cpu"))
STAGES = ("stem", "res2", "res3", "res4")


def is_frozen(name: str, stages: int) -> bool:
    return name.replace(".bottom_up", "").startswith(tuple(f"backbone.{stage}." for stage in STAGES[:stages]))


@pytest.mark.parametrize(("config", "stages"), [(SMALL, 1), (SMALL, 2), (SMALL, 4), (SMALL_FPN, 2), (SMALL_FPN, 4)])
def test_losses_and_gradients_agree_with_detectron2_in_float64(config: ModelConfig, stages: int) -> None:
    pytest.importorskip("detectron2")
    images, targets = batch(config, scale=3 if config.kind == "fpn" else 1)
    ours = small_model(config)
    calibrate(ours, images, targets)  # the norms that are frozen need statistics of some batch
    theirs = detectron2_model(config, ours.state_dict(), freeze_at=stages).double()
    freeze(ours.backbone, stages)
    ours.double().proposal_generator.anchors.float()
    with float32_nms():
        expected = detectron2_training_values(theirs, images, targets)
    found = training_values(ours, images, targets)
    assert found.keys() == expected.keys()
    assert not any(is_frozen(name.removeprefix("grad/"), stages) for name in found)
    for name, value in expected.items():
        assert relative(found[name], value) <= (1e-5 if value.is_floating_point() else 0), name
    # The names in detector.pth: only the counters of frozen norms, which no one reads, are missing in ours.
    missing = set(theirs.state_dict()) - set(ours.state_dict())
    assert set(ours.state_dict()) <= set(theirs.state_dict())
    assert all(is_frozen(name, stages) and name.endswith(".num_batches_tracked") for name in missing)


def test_a_step_changes_only_what_is_not_frozen() -> None:
    config = DetectionConfig(model=SMALL, freeze_at=2, weight_decay=0.1, device="cpu")
    backbone = {
        name.removeprefix("backbone.").removeprefix("roi_heads."): value
        for name, value in small_model().state_dict().items()
        if name.startswith(("backbone.", "roi_heads.res5.")) and ".res5.norm." not in name
    }
    run = builtin._prepare(backbone, config, 0, HERE, {})
    before = {name: value.clone() for name, value in run.model.state_dict().items()}
    images, targets = batch()
    losses = run.model(images, targets, [torch.Generator().manual_seed(n) for n in range(len(images))])
    sum(losses.values()).backward()
    run.optimizer.step()
    changed = {name for name, value in run.model.state_dict().items() if not torch.equal(value, before[name])}
    assert not any(is_frozen(name, 2) for name in changed)
    moving = {name for name, _ in run.model.named_parameters() if not is_frozen(name, 2)}
    assert {name for name in moving if "mask" not in name} <= changed
    assert any(name.startswith("backbone.res3") and name.endswith("running_mean") for name in changed)
    assert len(build_sgd(run.model, config).param_groups[0]["params"]) < len([*run.model.parameters()])


def test_detectron2_gets_the_setting() -> None:
    config = DetectionConfig(freeze_at=3)
    values = detectron2_settings.values(
        config, seed=0, output=Path("run"), weights=None, cuda=False, processes=1, bitmaps=False
    )
    assert values["MODEL"]["BACKBONE"]["FREEZE_AT"] == 3


def test_a_run_of_detectron2_keeps_the_frozen_stages(test_data: Path, tmp_path: Path) -> None:
    pytest.importorskip("detectron2")
    train, test = cases.read_splits(test_data)
    config = dataclasses.replace(cases.CONFIG, freeze_at=2, iterations=2, milestones=(), precise_bn=1)
    weights = cases.backbone()
    cases.run(config, tmp_path, train, test, weights=weights)
    trained = torch.load(tmp_path / "detector.pth", weights_only=True)["model"]
    for name, value in weights.items():
        if is_frozen(f"backbone.{name}", 2) and not name.endswith("num_batches_tracked"):
            assert torch.equal(trained[f"backbone.{name}"], value), name
    assert not torch.equal(trained["backbone.res3.0.conv1.weight"], weights["res3.0.conv1.weight"])


def test_identity_protocol_and_label_state_it_and_the_default_changes_neither() -> None:
    usual, frozen = DetectionConfig(engine="builtin"), DetectionConfig(engine="builtin", freeze_at=2)
    assert "freeze_at" not in identity(usual)
    assert identity(frozen) == {**identity(usual), "freeze_at": 2}
    assert "freeze_at" not in {k for k, v in TASK.protocol(usual).items() if v is not None}
    protocol = {**COCO, "freeze_at": TASK.protocol(frozen)["freeze_at"]}
    assert "engine detectron2, freeze at 2; measured" in render([make("coco", "coco", {"bbox/AP": 1.0}, protocol)])


@pytest.mark.parametrize("value", [-1, 5])
def test_a_stage_that_the_trunk_does_not_have_is_refused(value: int) -> None:
    with pytest.raises(ValueError, match=f"freeze_at={value}"):
        dataclasses.replace(DetectionConfig(), freeze_at=value)
