"""Zero-CL: against the paper's steps and the authors' code; what both whitenings ignore."""

import authors
import method_cases
import pytest
import torch
from method_worker import assert_processes_agree, one_process

from pretrain.methods import zero_cl
from pretrain.methods.zero_cl import disagreement, standardize, whiten_features, whiten_samples
from pretrain.projector import ProjectorConfig
from pretrain.whitening import pairs_mean

SHAPES = [(24, 40), (40, 24)]  # fewer and more samples than features
shapes = pytest.mark.parametrize(("m", "d"), SHAPES)


def embeddings(m: int, d: int, count: int = 2) -> torch.Tensor:
    return torch.stack([z.double() for z in authors.embeddings("zero_cl", count, m, d)])


def losses(z: torch.Tensor, shrinkage: float = 0.1) -> dict[str, torch.Tensor]:
    return {
        "instance": pairs_mean(whiten_samples(z, shrinkage), lambda a, b: disagreement(a, b, -1)),
        "feature": pairs_mean(whiten_features(z, shrinkage), lambda a, b: disagreement(a, b, -2)),
    }


def relative(value: torch.Tensor, reference: torch.Tensor) -> float:
    return float((value - reference).detach().norm() / reference.detach().norm())


def whitened_as_printed(x: torch.Tensor, shrinkage: float) -> torch.Tensor:
    """Columns of x (rows, n), standardised, times the inverse root of their shrunk covariance, a constant."""
    x = (x - x.mean(dim=0)) / (x.std(dim=0) + 1e-4)
    with torch.no_grad():
        sigma = (1 - shrinkage) * torch.cov(x.T) + (shrinkage + 1e-5) * torch.eye(x.shape[1], dtype=x.dtype)
        values, u = torch.linalg.eigh(sigma)
        w = u @ torch.diag(values**-0.5) @ u.T
    return x @ w


def losses_as_printed(z: torch.Tensor, shrinkage: float = 0.1) -> dict[str, torch.Tensor]:
    """Diagonals of the views' correlations of samples, and of features, to be one."""
    pairs = [(i, j) for i in range(len(z)) for j in range(i)]
    found = {}
    for name, stack in (("instance", z.mT), ("feature", z)):
        white = [whitened_as_printed(view, shrinkage) for view in stack]
        errors = [(torch.diagonal(white[i].T @ white[j] / len(white[i])) - 1).pow(2).sum() for i, j in pairs]
        found[name] = torch.stack(errors).mean()
    return found


@shapes
@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("shrinkage", [0.1, 0.5])
@pytest.mark.parametrize("term", ["instance", "feature"])
def test_losses_and_gradients_are_the_papers(m: int, d: int, count: int, shrinkage: float, term: str) -> None:
    ours, theirs = (embeddings(m, d, count).requires_grad_() for _ in range(2))
    loss, expected = losses(ours, shrinkage)[term], losses_as_printed(theirs, shrinkage)[term]
    loss.backward()
    expected.backward()
    assert relative(loss, expected) <= 1e-10
    assert relative(ours.grad, theirs.grad) <= 1e-9


# Loss, norms of both views' gradients, two elements of the first's.
AUTHORS = {
    (24, 40, "instance"): (
        6.85610388959104,
        1.034924046912007,
        1.04253336584620,
        -0.012701803556406,
        -0.03154038197791,
    ),
    (24, 40, "feature"): (
        19.649708281582452,
        1.829050106026672,
        1.87886308743050,
        -0.013856379435865,
        -0.043547982725277,
    ),
    (40, 24, "instance"): (
        21.843214305167777,
        2.254426823085794,
        2.39438997786499,
        0.050293628936378,
        0.038760646170372,
    ),
    (40, 24, "feature"): (
        8.554015111422363,
        1.203195737403598,
        1.236846788450274,
        0.011007438927865,
        -0.001886034263701,
    ),
}


@pytest.mark.parametrize(("m", "d", "term"), AUTHORS)
def test_losses_and_gradients_are_the_authors(m: int, d: int, term: str) -> None:
    """Sherrylone/Zero-CL in float64: losses and standardisation as for ImageNet-100, `zca_forward` as for CIFAR."""
    z = embeddings(m, d).requires_grad_()
    loss = losses(z)[term]
    loss.backward()
    found = [loss.item(), *[float(view.norm()) for view in z.grad], *z.grad[0, 3, :2].tolist()]
    assert found == pytest.approx(AUTHORS[m, d, term], rel=1e-9)


@shapes
def test_without_shrinkage_the_covariance_is_the_identity(m: int, d: int) -> None:
    """On the directions that are there: centring takes one, and m samples have no more than m - 1."""
    z, tiny = 100 * authors.noise("zero_cl/noise", m, d).double(), 1e-9  # 1e-5 is added to eigenvalues all the same
    for white, rank in ((whiten_features(z, tiny), min(m - 1, d)), (whiten_samples(z, tiny).T, min(d - 1, m))):
        values = torch.linalg.eigvalsh(torch.cov(white.T))
        torch.testing.assert_close(values[-rank:], torch.ones(rank, dtype=z.dtype), rtol=0, atol=2e-3)
        assert float(values[:-rank].abs().sum()) <= 1e-6


@shapes
def test_shrinkage_moves_eigenvalues_as_it_should(m: int, d: int) -> None:
    """lambda to lambda / ((1 - s) lambda + s + 1e-5)."""
    z, s = embeddings(m, d)[0], 0.1
    for white, x in (
        (whiten_features(z, s), standardize(z, -2)),
        (whiten_samples(z, s).T, standardize(z, -1).T),
    ):
        values = torch.linalg.eigvalsh(torch.cov(x.T)).clamp_min(0)
        expected = values / ((1 - s) * values + s + 1e-5)
        torch.testing.assert_close(torch.linalg.eigvalsh(torch.cov(white.T)), expected, rtol=0, atol=1e-9)


@shapes
def test_scale_shift_and_names_do_not_matter(m: int, d: int) -> None:
    """Of every feature for the feature loss, of every sample for the instance loss."""
    z = 100 * embeddings(m, d)  # against the 1e-4 that is added to a standard deviation
    before = losses(z)
    scale, shift = 1.5 + authors.noise("zero_cl/scale", d).double(), authors.noise("zero_cl/shift", d).double()
    assert relative(losses(z * scale + shift)["feature"], before["feature"]) <= 1e-4
    assert abs(float(losses(z * scale + shift)["instance"] / before["instance"]) - 1) > 1e-3
    scale, shift = 1.5 + authors.noise("zero_cl/scale", m, 1).double(), authors.noise("zero_cl/shift", m, 1).double()
    assert relative(losses(z * scale + shift)["instance"], before["instance"]) <= 1e-4
    assert abs(float(losses(z * scale + shift)["feature"] / before["feature"]) - 1) > 1e-3
    features = torch.randperm(d, generator=torch.Generator().manual_seed(5))
    samples = torch.randperm(m, generator=torch.Generator().manual_seed(6))
    for term, loss in losses(z[:, samples][..., features]).items():
        assert relative(loss, before[term]) <= 1e-12


def test_the_same_view_twice_has_no_disagreement_but_for_shrinkage() -> None:
    z = 100 * authors.noise("zero_cl/noise", 40, 24).double().expand(2, -1, -1)
    # The mean is over m products and the covariance over m - 1.
    assert float(losses(z, 1e-6)["feature"]) == pytest.approx(24 * (1 / 40) ** 2, rel=0.05)
    assert float(losses(z, 0.5)["feature"]) > 10 * 24 * (1 / 40) ** 2


def test_constant_and_equal_features_give_finite_gradients() -> None:
    z = embeddings(24, 40)
    z[0, :, 1], z[0, :, 2] = z[0, :, 0], 4.0
    z[1, 3], z[1, 5] = z[1, 4], 2.0
    z.requires_grad_()
    total = torch.stack(list(losses(z).values())).sum()
    total.backward()
    assert bool(total.isfinite())
    assert bool(z.grad.isfinite().all())


def test_float32_is_as_good_as_float64() -> None:
    z = embeddings(24, 40).float()
    for term, loss in losses(z).items():
        assert loss.dtype == torch.float32
        assert relative(loss.double(), losses(z.double())[term]) <= 1e-6


# The method


def method(run: object = None, **settings: object) -> zero_cl.ZeroCL:
    torch.manual_seed(3)
    return zero_cl.build(zero_cl.Config(**settings), run or method_cases.setup()).double()


@pytest.mark.parametrize("out", [16, 48])
def test_method_is_the_loss_of_its_embeddings(out: int) -> None:
    module = method(method_cases.setup(projector=ProjectorConfig(hidden=32, out=out)), shrinkage=0.2)
    views = method_cases.views(n=3)
    terms = module(views)
    z = torch.stack([module.projector(module.backbone(view)) for view in views])
    expected = losses_as_printed(z, 0.2)
    assert list(terms) == list(expected)
    assert all(relative(terms[key], value) <= 1e-10 for key, value in expected.items())
    assert torch.equal(module.embedding, z[0])
    assert relative(module.transform(z[0]), whitened_as_printed(z[0], 0.2)) <= 1e-9


@pytest.mark.parametrize("out", [16, 48])
def test_two_processes_do_what_one_does(out: int) -> None:
    assert_processes_agree("zero_cl", projector=ProjectorConfig(hidden=32, out=out), tolerance=1e-8)


def test_a_step_repeats_exactly() -> None:
    a, b = one_process("zero_cl"), one_process("zero_cl")
    assert all(torch.equal(value, b[key]) for key, value in a.items())


# Failures


@pytest.mark.parametrize("shrinkage", [0.0, 1.0, -0.1])
def test_shrinkage_that_leaves_it_singular_is_refused(shrinkage: float) -> None:
    with pytest.raises(ValueError, match=f"shrinkage={shrinkage}: expected above 0 and below 1"):
        zero_cl.Config(shrinkage=shrinkage)


def test_a_run_that_does_not_suit_is_refused() -> None:
    with pytest.raises(ValueError, match="batch_size=1: whitening needs a batch; use at least 2"):
        method(method_cases.setup(batch_size=1))
    with pytest.raises(ValueError, match=r"projector\.out=1: whitening needs at least 2 features"):
        method(method_cases.setup(projector=ProjectorConfig(hidden=4, out=1)))
