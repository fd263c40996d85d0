"""The engines that train and run a detector: the built-in one and Detectron2."""
