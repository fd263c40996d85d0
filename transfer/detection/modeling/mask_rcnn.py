"""Mask R-CNN R50-C4 on torchvision's operators: Detectron2's parameter names, its losses and its detections."""

import torch
from torch import Tensor, nn

from intl_bench.core.errors import InputError
from transfer.detection.config import ModelConfig
from transfer.detection.modeling import boxes as box_ops
from transfer.detection.modeling.resnet import Trunk
from transfer.detection.modeling.roi_heads import RoIHeads
from transfer.detection.modeling.rpn import RPN
from transfer.detection.structures import Detections, Target


class MaskRCNN(nn.Module):
    """Images -> losses in training, detections in test; Faster R-CNN where the configuration has no masks.

    The parameters have the names, shapes and initialization of Detectron2's `GeneralizedRCNN` with `Res5ROIHeads`, plus
    the norm `roi_heads.res5.norm`. Nothing is frozen.
    """

    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.backbone = Trunk(config)
        self.proposal_generator = RPN(config)
        self.roi_heads = RoIHeads(config)
        self.register_buffer("pixel_mean", torch.tensor(config.pixel_mean)[:, None, None], persistent=False)
        self.register_buffer("pixel_std", torch.tensor(config.pixel_std)[:, None, None], persistent=False)

    def forward(
        self, images: list[Tensor], targets: list[Target], generators: list[torch.Generator]
    ) -> dict[str, Tensor]:
        """The losses of a batch; their sum is the loss to minimize.

        Args:
            images: (3, h, w) uint8 each, RGB.
            targets: ground truth on the model's device, in pixels of these images, as `check_targets` wants it; an
                image may have no object.
            generators: one for each image, on the model's device; an image's draws come from its own alone, so they do
                not depend on the images beside it.

        Returns:
            loss_rpn_cls, loss_rpn_loc, loss_cls, loss_box_reg, and loss_mask where there are masks; scalars.

        Raises:
            InputError: shapes that do not fit.
            DivergedError: proposals are not finite.
        """
        _check_images(images)
        if not len(images) == len(targets) == len(generators):
            raise InputError(
                f"{len(images)} images, {len(targets)} targets, {len(generators)} generators: expected as many of each"
            )
        features = self.backbone(self._batch(images))
        predictions = self.proposal_generator.predict(features)
        samples = self.proposal_generator.sample(predictions.anchors, targets, generators)
        losses = self.proposal_generator.losses(predictions, samples)
        proposals = self.proposal_generator.propose(predictions, [_size(image) for image in images])
        regions = self.roi_heads.sample(proposals, targets, generators)
        return losses | self.roi_heads.losses(features, regions, targets)

    @torch.inference_mode()
    def detect(self, images: list[Tensor], sizes: list[tuple[int, int]]) -> list[Detections]:
        """What is in the images, best first, in pixels of the image files.

        Args:
            images: (3, h, w) uint8 each, RGB.
            sizes: (height, width) of the files.

        Raises:
            InputError: shapes that do not fit.
            ValueError: the model is in training mode.
        """
        if self.training:
            raise ValueError("detect: the model is in training mode; call eval() first")
        _check_images(images)
        features = self.backbone(self._batch(images))
        seen = [_size(image) for image in images]
        proposals = self.proposal_generator.propose(self.proposal_generator.predict(features), seen)
        found = self.roi_heads.detect(features, proposals, seen)
        return [_rescale(*parts) for parts in zip(found, seen, sizes, strict=True)]

    def _batch(self, images: list[Tensor]) -> Tensor:
        """Normalized images, padded with zeros on the right and below to the largest height and width: (N, 3, H, W)."""
        height, width = max(image.shape[1] for image in images), max(image.shape[2] for image in images)
        batch = self.pixel_mean.new_zeros((len(images), 3, height, width))
        for row, image in zip(batch, images, strict=True):
            row[:, : image.shape[1], : image.shape[2]] = (image - self.pixel_mean) / self.pixel_std
        return batch


def check_targets(targets: list[Target], config: ModelConfig) -> None:
    """Checks the ground truth of some images, which has to be on the CPU: a GPU would have to be waited for.

    Raises:
        InputError: shapes that do not fit, empty or non-finite boxes, unknown classes.
    """
    for n, (boxes, classes, masks) in enumerate(targets):
        if boxes.shape != (len(boxes), 4) or classes.shape != boxes.shape[:1] or classes.dtype != torch.int64:
            raise InputError(
                f"target {n}: boxes {tuple(boxes.shape)}, classes {tuple(classes.shape)} {classes.dtype}: "
                "expected (n, 4) and (n,) int64"
            )
        if config.masks and len(masks) != len(boxes):
            raise InputError(f"target {n}: {len(masks)} masks for {len(boxes)} boxes: expected one for each")
        valid = box_ops.nonempty(boxes) & boxes.isfinite().all(dim=1)
        valid &= (classes >= 0) & (classes < config.num_classes)
        if not valid.all():
            bad = int((~valid).nonzero()[0, 0])
            raise InputError(
                f"target {n}: an object with box {boxes[bad].tolist()} and class {int(classes[bad])}: "
                f"expected finite x0 < x1, y0 < y1 and a class from 0 to {config.num_classes - 1}"
            )


def _check_images(images: list[Tensor]) -> None:
    for image in images:
        if image.ndim != 3 or image.shape[0] != 3 or image.dtype != torch.uint8 or 0 in image.shape:
            raise InputError(f"image {tuple(image.shape)} {image.dtype}: expected (3, h, w) uint8")
    if not images:
        raise InputError("no images: expected at least one")


def _size(image: Tensor) -> tuple[int, int]:
    return image.shape[1], image.shape[2]


def _rescale(found: Detections, seen: tuple[int, int], size: tuple[int, int]) -> Detections:
    """Detections in an image of (height, width) `size` instead of `seen`; boxes that become empty are dropped."""
    boxes = found.boxes.clone()
    boxes[:, 0::2] *= size[1] / seen[1]  # numbers, not a tensor: that would be a copy to the device
    boxes[:, 1::2] *= size[0] / seen[0]
    boxes = box_ops.clip(boxes, *size)
    keep = box_ops.nonempty(boxes).nonzero()[:, 0]  # not the mask: each use of it would be a wait
    masks = None if found.masks is None else found.masks[keep]
    return Detections(boxes[keep], found.scores[keep], found.classes[keep], masks)


def build_model(config: ModelConfig) -> MaskRCNN:
    """A freshly initialized detector, initialized as Detectron2 does from torch's global generator."""
    return MaskRCNN(config)
