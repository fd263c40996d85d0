"""Test INTL in training: the authors' training, several processes, and errors."""

import math

import authors
import distributed_worker
import pytest
import torch
from authors import GOLDEN
from method_cases import setup
from torch import nn

from pretrain import methods
from pretrain.methods import intl
from pretrain.methods.intl import INTLLoss
from pretrain.optim import build_optimizer
from pretrain.projector import ProjectorConfig
from pretrain.schedules import cosine_momentum, warmup_cosine


def total(terms: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.stack(list(terms.values())).sum()


def relative(value: torch.Tensor, reference: torch.Tensor) -> float:
    return float((value - reference).detach().norm() / reference.detach().norm())


# Use in training


def test_loss_works_in_another_training_script() -> None:
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
    """Build the linear network with which the authors' INTL and INTL_M were trained for the golden numbers."""
    config = intl.Config(momentum_target=momentum_target, base_momentum=authors.TINY_MOMENTUM)
    encoder = authors.fill(nn.Linear(12, 16), "tiny/backbone"), authors.fill(nn.Linear(16, 20), "tiny/projector")
    return intl.build(config, setup(encoder=encoder, projector=ProjectorConfig(out=20))).double()


@pytest.mark.parametrize("momentum_target", [False, True])
def test_training_goes_as_the_authors(momentum_target: bool) -> None:
    """Ten steps of SGD combine schedules, weight decay, loss and moving average."""
    golden = GOLDEN["tiny"]["intl_m" if momentum_target else "intl"]
    method = tiny_method(momentum_target=momentum_target)
    optimizer = build_optimizer(method, momentum=0.9, weight_decay=authors.TINY_DECAY, decay_one_dimensional=False)
    losses, targets = [], []
    for step in range(authors.TINY_STEPS):
        for group in optimizer.param_groups:
            group["lr"] = warmup_cosine(
                step, total=authors.TINY_STEPS, warmup=authors.TINY_WARMUP, base=authors.TINY_LR
            )
        if method.momentum_encoder is not None:
            targets.append(float(method.momentum_encoder[0].weight.norm()))
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
    """The authors update at the start of forward s with m(s), this project at the end of step s - 1.

    So each forward uses the same momentum encoder. Before the first step both networks have the initial weights, and
    after the last step m is 1.
    """
    total_steps = 10
    online = [authors.noise(f"online/{step}", 16, 12).double() for step in range(total_steps + 1)]

    theirs, seen_by_theirs = online[0].clone(), []
    for step in range(total_steps):
        m = 1 - 0.5 * (1 + math.cos(math.pi * step / total_steps)) * (1 - 0.9)
        theirs = theirs * m + online[step] * (1 - m)
        seen_by_theirs.append(theirs)

    method = intl.INTL(
        intl.Config(momentum_target=True, base_momentum=0.9), setup(encoder=(nn.Linear(12, 16), nn.Identity()))
    ).double()
    method.backbone.weight.data = online[0].clone()
    method.momentum_encoder[0].weight.data = online[0].clone()
    for step in range(total_steps):
        torch.testing.assert_close(method.momentum_encoder[0].weight.data, seen_by_theirs[step], rtol=0, atol=1e-14)
        method.backbone.weight.data = online[step + 1].clone()  # the step of the optimizer
        method.after_step((step + 1) / total_steps)
    torch.testing.assert_close(method.momentum_encoder[0].weight.data, seen_by_theirs[-1], rtol=0, atol=1e-14)
    assert cosine_momentum(1.0, 0.9) == 1


def test_momentum_encoder_is_frozen_and_not_optimized() -> None:
    method = tiny_method(momentum_target=True)
    frozen, trained = (
        list(method.momentum_encoder.parameters()),
        [*method.backbone.parameters(), *method.projector.parameters()],
    )
    total(method([view.double() for view in authors.embeddings("tiny/0", 3, 32, 12)])).backward()
    assert all(p.grad is None and not p.requires_grad for p in frozen)
    assert all(p.grad is not None for p in trained)
    groups = build_optimizer(method, momentum=0.9, weight_decay=0.1, decay_one_dimensional=False).param_groups
    optimized = {id(p) for group in groups for p in group["params"]}
    assert optimized == {id(p) for p in trained}
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
@pytest.mark.parametrize("world_size", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_processes_together_do_what_one_does(world_size: int, case: str) -> None:
    """Compare loss terms, gradients, weights, running statistics and moving averages of two steps."""
    alone = distributed_worker.training(case)
    assert any(name.endswith("running_var") for name in alone)
    assert any(name.startswith("step1/gradient/backbone.") for name in alone)
    assert any(name.startswith("state/momentum_encoder.") for name in alone) == ("momentum" in case)
    for rank, together in enumerate(distributed_worker.results(world_size)):
        for name, expected in alone.items():
            error = relative(together[f"{case}/{name}"].double(), expected.double())
            assert error <= 1e-10, f"process {rank}: {name}"


@pytest.mark.parametrize("world_size", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_processes_together_do_what_one_does_in_float32(world_size: int) -> None:
    """The tolerance is that of float32.

    If rounding changes the sign of the input of a ReLU, the gradients of the backbone differ (by 4e-4 when this was
    seen), but not the loss.
    """
    alone = distributed_worker.training("float32")
    for together in distributed_worker.results(world_size):
        for name in ("alignment", "trace"):
            assert relative(together[f"float32/step0/{name}"], alone[f"step0/{name}"]) <= 1e-6
        for name in (name for name in alone if name.startswith("step0/gradient/")):
            tolerance = 1e-5 if name.startswith("step0/gradient/projector.6.") else 5e-3
            assert relative(together[f"float32/{name}"], alone[name]) <= tolerance, name


# Failures


def test_building_for_a_small_batch_is_refused_before_training() -> None:
    def build(batch_size: int, embedding_dim: int, **settings: object) -> intl.INTL:
        widths = ProjectorConfig(hidden=4, out=embedding_dim)
        return intl.build(intl.Config(**settings), setup(batch_size=batch_size, projector=widths))

    with pytest.raises(ValueError, match="global batch size 8"):
        build(8, 64)
    assert isinstance(build(8, 64, beta=0.1), intl.INTL)
    with pytest.raises(ValueError, match="64 features over 64 samples is singular"):
        build(64, 64, axis="batch")
    assert isinstance(build(65, 64, axis="batch"), intl.INTL)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"iterations": 0}, "iterations=0"),
        ({"axis": "both"}, "axis=both"),
        ({"variant": "exact"}, "variant=exact"),
        ({"base_momentum": 1.5}, r"base_momentum=1\.5"),
    ],
)
def test_bad_settings_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        intl.Config(**settings)
    if "base_momentum" not in settings:
        with pytest.raises(ValueError, match=message):
            INTLLoss(**settings)


def test_unknown_method_is_refused() -> None:
    with pytest.raises(ValueError, match=r"method\.name=intel: unknown method; known: .*intl"):
        methods.find("intel")
    assert methods.find("intl") is intl
    module, config = methods.parse({"name": "intl", "iterations": 2}, "test")
    assert module is intl
    assert config == intl.Config(iterations=2)
