"""What Detectron2's data loaders read: annotations in the form of its dataset dicts, by workers that end as ours do."""

import functools
from collections.abc import Callable
from typing import Any

from detectron2.structures import BoxMode
from pycocotools import mask as coco_mask
from torch.utils.data import DataLoader, Dataset

from pretrain.images.loader import ignore_signals
from transfer.detection.annotations.objects import Annotations, Outline


class DatasetDicts(Dataset[dict[str, Any]]):
    """Annotations in the form of Detectron2's dataset dicts. Each is made when it is read. Crowds are left out."""

    def __init__(self, annotations: Annotations) -> None:
        self.annotations = annotations

    def __len__(self) -> int:
        return len(self.annotations)

    def __getitem__(self, index: int) -> dict[str, Any]:
        entry = self.annotations.images[index]
        objects = []
        for item in entry.objects:
            if not item.crowd:
                fields = {"bbox": item.box.tolist(), "bbox_mode": BoxMode.XYXY_ABS, "category_id": item.class_index}
                objects.append(fields if item.outline is None else {**fields, "segmentation": _compress(item.outline)})
        file = str(self.annotations.file(index))
        size = {"height": entry.height, "width": entry.width}
        return {"file_name": file, "image_id": entry.image_id, **size, "annotations": objects}


def _compress(outline: Outline) -> Any:
    """Compress a run-length encoding, as Detectron2's reader does. Polygons stay as they are."""
    return coco_mask.frPyObjects(outline, *outline["size"]) if isinstance(outline, dict) else outline


def has_encodings(annotations: Annotations) -> bool:
    """Return whether an object that is not a crowd has a run-length encoding, which needs INPUT.MASK_FORMAT=bitmask."""
    outlines = annotations.outlines
    return outlines is not None and bool((outlines.encoded[outlines.rows] & ~annotations.crowd).any())


def stopped_by_parent(loader: Any) -> Any:
    """Return a loader of Detectron2 whose workers ignore signals that stop the run; see `ignore_signals`."""
    inner = loader if isinstance(loader, DataLoader) else loader.dataset  # images grouped by their aspect ratio
    inner.worker_init_fn = functools.partial(_start_worker, inner.worker_init_fn)
    return loader


def _start_worker(start: Callable[[int], None] | None, number: int) -> None:
    ignore_signals(number)
    if start is not None:
        start(number)
