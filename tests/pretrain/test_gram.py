"""Test Gram matrices: values and gradients, memory, and several processes."""

import authors
import distributed_worker
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from pretrain.iternorm import VARIANTS
from pretrain.methods.intl import INTLLoss
from pretrain.whiten.gram import gram_products


def views_of(count: int, m: int, d: int, mean: float = 1.0) -> list[torch.Tensor]:
    """Return float64 embeddings with standard deviation 1 / sqrt(3) whose sample means are of the order of `mean`."""
    offset = mean * authors.noise("offset", m, 1).double()
    return [authors.noise(f"view{a}", m, d).double() + offset for a in range(count)]


def plain(views: list[torch.Tensor]) -> list[torch.Tensor]:
    x = [z - z.mean(dim=1, keepdim=True) for z in views]
    return [torch.stack([a @ a.T for a in x]), torch.stack([a @ x[0].T for a in x[1:]])]


def relative(value: torch.Tensor, reference: torch.Tensor) -> float:
    return float((value.double() - reference).detach().norm() / reference.detach().norm())


def gradients(products: list[torch.Tensor], views: list[torch.Tensor]) -> list[torch.Tensor]:
    """Return the gradients of an arbitrary, unsymmetric combination of the products."""
    weights = [authors.noise(f"weights{i}", *p.shape).to(p) for i, p in enumerate(products)]
    return list(torch.autograd.grad(products, [z for z in views if z.requires_grad], weights))


def test_gradient_is_right() -> None:
    views = [z.requires_grad_() for z in views_of(3, 5, 7)]
    assert torch.autograd.gradcheck(lambda *z: gram_products(z), views)


@pytest.mark.parametrize("m", [2, 63, 64, 130])
@pytest.mark.parametrize("d", [2, 1024, 2500])
@pytest.mark.parametrize("count", [2, 3])
def test_products_are_those_of_the_formula(count: int, m: int, d: int) -> None:
    """Test sizes around the block sizes of the computation."""
    views = [z.requires_grad_() for z in views_of(count, m, d)]
    ours, expected = list(gram_products(views)), plain(views)
    for a, b in zip(ours, expected, strict=True):
        assert a.shape == b.shape
        assert relative(a, b) <= 1e-13
    assert torch.equal(ours[0], ours[0].mT)
    for a, b in zip(gradients(ours, views), gradients(expected, views), strict=True):
        assert relative(a, b) <= 1e-13


@pytest.mark.parametrize("mean", [1.0, 100.0])
def test_large_means_do_not_lower_the_precision(mean: float) -> None:
    views = [z.float() for z in views_of(3, 80, 1500, mean)]
    rounded, exact = ([z.to(dtype).requires_grad_() for z in views] for dtype in (torch.float32, torch.float64))
    ours, expected = list(gram_products(rounded)), plain(exact)
    for a, b in zip(ours, expected, strict=True):
        assert a.dtype == torch.float32
        assert relative(a, b) <= 1e-6
    for a, b in zip(gradients(ours, rounded), gradients(expected, exact), strict=True):
        assert relative(a, b) <= 1e-6
        assert float(a.mean(dim=1).norm() / a.std(dim=1).norm()) <= 1e-6


def test_a_view_without_gradient() -> None:
    views = [z.requires_grad_(a > 0) for a, z in enumerate(views_of(3, 20, 30))]
    ours, expected = gradients(list(gram_products(views)), views), gradients(plain(views), views)
    assert len(ours) == 2
    for a, b in zip(ours, expected, strict=True):
        assert relative(a, b) <= 1e-13


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    halves = [z.to(dtype).requires_grad_() for z in views_of(2, 20, 2000)]
    floats = [z.detach().float().requires_grad_() for z in halves]
    ours, expected = list(gram_products(halves)), list(gram_products(floats))
    for a, b in zip(ours, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6 * float(b.detach().abs().max()))
    for a, b in zip(gradients(ours, halves), gradients(expected, floats), strict=True):
        assert a.dtype == dtype
        torch.testing.assert_close(a.float(), b, rtol=2 * torch.finfo(dtype).eps, atol=1e-3)


def test_backward_inside_autocast() -> None:
    """backward() inside autocast is not recommended, but common."""
    views = [z.float().requires_grad_() for z in views_of(2, 20, 30)]
    outside = torch.autograd.grad(sum(INTLLoss()(views).values()), views)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = torch.autograd.grad(sum(INTLLoss()(views).values()), views)
    for a, b in zip(inside, outside, strict=True):
        assert relative(a, b.double()) <= 0.02


# Memory


class LargeTensors(TorchDispatchMode):
    """A list of the new tensors of at least `least` elements."""

    def __init__(self, least: int) -> None:
        super().__init__()
        self.least = least
        self.found: dict[int, torch.UntypedStorage] = {}

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        output = function(*arguments, **(keywords or {}))
        for tensor in output if isinstance(output, (tuple, list)) else [output]:
            if isinstance(tensor, torch.Tensor) and tensor.numel() >= self.least:
                storage = tensor.untyped_storage()
                self.found[storage.data_ptr()] = storage  # a reference, so that the address is not reused
        return output


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("count", [2, 4])
def test_only_embeddings_and_their_gradients_are_large(count: int, variant: str) -> None:
    """Of the size of an embedding, only the embeddings are saved, and only their gradients are created."""
    m, d = 32, 8192
    views = [z.float().requires_grad_() for z in views_of(count, m, d)]
    inputs, kept = {z.data_ptr() for z in views}, {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.data_ptr()] = tensor.numel()
        return tensor

    with LargeTensors(m * d) as large:
        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            loss = sum(INTLLoss(variant=variant)(views).values())
        assert large.found.keys() <= inputs
        loss.backward()
    assert large.found.keys() - inputs == {z.grad.data_ptr() for z in views}
    assert inputs <= kept.keys()
    per_view = sum(size for pointer, size in kept.items() if pointer not in inputs) / count
    assert per_view <= 40 * m * m


# Two and four processes


@pytest.mark.parametrize("world_size", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_processes_share_the_products(world_size: int) -> None:
    """Include numbers of columns that the number of processes does not divide."""
    alone = distributed_worker.products()
    for rank, together in enumerate(distributed_worker.results(world_size)):
        for name in ("gram", "cross"):
            assert relative(together[f"products/{name}"], alone[name]) <= 1e-14
        for name in ("gradient0", "gradient1", "gradient2"):
            # Every process computes the same function of the products; the gradients of all processes are summed.
            expected = world_size * distributed_worker.my_part(alone[name], rank, world_size)
            assert relative(together[f"products/{name}"], expected) <= 1e-14
