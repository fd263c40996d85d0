"""CW-RGP: against the paper's steps and the authors' code; random groups; what whitening ignores."""

import authors
import method_cases
import pytest
import torch
from method_worker import assert_processes_agree, one_process

from pretrain.methods import cw_rgp
from pretrain.methods.cw_rgp import channel_whiten
from pretrain.projector import ProjectorConfig
from pretrain.whitening import cosine_distance, pairs_mean

M, D, GROUPS, SUB_BATCH = 16, 48, 4, 8
SETTINGS = {"sub_batch": 16, "groups": 2}


def embeddings(count: int = 2) -> torch.Tensor:
    return torch.stack([z.double() for z in authors.embeddings("cw_rgp", count, M, D)])


def divisions(count: int = 2, seed: int = 11) -> tuple[torch.Tensor, torch.Tensor]:
    """Samples (2, 8) and, for each view and sub-batch, features (count, 2, 48); drawn as the authors draw them."""
    draws = torch.Generator().manual_seed(seed)
    samples = torch.randperm(M, generator=draws).view(-1, SUB_BATCH)
    features = [torch.randperm(D, generator=draws) for _ in range(len(samples) * count)]
    return samples, torch.stack(features).view(len(samples), count, D).transpose(0, 1)


def loss_of(
    z: torch.Tensor, samples: torch.Tensor, features: torch.Tensor, groups: int, epsilon: float = 0.0
) -> torch.Tensor:
    return pairs_mean(channel_whiten(z[:, samples], groups, features, epsilon=epsilon), cosine_distance)


def relative(value: torch.Tensor, reference: torch.Tensor) -> float:
    return float((value - reference).detach().norm() / reference.detach().norm())


def whitened_as_printed(z: torch.Tensor, groups: int, order: torch.Tensor, epsilon: float = 0.0) -> torch.Tensor:
    """Group by group for Z (m, d), the inverse root by PyTorch's eigendecomposition and its own gradient."""
    m, d = z.shape
    centred = z - z.mean(dim=1, keepdim=True)
    output = [torch.empty(0)] * d
    for members in order.view(groups, -1):
        x = centred[:, members]
        sigma = (1 - epsilon) * x @ x.T / (len(members) - 1) + epsilon * torch.eye(m, dtype=z.dtype)
        values, u = torch.linalg.eigh(sigma)
        for column, feature in zip((u @ torch.diag(values**-0.5) @ u.T @ x).T, members.tolist(), strict=True):
            output[feature] = column
    return torch.stack(output, dim=1)


def loss_as_printed(
    z: torch.Tensor, samples: torch.Tensor, features: torch.Tensor, groups: int, epsilon: float = 0.0
) -> torch.Tensor:
    distances = []
    for part, members in enumerate(samples):
        white = [
            whitened_as_printed(view[members], groups, own[part], epsilon)
            for view, own in zip(z, features, strict=True)
        ]
        unit = [w / w.norm(dim=1, keepdim=True) for w in white]
        distances += [(unit[i] - unit[j]).square().sum(dim=1).mean() for i in range(len(unit)) for j in range(i)]
    return torch.stack(distances).mean()


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("epsilon", [0.0, 0.1])
def test_loss_and_gradient_are_the_papers(count: int, groups: int, epsilon: float) -> None:
    ours, theirs = (embeddings(count).requires_grad_() for _ in range(2))
    samples, features = divisions(count)
    loss = loss_of(ours, samples, features, groups, epsilon)
    expected = loss_as_printed(theirs, samples, features, groups, epsilon)
    loss.backward()
    expected.backward()
    assert relative(loss, expected) <= 1e-10
    assert relative(ours.grad, theirs.grad) <= 1e-8


def test_loss_and_gradient_are_the_authors() -> None:
    """Numbers of winci-ai/CW-RGP at commit 5bbf6ed (`base/methods`) on these inputs."""
    z = embeddings(3).requires_grad_()
    loss = loss_of(z, *divisions(3), GROUPS)
    loss.backward()
    assert loss.item() == pytest.approx(0.6895815538201813, rel=1e-10)
    norms = [float(view.norm()) for view in z.grad]
    assert norms == pytest.approx([0.06298074573765117, 0.052313362960100813, 0.05395182985381092], rel=1e-9)
    assert z.grad[0, 3, :2].tolist() == pytest.approx([-0.0036756839977157055, 0.001805015617223269], rel=1e-8)


def test_samples_of_a_group_have_the_identity_for_covariance() -> None:
    z, (_, features) = embeddings()[:, :SUB_BATCH], divisions()
    white = channel_whiten(z, GROUPS, features[:, 0])
    eye = torch.eye(SUB_BATCH, dtype=z.dtype)
    for view, order in zip(white, features[:, 0], strict=True):
        for members in order.view(GROUPS, -1):
            x = view[:, members]
            torch.testing.assert_close(x @ x.T / (D // GROUPS - 1), eye, rtol=0, atol=1e-9)
        other = view[:, order.roll(5)[: D // GROUPS]]  # the members of two groups
        assert float((other @ other.T / (D // GROUPS - 1) - eye).abs().max()) > 0.1
    whole = channel_whiten(z, 1)
    for view in whole:
        torch.testing.assert_close(torch.cov(view), eye, rtol=0, atol=1e-9)


def test_maps_of_the_samples_within_a_whitening_turn_it_only() -> None:
    """Whitening A X gives Q times that of X: scale and shift of a sample go, its angles to others do not matter."""
    z, (_, features) = embeddings()[0, :SUB_BATCH], divisions()
    order = features[0, 0]
    expected = channel_whiten(z, GROUPS, order)
    shift = authors.noise("cw_rgp/shift", SUB_BATCH, 1).double()
    assert relative(channel_whiten(100 * z + shift, GROUPS, order), expected) <= 1e-9
    turn = torch.linalg.qr(authors.noise("cw_rgp/turn", SUB_BATCH, SUB_BATCH).double()).Q
    assert relative(channel_whiten(turn @ z, GROUPS, order), turn @ expected) <= 1e-9
    skew = turn + authors.noise("cw_rgp/skew", SUB_BATCH, SUB_BATCH).double()
    found = channel_whiten(skew @ z, GROUPS, order)[:, order[: D // GROUPS]]
    between = found @ expected[:, order[: D // GROUPS]].T / (D // GROUPS - 1)
    torch.testing.assert_close(between @ between.T, torch.eye(SUB_BATCH, dtype=z.dtype), rtol=0, atol=1e-8)


def test_equal_samples_give_finite_gradients() -> None:
    """The same image twice in a sub-batch: eigenvalues of zero, where the authors' decomposition gives NaN."""
    z = embeddings()
    z[0, 1], z[0, 2] = z[0, 0], z[0, 0]
    z.requires_grad_()
    samples, features = torch.arange(M).view(-1, SUB_BATCH), divisions()[1]
    loss = loss_of(z, samples, features, GROUPS)
    loss.backward()
    assert bool(loss.isfinite())
    assert bool(z.grad.isfinite().all())


def test_float32_is_as_good_as_float64() -> None:
    z, parts = embeddings().float(), divisions()
    assert loss_of(z, *parts, GROUPS).dtype == torch.float32
    assert relative(loss_of(z, *parts, GROUPS).double(), loss_of(z.double(), *parts, GROUPS)) <= 1e-6


# The method


def wide(**changes: object) -> object:
    return method_cases.setup(**({"projector": ProjectorConfig(hidden=32, out=64)} | changes))


def method(run: object = None, **settings: object) -> cw_rgp.CWRGP:
    torch.manual_seed(3)
    return cw_rgp.build(cw_rgp.Config(**(SETTINGS | settings)), run or wide()).double()


def test_divisions_are_a_function_of_seed_and_step() -> None:
    module = method(iterations=2)
    orders = module.orders(2, 32, 64)
    assert [(tuple(samples.shape), tuple(features.shape)) for samples, features in orders] == [
        ((2, 16), (2, 2, 64)),
        ((2, 16), (2, 2, 64)),
    ]
    for samples, features in orders:
        assert sorted(samples.flatten().tolist()) == list(range(32))
        assert all(sorted(own.tolist()) == list(range(64)) for own in features.flatten(0, 1))
    rows = torch.cat([features.flatten(0, 1) for _, features in orders])
    assert len(rows.unique(dim=0)) == 8  # each view, sub-batch and iteration has its own
    first = module(method_cases.views())["distance"].item()
    module.step = 1
    second, after = module(method_cases.views())["distance"].item(), module.orders(2, 32, 64)
    assert second != first
    assert not torch.equal(after[0][0], orders[0][0])
    assert not torch.equal(after[0][1], orders[0][1])
    # A run that is resumed at step 1 has the draws of one that came there, whatever was drawn meanwhile.
    resumed = method(iterations=2)
    resumed.step = 1
    torch.rand(7)
    assert resumed(method_cases.views())["distance"].item() == second
    for found, expected in zip(resumed.orders(2, 32, 64), after, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    other = method(wide(seed=1), iterations=2).orders(2, 32, 64)
    assert not torch.equal(other[0][0], orders[0][0])
    assert not torch.equal(other[0][1], orders[0][1])


def test_method_is_the_loss_of_its_embeddings() -> None:
    module, views = method(iterations=2, epsilon=0.1), method_cases.views(n=3)
    terms = module(views)
    assert list(terms) == ["distance"]
    z = torch.stack([module.projector(module.backbone(view)) for view in views])
    expected = sum(loss_as_printed(z, *parts, 2, 0.1) for parts in module.orders(*z.shape)) / 2
    assert relative(terms["distance"], expected) <= 1e-9
    assert torch.equal(module.embedding, z[0])
    in_order = torch.arange(64)
    white = [whitened_as_printed(part, 2, in_order, 0.1) for part in (z[0, :16], z[0, 16:24])]
    assert relative(module.transform(z[0, :24]), torch.cat(white)) <= 1e-9


@pytest.mark.parametrize("settings", [SETTINGS, {"sub_batch": 8, "groups": 4, "iterations": 2}])
def test_two_processes_do_what_one_does(settings: dict) -> None:
    assert_processes_agree("cw_rgp", settings, projector=ProjectorConfig(hidden=32, out=64), tolerance=1e-8)


def test_a_step_repeats_exactly() -> None:
    a, b = (one_process("cw_rgp", SETTINGS, projector=ProjectorConfig(hidden=32, out=64)) for _ in range(2))
    assert all(torch.equal(value, b[key]) for key, value in a.items())


# Failures


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"groups": 0}, "groups=0"),
        ({"sub_batch": 0}, "sub_batch=0"),
        ({"iterations": 0}, "iterations=0"),
        ({"epsilon": 1.0}, r"epsilon=1\.0"),
    ],
)
def test_bad_settings_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        cw_rgp.Config(**settings)


@pytest.mark.parametrize(
    ("changes", "settings", "message"),
    [
        ({}, {"groups": 5}, r"groups=5: expected a divisor of projector\.out=64 .*; change one of them"),
        ({}, {"groups": 64}, r"groups=64: .* leaves 2 features to a group"),
        ({}, {"sub_batch": 12}, "sub_batch=12: expected .* a divisor of batch_size=32; change one of them"),
        ({}, {"sub_batch": 1}, "sub_batch=1: expected at least 2"),
        ({}, {"groups": 8}, "sub_batch=16: .* over 8 features .* is singular; use at most 8, fewer groups, a larger"),
        ({"projector": ProjectorConfig(hidden=4, out=16)}, {"groups": 1}, "over 16 features .*; use at most 15"),
        ({"batch_size": 1}, {}, "batch_size=1: whitening needs a batch; use at least 2"),
    ],
)
def test_a_run_that_does_not_suit_is_refused(changes: dict, settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        method(wide(**changes), **settings)
    assert "\n" not in str(caught.value)


def test_what_just_suits_is_not_refused() -> None:
    """As many samples as a group has features (a whole embedding loses one to its mean), or epsilon."""
    assert isinstance(method(groups=4), cw_rgp.CWRGP)
    assert isinstance(method(wide(projector=ProjectorConfig(hidden=4, out=17)), groups=1), cw_rgp.CWRGP)
    assert isinstance(method(groups=8, epsilon=0.01), cw_rgp.CWRGP)
