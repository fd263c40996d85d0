"""Commands as users type them, on inputs that a CPU handles in a second; what they leave; and how runs are compared."""

import contextlib
import hashlib
import importlib.util
import io
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
import torture
import transfer_cases
import voc_cases
from safetensors import safe_open

from pretrain import train
from pretrain.recipe import load_recipe
from transfer.detection.annotations import generated

PRETRAIN = [
    *("demo", "name=tiny", "data.size=64", "batch_size=32", "epochs=2", "warmup_epochs=0", "projector.hidden=16"),
    *("projector.out=16", "projector.layers=2", "log_every=1", "spectrum_every=0", "save_minutes=0", "device=cpu"),
]
_IMAGES = ["data.kind=imagefolder", "data.root=folder", "data.name=mini", "workers=0", "device=cpu"]
_FEATURES = ["data.kind=shapes", "data.size=80", "workers=0", "device=cpu"]
_DETECTOR = [
    *("iterations=4", "milestones=[3]", "warmup_iterations=1", "batch_size=2", "lr=0.01", "precise_bn=2"),
    *("min_sizes=[48,64]", "max_size=96", "test_min_size=64", "test_max_size=96", "workers=0", "device=cpu"),
    *("model.anchor_sizes=[16,32]", "model.mask_channels=8", "model.rpn_batch=16", "model.roi_batch=8"),
    *("model.pool_size=4", "model.pre_nms_train=50", "model.post_nms_train=10", "checkpoint_every=1"),
    *("model.pre_nms_test=30", "model.post_nms_test=10", "model.score_threshold=0.01"),
]
_GRID = """name: grid
recipe: demo
overrides: [data.size=64, batch_size=32, epochs=1, warmup_epochs=0, projector.hidden=16, projector.out=16,
  projector.layers=2, workers=0, device=cpu, save_minutes=0]
cells: [method.axis=batch, method.axis=batch base_lr=0.3]
seeds: 1
tasks: [knn]
"""
_COCO = ["data.root=images", "data.name=figures", *_DETECTOR]
_CLASSIFIER = [*_IMAGES, "crop=16", "resize=20", "epochs=2", "batch_size=4"]

# name: the words after `intl-bench`
COMMANDS: dict[str, list[str]] = {
    "pretrain": ["pretrain", *PRETRAIN],
    "pretrain-2": ["pretrain", *PRETRAIN, "--processes", "2"],
    "linear": ["linear", "ours.pt", "--config", "imagefolder", *_CLASSIFIER, "batch_size=40", "milestones=[1]"],
    "linear-features": ["linear", "ours.pt", *_FEATURES, "epochs=3", "batch_size=40"],
    "finetune": ["finetune", "ours.pt", *_CLASSIFIER, "train_percent=10", "file_list=list.txt"],
    "knn": ["knn", "ours.pt", *_FEATURES],
    "coco": ["coco", "ours.pt", *_COCO, "--engine", "builtin"],
    "coco-detectron2": ["coco", "resnet18.pth", "--method", "Supervised", *_COCO, "--engine", "detectron2"],
    "voc": ["voc", "ours.pt", "data.root=VOCdevkit", "data.name=mini", *_DETECTOR, "--engine", "builtin"],
    "ablation": ["ablation", "grid.yaml"],
    "pack": ["data", "pack", "folder", "packed"],
    "convert": ["convert", "ours.pt", "exported.safetensors", "--to", "safetensors"],
    "convert-detectron2": ["convert", "ours.pt", "exported.pth", "--to", "detectron2"],
}
# Of the long form: commands that are killed at every call, those whose calls take seconds, and calls of other commands.
EVERY = ("pretrain", "linear", "knn", "pack", "convert")
SLOW = ("coco-detectron2",)
OTHERS = {"ablation": "runs/(pretrain|knn|features)/"}
SILENT = ("runs/fingerprints",)  # of these, without a warning
# The commands of the short form; the others repeat their code.
SHORT = ("pretrain", "linear", "coco", "knn", "pack", "convert")
# By-products: a run may go on without them, with one warning.
EXPLAINING = ("config.yaml", "command.txt", "log.txt", "views.png", "summary.json")
BY_PRODUCTS = ("tensorboard", "runs/features", "runs/fingerprints", *EXPLAINING)
# Fields that depend on time or on the machine.
_TIMED = {
    "code",
    "hardware",
    "img/s",
    "data",
    "seconds",
    "gpu_seconds",
    "gpu_joules",
    "wall_time_s",
    "peak_memory_mib",
    "created",
    "time",
    "data_time",
}
# Digests of files that hold such fields.
_TIMED_DIGESTS = {"checkpoint_sha256", "intl_bench_sha256", "source_sha256", "log"}
_MATERIAL = ("ours.pt", "resnet18.pth", "images", "folder", "list.txt", "VOCdevkit", "grid.yaml")


def make_material(folder: Path) -> Path:
    """Make the inputs of all commands: a checkpoint, images with and without boxes, a list of files, and a grid."""
    folder.mkdir(parents=True, exist_ok=True)
    with contextlib.chdir(folder):
        train.run(load_recipe(PRETRAIN[0], [*PRETRAIN[1:], "save_minutes=10"])).rename("ours.pt")
        shutil.rmtree("runs")
        generated.write(Path("images"), train=6, test=3)
        torch.manual_seed(0)
        torch.save(torchvision.models.resnet18().state_dict(), "resnet18.pth")
        transfer_cases.make_folder(Path("folder"), train=27)
        voc_cases.write(Path("VOCdevkit"))
        _split_voc(Path("VOCdevkit"))
        names = [path.name for path in sorted(Path("folder/train").rglob("*.png"))[::10]]
        Path("list.txt").write_text("".join(f"{name}\n" for name in names))
        Path("grid.yaml").write_text(_GRID)
    return folder


def _split_voc(root: Path) -> None:
    """Name the test images of VOC2007, which are those of training."""
    lists = root / "VOC2007" / "ImageSets" / "Main"
    shutil.copy(lists / "trainval.txt", lists / "test.txt")


def make_case(case: Path, material: Path) -> Path:
    """Make the working directory of a case and return the case's folder."""
    work = case / "work"
    work.mkdir(parents=True)
    for name in _MATERIAL:
        (work / name).symlink_to(material / name)
    return case


def made(work: Path) -> dict[str, Path]:
    """Return the files that commands made below a folder, without the material, by relative path."""
    found = {}
    for name in sorted(os.listdir(work)):
        path = work / name
        if path.is_symlink() or (name == "list.txt"):
            continue
        inner = sorted(path.rglob("*")) if path.is_dir() else [path]
        found |= {str(one.relative_to(work)): one for one in inner if one.is_file()}
    return found


def temporaries(work: Path) -> list[str]:
    """Return the names of temporaries of writes that did not end."""
    return [name for name in made(work) if Path(name).name.startswith(".") and name.endswith(".tmp")]


def results(work: Path) -> dict[str, str]:
    """Return the digest of each final file without what depends on time: equal for equal results.

    Files that depend on the history of a run or on its place are left out: earlier states, TensorBoard events, locks,
    side-cars, cached fingerprints, and what explains a run.
    """
    found = {}
    for name, path in made(work).items():
        left_out = name.endswith((".lock", ".sha256", ".tmp", ".1.pt", ".2.pt", ".png"))
        left_out = left_out or path.name in EXPLAINING
        if not left_out and "tensorboard" not in name and "runs/fingerprints" not in name:
            found[name] = hashlib.sha256(repr(_content(path)).encode()).hexdigest()[:16]
    return found


def _content(path: Path) -> Any:
    if path.suffix in (".pt", ".pth"):
        return plain(torch.load(path, weights_only=True, map_location="cpu"))
    if path.suffix == ".safetensors":
        with safe_open(path, "pt") as file:
            about = json.loads(file.metadata().get("config", "{}"))
            return plain({"about": about} | {key: file.get_tensor(key) for key in sorted(file.keys())})
    if path.suffix == ".json":
        return plain(json.loads(path.read_text()))
    if path.suffix == ".jsonl":
        return [plain(json.loads(line)) for line in path.read_text().splitlines()]
    if path.suffix == ".npy":
        return plain(torch.from_numpy(np.load(io.BytesIO(path.read_bytes()))))
    return hashlib.sha256(path.read_bytes()).hexdigest()


def plain(value: Any) -> Any:
    """Return a value whose text is equal for equal values; tensors become digests."""
    if isinstance(value, torch.Tensor):
        raw = value.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        return f"{value.dtype} {tuple(value.shape)} {hashlib.sha256(raw).hexdigest()[:16]}"
    if isinstance(value, dict):
        left = _TIMED | _TIMED_DIGESTS
        return [(key, plain(value[key])) for key in sorted(value, key=str) if key not in left]
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    return value


def records(work: Path) -> dict[str, str]:
    """Return the text of each record below a folder."""
    return {
        name: path.read_text() for name, path in made(work).items() if "/records/" in name and path.suffix == ".json"
    }


def require(name: str) -> None:
    """Skip the test if a command needs a package that is not installed, or belongs to the long form."""
    if name not in SHORT and not torture.LONG:
        pytest.skip("long form")
    if "detectron2" in name and "--engine" in COMMANDS[name] and importlib.util.find_spec("detectron2") is None:
        pytest.skip("Detectron2 is not installed")


def changed(expected: dict[str, str], found: dict[str, str], command: str = "") -> list[str]:
    """Compare the `results` of two runs; return one text for each file that differs.

    Of the engine Detectron2, which draws new random numbers after a resume, only the names of the files are compared.
    """
    if command == "coco-detectron2":
        expected, found = dict.fromkeys(expected, ""), dict.fromkeys(found, "")
    return [
        f"{name} {'is missing' if name not in found else 'is new' if name not in expected else 'differs'}"
        for name in sorted(expected.keys() | found.keys())
        if expected.get(name) != found.get(name)
    ]
