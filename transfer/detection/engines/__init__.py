"""What trains and runs a detector: the built-in engine and Detectron2."""
