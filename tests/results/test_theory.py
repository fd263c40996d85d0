"""The theory of the paper, tested on the code: Theorems 1 and 2, Propositions 1 and 2, Eqns. 4, 5 and 7, their limits.

The tests use h_T as a function of one number, and the matrices that the iteration computes from a covariance, in
float32 and float64.
"""

from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from intl_bench.core.seeding import generator
from pretrain.iternorm import AXES, VARIANTS, iter_norm, t_whitening_function, whiten
from pretrain.methods.intl import INTLLoss, trace_loss
from pretrain.spectrum import eigenvalues

seeds = st.integers(0, 2**32)
few = settings(max_examples=40, deadline=None, derandomize=True)


def draw(seed: int, *shape: int) -> torch.Tensor:
    return torch.from_numpy(generator(seed, "test_theory").standard_normal(shape))


def orthogonal(seed: int, n: int) -> torch.Tensor:
    return torch.linalg.qr(draw(seed, n, n)).Q


def on_simplex(seed: int, d: int, which: int = 0) -> torch.Tensor:
    """Draw x (d,) with x_i >= 0 and sum one: sometimes nearly even, sometimes concentrated on few axes."""
    rng = generator(seed, "simplex", which)
    return torch.from_numpy(rng.dirichlet(np.full(d, rng.choice([0.2, 1.0, 5.0]))))


def spectrum(z: torch.Tensor, axis: str) -> torch.Tensor:
    """Return the eigenvalues of the covariance that is whitened for `axis`, ascending."""
    return torch.linalg.eigvalsh(torch.cov(z if axis == "channel" else z.T))


def intl(x: torch.Tensor, u: torch.Tensor, iterations: int) -> float:
    """Compute INTL(x) of Eqn. 7 with the code: the trace loss of a covariance with eigenvalues x and eigenvectors u."""
    return float(trace_loss(whiten(u * x @ u.T, iterations=iterations).variance))


@few
@given(
    seed=seeds,
    shape=st.tuples(st.integers(3, 24), st.integers(3, 24)),
    iterations=st.integers(1, 5),
    axis=st.sampled_from(AXES),
    variant=st.sampled_from(VARIANTS),
)
def test_theorem_1(seed: int, shape: tuple[int, int], iterations: int, axis: str, variant: str) -> None:
    z = draw(seed, *shape) @ torch.diag(torch.logspace(0, -1, shape[1], dtype=torch.float64))
    before = spectrum(z, axis).clamp_min(0)
    after = spectrum(iter_norm(z, iterations=iterations, axis=axis, variant=variant), axis)
    expected = t_whitening_function(iterations)(before / before.sum())
    torch.testing.assert_close(after, expected, rtol=0, atol=1e-11)


@few
@given(x=st.fractions(0, 1, max_denominator=50), iterations=st.integers(0, 4))
def test_t_whitening_function_is_that_of_theorem_1(x: Fraction, iterations: int) -> None:
    """It equals the recursion in exact arithmetic."""
    f = Fraction(1)
    for _ in range(iterations):
        f = Fraction(3, 2) * f - Fraction(1, 2) * x * f**3
    value = t_whitening_function(iterations)(torch.tensor(float(x), dtype=torch.float64))
    assert float(value) == pytest.approx(float(x * f**2), rel=1e-13, abs=1e-15)


STEPS = (1, 2, 4, 7, 9, 12, 16, 20, 30)
# At a condition number of 1e4 and every T up to 30, the relative errors of the eigenvalues of the whitened output are
# at most about 3e-13 and 1e-4. This is little more than the error of rounding the covariance, times 1e4.
TOLERANCE = {torch.float64: 2e-12, torch.float32: 5e-4}
both_dtypes = pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
ILL_CONDITIONED = torch.logspace(0, -4, 16, dtype=torch.float64)


def whitened(values: torch.Tensor, iterations: int, dtype: torch.dtype, variant: str = "coupled") -> torch.Tensor:
    """Compute Phi_T Sigma Phi_T^T in the basis of the eigenvectors of Sigma. By Theorem 1 it is diagonal.

    The iteration runs in `dtype`. The product is computed in float64.

    Args:
        values: the eigenvalues (n,) of Sigma.
    """
    u = orthogonal(7, len(values))
    sigma = (u * values @ u.T).to(dtype)
    phi = whiten(sigma, iterations=iterations, variant=variant).matrix.double()
    return u.T @ phi @ sigma.double() @ phi.T @ u


@both_dtypes
@pytest.mark.parametrize("iterations", STEPS)
def test_theorem_1_on_ill_conditioned_matrices(dtype: torch.dtype, iterations: int) -> None:
    """The eigenvectors do not change and the eigenvalues become h_T, at a condition number of 1e4 and for every T."""
    expected = t_whitening_function(iterations)(ILL_CONDITIONED / ILL_CONDITIONED.sum())
    output = whitened(ILL_CONDITIONED, iterations, dtype)
    torch.testing.assert_close(output.diagonal(), expected, rtol=TOLERANCE[dtype], atol=0)
    assert float((output - output.diagonal().diag()).abs().max()) < TOLERANCE[dtype]


@both_dtypes
@pytest.mark.parametrize("iterations", STEPS)
def test_equation_5_range_and_order_on_matrices(dtype: torch.dtype, iterations: int) -> None:
    """Output eigenvalues are in (0, 1) and have the order of the input, up to rounding near the limit 1."""
    after, tolerance = whitened(ILL_CONDITIONED, iterations, dtype).diagonal(), TOLERANCE[dtype]
    assert (after > 0).all()
    assert (after < 1 + tolerance).all()
    short_of_one = after[:-1] < 1 - 10 * tolerance
    assert (after[:-1] > after[1:])[short_of_one].all()
    assert (after[:-1] > after[1:] - tolerance).all()
    assert short_of_one.any() == (iterations <= 12)


@both_dtypes
def test_proposition_2_and_equation_4_on_matrices(dtype: torch.dtype) -> None:
    """Each eigenvalue grows with T until it is one. The condition number falls to one."""
    tolerance = TOLERANCE[dtype]
    after = torch.stack([whitened(ILL_CONDITIONED, t, dtype).diagonal() for t in range(1, 31)])
    now, then = after[:-1], after[1:]
    short_of_one = now < 1 - 10 * tolerance
    assert (then > now)[short_of_one].all()
    assert (then > now - tolerance).all()
    condition = after[:, 0] / after[:, -1]
    assert (condition.diff() < tolerance).all()
    assert condition[0] > 1e3
    torch.testing.assert_close(after[-1], torch.ones_like(after[-1]), rtol=0, atol=tolerance)


@pytest.mark.parametrize(("dtype", "converges", "breaks"), [(torch.float32, 4, 9), (torch.float64, 9, 12)])
def test_iteration_as_printed_breaks_the_propositions(dtype: torch.dtype, converges: int, breaks: int) -> None:
    """Figure 3(d): with Eqn. 3 as printed, eigenvalues leave (0, 1) from T = 9 in float32 and become NaN later.

    Covariance, T and precision are those of the tests above. So the arithmetic diverges, not the map.
    """
    good = t_whitening_function(converges)(ILL_CONDITIONED / ILL_CONDITIONED.sum())
    before = whitened(ILL_CONDITIONED, converges, dtype, "paper").diagonal()
    torch.testing.assert_close(before, good, rtol=TOLERANCE[dtype], atol=0)
    for iterations in range(breaks, breaks + 3):
        assert whitened(ILL_CONDITIONED, iterations, dtype, "paper").diagonal().max() > 10
        assert whitened(ILL_CONDITIONED, iterations, dtype, "coupled").diagonal().max() < 1 + TOLERANCE[dtype]
    assert whitened(ILL_CONDITIONED, 20, dtype, "paper").isnan().all()


@pytest.mark.parametrize(("dtype", "safe", "too_many"), [(torch.float32, 16, 40), (torch.float64, 40, 80)])
def test_range_of_validity_singular_covariance(dtype: torch.dtype, safe: int, too_many: int) -> None:
    """An eigenvalue of zero stays zero, so Eqn. 4 excludes it. Its rounding error in Phi_T grows by 1.5 in each step.

    The coupled iteration is stable up to about T = 16 in float32 and T = 40 in float64, and diverges later. For a
    covariance of zero, which is complete collapse, the iteration is undefined.
    """
    values = torch.cat([torch.logspace(0, -2, 8, dtype=torch.float64), torch.zeros(8, dtype=torch.float64)])
    expected = t_whitening_function(safe)(values / values.sum())
    assert expected[-1] == 0
    assert float((whitened(values, safe, dtype).diagonal() - expected).abs().max()) < 1e-2
    diverged = whitened(values, too_many, dtype).diagonal()
    assert not (diverged - expected).abs().max() < 1
    assert whiten(torch.zeros(4, 4, dtype=dtype)).variance.isnan().all()


points = torch.cat(
    [torch.logspace(-8, -2, 200, dtype=torch.float64), torch.linspace(0.01, 1, 500, dtype=torch.float64)[:-1]]
)


@pytest.mark.parametrize("iterations", range(9))
def test_proposition_1(iterations: int) -> None:
    """h_T maps (0, 1) into (0, 1) and increases. Near its limit 1 this holds up to the rounding of float64."""
    x = points.clone().requires_grad_()
    h = t_whitening_function(iterations)(x)
    (slope,) = torch.autograd.grad(h.sum(), x)
    short_of_one = h < 1 - 1e-9
    assert (h > 0).all()
    assert (h <= 1 + 1e-12).all()
    assert (slope > -1e-12).all()
    assert (slope[short_of_one] > 0).all()
    assert short_of_one.sum() > 100


@pytest.mark.parametrize("iterations", range(9))
def test_proposition_2_and_limit(iterations: int) -> None:
    now, then = (t_whitening_function(t)(points) for t in (iterations, iterations + 1))
    short_of_one = now < 1 - 1e-9
    assert (then[short_of_one] > now[short_of_one]).all()
    assert (then >= now - 1e-12).all()
    torch.testing.assert_close(t_whitening_function(60)(points), torch.ones_like(points), rtol=0, atol=1e-12)  # Eqn. 4


@few
@given(seed=seeds, d=st.integers(2, 10), iterations=st.integers(1, 4))
def test_equation_7_is_the_trace_loss(seed: int, d: int, iterations: int) -> None:
    x, u = on_simplex(seed, d), orthogonal(seed, d)
    expected = ((1 - t_whitening_function(iterations)(x)) * u.square()).sum(dim=1).square().sum()
    assert intl(x, u, iterations) == pytest.approx(float(expected), rel=1e-10, abs=1e-13)
    assert intl(37 * x, u, iterations) == pytest.approx(float(expected), rel=1e-10, abs=1e-13)


@few
@given(seed=seeds, d=st.integers(2, 10), iterations=st.integers(1, 4))
def test_theorem_2_equal_eigenvalues_are_the_unique_minimum(seed: int, d: int, iterations: int) -> None:
    u, equal = orthogonal(seed, d), torch.full((d,), 1 / d, dtype=torch.float64)
    least = intl(equal, u, iterations)
    assert least == pytest.approx(d * (1 - float(t_whitening_function(iterations)(equal[0]))) ** 2, rel=1e-9, abs=1e-13)
    for which in range(10):
        x = on_simplex(seed, d, which)
        # Near the minimum the differences fall with the square of the distance.
        assert intl(x, u, iterations) > least + 1e-3 * float((x - equal).square().sum()) * least


@few
@given(seed=seeds, d=st.integers(2, 10), iterations=st.integers(1, 4), share=st.floats(0.1, 0.9))
def test_theorem_2_strictly_convex_along_segments(seed: int, d: int, iterations: int, share: float) -> None:
    u, a, b = orthogonal(seed, d), on_simplex(seed, d, 0), on_simplex(seed, d, 1)
    between = intl(share * a + (1 - share) * b, u, iterations)
    assert between < share * intl(a, u, iterations) + (1 - share) * intl(b, u, iterations)


def gradient_by_the_code(x: torch.Tensor, u: torch.Tensor, iterations: int) -> torch.Tensor:
    """Compute dINTL/dx (d,) with the backward pass of `whiten`.

    x is projected to sum one first, x - mean(x) + 1/d. So only the part of the gradient along the simplex remains.
    """
    x = x.clone().requires_grad_()
    on_plane = x - x.mean() + 1 / len(x)
    (gradient,) = torch.autograd.grad(trace_loss(whiten(u * on_plane @ u.T, iterations=iterations).variance), x)
    return gradient


def equation_7(x: torch.Tensor, u: torch.Tensor, iterations: int) -> torch.Tensor:
    return ((1 - t_whitening_function(iterations)(x)) * u.square()).sum(dim=1).square().sum()


@few
@given(seed=seeds, d=st.integers(2, 5), iterations=st.integers(1, 4))
def test_theorem_2_hessian_is_positive_definite(seed: int, d: int, iterations: int) -> None:
    """This holds inside the simplex: for Eqn. 7 in all directions, and for the code along the simplex.

    Along the simplex both Hessians are equal.
    """
    u, x = orthogonal(seed, d), 0.9 * on_simplex(seed, d) + 0.1 / d
    hessian = torch.autograd.functional.hessian(lambda x: equation_7(x, u, iterations), x)
    assert torch.linalg.eigvalsh(hessian)[0] > 0
    along = torch.linalg.qr(torch.cat([torch.ones(d, 1, dtype=x.dtype), draw(seed, d, d - 1)], dim=1)).Q[:, 1:]
    step = 1e-5  # `whiten` can be differentiated once; differences of gradients give the second derivatives
    of_code = (
        torch.stack(
            [
                (gradient_by_the_code(x + step * e, u, iterations) - gradient_by_the_code(x - step * e, u, iterations))
                for e in along.T
            ]
        )
        @ along
        / (2 * step)
    )
    torch.testing.assert_close(of_code, along.T @ hessian @ along, rtol=1e-5, atol=1e-6)
    assert torch.linalg.eigvalsh((of_code + of_code.T) / 2)[0] > 0


@few
@given(seed=seeds, d=st.integers(2, 10), iterations=st.integers(1, 9))
def test_theorem_2_gradient_vanishes_at_equal_eigenvalues_only(seed: int, d: int, iterations: int) -> None:
    u, equal = orthogonal(seed, d), torch.full((d,), 1 / d, dtype=torch.float64)
    assert float(gradient_by_the_code(equal, u, iterations).abs().max()) < 1e-12
    x = 0.9 * on_simplex(seed, d) + 0.1 / d
    early = min(iterations, 4)  # after more, two eigenvalues can be so near to 1 that float64 rounds the gradient to 0
    assert float(gradient_by_the_code(x, u, early) @ (x - equal)) > 0  # descent leads toward the minimum


def test_range_of_validity_descent_does_not_raise_the_rank() -> None:
    """The trace loss is a function of Z^T Z, so its gradient is Z times a matrix.

    If the embedding lacks a direction exactly, descent changes the other directions but never raises the rank. A small
    disturbance in the missing direction grows. The network must provide it ("the range of F is wide enough").
    """
    loss = INTLLoss(iterations=4, axis="batch", beta=1.0)

    def gradient(z: torch.Tensor) -> torch.Tensor:
        z = z.clone().requires_grad_()
        return torch.autograd.grad(loss([z, z])["trace"], z)[0]

    u, z = orthogonal(3, 6), draw(4, 40, 5)
    z = (z - z.mean(dim=0)) @ u[:, :5].T
    slope = gradient(z)
    basis = torch.linalg.svd(z, full_matrices=False).U[:, :5]
    assert float(slope.abs().max()) > 1e-3
    assert float((slope - basis @ (basis.T @ slope)).abs().max()) < 1e-14
    assert float(spectrum(z - 10 * slope, "batch")[0]) < 1e-14
    disturbed = z + 1e-3 * draw(5, 40)[:, None] * u[:, 5]
    assert spectrum(disturbed - 0.1 * gradient(disturbed), "batch")[0] > 1.01 * spectrum(disturbed, "batch")[0]


@pytest.mark.parametrize("iterations", [1, 4])
def test_descent_on_the_trace_loss_makes_all_eigenvalues_equal(iterations: int) -> None:
    """The start has one dominant direction. IterNorm alone would not change it."""
    z = (draw(1, 64, 8) @ torch.diag(torch.logspace(0, -1, 8, dtype=torch.float64)) @ orthogonal(2, 8)).requires_grad_()
    before = eigenvalues(z.detach())
    loss = INTLLoss(iterations=iterations, axis="batch", beta=1.0)
    optimizer = torch.optim.LBFGS(
        [z], max_iter=300, tolerance_grad=1e-14, tolerance_change=0, line_search_fn="strong_wolfe"
    )

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        trace = loss([z, z])["trace"]
        trace.backward()
        return trace

    optimizer.step(closure)
    after = eigenvalues(z.detach())
    assert before[0] / before[-1] > 50
    assert after[0] / after[-1] < 1 + 1e-3
    least = 8 * (1 - float(t_whitening_function(iterations)(torch.tensor(1 / 8, dtype=torch.float64)))) ** 2
    assert closure().item() == pytest.approx(2 * least, rel=1e-6)  # the sum over both views
