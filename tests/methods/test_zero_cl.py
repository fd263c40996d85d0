"""Test Zero-CL: both losses against the steps of the paper and the authors' code, for m < d and m > d; invariances."""

import authors
import method_cases
import pytest
import torch
from method_worker import assert_processes_agree, one_process

from pretrain.methods import zero_cl
from pretrain.methods.zero_cl import disagreement, whiten_features, whiten_samples
from pretrain.projector import ProjectorConfig

SHAPES = pytest.mark.parametrize("shape", [(24, 64), (40, 12), (16, 16)], ids=["wide", "tall", "square"])


def embeddings(m: int, d: int, count: int = 2) -> torch.Tensor:
    return torch.stack([z.double() for z in authors.embeddings("zero_cl", count, m, d)])


def relative(value: torch.Tensor, reference: torch.Tensor) -> float:
    return float((value - reference).detach().norm() / reference.detach().norm())


def disagreement_as_printed(a: torch.Tensor, b: torch.Tensor, shrinkage: float) -> torch.Tensor:
    """Standardize rows and whiten them by a constant matrix; return sum_i (1 - c_ii)^2."""
    white = []
    for z in (a, b):
        x = (z - z.mean(dim=1, keepdim=True)) / (z.std(dim=1, keepdim=True) + 1e-4)
        sigma = (1 - shrinkage) * x @ x.T / (x.shape[1] - 1) + (shrinkage + 1e-5) * torch.eye(len(x), dtype=x.dtype)
        u, values, _ = torch.linalg.svd(sigma.detach())
        white.append(u @ torch.diag(values**-0.5) @ u.T @ x)
    return (1 - (white[0] @ white[1].T / a.shape[1]).diagonal()).square().sum()


@SHAPES
@pytest.mark.parametrize("shrinkage", [0.1, 0.5])
@pytest.mark.parametrize("kind", ["instance", "feature"])
def test_loss_and_gradient_are_the_papers(kind: str, shape: tuple[int, int], shrinkage: float) -> None:
    ours, theirs = (embeddings(*shape).requires_grad_() for _ in range(2))
    if kind == "instance":
        loss = disagreement(*whiten_samples(ours, shrinkage), dim=-1)
        expected = disagreement_as_printed(theirs[0], theirs[1], shrinkage)
    else:
        loss = disagreement(*whiten_features(ours, shrinkage), dim=-2)
        expected = disagreement_as_printed(theirs[0].T, theirs[1].T, shrinkage)
    loss.backward()
    expected.backward()
    assert relative(loss, expected) <= 1e-10
    assert relative(ours.grad, theirs.grad) <= 1e-9


def test_losses_and_gradients_are_the_authors() -> None:
    """The numbers are float64 results of the authors' whitening (CIFAR) after their standardization (ImageNet)."""
    golden = {
        "instance": (4.114642095308145, 0.5062450648900215, [-0.012588409365698626, 0.014367737146909414]),
        "feature": (37.26397254782445, 1.9179917757889506, [-0.004006210739933249, 0.03031970492682885]),
    }
    for kind, (value, norm, row) in golden.items():
        z = embeddings(24, 64).requires_grad_()
        if kind == "instance":
            loss = disagreement(*whiten_samples(z, 0.1), dim=-1)
        else:
            loss = disagreement(*whiten_features(z, 0.1), dim=-2)
        loss.backward()
        assert loss.item() == pytest.approx(value, rel=1e-11)
        assert float(z.grad[0].norm()) == pytest.approx(norm, rel=1e-11)
        assert z.grad[0, 3, :2].tolist() == pytest.approx(row, rel=1e-9)


def test_small_shrinkage_whitens() -> None:
    """The error is due to the 1e-5 that is added to eigenvalues."""
    white = whiten_features(authors.noise("zero_cl/white", 400, 6).double(), 1e-9)
    torch.testing.assert_close(torch.cov(white.T), torch.eye(6, dtype=white.dtype), rtol=0, atol=1e-4)
    white = whiten_samples(authors.noise("zero_cl/white", 6, 400).double(), 1e-9)
    torch.testing.assert_close(torch.cov(white), torch.eye(6, dtype=white.dtype), rtol=0, atol=1e-4)


@SHAPES
def test_each_loss_ignores_what_it_standardizes(shape: tuple[int, int]) -> None:
    """Scale and shift of each sample, or each feature, change nothing, up to the 1e-4 that is added to deviations."""
    z = 100 * embeddings(*shape)
    of_samples, of_features = (shape[0], 1), (1, shape[1])
    for white, own, other in ((whiten_samples, of_samples, of_features), (whiten_features, of_features, of_samples)):
        scale, shift = 2 + authors.noise("zero_cl/scale", *own).double(), authors.noise("zero_cl/shift", *own).double()
        assert relative(white(z * scale + shift, 0.1), white(z, 0.1)) <= 1e-3
        resized = z * (2 + authors.noise("zero_cl/other", *other).double())
        assert relative(white(resized, 0.1), white(z, 0.1)) > 1e-2


def test_a_constant_feature_gives_finite_gradients() -> None:
    z = embeddings(24, 64)
    z[0, :, 5] = 3.0
    z.requires_grad_()
    (disagreement(*whiten_features(z, 0.1), dim=-2) + disagreement(*whiten_samples(z, 0.1), dim=-1)).backward()
    assert bool(z.grad.isfinite().all())


# The method


def method(run: object = None, **settings: object) -> zero_cl.ZeroCL:
    torch.manual_seed(3)
    return zero_cl.build(zero_cl.Config(**settings), run or method_cases.setup()).double()


@pytest.mark.parametrize("count", [2, 3])
def test_method_is_the_two_losses_of_its_embeddings(count: int) -> None:
    module, views = method(shrinkage=0.2), method_cases.views(n=count)
    terms = module(views)
    z = [module.projector(module.backbone(view)) for view in views]
    pairs = [(i, j) for i in range(count) for j in range(i)]
    expected = {
        "instance": sum(disagreement_as_printed(z[i], z[j], 0.2) for i, j in pairs) / len(pairs),
        "feature": sum(disagreement_as_printed(z[i].T, z[j].T, 0.2) for i, j in pairs) / len(pairs),
    }
    assert terms.keys() == expected.keys()
    for name, term in terms.items():
        assert relative(term, expected[name]) <= 1e-9
    assert torch.equal(module.embedding, z[0])
    assert torch.equal(module.transform(z[0]), whiten_features(z[0], 0.2))


@pytest.mark.parametrize("d", [16, 64])
def test_two_processes_do_what_one_does(d: int) -> None:
    assert_processes_agree("zero_cl", {}, tolerance=1e-8, projector=ProjectorConfig(hidden=32, out=d))


def test_a_step_repeats_exactly() -> None:
    a, b = one_process("zero_cl"), one_process("zero_cl")
    assert all(torch.equal(value, b[key]) for key, value in a.items())


# Failures


def test_what_does_not_suit_is_refused() -> None:
    for shrinkage in (0.0, 1.0, -0.1):
        with pytest.raises(ValueError, match=f"shrinkage={shrinkage}"):
            zero_cl.Config(shrinkage=shrinkage)
    with pytest.raises(ValueError, match="batch_size=1: whitening needs a batch"):
        method(method_cases.setup(batch_size=1))
