"""Average precision as COCO and VOC define it, and pictures of the worst images."""
