"""Time the conversion of a ResNet-50 checkpoint against loading and saving the same file with PyTorch.

    python benchmarks/convert.py                            MoCo layout with momentum copy, a few seconds per target
    python benchmarks/convert.py --threads 1 --repeats 5

Times are the best of `--repeats` in one run. The time of a conversion includes hashing both files, reading the written
file and running the network on both. This script writes the source file, with random weights.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from pretrain.backbone import build_backbone
from transfer.convert import TARGETS, convert


def write_checkpoint(path: Path) -> None:
    """Write a query and a momentum encoder as MoCo does, without optimizer state: about 180 MiB."""
    tensors = {}
    for name in ("encoder_q", "encoder_k"):
        state = build_backbone("resnet50").state_dict()
        tensors |= {f"module.{name}.{key}": tensor for key, tensor in state.items()}
    torch.save({"epoch": 200, "arch": "resnet50", "state_dict": tensors}, path)


def seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        source, out = Path(folder) / "moco.pth.tar", Path(folder) / "out"
        write_checkpoint(source)
        ways: dict[str, Callable[[], object]] = {
            "torch.load + torch.save": lambda: torch.save(torch.load(source, weights_only=True), out)
        }
        for target in TARGETS:
            ways[f"convert --to {target}"] = lambda target=target: convert(source, Path(f"{out}.{target}"), to=target)
        ways["convert --to detectron2, .pkl"] = lambda: convert(source, Path(f"{out}.pkl"), to="detectron2")
        best = {name: float("inf") for name in ways}
        for _ in range(options.repeats):
            for name, work in ways.items():
                best[name] = min(best[name], seconds(work))
        reference = best["torch.load + torch.save"]
        print(f"{source.stat().st_size / 2**20:.0f} MiB, {options.threads} threads, best of {options.repeats}")
        print("| method | seconds | / load + save |\n| --- | --- | --- |")
        for name, value in best.items():
            print(f"| {name} | {value:.2f} | {value / reference:.2f} |")


if __name__ == "__main__":
    main()
