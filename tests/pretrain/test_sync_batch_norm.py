"""Test batch norm over all processes on CPUs against PyTorch's batch norm on the whole batch; test gathering."""

import signal

import distributed_worker
import pytest
import torch
from distributed_worker import BATCH, NORMS, my_part
from torch import nn

from pretrain.backbone import build_backbone
from pretrain.sync_batch_norm import SyncBatchNorm, synchronize

world_sizes = pytest.mark.parametrize("world_size", [2, pytest.param(4, marks=pytest.mark.slow)])
TOLERANCES = {torch.float32: 5e-5, torch.float64: 1e-12}  # for values around 100 with a standard deviation of 2


def agree(value: torch.Tensor, expected: torch.Tensor, dtype: torch.dtype) -> None:
    scale = float(expected.double().abs().max())
    tolerance = TOLERANCES[dtype] * max(scale, 1e-3)
    torch.testing.assert_close(value.to(expected.dtype), expected, rtol=0, atol=tolerance)


@world_sizes
@pytest.mark.parametrize("dtype", list(TOLERANCES))
@pytest.mark.parametrize("case", NORMS)
def test_equals_the_norm_of_the_whole_batch(world_size: int, dtype: torch.dtype, case: str) -> None:
    """Compare outputs, gradients and running statistics of three steps, and then an evaluation."""
    whole = distributed_worker.batch_norm(case, dtype)
    for rank, results in enumerate(distributed_worker.results(world_size)):
        for name, expected in whole.items():
            value = results[f"norm/{case}/{dtype}/{name}"]
            local = name.endswith(("output", "input_gradient", "evaluation"))
            agree(value, my_part(expected, rank, world_size) if local else expected, dtype)


@world_sizes
def test_parts_of_different_sizes_also_none_at_all(world_size: int) -> None:
    everyone = distributed_worker.results(world_size)
    for name, expected in distributed_worker.uneven_batch_norm().items():
        parts = [results[f"uneven/{name}"] for results in everyone]
        assert len(parts[0]) == 0
        torch.testing.assert_close(torch.cat(parts), expected)


@world_sizes
def test_half_precision_is_for_the_values_alone(world_size: int) -> None:
    """As in PyTorch, autocast has bfloat16 inputs and outputs, and float32 statistics of the inputs."""
    whole = distributed_worker.batch_norm("images", torch.bfloat16)
    for rank, results in enumerate(distributed_worker.results(world_size)):
        for name, expected in whole.items():
            value = results[f"norm/images/{torch.bfloat16}/{name}"]
            assert value.dtype == expected.dtype, name
            if name.startswith("state/"):
                torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-5)
            elif name.endswith("output"):
                torch.testing.assert_close(value, my_part(expected, rank, world_size), rtol=1e-2, atol=1e-2)


@world_sizes
def test_each_process_gets_its_slice(world_size: int) -> None:
    parts = [my_part(torch.arange(BATCH), rank, world_size) for rank in range(world_size)]
    assert torch.equal(torch.cat(parts), torch.arange(BATCH))
    ends = [results[f"norm/vectors/{torch.float64}/0/output"] for results in distributed_worker.results(world_size)]
    assert [len(end) for end in ends] == [BATCH // world_size] * world_size
    assert not torch.allclose(ends[0], ends[1])


@world_sizes
def test_gather_is_in_rank_order_and_sends_gradients_back(world_size: int) -> None:
    everyone = distributed_worker.results(world_size)
    parts = [results["gather/x"] for results in everyone]
    half_gradients = torch.stack([results["gather/half_gradients"] for results in everyone]).double().sum(dim=0)
    for results, part, half in zip(everyone, parts, half_gradients, strict=True):
        # A sum of half-precision numbers is rounded once.
        assert torch.equal(results["gather/half_gradient"], half[None].to(torch.bfloat16))
        for dim in (0, 1):
            assert torch.equal(results[f"gather/whole{dim}"], torch.cat(parts, dim=dim))
            # Every process computes sum(whole^2) / 2; the gradients of all processes are summed.
            assert torch.equal(results[f"gather/gradient{dim}"], world_size * part)
        assert results["gather/any_process"].tolist() == [False, True, True]
        assert results["gather/stop_vote"].tolist() == [0, 0, signal.SIGUSR2]


def test_synchronize_keeps_names_values_and_frozen_parameters() -> None:
    plain = build_backbone("resnet10_narrow", stem="cifar")
    plain.layer4.requires_grad_(False)
    plain.layer3[0].bn1.bias.requires_grad_(False)
    before = {name: value.clone() for name, value in plain.state_dict().items()}
    trainable = {name: p.requires_grad for name, p in plain.named_parameters()}
    synced = synchronize(plain)
    norms = [m for m in synced.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    assert len(norms) == 12
    assert all(isinstance(norm, SyncBatchNorm) for norm in norms)
    assert list(synced.state_dict()) == list(before)
    assert all(torch.equal(value, before[name]) for name, value in synced.state_dict().items())
    assert {name: p.requires_grad for name, p in synced.named_parameters()} == trainable


def test_evaluation_uses_the_running_statistics() -> None:
    norm = SyncBatchNorm(3).eval()
    norm.running_mean.fill_(2.0)
    norm.running_var.fill_(4.0)
    x = torch.arange(6.0).view(2, 3)
    torch.testing.assert_close(norm(x), (x - 2) / (4 + norm.eps) ** 0.5)


def test_vector_is_refused() -> None:
    with pytest.raises(ValueError, match=r"at least two dimensions, got \(3,\)"):
        SyncBatchNorm(3)(torch.ones(3))
