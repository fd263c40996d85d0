"""The region proposal network."""

import itertools
import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import batched_nms, nms

from intl_bench.core.copies import fetch
from intl_bench.core.errors import DivergedError
from transfer.detection.config import ModelConfig
from transfer.detection.modeling import boxes as box_ops
from transfer.detection.modeling.anchors import Anchors
from transfer.detection.modeling.resnet import stage_channels
from transfer.detection.structures import Target, Whole

_DELTA_WEIGHTS = (1.0, 1.0)
_BACKGROUND_OVERLAP, _FOREGROUND_OVERLAP = 0.3, 0.7
_FOREGROUND_FRACTION = 0.5
_NMS_THRESHOLD = 0.7


class Predictions(NamedTuple):
    """The outputs of the network for n images and A anchors: logits (n, A), deltas (n, A, 4) and anchors (A, 4).

    The anchors of one feature map follow those of the one before; `counts` holds the number of each map.
    """

    logits: Tensor
    deltas: Tensor
    anchors: Tensor
    counts: tuple[int, ...]


class Samples(NamedTuple):
    """The anchors of one image that the losses are computed on.

    Attributes:
        foreground, background: (f,) and (b,) int64, indices of anchors.
        boxes: (f, 4), box of the object of each foreground anchor.
    """

    foreground: Tensor
    background: Tensor
    boxes: Tensor


class Head(nn.Module):
    """The convolutions of the network, which all feature maps share.

    Features (N, C, H, W) -> logits (N, A, H, W) and deltas (N, 4 A, H, W) for the A anchors of every position.
    """

    def __init__(self, channels: int, anchors: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.objectness_logits = nn.Conv2d(channels, anchors, 1)
        self.anchor_deltas = nn.Conv2d(channels, 4 * anchors, 1)
        for layer in (self.conv, self.objectness_logits, self.anchor_deltas):
            assert layer.bias is not None
            nn.init.normal_(layer.weight, std=0.01)
            nn.init.zeros_(layer.bias)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        hidden = F.relu(self.conv(features))
        return self.objectness_logits(hidden), self.anchor_deltas(hidden)


class RPN(nn.Module):
    """The region proposal network. The anchors with the best scores, moved by the deltas, are the proposals."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.anchors = Anchors(config)
        channels = config.fpn_channels if config.kind == "fpn" else stage_channels(config, 4)
        self.rpn_head = Head(channels, self.anchors.cells.shape[1])

    def predict(self, features: list[Tensor]) -> Predictions:
        """Compute logits and deltas in the order of the anchors: map, row, column, size, ratio."""
        outputs = [self.rpn_head(level) for level in features]
        logits = [own.permute(0, 2, 3, 1).flatten(1) for own, _ in outputs]
        deltas = [own.permute(0, 2, 3, 1).reshape(len(own), -1, 4) for _, own in outputs]
        return Predictions(
            torch.cat(logits, dim=1),
            torch.cat(deltas, dim=1),
            self.anchors([(level.shape[2], level.shape[3]) for level in features]),
            tuple(own.shape[1] for own in logits),
        )

    @torch.no_grad()
    def sample(self, anchors: Tensor, targets: list[Target], generators: list[torch.Generator]) -> list[Samples]:
        """Draw the anchors of every image, at most half of them foreground.

        An anchor is foreground if its overlap with an object is at least 0.7, or if no other anchor overlaps that
        object more. Otherwise it is background if its overlap is below 0.3, and is not drawn if it is from 0.3 to 0.7.
        """
        matched = [
            box_ops.match(
                box_ops.iou(target.boxes, anchors), _BACKGROUND_OVERLAP, _FOREGROUND_OVERLAP, low_quality=True
            )
            for target in targets
        ]
        labels = [labels for _, labels in matched]
        drawn = box_ops.sample(labels, self.config.rpn_batch, _FOREGROUND_FRACTION, generators)
        return [
            Samples(foreground, background, target.boxes[objects[foreground]])
            for target, (objects, _), (foreground, background) in zip(targets, matched, drawn, strict=True)
        ]

    def losses(self, predictions: Predictions, samples: list[Samples], whole: Whole | None = None) -> dict[str, Tensor]:
        """Compute the binary cross-entropy of the logits and the L1 distance of the deltas.

        Both are sums, divided by `rpn_batch` times the number of images, or of images of `whole`. The divisor does not
        depend on the number of drawn anchors.
        """
        logits, labels, deltas, targets = [], [], [], []
        for n, drawn in enumerate(samples):
            logits += [predictions.logits[n, drawn.foreground], predictions.logits[n, drawn.background]]
            labels += [torch.ones_like(logits[-2]), torch.zeros_like(logits[-1])]
            deltas.append(predictions.deltas[n, drawn.foreground])
            targets.append(box_ops.encode(predictions.anchors[drawn.foreground], drawn.boxes, _DELTA_WEIGHTS))
        count = self.config.rpn_batch * (len(samples) if whole is None else whole.images)
        cross_entropy = F.binary_cross_entropy_with_logits(
            torch.cat(logits).float(), torch.cat(labels).float(), reduction="sum"
        )
        distance = F.l1_loss(torch.cat(deltas).float(), torch.cat(targets), reduction="sum")
        return {"loss_rpn_cls": cross_entropy / count, "loss_rpn_loc": distance / count}

    @torch.no_grad()
    def propose(self, predictions: Predictions, sizes: list[tuple[int, int]]) -> list[Tensor]:
        """Select the proposals of every image. Those of one feature map do not suppress those of another.

        Args:
            sizes: (height, width) of the images before padding.

        Returns:
            At most `post_nms_*` boxes (p, 4) inside each image, in order of decreasing score. In test, boxes and scores
            that are not finite are dropped.

        Raises:
            DivergedError: in training, a box or score is not finite.
        """
        config = self.config
        before, after = (
            (config.pre_nms_train, config.post_nms_train)
            if self.training
            else (config.pre_nms_test, config.post_nms_test)
        )
        best = [
            own.topk(min(before, own.shape[1]), dim=1) for own in predictions.logits.split(predictions.counts, dim=1)
        ]
        starts = itertools.accumulate(predictions.counts, initial=0)
        scores = torch.cat([own.values for own in best], dim=1)
        order = torch.cat([own.indices + start for own, start in zip(best, starts, strict=False)], dim=1)
        boxes, summaries = [], []
        for n, (height, width) in enumerate(sizes):
            deltas = predictions.deltas[n, order[n]]
            moved = box_ops.decode(deltas[:, None], predictions.anchors[order[n]], _DELTA_WEIGHTS)[:, 0]
            finite = moved.isfinite().all(dim=1) & scores[n].isfinite()
            clipped = box_ops.clip(moved, height, width)
            valid = finite & box_ops.nonempty(clipped)
            # The host would have to wait to remove invalid boxes here, so they become boxes without area and with the
            # lowest score. Such boxes do not change the suppression of the others, and they come last.
            boxes.append((torch.where(valid[:, None], clipped, 0.0), torch.where(valid, scores[n].float(), -math.inf)))
            summaries.append(torch.stack([finite.all(), (~valid).sum()]))
        fetched = fetch(torch.stack(summaries))  # the host waits in `nms` anyway; the copy is complete after that
        if len(best) == 1:
            kept = [nms(*pair, _NMS_THRESHOLD) for pair in boxes]
        else:
            maps = [torch.full_like(own.indices[0], number) for number, own in enumerate(best)]
            kept = [batched_nms(*pair, torch.cat(maps), _NMS_THRESHOLD) for pair in boxes]
        proposals = []
        for (clipped, _), chosen, (all_finite, left_out) in zip(boxes, kept, fetched.read().tolist(), strict=True):
            if self.training and not all_finite:
                raise DivergedError(
                    "the boxes or scores of the region proposal network are not finite; lower lr, or increase "
                    "warmup_iterations"
                )
            proposals.append(clipped[chosen[: min(after, len(chosen) - left_out)]])
        return proposals
