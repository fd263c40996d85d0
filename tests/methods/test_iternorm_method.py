"""Test IterNorm as a method: the alignment of INTL without the trace loss."""

import method_cases
import pytest
import torch
from method_worker import assert_processes_agree

from pretrain.iternorm import AXES, VARIANTS
from pretrain.methods import intl, iternorm
from pretrain.projector import ProjectorConfig


def method(run: object = None, **settings: object) -> iternorm.IterNorm:
    torch.manual_seed(3)
    return iternorm.build(iternorm.Config(**settings), run or method_cases.setup()).double()


def relative(value: torch.Tensor, reference: torch.Tensor) -> float:
    return float((value - reference).detach().norm() / reference.detach().norm())


@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(("iterations", "count"), [(1, 2), (4, 2), (5, 3)])
def test_loss_is_the_distance_of_whitened_outputs(axis: str, variant: str, iterations: int, count: int) -> None:
    """Compute Eqn. 3 as printed, then Eqn. 1 of the normalized outputs."""
    module = method(axis=axis, variant=variant, iterations=iterations)
    views = method_cases.views(n=count)
    terms = module(views)
    assert list(terms) == ["alignment"]
    unit = []
    for view in views:
        z = module.projector(module.backbone(view))
        x = z if axis == "channel" else z.T
        x = x - x.mean(dim=1, keepdim=True)
        sigma = x @ x.T / (x.shape[1] - 1)
        p = torch.eye(len(x), dtype=x.dtype)
        for _ in range(iterations):
            p = 1.5 * p - 0.5 * torch.linalg.matrix_power(p, 3) @ sigma / sigma.trace()
        white = p @ x / sigma.trace().sqrt()
        white = white if axis == "channel" else white.T
        unit.append(white / white.norm(dim=1, keepdim=True))
    expected = sum((u - unit[0]).square().sum(dim=1).mean() for u in unit[1:]) / (count - 1)
    assert relative(terms["alignment"], expected) <= 1e-10
    found, wanted = (torch.autograd.grad(loss, module.backbone[0].weight)[0] for loss in (terms["alignment"], expected))
    assert relative(found, wanted) <= 1e-8


def test_it_is_intl_without_the_trace_loss() -> None:
    views = method_cases.views()
    torch.manual_seed(3)
    with_trace = intl.build(intl.Config(), method_cases.setup()).double()(views)
    assert method()(views)["alignment"].item() == with_trace["alignment"].item()
    assert with_trace["trace"].item() > 1e-3


def test_scale_of_the_embedding_does_not_matter() -> None:
    module, views = method(), method_cases.views()
    before = module(views)["alignment"].item()
    for parameter in (module.projector[-1].weight, module.projector[-1].bias):
        parameter.data *= 100
    assert module(views)["alignment"].item() == pytest.approx(before, rel=1e-9)


@pytest.mark.parametrize("settings", [{}, {"axis": "batch", "iterations": 7}])
def test_two_processes_do_what_one_does(settings: dict) -> None:
    assert_processes_agree("iternorm", settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"iterations": 0}, "iterations=0: expected at least 1"),
        ({"axis": "both"}, "axis=both"),
        ({"variant": "exact"}, "variant=exact"),
    ],
)
def test_bad_settings_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        iternorm.Config(**settings)


def test_too_small_a_batch_is_refused() -> None:
    with pytest.raises(ValueError, match="batch_size=1: whitening needs a batch"):
        method(method_cases.setup(batch_size=1))
    wide = method_cases.setup(batch_size=16, projector=ProjectorConfig(hidden=4, out=16))
    with pytest.raises(ValueError, match="axis=batch: the covariance of 16 features over 16 samples"):
        method(wide, axis="batch")
    assert isinstance(method(wide), iternorm.IterNorm)
