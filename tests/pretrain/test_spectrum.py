"""Test spectra against NumPy and known spectra, the exponent of the power law, and the kinds of collapse."""

import math

import numpy as np
import pytest
import torch

from intl_bench.core.seeding import generator
from pretrain.iternorm import AXES, iter_norm
from pretrain.spectrum import (
    alpha,
    collapse,
    compute_spectrum,
    condition_number,
    eigenvalues,
    kind,
    numbers,
    summary,
)


def normal(*shape: int) -> torch.Tensor:
    return torch.from_numpy(generator(0, "test_spectrum").standard_normal(shape))


def with_spectrum(values: list[float], m: int = 40, d: int = 20) -> torch.Tensor:
    """Return an (m, d) matrix with these singular values; the others are zero."""
    u, v = torch.linalg.qr(normal(m, m)).Q[:, : len(values)], torch.linalg.qr(normal(d, d)).Q[:, : len(values)]
    return u * torch.tensor(values, dtype=torch.float64) @ v.T


@pytest.mark.parametrize("shape", [(50, 8), (8, 50), (9, 9)])
def test_eigenvalues_as_numpy(shape: tuple[int, int]) -> None:
    m, d = shape
    z = normal(m, d) + 10
    expected = np.linalg.eigvalsh(np.cov(z.numpy(), rowvar=False))[::-1]
    values = eigenvalues(z).numpy()
    assert values.shape == (min(m - 1, d),)
    np.testing.assert_allclose(values, expected[: len(values)], rtol=1e-9)
    np.testing.assert_allclose(expected[len(values) :], 0, atol=1e-12)
    np.testing.assert_allclose(
        compute_spectrum(z).singular_values.numpy(), np.linalg.svd(z.numpy(), compute_uv=False), rtol=1e-9
    )


@pytest.mark.parametrize("shape", [(64, 32), (32, 64)])
def test_a_large_mean_does_not_lower_the_precision(shape: tuple[int, int]) -> None:
    """Test the embedding of a nearly collapsed network: small differences and a large common part, in float32."""
    z = (100 + 0.01 * normal(*shape)).float()
    expected = np.linalg.svd((z.double() - z.double().mean(dim=0)).numpy(), compute_uv=False) ** 2 / (shape[0] - 1)
    values = eigenvalues(z)
    np.testing.assert_allclose(values.numpy(), expected[: len(values)], rtol=1e-9)


def test_zeros_by_construction_are_left_out() -> None:
    """Whitening of samples centers each sample over its features, which removes one dimension of the features."""
    z = normal(60, 20)
    assert len(eigenvalues(z)) == 20
    white = iter_norm(z.float(), axis="channel")
    assert len(eigenvalues(white)) == 19
    assert condition_number(eigenvalues(white)) < 20
    assert len(eigenvalues(iter_norm(z, axis="batch"))) == 20
    assert len(eigenvalues(z[:15])) == 14


def test_exact_zeros_stay_zero() -> None:
    values = eigenvalues(with_spectrum([3, 2, 1]))
    assert (values[3:] == 0).all()
    assert numbers(values)["inverse_condition"] == 0
    assert numbers(values)["condition"] == math.inf


@pytest.mark.parametrize("shape", [(1, 8), (0, 8), (8,), (2, 3, 4)])
def test_invalid_matrices_are_rejected(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="expected a matrix of at least 2 samples"):
        compute_spectrum(torch.zeros(shape))


@pytest.mark.parametrize("exponent", [0.5, 1.0, 2.0])
def test_alpha_recovers_a_power_law(exponent: float) -> None:
    values = 7 * torch.arange(1, 300, dtype=torch.float64) ** -exponent
    assert alpha(values) == pytest.approx(exponent, abs=1e-9)
    assert alpha(values[:20]) == pytest.approx(exponent, abs=1e-9)
    samples = torch.from_numpy(generator(1, "test_spectrum").standard_normal((60_000, 120))) * values[:120].sqrt()
    assert alpha(eigenvalues(samples)) == pytest.approx(exponent, abs=1e-2)


def test_alpha_is_weighted_least_squares() -> None:
    """Compare with NumPy, whose weights multiply the residuals before they are squared."""
    values = np.sort(generator(2, "test_spectrum").exponential(size=150))[::-1].copy()
    rank = np.arange(4, 101)
    slope = np.polyfit(np.log(rank), np.log(values[3:100]), 1, w=rank**-0.5)[0]
    assert alpha(torch.from_numpy(values)) == pytest.approx(-slope, rel=1e-9)


def test_alpha_needs_eigenvalues() -> None:
    assert math.isnan(alpha(torch.ones(5)))
    assert math.isnan(alpha(torch.tensor([1.0] * 5 + [0.0] * 20)))
    assert alpha(torch.ones(6)) == pytest.approx(0, abs=1e-12)


def test_numbers_of_equal_eigenvalues() -> None:
    found = numbers(torch.full((30,), 0.25))
    assert found["rank"] == pytest.approx(30, rel=1e-4)
    assert found["condition"] == found["inverse_condition"] == 1
    assert found["alpha"] == pytest.approx(0, abs=1e-12)
    assert found["largest"] == pytest.approx(1 / 30)
    assert found["vanishing"] == 0
    assert found["trace"] == pytest.approx(7.5)


def test_numbers_of_a_matrix_are_those_of_its_eigenvalues() -> None:
    """A common part changes RankMe only, which does not center: it becomes lower."""
    z = normal(50, 12) + 5
    found, alone = compute_spectrum(z).numbers(), numbers(eigenvalues(z))
    shares = np.linalg.svd(z.numpy(), compute_uv=False)
    shares = shares / shares.sum() + 1e-7
    assert found["rank"] == pytest.approx(math.exp(-(shares * np.log(shares)).sum()), rel=1e-9)
    assert found["rank"] < 0.5 * alone["rank"]
    centered = compute_spectrum(z - z.mean(dim=0)).numbers()
    assert centered["rank"] == pytest.approx(alone["rank"], rel=1e-5)
    assert {key: found[key] for key in alone if key != "rank"} == {key: alone[key] for key in alone if key != "rank"}


def test_condition_number_as_numpy() -> None:
    z = normal(50, 8)
    expected = np.linalg.cond(np.cov(z.numpy(), rowvar=False))
    assert condition_number(eigenvalues(z)) == pytest.approx(expected, rel=1e-9)
    assert condition_number(torch.tensor([1.0, 0.0])) == math.inf


@pytest.mark.parametrize("rank", [1, 3, 20])
def test_effective_rank_of_equal_singular_values_is_their_number(rank: int) -> None:
    assert compute_spectrum(with_spectrum([2.5] * rank)).numbers()["rank"] == pytest.approx(rank, rel=1e-4)


def test_effective_rank_follows_the_formula_of_rankme() -> None:
    values = [5.0, 3.0, 1.0, 0.5, 0.01]
    p = np.array([*values, *[0.0] * 15]) / sum(values) + 1e-7
    assert compute_spectrum(with_spectrum(values)).numbers()["rank"] == pytest.approx(
        math.exp(-(p * np.log(p)).sum()), rel=1e-9
    )
    assert compute_spectrum(1000 * with_spectrum(values)).numbers()["rank"] == pytest.approx(
        compute_spectrum(with_spectrum(values)).numbers()["rank"], rel=1e-9
    )


def test_singular_values_of_a_known_matrix() -> None:
    values = compute_spectrum(with_spectrum([3, 2, 1]).float()).singular_values
    assert values.dtype == torch.float64
    assert values.tolist() == pytest.approx([3, 2, 1, *[0] * 17], abs=1e-6)


def test_summary_of_a_spread_out_embedding() -> None:
    z = normal(256, 32).requires_grad_()
    found = summary({"embedding": z, "transformed": iter_norm(z, iterations=12, axis="batch")})
    assert found["embedding/rank"] > 30
    assert 1 < found["embedding/condition"] < 10
    assert found["embedding/inverse_condition"] == pytest.approx(1 / found["embedding/condition"])
    assert 1 / 32 < found["embedding/largest"] < 0.1
    assert found["embedding/std"] == pytest.approx(1, abs=0.02)
    assert found["transformed/rank"] == pytest.approx(32, rel=1e-3)
    assert found["transformed/condition"] == pytest.approx(1, rel=1e-3)
    assert found["transformed/alpha"] == pytest.approx(0, abs=1e-3) != pytest.approx(found["embedding/alpha"])
    assert collapse(found, 32) is None
    assert summary({"embedding": z}) == {key: value for key, value in found.items() if key.startswith("embedding/")}


@pytest.mark.parametrize("axis", AXES)
def test_whitening_raises_the_rank(axis: str) -> None:
    z = normal(24, 48) if axis == "channel" else normal(48, 24)
    z = z * 10 ** -torch.linspace(0, 2, z.shape[1])
    found = summary({"embedding": z, "transformed": iter_norm(z, axis=axis)})
    assert found["embedding/rank"] < 0.9 * found["transformed/rank"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("value", [0.0, 1.0, None])
def test_complete_collapse(value: float | None, dtype: torch.dtype) -> None:
    """Include embeddings for which whitening fails."""
    z = normal(1, 16).expand(32, 16) if value is None else torch.full((32, 16), value)
    z = z.to(dtype)
    found = summary({"embedding": z, "transformed": iter_norm(z)})
    assert found["embedding/std"] == pytest.approx(0, abs=1e-6)
    assert found["embedding/trace"] == pytest.approx(0, abs=1e-25)
    assert kind(compute_spectrum(z).numbers(), 16) == "complete"
    assert collapse(found, 16) == "complete collapse: all images get the same embedding"


def test_complete_collapse_with_a_little_noise() -> None:
    common = normal(1, 16)
    noise = torch.from_numpy(generator(3, "test_spectrum").standard_normal((64, 16)))
    assert kind(compute_spectrum(common + 0.005 * noise).numbers(), 16) == "complete"
    assert kind(compute_spectrum(common + 0.05 * noise).numbers(), 16) != "complete"


@pytest.mark.parametrize(("kept", "name"), [(1, "dimensional"), (3, "dimensional"), (5, "none"), (40, "none")])
def test_dimensional_collapse_if_few_directions_are_used(kept: int, name: str) -> None:
    """Keep `kept` of 40 directions; scale the others by a thousandth."""
    z = normal(400, 40) * torch.tensor([1.0] * kept + [1e-3] * (40 - kept))
    found = compute_spectrum(z).numbers()
    assert found["vanishing"] == (40 - kept) / 40
    assert kind(found, 40) == name
    sentence = collapse(summary({"embedding": z}), 40)
    if name == "none":
        assert sentence is None
    else:
        assert sentence is not None
        assert sentence.startswith(
            f"dimensional collapse: the embedding has an effective rank of {found['rank']:.1f} of 40,"
        )


def test_one_direction_with_nearly_all_variance_is_dimensional_collapse() -> None:
    values = torch.tensor([1.0] + [1e-6] * 127, dtype=torch.float64)
    found = {**numbers(values), "std": 0.5}
    assert found["vanishing"] == 0
    assert found["rank"] == pytest.approx(2.45, abs=0.01)  # of 128
    assert kind(found, 128) == "dimensional"
    most = torch.tensor([1.0] + [0.04 / 31] * 31, dtype=torch.float64)  # RankMe 9.9 of 32, but 96% in one direction
    found = {**numbers(most), "std": 0.5}
    assert found["rank"] > 3.2
    assert kind(found, 32) == "dimensional"


def test_a_steep_power_law_is_not_collapse() -> None:
    rank = torch.arange(1, 61, dtype=torch.float64)
    assert kind(compute_spectrum(normal(500, 60) / rank).numbers(), 60) == "none"  # alpha 2
    assert kind(compute_spectrum(normal(500, 60) / rank**3).numbers(), 60) == "dimensional"


def test_nonfinite_values_are_undefined() -> None:
    z = normal(32, 16)
    z[3, 4] = math.inf
    found = compute_spectrum(z).numbers()
    assert all(math.isnan(value) for value in found.values())
    assert kind(found, 16) == "undefined"
    assert collapse(summary({"embedding": normal(32, 16), "transformed": z}), 16) is None
