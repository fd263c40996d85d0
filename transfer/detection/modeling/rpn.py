"""The region proposal network."""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import nms

from intl_bench.core.copies import fetch
from intl_bench.core.errors import DivergedError
from transfer.detection.config import ModelConfig
from transfer.detection.modeling import boxes as box_ops
from transfer.detection.modeling.anchors import Anchors
from transfer.detection.modeling.resnet import stage_channels
from transfer.detection.structures import Target

_WEIGHTS = (1.0, 1.0)
_LOW, _HIGH = 0.3, 0.7
_FOREGROUND_FRACTION = 0.5
_NMS_THRESHOLD = 0.7


class Predictions(NamedTuple):
    """For n images and a anchors: logits (n, a), deltas (n, a, 4), and the anchors (a, 4)."""

    logits: Tensor
    deltas: Tensor
    anchors: Tensor


class Samples(NamedTuple):
    """The anchors of one image that the losses are computed on: positions, and what they are to be moved to.

    `foreground` (f,) and `background` (b,) are int64; `boxes` (f, 4) belong to the former.
    """

    foreground: Tensor
    background: Tensor
    boxes: Tensor


class Head(nn.Module):
    """Features (N, C, H, W) -> logits (N, A, H, W) and deltas (N, 4 A, H, W) of A anchors at every position."""

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
    """Scores and moves the anchors; the best of them are the proposals."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.anchors = Anchors(config)
        self.rpn_head = Head(stage_channels(config, 4), len(self.anchors.cells))

    def predict(self, features: Tensor) -> Predictions:
        """Logits and deltas in the order of the anchors: row, column, size, ratio."""
        logits, deltas = self.rpn_head(features)
        n, _, height, width = logits.shape
        return Predictions(
            logits.permute(0, 2, 3, 1).flatten(1),
            deltas.permute(0, 2, 3, 1).reshape(n, -1, 4),
            self.anchors(height, width),
        )

    @torch.no_grad()
    def sample(self, anchors: Tensor, targets: list[Target], generators: list[torch.Generator]) -> list[Samples]:
        """Draws the anchors of every image, half of them foreground if there are enough.

        An anchor is foreground from an overlap of 0.7 with an object on, or where none overlaps that object more, and
        background below 0.3. Without an object every anchor is background.
        """
        matched = [
            box_ops.match(box_ops.iou(target.boxes, anchors), _LOW, _HIGH, low_quality=True) for target in targets
        ]
        labels = [labels for _, labels in matched]
        drawn = box_ops.sample(labels, self.config.rpn_batch, _FOREGROUND_FRACTION, generators)
        return [
            Samples(foreground, background, target.boxes[objects[foreground]])
            for target, (objects, _), (foreground, background) in zip(targets, matched, drawn, strict=True)
        ]

    def losses(self, predictions: Predictions, samples: list[Samples]) -> dict[str, Tensor]:
        """Binary cross-entropy of the logits and L1 distance of the deltas.

        Both are summed and divided by `rpn_batch` times the number of images, however many were drawn.
        """
        logits, labels, deltas, targets = [], [], [], []
        for n, drawn in enumerate(samples):
            logits += [predictions.logits[n, drawn.foreground], predictions.logits[n, drawn.background]]
            labels += [torch.ones_like(logits[-2]), torch.zeros_like(logits[-1])]
            deltas.append(predictions.deltas[n, drawn.foreground])
            targets.append(box_ops.encode(predictions.anchors[drawn.foreground], drawn.boxes, _WEIGHTS))
        count = self.config.rpn_batch * len(samples)
        cross_entropy = F.binary_cross_entropy_with_logits(
            torch.cat(logits).float(), torch.cat(labels).float(), reduction="sum"
        )
        distance = F.l1_loss(torch.cat(deltas).float(), torch.cat(targets), reduction="sum")
        return {"loss_rpn_cls": cross_entropy / count, "loss_rpn_loc": distance / count}

    @torch.no_grad()
    def propose(self, predictions: Predictions, sizes: list[tuple[int, int]]) -> list[Tensor]:
        """The proposals of every image, best first: at most `post_nms_*` boxes (p, 4) inside it.

        Args:
            sizes: (height, width) of the images before padding.

        Raises:
            DivergedError: a box or score is not finite, in training; in test such boxes are dropped.
        """
        config = self.config
        before, after = (
            (config.pre_nms_train, config.post_nms_train)
            if self.training
            else (config.pre_nms_test, config.post_nms_test)
        )
        scores, order = predictions.logits.topk(min(before, predictions.logits.shape[1]), dim=1)
        boxes, summaries = [], []
        for n, (height, width) in enumerate(sizes):
            deltas = predictions.deltas[n, order[n]]
            moved = box_ops.decode(deltas[:, None], predictions.anchors[order[n]], _WEIGHTS)[:, 0]
            finite = moved.isfinite().all(dim=1) & scores[n].isfinite()
            clipped = box_ops.clip(moved, height, width)
            valid = finite & box_ops.nonempty(clipped)
            # To leave boxes out the host would have to wait. One without area suppresses none and is suppressed by
            # none, and with the lowest score it comes after all others.
            boxes.append((torch.where(valid[:, None], clipped, 0.0), torch.where(valid, scores[n].float(), -math.inf)))
            summaries.append(torch.stack([finite.all(), (~valid).sum()]))
        fetched = fetch(torch.stack(summaries))  # has arrived when the host, which waits in `nms`, goes on
        kept = [nms(*pair, _NMS_THRESHOLD) for pair in boxes]
        proposals = []
        for (clipped, _), chosen, (all_finite, left_out) in zip(boxes, kept, fetched.read().tolist(), strict=True):
            if self.training and not all_finite:
                raise DivergedError("the proposal network's boxes or scores are not finite; lower lr or warm up longer")
            proposals.append(clipped[chosen[: min(after, len(chosen) - left_out)]])
        return proposals
