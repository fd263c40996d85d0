"""Test learning rate and momentum at every step of a run against the authors' code; test parameter groups."""

import authors
import pytest
import torch
from authors import GOLDEN
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from pretrain.optim import build_optimizer
from pretrain.schedules import cosine_momentum, warmup_cosine

TOTAL = authors.EPOCHS * authors.STEPS_PER_EPOCH
WARMUP = authors.WARMUP_EPOCHS * authors.STEPS_PER_EPOCH


def test_learning_rate_is_the_authors_at_every_step() -> None:
    rates = [warmup_cosine(step, total=TOTAL, warmup=WARMUP, base=authors.BASE_LR) for step in range(TOTAL)]
    assert rates == pytest.approx(GOLDEN["learning_rate"], rel=1e-12)
    assert rates[0] == pytest.approx(authors.BASE_LR / WARMUP)
    assert rates[WARMUP - 1] == authors.BASE_LR
    assert rates[-1] == pytest.approx(authors.BASE_LR * 0.001, rel=1e-12)


def test_momentum_is_the_authors_at_every_step() -> None:
    """Compare the momentum: theirs for the update before forward pass s, ours for the update after step s - 1."""
    momenta = [cosine_momentum(step / TOTAL, authors.BASE_MOMENTUM) for step in range(TOTAL)]
    assert momenta == pytest.approx(GOLDEN["momentum"], rel=1e-14)
    assert momenta[0] == pytest.approx(authors.BASE_MOMENTUM)
    assert cosine_momentum(1.0, authors.BASE_MOMENTUM) == 1


@settings(max_examples=100, deadline=None, derandomize=True)
@given(total=st.integers(2, 500), share=st.floats(0, 0.9), base=st.floats(1e-4, 10), final_ratio=st.floats(0, 0.5))
def test_learning_rate_rises_then_falls_to_the_end(total: int, share: float, base: float, final_ratio: float) -> None:
    warmup = int(share * total)
    rates = [warmup_cosine(s, total=total, warmup=warmup, base=base, final_ratio=final_ratio) for s in range(total)]
    assert rates[:warmup] == sorted(rates[:warmup])
    assert rates[warmup:] == sorted(rates[warmup:], reverse=True)
    assert max(rates) <= base * (1 + 1e-12)
    assert rates[-1] == pytest.approx(base * final_ratio, rel=1e-9, abs=1e-12 * base)


@settings(deadline=None, derandomize=True)
@given(progress=st.floats(0, 1), later=st.floats(0, 1), base=st.floats(0, 1))
def test_momentum_rises_from_its_base_to_one(progress: float, later: float, base: float) -> None:
    progress, later = sorted([progress, later])
    assert base - 1e-12 <= cosine_momentum(progress, base) <= cosine_momentum(later, base) + 1e-12 <= 1 + 2e-12


def network() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))


def test_one_dimensional_parameters_have_no_decay() -> None:
    module = network()
    one, more = build_optimizer(module, momentum=0.9, weight_decay=0.1, decay_one_dimensional=False).param_groups
    assert {id(p) for p in one["params"]} == {id(p) for p in (*module[1].parameters(), module[3].bias)}
    assert {id(p) for p in more["params"]} == {id(module[0].weight), id(module[3].weight)}
    assert (one["weight_decay"], more["weight_decay"]) == (0.0, 0.1)
    assert all(group["lr"] == 0 and group["momentum"] == 0.9 for group in (one, more))


def test_all_parameters_decay_where_asked() -> None:
    """Check the learning rates of the authors' CIFAR runs."""
    module = network()
    groups = build_optimizer(module, momentum=0.9, weight_decay=0.1, decay_one_dimensional=True).param_groups
    assert {id(p) for group in groups for p in group["params"]} == {id(p) for p in module.parameters()}
    assert all(group["weight_decay"] == 0.1 for group in groups)


@pytest.mark.parametrize("decay_one_dimensional", [False, True])
def test_frozen_parameters_are_not_optimized(decay_one_dimensional: bool) -> None:
    module = network()
    module[0].requires_grad_(False)
    module[1].requires_grad_(False)
    optimizer = build_optimizer(module, momentum=0.9, weight_decay=0.1, decay_one_dimensional=decay_one_dimensional)
    optimized = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert optimized == {id(p) for p in module[3].parameters()}


def test_step_is_sgds_with_decay_on_matrices_only() -> None:
    """Matrices follow w <- w - lr (g + decay w); biases have no decay."""
    linear = authors.fill(nn.Linear(3, 2), "linear").double()
    before = {name: p.detach().clone() for name, p in linear.named_parameters()}
    optimizer = build_optimizer(linear, momentum=0.9, weight_decay=0.1, decay_one_dimensional=False)
    for group in optimizer.param_groups:
        group["lr"] = 0.5
    linear(torch.ones(1, 3, dtype=torch.float64)).sum().backward()
    optimizer.step()
    torch.testing.assert_close(linear.weight.data, before["weight"] - 0.5 * (1 + 0.1 * before["weight"]))
    torch.testing.assert_close(linear.bias.data, before["bias"] - 0.5)


def test_a_first_step_that_the_scaler_skips_changes_nothing() -> None:
    skipping, plain = nn.Linear(4, 3), nn.Linear(4, 3)
    plain.load_state_dict(skipping.state_dict())
    optimizer = build_optimizer(skipping, momentum=0.9, weight_decay=0.1, decay_one_dimensional=False)
    reference = torch.optim.SGD(plain.parameters(), lr=0.5, momentum=0.9)
    reference.param_groups[0]["weight_decay"] = 0.0
    for group in optimizer.param_groups:
        group.update(lr=0.5, weight_decay=0.0)
    before = [parameter.clone() for parameter in skipping.parameters()]
    for parameter in skipping.parameters():
        parameter.grad = torch.full_like(parameter, torch.inf)
    optimizer.found_inf = torch.ones(())  # set by torch.amp.GradScaler
    optimizer.step()
    del optimizer.found_inf
    assert all(torch.equal(a, b) for a, b in zip(before, skipping.parameters(), strict=True))
    for _ in range(2):
        for a, b in zip(skipping.parameters(), plain.parameters(), strict=True):
            a.grad = b.grad = torch.ones_like(a)
        optimizer.step()
        reference.step()
    for a, b in zip(skipping.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a, b)
