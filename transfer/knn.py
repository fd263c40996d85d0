"""k nearest neighbors on frozen features.

The paper's: raw features, Euclidean distance, k = 5, every neighbor one vote, ties of the vote to the lowest label
(the authors' cifar/eval/evaluate.py). configs/knn/ has solo-learn's and DINO's beside it.
"""

import dataclasses
import functools
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

from intl_bench.core import distributed
from intl_bench.core.copies import fetch, send
from intl_bench.core.errors import InputError
from intl_bench.core.identity import runtime_only
from pretrain.checkpoint import Checkpoint
from pretrain.images.data import DataConfig
from transfer import precision as precisions
from transfer.features import extract_both, fingerprints, from_checkpoint
from transfer.scores import describe_normalization
from transfer.task import Outcome, Task

__all__ = ["TASK", "KnnConfig", "chunk_shape", "knn_predict"]

# Which weights go with which distance, and where they come from.
_WEIGHTS = {
    "euclidean": ("uniform", "inverse"),  # the paper; solo-learn's `WeightedKNNClassifier`: 1 / (distance + 1e-5)
    "cosine": ("uniform", "softmax"),  # DINO's eval_knn.py: exp(similarity / temperature)
}
# Of the distance matrix at a time. A CPU's caches hold a part of that size; a GPU would wait for the host between parts
# as small. Not a share of what is free: the size decides how sums are rounded.
_CHUNK_BYTES = {"cpu": 16 * 2**20, "cuda": 256 * 2**20}


@dataclasses.dataclass(frozen=True, kw_only=True)
class KnnConfig:
    """Which neighbors vote, and how.

    Attributes:
        resize, crop: shorter side of an image and side of its central square, in pixels; None leaves the image.
        temperature: of the weights "softmax".
        precision: of the backbone's forward pass, "fp32" or "bf16"; distances are float32.
    """

    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    workers: int = runtime_only(8)
    device: str = runtime_only("auto")
    resize: int | None = None
    crop: int | None = None
    k: int = 5
    distance: str = "euclidean"
    weights: str = "uniform"
    temperature: float = 0.07
    precision: str = precisions.DEFAULT

    def unused(self) -> set[str]:
        """See `intl_bench.core.identity.identity`."""
        return precisions.unused(self.precision) | (set() if self.weights == "softmax" else {"temperature"})

    def __post_init__(self) -> None:
        _check(self.k, self.distance, self.weights, self.temperature)
        precisions.check(self.precision)


def protocol(config: KnnConfig) -> dict[str, Any]:
    """How this evaluation measures, in words for a footnote; what it is, `core.identity.identity` says."""
    return {
        "protocol": "knn",
        "resize": config.resize,
        "crop": config.crop,
        "k": config.k,
        "distance": config.distance,
        "weights": config.weights,
        "temperature": config.temperature if config.weights == "softmax" else None,
        "normalization": describe_normalization(config.data),
        "precision": precisions.stated(config.precision),
    }


def run(checkpoint: Checkpoint, config: KnnConfig, seed: int, *, folder: Path) -> Outcome:
    """Scores a checkpoint: `knn5` (for k = 5), the share of test images that their neighbors classify right.

    Nothing is random (`seed` is not used) and nothing is resumed (`folder` is not used): the features are cached.

    Raises:
        InputError: fewer training images than k, or what `extract` raises.
    """
    with distributed.start(config.device) as process:
        train, test = extract_both(checkpoint, config, process)
        if config.k > len(train.labels):
            raise InputError(f"k={config.k}: the data set has only {len(train.labels)} training images")
        predictions = knn_predict(
            train.features,
            train.labels,
            test.features,
            k=config.k,
            distance=config.distance,
            weights=config.weights,
            temperature=config.temperature,
            device=process.device,
        )
    correct = int((predictions == test.labels).sum())
    return Outcome(
        metrics={f"knn{config.k}": 100 * correct / len(test.labels)},
        details={"train_images": len(train.labels), "test_images": len(test.labels), "correct": correct},
    )


TASK = Task(
    config=KnnConfig,
    run=run,
    protocol=protocol,
    fingerprints=fingerprints,
    from_checkpoint=from_checkpoint,
    seeded=False,
)


def chunk_shape(n_test: int, n_train: int, chunk_bytes: int) -> tuple[int, int]:
    """Rows (test) and columns (train) of the largest part of the distance matrix that fits `chunk_bytes` in float32.

    Sixteen times wider than high where both sides are long: high enough for a fast matrix product, and few merges.
    """
    entries = max(1, chunk_bytes // 4)
    rows = min(n_test, max(1, math.isqrt(entries // 16)))
    columns = min(n_train, entries // rows)
    return min(n_test, entries // columns), columns


@torch.inference_mode()
def knn_predict(
    train_features: torch.Tensor,
    train_labels: torch.Tensor,
    test_features: torch.Tensor,
    *,
    k: int = 5,
    distance: str = "euclidean",
    weights: str = "uniform",
    temperature: float = 0.07,
    chunk_bytes: int | None = None,
    device: torch.device | str = "cpu",
) -> torch.Tensor:
    """Labels by a vote of the k nearest training features.

    The distance matrix exists one chunk at a time; the k smallest of every row are merged from chunk to chunk. Of
    training features at the same distance those that come first count, and a tied vote goes to the lowest label, so
    the result is that of a stable sort of the whole matrix, whatever the size of the chunks.

    Args:
        train_features: (n, F), on the CPU as the labels and the test features are.
        train_labels: (n,) int64, from 0.
        test_features: (m, F).
        k: neighbors.
        distance: "euclidean" or "cosine".
        weights: "uniform", "inverse" (Euclidean only: 1 / (distance + 1e-5)) or "softmax" (cosine only:
            exp(similarity / temperature)).
        temperature: for "softmax".
        chunk_bytes: most bytes of the distance matrix at a time; None for what suits the device.
        device: where to compute.

    Returns:
        (m,) int64, on the CPU.

    Raises:
        ValueError: k outside 1..n, or settings that do not go together.
    """
    _check(k, distance, weights, temperature)
    n, m = len(train_features), len(test_features)
    if k > n:
        raise ValueError(f"k={k}: only {n} training features")
    device = torch.device(device)
    test = send(test_features, device)
    if distance == "cosine":
        test = F.normalize(test)
    shape = chunk_shape(m, n, chunk_bytes or _CHUNK_BYTES[device.type])
    search = functools.partial(_search, train_features, k=k, distance=distance, shape=shape)
    nearest, indices, doubtful = search(test, exact=False)
    # Looked at once, at the end: after every chunk a GPU would have to be waited for.
    again = doubtful.nonzero().flatten()
    if len(again):
        nearest[again], indices[again], _ = search(test[again], exact=True)
    return _vote(train_features, train_labels, test, nearest, indices, weights, temperature).cpu()


def _search(
    train_features: torch.Tensor, test: torch.Tensor, *, k: int, distance: str, shape: tuple[int, int], exact: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The k smallest scores of each test feature.

    Args:
        test: (m, F), on the device.
        shape: of a chunk, see `chunk_shape`.
        exact: of training features equally far from a test feature the first ones are taken, otherwise any.

    Returns:
        The scores and the training features' numbers, both (m, k), nearest first; and where `exact` could choose
        others, (m,) bool.
    """
    m, (rows, columns) = len(test), shape
    nearest = test.new_full((m, k), torch.inf)
    indices = torch.zeros((m, k), dtype=torch.int64, device=test.device)
    tied = test.new_full((m, 1), torch.inf)
    for first, train in _parts(train_features, columns, test.device):
        if distance == "cosine":
            train = F.normalize(train)
        # |x - y|^2 without |x|^2, which is the same for the whole row; with |y| = 1 the order is the cosine's.
        norms = train.square().sum(1) if distance == "euclidean" else train.new_zeros(len(train))
        for top in range(0, m, rows):
            at = slice(top, top + rows)
            # The scores get no name, under which they would stay in a CPU's caches beside the next ones.
            values, places, bound = _smallest(
                torch.addmm(norms, test[at], train.T, alpha=-2), min(k, len(train)), exact=exact
            )
            # The earlier chunks' come first, so a stable sort keeps the lower index in front.
            values, order = torch.cat([nearest[at], values], 1).sort(dim=1, stable=True)
            places = torch.cat([indices[at], places + first], 1).gather(1, order)
            nearest[at], indices[at] = values[:, :k], places[:, :k]
            tied[at] = torch.minimum(tied[at], bound)
    # A tie farther away than the last neighbor has left none of them out.
    return nearest, indices, (tied <= nearest[:, -1:]).any(1)


def _parts(features: torch.Tensor, size: int, device: torch.device) -> Iterator[tuple[int, torch.Tensor]]:
    """The number of its first row, and `size` of the `features` on the device, until there are no more."""
    for first in range(0, len(features), size):
        part = send(features[first : first + size], device)
        arrived = fetch(part[:1, :1])
        yield first, part
        # A GPU has got its work on this part; the next one waits for its place in page-locked memory.
        arrived.read()


def _smallest(scores: torch.Tensor, k: int, *, exact: bool) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The k smallest of each row, ascending, equal values in the order of columns.

    Args:
        scores: (rows, n).
        exact: of values that equal the k-th those of the first columns are taken, otherwise any.

    Returns:
        The values and their columns, both (rows, k); and (rows, 1) the k-th value where others that equal it were
        left out, infinity elsewhere.
    """
    n = scores.shape[1]
    if k == n:
        return *scores.sort(dim=1, stable=True), scores.new_full((len(scores), 1), torch.inf)
    values, columns = scores.topk(k + 1, dim=1, largest=False)
    bound, columns = values[:, k - 1 : k], columns[:, :k]
    if exact:
        column = torch.arange(n, dtype=torch.int32, device=scores.device)
        keys = torch.where(scores < bound, column - n, torch.where(scores == bound, column, n))
        columns = keys.topk(k, dim=1, largest=False).indices
    tied = bound.where(values[:, k:] == bound, torch.inf)
    columns = columns.sort(dim=1).values
    values, order = scores.gather(1, columns).sort(dim=1, stable=True)
    return values, columns.gather(1, order), tied


def _vote(
    train_features: torch.Tensor,
    train_labels: torch.Tensor,
    test: torch.Tensor,
    nearest: torch.Tensor,
    indices: torch.Tensor,
    weights: str,
    temperature: float,
) -> torch.Tensor:
    labels = send(train_labels, test.device)[indices]
    chosen = indices.cpu() if weights == "inverse" else None
    votes = torch.zeros((len(test), int(train_labels.max()) + 1), dtype=torch.float64, device=test.device)
    # One neighbor at a time: no two additions meet in one cell, so their order, and the result, is always the same.
    for j in range(indices.shape[1]):
        if chosen is not None:
            # From the difference itself: near zero, where this weight is large, the expanded square has no digits left.
            neighbor = send(train_features[chosen[:, j]], test.device)
            vote = 1 / ((test - neighbor).norm(dim=1).double() + 1e-5)
        elif weights == "softmax":
            # Relative to the nearest one's weight, for then no temperature overflows. A cosine is -score / 2.
            vote = ((nearest[:, 0] - nearest[:, j]).double() / 2 / temperature).exp()
        else:
            vote = torch.ones(len(test), dtype=torch.float64, device=test.device)
        votes.scatter_add_(1, labels[:, j : j + 1], vote[:, None])
    return votes.argmax(1)


def _check(k: int, distance: str, weights: str, temperature: float) -> None:
    if k < 1:
        raise ValueError(f"k={k}: expected at least 1")
    if distance not in _WEIGHTS:
        raise ValueError(f"distance={distance!r}: expected one of {', '.join(_WEIGHTS)}")
    if weights not in _WEIGHTS[distance]:
        raise ValueError(
            f"weights={weights!r}: with distance={distance} expected one of {', '.join(_WEIGHTS[distance])}"
        )
    if not temperature > 0:
        raise ValueError(f"temperature={temperature}: expected more than 0")
