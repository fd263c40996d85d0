"""Count how many single flipped bits of a training state are noticed when it is read.

    python benchmarks/bit_flips.py [--flips 300] [--seed 0]

The state is that of a ResNet-18 with SGD's momentum. `torch.load` reads a file of `torch.save`, safetensors a file of
its own, and `pretrain.states.load` a file of this project with the same tensors. A flip is noticed if reading raises an
error. It is silent if a tensor or a number differs and nothing is raised. Other flips change nothing that is read.
"""

import argparse
import io
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import safetensors.torch
import torch
from torchvision.models import resnet18

from pretrain import states


def make_state() -> dict[str, Any]:
    """Make weights and momentum as after one step."""
    torch.manual_seed(0)
    model = resnet18(num_classes=10)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model(torch.randn(2, 3, 64, 64)).sum().backward()
    optimizer.step()
    return {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": 1}


def same(a: Any, b: Any) -> bool:
    """Whether two states are equal, bit for bit."""
    if isinstance(a, torch.Tensor):
        return (
            isinstance(b, torch.Tensor)
            and (a.dtype, a.shape) == (b.dtype, b.shape)
            and (a.contiguous().view(torch.uint8).equal(b.contiguous().view(torch.uint8)) if a.dim() else a.equal(b))
        )
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and a == b


def count(path: Path, load: Callable[[Path], Any], bits: np.ndarray) -> tuple[int, int]:
    """Flip each of the bits alone; return how many are noticed and how many are silent."""
    content, expected = bytearray(path.read_bytes()), load(path)
    noticed = silent = 0
    for bit in (bits * (8 * len(content))).astype(np.int64).tolist():
        content[bit // 8] ^= 1 << bit % 8
        path.write_bytes(content)
        content[bit // 8] ^= 1 << bit % 8
        try:
            silent += not same(expected, load(path))
        except Exception:
            noticed += 1
    return noticed, silent


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--flips", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    state, bits = make_state(), np.random.default_rng(options.seed).random(options.flips)
    plain = io.BytesIO()
    torch.save(state, plain)
    print(f"torch {torch.__version__}, safetensors {safetensors.__version__}, {options.flips} flips of single bits")
    print("| read by | noticed | silent |")
    print("| --- | --- | --- |")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "state.pt"
        path.write_bytes(plain.getvalue())
        noticed, silent = count(path, lambda file: torch.load(file, weights_only=True), bits)
        print(f"| `torch.load(weights_only=True)` | {noticed} | {silent} |", flush=True)
        path = Path(folder) / "model.safetensors"
        path.write_bytes(safetensors.torch.save({k: v.contiguous() for k, v in state["model"].items()}))
        noticed, silent = count(path, lambda file: safetensors.torch.load(file.read_bytes()), bits)
        print(f"| safetensors (weights alone) | {noticed} | {silent} |", flush=True)
        path = Path(folder) / "ours.pt"
        states.save(path, state)
        noticed, silent = count(path, lambda file: states.load(file)[0], bits)
        print(f"| `intl-bench` | {noticed} | {silent} |", flush=True)


if __name__ == "__main__":
    main()
