"""Test SimSiam: the equations of the paper, the stopped gradient, the constant learning rate, processes, and errors."""

import itertools

import pytest
import torch
from method_cases import TinyBackbone, needs_lightly, setup, views
from method_worker import assert_processes_agree, assert_trains_as, like
from torch import nn

from pretrain.methods import simsiam
from pretrain.optim import build_optimizer
from pretrain.projector import ProjectorConfig
from pretrain.sync_batch_norm import synchronize

pytestmark = needs_lightly


def method(n: int = 2, **settings: object) -> simsiam.SimSiam:
    torch.manual_seed(1)
    return simsiam.build(simsiam.Config(predictor_hidden=8, **settings), setup(views=n)).double()


def negative_cosine(p: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
    """Compute Eqn. 1 of the paper as a mean over the images."""
    return -torch.stack([(a / a.norm()) @ (b / b.norm()) for a, b in zip(p, z, strict=True)]).mean()


# The paper's equations


@pytest.mark.parametrize("sizes", [(8, 8), (8, 8, 6)])
def test_training_goes_as_in_the_paper(sizes: tuple[int, ...]) -> None:
    run = method(len(sizes))
    projector: list[nn.Module] = []
    for width in (24, 32):
        projector += [nn.Linear(width, 32, bias=False), nn.BatchNorm1d(32), nn.ReLU()]
    projector += [nn.Linear(32, 16, bias=False), nn.BatchNorm1d(16, affine=False)]
    f = like(run.backbone, *TinyBackbone()), like(run.projector, *projector)
    h = like(run.predictor, nn.Linear(16, 8, bias=False), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 16))
    pairs = list(itertools.permutations(range(len(sizes)), 2))

    def loss(batch: list[torch.Tensor]) -> torch.Tensor:
        z = [f[1](f[0](view)) for view in batch]
        p = [h(embedding) for embedding in z]
        return sum(negative_cosine(p[i], z[j].detach()) for i, j in pairs) / len(pairs)

    assert_trains_as(run, [*f, h], loss, sizes=sizes)


def test_half_precision_stops_at_the_loss() -> None:
    run = method().float()
    p, z = [], []
    run.predictor.register_forward_hook(lambda module, inputs, output: p.append(output.detach()))
    run.projector.register_forward_hook(lambda module, inputs, output: z.append(output.detach()))
    with torch.autocast("cpu", torch.bfloat16):
        loss = run([view.float() for view in views()])["negative_cosine"]
    assert p[0].dtype == torch.bfloat16
    assert loss.dtype == torch.float32
    expected = negative_cosine(p[0].double(), z[1].double()) + negative_cosine(p[1].double(), z[0].double())
    assert loss.item() == pytest.approx(expected.item() / 2, rel=1e-5)


# Properties


def test_order_of_images_and_views_does_not_matter() -> None:
    run = method()
    loss = run(views())["negative_cosine"].item()
    order = torch.randperm(32, generator=torch.Generator().manual_seed(0))
    assert run([view[order] for view in views()[::-1]])["negative_cosine"].item() == pytest.approx(loss, rel=1e-12)
    assert run([views()[0][order], views()[1]])["negative_cosine"].item() != pytest.approx(loss, rel=1e-3)


def test_gradient_comes_through_the_predictor_alone() -> None:
    run = method()
    with torch.no_grad():
        run.predictor.layers[-1].weight.zero_()
    run(views())["negative_cosine"].backward()
    assert all(p.grad.count_nonzero() == 0 for p in [*run.backbone.parameters(), *run.projector.parameters()])
    assert run.predictor.layers[-1].bias.grad.norm() > 1e-3
    torch.testing.assert_close(run.embedding, run.projector(run.backbone(views()[0])).detach(), rtol=0, atol=0)


@pytest.mark.parametrize("constant", [True, False])
@pytest.mark.parametrize("processes", [1, 2])
def test_learning_rate_of_the_predictor_is_constant(constant: bool, processes: int) -> None:
    run = method(constant_predictor_lr=constant)
    if processes > 1:
        synchronize(run)
    groups = build_optimizer(
        run, momentum=0.9, weight_decay=0.1, decay_one_dimensional=True, constant_lr=run.constant_lr
    ).param_groups
    found = {id(p) for group in groups if group["constant"] for p in group["params"]}
    assert found == ({id(p) for p in run.predictor.parameters()} if constant else set())


# Two processes


@pytest.mark.parametrize("sizes", [(8, 8), (8, 8, 6)])
def test_processes_together_do_what_one_does(sizes: tuple[int, ...]) -> None:
    assert_processes_agree("simsiam", {"predictor_hidden": 8}, sizes=sizes)


# Failures


def test_bad_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="predictor_hidden=0: expected at least 1"):
        simsiam.Config(predictor_hidden=0)
    with pytest.raises(ValueError, match=r"batch_size=1: .* at least 2"):
        simsiam.build(simsiam.Config(), setup(batch_size=1))
    with pytest.raises(ValueError, match=r"projector\.layers=2: expected 3"):
        simsiam.build(simsiam.Config(), setup(projector=ProjectorConfig(layers=2)))
