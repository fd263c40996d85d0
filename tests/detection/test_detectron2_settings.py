"""Settings, schedules and weights of this project in Detectron2. Some tests need Detectron2, else they are skipped."""

import dataclasses
import itertools
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import places
import pytest
import torch
import torchvision
from detectron2_engine_cases import CONFIG, MODEL, backbone

from intl_bench.core import config as configs
from intl_bench.core.errors import InputError
from transfer.convert import to_detectron2
from transfer.detection import build_model
from transfer.detection.config import DetectionConfig, ModelConfig
from transfer.detection.engines import detectron2_settings
from transfer.detection.engines.optim import build_sgd, learning_rate

GOLDEN = places.GOLDEN / "detection_lr.json"
SCHEDULES = {
    "2x": DetectionConfig(),
    "1x": DetectionConfig(iterations=90_000, milestones=(60_000, 80_000)),
    "24k": DetectionConfig(iterations=24_000, milestones=(18_000, 22_000), warmup_iterations=100),
    "warm-up past a milestone": DetectionConfig(iterations=300, milestones=(50, 200), warmup_iterations=100, lr=0.3),
    "no warm-up": DetectionConfig(iterations=30, milestones=(10, 30), warmup_iterations=0),
}


@pytest.fixture
def engine() -> ModuleType:
    pytest.importorskip("detectron2")
    from transfer.detection.engines import detectron2

    return detectron2


@pytest.mark.parametrize("name", SCHEDULES)
def test_learning_rates_equal_stored_rates_of_detectron2(name: str) -> None:
    golden = json.loads(GOLDEN.read_text())[name]
    assert len(golden) >= 8
    for iteration, lr in golden.items():
        assert learning_rate(SCHEDULES[name], int(iteration)) == pytest.approx(lr, rel=1e-12)


@pytest.mark.parametrize("name", SCHEDULES)
def test_learning_rates_equal_detectron2s_over_the_whole_schedule(engine: ModuleType, name: str) -> None:
    config = SCHEDULES[name]
    rates = detectron2_rates(engine, config)
    ours = [learning_rate(config, iteration) for iteration in range(config.iterations)]
    np.testing.assert_allclose(ours, list(rates), rtol=1e-9)


def detectron2_rates(engine: ModuleType, config: DetectionConfig) -> itertools.chain[float]:
    """Return the learning rate of every iteration from Detectron2's scheduler."""
    cfg = engine.settings(config, seed=0, output=Path("run"))
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=cfg.SOLVER.BASE_LR)
    scheduler = engine.build_lr_scheduler(cfg, optimizer)

    def after_step(_: int) -> float:
        optimizer._opt_called = True  # else PyTorch warns that the scheduler steps without the optimizer
        scheduler.step()
        return float(optimizer.param_groups[0]["lr"])

    first = float(optimizer.param_groups[0]["lr"])
    return itertools.chain([first], map(after_step, range(1, config.iterations)))


def test_parameter_groups_equal_detectron2s(engine: ModuleType) -> None:
    config = dataclasses.replace(CONFIG, weight_decay=0.01, norm_weight_decay=0.002, lr=0.7)
    theirs = engine.build_model(engine.settings(config, seed=0, output=Path("run")))
    ours = build_model(config.model)

    def by_name(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, tuple[float, ...]]:
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        keys = ("lr", "momentum", "weight_decay", "dampening", "nesterov")
        groups = optimizer.param_groups
        return {names[id(p)]: tuple(group[key] for key in keys) for group in groups for p in group["params"]}

    expected = by_name(theirs, engine.build_optimizer(engine.settings(config, seed=0, output=Path("run")), theirs))
    assert {values[2] for values in expected.values()} == {0.01, 0.002}
    assert by_name(ours, build_sgd(ours, config)) == expected


@pytest.mark.parametrize(("blocks", "bottleneck", "width"), [((3, 4, 6, 3), True, 8), ((2, 2, 2, 2), False, 64)])
@pytest.mark.parametrize("masks", [True, False])
@pytest.mark.parametrize(("kind", "box_head"), [("c4", "2fc"), ("fpn", "2fc"), ("fpn", "4conv1fc")])
def test_both_engines_have_the_same_parameters(
    engine: ModuleType, blocks: tuple[int, ...], bottleneck: bool, width: int, masks: bool, kind: str, box_head: str
) -> None:
    network: dict[str, Any] = {"blocks": blocks, "bottleneck": bottleneck, "width": width}
    model = ModelConfig(**network, masks=masks, num_classes=7, kind=kind, box_head=box_head, fpn_channels=16)
    config = dataclasses.replace(CONFIG, model=model)
    theirs = engine.build_model(engine.settings(config, seed=0, output=Path("run"))).state_dict()
    ours = build_model(model).state_dict()
    assert {key: value.shape for key, value in ours.items()} == {key: value.shape for key, value in theirs.items()}


def test_every_setting_that_matters_to_detectron2_reaches_it(engine: ModuleType) -> None:
    ours_alone = {"data", "model", "engine", "precision", "channels_last", "evaluator", "visualize", "device"}
    ours_alone |= {"visualize_threshold", "accumulate"}  # `engines.choice` refuses the latter
    architecture = {"blocks", "bottleneck", "stem", "kind", "box_head"}
    original = engine.settings(CONFIG, seed=0, output=Path("run"))

    def other(value: Any) -> Any:
        if isinstance(value, tuple):
            return (*value[:-1], value[-1] + 0.5 if isinstance(value[-1], float) else value[-1] + 1)
        return not value if isinstance(value, bool) else value * 2 or type(value)(1)

    for field in dataclasses.fields(DetectionConfig):
        if field.name not in ours_alone:
            changed = dataclasses.replace(CONFIG, **{field.name: other(getattr(CONFIG, field.name))})
            assert engine.settings(changed, seed=0, output=Path("run")) != original, field.name

    def read(model: ModelConfig) -> Any:
        return engine.settings(dataclasses.replace(CONFIG, model=model), seed=0, output=Path("run"))

    pyramid = dataclasses.replace(MODEL, kind="fpn")
    assert read(pyramid) != original
    assert read(dataclasses.replace(pyramid, box_head="4conv1fc")) != read(pyramid)
    for base in (MODEL, pyramid):
        for name in {field.name for field in dataclasses.fields(ModelConfig)} - architecture - base.unused():
            changed_model = dataclasses.replace(base, **{name: other(getattr(base, name))})
            assert read(changed_model) != read(base), name


def test_the_papers_settings_are_those_of_mocos_detectron2_configs(engine: ModuleType) -> None:
    """Base-RCNN-C4-BN, coco_R_50_C4_2x and coco_R_50_C4_2x_moco of github.com/facebookresearch/moco."""
    expected = engine.get_cfg()
    expected.merge_from_other_cfg(
        engine.CfgNode(
            {
                "MODEL": {
                    "META_ARCHITECTURE": "GeneralizedRCNN",
                    "RPN": {"PRE_NMS_TOPK_TEST": 6000, "POST_NMS_TOPK_TEST": 1000},
                    "ROI_HEADS": {"NAME": "Res5ROIHeadsExtraNorm"},
                    "BACKBONE": {"FREEZE_AT": 0},
                    "RESNETS": {"DEPTH": 50, "NORM": "naiveSyncBN", "STRIDE_IN_1X1": False},
                    "MASK_ON": True,
                    "PIXEL_MEAN": [123.675, 116.280, 103.530],
                    "PIXEL_STD": [58.395, 57.120, 57.375],
                    "DEVICE": "cpu",
                },
                "TEST": {"PRECISE_BN": {"ENABLED": True}},
                "SOLVER": {
                    "IMS_PER_BATCH": 16,
                    "BASE_LR": 0.02,
                    "STEPS": (120000, 160000),
                    "MAX_ITER": 180000,
                },
                "INPUT": {
                    "FORMAT": "RGB",
                    "MIN_SIZE_TRAIN": (640, 672, 704, 736, 768, 800),
                    "MIN_SIZE_TEST": 800,
                },
                "DATASETS": {"TRAIN": ("coco_2017_train",), "TEST": ("coco_2017_val",)},
                "OUTPUT_DIR": "run",
                "SEED": 3,
            }
        )
    )
    assert engine.settings(DetectionConfig(device="cpu"), seed=3, output=Path("run"), processes=8) == expected


@pytest.mark.parametrize("name", ["r50_fpn_1x", "r50_fpn_4conv1fc_1x"])
def test_the_settings_of_a_pyramid_are_those_of_the_published_configs(engine: ModuleType, name: str) -> None:
    """Detectron2's Base-RCNN-FPN with OpenSelfSup's coco_R_50_FPN_1x, and with PyContrast's R_50_FPN_1x_infomin."""
    stages, levels = ["res2", "res3", "res4", "res5"], ["p2", "p3", "p4", "p5", "p6"]
    values: dict[str, Any] = {
        "MODEL": {
            "META_ARCHITECTURE": "GeneralizedRCNN",
            "BACKBONE": {"NAME": "build_resnet_fpn_backbone", "FREEZE_AT": 0},
            "RESNETS": {"OUT_FEATURES": stages, "DEPTH": 50, "NORM": "naiveSyncBN", "STRIDE_IN_1X1": False},
            "FPN": {"IN_FEATURES": stages, "NORM": "naiveSyncBN"},
            "ANCHOR_GENERATOR": {"SIZES": [[32], [64], [128], [256], [512]], "ASPECT_RATIOS": [[0.5, 1.0, 2.0]]},
            "RPN": {
                "IN_FEATURES": levels,
                "PRE_NMS_TOPK_TRAIN": 2000,
                "PRE_NMS_TOPK_TEST": 1000,
                "POST_NMS_TOPK_TRAIN": 1000,
                "POST_NMS_TOPK_TEST": 1000,
            },
            "ROI_HEADS": {"NAME": "StandardROIHeads", "IN_FEATURES": levels[:-1]},
            "ROI_BOX_HEAD": {"NAME": "FastRCNNConvFCHead", "NUM_FC": 2, "POOLER_RESOLUTION": 7},
            "ROI_MASK_HEAD": {"NAME": "MaskRCNNConvUpsampleHead", "NUM_CONV": 4, "POOLER_RESOLUTION": 14},
            "MASK_ON": True,
            "PIXEL_MEAN": [123.675, 116.280, 103.530],
            "PIXEL_STD": [58.395, 57.120, 57.375],
            "DEVICE": "cpu",
        },
        "TEST": {"PRECISE_BN": {"ENABLED": True}},
        "SOLVER": {"IMS_PER_BATCH": 16, "BASE_LR": 0.02, "STEPS": (60000, 80000), "MAX_ITER": 90000},
        "INPUT": {"FORMAT": "RGB", "MIN_SIZE_TRAIN": (640, 672, 704, 736, 768, 800)},
        "DATASETS": {"TRAIN": ("coco_2017_train",), "TEST": ("coco_2017_val",)},
        "OUTPUT_DIR": "run",
        "SEED": 3,
    }
    if name == "r50_fpn_4conv1fc_1x":
        values["MODEL"]["ROI_BOX_HEAD"] |= {"NUM_CONV": 4, "NUM_FC": 1, "NORM": "naiveSyncBN"}
        values["MODEL"]["ROI_MASK_HEAD"]["NORM"] = "naiveSyncBN"
    expected = engine.get_cfg()
    expected.merge_from_other_cfg(engine.CfgNode(values))
    config = configs.load(DetectionConfig, name, "coco", ["device=cpu"])
    assert engine.settings(config, seed=3, output=Path("run"), processes=8) == expected


def test_yaml_is_read_back_by_detectron2s_own_loader(engine: ModuleType, tmp_path: Path) -> None:
    cfg = engine.settings(CONFIG, seed=1, output=tmp_path, weights=tmp_path / "r50.pth")
    (tmp_path / "detectron2.yaml").write_text(cfg.dump())
    read_back = engine.get_cfg()
    read_back.merge_from_file(str(tmp_path / "detectron2.yaml"))
    assert json.dumps(read_back) == json.dumps(cfg)  # as text, because YAML has no nested tuples


@pytest.mark.parametrize(
    "model",
    [
        ModelConfig(stem="cifar"),
        ModelConfig(blocks=(1, 1, 1, 1)),
        ModelConfig(blocks=(2, 2, 2, 2), bottleneck=False, width=16),
    ],
)
def test_backbones_that_detectron2_cannot_build_are_refused(model: ModelConfig) -> None:
    with pytest.raises(InputError, match=r"Detectron2 cannot build .*--engine builtin"):
        detectron2_settings.depth(model)


def test_without_detectron2_the_message_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("detectron2", "detectron2.config"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules, "transfer.detection.engines.detectron2", raising=False)
    monkeypatch.delattr("transfer.detection.engines.detectron2", raising=False)
    with pytest.raises(InputError, match="--engine builtin"):
        import transfer.detection.engines.detectron2  # noqa: F401


@pytest.mark.parametrize(("name", "depth"), [("resnet18", 18), ("resnet50", 50)])
def test_features_equal_torchvisions(engine: ModuleType, name: str, depth: int) -> None:
    torch.manual_seed(0)
    resnet = torchvision.models.get_model(name).eval()
    resnet.fc = torch.nn.Identity()
    for module in resnet.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            for tensor in (module.running_mean, module.bias):
                torch.nn.init.normal_(tensor, std=0.1)
            for tensor in (module.running_var, module.weight):
                torch.nn.init.uniform_(tensor, 0.5, 1.0)
    images = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        expected = resnet(images)
    features = engine.backbone_features(to_detectron2(resnet.state_dict()), images, depth)
    torch.testing.assert_close(features, expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(InputError, match="missing"):
        engine.backbone_features({"stem.conv1.weight": resnet.conv1.weight}, images, depth)


def test_weights_that_do_not_fit_are_refused(engine: ModuleType) -> None:
    model = engine.build_model(engine.settings(CONFIG, seed=0, output=Path("run")))
    missing, extra, reshaped = backbone(), backbone(), backbone()
    del missing["res5.2.conv3.norm.running_var"]
    extra["fc.weight"] = torch.zeros(3)
    reshaped["res2.0.conv1.weight"] = torch.zeros(8, 8, 3, 3)
    for state, message in [
        (missing, "1 missing, such as roi_heads.res5.2.conv3.norm.running_var"),
        (extra, "1 unknown, such as backbone.fc.weight"),
        (reshaped, r"backbone.res2.0.conv1.weight has shape \(8, 8, 3, 3\), expected \(8, 8, 1, 1\)"),
    ]:
        with pytest.raises(InputError, match=message):
            engine.load_backbone(model, state)
    engine.load_backbone(model, backbone())
    assert torch.equal(model.roi_heads.res5[2].conv3.norm.running_var, backbone()["res5.2.conv3.norm.running_var"])
