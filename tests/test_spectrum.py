"""Spectra against NumPy and known spectra, and the sentences about collapse."""

import math

import numpy as np
import pytest
import torch

from intl_bench.core.seeding import generator
from pretrain.iternorm import AXES
from pretrain.spectrum import collapse, condition_number, effective_rank, eigenvalues, singular_values, summary


def normal(*shape: int) -> torch.Tensor:
    return torch.from_numpy(generator(0, "test_spectrum").standard_normal(shape))


def with_spectrum(values: list[float], m: int = 40, d: int = 20) -> torch.Tensor:
    """An (m, d) matrix with these singular values, its other ones zero."""
    u, v = torch.linalg.qr(normal(m, m)).Q[:, : len(values)], torch.linalg.qr(normal(d, d)).Q[:, : len(values)]
    return u * torch.tensor(values, dtype=torch.float64) @ v.T


@pytest.mark.parametrize("shape", [(50, 8), (8, 50), (9, 9)])
def test_eigenvalues_are_numpys(shape: tuple[int, int]) -> None:
    m, d = shape
    z = normal(m, d) + 10
    expected = np.linalg.eigvalsh(np.cov(z.numpy(), rowvar=False))[::-1]
    values = eigenvalues(z).numpy()
    assert values.shape == (min(m - 1, d),)
    np.testing.assert_allclose(values, expected[: len(values)], rtol=1e-9)
    np.testing.assert_allclose(expected[len(values) :], 0, atol=1e-12)


def test_condition_number_is_numpys() -> None:
    z = normal(50, 8)
    expected = np.linalg.cond(np.cov(z.numpy(), rowvar=False))
    assert condition_number(eigenvalues(z)) == pytest.approx(expected, rel=1e-9)
    assert condition_number(torch.tensor([1.0, 0.0])) == math.inf


@pytest.mark.parametrize("rank", [1, 3, 20])
def test_effective_rank_of_equal_singular_values_is_their_number(rank: int) -> None:
    assert effective_rank(with_spectrum([2.5] * rank)) == pytest.approx(rank, rel=1e-4)


def test_effective_rank_is_rankmes_formula() -> None:
    values = [5.0, 3.0, 1.0, 0.5, 0.01]
    p = np.array([*values, *[0.0] * 15]) / sum(values) + 1e-7
    assert effective_rank(with_spectrum(values)) == pytest.approx(math.exp(-(p * np.log(p)).sum()), rel=1e-9)
    assert effective_rank(1000 * with_spectrum(values)) == pytest.approx(
        effective_rank(with_spectrum(values)), rel=1e-9
    )


def test_singular_values_are_those_put_in() -> None:
    values = singular_values(with_spectrum([3, 2, 1]).float())
    assert values.dtype == torch.float64
    assert values.tolist() == pytest.approx([3, 2, 1, *[0] * 17], abs=1e-6)


def test_summary_of_a_spread_out_embedding() -> None:
    numbers = summary(normal(256, 32).requires_grad_(), iterations=12, axis="batch")
    assert numbers["embedding/rank"] > 30
    assert 1 < numbers["embedding/condition"] < 10
    assert 1 / 32 < numbers["embedding/largest"] < 0.1
    assert numbers["embedding/std"] == pytest.approx(1, abs=0.02)
    assert numbers["whitened/rank"] == pytest.approx(32, rel=1e-3)
    assert numbers["whitened/condition"] == pytest.approx(1, rel=1e-3)
    assert collapse(numbers) is None


@pytest.mark.parametrize("axis", AXES)
def test_whitening_raises_the_rank(axis: str) -> None:
    z = normal(24, 48) if axis == "channel" else normal(48, 24)
    numbers = summary(z * 10 ** -torch.linspace(0, 2, z.shape[1]), iterations=4, axis=axis)
    assert numbers["embedding/rank"] < 0.9 * numbers["whitened/rank"]


@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize("value", [0.0, 1.0, None])
def test_complete_collapse(axis: str, value: float | None) -> None:
    """Also where whitening has nothing left to whiten."""
    z = normal(1, 16).expand(32, 16) if value is None else torch.full((32, 16), value)
    numbers = summary(z, axis=axis)
    assert numbers["embedding/std"] == pytest.approx(0, abs=1e-6)
    assert collapse(numbers) == "complete collapse: all images get the same embedding"


@pytest.mark.parametrize("axis", AXES)
def test_dimensional_collapse(axis: str) -> None:
    numbers = summary(normal(32, 1) @ normal(1, 16) + 0.01 * normal(32, 16), axis=axis)
    assert numbers["embedding/largest"] > 0.99
    sentence = collapse(numbers)
    assert sentence is not None
    assert sentence.startswith("dimensional collapse: the embedding's effective rank is 1.")


def test_no_collapse_is_claimed_of_the_borderline() -> None:
    numbers = summary(with_spectrum([1.0, 1.0, 1.0]), axis="channel")
    assert collapse(numbers) is None
    assert collapse({**numbers, "embedding/rank": 1.99}) is not None
    assert collapse({**numbers, "embedding/std": 0.009}) is not None
