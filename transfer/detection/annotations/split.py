"""Annotated images of a split, checked before anything starts."""

from pathlib import Path

import numpy as np

from intl_bench.core import datasets
from intl_bench.core.errors import InputError
from transfer.detection.annotations import coco, voc
from transfer.detection.annotations.objects import Annotations
from transfer.detection.config import AnnotatedDataConfig

__all__ = ["read_split"]


def read_split(config: AnnotatedDataConfig, split: str, *, masks: bool) -> Annotations:
    """The annotated images of a split, "train" or "test".

    Training images without any object, or with crowds alone, are left out, as Detectron2 does.

    Args:
        masks: whether the objects' outlines are needed.

    Raises:
        InputError: something in the annotations is wrong, an image file is missing or of another size, or the
            categories are not those of the published data set that they are named after.
    """
    if split not in ("train", "test"):
        raise ValueError(f"split={split}: expected train or test")
    if not config.root:
        raise InputError(f"data.root is not set: expected where {config.name} is, such as data.root=PATH")
    root = Path(config.root).expanduser()
    training = split == "train"
    files = [root / file for file in (config.train if training else config.test)]
    if config.kind == "voc":
        if masks:
            raise InputError("data.kind=voc: VOC's XML has no outlines; set model.masks=false")
        annotations = voc.read(files, root, name=config.name)
    else:
        folder = root / (config.train_images if training else config.test_images)
        annotations = coco.read(files[0], folder, name=config.name, masks=masks, evaluated=not training)
    datasets.check_categories(config.name, where=str(files[0]), category_names=annotations.category_names)
    return _for_training(annotations) if training else annotations


def _for_training(annotations: Annotations) -> Annotations:
    first, last = annotations.first, annotations.last
    single = np.concatenate([[0], (~annotations.crowd).cumsum()])
    usable = single[last] > single[first]
    notes = []
    if empty := int((first == last).sum()):
        notes.append(f"images without objects, not trained on: {empty}")
    if crowded := int((~usable & (first < last)).sum()):
        notes.append(f"images with crowd regions alone, not trained on: {crowded}")
    if crowds := int(annotations.crowd.sum()):
        notes.append(f"crowd regions, not trained on: {crowds}")
    if not usable.any():
        raise InputError(
            f"{annotations.path}: no image has an object to train on ({'; '.join(notes)}); "
            "expected annotations with iscrowd 0: is this the right file?"
        )
    return annotations.select(usable, notes)
