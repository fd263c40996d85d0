"""The images of the engine Detectron2: read as by the built-in engine, resized and flipped by Detectron2."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.data import DatasetMapper
from detectron2.data.transforms import AugInput

from intl_bench.core.errors import InputError
from transfer.detection.transforms import read_image


class Mapper(DatasetMapper):
    """Detectron2's mapper with the images of `read_image`. Its errors name the file."""

    def __call__(self, dataset_dict: dict[str, Any]) -> dict[str, Any]:
        entry = copy.deepcopy(dataset_dict)  # Detectron2 changes coordinates in place
        image = read_image(Path(entry["file_name"]), (entry["width"], entry["height"]))
        found, expected = f"{image.width} x {image.height}", f"{entry['width']} x {entry['height']}"
        if found != expected:
            raise InputError(
                f"{entry['file_name']}: cannot be read as annotated ({found} pixels; expected {expected}); restore it"
            )
        resized = AugInput(np.asarray(image))
        transforms = self.augmentations(resized)
        entry["image"] = torch.as_tensor(np.ascontiguousarray(resized.image.transpose(2, 0, 1)))
        if self.is_train:
            self._transform_annotations(entry, transforms, resized.image.shape[:2])
        else:
            del entry["annotations"]
        return entry
