"""Test the spectral transformation: Definition 1, the gradient at equal eigenvalues, and the effect on spectra."""

import math

import authors
import method_cases
import pytest
import torch
from method_worker import assert_processes_agree

from pretrain.iternorm import AXES, iter_norm, t_whitening_function
from pretrain.methods import spectral
from pretrain.methods.spectral import spectral_transform
from pretrain.projector import ProjectorConfig
from pretrain.whiten.hard_whitening import matrix_function, power

POWERS = [-0.5, 0.0, 0.25, 0.45, 0.5, 0.55, 1.0, 1.5]
both_axes = pytest.mark.parametrize("axis", AXES)


def embedding(axis: str, purpose: str = "spectral") -> torch.Tensor:
    """Return a float64 embedding with a condition number of about 1e4: 12 x 40 for "channel", 40 x 12 for "batch"."""
    z = authors.embeddings(purpose, 1, *((12, 40) if axis == "channel" else (40, 12)))[0].double()
    return z * torch.logspace(0, -1, 12, dtype=z.dtype)[:, None] if axis == "channel" else z


def relative(value: torch.Tensor, reference: torch.Tensor) -> float:
    return float((value - reference).detach().norm() / reference.detach().norm())


def spectrum(z: torch.Tensor, axis: str) -> torch.Tensor:
    """Compute the eigenvalues of the covariance of the features ("batch") or samples ("channel"), ascending."""
    return torch.linalg.eigvalsh(torch.cov(z if axis == "channel" else z.T))


def transform_as_printed(z: torch.Tensor, p: float, axis: str) -> torch.Tensor:
    """Compute Definition 1 for Z (d x m), as in the paper, with the eigenvectors of PyTorch."""
    x = z if axis == "channel" else z.T
    x = x - x.mean(dim=1, keepdim=True)
    values, u = torch.linalg.eigh(x @ x.T / (x.shape[1] - 1))
    white = u @ torch.diag(values**-p) @ u.T @ x
    return white if axis == "channel" else white.T


@both_axes
@pytest.mark.parametrize("p", POWERS)
def test_output_and_gradient_are_definition_1s(axis: str, p: float) -> None:
    """The eigenvalues are distinct, so the gradient of the eigendecomposition in PyTorch exists."""
    ours, theirs = (embedding(axis).requires_grad_() for _ in range(2))
    output, expected = spectral_transform(ours, p, axis=axis), transform_as_printed(theirs, p, axis)
    assert relative(output, expected) <= 1e-10
    direction = authors.noise("spectral/direction", *ours.shape).double()
    (output * direction).sum().backward()
    (expected * direction).sum().backward()
    assert relative(ours.grad, theirs.grad) <= 1e-8


@both_axes
@pytest.mark.parametrize("p", POWERS)
def test_a_power_maps_the_spectrum_to_lambda_to_the_1_minus_2p(axis: str, p: float) -> None:
    z = embedding(axis)
    found, expected = spectrum(spectral_transform(z, p, axis=axis), axis), spectrum(z, axis) ** (1 - 2 * p)
    # The smallest eigenvalues (condition number 4e5) have errors of 1e-11 of the largest; processors differ by 3e-6.
    torch.testing.assert_close(found, expected.sort().values, rtol=1e-4, atol=0)


@both_axes
def test_whitening_has_the_identity_for_covariance(axis: str) -> None:
    white = spectral_transform(embedding(axis), 0.5, axis=axis)
    covariance = torch.cov(white if axis == "channel" else white.T)
    torch.testing.assert_close(covariance, torch.eye(12, dtype=covariance.dtype), rtol=0, atol=1e-10)


@both_axes
def test_power_0_only_centers(axis: str) -> None:
    z = embedding(axis)
    centered = z - z.mean(dim=1 if axis == "channel" else 0, keepdim=True)
    torch.testing.assert_close(spectral_transform(z, 0.0, axis=axis), centered, rtol=0, atol=1e-12)


@both_axes
def test_iter_norm_is_the_transformation_of_theorem_1(axis: str) -> None:
    """The function is that of Theorem 1, f_T(x) = sqrt(h_T(x) / x)."""
    z = embedding(axis)
    trace = spectrum(z, axis).sum()

    def g(values: torch.Tensor) -> torch.Tensor:
        x = values / trace
        return (t_whitening_function(3)(x) / x / trace).sqrt()

    assert relative(spectral_transform(z, g, axis=axis), iter_norm(z, iterations=3, axis=axis)) <= 1e-10


def test_whitening_ignores_scale_shift_and_turns_with_the_features() -> None:
    z = embedding("batch")
    turn = torch.linalg.qr(authors.noise("spectral/turn", 12, 12).double()).Q
    shift = authors.noise("spectral/shift", 12).double()
    found = spectral_transform(3.7 * z @ turn + shift, 0.5, axis="batch")
    assert relative(found, spectral_transform(z, 0.5, axis="batch") @ turn) <= 1e-9


# The gradient at equal and at zero eigenvalues


@pytest.mark.parametrize("p", POWERS)
@pytest.mark.parametrize(
    "values",
    [[2.0] * 6, [1.0, 1.0, 1.0, 3.0, 3.0, 9.0], [1.0, 1.0 + 1e-9, 1.002, 2.0, 2.03, 40.0], [0.1, 0.1, 1, 1, 5, 5]],
    ids=["all equal", "repeated", "nearly equal", "pairs"],
)
def test_gradient_at_equal_eigenvalues(values: list[float], p: float) -> None:
    """Compare the gradient with finite differences."""
    u = torch.linalg.qr(authors.noise("spectral/repeated", 6, 6).double()).Q
    sigma = (u * torch.tensor(values, dtype=torch.float64)) @ u.T
    assert torch.autograd.gradcheck(
        lambda a: matrix_function((a + a.T) / 2, power(p)), sigma.requires_grad_(), rtol=1e-5, atol=1e-6
    )


def test_gradient_of_a_power_is_exact_at_every_gap() -> None:
    """Sigma^2 and Sigma^-1 have derivatives without eigenvalues: E S + S E and -S^-1 E S^-1."""
    u = torch.linalg.qr(authors.noise("spectral/gaps", 8, 8).double()).Q
    gaps = torch.tensor([0, 1e-14, 1e-9, 1e-5, 1e-3, 9e-3, 2.1e-2, 1.0], dtype=torch.float64)
    sigma = ((u * (1 + gaps)) @ u.T).requires_grad_()
    e = authors.noise("spectral/e", 8, 8).double()
    e = e + e.T
    for p, expected in ((-2, e @ sigma + sigma @ e), (1, -torch.linalg.inv(sigma) @ e @ torch.linalg.inv(sigma))):
        (found,) = torch.autograd.grad((matrix_function(sigma, power(p)) * e).sum(), sigma)
        assert relative(found, expected) <= 1e-12


@both_axes
@pytest.mark.parametrize("p", POWERS)
def test_a_singular_covariance_gives_finite_gradients(axis: str, p: float) -> None:
    """Two equal features and a constant one give eigenvalues of zero; below the floor there is no gradient."""
    z = embedding("batch")
    z[:, 3], z[:, 5] = z[:, 2], 7.0
    z = (z if axis == "batch" else z.T.contiguous()).requires_grad_()
    output = spectral_transform(z, p, axis=axis)
    output.square().sum().backward()
    assert bool(output.isfinite().all())
    assert bool(z.grad.isfinite().all())
    # Eigenvalues above the floor are transformed independently of the others.
    values, mapped = spectrum(z.detach(), axis), spectrum(output.detach(), axis)
    kept = values > 1e-3 * values[-1]
    assert int(kept.sum()) >= 4
    found = torch.sort(mapped[mapped > 1e-12 * mapped[-1]]).values
    expected = torch.sort(values[kept] ** (1 - 2 * p)).values
    distance = (expected[:, None] / found[None, :]).log().abs().min(dim=1).values
    assert float(distance.max()) <= 1e-4


def test_eigenvalues_below_the_floor_count_as_the_floor() -> None:
    sigma = torch.diag(torch.tensor([1e-12, 1e-3, 4.0], dtype=torch.float64))
    root = matrix_function(sigma, power(0.5), epsilon=1e-2).diagonal()
    torch.testing.assert_close(root, torch.tensor([5.0, 5.0, 0.5], dtype=torch.float64), rtol=1e-12, atol=0)


def test_below_the_floor_there_is_no_slope() -> None:
    """The slope is also zero between equal eigenvalues below the floor, but not to an eigenvalue above the floor."""
    sigma = torch.diag(torch.tensor([1e-12, 1e-12, 1.0, 4.0], dtype=torch.float64)).requires_grad_()
    (gradient,) = torch.autograd.grad(matrix_function(sigma, power(0.5), epsilon=1e-2).sum(), sigma)
    assert torch.equal(gradient[:2, :2], torch.zeros(2, 2, dtype=torch.float64))
    slope = (1 - 5) / (1 - 1e-12)  # of 1 and the floor, 0.04
    torch.testing.assert_close(gradient[0, 2].item(), slope, rtol=1e-12, atol=0)


def test_both_sides_of_the_data_give_the_same() -> None:
    """X g(X^T X) = g(X X^T) X: with more features than samples, compare with the larger of the two matrices."""
    z = embedding("batch", "spectral/wide").T.contiguous().requires_grad_()  # 12 samples, 40 features
    x = z - z.mean(dim=0)

    def g(values: torch.Tensor) -> torch.Tensor:
        return (values + 0.1).rsqrt()

    output, expected = spectral_transform(z, g, axis="batch"), x @ matrix_function(x.T @ x / 11, g, epsilon=0.0)
    assert relative(output, expected) <= 1e-6  # one of them has the floor, 1e-7 of the largest eigenvalue
    direction = authors.noise("spectral/wide/direction", 12, 40).double()
    found, wanted = (torch.autograd.grad((o * direction).sum(), z)[0] for o in (output, expected))
    assert relative(found, wanted) <= 1e-6


def test_output_is_nan_if_the_embedding_is_not_finite() -> None:
    z = embedding("batch")
    z[3, 4] = math.nan
    stack = torch.stack([z, embedding("batch")])
    output = spectral_transform(stack, 0.5)
    assert bool(output[0].isnan().all())
    assert torch.equal(output[1], spectral_transform(stack[1], 0.5))
    assert bool(matrix_function(torch.full((3, 3), math.inf, dtype=torch.float64), power(0.0)).isnan().all())


# The method


def method(**settings: object) -> spectral.Spectral:
    torch.manual_seed(3)
    return spectral.build(spectral.Config(**settings), method_cases.setup()).double()


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("p", [0.0, 0.5, 1.0])
def test_loss_is_eqn_1_of_the_outputs(count: int, p: float) -> None:
    module = method(power=p)
    views = method_cases.views(n=count)
    terms = module(views)
    assert list(terms) == ["alignment"]
    white = [transform_as_printed(module.projector(module.backbone(view)), p, "batch") for view in views]
    unit = [w / w.norm(dim=1, keepdim=True) for w in white]
    expected = sum((u - unit[0]).square().sum(dim=1).mean() for u in unit[1:]) / (count - 1)
    assert terms["alignment"].item() == pytest.approx(expected.item(), rel=1e-8)
    found, wanted = (torch.autograd.grad(loss, module.backbone[0].weight)[0] for loss in (terms["alignment"], expected))
    assert relative(found, wanted) <= 1e-8
    assert torch.equal(module.embedding, module.projector(module.backbone(views[0])))
    torch.testing.assert_close(module.transform(module.embedding), white[0], rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("settings", [{"power": 0.5}, {"power": 1.0}, {"power": -0.5, "axis": "channel"}])
def test_two_processes_do_what_one_does(settings: dict) -> None:
    assert_processes_agree("spectral", settings)


def test_half_precision_and_float32_agree_with_float64() -> None:
    z = embedding("batch").float()
    output = spectral_transform(z, 0.5)
    assert output.dtype == torch.float32
    assert relative(output.double(), spectral_transform(z.double(), 0.5)) <= 1e-6
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(spectral_transform(z, 0.5), output)
    assert spectral_transform(z.bfloat16(), 0.5).dtype == torch.float32


# Failures


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"axis": "both"}, "axis=both"),
        ({"power": math.inf}, "power=inf"),
        ({"epsilon": 1.0}, r"epsilon=1\.0"),
        ({"epsilon": -1e-3}, r"epsilon=-0\.001"),
    ],
)
def test_bad_settings_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        spectral.Config(**settings)
    with pytest.raises(ValueError, match="axis='both'"):
        spectral_transform(embedding("batch"), 0.5, axis="both")


def test_a_covariance_that_is_singular_whatever_is_learned_is_refused() -> None:
    def build(batch_size: int, d: int, hidden: int = 16, **settings: object) -> spectral.Spectral:
        run = method_cases.setup(batch_size=batch_size, projector=ProjectorConfig(hidden=hidden, out=d))
        return spectral.build(spectral.Config(**settings), run)

    with pytest.raises(ValueError, match=r"power=0\.5 with axis=batch: .* 16 features over 16 samples is singular"):
        build(16, 16)
    assert isinstance(build(17, 16), spectral.Spectral)
    with pytest.raises(ValueError, match=r"power=1 with axis=channel: .* 16 samples over 16 features is singular"):
        build(16, 16, power=1.0, axis="channel")
    assert isinstance(build(16, 17, power=1.0, axis="channel"), spectral.Spectral)
    assert isinstance(build(16, 16, power=0.0), spectral.Spectral)
    assert isinstance(build(16, 16, power=-1.0, axis="channel"), spectral.Spectral)
    with pytest.raises(ValueError, match=r"projector\.hidden=15: .* singular covariance; use at least 16"):
        build(17, 16, hidden=15)
    assert isinstance(build(16, 17, hidden=15, axis="channel"), spectral.Spectral)
    with pytest.raises(ValueError, match=r"projector\.hidden=14: .* singular covariance; use at least 15"):
        build(16, 17, hidden=14, axis="channel")
    assert isinstance(build(17, 16, hidden=4, power=0.0), spectral.Spectral)
    with pytest.raises(ValueError, match="batch_size=1: whitening needs a batch"):
        build(1, 16, power=0.0)
