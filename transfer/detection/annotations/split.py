"""Read the annotated images of a split."""

import os
from pathlib import Path

import numpy as np

from intl_bench.core import datasets
from intl_bench.core.data_folders import where_instead
from intl_bench.core.errors import InputError
from transfer.detection.annotations.categories import normalize
from transfer.detection.annotations.coco import read_coco
from transfer.detection.annotations.objects import Annotations
from transfer.detection.annotations.voc import CLASS_NAMES, describe_classes, find_class_names, read_voc
from transfer.detection.config import AnnotatedDataConfig


def read_split(config: AnnotatedDataConfig, split: str, *, masks: bool | None) -> Annotations:
    """Read and check the annotated images of a split, "train" or "test".

    As in Detectron2, training images without objects, or with only crowds, are left out.

    Args:
        masks: whether the outlines of the objects are needed; None: if an annotation has one.

    Raises:
        InputError: an annotation is invalid, an image file is missing or of another size, or the data set has the name
            of a published one but other categories, or the test images have only crowds.
    """
    if split not in ("train", "test"):
        raise ValueError(f"split={split}: expected train or test")
    if not config.root:
        raise InputError(f"data.root is not set: expected the folder of {config.name}; add data.root=PATH")
    root = Path(os.path.expanduser(config.root))
    training = split == "train"
    clip = config.boxes == "clip"
    files = [root / file for file in (config.train if training else config.test)]
    for name, file in zip(config.train if training else config.test, files, strict=True):
        if not file.exists():
            elsewhere = where_instead(root, [name], config.kind).text
            raise InputError(f"{file}: no such file{elsewhere or f'; intl-bench data check {root} looks for others'}")
    if config.kind == "voc":
        if masks:
            raise InputError("data.kind=voc: VOC has no outlines for model.masks=true; set model.masks=false")
        own = config.dataset != "voc0712"
        class_names = _find_class_names(config, root, split) if own else CLASS_NAMES
        annotations = read_voc(
            files, root, name=config.name, class_names=class_names, clip=clip, max_pixels=config.max_pixels
        )
        if own and training:
            annotations.notes.insert(0, describe_classes(class_names))
    else:
        folder = root / (config.train_images if training else config.test_images)
        annotations = read_coco(
            files[0],
            folder,
            name=config.name,
            masks=masks,
            evaluated=not training,
            clip=clip,
            max_pixels=config.max_pixels,
            percent=config.percent if training else None,
            fold=config.fold,
        )
    datasets.check_categories(
        config.name, where=str(files[0]), category_names=[normalize(one) for one in annotations.category_names]
    )
    if training:
        return _select_training_images(annotations)
    if annotations.crowd.all():  # also without any object
        raise InputError(
            f"{files[0]}: no object to score ({len(annotations.crowd)} crowds); expected annotations with iscrowd 0; "
            "use another file"
        )
    return annotations


def _find_class_names(config: AnnotatedDataConfig, root: Path, split: str) -> tuple[str, ...]:
    """Return the classes of the training images in VOC's format; of the test images if only these exist."""
    train, test = ([root / file for file in files] for files in (config.train, config.test))
    return find_class_names(train if split == "train" or all(path.exists() for path in train) else test)


def _select_training_images(annotations: Annotations) -> Annotations:
    """Keep the images with at least one object that is not a crowd."""
    first, last = annotations.first, annotations.last
    single = np.concatenate([[0], (~annotations.crowd).cumsum()])  # objects before each index that are not crowds
    usable = single[last] > single[first]
    notes = []
    if empty := int((first == last).sum()):
        notes.append(f"images without objects, not used in training: {empty}")
    if crowded := int((~usable & (first < last)).sum()):
        notes.append(f"images with only crowd regions, not used in training: {crowded}")
    if crowds := int(annotations.crowd.sum()):
        notes.append(f"crowd regions, not used in training: {crowds}")
    if not usable.any():
        raise InputError(
            f"{annotations.path}: no image has an object to train on ({'; '.join(notes)}); "
            "expected annotations with iscrowd 0; use another file"
        )
    return annotations.select(usable, notes)
