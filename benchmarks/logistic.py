"""Compare logistic regression along a path of weight decays with scikit-learn's LogisticRegression.

    pip install scikit-learn
    python benchmarks/logistic.py                                   3,760 x 512 in 47 classes, as DTD with a ResNet-18
    python benchmarks/logistic.py --train 5000 --width 2048         Caltech-101 with a ResNet-50
    python benchmarks/logistic.py --npz FILE.npz --checkpoint FILE  features of real images
    python benchmarks/logistic.py --device cuda

Both fit the same decays from strong to weak with warm starts, on the same float32 features and with as many threads, to
the same tolerance: the largest entry of the gradient of the mean objective. The iterations have no bound that matters.
The best accuracy on the test part, the accuracy of every decay, and the objective of every decay are compared. The two
alternate in rounds; the best round of each counts. "matrix products" is the time that the products of the steps alone
take: two of all samples for a step, and those of the principal axes.
"""

import argparse
import sys
import time
import warnings
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from transfer.logistic import Problem

DECAYS = np.geomspace(1e5, 1e-6, 45).tolist()  # of Ericsson et al. (2021)


class Fits(NamedTuple):
    """The result of a path: seconds, steps, and for each decay the weights (K, F) and biases (K,) in float64."""

    seconds: float
    steps: int
    weights: list[tuple[Tensor, Tensor]]


def drawn(options: argparse.Namespace) -> tuple[Tensor, Tensor]:
    """Draw features like those of a ResNet: not negative, correlated, with a spectrum that falls by a power law."""
    generator = torch.Generator().manual_seed(0)
    n, width = options.train + options.test, options.width
    labels = torch.randint(options.classes, (n,), generator=generator)
    scales = torch.arange(1, width + 1).float().pow(-0.5)
    centers = torch.randn(options.classes, width, generator=generator) * scales
    hidden = 0.2 * centers[labels] + torch.randn(n, width, generator=generator) * scales
    turn = torch.linalg.qr(torch.randn(width, width, generator=generator)).Q
    return (hidden @ turn * 2).relu(), labels


def of_images(options: argparse.Namespace) -> tuple[Tensor, Tensor]:
    """Compute the features of the images of an .npz file by a checkpoint."""
    from intl_bench.core.distributed import Process
    from pretrain.images.data import DataConfig, normalization, open_source
    from transfer.convert import read
    from transfer.features import extract

    data, process = DataConfig(kind="npz", root=options.npz), Process(0, 1, torch.device("cpu"))
    parts = [
        extract(
            read(Path(options.checkpoint)),
            open_source(data, split),
            normalization=normalization(data),
            resize=None,
            crop=None,
            process=process,
            workers=0,
        )
        for split in ("train", "test")
    ]
    options.train, options.test = (len(part.labels) for part in parts)
    features = torch.cat([part.features for part in parts])
    options.width, options.classes = features.shape[1], int(parts[0].labels.max()) + 1
    return features, torch.cat([part.labels for part in parts])


def ours(features: Tensor, labels: Tensor, classes: int, tolerance: float) -> Fits:
    started, start, steps, found = time.perf_counter(), None, 0, []
    problem = Problem(features, labels, classes)
    for decay in DECAYS:
        fit = problem.fit(decay, start, tolerance=tolerance, iterations=100_000)
        start, steps = fit.weights, steps + fit.iterations
        found.append(fit.weights)
    if features.is_cuda:
        torch.cuda.synchronize()
    seconds = time.perf_counter() - started
    axes = problem.axes
    weights = [(one[:, :-1] @ axes.basis.T).double() for one in found]
    return Fits(
        seconds,
        steps,
        [(w.cpu(), (one[:, -1] - w @ axes.mean.double()).cpu()) for w, one in zip(weights, found, strict=True)],
    )


def scikit_learn(features: Tensor, labels: Tensor, classes: int, tolerance: float) -> Fits:
    from sklearn.linear_model import LogisticRegression

    given, known, steps, found = features.cpu().numpy(), labels.cpu().numpy(), 0, []
    classifier = LogisticRegression(solver="lbfgs", warm_start=True, tol=tolerance, max_iter=100_000)
    started = time.perf_counter()
    for decay in DECAYS:
        classifier.set_params(C=1 / decay)
        classifier.fit(given, known)
        steps += int(classifier.n_iter_[0])
        found.append((torch.from_numpy(classifier.coef_).double(), torch.from_numpy(classifier.intercept_).double()))
    return Fits(time.perf_counter() - started, steps, found)


def products(features: Tensor, classes: int, steps: int) -> float:
    """Return the seconds of the matrix products of a path."""
    weights = features.new_zeros((classes, features.shape[1]))
    started = time.perf_counter()
    gram = features.T @ features
    features @ gram
    for _ in range(steps):
        (weights @ features.T) @ features
    if features.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - started


def measure(path: Fits, features: Tensor, labels: Tensor, train: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the objective (mean over the training part) and the test accuracy in percent of each decay."""
    objectives, accuracies = [], []
    for (weights, bias), decay in zip(path.weights, DECAYS, strict=True):
        logits = features.double() @ weights.T + bias
        loss = functional.cross_entropy(logits[:train], labels[:train])
        objectives.append(float(loss + decay / 2 / train * weights.square().sum()))
        accuracies.append(100 * float((logits[train:].argmax(1) == labels[train:]).double().mean()))
    return np.array(objectives), np.array(accuracies)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", type=int, default=3760)
    parser.add_argument("--test", type=int, default=1880)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--classes", type=int, default=47)
    parser.add_argument("--tolerance", type=float, nargs="*", default=[1e-6, 1e-7])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--npz", help="images, with --checkpoint")
    parser.add_argument("--checkpoint")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    features, labels = of_images(options) if options.npz else drawn(options)
    given, known = features[: options.train].to(options.device), labels[: options.train].to(options.device)
    print(
        f"{options.train} x {options.width}, {options.classes} classes, {options.test} test images, "
        f"{len(DECAYS)} decays, best of {options.rounds} rounds, {options.device}, {torch.get_num_threads()} threads"
    )
    print("| tolerance | method | seconds | steps | best top-1 | / scikit-learn | / matrix products |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for tolerance in options.tolerance:
        ways = {"scikit-learn": scikit_learn, "transfer.logistic": ours}
        paths = {name: [way(given, known, options.classes, tolerance)] for name, way in ways.items()}
        for _ in range(options.rounds - 1):
            for name, way in ways.items():
                paths[name].append(way(given, known, options.classes, tolerance))
        best = {name: min(some, key=lambda path: path.seconds) for name, some in paths.items()}
        measured = {name: measure(path, features, labels, options.train) for name, path in best.items()}
        for name, path in best.items():
            needed = products(given, options.classes, path.steps)
            print(
                f"| {tolerance:g} | {name} | {path.seconds:.2f} | {path.steps} | {measured[name][1].max():.2f} | "
                f"{path.seconds / best['scikit-learn'].seconds:.2f} | {path.seconds / needed:.1f} |"
            )
        (objective, accuracy), (other, reference) = measured["transfer.logistic"], measured["scikit-learn"]
        print(
            f"objective minus scikit-learn's: {np.min(objective - other):.1e} to {np.max(objective - other):.1e}; "
            f"top-1 differs by at most {np.abs(accuracy - reference).max():.2f}"
        )


if __name__ == "__main__":
    main()
