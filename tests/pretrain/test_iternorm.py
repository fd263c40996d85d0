"""Test IterNorm against the equations of the paper, against exact whitening, and for its known failures."""

import math
from collections.abc import Callable

import pytest
import torch

from intl_bench.core.seeding import generator
from pretrain.iternorm import AXES, VARIANTS, center, covariance, iter_norm, whiten

both_axes = pytest.mark.parametrize("axis", AXES)
both_variants = pytest.mark.parametrize("variant", VARIANTS)


def normal(seed: int, *shape: int) -> torch.Tensor:
    return torch.from_numpy(generator(seed, "test_iternorm").standard_normal(shape))


def orthogonal(seed: int, n: int) -> torch.Tensor:
    return torch.linalg.qr(normal(seed, n, n)).Q


def covariance_with(eigenvalues: torch.Tensor, seed: int = 0) -> torch.Tensor:
    u = orthogonal(seed, len(eigenvalues))
    return u * eigenvalues @ u.T


def equation_3(z: torch.Tensor, iterations: int, axis: str) -> torch.Tensor:
    """Return the whitened output by the equations of the paper: samples are columns, the whitened axis comes first."""
    x = z.T if axis == "batch" else z
    x = x - x.mean(dim=1, keepdim=True)
    sigma = x @ x.T / (x.shape[1] - 1)
    sigma_n = sigma / torch.trace(sigma)
    p = torch.eye(len(x), dtype=z.dtype)
    for _ in range(iterations):
        p = (3 * p - torch.linalg.matrix_power(p, 3) @ sigma_n) / 2
    white = p / torch.trace(sigma).sqrt() @ x
    return white.T if axis == "batch" else white


@both_axes
@both_variants
@pytest.mark.parametrize("iterations", [1, 2, 4, 7])
def test_output_is_that_of_equation_3(axis: str, variant: str, iterations: int) -> None:
    z = normal(1, 24, 12) * torch.linspace(1, 5, 12) + 3
    white = iter_norm(z, iterations=iterations, axis=axis, variant=variant)
    torch.testing.assert_close(white, equation_3(z, iterations, axis), rtol=0, atol=1e-11)


@both_variants
@pytest.mark.parametrize("iterations", [1, 2, 3, 4, 5])
def test_variants_are_the_same_map_in_float64(variant: str, iterations: int) -> None:
    sigma = covariance_with(torch.logspace(0, -3, 20, dtype=torch.float64))
    a, b = (whiten(sigma, iterations=iterations, variant=name) for name in VARIANTS)
    torch.testing.assert_close(a.matrix, b.matrix, rtol=1e-12, atol=1e-12 * float(a.matrix.abs().max()))
    torch.testing.assert_close(a.variance, b.variance, rtol=1e-12, atol=0)


def test_many_iterations_whiten_exactly() -> None:
    z = normal(2, 50, 6) * torch.tensor([1, 2, 3, 4, 5, 6]) + 1
    white = iter_norm(z, iterations=20, axis="batch")
    torch.testing.assert_close(torch.cov(white.T), torch.eye(6, dtype=z.dtype), rtol=0, atol=1e-12)
    exact = torch.linalg.eigh(torch.cov(z.T))
    zca = exact.eigenvectors * exact.eigenvalues.rsqrt() @ exact.eigenvectors.T
    torch.testing.assert_close(white, (z - z.mean(dim=0)) @ zca, rtol=0, atol=1e-12)


@both_axes
@both_variants
def test_variances_are_those_of_the_output(axis: str, variant: str) -> None:
    z = normal(3, 20, 9)
    variances = whiten(covariance(center(z, axis), axis), variant=variant).variance
    expected = iter_norm(z, axis=axis, variant=variant).var(dim=1 if axis == "channel" else 0)
    torch.testing.assert_close(variances, expected, rtol=0, atol=1e-12)


def float32_error(iterations: int, variant: str) -> float:
    """Return the largest error of the whitened output in float32 at condition number 1e4, by exact eigenvalues."""
    eigenvalues = torch.logspace(0, -4, 64, dtype=torch.float64)
    u, v = orthogonal(4, 64), orthogonal(5, 64)
    x = u * eigenvalues.sqrt() @ v.T  # x x^T has these eigenvalues
    s = eigenvalues / eigenvalues.sum()
    f = torch.ones_like(s)
    for _ in range(iterations):
        f = 1.5 * f - 0.5 * s * f**3
    exact = u * (f * s.sqrt()) @ v.T
    x32 = x.float()
    error = float((whiten(x32 @ x32.T, iterations=iterations, variant=variant).matrix @ x32 - exact).abs().max())
    return error if math.isfinite(error) else math.inf


@pytest.mark.parametrize("iterations", [1, 4, 9, 14, 20, 30])
def test_coupled_iteration_is_stable_in_float32(iterations: int) -> None:
    assert float32_error(iterations, "coupled") <= 1e-4


@pytest.mark.parametrize("iterations", [14, 20, 30])
def test_iteration_as_printed_diverges_in_float32(iterations: int) -> None:
    """Reproduce Figure 3(d), the reason for the coupled iteration as the default."""
    assert float32_error(4, "paper") <= 1e-5
    assert float32_error(iterations, "paper") > 0.1


@both_axes
@both_variants
def test_gradient_is_right(axis: str, variant: str) -> None:
    z = normal(6, 7, 5).requires_grad_()
    function: Callable[[torch.Tensor], torch.Tensor] = lambda z: iter_norm(z, iterations=3, axis=axis, variant=variant)  # noqa: E731
    assert torch.autograd.gradcheck(function, (z,))


@both_axes
def test_scale_and_offset_of_the_embedding_do_not_matter(axis: str) -> None:
    z = normal(7, 16, 10)
    offset = normal(8, 16, 1) if axis == "channel" else normal(8, 1, 10)
    torch.testing.assert_close(iter_norm(1e3 * z + offset, axis=axis), iter_norm(z, axis=axis), rtol=0, atol=1e-11)


@both_axes
def test_permuted_samples_give_permuted_outputs(axis: str) -> None:
    z, order = normal(9, 16, 10), torch.from_numpy(generator(9, "order").permutation(16))
    assert not torch.equal(order, torch.arange(16))
    torch.testing.assert_close(iter_norm(z[order], axis=axis), iter_norm(z, axis=axis)[order], rtol=0, atol=1e-12)


def test_rotated_features_give_rotated_outputs() -> None:
    """Batch whitening commutes with all rotations of features, channel whitening with those that keep their mean."""
    z, rotation = normal(10, 16, 10), orthogonal(11, 10)
    torch.testing.assert_close(
        iter_norm(z @ rotation, axis="batch"), iter_norm(z, axis="batch") @ rotation, rtol=0, atol=1e-12
    )
    ones = torch.ones(10, 1, dtype=z.dtype)
    basis = torch.linalg.qr(torch.cat([ones, normal(12, 10, 9)], dim=1)).Q
    inner = torch.block_diag(torch.eye(1, dtype=z.dtype), orthogonal(13, 9))
    keeping_the_mean = basis @ inner @ basis.T
    torch.testing.assert_close(ones.T @ keeping_the_mean, ones.T)
    channel = iter_norm(z, axis="channel")
    torch.testing.assert_close(
        iter_norm(z @ keeping_the_mean, axis="channel"), channel @ keeping_the_mean, rtol=0, atol=1e-12
    )
    assert not torch.allclose(iter_norm(z @ rotation, axis="channel"), channel @ rotation, rtol=0, atol=1e-2)


@both_axes
@pytest.mark.parametrize("shape", [(40, 5), (5, 40)])
def test_singular_covariance(axis: str, shape: tuple[int, int]) -> None:
    """Null directions of a rounded covariance grow by 1.5 per step: in float32, T = 16 is safe and T = 30 is not."""
    z = normal(14, *shape)
    exact, rounded = (iter_norm(x, iterations=16, axis=axis) for x in (z, z.float()))
    torch.testing.assert_close(rounded.double(), exact, rtol=0, atol=1e-3)


@both_axes
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_does_not_lower_the_precision(axis: str, dtype: torch.dtype) -> None:
    z = normal(15, 32, 16).float()
    with torch.autocast("cpu", dtype=dtype):
        assert (z @ z.T).dtype == dtype  # autocast is on
        inside = iter_norm(z, axis=axis)
    assert inside.dtype == torch.float32
    assert torch.equal(inside, iter_norm(z, axis=axis))
    assert torch.equal(iter_norm(z.to(dtype), axis=axis), iter_norm(z.to(dtype).float(), axis=axis))
    assert iter_norm(z.double(), axis=axis).dtype == torch.float64


def test_input_is_not_changed() -> None:
    z = normal(16, 8, 8)
    before = z.clone()
    iter_norm(z)
    assert torch.equal(z, before)


@pytest.mark.parametrize(
    ("shape", "settings", "message"),
    [
        ((8, 8), {"iterations": 0}, "iterations=0"),
        ((8, 8), {"axis": "features"}, "axis='features'"),
        ((8, 8), {"variant": "newton"}, "variant='newton'"),
        ((8,), {}, r"\(8,\)"),
        ((1, 8), {}, r"\(1, 8\)"),
        ((8, 1), {}, r"\(8, 1\)"),
        ((2, 8, 8), {}, r"\(2, 8, 8\)"),
    ],
)
def test_bad_arguments_are_rejected(shape: tuple[int, ...], settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        iter_norm(torch.ones(shape), **settings)
