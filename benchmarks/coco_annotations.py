"""Time reading and checking the annotations of a data set as large as COCO train2017, in total and by part.

    python benchmarks/coco_annotations.py --source FOLDER          118,287 images, 860,001 annotations; about a minute

FOLDER contains any small data set in the layout of COCO (annotations/instances_train2017.json, train2017/). Its entries
are repeated with new ids up to the requested number. Its image files are hard-linked, or copied, under new names. All
files are in the page cache during the measurement; opening them from a network disk takes longer.
"""

import argparse
import gc
import itertools
import json
import os
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import orjson

from transfer.detection.annotations.coco import read_coco
from transfer.detection.annotations.faults import Faults
from transfer.detection.annotations.image_sizes import check_image_sizes
from transfer.detection.annotations.split import read_split
from transfer.detection.config import AnnotatedDataConfig

LISTING, PICTURES = Path("annotations/instances_train2017.json"), Path("train2017")


def enlarge(source: Path, root: Path, images: int, objects: int) -> None:
    """Write the large data set."""
    document = json.loads((source / LISTING).read_text())
    of_image: dict[int, list[dict[str, Any]]] = {entry["id"]: [] for entry in document["images"]}
    for entry in document["annotations"]:
        of_image[entry["image_id"]].append(entry)
    (root / PICTURES).mkdir(parents=True)
    (root / LISTING).parent.mkdir()
    new_images, new_objects = [], []
    for number, entry in enumerate(itertools.islice(itertools.cycle(document["images"]), images), start=1):
        name = f"{number:012}.jpg"
        new_images.append({**entry, "id": number, "file_name": name})
        share = of_image[entry["id"]][: objects * number // images - len(new_objects)]
        new_objects += [{**one, "image_id": number, "id": len(new_objects) + i} for i, one in enumerate(share, 1)]
        first = root / PICTURES / f"{(number - 1) % len(document['images']) + 1:012}.jpg"
        if number > len(document["images"]):
            os.link(first, root / PICTURES / name)
        else:
            shutil.copyfile(source / PICTURES / entry["file_name"], first)
    (root / LISTING).write_text(json.dumps({**document, "images": new_images, "annotations": new_objects}))


def timed(run: Callable[[], Any]) -> tuple[float, Any]:
    gc.collect()
    start = time.perf_counter()
    result = run()
    return time.perf_counter() - start, result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, required=True)
    parser.add_argument("--images", type=int, default=118_287)
    parser.add_argument("--objects", type=int, default=860_001)
    parser.add_argument("--folder", type=Path, help="folder of the large data set, which is kept")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        root = options.folder or Path(temporary) / "coco"
        if not root.exists():
            enlarge(options.source, root, options.images, options.objects)
        megabytes = (root / LISTING).stat().st_size / 1e6
        whole, read = timed(lambda: read_split(AnnotatedDataConfig(root=str(root)), "train", masks=True))
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        everything = read_coco(root / LISTING, root / PICTURES, name="coco", masks=False, evaluated=False)
        ids, names = everything.image_ids.tolist(), [name.decode() for name in everything.file_names]
        sizes = np.stack([everything.widths, everything.heights], 1)
        headers, _ = timed(lambda: check_image_sizes(Faults(""), root / PICTURES, ids, names, sizes))
        gc.disable()
        parsing, _ = timed(lambda: orjson.loads((root / LISTING).read_bytes()))
    print(f"{len(everything)} images, {len(read.annotation_ids)} objects, {megabytes:.0f} MB of JSON: {read.notes}")
    print(f"total {whole:.1f} s, of which JSON {parsing:.1f} s, image headers {headers:.1f} s, peak {memory:.1f} GiB")


if __name__ == "__main__":
    main()
