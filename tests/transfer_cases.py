"""Small checkpoints and image folders that the tests of the transfer tasks share."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from intl_bench.core.distributed import Process
from pretrain.backbone import build_backbone
from pretrain.checkpoint import Checkpoint

CPU = Process(rank=0, world_size=1, device=torch.device("cpu"))


def make_checkpoint(seed: int = 0, name: str = "resnet10_narrow", stem: str = "cifar") -> Checkpoint:
    """A backbone with random weights as a checkpoint."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        state = build_backbone(name, stem=stem).state_dict()
    config: dict[str, Any] = {
        "name": "case",
        "seed": seed,
        "epochs": 3,
        "backbone": {"name": name, "stem": stem, "zero_init_residual": False},
    }
    return Checkpoint(
        path=Path("case.pt"),
        sha256=hashlib.sha256(f"{name} {stem} {seed}".encode()).hexdigest(),
        backbone=state,
        config=config,
        method="INTL",
        epoch=3,
        details={"images": 100},
    )


def make_folder(root: Path, classes: int = 3, train: int = 8, test: int = 4, side: int = 20) -> Path:
    """An image folder of PNGs named as ImageNet's; the colour tells the class, so that it can be learnt."""
    rng = np.random.default_rng(0)
    for split, count in (("train", train), ("val", test)):
        for label in range(classes):
            wnid = f"n{label:08d}"
            (root / split / wnid).mkdir(parents=True)
            for number in range(count):
                colour = 255 * np.array([label % 2, label // 2 % 2, label // 4]) * 0.6
                pixels = (colour + rng.uniform(0, 100, (side, side + number % 3, 3))).clip(0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(root / split / wnid / f"{wnid}_{number}.png")
    return root
