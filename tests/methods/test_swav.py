"""Test SwAV: the equations of the paper, the queue, invariances, several processes, exact resumption, and errors."""

import itertools
from collections import deque

import pytest
import torch
from method_cases import TinyBackbone, assert_resumes, needs_lightly, setup, views
from method_worker import assert_processes_agree, assert_trains_as, like
from torch import nn
from torch.nn import functional as F

from pretrain.methods import swav
from pretrain.projector import ProjectorConfig

pytestmark = needs_lightly

HEAD = ProjectorConfig(hidden=32, out=16, layers=2)
SMALL = {"prototypes": 12, "queue": 64, "queue_from_epoch": 1, "freeze_prototypes_epochs": 1}


def method(n: int = 2, *, seed: int = 1, **settings: object) -> swav.SwAV:
    """Build the method with two steps per epoch."""
    torch.manual_seed(seed)
    run = setup(views=n, projector=HEAD, images=64, steps_per_epoch=2)
    return swav.build(swav.Config(**(SMALL | settings)), run).double()


def assignment(cosines: torch.Tensor, epsilon: float, iterations: int) -> torch.Tensor:
    """Compute Eqn. 5 of the paper: Diag(u) exp(C Z^T / epsilon) Diag(v), (B, K) with rows of sum 1.

    u normalizes the sums of the K prototypes, and v those of the B images, in turn.
    """
    kernel = torch.exp(cosines / epsilon)
    b, k = kernel.shape
    v = torch.ones(b, dtype=kernel.dtype)
    for _ in range(iterations):
        u = 1 / (k * (v @ kernel))
        v = 1 / (b * (kernel @ u))
    return b * v[:, None] * kernel * u


# The paper's equations


@pytest.mark.parametrize(
    ("settings", "sizes"),
    [
        ({}, (8, 8)),
        ({"temperature": 0.3, "sinkhorn_epsilon": 0.1, "sinkhorn_iterations": 5}, (8, 8, 6)),
        ({"queue": 0, "freeze_prototypes_epochs": 0}, (8, 8, 6, 6)),
        ({"queue": 32, "queue_from_epoch": 2, "freeze_prototypes_epochs": 2}, (8, 8)),
    ],
)
def test_training_goes_as_in_the_paper(settings: dict, sizes: tuple[int, ...]) -> None:
    """In three epochs of two steps, prototypes are frozen, then trained; the queue is filled, used and overwritten."""
    run = method(len(sizes), **settings)
    config, step = run.config, itertools.count()
    head = nn.Linear(24, 32, bias=False), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 16)
    backbone, projector = like(run.backbone, *TinyBackbone()), like(run.projector, *head)
    prototypes = like(run.prototypes, nn.Linear(16, 12, bias=False))
    queues = [deque(maxlen=config.queue // 32) for _ in range(2)]
    used = []

    def loss(batch: list[torch.Tensor]) -> torch.Tensor:
        epoch, weight = next(step) // 2, prototypes[0].weight
        weight.data /= weight.data.square().sum(dim=1, keepdim=True).sqrt()
        directions = weight if epoch >= config.freeze_prototypes_epochs else weight.detach() + 0 * weight
        z = [F.normalize(projector(backbone(view))) for view in batch]
        terms = []
        for t in range(2):
            together = [z[t], *(queues[t] if epoch >= config.queue_from_epoch else [])]
            used.append(len(together))
            q = assignment(torch.cat(together) @ weight.T, config.sinkhorn_epsilon, config.sinkhorn_iterations)[:32]
            for s in set(range(len(z))) - {t}:
                p = torch.exp(z[s] @ directions.T / config.temperature)
                log_p = torch.log(p / p.sum(dim=1, keepdim=True))
                terms.append(-(q.detach() * log_p).sum(dim=1).mean())
        for t in range(2):
            queues[t].append(z[t].detach())
        return torch.stack(terms).mean()

    assert_trains_as(run, [backbone, projector, prototypes], loss, sizes=sizes, steps=6)
    assert max(used) == 1 + config.queue // 32
    if config.queue:
        held = [set(map(tuple, part.round(decimals=8).tolist())) for part in run.queue]
        expected = [set(map(tuple, torch.cat(list(queue)).round(decimals=8).tolist())) for queue in queues]
        assert held == expected


def test_frozen_prototypes_keep_their_directions_under_weight_decay() -> None:
    run = method()
    (layer,) = run.prototypes.heads
    optimizer = torch.optim.SGD([p for p in run.parameters() if p.requires_grad], lr=0.5, weight_decay=0.1)
    before = F.normalize(layer.weight.detach(), dim=1)
    for step in range(3):
        run.step = step
        optimizer.zero_grad()
        run(views(step))["swapped_prediction"].backward()
        optimizer.step()
        moved = (F.normalize(layer.weight.detach(), dim=1) - before).norm()
        assert moved < 1e-12 if step < 2 else moved > 1e-3


def test_half_precision_stops_at_the_loss() -> None:
    run = method(queue=0).float()
    embeddings: list[torch.Tensor] = []
    run.projector.register_forward_hook(lambda module, inputs, output: embeddings.append(output.detach()))
    with torch.autocast("cpu", torch.bfloat16):
        loss = run([view.float() for view in views()])["swapped_prediction"]
    assert loss.dtype == torch.float32
    assert loss.shape == ()
    assert torch.equal(run.embedding, embeddings[0])
    assert embeddings[0].dtype == torch.bfloat16
    first, second = (F.normalize(z.double()) @ run.prototypes.heads[0].weight.double().T for z in embeddings)
    expected = [
        -(assignment(a, 0.05, 3) * F.log_softmax(b / 0.1, dim=1)).sum(dim=1).mean()
        for a, b in ((first, second), (second, first))
    ]
    assert loss.item() == pytest.approx(sum(expected).item() / 2, rel=1e-5)


# Invariances of the loss


def test_order_of_prototypes_images_assigned_views_and_queue_does_not_matter() -> None:
    run = method(3)
    for run.step in range(2):
        run(views(run.step, 3))
        run.after_step(0.1)
    run.step = 2
    batch = views(2, 3)
    loss = run(batch)["swapped_prediction"].item()
    order = torch.randperm(32, generator=torch.Generator().manual_seed(0))
    assert run([view[order] for view in batch])["swapped_prediction"].item() == pytest.approx(loss, rel=1e-11)
    run.prototypes.heads[0].weight.data = run.prototypes.heads[0].weight.data.roll(5, dims=0)
    run.queue = run.queue.roll(7, dims=1)
    assert run(batch)["swapped_prediction"].item() == pytest.approx(loss, rel=1e-11)
    run.queue = run.queue.flip(0)
    assert run([batch[1], batch[0], batch[2]])["swapped_prediction"].item() == pytest.approx(loss, rel=1e-11)
    assert run(batch)["swapped_prediction"].item() != pytest.approx(loss, rel=1e-6)  # the queue of the other view
    run.queue = run.queue.flip(0)
    assert run([batch[2], batch[1], batch[0]])["swapped_prediction"].item() != pytest.approx(loss, rel=1e-6)


def test_assignments_share_the_images_out_equally() -> None:
    """After many iterations every prototype has an equal share, even if the cosines are very different."""
    torch.manual_seed(0)
    shares = assignment(torch.rand(32, 12, dtype=torch.float64) + torch.linspace(0, 0.5, 12), 0.1, 300)
    torch.testing.assert_close(shares.sum(dim=0), torch.full((12,), 32 / 12, dtype=torch.float64))


# Resumption and two processes


def test_resumes_exactly() -> None:
    assert_resumes(method, part="queue")


@pytest.mark.parametrize(("queue", "frozen", "sizes"), [(32, 1, (8, 8, 6)), (0, 0, (8, 8)), (32, 2, (8, 8))])
def test_processes_together_do_what_one_does(queue: int, frozen: int, sizes: tuple[int, ...]) -> None:
    """Each step is an epoch; the second one uses the queue."""
    settings = SMALL | {"queue": queue, "freeze_prototypes_epochs": frozen}
    alone = assert_processes_agree("swav", settings, sizes=sizes, projector=HEAD, images=32, steps_per_epoch=1)
    moves = [float(alone[f"step{step}/gradient/prototypes.heads.0.weight"].norm()) > 0 for step in range(2)]
    assert moves == [frozen < 1, frozen < 2]
    assert ("state/queue" in alone) is (queue > 0)


# Failures


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"prototypes": 1}, "prototypes=1: expected at least 2"),
        ({"temperature": 0}, "temperature=0: expected more than 0"),
        ({"sinkhorn_epsilon": 0.02}, r"sinkhorn_epsilon=0\.02: expected at least 0\.03"),
        ({"sinkhorn_iterations": 0}, "sinkhorn_iterations=0: expected at least 1"),
        ({"queue": -32}, "queue=-32: expected at least 0"),
        ({"queue_from_epoch": 0}, "queue_from_epoch=0: expected at least 1"),
        ({"freeze_prototypes_epochs": -1}, "freeze_prototypes_epochs=-1: expected at least 0"),
    ],
)
def test_bad_settings_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        swav.Config(**(SMALL | settings))


@pytest.mark.parametrize(
    ("settings", "changes", "message"),
    [
        ({"queue": 96}, {"images": 95}, "queue=96: larger than the data set of 95 images, .* at most 64$"),
        ({"queue": 100}, {}, "queue=100: not a multiple of batch_size=32; .* at most 96$"),
        ({"queue": 16}, {}, "queue=16: not a multiple of batch_size=32; .* at most 32$"),
        ({}, {"batch_size": 1}, "batch_size=1: .* at least 2"),
        ({}, {"projector": ProjectorConfig(layers=3)}, r"projector\.layers=3: expected 2"),
    ],
)
def test_a_setup_that_does_not_suit_is_refused(settings: dict, changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        swav.build(swav.Config(**(SMALL | settings)), setup(**({"projector": HEAD} | changes)))
