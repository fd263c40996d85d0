"""The detector of `detection_cases` in Detectron2, and its values. Detectron2 is imported when a function is called."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from detection_cases import Values, shared_permutations
from torch import Tensor, nn

from transfer.detection.config import ModelConfig
from transfer.detection.structures import Target


def detectron2_model(config: ModelConfig, state: dict[str, Tensor], *, device: str = "cpu", freeze_at: int = 0) -> Any:
    """Build Detectron2's R50-C4 with the settings of `config`, MoCo's norm after res5 and the weights `state`.

    For a pyramid it is Detectron2's R50-FPN, as in its configs/Base-RCNN-FPN.yaml.
    """
    from detectron2.config import get_cfg
    from detectron2.modeling import build_model

    assert config.bottleneck
    assert config.blocks == (3, 4, 6, 3)
    cfg = get_cfg()
    cfg.MODEL.DEVICE = device
    cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD = list(config.pixel_mean), list(config.pixel_std)
    cfg.MODEL.MASK_ON = config.masks
    cfg.MODEL.BACKBONE.FREEZE_AT = freeze_at
    resnets = cfg.MODEL.RESNETS
    resnets.DEPTH, resnets.NORM, resnets.STRIDE_IN_1X1, resnets.OUT_FEATURES = 50, "BN", False, ["res4"]
    resnets.STEM_OUT_CHANNELS, resnets.RES2_OUT_CHANNELS = config.width, 4 * config.width
    resnets.WIDTH_PER_GROUP = config.width
    cfg.MODEL.ANCHOR_GENERATOR.SIZES = [list(config.anchor_sizes)]
    cfg.MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS = [list(config.aspect_ratios)]
    rpn = cfg.MODEL.RPN
    rpn.BATCH_SIZE_PER_IMAGE = config.rpn_batch
    rpn.PRE_NMS_TOPK_TRAIN, rpn.POST_NMS_TOPK_TRAIN = config.pre_nms_train, config.post_nms_train
    rpn.PRE_NMS_TOPK_TEST, rpn.POST_NMS_TOPK_TEST = config.pre_nms_test, config.post_nms_test
    heads = cfg.MODEL.ROI_HEADS
    heads.NAME, heads.NUM_CLASSES, heads.BATCH_SIZE_PER_IMAGE = "Res5ROIHeads", config.num_classes, config.roi_batch
    heads.SCORE_THRESH_TEST, heads.NMS_THRESH_TEST = config.score_threshold, config.nms_threshold
    cfg.MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION = config.pool_size
    cfg.MODEL.ROI_BOX_HEAD.POOLER_SAMPLING_RATIO = 0
    cfg.MODEL.ROI_MASK_HEAD.NAME = "MaskRCNNConvUpsampleHead"
    cfg.MODEL.ROI_MASK_HEAD.NUM_CONV, cfg.MODEL.ROI_MASK_HEAD.CONV_DIM = 0, config.mask_channels
    cfg.MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION = config.pool_size
    cfg.TEST.DETECTIONS_PER_IMAGE = config.detections_per_image
    if config.kind == "fpn":
        use_pyramid(cfg, config)
    model = build_model(cfg)
    if config.kind == "c4":
        model.roi_heads.res5.add_module("norm", nn.BatchNorm2d(config.width * 32))
    model.to(device).load_state_dict(state)
    return model


def use_pyramid(cfg: Any, config: ModelConfig) -> None:
    """Change the settings of R50-C4 to those of R50-FPN."""
    stages = ["res2", "res3", "res4", "res5"]
    cfg.MODEL.BACKBONE.NAME = "build_resnet_fpn_backbone"
    cfg.MODEL.RESNETS.OUT_FEATURES = cfg.MODEL.FPN.IN_FEATURES = stages
    cfg.MODEL.FPN.OUT_CHANNELS, cfg.MODEL.FPN.NORM = config.fpn_channels, "BN"
    cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[size] for size in config.anchor_sizes]
    cfg.MODEL.RPN.IN_FEATURES = ["p2", "p3", "p4", "p5", "p6"]
    cfg.MODEL.ROI_HEADS.NAME, cfg.MODEL.ROI_HEADS.IN_FEATURES = "StandardROIHeads", ["p2", "p3", "p4", "p5"]
    box, mask = cfg.MODEL.ROI_BOX_HEAD, cfg.MODEL.ROI_MASK_HEAD
    box.NAME, box.FC_DIM, box.CONV_DIM = "FastRCNNConvFCHead", config.fc_channels, config.fpn_channels
    box.NUM_CONV, box.NUM_FC, box.NORM = (4, 1, "BN") if config.box_head == "4conv1fc" else (0, 2, "")
    mask.NUM_CONV, mask.NORM, mask.POOLER_RESOLUTION = 4, box.NORM, 2 * config.pool_size


@contextmanager
def float32_nms() -> Iterator[None]:
    """Let Detectron2 run in float64. Its non-maximum suppression needs boxes and scores in float32."""
    from detectron2.modeling.proposal_generator import proposal_utils
    from detectron2.modeling.roi_heads import fast_rcnn

    original = proposal_utils.batched_nms

    def nms(boxes: Tensor, scores: Tensor, kinds: Tensor, threshold: float) -> Tensor:
        return original(boxes, scores.float(), kinds, threshold)

    proposal_utils.batched_nms = fast_rcnn.batched_nms = nms
    try:
        yield
    finally:
        proposal_utils.batched_nms = fast_rcnn.batched_nms = original


def detectron2_inputs(images: list[Tensor], targets: list[Target], *, masks: bool) -> list[dict[str, Any]]:
    """Convert images and targets to Detectron2's inputs."""
    from detectron2.structures import BitMasks, Boxes, Instances, PolygonMasks

    inputs = []
    for image, target in zip(images, targets, strict=True):
        instances = Instances((image.shape[1], image.shape[2]))
        instances.gt_boxes, instances.gt_classes = Boxes(target.boxes), target.classes
        if masks:
            bitmaps = bool(target.masks) and not isinstance(target.masks[0], list)
            bits = [torch.from_numpy(mask) for mask in target.masks] if bitmaps else []
            instances.gt_masks = BitMasks(torch.stack(bits)) if bits else PolygonMasks(list(target.masks))
        inputs.append({"image": image, "instances": instances})
    return inputs


def detectron2_training_values(model: Any, images: list[Tensor], targets: list[Target]) -> Values:
    """Compute the values of `detection_cases.training_values` with Detectron2."""
    from detectron2.utils.events import EventStorage

    model.train()
    model.zero_grad()
    values: Values = {}
    inputs = detectron2_inputs(images, targets, masks=model.roi_heads.mask_on)
    truth = [item["instances"] for item in inputs]
    rpn, heads = model.proposal_generator, model.roi_heads
    with EventStorage(), shared_permutations():
        pictures = model.preprocess_image(inputs)
        features = model.backbone(pictures.tensor)
        maps = [features[name] for name in rpn.in_features]
        anchors = rpn.anchor_generator(maps)
        logits, deltas = rpn.rpn_head(maps)
        logits = [own.permute(0, 2, 3, 1).flatten(1) for own in logits]
        deltas = [own.view(len(own), -1, 4, *own.shape[2:]).permute(0, 3, 4, 1, 2).flatten(1, -2) for own in deltas]
        labels, matched = rpn.label_and_sample_anchors(anchors, truth)
        losses = dict(rpn.losses(anchors, logits, labels, deltas, matched))
        proposals = rpn.predict_proposals(anchors, logits, deltas, pictures.image_sizes)
        regions = heads.label_and_sample_proposals([p[:] for p in proposals], truth)
        chosen = [(region.gt_classes != heads.num_classes).nonzero()[:, 0] for region in regions]
        if len(maps) > 1:
            losses |= heads._forward_box(features, regions)
            losses |= heads._forward_mask(features, regions) if heads.mask_on else {}
        else:
            shared = heads._shared_roi_transform(maps, [r.proposal_boxes for r in regions])
            losses |= heads.box_predictor.losses(heads.box_predictor(shared.mean(dim=[2, 3])), regions)
            if heads.mask_on:
                rows = torch.cat([region.gt_classes != heads.num_classes for region in regions])
                foreground = [region[places] for region, places in zip(regions, chosen, strict=True)]
                losses |= heads.mask_head(shared[rows], foreground)
    sum(losses.values()).backward()
    several = len(maps) > 1
    values |= {f"features/{n}" if several else "features": own for n, own in enumerate(maps)}
    values |= {"anchors": torch.cat([own.tensor for own in anchors])}
    values |= {"rpn_logits": torch.cat(logits, 1), "rpn_deltas": torch.cat(deltas, 1)}
    for n, (label, boxes, region) in enumerate(zip(labels, proposals, regions, strict=True)):
        values[f"rpn_foreground/{n}"] = (label == 1).nonzero()[:, 0]
        values[f"rpn_background/{n}"] = (label == 0).nonzero()[:, 0]
        values[f"rpn_targets/{n}"] = matched[n][label == 1]
        values[f"proposals/{n}"] = boxes.proposal_boxes.tensor
        values[f"region_boxes/{n}"] = region.proposal_boxes.tensor
        values[f"region_classes/{n}"] = region.gt_classes
        some = region[chosen[n]]
        values[f"region_targets/{n}"] = some.gt_boxes.tensor if some.has("gt_boxes") else torch.zeros(0, 4)
        if heads.mask_on:
            side = 2 * heads.mask_pooler.output_size[0] if several else heads.pooler.output_size[0]
            values[f"mask_targets/{n}"] = (
                some.gt_masks.crop_and_resize(some.proposal_boxes.tensor, side)
                if some.has("gt_masks")
                else torch.zeros((0, side, side), dtype=torch.bool)
            )
    values |= losses
    values |= {f"grad/{name}": value.grad for name, value in model.named_parameters() if value.requires_grad}
    return {name: value.detach() for name, value in values.items()}


@torch.no_grad()
def detectron2_inference_values(model: Any, images: list[Tensor], sizes: list[tuple[int, int]]) -> Values:
    """Compute the values of `detection_cases.inference_values` with Detectron2."""
    model.eval()
    inputs = [{"image": image, "height": h, "width": w} for image, (h, w) in zip(images, sizes, strict=True)]
    pictures = model.preprocess_image(inputs)
    proposals, _ = model.proposal_generator(pictures, model.backbone(pictures.tensor), None)
    values = {f"test_proposals/{n}": p.proposal_boxes.tensor for n, p in enumerate(proposals)}
    for n, output in enumerate(model(inputs)):
        found = output["instances"]
        values |= {f"boxes/{n}": found.pred_boxes.tensor, f"scores/{n}": found.scores}
        values[f"classes/{n}"] = found.pred_classes
        if model.roi_heads.mask_on:
            values[f"pasted/{n}"] = found.pred_masks
    return values
