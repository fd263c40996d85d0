"""INTL: its loss against the paper's equations and the authors' code, its method against the authors' training."""

import math
from collections.abc import Sequence

import authors
import distributed_worker
import pytest
import torch
from authors import GOLDEN, LOSSES
from torch import nn

from intl_bench.core.seeding import generator
from pretrain import methods
from pretrain.iternorm import AXES, VARIANTS
from pretrain.methods import intl
from pretrain.methods.intl import INTLLoss
from pretrain.optim import build_sgd
from pretrain.schedules import cosine_momentum, warmup_cosine

both_axes = pytest.mark.parametrize("axis", AXES)
both_variants = pytest.mark.parametrize("variant", VARIANTS)


def views_of(axis: str, count: int = 2) -> list[torch.Tensor]:
    """float64 embeddings of which every axis is well posed: 24 x 40 for "channel", 40 x 24 for "batch"."""
    return [v.double() for v in authors.embeddings("test_intl", count, *((24, 40) if axis == "channel" else (40, 24)))]


def total(terms: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.stack(list(terms.values())).sum()


def relative(value: torch.Tensor, reference: torch.Tensor) -> float:
    return float((value - reference).detach().norm() / reference.detach().norm())


# The loss against the equations and against the authors' code


def loss_as_printed(
    views: Sequence[torch.Tensor], axis: str, iterations: int, beta: float, momentum_target: bool
) -> dict[str, torch.Tensor]:
    """Eqn. 3, Eqn. 6 and the MSE of normalised vectors, step by step, the whitened outputs formed."""
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
    tolerance = {"float32": 1e-6, "float64": 1e-12}[dtype]
    for precision in {"float64", dtype}:  # in float32 their numbers too are rounded
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
    """Only directions are compared: a sample a hundred thousand times smaller than the rest has the same weight."""
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


# What holds for every embedding


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
    """Channel: those that keep the mean over the features change nothing. Batch: all keep the alignment, while the
    trace loss, of the variances along the axes, is kept only by permutations."""
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


# Use in training


def test_loss_works_in_somebody_elses_training_script() -> None:
    images = authors.noise("images", 32, 20)
    network = authors.fill(nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 48)), "network")
    optimizer = torch.optim.SGD(network.parameters(), lr=0.3, momentum=0.9)
    intl_loss = INTLLoss()
    history = []
    for step in range(30):
        views = [images + 0.1 * authors.noise(f"{step}/{view}", 32, 20) for view in range(2)]
        loss = sum(intl_loss([network(view) for view in views]).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        history.append(loss.item())
    assert all(map(math.isfinite, history))
    assert sum(history[-5:]) < 0.8 * sum(history[:5])


def tiny_method(*, momentum_target: bool) -> intl.INTL:
    """The linear network that the authors' INTL and INTL_M were trained with for the golden numbers."""
    config = intl.Config(momentum_target=momentum_target, base_momentum=authors.TINY_MOMENTUM)
    encoder = authors.fill(nn.Linear(12, 16), "tiny/backbone"), authors.fill(nn.Linear(16, 20), "tiny/projector")
    return intl.build(config, lambda: encoder, batch_size=32, embedding_dim=20).double()


@pytest.mark.parametrize("momentum_target", [False, True])
def test_training_goes_as_the_authors(momentum_target: bool) -> None:
    """Ten steps of SGD: schedules, weight decay, loss and the moving average together."""
    golden = GOLDEN["tiny"]["intl_m" if momentum_target else "intl"]
    method = tiny_method(momentum_target=momentum_target)
    optimizer = build_sgd(method, momentum=0.9, weight_decay=authors.TINY_DECAY, decay_one_dimensional=False)
    losses, targets = [], []
    for step in range(authors.TINY_STEPS):
        for group in optimizer.param_groups:
            group["lr"] = warmup_cosine(
                step, total=authors.TINY_STEPS, warmup=authors.TINY_WARMUP, base=authors.TINY_LR
            )
        if method.target is not None:
            targets.append(float(method.target[0].weight.norm()))
        loss = total(method([view.double() for view in authors.embeddings(f"tiny/{step}", 3, 32, 12)]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        method.after_step((step + 1) / authors.TINY_STEPS)
        losses.append(loss.item())
    assert losses == pytest.approx(golden["losses"], rel=1e-10)
    assert targets == pytest.approx(golden.get("target_norms", []), rel=1e-10)
    assert method.backbone.weight[3].tolist() == pytest.approx(golden["weight_row"], rel=1e-10)


def test_moving_average_after_the_step_is_the_authors_before_the_forward() -> None:
    """They update at the start of forward number s with m(s); we at the end of step s - 1: each forward sees the same
    target. Before the first both are the initial weights, and after the last m is 1."""
    total_steps = 10
    online = [authors.noise(f"online/{step}", 16, 12).double() for step in range(total_steps + 1)]

    theirs, seen_by_theirs = online[0].clone(), []
    for step in range(total_steps):
        m = 1 - 0.5 * (1 + math.cos(math.pi * step / total_steps)) * (1 - 0.9)
        theirs = theirs * m + online[step] * (1 - m)
        seen_by_theirs.append(theirs)

    method = intl.INTL(
        intl.Config(momentum_target=True, base_momentum=0.9), lambda: (nn.Linear(12, 16), nn.Identity())
    ).double()
    method.backbone.weight.data = online[0].clone()
    method.target[0].weight.data = online[0].clone()
    for step in range(total_steps):
        torch.testing.assert_close(method.target[0].weight.data, seen_by_theirs[step], rtol=0, atol=1e-14)
        method.backbone.weight.data = online[step + 1].clone()  # the optimiser's step
        method.after_step((step + 1) / total_steps)
    torch.testing.assert_close(method.target[0].weight.data, seen_by_theirs[-1], rtol=0, atol=1e-14)
    assert cosine_momentum(1.0, 0.9) == 1


def test_target_is_frozen_and_not_optimised() -> None:
    method = tiny_method(momentum_target=True)
    frozen, trained = list(method.target.parameters()), [*method.backbone.parameters(), *method.projector.parameters()]
    total(method([view.double() for view in authors.embeddings("tiny/0", 3, 32, 12)])).backward()
    assert all(p.grad is None and not p.requires_grad for p in frozen)
    assert all(p.grad is not None for p in trained)
    groups = build_sgd(method, momentum=0.9, weight_decay=0.1, decay_one_dimensional=False).param_groups
    optimised = {id(p) for group in groups for p in group["params"]}
    assert optimised == {id(p) for p in trained}
    assert all(a is not b and torch.equal(a, b) for a, b in zip(frozen, trained, strict=True))


@pytest.mark.parametrize("momentum_target", [False, True])
def test_embedding_for_diagnostics_is_the_first_trained_views(momentum_target: bool) -> None:
    method = tiny_method(momentum_target=momentum_target)
    views = [view.double() for view in authors.embeddings("tiny/0", 3, 32, 12)]
    method(views)
    assert not method.embedding.requires_grad
    assert torch.equal(method.embedding, method.projector(method.backbone(views[momentum_target])))


# Two and four processes


@pytest.mark.parametrize("case", ["float64", "float64_multi_crop_momentum"])
@pytest.mark.parametrize("world_size", [2, 4])
def test_processes_together_do_what_one_does(world_size: int, case: str) -> None:
    """Two steps of the whole method: loss terms, gradients, weights, running statistics and moving averages."""
    alone = distributed_worker.training(case)
    assert any(name.endswith("running_var") for name in alone)
    assert any(name.startswith("step1/gradient/backbone.") for name in alone)
    assert any(name.startswith("state/target.") for name in alone) == ("momentum" in case)
    for rank, together in enumerate(distributed_worker.results(world_size)):
        for name, expected in alone.items():
            error = relative(together[f"{case}/{name}"].double(), expected.double())
            assert error <= 1e-10, f"process {rank}: {name}"


@pytest.mark.parametrize("world_size", [2, 4])
def test_processes_together_do_what_one_does_in_float32(world_size: int) -> None:
    """As far as float32 goes: an activation that rounding takes across a ReLU's kink shows in the backbone's gradients
    (by 4e-4 where it was seen), not in the loss."""
    alone = distributed_worker.training("float32")
    for together in distributed_worker.results(world_size):
        for name in ("alignment", "trace"):
            assert relative(together[f"float32/step0/{name}"], alone[f"step0/{name}"]) <= 1e-6
        for name in (name for name in alone if name.startswith("step0/gradient/")):
            tolerance = 1e-5 if name.startswith("step0/gradient/projector.6.") else 5e-3
            assert relative(together[f"float32/{name}"], alone[name]) <= tolerance, name


# Failures


def test_default_weight_of_small_batches_is_refused_with_its_value() -> None:
    z = authors.noise("small", 8, 40)
    with pytest.raises(ValueError, match=r"global batch size 8 .* = 0, .*set beta by hand"):
        INTLLoss()([z, z])
    with pytest.raises(ValueError, match=r"global batch size 4 .* = -0\.01, "):
        INTLLoss()([z[:4], z[:4]])
    with pytest.raises(ValueError, match=r"embedding dimension 8 "):
        INTLLoss(axis="batch")([z.T, z.T])
    assert INTLLoss(beta=0.02)([z, z])["trace"].isfinite()


def test_building_for_a_small_batch_is_refused_before_training() -> None:
    def build(batch_size: int, embedding_dim: int, **settings: object) -> intl.INTL:
        encoder = nn.Linear(4, 4), nn.Linear(4, embedding_dim)
        return intl.build(intl.Config(**settings), lambda: encoder, batch_size=batch_size, embedding_dim=embedding_dim)

    with pytest.raises(ValueError, match="global batch size 8"):
        build(8, 64)
    assert isinstance(build(8, 64, beta=0.1), intl.INTL)
    with pytest.raises(ValueError, match="whitens 64 features over 64 samples"):
        build(64, 64, axis="batch")
    assert isinstance(build(65, 64, axis="batch"), intl.INTL)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"iterations": 0}, "iterations=0"),
        ({"axis": "both"}, "axis='both'"),
        ({"variant": "exact"}, "variant='exact'"),
        ({"base_momentum": 1.5}, r"base_momentum=1\.5"),
    ],
)
def test_bad_settings_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        intl.Config(**settings)
    if "base_momentum" not in settings:
        with pytest.raises(ValueError, match=message):
            INTLLoss(**settings)


def test_bad_embeddings_are_refused() -> None:
    z = authors.noise("z", 16, 8)
    with pytest.raises(ValueError, match="at least two views, got 1"):
        INTLLoss()([z])
    with pytest.raises(ValueError, match=r"one shape, got \(16, 8\), \(16, 4\)"):
        INTLLoss()([torch.zeros(16, 8), torch.zeros(16, 4)])
    with pytest.raises(ValueError, match=r"\(16,\)"):
        INTLLoss()([z[:, 0], z[:, 0]])


def test_unknown_method_is_refused() -> None:
    with pytest.raises(ValueError, match=r"method\.name=intel: unknown method; known: .*intl"):
        methods.find("intel")
    assert methods.find("intl") is intl
    module, config = methods.parse({"name": "intl", "iterations": 2}, "test")
    assert module is intl
    assert config == intl.Config(iterations=2)
