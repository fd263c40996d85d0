"""Work that one process does alone, or two and four do together over gloo, for comparison."""

import functools
import itertools
import multiprocessing
import signal
import tempfile
import time
from datetime import timedelta
from pathlib import Path
from typing import NamedTuple

import authors
import torch
import torch.distributed as dist
from method_cases import setup
from torch import nn

from intl_bench.core import distributed
from intl_bench.core.signals import StopRequest
from pretrain.backbone import build_backbone
from pretrain.methods import intl
from pretrain.optim import build_optimizer
from pretrain.projector import ProjectorConfig, build_projector
from pretrain.sync_batch_norm import synchronize
from pretrain.whiten.gram import gram_products

BATCH = 32
CPU = torch.device("cpu")
Results = dict[str, torch.Tensor]


class Training(NamedTuple):
    """One comparison of the whole method: its precision, the sizes of its views, and whether view 0 is a target."""

    dtype: torch.dtype
    sizes: tuple[int, ...]
    momentum_target: bool


TRAININGS = {
    "float32": Training(torch.float32, (8, 8), False),
    "float64": Training(torch.float64, (8, 8), False),
    "float64_multi_crop_momentum": Training(torch.float64, (8, 8, 6), True),
}
NORMS = {
    "images": (nn.BatchNorm2d, (BATCH, 6, 5, 4)),
    "vectors": (nn.BatchNorm1d, (BATCH, 6)),
}


def my_part(batch: torch.Tensor, rank: int, world_size: int) -> torch.Tensor:
    """The contiguous slice of a global batch that belongs to this process."""
    size = len(batch) // world_size
    return batch[rank * size : (rank + 1) * size]


@functools.cache
def training(case: str, rank: int = 0, world_size: int = 1) -> Results:
    """Two steps of INTL: loss terms and gradients of both, and the state at the end."""
    dtype, sizes, momentum_target = TRAININGS[case]
    config = intl.Config(momentum_target=momentum_target, base_momentum=0.5)
    backbone = authors.fill(build_backbone("resnet10_narrow", stem="cifar"), "backbone")
    projector = authors.fill(build_projector(backbone.num_features, ProjectorConfig(hidden=64, out=64)), "projector")
    method = intl.build(config, setup(encoder=(backbone, projector)))
    model: nn.Module = method
    if world_size > 1:
        method = synchronize(method)
        model = distributed.Process(rank=rank, world_size=world_size, device=CPU).parallel(method.to(dtype))
    method.to(dtype).train()
    optimizer = build_optimizer(method, momentum=0.9, weight_decay=1e-2, decay_one_dimensional=False)
    results = {}
    for step in range(2):
        images = [authors.noise(f"step{step}/view{i}", BATCH, 3, s, s).to(dtype) for i, s in enumerate(sizes)]
        terms = model([my_part(view, rank, world_size) for view in images])
        optimizer.zero_grad()
        torch.stack(list(terms.values())).sum().backward()
        results |= {f"step{step}/{name}": term.detach() for name, term in terms.items()}
        gradients = {name: p.grad.clone() for name, p in method.named_parameters() if p.grad is not None}
        results |= {f"step{step}/gradient/{name}": gradient for name, gradient in gradients.items()}
        for group in optimizer.param_groups:
            group["lr"] = 0.1
        optimizer.step()
        method.after_step((step + 1) / 4)
    return results | {f"state/{name}": value.clone() for name, value in method.state_dict().items()}


def batch_norm(case: str, dtype: torch.dtype, rank: int = 0, world_size: int = 1) -> Results:
    """Three training steps and one evaluation of a batch norm on values of `dtype` far from zero."""
    kind, shape = NORMS[case]
    module = nn.Sequential(authors.fill(kind(shape[1]), "norm"))
    module = synchronize(module) if world_size > 1 else module
    module = module.double() if dtype == torch.float64 else module
    results = {}
    for step in range(3):
        batch = (100 + 10 * step + 3 * authors.noise(f"{case}/{step}", *shape)).to(dtype)
        direction = authors.noise(f"{case}/{step}/direction", *shape).to(dtype)
        x = my_part(batch, rank, world_size).clone().requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
            y = module(x)
        module.zero_grad()
        (y * my_part(direction, rank, world_size)).sum().backward()
        weights = {"weight": module[0].weight.grad.clone(), "bias": module[0].bias.grad.clone()}
        if world_size > 1:
            for gradient in weights.values():
                dist.all_reduce(gradient)  # each process has its samples' share
        results |= {f"{step}/output": y.detach(), f"{step}/input_gradient": x.grad}
        results |= {f"{step}/{name}_gradient": gradient for name, gradient in weights.items()}
    results["evaluation"] = module.eval()(x.detach()).detach()
    return results | {f"state/{name}": value.clone() for name, value in module.state_dict().items()}


def uneven_batch_norm(rank: int = 0, world_size: int = 1) -> Results:
    """A batch norm of seven samples, of which the last process has all but one a process, the first none."""
    module: nn.Module = nn.Sequential(authors.fill(nn.BatchNorm2d(6), "norm")).double()
    module = synchronize(module) if world_size > 1 else module
    sizes = [0, *[1] * (world_size - 2), 9 - world_size] if world_size > 1 else [7]
    x, direction = (
        authors.noise(name, 7, 6, *rest).double().split(sizes)[rank]
        for name, rest in (("x", (5, 4)), ("direction", ()))
    )
    x = x.clone().requires_grad_()
    y = module.double()(x)
    (y.square().mean((2, 3)) * direction).sum().backward()
    return {"output": y.detach(), "input_gradient": x.grad}


def gathering(rank: int, world_size: int) -> Results:
    """What `core.distributed` does to a (2, 3) matrix of each process, and the gradients that come back."""
    x = (10 * rank + torch.arange(6.0).view(2, 3)).requires_grad_()
    results = {}
    for dim in (0, 1):
        whole = distributed.gather(x, dim=dim)
        (gradient,) = torch.autograd.grad((whole * whole.detach()).sum(), x)
        results |= {f"whole{dim}": whole.detach(), f"gradient{dim}": gradient}
    half = (torch.arange(1000.0)[None] / 1000 + rank).to(torch.bfloat16).requires_grad_()
    gradients = authors.noise(f"gathering/{rank}", world_size, 1000).to(torch.bfloat16)
    (half_gradient,) = torch.autograd.grad(distributed.gather(half), half, gradients)
    results |= {"half_gradients": gradients, "half_gradient": half_gradient}
    flags = [distributed.any_process(flag, CPU) for flag in (False, rank == world_size - 1, True)]
    stop = StopRequest()
    vote = distributed.StopVote(stop, CPU)
    before = vote.ask()
    stop.received = signal.SIGUSR2 if rank == world_size - 1 else None
    signals = torch.tensor([before, vote.ask(), vote.ask()])
    return results | {"any_process": torch.tensor(flags), "stop_vote": signals, "x": x.detach()}


def products(rank: int = 0, world_size: int = 1) -> Results:
    """The samples' products of three views with an odd number of features, and the gradients of a function of them."""
    views = [my_part(authors.noise(f"products/{i}", BATCH, 37), rank, world_size).double() for i in range(3)]
    gram, cross = gram_products([view.requires_grad_() for view in views])
    (gram.pow(3).sum() + cross.pow(2).sum()).backward()
    return {"gram": gram.detach(), "cross": cross.detach()} | {f"gradient{i}": v.grad for i, v in enumerate(views)}


def _work(rank: int, world_size: int, folder: str) -> None:
    torch.set_num_threads(1)
    rendezvous = f"file://{folder}/rendezvous"
    timeout = timedelta(minutes=5)
    dist.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=world_size, timeout=timeout)
    try:
        done = {f"gather/{name}": value for name, value in gathering(rank, world_size).items()}
        done |= {f"products/{name}": value for name, value in products(rank, world_size).items()}
        for case, dtype in itertools.product(NORMS, (torch.float32, torch.float64, torch.bfloat16)):
            norm = batch_norm(case, dtype, rank, world_size)
            done |= {f"norm/{case}/{dtype}/{name}": value for name, value in norm.items()}
        done |= {f"uneven/{name}": value for name, value in uneven_batch_norm(rank, world_size).items()}
        for case in TRAININGS:
            done |= {f"{case}/{name}": value for name, value in training(case, rank, world_size).items()}
        torch.save(done, Path(folder) / f"{rank}.pt")
    finally:
        dist.destroy_process_group()


@functools.cache
def results(world_size: int) -> list[Results]:
    """Everything above, done by `world_size` processes together: one dictionary for each rank."""
    with tempfile.TemporaryDirectory() as folder:
        # A fork server imports PyTorch once for all of them, which is most of the time that this takes.
        multiprocessing.set_forkserver_preload(["torch", "torchvision"])
        context = torch.multiprocessing.start_processes(
            _work, (world_size, folder), nprocs=world_size, join=False, start_method="forkserver"
        )
        end = time.monotonic() + 300
        while not context.join(timeout=5):
            assert time.monotonic() < end, "the processes hang"
        return [torch.load(Path(folder) / f"{rank}.pt", weights_only=True) for rank in range(world_size)]
