"""Logistic regression by L-BFGS: minima of an independent method, bounds of the gradient, warm starts."""

import numpy as np
import pytest
import torch

from transfer.logistic import Fit, Problem

CLASSES = 4


def samples(n: int, width: int, *, several: bool, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Features of very different scales with overlapping classes, (n, width), and labels (n,) or (n, 4)."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(CLASSES, size=n)
    centers = rng.normal(size=(CLASSES, width))
    features = (centers[labels] + 2 * rng.normal(size=(n, width))) @ rng.normal(size=(width, width)) / width + 3
    features *= np.logspace(0, -1.5, width)
    given = torch.from_numpy((labels[:, None] == np.arange(CLASSES)) | (rng.random((n, CLASSES)) < 0.2))
    return torch.from_numpy(features.astype(np.float32)), given if several else torch.from_numpy(labels)


def in_features(problem: Problem, fit: Fit, features: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """The weights (K, width) and biases (K,) of a fit for the features themselves, in float64."""
    rotated = fit.weights.double().numpy()
    weights = rotated[:, :-1] @ problem.axes.basis.double().numpy().T
    return weights, rotated[:, -1] - weights @ features.mean(0).double().numpy()


def predict(features: np.ndarray, weights: np.ndarray, bias: np.ndarray, *, several: bool) -> np.ndarray:
    logits = features @ weights.T + bias
    if several:
        return 1 / (1 + np.exp(-logits))
    powers = np.exp(logits - logits.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


def newton(features: np.ndarray, truth: np.ndarray, decay: float, *, several: bool) -> np.ndarray:
    """Minimize by Newton's method on the whole Hessian in float64; (K, width + 1), the biases last."""
    n, width = features.shape
    given = np.hstack([features, np.ones((n, 1))])
    weights = np.zeros((CLASSES, width + 1))
    penalty = np.append(np.full(width, decay), 1e-9)  # biases of a softmax have a free direction
    for _ in range(50):
        p = predict(features, weights[:, :-1], weights[:, -1], several=several)
        gradient = (p - truth).T @ given + penalty * weights
        blocks = np.einsum("nj,jk->njk", p * (1 - p) if several else p, np.eye(CLASSES))
        if not several:
            blocks -= p[:, :, None] * p[:, None]
        hessian = np.einsum("njk,na,nb->jakb", blocks, given, given, optimize=True).reshape(gradient.size, -1)
        hessian += np.diag(np.tile(penalty, CLASSES))
        step = np.linalg.solve(hessian, gradient.ravel()).reshape(gradient.shape)
        weights -= step
        if np.abs(step).max() < 1e-10:
            break
    return weights


@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize(("n", "width", "decay"), [(150, 12, 1.0), (150, 12, 0.01), (20, 30, 0.1)])
def test_the_minimum_is_that_of_newtons_method(n: int, width: int, decay: float, several: bool) -> None:
    features, labels = samples(n, width, several=several)
    truth = labels.double().numpy() if several else np.eye(CLASSES)[labels]
    problem = Problem(features, labels, CLASSES)
    fit = problem.fit(decay, None, tolerance=3e-7, iterations=500)
    weights, bias = in_features(problem, fit, features)
    expected = newton(features.double().numpy(), truth, decay, several=several)
    assert fit.converged
    assert np.linalg.norm(weights - expected[:, :-1]) < 2e-3 * np.linalg.norm(expected[:, :-1])
    given = features.double().numpy()
    found = predict(given, weights, bias, several=several)
    assert np.abs(found - predict(given, expected[:, :-1], expected[:, -1], several=several)).max() < 2e-3
    gradient = (found - truth).T @ given / n + decay * weights / n
    assert np.abs(gradient).max() < 1.5e-6
    assert np.abs(gradient).max() == pytest.approx(fit.gradient, abs=1e-6)  # of float32


def test_a_class_against_all_others_is_solved_alone() -> None:
    features, labels = samples(120, 10, several=True)
    together = Problem(features, labels, CLASSES)
    alone = Problem(features, labels[:, 2:3], 1)
    fits = [problem.fit(0.5, None, tolerance=1e-6, iterations=500) for problem in (together, alone)]
    logits = [problem.project(features) @ fit.weights.T for problem, fit in zip((together, alone), fits, strict=True)]
    assert torch.allclose(logits[0][:, 2], logits[1][:, 0], atol=2e-3)


def test_warm_starts_lead_to_the_same_minima_in_fewer_steps() -> None:
    features, labels = samples(300, 20, several=False)
    problem = Problem(features, labels, CLASSES)
    start, steps = None, np.zeros(2)
    for decay in np.logspace(1, -3, 17).tolist():
        fits = [problem.fit(decay, weights, tolerance=1e-5, iterations=500) for weights in (None, start)]
        steps += [fit.iterations for fit in fits]
        probabilities = [(problem.project(features) @ fit.weights.T).softmax(1) for fit in fits]
        assert torch.allclose(*probabilities, atol=1e-2)
        start = fits[1].weights
    assert steps[1] < 0.95 * steps[0]


def test_weights_carry_over_to_a_problem_with_other_samples() -> None:
    features, labels = samples(60, 20, several=False)
    part, whole = Problem(features[:40], labels[:40], CLASSES), Problem(features, labels, CLASSES)
    weights = part.fit(0.1, None, tolerance=1e-4, iterations=100).weights
    carried = whole.carry_over(part.axes, weights)
    assert torch.allclose(whole.project(features) @ carried.T, part.project(features) @ weights.T, atol=1e-4)


def test_an_end_before_the_minimum_is_stated() -> None:
    features, labels = samples(150, 12, several=False)
    fit = Problem(features, labels, CLASSES).fit(0.001, None, tolerance=1e-7, iterations=3)
    assert (fit.iterations, fit.converged) == (3, False)
    assert fit.gradient > 1e-7


def test_separable_classes_and_equal_features_stay_finite() -> None:
    features = torch.eye(CLASSES).repeat(5, 1)
    fit = Problem(features, torch.arange(CLASSES).repeat(5), CLASSES).fit(1e-6, None, tolerance=1e-6, iterations=200)
    assert fit.weights.isfinite().all()
    same = Problem(torch.ones(8, 3), torch.arange(CLASSES).repeat(2), CLASSES)
    assert same.fit(1e-6, None, tolerance=1e-6, iterations=50).weights.isfinite().all()
