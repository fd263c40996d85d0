"""Test BYOL: the equations of the paper, the moving average, several processes, and errors."""

import itertools
import math

import pytest
import torch
from method_cases import TinyBackbone, needs_lightly, setup, views
from method_worker import assert_processes_agree, assert_trains_as, like
from torch import nn

from pretrain.methods import byol
from pretrain.methods._lightly import lightly
from pretrain.projector import ProjectorConfig

pytestmark = needs_lightly

HEAD = ProjectorConfig(hidden=32, out=16, layers=2)


def method(n: int = 2, **settings: object) -> byol.BYOL:
    torch.manual_seed(1)
    return byol.build(byol.Config(predictor_hidden=24, **settings), setup(views=n, projector=HEAD)).double()


def mlp(width: int, hidden: int, out: int) -> list[nn.Module]:
    return [nn.Linear(width, hidden, bias=False), nn.BatchNorm1d(hidden), nn.ReLU(), nn.Linear(hidden, out)]


def regression(p: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
    """Compute Eqn. 2 of the paper, the squared distance of unit vectors."""
    return (p / p.norm(dim=1, keepdim=True) - z / z.norm(dim=1, keepdim=True)).square().sum(dim=1).mean()


# The paper's equations


@pytest.mark.parametrize("sizes", [(8, 8), (8, 8, 6)])
def test_training_goes_as_in_the_paper(sizes: tuple[int, ...]) -> None:
    run = method(len(sizes), base_momentum=0.8, scale=0.5)
    online = like(run.backbone, *TinyBackbone()), like(run.projector, *mlp(24, 32, 16))
    predictor = like(run.predictor, *mlp(16, 24, 16))
    target = like(run.momentum_encoder[0], *TinyBackbone()), like(run.momentum_encoder[1], *mlp(24, 32, 16))
    pairs = list(itertools.permutations(range(len(sizes)), 2))

    def loss(batch: list[torch.Tensor]) -> torch.Tensor:
        p = [predictor(online[1](online[0](view))) for view in batch]
        z = [target[1](target[0](view)).detach() for view in batch]
        return sum(regression(p[i], z[j]) for i, j in pairs) / (len(pairs) / 2) * 0.5

    def after_step(step: int) -> None:
        tau = 1 - (1 - 0.8) * (math.cos(math.pi * (step + 1) / 4) + 1) / 2
        for old, new in zip(nn.ModuleList(target).parameters(), nn.ModuleList(online).parameters(), strict=True):
            old.data = tau * old.data + (1 - tau) * new.data

    assert_trains_as(run, [*online, predictor], loss, after_step=after_step, sizes=sizes)
    for ours, theirs in zip(run.momentum_encoder.parameters(), nn.ModuleList(target).parameters(), strict=True):
        torch.testing.assert_close(ours.data, theirs.data, rtol=1e-9, atol=1e-12)
    assert not torch.equal(run.momentum_encoder[0][0].weight, run.backbone[0].weight)


def test_projector_is_lightlys() -> None:
    ours, theirs = method().projector, lightly("models.modules.heads").BYOLProjectionHead(24, 32, 16)
    assert [(type(a), str(a)) for a in theirs.layers if not isinstance(a, nn.ReLU)] == [
        (type(b), str(b)) for b in ours if not isinstance(b, nn.ReLU)
    ]
    assert [type(layer) for layer in theirs.layers] == [type(layer) for layer in ours]


def test_half_precision_stops_at_the_loss() -> None:
    run = method().float()
    p, z = [], []
    run.predictor.register_forward_hook(lambda module, inputs, output: p.append(output.detach()))
    run.momentum_encoder.register_forward_hook(lambda module, inputs, output: z.append(output.detach()))
    with torch.autocast("cpu", torch.bfloat16):
        loss = run([view.float() for view in views()])["regression"]
    assert p[0].dtype == z[0].dtype == torch.bfloat16
    assert loss.dtype == torch.float32
    expected = regression(p[0].double(), z[1].double()) + regression(p[1].double(), z[0].double())
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)


# Properties


def test_order_of_images_and_views_and_size_of_targets_do_not_matter() -> None:
    run = method()
    loss = run(views())["regression"].item()
    order = torch.randperm(32, generator=torch.Generator().manual_seed(0))
    assert run([view[order] for view in views()[::-1]])["regression"].item() == pytest.approx(loss, rel=1e-12)
    assert run([views()[0][order], views()[1]])["regression"].item() != pytest.approx(loss, rel=1e-3)
    with torch.no_grad():
        run.momentum_encoder[1][-1].weight *= 7
        run.momentum_encoder[1][-1].bias *= 7
    assert run(views())["regression"].item() == pytest.approx(loss, rel=1e-12)


def test_no_gradient_reaches_the_momentum_encoder() -> None:
    run = method()
    trained = [*run.backbone.parameters(), *run.projector.parameters()]
    assert all(
        a is not b and torch.equal(a, b) for a, b in zip(run.momentum_encoder.parameters(), trained, strict=True)
    )
    run(views())["regression"].backward()
    assert all(p.grad is None and not p.requires_grad for p in run.momentum_encoder.parameters())
    assert all(p.grad is not None for p in [*trained, *run.predictor.parameters()])
    torch.testing.assert_close(run.embedding, run.projector(run.backbone(views()[0])).detach(), rtol=0, atol=0)


def test_momentum_encoder_is_constant_at_the_end() -> None:
    run = method(base_momentum=0.5)
    before = [p.clone() for p in run.momentum_encoder.parameters()]
    with torch.no_grad():
        for p in run.backbone.parameters():
            p += 1
    run.after_step(1.0)
    assert all(torch.equal(a, b) for a, b in zip(before, run.momentum_encoder.parameters(), strict=True))
    run.after_step(0.5)
    torch.testing.assert_close(run.momentum_encoder[0][0].weight, before[0] + 0.25, rtol=0, atol=1e-12)


# Two processes


@pytest.mark.parametrize("sizes", [(8, 8), (8, 8, 6)])
def test_processes_together_do_what_one_does(sizes: tuple[int, ...]) -> None:
    settings = {"predictor_hidden": 24, "base_momentum": 0.5}
    alone = assert_processes_agree("byol", settings, sizes=sizes, projector=HEAD)
    assert "state/momentum_encoder.1.3.weight" in alone


# Failures


def test_bad_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="predictor_hidden=0: expected at least 1"):
        byol.Config(predictor_hidden=0)
    with pytest.raises(ValueError, match=r"base_momentum=1\.1: expected at most 1"):
        byol.Config(base_momentum=1.1)
    with pytest.raises(ValueError, match="scale=0: expected more than 0"):
        byol.Config(scale=0)
    with pytest.raises(ValueError, match=r"batch_size=1: .* at least 2"):
        byol.build(byol.Config(), setup(batch_size=1))
