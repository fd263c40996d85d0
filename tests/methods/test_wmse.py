"""Test W-MSE: the steps of the paper, the code of lightly and of the authors, random divisions, and invariances."""

import authors
import method_cases
import pytest
import torch
from method_worker import assert_processes_agree, one_process

from pretrain.methods import wmse
from pretrain.methods.wmse import w_mse, whiten
from pretrain.projector import ProjectorConfig

SETTINGS = {"sub_batch": 32}


def embeddings(count: int = 2, m: int = 40, d: int = 8) -> torch.Tensor:
    return torch.stack([z.double() for z in authors.embeddings("wmse", count, m, d)])


def division(m: int, parts: int, seed: int = 11) -> torch.Tensor:
    return torch.randperm(m, generator=torch.Generator().manual_seed(seed)).view(parts, -1)


def relative(value: torch.Tensor, reference: torch.Tensor) -> float:
    return float((value - reference).detach().norm() / reference.detach().norm())


def loss_as_printed(z: torch.Tensor, order: torch.Tensor, epsilon: float) -> torch.Tensor:
    """Compute distances of v / |v| with v = W (z - mean), W^T W = Sigma^-1, W lower triangular, for each sub-batch."""
    distances = []
    for part in order:
        unit = []
        for view in z:
            x = view[part] - view[part].mean(dim=0)
            sigma = (1 - epsilon) * torch.cov(view[part].T) + epsilon * torch.eye(x.shape[1], dtype=x.dtype)
            w = torch.linalg.inv(torch.linalg.cholesky(sigma))
            v = (w @ x.T).T
            unit.append(v / v.norm(dim=1, keepdim=True))
        for i in range(len(unit)):
            distances += [(unit[i] - unit[j]).square().sum(dim=1).mean() for j in range(i + 1, len(unit))]
    return torch.stack(distances).mean()


@pytest.mark.parametrize("count", [2, 4])
@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("epsilon", [0.0, 0.1])
def test_loss_and_gradient_are_the_papers(count: int, parts: int, epsilon: float) -> None:
    ours, theirs = (embeddings(count).requires_grad_() for _ in range(2))
    order = division(40, parts)
    loss, expected = w_mse(ours, order, epsilon=epsilon), loss_as_printed(theirs, order, epsilon)
    loss.backward()
    expected.backward()
    assert relative(loss, expected) <= 1e-10
    assert relative(ours.grad, theirs.grad) <= 1e-8


def test_loss_and_gradient_are_the_authors() -> None:
    """The numbers are results of htdt/self-supervised, commit d9662c8, on these inputs."""
    z = embeddings().requires_grad_()
    torch.manual_seed(11)
    loss = w_mse(z, torch.randperm(40).view(-1, 20))
    loss.backward()
    assert loss.item() == pytest.approx(0.5443779568951392, rel=1e-10)
    norms = [float(view.norm()) for view in z.grad]
    assert norms == pytest.approx([33.55072910544488, 37.724033868172036], rel=1e-8)
    assert z.grad[0, 3, :2].tolist() == pytest.approx([0.012236848953608737, 0.45813779598236964], rel=1e-8)


@pytest.mark.parametrize("count", [2, 3])
def test_loss_and_gradient_are_lightlys(count: int) -> None:
    lightly_loss = pytest.importorskip("lightly.loss")
    ours, theirs = (embeddings(count).requires_grad_() for _ in range(2))
    reference = lightly_loss.WMSELoss(
        embedding_dim=8, track_running_stats=False, w_iter=2, w_size=20, num_samples=count
    )
    torch.manual_seed(7)
    expected = reference(theirs.flatten(0, 1))
    torch.manual_seed(7)
    loss = torch.stack([w_mse(ours, torch.randperm(40).view(-1, 20)) for _ in range(2)]).mean()
    loss.backward()
    expected.backward()
    assert relative(loss, expected) <= 1e-7  # the authors compute sums in float32
    assert relative(ours.grad, theirs.grad) <= 1e-7


def test_whitened_features_have_the_identity_for_covariance() -> None:
    white = whiten(embeddings())
    for view in white:
        torch.testing.assert_close(torch.cov(view.T), torch.eye(8, dtype=view.dtype), rtol=0, atol=1e-8)
    torch.testing.assert_close(white.mean(dim=1), torch.zeros(2, 8, dtype=white.dtype), rtol=0, atol=1e-8)


def test_loss_ignores_affine_maps_of_the_features() -> None:
    """Cholesky whitening of A z + b differs by a rotation, which is equal for both views with the same A and b."""
    z, order = embeddings(), division(40, 2)
    lower = torch.eye(8, dtype=z.dtype) + 0.5 * authors.noise("wmse/map", 8, 8).double().tril()
    mapped = z @ lower.T + authors.noise("wmse/shift", 8).double()
    assert relative(w_mse(mapped, order), w_mse(z, order)) <= 1e-9
    # A rotation of only one view changes the loss.
    turn = torch.linalg.qr(authors.noise("wmse/turn", 8, 8).double()).Q
    assert abs(float(w_mse(torch.stack([z[0], z[1] @ turn]), order) - w_mse(z, order))) > 0.1


def test_float32_is_as_good_as_float64() -> None:
    z, order = embeddings().float(), division(40, 2)
    assert w_mse(z, order).dtype == torch.float32
    assert relative(w_mse(z, order).double(), w_mse(z.double(), order)) <= 1e-6


# The method


def method(run: object = None, **settings: object) -> wmse.WMSE:
    torch.manual_seed(3)
    return wmse.build(wmse.Config(**(SETTINGS | settings)), run or method_cases.setup()).double()


def test_divisions_are_a_function_of_seed_and_step() -> None:
    module = method(sub_batch=16, iterations=2, epsilon=0.1)
    orders = module.orders(32)
    assert [tuple(order.shape) for order in orders] == [(2, 16), (2, 16)]
    assert all(sorted(order.flatten().tolist()) == list(range(32)) for order in orders)
    assert not torch.equal(orders[0], orders[1])
    assert all(torch.equal(a, b) for a, b in zip(orders, module.orders(32), strict=True))
    first = module(method_cases.views())["distance"].item()
    module.step = 1
    assert not torch.equal(module.orders(32)[0], orders[0])
    assert module(method_cases.views())["distance"].item() != first
    module.step = 0
    assert module(method_cases.views())["distance"].item() == first
    other = method(method_cases.setup(seed=1), sub_batch=16, iterations=2, epsilon=0.1)
    assert not torch.equal(other.orders(32)[0], orders[0])


def test_method_is_the_loss_of_its_embeddings() -> None:
    module, views = method(sub_batch=16, iterations=2, epsilon=0.1), method_cases.views(n=3)
    terms = module(views)
    assert list(terms) == ["distance"]
    z = torch.stack([module.projector(module.backbone(view)) for view in views])
    expected = sum(loss_as_printed(z, order, 0.1) for order in module.orders(32)) / 2
    assert relative(terms["distance"], expected) <= 1e-10
    assert torch.equal(module.embedding, z[0])
    torch.testing.assert_close(module.transform(z[0]), whiten(z[0], epsilon=0.1), rtol=0, atol=0)


@pytest.mark.parametrize("settings", [SETTINGS, {"sub_batch": 16, "iterations": 2, "epsilon": 0.1}])
def test_two_processes_do_what_one_does(settings: dict) -> None:
    # Whitening of 16 features over 32 samples is ill-conditioned after a few steps, so rounding has an effect.
    assert_processes_agree("wmse", settings, tolerance=1e-7)


def test_a_step_repeats_exactly() -> None:
    a, b = one_process("wmse", SETTINGS), one_process("wmse", SETTINGS)
    assert all(torch.equal(value, b[key]) for key, value in a.items())


# Failures


def test_a_covariance_that_is_not_definite_gives_nan() -> None:
    z = embeddings()
    z[0, :, 3] = 2.0
    white = whiten(z)
    assert bool(white[0].isnan().all())
    assert bool(white[1].isfinite().all())
    z[0, 0, 0] = torch.inf
    assert bool(whiten(z)[0].isnan().all())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sub_batch": 0}, "sub_batch=0"),
        ({"iterations": 0}, "iterations=0"),
        ({"epsilon": 1.0}, r"epsilon=1\.0"),
    ],
)
def test_bad_settings_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        wmse.Config(**settings)


def test_a_run_that_does_not_suit_is_refused() -> None:
    with pytest.raises(ValueError, match=r"sub_batch=12: expected .* a divisor of batch_size=32"):
        method(sub_batch=12)
    with pytest.raises(ValueError, match=r"sub_batch=16: the covariance of 16 features .* is singular"):
        method(sub_batch=16)
    narrow = method_cases.setup(projector=ProjectorConfig(hidden=15, out=15))
    assert isinstance(method(narrow, sub_batch=16), wmse.WMSE)
    with pytest.raises(ValueError, match=r"projector\.hidden=14: .* use at least 15"):
        method(method_cases.setup(projector=ProjectorConfig(hidden=14, out=15)), sub_batch=16)
    assert isinstance(method(sub_batch=16, epsilon=0.01), wmse.WMSE)
    with pytest.raises(ValueError, match="batch_size=1: whitening needs a batch"):
        method(method_cases.setup(batch_size=1))
