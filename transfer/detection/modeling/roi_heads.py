"""The heads of the regions: conv5 of each proposal, shared by the class, the box and the mask."""

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
from transfer.detection.structures import Detections, Target

_WEIGHTS = (10.0, 5.0)
_THRESHOLD = 0.5
_FOREGROUND_FRACTION = 0.25


class Regions(NamedTuple):
    """The regions of one image that the losses are computed on, the f foreground ones first.

    Attributes:
        boxes: (r, 4).
        classes: (r,) int64, `num_classes` for background.
        objects: (f,) int64, the objects of the foreground.
        targets: (f, 4) boxes of those objects.
    """

    boxes: Tensor
    classes: Tensor
    objects: Tensor
    targets: Tensor


class BoxPredictor(nn.Module):
    """Region features (r, C) -> class logits (r, K + 1), background last, and deltas (r, K, 4), one for each class."""

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
    """Features (f, C, s, s) -> logits (f, K, 2 s, 2 s) of one mask for each class."""

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


class RoIHeads(nn.Module):
    """Samples, pools and classifies regions."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        channels = stage_channels(config, 5)
        self.res5 = Res5(config)
        self.box_predictor = BoxPredictor(channels, config.num_classes)
        self.mask_head = MaskHead(channels, config) if config.masks else None

    @torch.no_grad()
    def sample(
        self, proposals: list[Tensor], targets: list[Target], generators: list[torch.Generator]
    ) -> list[Regions]:
        """Draws the regions of every image from its proposals and its objects' boxes, a quarter foreground if possible.

        Foreground overlaps an object by at least 0.5. Without an object everything is background.
        """
        candidates = [torch.cat([some, target.boxes]) for some, target in zip(proposals, targets, strict=True)]
        matched = [
            box_ops.match(box_ops.iou(target.boxes, boxes), _THRESHOLD, _THRESHOLD)
            for boxes, target in zip(candidates, targets, strict=True)
        ]
        labels = [labels for _, labels in matched]
        drawn = box_ops.sample(labels, self.config.roi_batch, _FOREGROUND_FRACTION, generators)
        regions = []
        for boxes, target, (objects, _), (foreground, background) in zip(
            candidates, targets, matched, drawn, strict=True
        ):
            chosen = objects[foreground]
            nothing = torch.full_like(background, self.config.num_classes)
            regions.append(
                Regions(
                    boxes=boxes[torch.cat([foreground, background])],
                    classes=torch.cat([target.classes[chosen], nothing]),
                    objects=chosen,
                    targets=target.boxes[chosen],
                )
            )
        return regions

    def losses(self, features: Tensor, regions: list[Regions], targets: list[Target]) -> dict[str, Tensor]:
        """Cross-entropy of the classes, L1 distance of the boxes over all regions, and cross-entropy of the masks."""
        counts = [len(region.objects) for region in regions]
        foreground = torch.cat([region.boxes[:number] for region, number in zip(regions, counts, strict=True)])
        # The mask targets are made on the CPU. Asked for before the heavy part, this need not wait for it.
        places, objects = fetch(foreground), fetch(torch.cat([region.objects for region in regions]))
        shared = self.res5(self.res5.project(features), [region.boxes for region in regions])
        logits, deltas = self.box_predictor(shared.mean(dim=(2, 3)))
        classes = torch.cat([region.classes for region in regions])
        count = max(1, len(classes))
        losses = {"loss_cls": F.cross_entropy(logits.float(), classes, reduction="sum") / count}
        chosen = self._foreground_rows(regions, shared.device)
        wanted = box_ops.encode(foreground, torch.cat([region.targets for region in regions]), _WEIGHTS)
        predicted = deltas[chosen, classes[chosen]].float()
        losses["loss_box_reg"] = F.l1_loss(predicted, wanted, reduction="sum") / count
        if self.mask_head is not None:
            masks = self.mask_head(shared[chosen])
            masks = masks[torch.arange(len(chosen), device=masks.device), classes[chosen]]
            parts = zip(targets, objects.read().split(counts), places.read().split(counts), strict=True)
            crops = [crop_targets(target.masks, some, boxes, masks.shape[-1]) for target, some, boxes in parts]
            truth = send(torch.cat(crops), masks.device).float()
            entropy = F.binary_cross_entropy_with_logits(masks.float(), truth, reduction="sum")
            losses["loss_mask"] = entropy / max(1, masks.numel())
        return losses

    @staticmethod
    def _foreground_rows(regions: list[Regions], device: torch.device) -> Tensor:
        """Rows of the foreground among the regions of all images, (f,) int64."""
        rows, start = [], 0
        for region in regions:
            rows.append(torch.arange(start, start + len(region.objects), device=device))
            start += len(region.boxes)
        return torch.cat(rows)

    def detect(self, features: Tensor, proposals: list[Tensor], sizes: list[tuple[int, int]]) -> list[Detections]:
        """Classified boxes, and their masks, in pixels of the images as the network sees them.

        Scores above `score_threshold`, non-maximum suppression in each class, at most `detections_per_image`.

        Args:
            sizes: (height, width) of the images before padding.
        """
        maps = self.res5.project(features)
        shared = self.res5(maps, proposals)
        logits, deltas = self.box_predictor(shared.mean(dim=(2, 3)))
        del shared
        counts = [len(boxes) for boxes in proposals]
        scores = logits.float().softmax(dim=1)
        boxes = box_ops.decode(deltas, torch.cat(proposals), _WEIGHTS)
        found = [self._select(*parts) for parts in zip(scores.split(counts), boxes.split(counts), sizes, strict=True)]
        if self.mask_head is None:
            return found
        classes = torch.cat([detections.classes for detections in found])
        shared = self.res5(maps, [detections.boxes for detections in found])
        logits = self.mask_head(shared)[torch.arange(len(classes), device=classes.device), classes]
        masks = logits.float().sigmoid().split([len(detections.boxes) for detections in found])
        return [detections._replace(masks=mask) for detections, mask in zip(found, masks, strict=True)]

    def _select(self, scores: Tensor, boxes: Tensor, size: tuple[int, int]) -> Detections:
        """Detections of one image from scores (r, K + 1) and boxes (r, K, 4)."""
        finite = scores.isfinite().all(dim=1) & boxes.isfinite().all(dim=(1, 2))
        likely = (scores[:, :-1] > self.config.score_threshold) & finite[:, None]
        region, category = likely.nonzero(as_tuple=True)
        scores, boxes = scores[region, category], box_ops.clip(boxes[region, category], *size)
        keep = batched_nms(boxes, scores, category, self.config.nms_threshold)[: self.config.detections_per_image]
        return Detections(boxes[keep], scores[keep], category[keep], None)
