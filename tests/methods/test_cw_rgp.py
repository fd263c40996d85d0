"""Test CW-RGP: the steps of the paper, the authors' code, random groups and sub-batches, and invariances."""

import authors
import method_cases
import pytest
import torch
from method_worker import assert_processes_agree, one_process

from intl_bench.core.seeding import torch_seed
from pretrain.methods import cw_rgp
from pretrain.methods._shared import pairs_mean
from pretrain.methods.cw_rgp import channel_whiten
from pretrain.projector import ProjectorConfig
from pretrain.whiten.hard_whitening import cosine_distance

M, D, GROUPS, PARTS = 24, 64, 2, 2
SETTINGS = {"groups": 2, "sub_batch": 8}


def embeddings(count: int = 2) -> torch.Tensor:
    return torch.stack([z.double() for z in authors.embeddings("cw_rgp", count, M, D)])


def orders(count: int = 2, seed: int = 11) -> tuple[torch.Tensor, torch.Tensor]:
    draws = torch.Generator().manual_seed(seed)
    samples = torch.randperm(M, generator=draws).view(PARTS, -1)
    features = [torch.randperm(D, generator=draws) for _ in range(count * PARTS)]
    return samples, torch.stack(features).view(count, PARTS, D)


def relative(value: torch.Tensor, reference: torch.Tensor) -> float:
    return float((value - reference).detach().norm() / reference.detach().norm())


def inverse_root(sigma: torch.Tensor) -> torch.Tensor:
    """Compute the inverse square root by coupled Newton iterations, whose gradient does not use eigenvalues."""
    eye = torch.eye(len(sigma), dtype=sigma.dtype)
    a, b = sigma / sigma.trace(), eye
    for _ in range(45):
        step = 1.5 * eye - 0.5 * b @ a
        a, b = a @ step, step @ b
    return b / sigma.trace().sqrt()


def whitened_as_printed(z: torch.Tensor, groups: int, order: torch.Tensor, epsilon: float = 0.0) -> torch.Tensor:
    """Center samples over all features, then whiten them over the features of each group."""
    output = torch.zeros_like(z)
    centered = z - z.mean(dim=1, keepdim=True)
    for members in order.view(groups, -1):
        x = centered[:, members]
        sigma = (1 - epsilon) * x @ x.T / (len(members) - 1) + epsilon * torch.eye(len(x), dtype=x.dtype)
        output = output.index_add(1, members, inverse_root(sigma) @ x)
    return output


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("count", [2, 4])
@pytest.mark.parametrize("epsilon", [0.0, 0.1])
def test_loss_and_gradient_are_the_papers(groups: int, count: int, epsilon: float) -> None:
    ours, theirs = (embeddings(count).requires_grad_() for _ in range(2))
    samples, features = orders(count)
    loss = pairs_mean(channel_whiten(ours[:, samples], groups, features, epsilon=epsilon), cosine_distance)
    unit = []
    for view, own in zip(theirs, features, strict=True):
        white = torch.cat([whitened_as_printed(view[s], groups, f, epsilon) for s, f in zip(samples, own, strict=True)])
        unit.append(white / white.norm(dim=1, keepdim=True))
    pairs = [(i, j) for i in range(count) for j in range(i)]
    expected = sum((unit[i] - unit[j]).square().sum(dim=1).mean() for i, j in pairs) / len(pairs)
    loss.backward()
    expected.backward()
    assert relative(loss, expected) <= 1e-9
    assert relative(ours.grad, theirs.grad) <= 1e-8


def test_loss_and_gradient_are_the_authors() -> None:
    """The numbers are results of winci-ai/CW-RGP, commit 5bbf6ed, base/, on these inputs."""
    z = embeddings().requires_grad_()
    samples, features = orders()
    loss = pairs_mean(channel_whiten(z[:, samples], GROUPS, features), cosine_distance)
    loss.backward()
    assert loss.item() == pytest.approx(0.44208321576340115, rel=1e-10)
    norms = [float(view.norm()) for view in z.grad]
    assert norms == pytest.approx([0.044668647491057666, 0.042598926432175194], rel=1e-9)
    assert z.grad[0, 3, :2].tolist() == pytest.approx([-0.00016858630893635686, -0.001275068118617426], rel=1e-8)


def test_samples_are_white_in_each_group() -> None:
    z = embeddings()[0]
    order = orders()[1][0, 0]
    white = channel_whiten(z, GROUPS, order)
    for members in order.view(GROUPS, -1):
        x = white[:, members]
        eye = torch.eye(M, dtype=x.dtype)
        torch.testing.assert_close(x @ x.T / (len(members) - 1), eye, rtol=0, atol=1e-9)
    assert float((white[:, :32] @ white[:, :32].T / 31 - torch.eye(M)).abs().max()) > 0.1  # other groups are not white
    one = channel_whiten(z, 1)  # over all features it is their covariance
    torch.testing.assert_close(torch.cov(one), torch.eye(M, dtype=one.dtype), rtol=0, atol=1e-9)


def test_scale_and_what_a_sample_has_in_all_features_do_not_matter() -> None:
    z, (_, features) = embeddings()[0], orders()
    expected = channel_whiten(z, GROUPS, features[0, 0])
    offset = authors.noise("cw_rgp/offset", M, 1).double()
    assert relative(channel_whiten(50 * z + offset, GROUPS, features[0, 0]), expected) <= 1e-9
    names = torch.randperm(D, generator=torch.Generator().manual_seed(5))
    renamed = channel_whiten(z[:, names], GROUPS, names.argsort()[features[0, 0]])
    assert relative(renamed, expected[:, names]) <= 1e-12
    # ZCA is equivariant to rotations of the samples, so their order has no effect.
    turn = torch.randperm(M, generator=torch.Generator().manual_seed(6))
    assert relative(channel_whiten(z[turn], GROUPS, features[0, 0]), expected[turn]) <= 1e-9


def test_images_with_the_same_embedding_give_finite_gradients() -> None:
    """Two equal samples make the covariance singular; the singular value decomposition of the authors gives NaN."""
    z = embeddings()
    z[0, 1] = z[0, 0]
    z.requires_grad_()
    pairs_mean(channel_whiten(z, GROUPS), cosine_distance).backward()
    assert bool(z.grad.isfinite().all())


# The method


def method(run: object = None, **settings: object) -> cw_rgp.CWRGP:
    torch.manual_seed(3)
    run = run or method_cases.setup(projector=ProjectorConfig(hidden=32, out=64))
    return cw_rgp.build(cw_rgp.Config(**(SETTINGS | settings)), run).double()


def test_divisions_are_a_function_of_seed_and_step() -> None:
    module = method(iterations=2)
    samples, features = module.orders(2, 32, 64)
    assert (tuple(samples.shape), tuple(features.shape)) == ((2, 4, 8), (2, 2, 4, 64))
    assert all(sorted(division.flatten().tolist()) == list(range(32)) for division in samples)
    draws = torch.Generator().manual_seed(torch_seed(0, "cw-rgp", 0))
    for i in range(2):  # a resumed run continues with the same divisions
        assert torch.equal(samples[i].flatten(), torch.randperm(32, generator=draws))
        assert all(torch.equal(row, torch.randperm(64, generator=draws)) for row in features[:, i].flatten(0, 1))
    rows = features.flatten(0, -2)
    assert all(sorted(row.tolist()) == list(range(64)) for row in rows)
    assert len({tuple(row.tolist()) for row in rows}) == len(rows) == 16
    first = module(method_cases.views())["distance"].item()
    module.step = 1
    assert not torch.equal(module.orders(2, 32, 64)[0][0], samples[0])
    assert module(method_cases.views())["distance"].item() != first
    module.step = 0
    assert module(method_cases.views())["distance"].item() == first
    other = method(method_cases.setup(seed=1, projector=ProjectorConfig(hidden=32, out=64)))
    assert not torch.equal(other.orders(2, 32, 64)[0][0], samples[0])


@pytest.mark.parametrize("settings", [{}, {"iterations": 2, "groups": 4}, {"sub_batch": 32, "groups": 1}])
def test_method_is_the_loss_of_its_embeddings(settings: dict) -> None:
    module, views = method(**settings), method_cases.views(n=3)
    terms = module(views)
    assert list(terms) == ["distance"]
    z = torch.stack([module.projector(module.backbone(view)) for view in views])
    losses = []
    divisions, groups = module.orders(*z.shape)
    for samples, features in zip(divisions, groups.unbind(1), strict=True):
        unit = []
        for view, own in zip(z, features, strict=True):
            parts = zip(samples, own, strict=True)
            white = torch.cat([whitened_as_printed(view[s], module.config.groups, f) for s, f in parts])
            unit.append(white / white.norm(dim=1, keepdim=True))
        losses += [(unit[i] - unit[j]).square().sum(dim=1).mean() for i, j in ((0, 1), (0, 2), (1, 2))]
    assert relative(terms["distance"], torch.stack(losses).mean()) <= 1e-8
    assert torch.equal(module.embedding, z[0])


def test_transform_takes_sub_batches_and_groups_in_order() -> None:
    module = method()
    z = authors.embeddings("cw_rgp/transform", 1, 20, 64)[0].double()  # 8, 8 and 4 samples
    white = module.transform(z)
    expected = [whitened_as_printed(part, 2, torch.arange(64)) for part in (z[:8], z[8:16], z[16:])]
    assert relative(white, torch.cat(expected)) <= 1e-8


@pytest.mark.parametrize("settings", [SETTINGS, {"groups": 1, "sub_batch": 32, "iterations": 2}])
def test_two_processes_do_what_one_does(settings: dict) -> None:
    assert_processes_agree("cw_rgp", settings, tolerance=1e-8, projector=ProjectorConfig(hidden=32, out=64))


def test_a_step_repeats_exactly() -> None:
    wide = ProjectorConfig(hidden=32, out=64)
    a, b = (one_process("cw_rgp", SETTINGS, projector=wide) for _ in range(2))
    assert all(torch.equal(value, b[key]) for key, value in a.items())


# Failures


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"groups": 0}, "groups=0"),
        ({"sub_batch": 0}, "sub_batch=0"),
        ({"iterations": 0}, "iterations=0"),
        ({"epsilon": -0.1}, r"epsilon=-0\.1"),
    ],
)
def test_bad_settings_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        cw_rgp.Config(**settings)


def test_a_run_that_does_not_suit_is_refused() -> None:
    with pytest.raises(ValueError, match=r"groups=5: expected a divisor of projector\.out=64"):
        method(groups=5)
    with pytest.raises(ValueError, match=r"sub_batch=12: expected .* a divisor of batch_size=32"):
        method(sub_batch=12)
    with pytest.raises(
        ValueError, match=r"sub_batch=32: the covariance .* over 16 features .* is singular; use at most 16"
    ):
        method(sub_batch=32, groups=4)
    assert isinstance(method(sub_batch=32, groups=2), cw_rgp.CWRGP)
    assert isinstance(method(sub_batch=32, groups=4, epsilon=0.1), cw_rgp.CWRGP)
    narrow = method_cases.setup(projector=ProjectorConfig(hidden=4, out=32))
    with pytest.raises(ValueError, match=r"sub_batch=32: .* over 32 features .* is singular; use at most 31"):
        method(narrow, sub_batch=32, groups=1)
    with pytest.raises(ValueError, match="batch_size=1: whitening needs a batch"):
        method(method_cases.setup(batch_size=1))
