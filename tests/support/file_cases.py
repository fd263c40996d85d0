"""Valid files of every kind that the suite reads, for tests that damage them, and the commands that read them."""

import io
import json
import pickle
import time
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import voc_cases
from layout_cases import random_state
from PIL import Image
from safetensors.torch import save

import pretrain.train  # noqa: F401 - here, so that the time of a refusal is not that of an import
from intl_bench.cli import main
from pretrain.backbone import build_backbone
from pretrain.checkpoint import Checkpoint, Inputs, Origin, Preprocessing, export_backbone
from pretrain.images import pack_command
from pretrain.recipe import load_recipe

SECONDS = 2.0  # of CPU time: a refusal takes less


def refused(
    arguments: Sequence[str], capfd: pytest.CaptureFixture[str], *fragments: str, codes: Sequence[int] = (2,)
) -> str:
    """Run a command and check that it ends in one line that has all fragments. Return the line."""
    before = time.process_time()
    code = main(list(arguments))
    spent = time.process_time() - before
    output = capfd.readouterr()
    lines = output.err.strip().splitlines()
    assert code in codes, output.err
    assert len(lines) == 1, output.err
    assert lines[0].startswith("intl-bench: ")
    assert lines[0].isprintable()
    for fragment in fragments:
        assert fragment in lines[0]
    assert len(lines[0]) < 1500
    assert spent < SECONDS
    return lines[0]


def image(kind: str = "JPEG", size: tuple[int, int] = (32, 32), mode: str = "RGB") -> bytes:
    """Return the bytes of an image file."""
    pixels = np.random.default_rng(0).integers(0, 255, (size[1], size[0], 3), np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(stream, kind)
    return stream.getvalue()


def image_folder(root: Path) -> Path:
    """Write an image folder with two classes, and return `root`."""
    for split in ("train", "val"):
        for name in ("a", "b"):
            (root / split / name).mkdir(parents=True)
            for number in range(2):
                (root / split / name / f"{name}_{number}.JPEG").write_bytes(image())
    return root


def packs(root: Path) -> Path:
    """Write the packs of an image folder, and return their folder."""
    image_folder(root / "images")
    pack_command.write(pack_command.prepare(root / "images", root / "packs"))
    return root / "packs"


def arrays() -> dict[str, np.ndarray]:
    """Return the arrays of an .npz data set: 40 images of 10 classes in each split."""
    drawn = np.random.default_rng(0).integers(0, 255, (40, 8, 8, 3), np.uint8)
    return {
        f"{split}_{name}": drawn if name == "x" else np.arange(40) % 10 for split in ("train", "test") for name in "xy"
    }


def npz(values: dict[str, np.ndarray], *, compressed: bool = False) -> bytes:
    """Return the bytes of an .npz archive."""
    stream = io.BytesIO()
    (np.savez_compressed if compressed else np.savez)(stream, **values)  # type: ignore[arg-type]
    return stream.getvalue()


def coco_document() -> dict[str, Any]:
    """Return COCO annotations of two images."""
    square = [10, 10, 20, 10, 20, 20, 10, 20]
    objects = [
        {"id": n, "image_id": n, "category_id": 1, "bbox": [10, 10, 10, 10], "segmentation": [square], "area": 100}
        | {"iscrowd": 0}
        for n in (1, 2)
    ]
    images = [{"id": n, "file_name": f"{n}.jpg", "width": 32, "height": 32} for n in (1, 2)]
    return {"images": images, "annotations": objects, "categories": [{"id": 1, "name": "dog"}]}


def coco_folder(root: Path) -> Path:
    """Write a COCO data set with two images in each split, and return `root`."""
    (root / "annotations").mkdir(parents=True)
    for split in ("train2017", "val2017"):
        (root / split).mkdir()
        for number in (1, 2):
            (root / split / f"{number}.jpg").write_bytes(image())
        (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(coco_document()))
    return root


def voc_folder(root: Path) -> Path:
    """Write a small VOCdevkit, and return `root`."""
    root.mkdir()
    return voc_cases.write(root)


def backbone() -> dict[str, torch.Tensor]:
    """Return the tensors of a ResNet-18 with torchvision's names."""
    return {key: torch.full_like(value, 0.001) for key, value in random_state("resnet18").items()}


def small_checkpoint(path: Path) -> str:
    """Write a complete backbone of this project, which is small, and return its path."""
    recipe = load_recipe("demo")
    checkpoint = Checkpoint(
        path=path,
        sha256="",
        backbone=dict(build_backbone(recipe.backbone.name, stem=recipe.backbone.stem).state_dict()),
        origin=Origin.TRAINED,
        method="INTL",
        architecture=recipe.backbone,
        preprocessing=Preprocessing.of(recipe.data),
        seed=0,
        recipe=recipe,
        inputs=Inputs(data="0" * 64),
        epoch=recipe.epochs,
    )
    export_backbone(path, checkpoint, {})
    return str(path)


def zip_parts(value: Any) -> dict[str, bytes]:
    """Return the parts of a PyTorch file by name."""
    stream = io.BytesIO()
    torch.save(value, stream)
    with zipfile.ZipFile(stream) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def zipped(parts: dict[str, bytes], *, compression: int = zipfile.ZIP_STORED) -> bytes:
    """Return a zip archive with these parts."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", compression) as archive:
        for name, content in parts.items():
            archive.writestr(name, content)
    return stream.getvalue()


def torch_file(value: Any, *, old: bool = False) -> bytes:
    """Return the bytes of a PyTorch file, of the format before PyTorch 1.6 if `old`."""
    stream = io.BytesIO()
    torch.save(value, stream, _use_new_zipfile_serialization=not old)
    return stream.getvalue()


def safetensors_file(header: bytes, data: bytes = b"", *, length: int | None = None) -> bytes:
    """Return a safetensors file with any header."""
    return (len(header) if length is None else length).to_bytes(8, "little") + header + data


SMALL = {"conv1.weight": torch.arange(6.0).reshape(2, 3), "bn1.bias": torch.ones(4)}
WHOLE: dict[str, Callable[[], bytes]] = {
    "PyTorch": lambda: torch_file(SMALL),
    "old PyTorch": lambda: torch_file(SMALL, old=True),
    "safetensors": lambda: save(SMALL),
    "pickle": lambda: pickle.dumps({key: value.numpy() for key, value in SMALL.items()}, protocol=2),
}
