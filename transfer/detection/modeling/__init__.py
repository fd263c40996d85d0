"""Mask R-CNN R50-C4 on torchvision's operators, under Detectron2's parameter names."""
