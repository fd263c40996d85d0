"""Test MoCo v2: the equations of the papers, the queue, several processes, exact resumption, and errors."""

import copy
import itertools
from collections import deque

import pytest
import torch
from method_cases import TinyBackbone, needs_lightly, setup, views
from method_worker import assert_processes_agree, assert_trains_as, like
from torch import nn
from torch.nn import functional as F

from pretrain.methods import mocov2
from pretrain.projector import ProjectorConfig

pytestmark = needs_lightly

HEAD = ProjectorConfig(hidden=32, out=16, layers=2)
SMALL = {"queue": 96, "base_momentum": 0.9, "final_momentum": 0.9}


def method(n: int = 2, *, seed: int = 1, **settings: object) -> mocov2.MoCoV2:
    torch.manual_seed(seed)
    return mocov2.build(mocov2.Config(**(SMALL | settings)), setup(views=n, projector=HEAD)).double()


def info_nce(q: torch.Tensor, k: torch.Tensor, negatives: torch.Tensor, temperature: float) -> torch.Tensor:
    """Compute Eqn. 1 of He et al. for unit vectors: -log exp(q k+ / t) / (exp(q k+ / t) + sum of exp(q k- / t))."""
    positive, negative = (q * k).sum(dim=1).div(temperature).exp(), (q @ negatives.T).div(temperature).exp()
    return -(positive / (positive + negative.sum(dim=1))).log().mean()


# The papers' equations


@pytest.mark.parametrize(
    ("settings", "sizes", "pairs"),
    [
        ({"symmetric": False}, (8, 8), [(0, 1)]),
        ({"symmetric": True, "temperature": 0.5}, (8, 8), [(0, 1), (1, 0)]),
        ({"base_momentum": 0.5, "final_momentum": 0.75}, (8, 8, 6), list(itertools.permutations(range(3), 2))),
    ],
)
def test_training_goes_as_in_the_papers(settings: dict, sizes: tuple[int, ...], pairs: list[tuple[int, int]]) -> None:
    """After four steps with queues of three batches, the random keys and the keys of the first step are replaced."""
    run = method(len(sizes), **settings)
    config = run.config

    def head() -> list[nn.Module]:
        return [nn.Linear(24, 32), nn.ReLU(), nn.Linear(32, 16)]

    online = like(run.backbone, *TinyBackbone()), like(run.projector, *head())
    target = like(run.momentum_encoder[0], *TinyBackbone()), like(run.momentum_encoder[1], *head())
    targets = sorted({j for _, j in pairs})
    queues = {j: deque(queue.keys.clone().split(32), maxlen=3) for j, queue in zip(targets, run.queues, strict=True)}
    keys: dict[int, torch.Tensor] = {}

    def loss(batch: list[torch.Tensor]) -> torch.Tensor:
        q = [F.normalize(online[1](online[0](view))) for view in batch]
        keys.update({j: F.normalize(target[1](target[0](batch[j]))).detach() for j in targets})
        old = {j: torch.cat(list(queues[j])) for j in targets}
        return sum(info_nce(q[i], keys[j], old[j], config.temperature) for i, j in pairs) / len(pairs)

    def after_step(step: int) -> None:
        angle = torch.tensor((step + 1) / 4 * torch.pi, dtype=torch.float64)
        m = config.final_momentum - (config.final_momentum - config.base_momentum) * (1 + angle.cos()) / 2
        for old, new in zip(nn.ModuleList(target).parameters(), nn.ModuleList(online).parameters(), strict=True):
            old.data = m * old.data + (1 - m) * new.data
        for j in targets:
            queues[j].append(keys[j])

    assert_trains_as(run, online, loss, after_step=after_step, sizes=sizes)
    for ours, theirs in zip(run.momentum_encoder.parameters(), nn.ModuleList(target).parameters(), strict=True):
        torch.testing.assert_close(ours.data, theirs.data, rtol=1e-9, atol=1e-12)


def test_momentum_of_moco_v2_is_constant() -> None:
    run = method()
    run(views())
    with torch.no_grad():
        for p in run.backbone.parameters():
            p += 1
    for progress in (0.25, 1.0):
        before = run.momentum_encoder[0][0].weight.clone()
        run.after_step(progress)
        expected = 0.9 * before + 0.1 * run.backbone[0].weight
        torch.testing.assert_close(run.momentum_encoder[0][0].weight, expected, rtol=1e-12, atol=0)
    assert mocov2.Config().base_momentum == mocov2.Config().final_momentum == 0.999


# The queue


def test_oldest_keys_leave_first() -> None:
    queue = mocov2.Queue(6, 2)
    assert torch.allclose(queue.keys.norm(dim=1), torch.ones(6))
    initial = queue.keys.clone()
    for step in range(4):
        queue.enter(torch.full((2, 2), float(step)), step)
        if step == 0:
            assert torch.equal(queue.keys[2:], initial[2:])
    assert queue.keys[:, 0].tolist() == [3, 3, 1, 1, 2, 2]


def test_order_of_images_and_of_the_queue_does_not_matter() -> None:
    run = method()
    loss = run(views())["info_nce"].item()
    order = torch.randperm(32, generator=torch.Generator().manual_seed(0))
    assert run([view[order] for view in views()])["info_nce"].item() == pytest.approx(loss, rel=1e-12)
    for queue in run.queues:
        queue.keys = queue.keys.roll(5, dims=0)
    assert run(views())["info_nce"].item() == pytest.approx(loss, rel=1e-12)
    run.queues[1].keys = run.queues[0].keys.clone()
    assert run(views())["info_nce"].item() != pytest.approx(loss, rel=1e-6)


def test_no_gradient_reaches_keys_or_queue() -> None:
    run = method()
    run(views())["info_nce"].backward()
    assert all(p.grad is None and not p.requires_grad for p in run.momentum_encoder.parameters())
    assert all(p.grad is not None for module in (run.backbone, run.projector) for p in module.parameters())
    assert not any(queue.keys.requires_grad for queue in run.queues)


def test_a_loss_leaves_the_queue_alone_until_the_step() -> None:
    run = method()
    before = copy.deepcopy(run.state_dict())
    run.eval()
    run(views())
    assert all(torch.equal(value, before[key]) for key, value in run.state_dict().items())
    run.after_step(0.25)
    assert not torch.equal(run.queues[0].keys[:32], before["queues.0.keys"][:32])
    assert torch.equal(run.queues[0].keys[32:], before["queues.0.keys"][32:])


def test_resumes_exactly() -> None:
    def train(run: mocov2.MoCoV2, first: int, last: int) -> None:
        optimizer = torch.optim.SGD([p for p in run.parameters() if p.requires_grad], lr=0.1)
        for step in range(first, last):
            run.step = step
            optimizer.zero_grad()
            run(views(step))["info_nce"].backward()
            optimizer.step()
            run.after_step((step + 1) / 8)

    whole, first, second = method(), method(), method(seed=2)
    train(whole, 0, 6)
    train(first, 0, 4)
    second.load_state_dict(first.state_dict())
    train(second, 4, 6)
    assert sum(key.startswith("queues.") for key in whole.state_dict()) == 2
    assert all(torch.equal(value, second.state_dict()[key]) for key, value in whole.state_dict().items())


def test_half_precision_stops_at_the_loss() -> None:
    run = method().float()
    q, k = [], []
    run.projector.register_forward_hook(lambda module, inputs, output: q.append(output.detach().double()))
    run.momentum_encoder[1].register_forward_hook(lambda module, inputs, output: k.append(output.detach().double()))
    with torch.autocast("cpu", torch.bfloat16):
        loss = run([view.float() for view in views()])["info_nce"]
    assert run.embedding.dtype == torch.bfloat16
    assert loss.dtype == torch.float32
    (q0, q1), (k0, k1) = map(F.normalize, q), map(F.normalize, k)
    negatives = [queue.keys.double() for queue in run.queues]
    expected = (info_nce(q0, k1, negatives[1], 0.2) + info_nce(q1, k0, negatives[0], 0.2)) / 2
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    run.after_step(0.25)
    torch.testing.assert_close(run.queues[0].keys[:32], k0.float(), rtol=0, atol=1e-6)


# Two processes


@pytest.mark.parametrize(("settings", "sizes"), [({}, (8, 8, 6)), ({"symmetric": False}, (8, 8))])
def test_processes_together_do_what_one_does(settings: dict, sizes: tuple[int, ...]) -> None:
    alone = assert_processes_agree("mocov2", SMALL | settings, sizes=sizes, projector=HEAD)
    assert "state/queues.0.keys" in alone
    assert "state/momentum_encoder.0.0.weight" in alone


# Failures


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": -0.1}, r"temperature=-0\.1: expected more than 0"),
        ({"queue": 0}, "queue=0: expected at least 1"),
        ({"base_momentum": -1}, "base_momentum=-1: expected at least 0"),
        ({"base_momentum": 0.9, "final_momentum": 0.8}, r"final_momentum=0\.8: .* at least base_momentum"),
    ],
)
def test_bad_settings_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        mocov2.Config(**settings)


@pytest.mark.parametrize(
    ("settings", "changes", "message"),
    [
        ({}, {"images": 95}, "queue=96: larger than the data set of 95 images, .* at most 64$"),
        ({"queue": 100}, {}, "queue=100: not a multiple of batch_size=32; .* at most 96$"),
        ({"queue": 16}, {}, "queue=16: not a multiple of batch_size=32; .* at most 32$"),
        ({}, {"batch_size": 1}, "batch_size=1: .* at least 2"),
        ({}, {"projector": ProjectorConfig(layers=1)}, r"projector\.layers=1: .* at least 2"),
        ({"symmetric": False}, {"views": 3}, "symmetric=false: .* 3 views"),
    ],
)
def test_a_setup_that_does_not_suit_is_refused(settings: dict, changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        mocov2.build(mocov2.Config(**(SMALL | settings)), setup(**({"projector": HEAD} | changes)))
