"""Annotated images: COCO's JSON, VOC's XML, and the flat arrays that both become."""
