"""Test LARS and Adam against formulas, lightly and PyTorch; parameter groups and constant learning rates."""

import authors
import pytest
import torch
from torch import nn

from pretrain.optim import NAMES, build_optimizer, group_lr
from pretrain.recipe import load_recipe


def network() -> nn.Sequential:
    return authors.fill(nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)), "optim").double()


def train(module: nn.Module, optimizer: torch.optim.Optimizer, lr: float, steps: int = 4) -> list[torch.Tensor]:
    """Return the weights after some steps on one batch."""
    x = authors.noise("optim/x", 16, 5).double()
    for _ in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.zero_grad()
        module(x).square().sum().backward()
        optimizer.step()
    return [parameter.detach().clone() for parameter in module.parameters()]


@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("scale_all", [False, True])
def test_lars_follows_its_equation(clip: bool, scale_all: bool) -> None:
    """Update tensor by tensor: v <- m v + trust (g + decay w), w <- w - lr v."""
    lr, momentum, decay, trust = 0.5, 0.9, 0.1, 0.3
    theirs, moments = network(), {}
    x = authors.noise("optim/x", 16, 5).double()
    for _ in range(4):
        theirs.zero_grad()
        theirs(x).square().sum().backward()
        with torch.no_grad():
            for name, w in theirs.named_parameters():
                g = w.grad
                if w.ndim > 1 or scale_all:
                    share = trust * w.norm() / (g.norm() + decay * w.norm() + 1e-8) if w.norm() * g.norm() > 0 else 1
                    g = (g + decay * w) * (min(share / lr, 1) if clip else share)
                moments[name] = momentum * moments.get(name, 0) + g
                w -= lr * moments[name]
    ours = network()
    optimizer = build_optimizer(
        ours,
        name="lars",
        momentum=momentum,
        weight_decay=decay,
        decay_one_dimensional=scale_all,
        trust_coefficient=trust,
        clip_trust=clip,
    )
    for a, b in zip(train(ours, optimizer, lr), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b.detach(), rtol=1e-10, atol=1e-12)


def test_lars_as_lightly() -> None:
    lars = pytest.importorskip("lightly.utils.lars").LARS
    ours, theirs = network(), network()
    optimizer = build_optimizer(ours, name="lars", momentum=0.9, weight_decay=0.1, decay_one_dimensional=False)
    matrices = [p for p in theirs.parameters() if p.ndim > 1]
    vectors = [p for p in theirs.parameters() if p.ndim == 1]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    reference = lars(groups, lr=0.5, momentum=0.9, trust_coefficient=0.001)
    for a, b in zip(train(ours, optimizer, 0.5), train(theirs, reference, 0.5), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("name", ["adam", "adamw"])
def test_adam_as_pytorch(name: str) -> None:
    ours, theirs = network(), network()
    optimizer = build_optimizer(ours, name=name, momentum=0.9, weight_decay=0.1, decay_one_dimensional=True)
    reference = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[name](theirs.parameters(), weight_decay=0.1)
    for a, b in zip(train(ours, optimizer, 0.01), train(theirs, reference, 0.01), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("name", NAMES)
def test_state_has_its_final_size_from_the_start_and_resumes(name: str) -> None:
    def make(module: nn.Module) -> torch.optim.Optimizer:
        return build_optimizer(module, name=name, momentum=0.9, weight_decay=0.1, decay_one_dimensional=False)

    whole, broken = network(), network()
    expected = train(whole, make(whole), 0.01, steps=4)
    first = make(broken)
    sizes = [sorted(state) for state in first.state.values()]
    train(broken, first, 0.01, steps=2)
    assert [sorted(state) for state in first.state.values()] == sizes
    second = make(broken)
    second.load_state_dict(first.state_dict())
    for a, b in zip(train(broken, second, 0.01, steps=2), expected, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("unscaled", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_with_a_gradient_scaler(name: str, unscaled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A scale that is a power of two changes nothing; a gradient that overflows changes neither weights nor state.

    The scaler asks for no number of the device: it hands the overflow over.
    """
    x = authors.noise("optim/x", 16, 5)
    scaled, plain = network().float(), network().float()
    optimizers = [
        build_optimizer(module, name=name, momentum=0.9, weight_decay=0.1, decay_one_dimensional=False)
        for module in (scaled, plain)
    ]
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    monkeypatch.setattr(torch.amp.GradScaler, "_maybe_opt_step", None)  # the way that reads the overflow
    for step, factor in enumerate((1.0, 1.0, torch.inf, 1.0)):
        before = [value.clone() for state in optimizers[0].state.values() for value in state.values()]
        for module, optimizer in zip((scaled, plain), optimizers, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = 0.01
            optimizer.zero_grad()
            loss = module(x).square().sum() * factor
            if module is plain:
                loss.backward()
                if factor < torch.inf:
                    optimizer.step()
                continue
            scaler.scale(loss).backward()
            if unscaled:
                scaler.unscale_(optimizer)
            scaler.step(optimizer)
            scaler.update()
        if factor == torch.inf:
            after = [value for state in optimizers[0].state.values() for value in state.values()]
            assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
        for a, b in zip(scaled.parameters(), plain.parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7, msg=f"step {step}")
    assert scaler.get_scale() == 512.0


def test_learning_rates_of_groups() -> None:
    module = network()
    optimizer = build_optimizer(
        module,
        momentum=0.9,
        weight_decay=0.1,
        decay_one_dimensional=False,
        one_dimensional_lr_ratio=0.25,
        constant_lr=list(module[2].parameters()),
    )
    rates = {
        id(parameter): group_lr(group, scheduled=0.5, base=2.0)
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    first, norm, predictor = module
    assert [rates[id(p)] for p in (first.weight, first.bias, norm.weight)] == [0.5, 0.125, 0.125]
    assert [rates[id(p)] for p in (predictor.weight, predictor.bias)] == [2.0, 0.5]


def test_bad_settings_are_rejected() -> None:
    with pytest.raises(ValueError, match=r"optimizer=lamb: expected sgd, lars, adam or adamw"):
        load_recipe("demo", ["optimizer=lamb"])
    with pytest.raises(ValueError, match="trust_coefficient=-1"):
        load_recipe("demo", ["trust_coefficient=-1"])
