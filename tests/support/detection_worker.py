"""One process of a detection run under torchrun: `detection_worker.py FOLDER key=value ...`."""

import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from intl_bench.core import config as configs
from intl_bench.core import distributed
from intl_bench.core.signals import StopRequest
from transfer.detection import build_model
from transfer.detection.annotations.split import read_split
from transfer.detection.config import DetectionConfig
from transfer.detection.engines import builtin

SMALL = {
    "engine": "builtin",
    "iterations": 1,
    "batch_size": 4,
    "min_sizes": [64],
    "max_size": 120,
    "test_min_size": 64,
    "test_max_size": 120,
    "warmup_iterations": 0,
    "workers": 0,
    "device": "cpu",
    "model": {
        "blocks": [1, 1, 1, 1],
        "bottleneck": False,
        "width": 4,
        "num_classes": 5,
        "mask_channels": 4,
        "anchor_sizes": [16, 32],
        "rpn_batch": 16,
        "roi_batch": 8,
        "pre_nms_train": 50,
        "post_nms_train": 20,
        "pre_nms_test": 50,
        "post_nms_test": 10,
        "pool_size": 4,
    },
}


def take_step(folder: Path, words: Sequence[str]) -> None:
    """Train a detector as one process of those that torchrun describes, or alone."""
    torch.set_num_threads(1)
    config = configs.build(DetectionConfig, SMALL, "test", words)
    torch.manual_seed(0)
    state = build_model(config.model).state_dict()
    backbone = {
        key.removeprefix("backbone.").removeprefix("roi_heads."): value
        for key, value in state.items()
        if key.startswith(("backbone.", "roi_heads.res5.")) and not key.startswith("roi_heads.res5.norm")
    }
    splits = [read_split(config.data, split, masks=True) for split in ("train", "test")]
    with distributed.start("cpu") as process, StopRequest() as stop:
        builtin.run(
            backbone,
            config,
            0,
            folder=folder,
            train=splits[0],
            test=splits[1],
            identity={},
            evaluate=lambda results: {},
            process=process,
            stop=stop,
        )


if __name__ == "__main__":
    take_step(Path(sys.argv[1]), sys.argv[2:])
