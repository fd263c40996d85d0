"""Training steps of a method in one process, and the same steps in two processes over gloo, for comparison.

assert_processes_agree("byol", {"predictor_hidden": 24}, views=3)
"""

import functools
import multiprocessing
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from method_cases import SIZE, setup, views
from torch import nn

from intl_bench.core import distributed
from pretrain import methods
from pretrain.optim import build_optimizer
from pretrain.sync_batch_norm import synchronize

STEPS = 2
Results = dict[str, torch.Tensor]


def steps(
    name: str, settings: dict[str, Any], sizes: tuple[int, ...], changes: dict[str, Any], rank: int = 0, world: int = 1
) -> Results:
    """Do two float64 steps of a method; return loss terms, gradients and the last state.

    Returns:
        Tensors by "step0/TERM", "step0/gradient/PARAMETER", "state/NAME" and so on. Loss terms are those of this
        process.
    """
    torch.set_num_threads(1)
    module, run = methods.find(name), setup(**{"views": len(sizes), **changes})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        method = module.build(module.Config(**settings), run)
    if world > 1:
        synchronize(method)
    method.double().train()
    model: nn.Module = distributed.Process(rank=rank, world_size=world, device=torch.device("cpu")).parallel(method)
    optimizer = build_optimizer(
        method,
        momentum=0.9,
        weight_decay=1e-2,
        decay_one_dimensional=False,
        constant_lr=method.constant_lr,
    )
    for group in optimizer.param_groups:
        group["lr"] = 0.1
    results: Results = {}
    for step in range(STEPS):
        images = [view[: run.batch_size].chunk(world)[rank] for view in views(step, sizes=sizes)]
        labels = (torch.arange(run.batch_size) % run.classes).chunk(world)[rank]
        method.step = step
        terms = model(images, labels) if method.labeled else model(images)
        optimizer.zero_grad()
        torch.stack(list(terms.values())).sum().backward()
        results |= {f"step{step}/{term}": value.detach() for term, value in terms.items()}
        gradients = {key: p.grad.clone() for key, p in method.named_parameters() if p.grad is not None}
        results |= {f"step{step}/gradient/{key}": gradient for key, gradient in gradients.items()}
        optimizer.step()
        method.after_step((step + 1) / 4)
    return results | {f"state/{key}": value.clone() for key, value in method.state_dict().items()}


def one_process(
    name: str, settings: dict[str, Any] | None = None, *, sizes: tuple[int, ...] = (SIZE, SIZE), **changes: Any
) -> Results:
    """Call `steps` on the whole batch.

    Args:
        settings: settings of the method.
        sizes: sizes of the views.
        changes: changes of `method_cases.setup`.
    """
    return steps(name, settings or {}, sizes, changes)


def two_processes(
    name: str, settings: dict[str, Any] | None = None, *, sizes: tuple[int, ...] = (SIZE, SIZE), **changes: Any
) -> list[Results]:
    """Call `steps` in two processes that share the batch; return the results in the order of ranks."""
    with tempfile.TemporaryDirectory() as folder:
        parts = [_pool().submit(_work, rank, folder, name, settings or {}, sizes, changes) for rank in range(2)]
        for part in parts:
            part.result(timeout=600)
        return [torch.load(Path(folder) / f"{rank}.pt", weights_only=True) for rank in range(2)]


def assert_processes_agree(
    name: str,
    settings: dict[str, Any] | None = None,
    *,
    sizes: tuple[int, ...] = (SIZE, SIZE),
    tolerance: float = 1e-10,
    **changes: Any,
) -> Results:
    """Assert that two processes have the loss (as a mean), the gradients and the state of one process.

    Returns:
        The results of the one process.
    """
    alone = one_process(name, settings, sizes=sizes, **changes)
    together = two_processes(name, settings, sizes=sizes, **changes)
    assert any(key.startswith("step1/gradient/backbone.") for key in alone)
    for key, expected in alone.items():
        found = [part[key].double() for part in together]
        if "/gradient/" not in key and not key.startswith("state/"):
            found = [torch.stack(found).mean(dim=0)]
        for rank, value in enumerate(found):
            # A gradient that is zero except for rounding (a bias before a batch norm) cannot be compared.
            error = (value - expected).norm() / expected.double().norm().clamp_min(1e-4)
            assert error <= tolerance, f"process {rank}: {key}: {float(error):.2g}"
    assert {key for part in together for key in part} == set(alone)
    return alone


def like(source: nn.Module, *layers: nn.Module) -> nn.Sequential:
    """Return the layers in float64 with the weights of `source`, which has the same weights in the same order.

    The copy is trained if `source` is.
    """
    twin = nn.Sequential(*layers).double()
    weights = dict(zip(twin.state_dict(), source.state_dict().values(), strict=True))
    assert all(value.shape == weights[key].shape for key, value in twin.state_dict().items())
    twin.load_state_dict(weights)
    return twin.requires_grad_(next(source.parameters()).requires_grad)


def assert_trains_as(
    method: Any,
    twins: Sequence[nn.Module],
    loss: Callable[[list[torch.Tensor]], torch.Tensor],
    *,
    after_step: Callable[[int], None] = lambda step: None,
    sizes: tuple[int, ...] = (SIZE, SIZE),
    steps: int = 4,
    tolerance: float = 1e-9,
) -> None:
    """Assert that gradient descent of a method has the losses, gradients and weights of gradient descent of `loss`.

    Args:
        method: the method in float64.
        twins: the modules in `loss`, with copies of the trained parameters of the method in the same order.
        loss: views -> scalar.
        after_step: called with the number of the step after the update of the twins. The progress of the method is
            (number + 1) / steps.
        sizes: sizes of the views.
        steps: number of steps.
        tolerance: relative tolerance.
    """
    trained = [p for p in method.parameters() if p.requires_grad]
    copies = [p for twin in twins for p in twin.parameters() if p.requires_grad]
    for step in range(steps):
        batch, method.step = views(step, sizes=sizes), step
        found, expected = torch.stack(list(method(batch).values())).sum(), loss(batch)
        assert abs(found - expected) <= tolerance * abs(expected), f"step {step}"
        gradients, references = torch.autograd.grad(found, trained), torch.autograd.grad(expected, copies)
        size = torch.nn.utils.get_total_norm(references)
        for (p, gradient), (copy, reference) in zip(
            zip(trained, gradients, strict=True), zip(copies, references, strict=True), strict=True
        ):
            # A gradient that is zero except for rounding (a bias before a batch norm) cannot be compared.
            assert (gradient - reference).norm() <= tolerance * reference.norm().clamp_min(1e-4 * size), f"step {step}"
            p.data -= 0.3 * gradient
            copy.data -= 0.3 * reference
        method.after_step((step + 1) / steps)
        after_step(step)
    for p, copy in zip(trained, copies, strict=True):
        assert (p - copy).norm() <= tolerance * copy.norm()


@functools.cache
def _pool() -> ProcessPoolExecutor:
    # A fork server imports PyTorch only once, which saves most of the time.
    multiprocessing.set_forkserver_preload(["torch", "torchvision"])
    return ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("forkserver"))


def _work(
    rank: int, folder: str, name: str, settings: dict[str, Any], sizes: tuple[int, ...], changes: dict[str, Any]
) -> None:
    """Run one of two calls. They wait for each other, so each runs in its own process."""
    store = f"file://{folder}/rendezvous"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=2, timeout=timedelta(minutes=5))
    try:
        torch.save(steps(name, settings, sizes, changes, rank, 2), Path(folder) / f"{rank}.pt")
    finally:
        dist.destroy_process_group()
