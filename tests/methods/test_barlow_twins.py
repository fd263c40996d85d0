"""Test Barlow Twins: the equation of the paper, invariances of the loss, several processes, and errors."""

import itertools

import pytest
import torch
from method_cases import TinyBackbone, needs_lightly, setup, views
from method_worker import assert_processes_agree, assert_trains_as, like
from torch import nn

from pretrain.methods import barlow_twins

pytestmark = needs_lightly


def method(n: int = 2, **settings: object) -> barlow_twins.BarlowTwins:
    torch.manual_seed(1)
    return barlow_twins.build(barlow_twins.Config(**settings), setup(views=n)).double()


def projector() -> list[nn.Module]:
    hidden = [nn.Linear(24, 32, bias=False), nn.BatchNorm1d(32), nn.ReLU()]
    return [*hidden, nn.Linear(32, 32, bias=False), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 16)]


def equation(first: torch.Tensor, second: torch.Tensor, weight: float) -> torch.Tensor:
    """Compute Eqns. 1 and 2 of the paper row by row; the variances include the 1e-5 of the authors' batch norm."""
    a, b = first - first.mean(dim=0), second - second.mean(dim=0)
    loss = torch.zeros((), dtype=first.dtype)
    for i in range(first.shape[1]):
        variances = (a[:, i].square().mean() + 1e-5) * (b.square().mean(dim=0) + 1e-5)
        row = (a[:, i, None] * b).mean(dim=0) / variances.sqrt()
        loss = loss + (1 - row[i]) ** 2 + weight * sum(row[j] ** 2 for j in range(len(row)) if j != i)
    return loss


# The paper's equation


@pytest.mark.parametrize(("settings", "sizes"), [({}, (8, 8)), ({"off_diagonal_weight": 0.2, "scale": 0.1}, (8, 8, 6))])
def test_training_goes_as_in_the_paper(settings: dict[str, float], sizes: tuple[int, ...]) -> None:
    run = method(len(sizes), **settings)
    config = barlow_twins.Config(**settings)
    twins = like(run.backbone, *TinyBackbone()), like(run.projector, *projector())

    def loss(batch: list[torch.Tensor]) -> torch.Tensor:
        pairs = itertools.combinations([twins[1](twins[0](view)) for view in batch], 2)
        return config.scale * torch.stack([equation(*pair, config.off_diagonal_weight) for pair in pairs]).mean()

    assert_trains_as(run, twins, loss, sizes=sizes)


def test_half_precision_stops_at_the_loss() -> None:
    run = method().float()
    embeddings: list[torch.Tensor] = []
    run.projector.register_forward_hook(lambda module, inputs, output: embeddings.append(output.detach()))
    with torch.autocast("cpu", torch.bfloat16):
        loss = run([view.float() for view in views()])["cross_correlation"]
    assert loss.dtype == torch.float32
    assert embeddings[0].dtype == torch.bfloat16
    assert torch.equal(run.embedding, embeddings[0])
    assert loss.item() == pytest.approx(float(equation(*(z.double() for z in embeddings), 0.0051)), rel=1e-5)


# Invariances of the loss


def test_shift_scale_and_order_of_features_do_not_matter() -> None:
    run, batch = method(), views()
    with torch.no_grad():
        run.projector[-1].weight *= 1e4  # 1e-5 is negligible beside these variances
        loss = run(batch)["cross_correlation"].item()
        run.projector[-1].weight[3] *= 50
        run.projector[-1].bias += torch.arange(16)
        run.projector[-1].weight.copy_(run.projector[-1].weight.flip(0))
        assert run(batch)["cross_correlation"].item() == pytest.approx(loss, rel=1e-9)
        run.projector[-1].weight[0] += run.projector[-1].weight[1]  # this changes the loss
        assert run(batch)["cross_correlation"].item() != pytest.approx(loss, rel=1e-2)


def test_order_of_images_and_views_does_not_matter() -> None:
    run, batch = method(3), views(n=3)
    loss = run(batch)["cross_correlation"].item()
    order = torch.randperm(32, generator=torch.Generator().manual_seed(0))
    assert run([view[order] for view in batch[::-1]])["cross_correlation"].item() == pytest.approx(loss, rel=1e-11)
    assert run([batch[0][order], *batch[1:]])["cross_correlation"].item() > 1.01 * loss


# Two processes


@pytest.mark.slow
@pytest.mark.parametrize(("sizes", "batch"), [((8, 8), 32), ((8, 8, 6), 6)])
def test_processes_together_do_what_one_does(sizes: tuple[int, ...], batch: int) -> None:
    assert_processes_agree("barlow_twins", {"scale": 0.1}, sizes=sizes, batch_size=batch, tolerance=1e-9)


# Failures


def test_bad_settings_are_refused() -> None:
    for field in ("off_diagonal_weight", "scale"):
        with pytest.raises(ValueError, match=rf"{field}=0: expected more than 0"):
            barlow_twins.Config(**{field: 0})
    with pytest.raises(ValueError, match=r"batch_size=1: .* at least 2"):
        barlow_twins.build(barlow_twins.Config(), setup(batch_size=1))
