"""The heads on regions for the class, the box and the mask, and those of R50-C4, which share conv5 of each region."""

import abc
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import batched_nms

from intl_bench.core.copies import fetch, send
from transfer.detection.config import ModelConfig
from transfer.detection.masks import crop_targets
from transfer.detection.modeling import boxes as box_ops
from transfer.detection.modeling.resnet import Res5, stage_channels
from transfer.detection.structures import Detections, Target, Whole

_DELTA_WEIGHTS = (10.0, 5.0)
_FOREGROUND_OVERLAP = 0.5
_FOREGROUND_FRACTION = 0.25


class Regions(NamedTuple):
    """The r regions of one image that the losses are computed on. The first f regions are foreground.

    Attributes:
        boxes: (r, 4).
        classes: (r,) int64, `num_classes` for background.
        objects: (f,) int64, index of the object of each foreground region.
        targets: (f, 4), box of the object of each foreground region.
    """

    boxes: Tensor
    classes: Tensor
    objects: Tensor
    targets: Tensor


class BoxPredictor(nn.Module):
    """The linear layers for class and box.

    Region features (r, C) -> logits (r, K + 1) with the background last, and deltas (r, K, 4) for each class.
    """

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.cls_score = nn.Linear(channels, classes + 1)
        self.bbox_pred = nn.Linear(channels, 4 * classes)
        nn.init.normal_(self.cls_score.weight, std=0.01)
        nn.init.normal_(self.bbox_pred.weight, std=0.001)
        nn.init.zeros_(self.cls_score.bias)
        nn.init.zeros_(self.bbox_pred.bias)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        return self.cls_score(features), self.bbox_pred(features).unflatten(1, (-1, 4))


class MaskHead(nn.Module):
    """The mask head: features (f, C, s, s) -> logits (f, K, 2 s, 2 s) of one mask for each class."""

    def __init__(self, channels: int, config: ModelConfig) -> None:
        super().__init__()
        self.deconv = nn.ConvTranspose2d(channels, config.mask_channels, 2, stride=2)
        self.predictor = nn.Conv2d(config.mask_channels, config.num_classes, 1)
        nn.init.kaiming_normal_(self.deconv.weight, mode="fan_out", nonlinearity="relu")
        nn.init.normal_(self.predictor.weight, std=0.001)
        for layer in (self.deconv, self.predictor):
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)

    def forward(self, features: Tensor) -> Tensor:
        return self.predictor(F.relu(self.deconv(features)))


class RoIHeads(nn.Module, abc.ABC):
    """The heads for class, box and mask: samples of regions, losses and detections.

    Attributes:
        config: settings of the detector.
        box_predictor: the linear layers for class and box.
        mask_head: (f, C, s, s) -> logits (f, K, 2 s, 2 s); None without masks.
    """

    config: ModelConfig
    box_predictor: BoxPredictor
    mask_head: nn.Module | None

    @abc.abstractmethod
    def prepare(self, features: list[Tensor]) -> Sequence[Tensor]:
        """Compute the maps that regions are pooled from."""

    @abc.abstractmethod
    def pool(self, maps: Sequence[Tensor], boxes: list[Tensor]) -> Tensor:
        """Compute the features (sum of r_i, C, s, s) of the regions `boxes` (r_i, 4) of each image."""

    @abc.abstractmethod
    def summarize(self, pooled: Tensor) -> Tensor:
        """Compute the input (r, F) of `box_predictor` from the features of regions."""

    @abc.abstractmethod
    def pool_for_masks(self, maps: Sequence[Tensor], boxes: list[Tensor]) -> Tensor:
        """Compute the input of the mask head for the regions `boxes` (f_i, 4) of each image."""

    def choose_for_masks(
        self, maps: Sequence[Tensor], pooled: Tensor, rows: Tensor, foreground: list[Tensor]
    ) -> Tensor:
        """Compute the input of the mask head for the foreground in training.

        Args:
            pooled: (r, C, s, s), the result of `pool` for all regions.
            rows: (f,) int64, the foreground among them.
            foreground: its boxes (f_i, 4) of each image.
        """
        return self.pool_for_masks(maps, foreground)

    @torch.no_grad()
    def sample(
        self, proposals: list[Tensor], targets: list[Target], generators: list[torch.Generator]
    ) -> list[Regions]:
        """Draw the regions of every image from its proposals and the boxes of its objects.

        A region is foreground if its overlap with an object is at least 0.5, else background. At most a quarter of the
        regions are foreground.
        """
        candidates = [torch.cat([own, target.boxes]) for own, target in zip(proposals, targets, strict=True)]
        matched = [
            box_ops.match(box_ops.iou(target.boxes, boxes), _FOREGROUND_OVERLAP, _FOREGROUND_OVERLAP)
            for boxes, target in zip(candidates, targets, strict=True)
        ]
        labels = [labels for _, labels in matched]
        drawn = box_ops.sample(labels, self.config.roi_batch, _FOREGROUND_FRACTION, generators)
        regions = []
        for boxes, target, (objects, _), (foreground, background) in zip(
            candidates, targets, matched, drawn, strict=True
        ):
            chosen = objects[foreground]
            background_classes = torch.full_like(background, self.config.num_classes)
            regions.append(
                Regions(
                    boxes=boxes[torch.cat([foreground, background])],
                    classes=torch.cat([target.classes[chosen], background_classes]),
                    objects=chosen,
                    targets=target.boxes[chosen],
                )
            )
        return regions

    def losses(
        self, features: list[Tensor], regions: list[Regions], targets: list[Target], whole: Whole | None = None
    ) -> dict[str, Tensor]:
        """Compute the losses of the regions. With `whole` the numbers of regions below are those of the whole batch.

        Returns:
            loss_cls: cross-entropy of the classes, mean over all regions.
            loss_box_reg: L1 distance of the deltas of the foreground, divided by the number of all regions.
            loss_mask: binary cross-entropy of the masks of the foreground, mean over pixels; only with a mask head.
        """
        counts = [len(region.objects) for region in regions]
        chosen_boxes = [region.boxes[:number] for region, number in zip(regions, counts, strict=True)]
        foreground = torch.cat(chosen_boxes)
        # The mask targets are computed on the CPU. The copies start here, so they do not wait for the last stage.
        places, objects = fetch(foreground), fetch(torch.cat([region.objects for region in regions]))
        maps = self.prepare(features)
        pooled = self.pool(maps, [region.boxes for region in regions])
        logits, deltas = self.box_predictor(self.summarize(pooled))
        classes = torch.cat([region.classes for region in regions])
        count = max(1, len(classes) if whole is None else whole.regions)
        losses = {"loss_cls": F.cross_entropy(logits.float(), classes, reduction="sum") / count}
        chosen = self._foreground_rows(regions, pooled.device)
        wanted = box_ops.encode(foreground, torch.cat([region.targets for region in regions]), _DELTA_WEIGHTS)
        predicted = deltas[chosen, classes[chosen]].float()
        losses["loss_box_reg"] = F.l1_loss(predicted, wanted, reduction="sum") / count
        if self.mask_head is not None:
            masks = self.mask_head(self.choose_for_masks(maps, pooled, chosen, chosen_boxes))
            masks = masks[torch.arange(len(chosen), device=masks.device), classes[chosen]]
            parts = zip(targets, objects.read().split(counts), places.read().split(counts), strict=True)
            crops = [crop_targets(target.masks, own, boxes, masks.shape[-1]) for target, own, boxes in parts]
            truth = send(torch.cat(crops), masks.device).float()
            entropy = F.binary_cross_entropy_with_logits(masks.float(), truth, reduction="sum")
            masked = len(masks) if whole is None else whole.foreground
            losses["loss_mask"] = entropy / max(1, masked * masks.shape[-2] * masks.shape[-1])
        return losses

    @staticmethod
    def _foreground_rows(regions: list[Regions], device: torch.device) -> Tensor:
        """Return the rows of the foreground among the regions of all images, (f,) int64."""
        rows, start = [], 0
        for region in regions:
            rows.append(torch.arange(start, start + len(region.objects), device=device))
            start += len(region.boxes)
        return torch.cat(rows)

    def detect(self, features: list[Tensor], proposals: list[Tensor], sizes: list[tuple[int, int]]) -> list[Detections]:
        """Classify and refine the proposals and predict the masks of the detections.

        The detections of an image have scores above `score_threshold`, after non-maximum suppression within each class.
        At most `detections_per_image` are kept.

        Args:
            sizes: (height, width) of the resized images before padding.

        Returns:
            The detections of each image, in pixels of the resized image.
        """
        maps = self.prepare(features)
        logits, deltas = self.box_predictor(self.summarize(self.pool(maps, proposals)))
        counts = [len(boxes) for boxes in proposals]
        scores = logits.float().softmax(dim=1)
        boxes = box_ops.decode(deltas, torch.cat(proposals), _DELTA_WEIGHTS)
        found = [self._select(*parts) for parts in zip(scores.split(counts), boxes.split(counts), sizes, strict=True)]
        if self.mask_head is None:
            return found
        classes = torch.cat([detections.classes for detections in found])
        pooled = self.pool_for_masks(maps, [detections.boxes for detections in found])
        logits = self.mask_head(pooled)[torch.arange(len(classes), device=classes.device), classes]
        masks = logits.float().sigmoid().split([len(detections.boxes) for detections in found])
        return [detections._replace(masks=mask) for detections, mask in zip(found, masks, strict=True)]

    def _select(self, scores: Tensor, boxes: Tensor, size: tuple[int, int]) -> Detections:
        """Select the detections of one image from scores (r, K + 1) and boxes (r, K, 4)."""
        finite = scores.isfinite().all(dim=1) & boxes.isfinite().all(dim=(1, 2))
        likely = (scores[:, :-1] > self.config.score_threshold) & finite[:, None]
        region, category = likely.nonzero(as_tuple=True)
        scores, boxes = scores[region, category], box_ops.clip(boxes[region, category], *size)
        keep = batched_nms(boxes, scores, category, self.config.nms_threshold)[: self.config.detections_per_image]
        return Detections(boxes[keep], scores[keep], category[keep], None)


class Res5Heads(RoIHeads):
    """The heads of R50-C4. The last stage of the network is applied to each region, and all heads share its result."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        channels = stage_channels(config, 5)
        self.res5 = Res5(config)
        self.box_predictor = BoxPredictor(channels, config.num_classes)
        self.mask_head = MaskHead(channels, config) if config.masks else None

    def prepare(self, features: list[Tensor]) -> Sequence[Tensor]:
        return self.res5.project(features[0])

    def pool(self, maps: Sequence[Tensor], boxes: list[Tensor]) -> Tensor:
        pooled: Tensor = self.res5((maps[0], maps[1]), boxes)
        return pooled

    def summarize(self, pooled: Tensor) -> Tensor:
        return pooled.mean(dim=(2, 3))

    def pool_for_masks(self, maps: Sequence[Tensor], boxes: list[Tensor]) -> Tensor:
        return self.pool(maps, boxes)

    def choose_for_masks(
        self, maps: Sequence[Tensor], pooled: Tensor, rows: Tensor, foreground: list[Tensor]
    ) -> Tensor:
        return pooled[rows]
