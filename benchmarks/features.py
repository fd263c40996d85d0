"""Time `transfer.features.extract` of a frozen backbone against a plain loop, and the gain of each part.

    python benchmarks/features.py                               ResNet-50, 48 JPEGs of 500x375, about two minutes
    python benchmarks/features.py --backbone resnet18 --images 256
    python benchmarks/features.py --device cuda --images 2048 --batch 256 --workers 8 --precision bf16

The plain loop is `for images, labels in DataLoader(dataset): model(images)` in eval mode without gradients, with PIL
and the transforms of torchvision (256, 224) and float32 images. Each method adds one part to the method in the line
above. Each measurement runs in its own process, because the last part changes the memory allocator. The methods
alternate; the best of `--repeats` counts. The first batch warms up; `extract` has processed the same images once.
"""

import argparse
import json
import math
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

WAYS = {
    "plain loop": (),
    "channels last": ("channels_last",),
    "norms folded into convolutions": ("channels_last", "folded"),
    "freed memory kept": ("channels_last", "folded", "kept"),
    "transfer.features": None,
}


def make_folder(root: Path, images: int) -> None:
    """Create JPEGs of 500x375 with the detail of photographs, in two classes."""
    import numpy as np
    from PIL import Image

    random = np.random.default_rng(0)
    for number in range(images):
        pixels = np.zeros((375, 500, 3))
        for cell in (125, 25, 5):  # coarse and strong, fine and weak
            coarse = random.normal(0, 4 * cell**0.5, (375 // cell, 500 // cell, 3))
            pixels += coarse.repeat(cell, 0).repeat(cell, 1)
        file = root / "val" / str(number % 2) / f"{number}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((pixels + 128).clip(0, 255).astype(np.uint8)).save(file, quality=90)


def measure(way: str, options: argparse.Namespace) -> dict[str, Any]:
    """Return the seconds for all images, and write their features to a file."""
    import torch
    from torch.utils.data import DataLoader
    from torchvision import datasets, transforms

    from intl_bench.core.distributed import Process
    from intl_bench.core.memory import keep_freed_memory
    from pretrain.backbone import BackboneConfig, build_backbone
    from pretrain.checkpoint import Checkpoint, Origin
    from pretrain.images.data import IMAGENET_NORMALIZATION, DataConfig, open_source
    from transfer.features import FOLDER, extract, fold_norms

    torch.manual_seed(0)
    model = build_backbone(options.backbone).eval()
    random = torch.Generator().manual_seed(1)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_var.uniform_(0.5, 2, generator=random)
            module.running_mean.normal_(0, 0.1, generator=random)
    device = torch.device(options.device, 0) if options.device == "cuda" else torch.device("cpu")

    def ours() -> torch.Tensor:
        shutil.rmtree(FOLDER, ignore_errors=True)  # empty cache
        checkpoint = Checkpoint(
            path=Path("case"),
            sha256="",
            backbone=model.state_dict(),
            origin=Origin.RANDOM,
            method="",
            architecture=BackboneConfig(name=options.backbone),
            preprocessing=None,
            seed=None,
        )
        found = extract(
            checkpoint,
            open_source(DataConfig(kind="imagefolder", root=options.root), "test"),
            normalization=IMAGENET_NORMALIZATION,
            resize=256,
            crop=224,
            process=Process(rank=0, world_size=1, device=device),
            workers=options.workers,
            precision=options.precision,
        )
        return found.features

    changes = WAYS[way]
    if changes is None or "kept" in changes:
        keep_freed_memory()
    if changes is None:
        ours()
        started = time.perf_counter()
        features = ours()
        taken = time.perf_counter() - started
    else:
        layout = torch.channels_last if "channels_last" in changes else torch.contiguous_format
        if "folded" in changes:
            fold_norms(model)
        model.to(device).to(memory_format=layout)
        to_tensor = [transforms.Resize(256), transforms.CenterCrop(224), transforms.ToTensor()]
        transform = transforms.Compose([*to_tensor, transforms.Normalize(*IMAGENET_NORMALIZATION)])
        dataset = datasets.ImageFolder(str(Path(options.root) / "val"), transform)
        loader = DataLoader(
            dataset, batch_size=options.batch, num_workers=options.workers, pin_memory=device.type == "cuda"
        )
        parts = []
        with torch.no_grad():
            model(torch.zeros(options.batch, 3, 224, 224, device=device).contiguous(memory_format=layout))
            started = time.perf_counter()
            for images, _ in loader:
                parts.append(model(images.to(device).contiguous(memory_format=layout)).cpu())
        taken = time.perf_counter() - started
        features = torch.cat(parts)
    torch.save(features.clone(), f"{way}.pt")
    return {"seconds": taken, "threads": torch.get_num_threads()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="resnet50")
    parser.add_argument("--images", type=int, default=48)
    parser.add_argument("--batch", type=int, default=32, help="batch size of the plain loop")
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--precision", default="fp32", choices=["fp32", "bf16"], help="precision of transfer.features")
    parser.add_argument("--root", help=argparse.SUPPRESS)
    parser.add_argument("--way", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.way:
        print(json.dumps(measure(options.way, options)))
        return
    import torch

    seconds = dict.fromkeys(WAYS, math.inf)
    with tempfile.TemporaryDirectory() as folder:
        make_folder(Path(folder), options.images)
        for _ in range(options.repeats):
            for way in WAYS:
                command = [sys.executable, str(Path(__file__).resolve()), *sys.argv[1:], "--root", folder, "--way", way]
                found = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=folder)
                result = json.loads(found.stdout)
                seconds[way] = min(seconds[way], result["seconds"])
        features = {way: torch.load(Path(folder) / f"{way}.pt") for way in WAYS}
    print(
        f"{options.backbone}, {options.images} images, batch {options.batch}, {options.device}, {options.workers} "
        f"workers, {result['threads']} threads, transfer.features in {options.precision}, best of {options.repeats}"
    )
    print(
        "| method | ms per image | plain loop / method | relative difference of features |\n| --- | --- | --- | --- |"
    )
    reference = features["plain loop"]
    for way, value in seconds.items():
        difference = float((features[way] - reference).norm() / reference.norm())
        ratio = seconds["plain loop"] / value
        print(f"| {way} | {1000 * value / options.images:.1f} | {ratio:.2f} | {difference:.1e} |")


if __name__ == "__main__":
    main()
