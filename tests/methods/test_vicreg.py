"""Test VICReg: the equations of the paper, the loss of lightly, invariances, several processes, and errors."""

import itertools

import pytest
import torch
from method_cases import TinyBackbone, setup, views
from method_worker import assert_processes_agree, assert_trains_as, like
from torch import nn

from pretrain.methods import vicreg
from pretrain.methods._shared import pairs_mean
from pretrain.projector import ProjectorConfig

WEIGHTS = ("invariance_weight", "variance_weight", "covariance_weight")


def method(n: int = 2, **settings: float) -> vicreg.VICReg:
    torch.manual_seed(1)
    return vicreg.build(vicreg.Config(**settings), setup(views=n)).double()


def only(weight: str) -> dict[str, float]:
    """Return settings with only one term."""
    return {name: float(name == weight) for name in WEIGHTS}


def projector() -> list[nn.Module]:
    hidden = [nn.Linear(24, 32, bias=False), nn.BatchNorm1d(32), nn.ReLU()]
    return [*hidden, nn.Linear(32, 32, bias=False), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 16)]


def equations(first: torch.Tensor, second: torch.Tensor, weights: tuple[float, float, float]) -> torch.Tensor:
    """Compute Eqns. 1 to 6; as in the authors' code, invariance is a mean over features and variances are halved.

    Variances are computed from the differences of all pairs of images: sum over pairs / (n (n - 1)).
    """
    n, d = first.shape
    terms = []
    for z in (first, second):
        differences = z[:, None] - z[None]
        covariance = torch.einsum("abi,abj->ij", differences, differences) / (2 * n * (n - 1))
        hinges = [torch.clamp(1 - torch.sqrt(covariance[j, j] + 1e-4), min=0) for j in range(d)]
        others = [covariance[i, j] ** 2 for i, j in itertools.permutations(range(d), 2)]
        terms.append((torch.stack(hinges).sum() / d, torch.stack(others).sum() / d))
    invariance = torch.stack([(a - b).square().sum() for a, b in zip(first, second, strict=True)]).sum() / (n * d)
    variance, covariance_term = (terms[0][0] + terms[1][0]) / 2, terms[0][1] + terms[1][1]
    return weights[0] * invariance + weights[1] * variance + weights[2] * covariance_term


# The paper's equations


@pytest.mark.parametrize(
    ("weights", "sizes"), [((25.0, 25.0, 1.0), (8, 8)), ((3.0, 5.0, 10.0), (8, 8, 6)), ((0.0, 1.0, 0.0), (8, 8))]
)
def test_training_goes_as_in_the_paper(weights: tuple[float, float, float], sizes: tuple[int, ...]) -> None:
    run = method(len(sizes), **dict(zip(WEIGHTS, weights, strict=True)))
    twins = like(run.backbone, *TinyBackbone()), like(run.projector, *projector())

    def loss(batch: list[torch.Tensor]) -> torch.Tensor:
        pairs = itertools.combinations([twins[1](twins[0](view)) for view in batch], 2)
        return torch.stack([equations(*pair, weights) for pair in pairs]).mean()

    assert_trains_as(run, twins, loss, sizes=sizes)


def test_half_precision_stops_at_the_loss() -> None:
    run = method().float()
    embeddings: list[torch.Tensor] = []
    run.projector.register_forward_hook(lambda module, inputs, output: embeddings.append(output.detach()))
    with torch.autocast("cpu", torch.bfloat16):
        loss = run([view.float() for view in views()])["vicreg"]
    assert loss.dtype == torch.float32
    assert embeddings[0].dtype == torch.bfloat16
    assert torch.equal(run.embedding, embeddings[0])
    assert loss.item() == pytest.approx(float(equations(*(z.double() for z in embeddings), (25, 25, 1))), rel=1e-5)


# The loss of lightly


@pytest.mark.parametrize(("m", "d"), [(32, 8), (24, 24), (8, 192), (2, 5)])
@pytest.mark.parametrize("count", [2, 3])
def test_loss_and_gradients_are_lightlys(m: int, d: int, count: int) -> None:
    """Test fewer and more images than features, which use different matrices."""
    loss = pytest.importorskip("lightly.loss").VICRegLoss(lambda_param=3.0, mu_param=5.0, nu_param=7.0)
    config = vicreg.Config(invariance_weight=3.0, variance_weight=5.0, covariance_weight=7.0)
    z = torch.stack(views(n=count)).flatten(2)[:, :m, :d]
    one = torch.ones((), dtype=torch.float64)
    found = torch.autograd.functional.vjp(lambda z: vicreg.vicreg(z, config), z, one)
    expected = torch.autograd.functional.vjp(lambda z: pairs_mean(z, loss), z, one)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)


# Invariances of the terms


def transformed(run: vicreg.VICReg, matrix: torch.Tensor, shift: float = 0.0) -> float:
    """Compute the loss after a linear map of the embedding."""
    weight, bias = run.projector[-1].weight.detach().clone(), run.projector[-1].bias.detach().clone()
    with torch.no_grad():
        run.projector[-1].weight.copy_(matrix @ weight)
        run.projector[-1].bias.copy_(matrix @ bias + shift)
        loss = run(views())["vicreg"].item()
        run.projector[-1].weight.copy_(weight)
        run.projector[-1].bias.copy_(bias)
    return loss


@pytest.mark.parametrize("term", WEIGHTS)
def test_rotations_matter_to_all_terms_but_the_invariance(term: str) -> None:
    run, identity = method(**only(term)), torch.eye(16, dtype=torch.float64)
    loss = run(views())["vicreg"].item()
    assert loss > 0
    rotation = torch.linalg.qr(torch.randn(16, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64))[0]
    signs = torch.where(torch.arange(16) % 3 == 0, -1.0, 1.0).double()
    assert transformed(run, torch.diag(signs)[torch.arange(15, -1, -1)], shift=7) == pytest.approx(loss, rel=1e-10)
    same = transformed(run, rotation) == pytest.approx(loss, rel=1e-10)
    assert same is (term == "invariance_weight")
    assert transformed(run, 2 * identity) != pytest.approx(loss, rel=1e-2)


# Two processes


@pytest.mark.parametrize(("sizes", "batch", "layers"), [((8, 8), 32, 3), ((8, 8, 6), 6, 2), ((8, 8), 2, 1)])
def test_processes_together_do_what_one_does(sizes: tuple[int, ...], batch: int, layers: int) -> None:
    """A process may have only one image, which alone has no variance."""
    widths = ProjectorConfig(hidden=32, out=16, layers=layers)
    settings = {"covariance_weight": 50.0}
    assert_processes_agree("vicreg", settings, sizes=sizes, batch_size=batch, projector=widths, tolerance=1e-9)


# Failures


def test_bad_settings_are_refused() -> None:
    for field in WEIGHTS:
        with pytest.raises(ValueError, match=rf"{field}=-1: expected at least 0"):
            vicreg.Config(**{field: -1})
    with pytest.raises(ValueError, match="all 0: nothing to train"):
        vicreg.Config(invariance_weight=0, variance_weight=0, covariance_weight=0)
    with pytest.raises(ValueError, match=r"batch_size=1: .* at least 2"):
        vicreg.build(vicreg.Config(), setup(batch_size=1))
