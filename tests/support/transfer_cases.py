"""Small checkpoints and image folders that the tests of the transfer tasks share."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from intl_bench import protocol
from intl_bench.core import config as configs
from intl_bench.core.distributed import Process
from pretrain.backbone import BackboneConfig, build_backbone
from pretrain.checkpoint import Checkpoint, Origin
from transfer import find_task

CPU = Process(rank=0, world_size=1, device=torch.device("cpu"))


def make_checkpoint(seed: int = 0, name: str = "resnet10_narrow", stem: str = "cifar") -> Checkpoint:
    """A backbone with random weights as a checkpoint."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        state = build_backbone(name, stem=stem).state_dict()
    return Checkpoint(
        path=Path("case.pt"),
        sha256=hashlib.sha256(f"{name} {stem} {seed}".encode()).hexdigest(),
        backbone=state,
        origin=Origin.FOREIGN,
        method="INTL",
        architecture=BackboneConfig(name=name, stem=stem),
        preprocessing=None,
        seed=seed,
        epoch=3,
        details={"images": 100},
    )


def packaged(task: str, name: str, checkpoint: Checkpoint | None = None, overrides: Sequence[str] = ()) -> Any:
    """The configuration of a task by a packaged protocol, as it is for a checkpoint."""
    path = configs.find(name, task)
    return protocol.build_config(find_task(task), checkpoint or make_checkpoint(), {}, path, overrides)


def make_folder(root: Path, classes: int = 3, train: int = 8, test: int = 4, side: int = 20) -> Path:
    """An image folder of PNGs named as ImageNet's; the color tells the class, so that it can be learned."""
    rng = np.random.default_rng(0)
    for split, count in (("train", train), ("val", test)):
        for label in range(classes):
            wnid = f"n{label:08d}"
            (root / split / wnid).mkdir(parents=True)
            for number in range(count):
                color = 255 * np.array([label % 2, label // 2 % 2, label // 4]) * 0.6
                pixels = (color + rng.uniform(0, 100, (side, side + number % 3, 3))).clip(0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(root / split / wnid / f"{wnid}_{number}.png")
    return root
