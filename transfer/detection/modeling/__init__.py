"""Mask R-CNN R50-C4 and R50-FPN on torchvision's operators, under Detectron2's parameter names."""
