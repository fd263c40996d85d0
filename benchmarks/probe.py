"""Compare the time of the linear probe on frozen features with its matrix products and with a plain training loop.

    python benchmarks/probe.py                        50,000 x 512 in ten classes, 10,000 test images, about a minute
    python benchmarks/probe.py --epochs 500           full protocol; the ratios do not depend on the epochs
    python benchmarks/probe.py --device cuda

Every implementation needs these matrix products in an epoch: the logits and the gradient of the weights for each batch
of 1000, and the logits of the test images. The time of one epoch is multiplied by the number of epochs. The plain loop
is `nn.Linear`, `cross_entropy`, autograd and `torch.optim.Adam`, with the same order and the same initial weights. The
methods alternate in rounds of `--turn` epochs in one run; the best round counts.
"""

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch import Tensor, nn
from torch.nn import functional

from intl_bench.core.seeding import permutation, torch_seed
from transfer.probe import train_probe
from transfer.scores import correct, percentages

CLASSES, BATCH, LR, FINAL_LR, DECAY, SEED = 10, 1000, 1e-2, 1e-6, 5e-6, 0

Data = tuple[Tensor, Tensor, Tensor, Tensor]


def problem(options: argparse.Namespace) -> Data:
    """Draw features like the output of a ReLU, in ten overlapping classes."""
    generator = torch.Generator().manual_seed(0)
    centers = torch.randn(CLASSES, options.width, generator=generator)
    labels = torch.randint(CLASSES, (options.train + options.test,), generator=generator)
    features = (0.1 * centers[labels] + torch.randn(len(labels), options.width, generator=generator)).relu()
    features, labels = features.to(options.device), labels.to(options.device)
    return features[: options.train], labels[: options.train], features[options.train :], labels[options.train :]


def products(data: Data, epochs: int) -> None:
    features, _, test, _ = data
    weight = torch.zeros((CLASSES, features.shape[1]), device=features.device)
    for _ in range(epochs):
        for batch in features.split(BATCH):
            error = weight @ batch.T
            error @ batch
        weight @ test.T


def plain(data: Data, epochs: int) -> tuple[nn.Linear, list[dict[str, float]]]:
    features, labels, test, test_labels = data
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(torch_seed(SEED, "probe init"))
        classifier = nn.Linear(features.shape[1], CLASSES).to(features.device)
    optimizer = torch.optim.Adam(classifier.parameters(), lr=LR, weight_decay=DECAY)
    history = []
    for epoch in range(epochs):
        optimizer.param_groups[0]["lr"] = LR * (FINAL_LR / LR) ** (epoch / epochs)
        order = torch.from_numpy(permutation(SEED, "probe", epoch, len(features))).to(features.device)
        for chosen in order.split(BATCH):
            optimizer.zero_grad()
            functional.cross_entropy(classifier(features[chosen]), labels[chosen]).backward()
            optimizer.step()
        with torch.no_grad():
            counts = correct(classifier(test), test_labels).tolist()
        history.append(percentages(counts, len(test_labels), CLASSES))
    return classifier, history


def ours(data: Data, epochs: int) -> tuple[nn.Linear, list[dict[str, float]]]:
    probe = train_probe(
        *data,
        classes=CLASSES,
        seed=SEED,
        epochs=epochs,
        batch_size=BATCH,
        lr=LR,
        final_lr=FINAL_LR,
        weight_decay=DECAY,
        device=data[0].device,
    )
    return probe.classifier, probe.history


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", type=int, default=50_000)
    parser.add_argument("--test", type=int, default=10_000)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--epochs", type=int, default=40, help="the paper uses 500")
    parser.add_argument("--turn", type=int, default=10)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    options = parser.parse_args()
    data = problem(options)
    ways: dict[str, Callable[[Data, int], object]] = {
        "matrix products": products,
        "plain loop": plain,
        "transfer.probe": ours,
    }
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(options.epochs // options.turn + 1):  # the first round warms up
        for name, way in ways.items():
            started = time.perf_counter()
            way(data, options.turn)
            if options.device == "cuda":
                torch.cuda.synchronize()
            if turn:
                taken[name].append((time.perf_counter() - started) / options.turn)
    seconds = {name: min(values) for name, values in taken.items()}
    (classifier, history), (reference, expected) = ours(data, options.turn), plain(data, options.turn)
    pairs = zip(classifier.state_dict().values(), reference.state_dict().values(), strict=True)
    difference = max(float((a - b).norm() / b.norm()) for a, b in pairs)
    scores = max(abs(a["top1"] - b["top1"]) for a, b in zip(history, expected, strict=True))
    print(
        f"{options.train} x {options.width}, {CLASSES} classes, batch {BATCH}, {options.test} test images, best of "
        f"{options.epochs // options.turn} rounds of {options.turn} epochs, {options.device}, "
        f"{torch.get_num_threads()} threads"
    )
    print("| method | ms per epoch | s for 500 | / matrix products |\n| --- | --- | --- | --- |")
    for name, value in seconds.items():
        print(f"| {name} | {1000 * value:.1f} | {500 * value:.1f} | {value / seconds['matrix products']:.2f} |")
    print(
        f"against the plain loop, after {options.turn} epochs: weights differ by {difference:.1e} (relative), top-1 of "
        f"any epoch by {scores:.2f}; last top-1 {history[-1]['top1']:.2f}"
    )


if __name__ == "__main__":
    main()
