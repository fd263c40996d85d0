"""Spectra as plain numbers, for records, JSON and plots."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from intl_bench.spectra.measure import Spectra
from pretrain import spectrum
from pretrain.spectrum import Spectrum

_POINTS = 256  # largest number of eigenvalues of a curve


def record_values(measured: Spectra) -> tuple[dict[str, float], dict[str, Any]]:
    """Return what a record stores of the spectra of a checkpoint.

    Returns:
        metrics: for each spectrum, such as "embedding": `embedding/rank`, RankMe in percent of the largest possible
            rank; `embedding/inverse_condition`, from 0 to 1; `embedding/log10_condition`; and `embedding/std`. A number
            that is not finite is left out.
        details: `spectra`, which holds for each spectrum `samples`, `dimension`, `collapse`, `numbers` (None for a
            number that is not finite) and the values of `curve`.
    """
    metrics: dict[str, float] = {}
    details = {}
    for name, one in measured.spectra.items():
        numbers = one.numbers()
        values = {
            "rank": 100 * numbers["rank"] / one.largest_rank,
            "inverse_condition": numbers["inverse_condition"],
            "log10_condition": -math.log10(numbers["inverse_condition"] or math.nan),
            "std": numbers["std"],
        }
        # RankMe adds 1e-7, so a full rank is slightly above the largest possible rank.
        metrics |= {f"{name}/{key}": min(value, 100.0) for key, value in values.items() if math.isfinite(value)}
        about = {
            "samples": one.samples,
            "dimension": one.dimension,
            "collapse": spectrum.kind(numbers, one.largest_rank),
        }
        details[name] = {**about, "numbers": json_values(numbers), **curve(one)}
    return metrics, {"spectra": details}


def curve(one: Spectrum) -> dict[str, Any]:
    """Return at most 256 eigenvalues as plain numbers: all of them, or a choice with equal distances in log rank.

    Returns:
        `ranks` (from 1) and `eigenvalues`, both empty if the spectrum is not finite; `count`, the number of all
        eigenvalues, and `mean`, their mean (0 if the spectrum is not finite).
    """
    values = one.eigenvalues.numpy()
    count, finite = len(values), bool(np.isfinite(values).all())
    ranks = np.arange(1, count + 1)
    if count > _POINTS:
        ranks = np.unique(np.geomspace(1, count, _POINTS).round().astype(int))
    if not finite:
        ranks = ranks[:0]
    mean = float(values.mean()) if finite else 0.0
    return {"ranks": ranks.tolist(), "eigenvalues": values[ranks - 1].tolist(), "count": count, "mean": mean}


def json_values(value: Any) -> Any:
    """Return a copy of nested values with None for numbers that JSON does not have."""
    if isinstance(value, Mapping):
        return {key: json_values(part) for key, part in value.items()}
    if isinstance(value, list):
        return [json_values(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
