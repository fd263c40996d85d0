"""Mask R-CNN on torchvision's operators, with the parameter names, losses and detections of Detectron2."""

import torch
from torch import Tensor, nn

from intl_bench.core.errors import InputError
from transfer.detection.config import ModelConfig
from transfer.detection.modeling import boxes as box_ops
from transfer.detection.modeling.fpn import Pyramid, PyramidHeads
from transfer.detection.modeling.resnet import Trunk
from transfer.detection.modeling.roi_heads import Regions, Res5Heads, RoIHeads
from transfer.detection.modeling.rpn import RPN, Predictions, Samples
from transfer.detection.structures import Detections, Target, Whole


class MaskRCNN(nn.Module):
    """Mask R-CNN, or Faster R-CNN if the configuration has no masks.

    The parameters have the names, shapes and initialization of Detectron2's `GeneralizedRCNN` with `Res5ROIHeads`, plus
    the norm `roi_heads.res5.norm`, or with `FPN` and `StandardROIHeads`. No parameter is frozen; see `resnet.freeze`.
    """

    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.backbone = Pyramid(config) if config.kind == "fpn" else Trunk(config)
        self.proposal_generator = RPN(config)
        self.roi_heads: RoIHeads = PyramidHeads(config) if config.kind == "fpn" else Res5Heads(config)
        self.register_buffer("pixel_mean", torch.tensor(config.pixel_mean)[:, None, None], persistent=False)
        self.register_buffer("pixel_std", torch.tensor(config.pixel_std)[:, None, None], persistent=False)

    def forward(
        self,
        images: list[Tensor],
        targets: list[Target],
        generators: list[torch.Generator],
        whole: Whole | None = None,
    ) -> dict[str, Tensor]:
        """Compute the losses of a batch. Their sum is the loss to minimize.

        Args:
            images: (3, h, w) uint8 each, RGB.
            targets: ground truth on the device of the model, in pixels of these images, valid as in `check_targets`. An
                image may have no object.
            generators: one generator for each image, on the device of the model. All draws of an image come from its
                generator, so they do not depend on the other images.
            whole: the batch, if the images are a part of it; the sum of the losses over all parts is that of the batch.

        Returns:
            loss_rpn_cls, loss_rpn_loc, loss_cls, loss_box_reg, and loss_mask if the detector has masks; scalars.

        Raises:
            InputError: an image has an invalid shape or type, or the lists differ in length.
            DivergedError: proposals are not finite.
        """
        _check_images(images)
        if not len(images) == len(targets) == len(generators):
            raise InputError(
                f"{len(images)} images, {len(targets)} targets, {len(generators)} generators: expected equal numbers"
            )
        features = self.backbone(self.preprocess(images, whole and (whole.height, whole.width)))
        predictions, samples, regions = self._sample(features, images, targets, generators)
        losses = self.proposal_generator.losses(predictions, samples, whole)
        return losses | self.roi_heads.losses(features, regions, targets, whole)

    @torch.no_grad()
    def count_regions(
        self, images: list[Tensor], targets: list[Target], generators: list[torch.Generator], size: tuple[int, int]
    ) -> tuple[int, int]:
        """Count the regions, and those that are foreground, that `forward` computes the losses of these images on.

        Args:
            size: height and width that the images are padded to.
        """
        features = self.backbone(self.preprocess(images, size))
        _, _, regions = self._sample(features, images, targets, generators)
        return sum(len(each.boxes) for each in regions), sum(len(each.objects) for each in regions)

    def _sample(
        self, features: list[Tensor], images: list[Tensor], targets: list[Target], generators: list[torch.Generator]
    ) -> tuple[Predictions, list[Samples], list[Regions]]:
        """Draw the anchors and the regions that the losses are computed on."""
        predictions = self.proposal_generator.predict(features)
        samples = self.proposal_generator.sample(predictions.anchors, targets, generators)
        proposals = self.proposal_generator.propose(predictions, [_size(image) for image in images])
        return predictions, samples, self.roi_heads.sample(proposals, targets, generators)

    @torch.inference_mode()
    def detect(self, images: list[Tensor], sizes: list[tuple[int, int]]) -> list[Detections]:
        """Detect objects in images.

        Args:
            images: (3, h, w) uint8 each, RGB.
            sizes: (height, width) of each image file.

        Returns:
            The detections of each image in order of decreasing score, in pixels of the image file.

        Raises:
            InputError: an image has an invalid shape or type.
            ValueError: the model is in training mode.
        """
        if self.training:
            raise ValueError("detect: the model is in training mode; call eval() first")
        _check_images(images)
        features = self.backbone(self.preprocess(images))
        input_sizes = [_size(image) for image in images]
        proposals = self.proposal_generator.propose(self.proposal_generator.predict(features), input_sizes)
        found = self.roi_heads.detect(features, proposals, input_sizes)
        return [_rescale(*parts) for parts in zip(found, input_sizes, sizes, strict=True)]

    def preprocess(self, images: list[Tensor], size: tuple[int, int] | None = None) -> Tensor:
        """Normalize images (3, h, w) and pad them with zeros on the right and at the bottom to one size.

        Args:
            size: height and width; the default is the largest height and width of the images.

        Returns:
            (N, 3, height, width). For a pyramid, both are rounded up to a multiple of the stride of p5.
        """
        height, width = size or largest_size(images)
        if self.config.kind == "fpn":
            step = self.config.strides[-2]
            height, width = -(-height // step) * step, -(-width // step) * step
        batch = self.pixel_mean.new_zeros((len(images), 3, height, width))
        for row, image in zip(batch, images, strict=True):
            row[:, : image.shape[1], : image.shape[2]] = (image - self.pixel_mean) / self.pixel_std
        return batch


def check_targets(targets: list[Target], config: ModelConfig) -> None:
    """Check the ground truth of some images. It must be on the CPU, because a check on a GPU makes the host wait.

    Raises:
        InputError: a shape or type is invalid, a box is empty or not finite, or a class is unknown.
    """
    for n, (boxes, classes, masks) in enumerate(targets):
        if boxes.shape != (len(boxes), 4) or classes.shape != boxes.shape[:1] or classes.dtype != torch.int64:
            raise InputError(
                f"target {n}: boxes {tuple(boxes.shape)}, classes {tuple(classes.shape)} {classes.dtype}: "
                "expected (n, 4) and (n,) int64"
            )
        if config.masks and len(masks) != len(boxes):
            raise InputError(f"target {n}: {len(masks)} masks for {len(boxes)} boxes: expected one mask for each box")
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


def largest_size(images: list[Tensor]) -> tuple[int, int]:
    """Return the largest height and the largest width of images (3, h, w)."""
    return max(image.shape[1] for image in images), max(image.shape[2] for image in images)


def _size(image: Tensor) -> tuple[int, int]:
    return image.shape[1], image.shape[2]


def _rescale(found: Detections, input_size: tuple[int, int], size: tuple[int, int]) -> Detections:
    """Scale detections from an image of `input_size` to one of `size`, both (height, width), and drop empty boxes."""
    boxes = found.boxes.clone()
    boxes[:, 0::2] *= size[1] / input_size[1]  # a number, because a tensor needs a copy to the device
    boxes[:, 1::2] *= size[0] / input_size[0]
    boxes = box_ops.clip(boxes, *size)
    keep = box_ops.nonempty(boxes).nonzero()[:, 0]  # positions: each use of a mask makes the host wait
    masks = None if found.masks is None else found.masks[keep]
    return Detections(boxes[keep], found.scores[keep], found.classes[keep], masks)


def build_model(config: ModelConfig) -> MaskRCNN:
    """Build a detector with Detectron2's initialization, drawn from torch's global generator."""
    return MaskRCNN(config)
