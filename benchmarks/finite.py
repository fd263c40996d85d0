"""Measure what the checks for NaN and infinity cost, as a share of a training step and of a saved state.

    python benchmarks/finite.py [--backbone resnet18] [--side 64] [--batch 64] [--steps 12] [--device cpu]

A step of fine-tuning is taken with `pretrain.finite.Guard`. The guard's part of the same step is timed apart: the norm
of all gradients, and whether it is finite. The smallest of each counts, so the ratio is of one run. The check of a
state, which precedes each write, is compared with the write.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch import nn
from torch.nn import functional

from pretrain import states
from pretrain.backbone import build_backbone
from pretrain.finite import Guard


class _Timed:
    """An optimizer that takes the time of its own steps."""

    def __init__(self, optimizer: torch.optim.Optimizer, device: torch.device) -> None:
        self.optimizer, self.device, self.seconds = optimizer, device, 0.0

    def step(self) -> None:
        began = now(self.device)
        self.optimizer.step()
        self.seconds = now(self.device) - began


def now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def main() -> None:
    """Print the shares."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--side", type=int, default=64)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    device = torch.device(options.device)
    torch.manual_seed(0)
    backbone = build_backbone(options.backbone)
    model = nn.Sequential(backbone, nn.Linear(backbone.num_features, 10)).to(device, memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9, fused=device.type == "cuda")
    timed = _Timed(optimizer, device)
    guard = Guard(model, timed, device)  # type: ignore[arg-type]
    images = torch.randn(options.batch, 3, options.side, options.side, device=device)
    labels = torch.arange(options.batch, device=device) % 10
    steps, guards = [], []
    for number in range(1, options.steps + 1):
        began = now(device)
        loss = functional.cross_entropy(model(images.contiguous(memory_format=torch.channels_last)), labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        before = now(device)
        guard.step(number, loss)
        ended = now(device)
        steps.append(ended - began)
        guards.append(ended - before - timed.seconds)
    guard.require_finite("")
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": options.steps}
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        states.require_finite(state, where="")
        checked = time.perf_counter() - began
        states.save(Path(folder) / "state.pt", state)
        written = time.perf_counter() - began - checked
    what = f"{options.backbone}, {options.batch} images of {options.side} x {options.side}, {device.type}"
    print(f"{what}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    print(f"a step {1e3 * min(steps):.1f} ms, its guard {1e3 * min(guards):.2f} ms: {min(guards) / min(steps):.2%}")
    print(f"writing a state {1e3 * written:.0f} ms with its check, the check {1e3 * checked:.1f} ms")


if __name__ == "__main__":
    main()
