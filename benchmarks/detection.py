"""Time a training step and inference of the built-in detector against Detectron2, with equal weights and inputs.

    python benchmarks/detection.py                                    320x427, about 90 seconds on one core
    python benchmarks/detection.py --size 800 1067 --regions 128 --proposals 300 --repeats 1
    python benchmarks/detection.py --engines builtin --device cuda --precision bf16 --channels-last

Wall time, best of `--repeats`; the methods alternate in one process. The work of both engines grows with the number of
regions, which is reduced here: the official numbers are 512 in training and 1000 in test. On a CPU, `intl-bench` also
keeps freed memory in the process, which the tools of Detectron2 do not do; the last method includes this.
"""

import argparse
import ctypes
import importlib.util
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "support"))

import torch
from detection_cases import calibrate, ground_truth, picture, small_model
from detectron2_cases import detectron2_inputs, detectron2_model

from intl_bench.core.copies import send
from intl_bench.core.memory import keep_freed_memory
from transfer.detection import MaskRCNN
from transfer.detection.config import ModelConfig

KEPT = "builtin, freed memory kept"


def builtin_ways(model: MaskRCNN, images: list, targets: list, device: torch.device) -> tuple[Callable, Callable]:
    def train() -> None:
        draws = [torch.Generator(device).manual_seed(n) for n in range(len(images))]
        losses = model.train()([send(image, device) for image in images], targets, draws)
        model.zero_grad()
        sum(losses.values()).backward()

    def detect() -> None:
        model.eval().detect([send(image, device) for image in images], [image.shape[1:] for image in images])

    return train, detect


def detectron2_ways(model: Any, images: list, targets: list) -> tuple[Callable, Callable]:
    from detectron2.utils.events import EventStorage

    inputs = detectron2_inputs(images, targets, masks=True)

    def train() -> None:
        with EventStorage():
            losses = model.train()(inputs)
        model.zero_grad()
        sum(losses.values()).backward()

    def detect() -> None:
        with torch.inference_mode():
            # The masks keep the size of the mask head, as in the built-in detector.
            model.eval().inference([{"image": item["image"]} for item in inputs], do_postprocess=False)

    return train, detect


def use_allocator(keep: bool) -> None:
    """Set the allocator of glibc to its defaults or to `keep_freed_memory`, and release freed memory."""
    library = ctypes.CDLL(None)
    library.mallopt(-1, 64 * 2**20)  # the value that the automatic adaptation reaches
    library.mallopt(-4, 65536)
    if keep:
        keep_freed_memory()
    library.malloc_trim(0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, nargs=2, default=[320, 427], metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--images", type=int, default=1)
    parser.add_argument("--regions", type=int, default=64)
    parser.add_argument("--proposals", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--engines", nargs="+", default=["detectron2", "builtin"], choices=["builtin", "detectron2"])
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--precision", default="fp32", choices=["fp32", "bf16"])
    parser.add_argument("--channels-last", action="store_true")
    options = parser.parse_args()

    config = ModelConfig(roi_batch=options.regions, post_nms_test=options.proposals)
    size = tuple(options.size)
    images = [picture(n, *size) for n in range(options.images)]
    targets = [ground_truth(n, *size, objects=8, kind="polygon", classes=80) for n in range(options.images)]
    model = small_model(config)
    calibrate(model, images, targets)
    ways: dict[str, tuple[Callable, Callable]] = {}
    if "detectron2" in options.engines and importlib.util.find_spec("detectron2"):
        other = detectron2_model(config, model.state_dict(), device=options.device)
        ways["detectron2"] = detectron2_ways(other, images, targets)
    model.to(options.device)
    if options.channels_last:
        model.to(memory_format=torch.channels_last)
    on_device = [target.to(options.device) for target in targets]
    if "builtin" in options.engines:
        ways["builtin"] = builtin_ways(model, images, on_device, torch.device(options.device))
        if options.device == "cpu":
            ways[KEPT] = ways["builtin"]

    seconds: dict[tuple[str, int], float] = {(name, kind): math.inf for name in ways for kind in (0, 1)}
    for repeat in range(options.repeats + 1):  # the first repeat warms up
        for name, kind in seconds:
            if options.device == "cpu" and kind == 0:
                use_allocator(name == KEPT)
                if name == KEPT:
                    ways[name][kind]()  # allocates the memory that is kept
            started = time.perf_counter()
            with torch.autocast(options.device, torch.bfloat16, enabled=options.precision == "bf16"):
                ways[name][kind]()
            if options.device == "cuda":
                torch.cuda.synchronize()
            if repeat:
                seconds[name, kind] = min(seconds[name, kind], time.perf_counter() - started)
    print(
        f"{options.images} x {size[0]}x{size[1]}, {options.regions} regions per image in training, {options.proposals} "
        f"proposals in test, {options.device}, {options.precision}, {torch.get_num_threads()} threads, "
        f"best of {options.repeats}"
    )
    print(
        "| method | training step, s | detectron2 / method | inference, s | detectron2 / method |\n"
        "| --- | --- | --- | --- | --- |"
    )
    if "detectron2" not in ways:
        print("| detectron2 | not installed | | | |")
    for name in ways:
        cells = ""
        for kind in (0, 1):
            ratio = f"{seconds['detectron2', kind] / seconds[name, kind]:.2f}" if "detectron2" in ways else ""
            cells += f" {seconds[name, kind]:.3f} | {ratio} |"
        print(f"| {name} |{cells}")


if __name__ == "__main__":
    main()
