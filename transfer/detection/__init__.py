"""Mask R-CNN R50-C4 on torchvision's operators, under Detectron2's parameter names."""

from transfer.detection.modeling.mask_rcnn import MaskRCNN, build_model

__all__ = ["MaskRCNN", "build_model"]
