"""Compare the outputs of two checkouts: every weight, record, table and converted file of the same commands.

    python benchmarks/same_outputs.py run CHECKOUT FOLDER        # once for each checkout, minutes on 2 cores
    python benchmarks/same_outputs.py compare FOLDER FOLDER      # exit code 1 and one line per difference

Use it for a commit that must not change any result: compare it with the commit before. Times, memory and the version of
the code differ from run to run and are left out. `--renamed OLD=NEW` reads the key OLD of a state as NEW, for an
intended change of the checkpoint format.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "support"))

from tiny_runs import OVERRIDES

from pretrain import methods

HERE = Path(__file__).resolve().parents[1]
TINY = (
    "backbone.name=resnet10_narrow backbone.stem=imagenet projector.hidden=32 projector.out=64 batch_size=32 epochs=2 "
    "warmup_epochs=1 precision=fp32 workers=0 log_every=1 spectrum_every=6 data.kind=shapes data.name=shapes "
    "data.size=192 device=cpu"
)
METHODS = {name: " ".join(OVERRIDES.get(name, [])) for name in methods.names()}
DETECTION = (
    "iterations=4 milestones=[3] warmup_iterations=1 batch_size=1 lr=0.01 precise_bn=1 min_sizes=[48] max_size=64 "
    "test_min_size=48 test_max_size=64 workers=0 device=cpu model.anchor_sizes=[16,32] model.mask_channels=8 "
    "model.rpn_batch=16 model.roi_batch=8 model.pool_size=4 model.pre_nms_train=50 model.post_nms_train=10 "
    "model.pre_nms_test=30 model.post_nms_test=4 data.root=images data.name=figures --engine builtin"
)
FOLDER = "data.kind=imagefolder data.name=folder data.root=folder resize=32 crop=32 workers=0 device=cpu"
INTL = "runs/pretrain/cifar10_r18_intl/seed0/checkpoint.pt"
COMMANDS = (
    *(f"pretrain cifar10_r18_{method} {TINY} {more}" for method, more in METHODS.items()),
    f"pretrain cifar10_r18_intl {TINY} name=momentum method.momentum_target=true",
    f"pretrain cifar10_r18_intl {TINY} name=two --processes 2",
    f"pretrain cifar10_r18_intl {TINY} name=longer epochs=1 init={INTL}",
    *(f"knn runs/pretrain/cifar10_r18_{method}/seed0/checkpoint.pt" for method in METHODS),
    f"linear {INTL} epochs=3 --seeds 2",
    f"linear {INTL} --config imagefolder {FOLDER} epochs=2 batch_size=16",
    f"finetune {INTL} --config imagefolder {FOLDER} epochs=2 batch_size=6 train_percent=10 file_list=folder/list.txt",
    f"knn {INTL} --init random --seeds 2",
    f"coco {INTL} --seeds 2 {DETECTION}",
    *(f"convert {INTL} converted.{kind} --to {kind}" for kind in ("detectron2", "torchvision", "timm", "safetensors")),
    f"spectrum {INTL} --format csv",
    "knn converted.torchvision --method Other data.kind=shapes data.name=shapes data.size=192",
    "ablation power_reduced --dry-run",
    *(f"tables --format {form}" for form in ("markdown", "latex", "csv", "json", "html")),
    *(f"tables --results COMMITTED --format {form}" for form in ("markdown", "json")),
)
# Keys whose values differ from run to run, or with the version of the code.
VOLATILE = {
    *("code", "created", "hardware", "libraries", "peak_memory_mib", "wall_time_s", "img/s", "data", "sha256"),
    *("checkpoint_sha256", "seconds"),
}


def run(checkout: Path, folder: Path) -> int:
    """Run `COMMANDS` in `folder` with the code of `checkout`; save their output under `folder`/printed.

    Returns:
        The number of commands that failed.
    """
    from transfer.detection.annotations import generated

    (folder / "printed").mkdir(parents=True)
    generated.write(folder / "images", train=6, test=4)
    draw_folder(folder / "folder")
    (folder / "COMMITTED").symlink_to(HERE / "results" / "project")
    environment = os.environ | {"PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    failed = 0
    for number, command in enumerate(COMMANDS):
        words = [sys.executable, "-P", "-m", "intl_bench", *command.split()]
        done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True)
        text = done.stdout if command.startswith(("tables", "spectrum")) else ""
        (folder / "printed" / f"{number:02}.txt").write_text(f"{command}\nexit code {done.returncode}\n{text}")
        print(f"{done.returncode}  {command}", flush=True)
        if done.returncode:
            failed += 1
            print(done.stderr[-2000:])
    return failed


def draw_folder(folder: Path) -> None:
    """Create an image folder of three classes, and a list of 10% of its training images."""
    random = np.random.default_rng(0)
    for split, count in (("train", 20), ("val", 8)):
        for name in ("a", "b", "c"):
            (folder / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = random.integers(0, 256, (40, 48, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / split / name / f"{name}_{number}.png")
    files = sorted(path.name for path in (folder / "train").glob("*/*.png"))
    (folder / "list.txt").write_text("\n".join(files[::10]))


def content(path: Path) -> Any:
    """Return the content of a file: nested values and tensors, or bytes if the format is unknown."""
    if path.suffix in (".pt", ".torchvision", ".timm"):
        return torch.load(path, map_location="cpu", weights_only=True)
    if path.suffix == ".safetensors":
        return load_file(path)
    if path.suffix == ".npz":
        return dict(np.load(path))
    if path.suffix == ".json":
        return json.loads(path.read_text())
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text().splitlines()]
    return path.read_bytes()


def leaves(value: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every value with its path of keys, without the volatile keys."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list | tuple) else None
    if items is None:
        yield place, value.tolist() if isinstance(value, torch.Tensor | np.ndarray) else value
        return
    for key, part in items:
        if key not in VOLATILE or (isinstance(part, dict) and key == "data"):
            yield from leaves(part, f"{place}/{key}")


def files(folder: Path) -> dict[str, Path]:
    """Return the files to compare, by a name without time, process and digest of the code."""
    found = sorted(path for path in folder.rglob("*") if path.is_file() and "tfevents" not in path.name)
    passed_over = ("images", "folder", "COMMITTED", "runs/features", "runs/fingerprints")
    names = {path.relative_to(folder).as_posix(): path for path in found if path.suffix != ".sha256"}
    return {name: path for name, path in names.items() if not name.startswith(passed_over)}


def compare(before: Path, after: Path, renamed: dict[str, str]) -> list[str]:
    """Return the differences, one line each."""
    a, b = files(before), files(after)
    lines = [f"only in one of the two: {name}" for name in sorted(a.keys() ^ b.keys())]
    for name in sorted(a.keys() & b.keys()):
        first, second = dict(leaves(content(a[name]))), dict(leaves(content(b[name])))
        for old, new in renamed.items():
            first = {key.replace(old, new): value for key, value in first.items()}
        lines += [
            f"{name}{key}: {str(first.get(key))[:60]} | {str(second.get(key))[:60]}"
            for key in sorted(first.keys() | second.keys())
            if repr(first.get(key)) != repr(second.get(key))
        ]
    print(f"{len(a.keys() & b.keys())} files compared, {len(lines)} differences")
    return lines


def main() -> int:
    """Run the commands, or compare two runs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=("run", "compare"))
    parser.add_argument("first", type=Path)
    parser.add_argument("second", type=Path)
    parser.add_argument("--renamed", nargs="*", default=[], metavar="OLD=NEW")
    options = parser.parse_args()
    if options.action == "run":
        return int(run(options.first.resolve(), options.second) > 0)
    lines = compare(options.first, options.second, dict(pair.split("=", 1) for pair in options.renamed))
    print("\n".join(lines))
    return bool(lines)


if __name__ == "__main__":
    sys.exit(main())
