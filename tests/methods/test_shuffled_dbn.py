"""Test Shuffled-DBN: the steps of the paper, the authors' code, random groups, and invariances."""

import authors
import method_cases
import pytest
import torch
from method_worker import assert_processes_agree, one_process

from pretrain.methods import shuffled_dbn
from pretrain.methods._shared import pairs_mean
from pretrain.methods.shuffled_dbn import default_groups, group_whiten, squared_distance
from pretrain.projector import ProjectorConfig

M, D, GROUPS = 40, 48, 4


def embeddings(count: int = 2) -> torch.Tensor:
    return torch.stack([z.double() for z in authors.embeddings("shuffled_dbn", count, M, D)])


def orders(count: int = 2, seed: int = 11) -> torch.Tensor:
    draws = torch.Generator().manual_seed(seed)
    return torch.stack([torch.randperm(D, generator=draws) for _ in range(count)])


def relative(value: torch.Tensor, reference: torch.Tensor) -> float:
    return float((value - reference).detach().norm() / reference.detach().norm())


def whitened_as_printed(z: torch.Tensor, groups: int, order: torch.Tensor) -> torch.Tensor:
    """Whiten each group with an inverse square root by Newton iteration, which differs from the computation of DBN."""
    output = [torch.empty(0)] * z.shape[1]
    for members in order.view(groups, -1):
        x = z[:, members] - z[:, members].mean(dim=0)
        sigma = x.T @ x / len(x)
        a, b = sigma / sigma.trace(), torch.eye(len(sigma), dtype=x.dtype)
        for _ in range(40):
            step = 1.5 * torch.eye(len(sigma), dtype=x.dtype) - 0.5 * b @ a
            a, b = a @ step, step @ b
        for column, feature in zip((x @ b / sigma.trace().sqrt()).T, members.tolist(), strict=True):
            output[feature] = column
    return torch.stack(output, dim=1)


@pytest.mark.parametrize("groups", [2, 4, 16])
@pytest.mark.parametrize("count", [2, 3])
def test_loss_and_gradient_are_the_papers(groups: int, count: int) -> None:
    ours, theirs = (embeddings(count).requires_grad_() for _ in range(2))
    order = orders(count)
    loss = pairs_mean(group_whiten(ours, groups, order), squared_distance)
    white = [whitened_as_printed(theirs[i], groups, order[i]) for i in range(count)]
    pairs = [(i, j) for i in range(count) for j in range(i)]
    expected = sum((white[i] - white[j]).norm(dim=1).pow(2).mean() for i, j in pairs) / len(pairs)
    loss.backward()
    expected.backward()
    assert relative(loss, expected) <= 1e-9
    assert relative(ours.grad, theirs.grad) <= 1e-8


def test_loss_and_gradient_are_the_authors() -> None:
    """The numbers are of PatrickHua/FeatureDecorrelationSSL, commit 408bd9e, `engine="svd"`, on these inputs."""
    z = embeddings().requires_grad_()
    torch.manual_seed(11)
    order = torch.stack([torch.randperm(D) for _ in range(2)])
    loss = pairs_mean(group_whiten(z, GROUPS, order), squared_distance)
    loss.backward()
    assert loss.item() == pytest.approx(33.582586353873495, rel=1e-10)
    norms = [float(view.norm()) for view in z.grad]
    assert norms == pytest.approx([2.4237787390826515, 2.3858319346358896], rel=1e-9)
    assert z.grad[0, 3, :2].tolist() == pytest.approx([0.0033925373055149104, 0.01133109765157968], rel=1e-8)


def test_the_default_is_the_authors_where_theirs_divides() -> None:
    assert default_groups(256, 512) == 4  # ceil(2 D / N)
    assert default_groups(32, 512) == 32
    assert default_groups(1024, 512) == 1
    assert default_groups(100, 512) == 16  # 11, the number of the authors, is not a divisor
    assert default_groups(2, 6) == 6


def test_groups_are_white_and_only_groups() -> None:
    order = orders()
    white = group_whiten(embeddings(), GROUPS, order)
    for view, own in zip(white, order, strict=True):
        covariance = torch.cov(view[:, own].T, correction=0)
        blocks = torch.block_diag(*[torch.ones(D // GROUPS, D // GROUPS, dtype=torch.bool)] * GROUPS)
        torch.testing.assert_close(covariance[blocks], torch.eye(D, dtype=view.dtype)[blocks], rtol=0, atol=1e-9)
        assert float(covariance[~blocks].abs().max()) > 0.1
    torch.testing.assert_close(white.mean(dim=1), torch.zeros(2, D, dtype=white.dtype), rtol=0, atol=1e-9)


def test_scale_shift_and_the_names_of_features_do_not_matter() -> None:
    z, order = embeddings(), orders()
    expected = group_whiten(z, GROUPS, order)
    shift = authors.noise("shuffled_dbn/shift", D).double()
    assert relative(group_whiten(-100 * z + shift, GROUPS, order), -expected) <= 1e-9
    names = torch.randperm(D, generator=torch.Generator().manual_seed(5))
    renamed = group_whiten(z[..., names], GROUPS, names.argsort()[order])
    assert relative(renamed, expected[..., names]) <= 1e-12


def test_equal_features_in_a_group_give_finite_gradients() -> None:
    """A group with four equal features, and a constant group: the eigendecomposition of the authors gives NaN."""
    z = embeddings()
    z[0, :, 1], z[0, :, 2], z[0, :, 3] = z[0, :, 0], z[0, :, 0], 4.0
    z.requires_grad_()
    pairs_mean(group_whiten(z, GROUPS), squared_distance).backward()
    assert bool(z.grad.isfinite().all())


# The method


def method(run: object = None, **settings: object) -> shuffled_dbn.ShuffledDBN:
    torch.manual_seed(3)
    return shuffled_dbn.build(shuffled_dbn.Config(**settings), run or method_cases.setup()).double()


def test_groups_are_a_function_of_seed_and_step() -> None:
    module = method(groups=4)
    order = module.order(2, 16)
    assert all(sorted(own.tolist()) == list(range(16)) for own in order)
    assert not torch.equal(order[0], order[1])
    first = module(method_cases.views())["distance"].item()
    module.step = 1
    assert not torch.equal(module.order(2, 16), order)
    assert module(method_cases.views())["distance"].item() != first
    module.step = 0
    assert torch.equal(module.order(2, 16), order)
    assert module(method_cases.views())["distance"].item() == first
    assert not torch.equal(method(method_cases.setup(seed=1), groups=4).order(2, 16), order)


def test_method_is_the_loss_of_its_embeddings() -> None:
    module, views = method(groups=4), method_cases.views()
    terms = module(views)
    assert list(terms) == ["distance"]
    z = torch.stack([module.projector(module.backbone(view)) for view in views])
    white = [whitened_as_printed(z[i], 4, order) for i, order in enumerate(module.order(2, 16))]
    assert relative(terms["distance"], (white[0] - white[1]).square().sum(dim=1).mean()) <= 1e-8
    assert torch.equal(module.embedding, z[0])
    assert relative(module.transform(z[0]), whitened_as_printed(z[0], 4, torch.arange(16))) <= 1e-8
    assert method().groups == 1  # 16 features, 32 samples


@pytest.mark.parametrize("settings", [{"groups": 4}, {}])
def test_two_processes_do_what_one_does(settings: dict) -> None:
    assert_processes_agree("shuffled_dbn", settings, tolerance=1e-8)


def test_a_step_repeats_exactly() -> None:
    a, b = one_process("shuffled_dbn", {"groups": 4}), one_process("shuffled_dbn", {"groups": 4})
    assert all(torch.equal(value, b[key]) for key, value in a.items())


# Failures


def test_a_run_that_does_not_suit_is_refused() -> None:
    with pytest.raises(ValueError, match="groups=0: expected at least 1"):
        shuffled_dbn.Config(groups=0)
    with pytest.raises(ValueError, match=r"groups=5: expected a divisor of projector\.out=16"):
        method(groups=5)
    with pytest.raises(ValueError, match=r"groups=16: .* leaves 2 features"):
        method(groups=16)
    wide = method_cases.setup(projector=ProjectorConfig(hidden=4, out=64))
    with pytest.raises(ValueError, match=r"groups=2: the covariance of 32 features over batch_size=32 .* is singular"):
        method(wide, groups=2)
    assert method(wide).groups == 4
    with pytest.raises(ValueError, match="batch_size=1: whitening needs a batch"):
        method(method_cases.setup(batch_size=1))
