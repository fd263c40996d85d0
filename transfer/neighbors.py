"""The vote of the k nearest neighbors among features, with a search in chunks."""

import functools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.nn import functional as F

from intl_bench.core.copies import fetch, send

# The weights that can be combined with each distance, and their sources
WEIGHTS = {
    "euclidean": ("uniform", "inverse"),  # the paper; solo-learn's `WeightedKNNClassifier`: 1 / (distance + 1e-5)
    "cosine": ("uniform", "softmax"),  # DINO's eval_knn.py: exp(similarity / temperature)
}
# Size of a chunk of the distance matrix. The caches of a CPU hold a chunk of 16 MiB. A GPU needs larger chunks, because
# it would wait for the CPU between small ones. The sizes are fixed and do not depend on the free memory, because they
# decide how sums are rounded.
_CHUNK_BYTES = {"cpu": 16 * 2**20, "cuda": 256 * 2**20}


def chunk_shape(n_test: int, n_train: int, chunk_bytes: int) -> tuple[int, int]:
    """Return the rows (test) and columns (train) of the largest float32 chunk of the distance matrix.

    The chunk has at most `chunk_bytes` (at least one entry). If the matrix is large in both directions, the chunk is 16
    times wider than high. Then it is high enough for a fast matrix product, and few chunks have to be merged.
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
    """Predict labels by a vote of the k nearest training features.

    The distance matrix is computed in chunks, and the k smallest distances of each row are merged over the chunks. Of
    training features with equal distances the first ones are taken. The lowest label wins a tied vote. So the result
    is that of a stable sort of the whole matrix, for every size of the chunks.

    Args:
        train_features: (n, F), on the CPU like all inputs.
        train_labels: (n,) int64, from 0.
        test_features: (m, F).
        k: number of neighbors.
        distance: "euclidean" or "cosine".
        weights: "uniform"; "inverse" (Euclidean only), 1 / (distance + 1e-5); or "softmax" (cosine only),
            exp(similarity / temperature).
        temperature: for "softmax".
        chunk_bytes: largest size of a chunk of the distance matrix; None selects a size for the device.
        device: the device of the computation.

    Returns:
        (m,) int64, on the CPU.

    Raises:
        ValueError: k is not in 1..n, a setting has an impossible value, or distance and weights cannot be combined.
    """
    options: dict[str, Any] = {"distance": distance, "weights": weights, "temperature": temperature}
    options |= {"chunk_bytes": chunk_bytes, "device": device}
    return predict(train_features, train_labels, test_features, [k], **options)[0]


@torch.inference_mode()
def predict(
    train_features: torch.Tensor,
    train_labels: torch.Tensor,
    test_features: torch.Tensor,
    ks: Sequence[int],
    *,
    distance: str,
    weights: str,
    temperature: float,
    device: torch.device | str,
    chunk_bytes: int | None = None,
) -> list[torch.Tensor]:
    """Predict labels for several numbers of neighbors with one search; see `knn_predict`."""
    for k in ks:
        check(k, distance, weights, temperature)
    k = max(ks)
    n, m = len(train_features), len(test_features)
    if k > n:
        raise ValueError(f"k={k}: only {n} training features; expected at most that many neighbors")
    device = torch.device(device)
    test = send(test_features, device)
    if distance == "cosine":
        test = F.normalize(test)
    shape = chunk_shape(m, n, chunk_bytes or _CHUNK_BYTES[device.type])
    search = functools.partial(_search, train_features, k=k, distance=distance, shape=shape)
    nearest, indices, doubtful = search(test, exact=False)
    # Read once here and not after each chunk, because each read waits for the GPU.
    again = doubtful.nonzero().flatten()
    if len(again):
        nearest[again], indices[again], _ = search(test[again], exact=True)
    return [
        _vote(train_features, train_labels, test, nearest[:, :k], indices[:, :k], weights, temperature).cpu()
        for k in ks
    ]


def _search(
    train_features: torch.Tensor, test: torch.Tensor, *, k: int, distance: str, shape: tuple[int, int], exact: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Find the k training features with the smallest scores for each test feature.

    A score is a distance up to a monotonic function that is the same for all training features.

    Args:
        train_features: (n, F), on the CPU.
        test: (m, F), on the device.
        shape: the shape of a chunk, see `chunk_shape`.
        exact: whether the first of several training features with equal scores are taken; otherwise any of them.

    Returns:
        the scores and the indices of the training features, both (m, k), nearest first; and (m,) bool, whether the
        choice could differ with `exact`.
    """
    m, (rows, columns) = len(test), shape
    nearest = test.new_full((m, k), torch.inf)
    indices = torch.zeros((m, k), dtype=torch.int64, device=test.device)
    tied = test.new_full((m, 1), torch.inf)
    for first, train in _parts(train_features, columns, test.device):
        if distance == "cosine":
            train = F.normalize(train)
        # The score is |x - y|^2 without |x|^2, which is the same for the whole row. If |y| = 1, |y|^2 is left out too;
        # the score is then -2 times the cosine.
        norms = train.square().sum(1) if distance == "euclidean" else train.new_zeros(len(train))
        for top in range(0, m, rows):
            part = slice(top, top + rows)
            # The scores are not assigned to a variable. It would keep them in the caches of a CPU beside the next ones.
            values, offsets, bound = _smallest(
                torch.addmm(norms, test[part], train.T, alpha=-2), min(k, len(train)), exact=exact
            )
            # Neighbors from earlier chunks come first, so the stable sort keeps lower indices in front.
            values, order = torch.cat([nearest[part], values], 1).sort(dim=1, stable=True)
            merged = torch.cat([indices[part], offsets + first], 1).gather(1, order)
            nearest[part], indices[part] = values[:, :k], merged[:, :k]
            tied[part] = torch.minimum(tied[part], bound)
    # A tie beyond the last neighbor does not matter.
    return nearest, indices, (tied <= nearest[:, -1:]).any(1)


def _parts(features: torch.Tensor, size: int, device: torch.device) -> Iterator[tuple[int, torch.Tensor]]:
    """Yield the features in parts of `size` rows on the device, each with the index of its first row."""
    for first in range(0, len(features), size):
        part = send(features[first : first + size], device)
        arrived = fetch(part[:1, :1])
        yield first, part
        # The work on this part is queued on the GPU. The next part has to wait until page-locked memory is free.
        arrived.read()


def _smallest(scores: torch.Tensor, k: int, *, exact: bool) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Find the k smallest values of each row, in ascending order. Equal values are in the order of their columns.

    Args:
        scores: (rows, n).
        exact: whether the first columns are taken of values that equal the k-th; otherwise any of them.

    Returns:
        the values and their columns, both (rows, k); and (rows, 1), the k-th value if equal values were left out, else
        infinity.
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
    # One neighbor at a time: each call adds at most one vote per entry, so the order of additions is fixed.
    for j in range(indices.shape[1]):
        if chosen is not None:
            # The distance is computed from the difference. The expanded square has no correct digits near zero, where
            # this weight is largest.
            neighbor = send(train_features[chosen[:, j]], test.device)
            vote = 1 / ((test - neighbor).norm(dim=1).double() + 1e-5)
        elif weights == "softmax":
            # Weights are relative to that of the nearest neighbor, so no temperature overflows. A cosine is -score / 2.
            vote = ((nearest[:, 0] - nearest[:, j]).double() / 2 / temperature).exp()
        else:
            vote = torch.ones(len(test), dtype=torch.float64, device=test.device)
        votes.scatter_add_(1, labels[:, j : j + 1], vote[:, None])
    return votes.argmax(1)


def check(k: int, distance: str, weights: str, temperature: float) -> None:
    """Refuse settings of the vote that are impossible.

    Raises:
        ValueError: the message names the setting.
    """
    if k < 1:
        raise ValueError(f"k={k}: expected at least 1")
    if distance not in WEIGHTS:
        raise ValueError(f"distance={distance!r}: expected one of {', '.join(WEIGHTS)}")
    if weights not in WEIGHTS[distance]:
        raise ValueError(
            f"weights={weights!r}: with distance={distance} expected one of {', '.join(WEIGHTS[distance])}"
        )
    if not temperature > 0:
        raise ValueError(f"temperature={temperature}: expected more than 0")
