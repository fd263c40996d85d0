"""Time a training step and inference of the built-in Mask R-CNN R50-C4 and R50-FPN, and of R50-FPN of torchvision.

    python benchmarks/gpu_detection.py                     800 x 1067, the official numbers of regions
    python benchmarks/gpu_detection.py --device cpu --small

Print a line of JSON for each measurement. All networks use bf16, batches of two images and random weights.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "support"))

import gpu_timing
import numpy as np
import torch
from detection_cases import SMALL, SMALL_FPN, ground_truth, picture
from torch import Tensor
from torchvision.models.detection import maskrcnn_resnet50_fpn

from transfer.detection import build_model
from transfer.detection.config import ModelConfig, usual_model
from transfer.detection.structures import Target

IMAGES, OBJECTS = 2, 8
Ways = dict[str, Callable[[], object]]


def built_in(images: list[Tensor], targets: list[Target], config: ModelConfig, device: str) -> Ways:
    model = build_model(config).to(device)
    own = [target.to(device) for target in targets]
    draws = [torch.Generator(device).manual_seed(number) for number in range(IMAGES)]
    sizes = [(image.shape[1], image.shape[2]) for image in images]
    return {
        "training step": lambda: sum(model.train()(images, own, draws).values()).backward(),
        "inference": lambda: model.eval().detect(images, sizes),
    }


def torchvisions(images: list[Tensor], targets: list[Target], config: ModelConfig, device: str) -> Ways:
    model = maskrcnn_resnet50_fpn(
        weights=None,
        weights_backbone=None,
        num_classes=config.num_classes + 1,
        min_size=images[0].shape[1],
        box_batch_size_per_image=config.roi_batch,
        rpn_post_nms_top_n_train=config.post_nms_train,
        rpn_post_nms_top_n_test=config.post_nms_test,
    ).to(device)
    labeled = [
        {
            "boxes": target.boxes.to(device),
            "labels": target.classes.to(device) + 1,
            "masks": torch.from_numpy(np.stack(target.masks).astype(np.uint8)).to(device),
        }
        for target in targets
    ]

    @torch.inference_mode()
    def detect() -> None:
        model.eval()([image / 255 for image in images])

    return {
        "training step": lambda: sum(model.train()([image / 255 for image in images], labeled).values()).backward(),
        "inference": detect,
    }


def main() -> None:
    options = gpu_timing.device_options(__doc__).parse_args()
    device, small = options.device, options.small
    size, config, pyramid = ((64, 96), SMALL, SMALL_FPN) if small else ((800, 1067), ModelConfig(), usual_model("fpn"))
    images = [picture(number, *size).to(device) for number in range(IMAGES)]
    targets = [
        ground_truth(number, *size, objects=OBJECTS, kind="bitmap", classes=config.num_classes)
        for number in range(IMAGES)
    ]
    detectors = {
        "built-in, R50-C4": (built_in, config),
        "built-in, R50-FPN": (built_in, pyramid),
        "torchvision, R50-FPN": (torchvisions, config),
    }
    for name, (make, used) in detectors.items():
        for kind, work in make(images, targets, used, device).items():
            gpu_timing.forget(device)
            with torch.autocast(device, torch.bfloat16):
                step = gpu_timing.seconds(work, device, 1 if small else 10)
            found = {"ms": 1e3 * step, "peak_mib": gpu_timing.peak_mib(device)}
            print(json.dumps({"detector": name, "what": kind, "images": IMAGES, "size": size} | found), flush=True)
        del work  # frees the model before the next one is built


if __name__ == "__main__":
    main()
