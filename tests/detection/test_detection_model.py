"""The whole detector: independence of the batch, images without objects, variants, initialization and errors."""

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import torch
from detection_cases import (
    SMALL,
    TINY,
    TINY_FPN,
    batch,
    calibrate,
    generators,
    ground_truth,
    picture,
    relative,
    small_model,
)
from torch import nn
from torchvision.ops import nms, roi_align

from intl_bench.core.errors import DivergedError, InputError
from intl_bench.core.identity import identity
from transfer.detection import MaskRCNN, build_model
from transfer.detection.config import ModelConfig
from transfer.detection.modeling import boxes as box_ops
from transfer.detection.modeling.mask_rcnn import check_targets
from transfer.detection.modeling.resnet import load_backbone
from transfer.detection.modeling.rpn import Predictions
from transfer.detection.structures import Target

VARIANTS = {
    "basic": TINY,
    "bottleneck": dataclasses.replace(TINY, bottleneck=True),
    "cifar": dataclasses.replace(TINY, stem="cifar"),
    "boxes": dataclasses.replace(TINY, masks=False),
    "odd": dataclasses.replace(TINY, pool_size=5),
    "pyramid": TINY_FPN,
    "pyramid, 4conv1fc": dataclasses.replace(TINY_FPN, box_head="4conv1fc", bottleneck=True),
    "pyramid, cifar": dataclasses.replace(TINY_FPN, stem="cifar"),
    "pyramid, boxes": dataclasses.replace(TINY_FPN, masks=False),
}


def frozen_norms(config: ModelConfig = TINY) -> MaskRCNN:
    """A model in training mode whose norms use their running statistics, so the images do not influence each other."""
    model = small_model(config)
    calibrate(model, *batch(config))
    model.train()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    return model


def equal_images(count: int = 4) -> tuple[list[torch.Tensor], list[Target]]:
    """Images of one size, the first without objects."""
    images = [picture(n, 64, 80) for n in range(count)]
    targets = [ground_truth(n, 64, 80, objects=n, kind="polygon", classes=3) for n in range(count)]
    return images, targets


def test_losses_do_not_depend_on_the_split_and_order_of_a_batch() -> None:
    model = frozen_norms()
    images, targets = equal_images()
    together = model(images, targets, generators(4))
    apart = [model([i], [t], [g]) for i, t, g in zip(images, targets, generators(4), strict=True)]
    order = [2, 0, 3, 1]
    draws = generators(4)
    mixed = model(*([values[n] for n in order] for values in (images, targets, draws)))
    for name in ("loss_rpn_cls", "loss_rpn_loc", "loss_cls", "loss_box_reg"):
        mean = torch.stack([losses[name] for losses in apart]).mean()
        assert together[name].item() == pytest.approx(mean.item(), rel=1e-5)
    for name, loss in together.items():
        assert mixed[name].item() == pytest.approx(loss.item(), rel=1e-5)
    other = model(images, targets, generators(4, seed=100))
    assert other["loss_cls"].item() != together["loss_cls"].item()


def test_detections_do_not_depend_on_the_other_images() -> None:
    model = small_model()
    images, targets = batch()
    calibrate(model, images, targets)
    model.eval()
    images = [picture(n, 96, 112) for n in range(3)]
    together = model.detect(images, [(96, 112)] * 3)
    for image, found in zip(images, together, strict=True):
        (alone,) = model.detect([image], [(96, 112)])
        assert len(alone.scores) > 0
        assert all(relative(a, b) < 2e-3 for a, b in zip(found, alone, strict=True))
    assert len(model.detect([images[0]], [(96, 112)])[0].scores) <= SMALL.detections_per_image


def test_detections_are_sorted_inside_the_image_and_scale_with_the_file() -> None:
    model = small_model()
    images, targets = batch()
    calibrate(model, images, targets)
    model.eval()
    size = images[0].shape[1:]
    (once,) = model.detect(images[:1], [(size[0], size[1])])
    (twice,) = model.detect(images[:1], [(2 * size[0], 3 * size[1])])
    assert torch.equal(once.scores, once.scores.sort(descending=True).values)
    assert (once.scores > SMALL.score_threshold).all()
    torch.testing.assert_close(twice.boxes, once.boxes * torch.tensor([3.0, 2.0, 3.0, 2.0]))
    assert (once.boxes >= 0).all()
    assert (once.boxes[:, 2:] <= torch.tensor([size[1], size[0]])).all()


@pytest.mark.parametrize("config", VARIANTS.values(), ids=VARIANTS)
def test_every_variant_trains_and_detects(config: ModelConfig) -> None:
    model = build_model(config).train()
    images, targets = batch(config)
    losses = model(images, targets, generators(3))
    names = {"loss_rpn_cls", "loss_rpn_loc", "loss_cls", "loss_box_reg"} | ({"loss_mask"} if config.masks else set())
    assert losses.keys() == names
    sum(losses.values()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    found = model.eval().detect(images, [(50, 60)] * 3)
    side = 4 * config.pool_size if config.kind == "fpn" else 2 * math.ceil(config.pool_size / 2)
    for detections in found:
        assert (detections.masks is None) == (not config.masks)
        assert detections.masks is None or detections.masks.shape == (len(detections.boxes), side, side)


@pytest.mark.parametrize("config", [TINY, TINY_FPN], ids=["c4", "fpn"])
def test_losses_without_objects_are_connected_to_every_parameter(config: ModelConfig) -> None:
    model = build_model(config).train()
    images, _ = equal_images(2)
    empty = Target(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), [])
    losses = model(images, [empty, empty], generators(2))
    assert losses["loss_mask"].item() == losses["loss_box_reg"].item() == losses["loss_rpn_loc"].item() == 0
    sum(losses.values()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert model.roi_heads.box_predictor.cls_score.weight.grad.abs().sum() > 0


def test_rpn_losses_are_divided_by_the_configured_number_of_anchors() -> None:
    images, targets = [picture(0, 32, 32)], [ground_truth(0, 32, 32, objects=1, kind="polygon", classes=3)]
    small, large = (
        frozen_norms(dataclasses.replace(TINY, rpn_batch=count))(images, targets, generators(1)) for count in (100, 200)
    )
    for name in ("loss_rpn_cls", "loss_rpn_loc"):  # both models sample all of the 24 anchors
        assert small[name].item() == pytest.approx(2 * large[name].item(), rel=1e-5)


@pytest.mark.parametrize(
    ("base", "masks"), [(TINY, True), (TINY, False), (TINY_FPN, True)], ids=["mask", "faster", "pyramid"]
)
@pytest.mark.parametrize("cause", ["no proposals", "low scores", "not finite", "empty boxes"])
def test_without_detections_the_result_is_empty(cause: str, base: ModelConfig, masks: bool) -> None:
    model = build_model(dataclasses.replace(base, masks=masks, score_threshold=0.999 * (cause == "low scores")))
    with torch.no_grad():
        if cause == "no proposals":
            model.proposal_generator.rpn_head.anchor_deltas.bias.fill_(math.nan)
        if cause == "not finite":  # NaN in one class removes the whole region
            model.roi_heads.box_predictor.bbox_pred.bias[0] = math.nan
        if cause == "empty boxes":  # boxes shrink to points
            model.roi_heads.box_predictor.bbox_pred.bias.view(-1, 4)[:, 2:].fill_(-1000.0)
    (found,) = model.eval().detect([picture(0, 48, 48)], [(48, 48)])
    assert found.boxes.shape == (0, 4)
    assert found.scores.shape == found.classes.shape == (0,)
    assert (found.masks is not None) == masks
    assert found.masks is None or found.masks.shape == ((0, 8, 8) if base.kind == "fpn" else (0, 4, 4))


def test_an_image_without_proposals_does_not_change_another() -> None:
    model = small_model()
    calibrate(model, *batch())
    model.eval()
    size = (96, 112)
    with torch.no_grad():
        features = model.backbone(model.preprocess([picture(n, *size) for n in range(2)]))
        proposals, _ = model.proposal_generator.propose(model.proposal_generator.predict(features), [size] * 2)
        first, second = model.roi_heads.detect(features, [proposals, proposals[:0]], [size] * 2)
        (alone,) = model.roi_heads.detect([features[0][:1]], [proposals], [size])
    assert len(second.boxes) == 0
    assert len(alone.boxes) > 0
    assert all(relative(a, b) < 2e-3 for a, b in zip(first, alone, strict=True))


@pytest.mark.parametrize("most", [20, 1000])
@pytest.mark.parametrize("training", [True, False])
def test_invalid_boxes_do_not_change_the_proposals(training: bool, most: int) -> None:
    """The proposals equal those of a computation without empty boxes and, in test, without non-finite boxes."""
    limit = 200
    config = dataclasses.replace(TINY, pre_nms_train=limit, pre_nms_test=limit, post_nms_train=most, post_nms_test=most)
    rpn = small_model(config).proposal_generator.train(training)
    draw = torch.Generator().manual_seed(0)
    anchors = rpn.anchors([(4, 5)]).repeat(2, 1)  # twice, because many boxes should be suppressed
    logits, deltas = torch.randn(2, len(anchors), generator=draw), torch.randn(2, len(anchors), 4, generator=draw) / 20
    deltas[:, ::3, :2] = 100.0  # far outside
    if not training:
        deltas[0, 1::5, 2], deltas[1, ::4, 0], logits[1, 2::7] = math.nan, math.inf, math.inf
    sizes = [(64, 80), (60, 70)]
    found = rpn.propose(Predictions(logits, deltas, anchors, (len(anchors),)), sizes)
    for score, delta, size, proposals in zip(logits, deltas, sizes, found, strict=True):
        best = score.topk(limit).indices
        boxes = box_ops.decode(delta[best, None], anchors[best], (1.0, 1.0))[:, 0]
        usable = boxes.isfinite().all(dim=1) & score[best].isfinite()
        boxes = box_ops.clip(boxes, *size)
        usable &= box_ops.nonempty(boxes)
        kept = nms(boxes[usable], score[best][usable], 0.7)
        assert 20 < len(kept) < usable.sum() < limit
        assert torch.equal(proposals, boxes[usable][kept[:most]])


@pytest.mark.parametrize("training", [True, False])
def test_boxes_of_different_levels_do_not_suppress_each_other(training: bool) -> None:
    """The proposals are the best of all levels, after a selection and a suppression within each level."""
    limit, most = 60, 50
    config = dataclasses.replace(
        TINY_FPN, pre_nms_train=limit, pre_nms_test=limit, post_nms_train=most, post_nms_test=most
    )
    rpn = small_model(config).proposal_generator.train(training)
    draw = torch.Generator().manual_seed(0)
    anchors = rpn.anchors([(16, 20), (8, 10), (4, 5), (2, 3), (1, 2)])
    counts = (16 * 20 * 3, 8 * 10 * 3, 4 * 5 * 3, 2 * 3 * 3, 1 * 2 * 3)
    logits, deltas = torch.randn(1, len(anchors), generator=draw), torch.randn(1, len(anchors), 4, generator=draw) / 20
    deltas[:, ::3, :2] = 100.0  # far outside
    (found,) = rpn.propose(Predictions(logits, deltas, anchors, counts), [(64, 80)])
    kept = []
    for score, delta, own in zip(logits[0].split(counts), deltas[0].split(counts), anchors.split(counts), strict=True):
        best = score.topk(min(limit, len(score))).indices
        boxes = box_ops.clip(box_ops.decode(delta[best, None], own[best], (1.0, 1.0))[:, 0], 64, 80)
        usable = box_ops.nonempty(boxes)
        chosen = nms(boxes[usable], score[best][usable], 0.7)
        kept += [(float(score[best][usable][n]), boxes[usable][n]) for n in chosen]
    assert len(kept) > most
    kept.sort(key=lambda pair: -pair[0])
    assert torch.equal(found, torch.stack([box for _, box in kept[:most]]))


def test_bfloat16_is_near_float32() -> None:
    model = frozen_norms()
    images, targets = equal_images()
    exact = model(images, targets, generators(4))
    with torch.autocast("cpu", torch.bfloat16):
        rough = model(images, targets, generators(4))
    assert rough["loss_cls"].dtype == torch.float32
    for name in ("loss_rpn_cls", "loss_cls"):
        assert rough[name].item() == pytest.approx(exact[name].item(), rel=0.1)


def test_channels_last_gives_the_same_losses() -> None:
    # With fewer than 16 channels oneDNN's strided channels-last convolutions write past their buffers (torch 2.15).
    model = frozen_norms(dataclasses.replace(TINY, width=16))
    images, targets = equal_images()
    exact = model(images, targets, generators(4))
    model.to(memory_format=torch.channels_last)
    for name, loss in model(images, targets, generators(4)).items():
        assert loss.item() == pytest.approx(exact[name].item(), rel=1e-3)


def test_padding_is_zero_after_normalization_and_minimal() -> None:
    model = build_model(TINY)
    images = [picture(0, 33, 47), picture(1, 21, 50)]
    padded = model.preprocess(images)
    assert padded.shape == (2, 3, 33, 50)
    assert (padded[0, :, :, 47:] == 0).all()
    assert (padded[1, :, 21:] == 0).all()
    value = (images[0][2, 5, 6].item() - 103.53) / 57.375
    assert padded[0, 2, 5, 6].item() == pytest.approx(value, rel=1e-5)


def test_initialization_equals_that_of_detectron2() -> None:
    torch.manual_seed(0)
    model = build_model(ModelConfig(blocks=(1, 1, 1, 1), width=32))
    wanted = {
        "proposal_generator.rpn_head.conv.weight": 0.01,
        "proposal_generator.rpn_head.objectness_logits.weight": 0.01,
        "proposal_generator.rpn_head.anchor_deltas.weight": 0.01,
        "roi_heads.box_predictor.cls_score.weight": 0.01,
        "roi_heads.box_predictor.bbox_pred.weight": 0.001,
        "roi_heads.mask_head.predictor.weight": 0.001,
        "roi_heads.mask_head.deconv.weight": (2 / (1024 * 4)) ** 0.5,
        "roi_heads.res5.0.conv1.weight": (2 / 256) ** 0.5,
        "backbone.stem.conv1.weight": (2 / (32 * 49)) ** 0.5,
        "backbone.res2.0.conv2.weight": (2 / (32 * 9)) ** 0.5,
    }
    parameters = dict(model.named_parameters())
    for name, std in wanted.items():
        assert parameters[name].std().item() == pytest.approx(std, rel=0.05), name
        assert abs(parameters[name].mean().item()) < 0.1 * std, name
    for name, parameter in parameters.items():
        if name.endswith("norm.weight"):
            assert (parameter == 1).all()
        elif name.endswith("bias"):
            assert (parameter == 0).all()


def test_initialization_of_a_pyramid_equals_that_of_detectron2() -> None:
    """`c2_xavier_fill` draws uniform numbers with variance 1 / fan-in, `c2_msra_fill` normal ones with 2 / fan-out."""
    torch.manual_seed(0)
    config = ModelConfig(kind="fpn", blocks=(1, 1, 1, 1), width=32, pool_size=7, box_head="4conv1fc")
    parameters = dict(build_model(config).named_parameters())
    wanted = {
        "backbone.fpn_lateral2.weight": 128**-0.5,
        "backbone.fpn_lateral5.weight": 1024**-0.5,
        "backbone.fpn_output3.weight": (256 * 9) ** -0.5,
        "proposal_generator.rpn_head.conv.weight": 0.01,
        "roi_heads.box_head.conv4.weight": (2 / (256 * 9)) ** 0.5,
        "roi_heads.box_head.fc1.weight": (256 * 49) ** -0.5,
        "roi_heads.box_predictor.cls_score.weight": 0.01,
        "roi_heads.box_predictor.bbox_pred.weight": 0.001,
        "roi_heads.mask_head.mask_fcn1.weight": (2 / (256 * 9)) ** 0.5,
        "roi_heads.mask_head.deconv.weight": (2 / (256 * 4)) ** 0.5,
        "roi_heads.mask_head.predictor.weight": 0.001,
    }
    for name, std in wanted.items():
        assert parameters[name].std().item() == pytest.approx(std, rel=0.05), name
        if "fpn_" in name or "fc1" in name:
            assert parameters[name].abs().max().item() <= 3**0.5 * std * (1 + 1e-6), name
    biases = [value for name, value in parameters.items() if name.endswith("bias")]
    assert all((bias == 0).all() for bias in biases)
    assert not any(name.startswith("roi_heads.mask_head.mask_fcn") and name.endswith("r.bias") for name in parameters)


def test_regions_are_pooled_from_the_level_of_their_size() -> None:
    """Compared with torchvision's `roi_align` region by region; the levels are those of equation 1 of the FPN paper."""
    heads = build_model(TINY_FPN).roi_heads
    draw = torch.Generator().manual_seed(0)
    maps = [torch.randn(2, 3, 512 // stride, 640 // stride, generator=draw) for stride in (4, 8, 16, 32)]
    sides = [20.0, 111.0, 112.0, 223.0, 224.0, 447.0, 448.0, 500.0]  # 224 pixels and more from stride 16
    wanted = [4, 4, 8, 8, 16, 16, 32, 32]
    boxes = [torch.tensor([[3.0, 5.0, 3.0 + side, 5.0 + side] for side in some]) for some in (sides[::2], sides[1::2])]
    strides = [*wanted[::2], *wanted[1::2]]
    found = heads.pool(maps, boxes)
    assert found.shape == (8, 3, TINY_FPN.pool_size, TINY_FPN.pool_size)
    for row, (stride, box) in enumerate(zip(strides, torch.cat(boxes), strict=True)):
        level = maps[(4, 8, 16, 32).index(stride)][row // 4, None]
        expected = roi_align(level, [box[None]], TINY_FPN.pool_size, spatial_scale=1 / stride, aligned=True)
        assert relative(found[row], expected[0]) < 1e-5, (stride, box)
    assert heads.pool_for_masks(maps, boxes).shape[2:] == (2 * TINY_FPN.pool_size, 2 * TINY_FPN.pool_size)


def test_images_of_a_pyramid_are_padded_to_the_stride_of_its_top() -> None:
    images = [picture(0, 33, 47), picture(1, 21, 66)]
    assert build_model(TINY_FPN).preprocess(images).shape == (2, 3, 64, 96)
    assert build_model(dataclasses.replace(TINY_FPN, stem="cifar")).preprocess(images).shape == (2, 3, 40, 72)


def test_a_pyramid_needs_an_anchor_size_for_each_level() -> None:
    with pytest.raises(ValueError, match=r"model.anchor_sizes=\[16.0, 32.0\]: expected 5 numbers"):
        dataclasses.replace(TINY, kind="fpn")


def test_the_settings_of_a_pyramid_are_no_part_of_the_identity_of_c4() -> None:
    c4, fpn = identity(ModelConfig(fc_channels=5)), identity(TINY_FPN)
    assert c4 == identity(ModelConfig())
    assert fpn.keys() - c4.keys() == {"kind", "fpn_channels", "box_head", "fc_channels"}


def backbone_state(model: MaskRCNN) -> dict[str, torch.Tensor]:
    """Return the weights of the backbone under the names that `load_backbone` expects."""
    state = {}
    for name, value in model.state_dict().items():
        if name.startswith("backbone.") and ".fpn_" not in name:
            state[name.removeprefix("backbone.").removeprefix("bottom_up.")] = value
        elif name.startswith("roi_heads.res5.") and not name.startswith("roi_heads.res5.norm."):
            state[name.removeprefix("roi_heads.")] = value
    return state


@pytest.mark.parametrize("config", [TINY, TINY_FPN], ids=["c4", "fpn"])
def test_loading_a_backbone_changes_all_of_its_weights_and_no_others(config: ModelConfig) -> None:
    source, model = small_model(TINY), build_model(config)  # a pyramid takes the weights of the same backbone
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = backbone_state(source)
    load_backbone(model, state)
    after = model.state_dict()
    for name, value in backbone_state(model).items():
        assert torch.equal(value, state[name])
    others = [
        name for name in after if "_head." in name or "predictor" in name or "res5.norm" in name or "fpn_" in name
    ]
    assert others
    assert all(torch.equal(after[name], before[name]) for name in others)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("res3.0.conv1.weight"), "1 missing, such as backbone.res3.0.conv1.weight"),
        (lambda s: s.pop("res5.0.shortcut.norm.bias"), "1 missing, such as roi_heads.res5.0.shortcut.norm.bias"),
        (lambda s: s.update({"res2.7.conv1.weight": torch.zeros(1)}), "1 unknown, such as backbone.res2.7"),
        (lambda s: s.update({"res5.norm.weight": torch.zeros(32)}), "1 unknown, such as roi_heads.res5.norm.weight"),
        (lambda s: s.update({"stem.conv1.weight": torch.zeros(4, 3, 3, 3)}), r"shape \(4, 3, 3, 3\), expected"),
    ],
)
def test_a_backbone_of_another_architecture_is_refused(change: Any, message: str) -> None:
    model = small_model(TINY)
    state = backbone_state(model)
    change(state)
    with pytest.raises(InputError, match=message):
        load_backbone(model, state)


def target(**changes: Any) -> Target:
    """A valid target, except for `changes`."""
    valid = Target(torch.tensor([[1.0, 2.0, 30.0, 40.0]]), torch.tensor([1]), [[np.array([1.0, 2, 30, 2, 30, 40])]])
    return valid._replace(**changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"boxes": torch.tensor([[1.0, 2.0, 30.0]])}, r"boxes \(1, 3\)"),
        ({"boxes": torch.tensor([[1.0, 2.0, math.nan, 40.0]])}, "finite x0 < x1"),
        ({"boxes": torch.tensor([[1.0, 2.0, math.inf, 40.0]])}, "finite x0 < x1"),
        ({"boxes": torch.tensor([[1.0, 2.0, 1.0, 40.0]])}, "finite x0 < x1"),
        ({"classes": torch.tensor([3])}, "class from 0 to 2"),
        ({"classes": torch.tensor([-1])}, "class from 0 to 2"),
        ({"classes": torch.tensor([1.0])}, "int64"),
        ({"masks": []}, "0 masks for 1 boxes"),
    ],
)
def test_invalid_targets_are_refused(changes: dict[str, Any], message: str) -> None:
    check_targets([target(), target()], TINY)
    with pytest.raises(InputError, match=f"target 1: .*{message}"):
        check_targets([target(), target(**changes)], TINY)


def test_invalid_images_are_refused() -> None:
    model = build_model(TINY).train()
    valid = picture(0, 48, 48)
    for image in (valid.float(), valid[:1], valid[None], valid[:, :0]):
        with pytest.raises(InputError, match=r"expected \(3, h, w\) uint8"):
            model([image], [target()], generators(1))
    with pytest.raises(InputError, match="1 images, 2 targets"):
        model([valid], [target(), target()], generators(1))
    with pytest.raises(InputError, match="no images"):
        model([], [], [])
    with pytest.raises(ValueError, match="eval"):
        model.detect([valid], [(48, 48)])


def test_non_finite_weights_end_training_but_not_detection() -> None:
    model = build_model(TINY).train()
    with torch.no_grad():
        model.proposal_generator.rpn_head.anchor_deltas.weight[0] = math.nan
    with pytest.raises(DivergedError, match="not finite"):
        model([picture(0, 48, 48)], [target()], generators(1))
    (found,) = model.eval().detect([picture(0, 48, 48)], [(48, 48)])
    assert found.boxes.isfinite().all()
