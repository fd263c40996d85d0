"""Test the loss of INTL: the equations of the paper, the authors' code, and properties for every embedding."""

import math
from collections.abc import Sequence

import authors
import pytest
import torch
from authors import GOLDEN, LOSSES

from intl_bench.core.seeding import generator
from pretrain.iternorm import AXES, VARIANTS
from pretrain.methods import intl
from pretrain.methods.intl import INTLLoss

both_axes = pytest.mark.parametrize("axis", AXES)
both_variants = pytest.mark.parametrize("variant", VARIANTS)


def views_of(axis: str, count: int = 2) -> list[torch.Tensor]:
    """Return float64 embeddings that are well-conditioned for an axis: 24 x 40 for "channel", 40 x 24 for "batch"."""
    return [v.double() for v in authors.embeddings("test_intl", count, *((24, 40) if axis == "channel" else (40, 24)))]


def total(terms: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.stack(list(terms.values())).sum()


def relative(value: torch.Tensor, reference: torch.Tensor) -> float:
    return float((value - reference).detach().norm() / reference.detach().norm())


# The loss against the equations and against the authors' code


def loss_as_printed(
    views: Sequence[torch.Tensor], axis: str, iterations: int, beta: float, momentum_target: bool
) -> dict[str, torch.Tensor]:
    """Compute Eqn. 3, Eqn. 6 and the MSE of normalized vectors step by step, with the whitened outputs."""
    samples, traces = [], []
    for z in views:
        x = z if axis == "channel" else z.T
        x = x - x.mean(dim=1, keepdim=True)
        sigma = x @ x.T / (x.shape[1] - 1)
        sigma_n = sigma / torch.trace(sigma)
        p = torch.eye(len(x), dtype=x.dtype)
        for _ in range(iterations):
            p = (3 * p - p @ p @ p @ sigma_n) / 2
        white = p / torch.sqrt(torch.trace(sigma)) @ x
        samples.append(white if axis == "channel" else white.T)
        traces.append((1 - torch.cov(white).diagonal()).square().sum())
    unit = [s / s.norm(dim=1, keepdim=True) for s in samples]
    pairs = len(views) - 1
    return {
        "alignment": sum((u - unit[0]).square().sum(dim=1).mean() for u in unit[1:]) / pairs,
        "trace": beta * sum(trace + (0 if momentum_target else traces[0]) for trace in traces[1:]) / pairs,
    }


@both_axes
@both_variants
@pytest.mark.parametrize("iterations", [1, 4, 7])
@pytest.mark.parametrize("count", [2, 3, 6])
@pytest.mark.parametrize("momentum_target", [False, True])
@pytest.mark.parametrize("beta", [None, 0.7])
def test_loss_and_gradients_are_those_of_the_equations(
    axis: str, variant: str, iterations: int, count: int, momentum_target: bool, beta: float | None
) -> None:
    ours, theirs = (
        [v.requires_grad_(i > 0 or not momentum_target) for i, v in enumerate(views_of(axis, count))] for _ in range(2)
    )
    loss = INTLLoss(iterations=iterations, axis=axis, variant=variant, beta=beta, momentum_target=momentum_target)
    terms = loss(ours)
    weight = 0.01 * (math.log2(24) - 3) if beta is None else beta
    expected = loss_as_printed(theirs, axis, iterations, weight, momentum_target)
    assert terms.keys() == expected.keys()
    for name, term in terms.items():
        assert term.shape == ()
        assert relative(term, expected[name]) <= 1e-10
    total(terms).backward()
    total(expected).backward()
    for a, b in zip(ours[momentum_target:], theirs[momentum_target:], strict=True):
        assert relative(a.grad, b.grad) <= 1e-10


@both_variants
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("case", LOSSES)
def test_loss_and_gradients_are_the_authors(case: str, dtype: str, variant: str) -> None:
    axis, m, d, count, momentum_target, iterations = LOSSES[case]
    z = [v.to(getattr(torch, dtype)) for v in authors.embeddings(case, count, m, d)]
    for view in z[momentum_target:]:
        view.requires_grad_()
    value = total(INTLLoss(iterations=iterations, axis=axis, variant=variant, momentum_target=momentum_target)(z))
    value.backward()
    tolerance = {"float32": 1e-5, "float64": 1e-12}[dtype]
    for precision in {"float64", dtype}:  # the authors' numbers in float32 are rounded, too
        golden = GOLDEN["losses"][case][precision]
        gradients = [view.grad.double() for view in z if view.requires_grad]
        assert value.item() == pytest.approx(golden["loss"], rel=tolerance)
        assert len(gradients) == len(golden["gradient_norms"])
        for gradient, norm, row in zip(gradients, golden["gradient_norms"], golden["gradient_rows"], strict=True):
            assert float(gradient.norm()) == pytest.approx(norm, rel=tolerance)
            assert gradient[5, :4].tolist() == pytest.approx(row, rel=0, abs=tolerance * norm)


@pytest.mark.parametrize("case", LOSSES)
def test_weight_of_the_trace_loss_is_the_authors(case: str) -> None:
    axis, m, d, *_ = LOSSES[case]
    assert intl.default_beta(m, d, axis) == pytest.approx(GOLDEN["losses"][case]["beta"], rel=1e-12)


@both_axes
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_samples_of_tiny_embeddings_count_as_the_others(axis: str, dtype: torch.dtype) -> None:
    """The loss compares only directions, so a sample that is 1e5 times smaller than the others has the same weight."""
    size = torch.ones(24 if axis == "channel" else 40, 1, dtype=torch.float64)
    size[[3, 7]] = 1e-5
    views = [view * size for view in views_of(axis)]
    ours = [view.to(dtype, copy=True).requires_grad_() for view in views]
    theirs = [view.requires_grad_() for view in views]
    value = INTLLoss(axis=axis)(ours)["alignment"]
    expected = loss_as_printed(theirs, axis, 4, 1.0, False)["alignment"]
    tolerance = {torch.float32: 1e-5, torch.float64: 1e-10}[dtype]
    assert relative(value.double(), expected) <= tolerance
    value.backward()
    expected.backward()
    for a, b in zip(ours, theirs, strict=True):
        assert relative(a.grad.double(), b.grad) <= tolerance


# Properties for every embedding


@both_axes
def test_identical_views_align_perfectly(axis: str) -> None:
    (z,) = views_of(axis, 1)
    terms = INTLLoss(axis=axis, beta=1.0)([z, z.clone(), z.clone()])
    assert abs(float(terms["alignment"])) <= 1e-12
    assert float(terms["trace"]) > 0.1
    assert float(INTLLoss(axis=axis, beta=1.0)([z, -z])["alignment"]) == pytest.approx(4, rel=1e-12)


@both_axes
def test_scale_offset_and_order_of_samples_do_not_matter(axis: str) -> None:
    loss, views = INTLLoss(axis=axis), views_of(axis, 3)
    expected = loss(views)
    order = torch.from_numpy(generator(1, "order").permutation(len(views[0])))
    offset = authors.noise("offset", *((24, 1) if axis == "channel" else (1, 24))).double()
    for changed in (
        [scale * view + offset for scale, view in zip([1e-3, 7.0, 100.0], views, strict=True)],
        [view[order] for view in views],
    ):
        for name, term in loss(changed).items():
            assert relative(term, expected[name]) <= 1e-10


def test_rotations_of_the_features() -> None:
    """Check the effect of rotations.

    With channel whitening, rotations that keep the mean over the features change nothing. With batch whitening, all
    rotations keep the alignment. Only permutations keep the trace loss, which uses the variances of the features.
    """
    d = 40
    rotation, inner = (torch.linalg.qr(authors.noise(f"q{n}", n, n).double()).Q for n in (24, d - 1))
    ones_first = torch.linalg.qr(torch.cat([torch.ones(d, 1), authors.noise("q", d, d - 1)], dim=1).double()).Q
    keeping_the_mean = ones_first @ torch.block_diag(torch.eye(1), inner) @ ones_first.T
    permutation = torch.eye(24, dtype=torch.float64)[torch.from_numpy(generator(2, "order").permutation(24))]

    channel, batch = INTLLoss(axis="channel"), INTLLoss(axis="batch")
    views = views_of("channel")
    for name, term in channel([view @ keeping_the_mean for view in views]).items():
        assert relative(term, channel(views)[name]) <= 1e-10
    views = views_of("batch")
    before = batch(views)
    rotated, permuted = batch([view @ rotation for view in views]), batch([view @ permutation for view in views])
    assert relative(rotated["alignment"], before["alignment"]) <= 1e-10
    assert relative(rotated["trace"], before["trace"]) > 1e-3
    for name, term in permuted.items():
        assert relative(term, before[name]) <= 1e-10


@both_axes
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_does_not_change_the_loss(axis: str, dtype: torch.dtype) -> None:
    views = [view.float().requires_grad_() for view in views_of(axis)]
    outside = total(INTLLoss(axis=axis)(views))
    with torch.autocast("cpu", dtype=dtype):
        inside = total(INTLLoss(axis=axis)(views))
        halves = total(INTLLoss(axis=axis)([view.to(dtype) for view in views]))
    assert inside.dtype == torch.float32
    assert relative(inside, outside) <= 1e-6
    assert halves.dtype == torch.float32
    assert relative(halves, outside) <= 0.05  # the embeddings themselves were rounded


def test_momentum_target_has_no_gradient_and_no_trace_loss() -> None:
    views = views_of("channel")
    other_target = authors.noise("another target", 24, 40).double()
    loss = INTLLoss(momentum_target=True)
    views[1].requires_grad_()
    terms = loss([views[0].detach(), views[1]])
    total(terms).backward()
    assert views[0].grad is None
    assert views[1].grad.norm() > 0
    assert relative(loss([other_target, views[1]])["trace"], terms["trace"]) <= 1e-12
    both = INTLLoss()(views)
    assert both["trace"] > terms["trace"] * 1.1
    assert relative(both["alignment"], terms["alignment"]) <= 1e-12


# Failures


def test_default_weight_of_small_batches_is_refused_with_its_value() -> None:
    z = authors.noise("small", 8, 40)
    with pytest.raises(ValueError, match=r"global batch size 8: .* = 0, .*set beta by hand"):
        INTLLoss()([z, z])
    with pytest.raises(ValueError, match=r"global batch size 4: .* = -0\.01, "):
        INTLLoss()([z[:4], z[:4]])
    with pytest.raises(ValueError, match=r"embedding dimension 8: "):
        INTLLoss(axis="batch")([z.T, z.T])
    assert INTLLoss(beta=0.02)([z, z])["trace"].isfinite()


def test_bad_embeddings_are_refused() -> None:
    z = authors.noise("z", 16, 8)
    with pytest.raises(ValueError, match="found 1 views; expected at least 2"):
        INTLLoss()([z])
    with pytest.raises(ValueError, match=r"found shapes \(16, 8\), \(16, 4\); expected equal shapes"):
        INTLLoss()([torch.zeros(16, 8), torch.zeros(16, 4)])
    with pytest.raises(ValueError, match=r"\(16,\)"):
        INTLLoss()([z[:, 0], z[:, 0]])
