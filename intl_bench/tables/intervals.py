"""The difference of two means and its confidence interval, by Student's t."""

import functools
import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

CONFIDENCE = 0.95


class Difference(NamedTuple):
    """The difference of two means.

    Attributes:
        mean: mean of the first minus mean of the second.
        half: half the width of the interval around it; None if it cannot be known.
        df: degrees of freedom of the interval; None without an interval.
    """

    mean: float
    half: float | None
    df: float | None


def paired(first: Sequence[float], second: Sequence[float]) -> Difference:
    """Compare values that belong together in pairs. A single pair has no interval."""
    differences = [a - b for a, b in zip(first, second, strict=True)]
    mean, n = statistics.mean(differences), len(differences)
    if n < 2:
        return Difference(mean, None, None)
    return Difference(mean, t_quantile(n - 1) * statistics.stdev(differences) / math.sqrt(n), float(n - 1))


def welch(first: Sequence[float], second: Sequence[float]) -> Difference:
    """Compare two samples whose variances may differ (Welch, 1947). A sample of one value has no interval."""
    mean = statistics.mean(first) - statistics.mean(second)
    if min(len(first), len(second)) < 2:
        return Difference(mean, None, None)
    parts = [statistics.variance(sample) / len(sample) for sample in (first, second)]
    if sum(parts) == 0:
        return Difference(mean, 0.0, float(len(first) + len(second) - 2))
    freedoms = (len(first) - 1, len(second) - 1)
    df = sum(parts) ** 2 / sum(part**2 / freedom for part, freedom in zip(parts, freedoms, strict=True))
    return Difference(mean, t_quantile(df) * math.sqrt(sum(parts)), df)


def t_quantile(df: float, confidence: float = CONFIDENCE) -> float:
    """Return the t within which Student's distribution has this probability on both sides of 0.

    Args:
        df: degrees of freedom, at least 1.
    """
    low, high = 0.0, 1e4
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if _within(middle, df) < confidence else (low, middle)
    return high


@functools.cache
def _gauss() -> tuple[np.ndarray, np.ndarray]:
    """Return the nodes and weights of a Gauss-Legendre integral from -1 to 1."""
    return np.polynomial.legendre.leggauss(96)


def _within(t: float, df: float) -> float:
    """Return the probability of values from -t to t. With tan(x) = t / sqrt(df) its density is cos(x) ** (df - 1)."""
    end = math.atan(t / math.sqrt(df))
    nodes, weights = _gauss()
    x = end * (nodes + 1) / 2
    integral = end / 2 * float(weights @ np.cos(x) ** (df - 1))
    return 2 * integral * math.exp(math.lgamma((df + 1) / 2) - math.lgamma(df / 2)) / math.sqrt(math.pi)
