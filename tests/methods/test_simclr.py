"""Test SimCLR: the equation of the paper, the loss of lightly, invariances, several processes, and errors."""

import itertools

import authors
import pytest
import torch
from method_cases import TinyBackbone, needs_lightly, setup, views
from method_worker import assert_processes_agree, assert_trains_as, like
from torch import nn

from pretrain.methods import simclr
from pretrain.methods._lightly import lightly
from pretrain.projector import ProjectorConfig

pytestmark = needs_lightly


def method(n: int = 2, *, layers: int = 2, **settings: object) -> simclr.SimCLR:
    torch.manual_seed(1)
    widths = ProjectorConfig(hidden=32, out=16, layers=layers)
    return simclr.build(simclr.Config(**settings), setup(views=n, projector=widths)).double()


def nt_xent(first: torch.Tensor, second: torch.Tensor, temperature: float) -> torch.Tensor:
    """Compute Eqn. 1 of the paper term by term; the views of image k are the rows 2k and 2k + 1."""
    z = torch.stack([first, second], dim=1).flatten(0, 1)
    exponentials = torch.exp(z @ z.T / torch.outer(z.norm(dim=1), z.norm(dim=1)) / temperature)
    terms = []
    for i in range(len(z)):
        others = [k for k in range(len(z)) if k != i]
        terms.append(-torch.log(exponentials[i, i ^ 1] / exponentials[i, others].sum()))
    return torch.stack(terms).mean()


# The paper's equation


@pytest.mark.parametrize(
    ("batch_norm", "layers", "sizes", "temperature"), [(True, 2, (8, 8), 0.1), (False, 3, (8, 8, 6), 0.5)]
)
def test_training_goes_as_in_the_paper(
    batch_norm: bool, layers: int, sizes: tuple[int, ...], temperature: float
) -> None:
    run = method(len(sizes), layers=layers, batch_norm=batch_norm, temperature=temperature, scale=2.0)
    shapes = [(24, 32), *[(32, 32)] * (layers - 2), (32, 16)]
    head: list[nn.Module] = []
    for width, out in shapes:
        norm = [nn.BatchNorm1d(out)] if batch_norm else []
        head += [nn.Linear(width, out, bias=not batch_norm), *norm, nn.ReLU()]
    backbone, projector = like(run.backbone, *TinyBackbone()), like(run.projector, *head[:-1])
    if batch_norm:  # the last batch norm of the authors has no offset
        projector[-1].bias.requires_grad_(False)

    def loss(batch: list[torch.Tensor]) -> torch.Tensor:
        pairs = itertools.combinations([projector(backbone(view)) for view in batch], 2)
        return 2 * torch.stack([nt_xent(*pair, temperature) for pair in pairs]).mean()

    assert_trains_as(run, [backbone, projector], loss, sizes=sizes)


def test_half_precision_stops_at_the_loss() -> None:
    run = method().float()
    embeddings: list[torch.Tensor] = []
    run.projector.register_forward_hook(lambda module, inputs, output: embeddings.append(output.detach()))
    with torch.autocast("cpu", torch.bfloat16):
        loss = run([view.float() for view in views()])["nt_xent"]
    assert loss.dtype == torch.float32
    assert embeddings[0].dtype == torch.bfloat16
    assert torch.equal(run.embedding, embeddings[0])
    assert loss.item() == pytest.approx(nt_xent(*(z.double() for z in embeddings), 0.1).item(), rel=1e-6)


# The loss of lightly


@pytest.mark.parametrize(("m", "temperature"), [(2, 0.5), (32, 0.1), (33, 0.02)])
def test_loss_and_gradients_are_lightlys(m: int, temperature: float) -> None:
    """This project replaces the cosine of a row with itself by minus infinity; lightly removes it."""
    theirs = lightly("loss").NTXentLoss(temperature=temperature)
    pair = tuple(authors.noise(f"simclr/{i}", m, 16).double() for i in range(2))
    one = torch.ones((), dtype=torch.float64)
    found = torch.autograd.functional.vjp(lambda a, b: simclr.nt_xent(a, b, temperature), pair, one)
    expected = torch.autograd.functional.vjp(theirs, pair, one)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)


# Invariances of the loss


def test_order_of_images_and_views_and_size_of_embeddings_do_not_matter() -> None:
    run = method(3)
    loss = run(views(n=3))["nt_xent"].item()
    order = torch.randperm(32, generator=torch.Generator().manual_seed(0))
    assert run([view[order] for view in views(n=3)[::-1]])["nt_xent"].item() == pytest.approx(loss, rel=1e-12)
    mixed = [views(n=3)[0][order], *views(n=3)[1:]]
    assert run(mixed)["nt_xent"].item() > 1.01 * loss
    with torch.no_grad():
        run.projector.layers[-1].weight *= 7
        run.projector.layers[-1].bias *= 7
    assert run(views(n=3))["nt_xent"].item() == pytest.approx(loss, rel=1e-12)


# Two processes


@pytest.mark.parametrize("sizes", [(8, 8), (8, 8, 6)])
def test_processes_together_do_what_one_does(sizes: tuple[int, ...]) -> None:
    assert_processes_agree("simclr", {"temperature": 0.2}, sizes=sizes)


# Failures


def test_bad_settings_are_refused() -> None:
    for field in ("temperature", "scale"):
        with pytest.raises(ValueError, match=f"{field}=0: expected more than 0"):
            simclr.Config(**{field: 0})
    with pytest.raises(ValueError, match=r"batch_size=1: .* at least 2"):
        simclr.build(simclr.Config(), setup(batch_size=1))
    with pytest.raises(ValueError, match=r"projector\.layers=1: .* at least 2"):
        method(layers=1)
