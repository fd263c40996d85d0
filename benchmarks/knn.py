"""Compare k-NN: time with one matrix product of the same size, and peak memory with the full distance matrix.

    python benchmarks/knn.py                                        50,000 x 10,000 x 512, about a minute on 2 cores
    python benchmarks/knn.py --train 5000 --test 1000 --width 64
    python benchmarks/knn.py --device cuda

Times are the best of `--repeats` in one run. Features start on the CPU, and each method copies them to the GPU. The
memory of each method is measured in a separate process: the peak minus the memory in use before the call.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from peak_memory import Rise

from transfer.neighbors import knn_predict

K = 5

Way = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, str], torch.Tensor]


def matrix_product(train: torch.Tensor, labels: torch.Tensor, test: torch.Tensor, device: str) -> torch.Tensor:
    return test.to(device) @ train.to(device).T


def full_matrix(train: torch.Tensor, labels: torch.Tensor, test: torch.Tensor, device: str) -> torch.Tensor:
    """Predict as the authors do, without their loop over test images: full distance matrix, then the k smallest."""
    train, labels, test = (tensor.to(device) for tensor in (train, labels, test))
    neighbors = labels[torch.cdist(test, train).topk(K, dim=1, largest=False).indices]
    votes = torch.zeros((len(test), int(labels.max()) + 1), device=test.device)
    return votes.scatter_add_(1, neighbors, torch.ones_like(neighbors, dtype=votes.dtype)).argmax(1).cpu()


def ours(train: torch.Tensor, labels: torch.Tensor, test: torch.Tensor, device: str) -> torch.Tensor:
    return knn_predict(train, labels, test, k=K, device=device)


WAYS: dict[str, Way] = {
    "matrix product": matrix_product,
    "full matrix": full_matrix,
    "in chunks": ours,
}


def problem(options: argparse.Namespace) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Draw features like the output of a ReLU, grouped in ten classes."""
    generator = torch.Generator().manual_seed(0)
    centers = torch.randn(10, options.width, generator=generator)
    labels = torch.randint(10, (options.train + options.test,), generator=generator)
    features = (0.5 * centers[labels] + torch.randn(len(labels), options.width, generator=generator)).relu()
    return features[: options.train], labels[: options.train], features[options.train :]


def seconds(work: Callable[[], object], device: str) -> float:
    started = time.perf_counter()
    work()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def added_mib(name: str, options: argparse.Namespace) -> float:
    """Return the MiB by which a call raises the memory of this process (or of the GPU)."""
    arguments = problem(options)
    few, labels, tests = (argument[:50] for argument in arguments)
    WAYS[name](few, labels, tests, options.device)  # libraries load at the first call
    rise = Rise(options.device)
    WAYS[name](*arguments, options.device)
    return rise.mib()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", type=int, default=50_000)
    parser.add_argument("--test", type=int, default=10_000)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.memory_of:
        print(json.dumps(added_mib(options.memory_of, options)))
        return
    memory = {}
    for name in WAYS:
        command = [sys.executable, __file__, *sys.argv[1:], "--memory-of", name]
        memory[name] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    arguments = problem(options)
    times: dict[str, list[float]] = {name: [] for name in WAYS}
    for _ in range(options.repeats):
        for name, way in WAYS.items():
            times[name].append(seconds(lambda way=way: way(*arguments, options.device), options.device))
    same = float((full_matrix(*arguments, options.device) == ours(*arguments, options.device)).double().mean())
    best = {name: min(values) for name, values in times.items()}
    print(
        f"{options.train} x {options.test} x {options.width}, k = {K}, "
        f"{options.device}, {torch.get_num_threads()} threads"
    )
    print("| method | seconds | / matrix product | added MiB | / full matrix |\n| --- | --- | --- | --- | --- |")
    for name in WAYS:
        ratios = best[name] / best["matrix product"], memory[name] / memory["full matrix"]
        print(f"| {name} | {best[name]:.2f} | {ratios[0]:.2f} | {memory[name]:.0f} | {ratios[1]:.2f} |")
    print(f"predictions equal to those of the full matrix: {100 * same:.3f}%")


if __name__ == "__main__":
    main()
