"""The paper's theory, tested on the code: Theorem 1, Propositions 1 and 2, Eqn. 7 and Theorem 2."""

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
    """A point with x_i >= 0 that sum to one; now even, now concentrated on few axes."""
    rng = generator(seed, "simplex", which)
    return torch.from_numpy(rng.dirichlet(np.full(d, rng.choice([0.2, 1.0, 5.0]))))


def spectrum(z: torch.Tensor, axis: str) -> torch.Tensor:
    """Eigenvalues of the covariance that `axis` is about, ascending."""
    return torch.linalg.eigvalsh(torch.cov(z if axis == "channel" else z.T))


def intl(x: torch.Tensor, u: torch.Tensor, iterations: int) -> float:
    """INTL(x) of Eqn. 7 by the code: the trace loss of a covariance with eigenvalues x and eigenvectors u."""
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
def test_t_whitening_function_is_theorem_1s(x: Fraction, iterations: int) -> None:
    """Against the recursion in exact arithmetic."""
    f = Fraction(1)
    for _ in range(iterations):
        f = Fraction(3, 2) * f - Fraction(1, 2) * x * f**3
    value = t_whitening_function(iterations)(torch.tensor(float(x), dtype=torch.float64))
    assert float(value) == pytest.approx(float(x * f**2), rel=1e-13, abs=1e-15)


points = torch.cat(
    [torch.logspace(-8, -2, 200, dtype=torch.float64), torch.linspace(0.01, 1, 500, dtype=torch.float64)[:-1]]
)


@pytest.mark.parametrize("iterations", range(9))
def test_proposition_1(iterations: int) -> None:
    """h_T maps (0, 1) into (0, 1) and increases; near its limit 1, as far as float64 can tell."""
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
        # Towards the minimum the differences vanish with the square of the distance.
        assert intl(x, u, iterations) > least + 1e-3 * float((x - equal).square().sum()) * least


@few
@given(seed=seeds, d=st.integers(2, 10), iterations=st.integers(1, 4), share=st.floats(0.1, 0.9))
def test_theorem_2_strictly_convex_along_segments(seed: int, d: int, iterations: int, share: float) -> None:
    u, a, b = orthogonal(seed, d), on_simplex(seed, d, 0), on_simplex(seed, d, 1)
    between = intl(share * a + (1 - share) * b, u, iterations)
    assert between < share * intl(a, u, iterations) + (1 - share) * intl(b, u, iterations)


@pytest.mark.parametrize("iterations", [1, 4])
def test_descent_on_the_trace_loss_makes_all_eigenvalues_equal(iterations: int) -> None:
    """From an embedding with one dominant direction; IterNorm alone would be content with it."""
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
    assert closure().item() == pytest.approx(2 * least, rel=1e-6)  # of both views
