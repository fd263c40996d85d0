"""Logistic regression on frozen features by L-BFGS, at the speed of its matrix products.

The objective is scikit-learn's: the sum of the losses of the samples, plus `decay` / 2 times the squared norm of the
weights, with biases that are free. It is divided by the number of samples here, so `decay` is 1 / C.

Four measures make it fast, and none of them changes the minimum. The features are centered and rotated to the
principal axes, where a diagonal matrix approximates the Hessian; it is the first estimate of L-BFGS. Fewer samples than
features are rotated to as many dimensions as samples. Logits are linear in the weights, so a line search needs one
matrix product for all its trials. A fit starts at the solution of another one.
"""

import dataclasses
from collections import deque
from typing import NamedTuple

import torch
from torch.nn import functional

_MEMORY = 10  # pairs of L-BFGS
_TRIALS = 20  # of a line search
_FLAT = 1e-8  # the least mean variance of a class's predictions in the estimate of the Hessian


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fit:
    """A minimum, or the point where the iterations ended.

    Attributes:
        weights: (K, R + 1) in the coordinates of the problem; the last column holds the biases.
        iterations: steps of L-BFGS, each with two matrix products of all samples.
        gradient: the largest absolute value of the gradient of the mean objective.
        converged: whether `gradient` is at most the tolerance.
    """

    weights: torch.Tensor
    iterations: int
    gradient: float
    converged: bool


class Axes(NamedTuple):
    """The coordinates of a problem.

    Attributes:
        mean: (F,) of the features.
        basis: (F, R), orthonormal: the principal axes of the features; R is at most the number of samples.
    """

    mean: torch.Tensor
    basis: torch.Tensor


class Problem:
    """Samples to be separated, prepared for fits with any decay.

    Attributes:
        classes: number of classes K.
        axes: the coordinates of the weights.
    """

    def __init__(self, features: torch.Tensor, labels: torch.Tensor, classes: int) -> None:
        """Rotate the features.

        Args:
            features: (n, F) float32 on the device of the computation.
            labels: (n,) int64 from 0 to K - 1 for one softmax; or (n, K) bool for K separate problems, each with the
                samples of a class against all others.
            classes: K.
        """
        self.classes, mean = classes, features.mean(dim=0)
        centered = features - mean
        n, width = centered.shape
        first = None
        if n < width:  # no solution leaves the space of the samples
            first = torch.linalg.qr(centered.T).Q
            centered = centered @ first
        values, turn = torch.linalg.eigh((centered.T @ centered).double())
        turn = turn.to(features.dtype)
        self.axes = Axes(mean, turn if first is None else first @ turn)
        self._samples = features.new_ones((n, len(values) + 1))
        torch.mm(centered, turn, out=self._samples[:, :-1])
        self._labels = labels if labels.ndim == 1 else None
        self._minus_one = features.new_full((1, n), -1.0)
        self._present = labels.T.to(features.dtype) if labels.ndim == 2 else None
        self._spread = torch.cat([values.clamp(min=0), values.new_full((1,), n)]).to(features.dtype) / n

    def project(self, features: torch.Tensor) -> torch.Tensor:
        """Return features (m, F) in the coordinates of the problem, (m, R + 1), so that `@ weights.T` are logits."""
        return functional.pad((features - self.axes.mean) @ self.axes.basis, (0, 1), value=1.0)

    def carry_over(self, axes: Axes, weights: torch.Tensor) -> torch.Tensor:
        """Return the weights of a problem with other samples, whose coordinates are `axes`, in those of this one."""
        full = weights[:, :-1] @ axes.basis.T  # (K, F)
        bias = weights[:, -1:] + full @ (self.axes.mean - axes.mean)[:, None]
        return torch.cat([full @ self.axes.basis, bias], dim=1)

    @torch.no_grad()
    def fit(self, decay: float, start: torch.Tensor | None, *, tolerance: float, iterations: int) -> Fit:
        """Minimize the objective.

        Args:
            decay: of the weights, at least 0.
            start: (K, R + 1) weights to start from; None starts at 0.
            tolerance: bound of the largest absolute value of the gradient of the mean objective with respect to the
                weights of the original features, as `tol` of scikit-learn.
            iterations: the largest number of steps.
        """
        samples, n = self._samples, len(self._samples)
        weights = samples.new_zeros((self.classes, samples.shape[1])) if start is None else start.clone()
        penalty = samples.new_full((samples.shape[1],), decay / n)
        penalty[-1] = 0
        logits = weights @ samples.T
        predicted = self._predict(logits)
        # The Hessian is near the variance of the predictions times that of the features, plus the penalty.
        variance = (predicted * (1 - predicted)).mean(dim=1, keepdim=True).clamp(min=_FLAT)
        inverse = 1 / (variance * self._spread + penalty).clamp(min=torch.finfo(samples.dtype).tiny)
        pairs: deque[tuple[torch.Tensor, torch.Tensor, float]] = deque(maxlen=_MEMORY)
        gradient = self._error(predicted) @ samples / n + weights * penalty
        for step in range(iterations + 1):
            largest = self._largest(gradient, tolerance)
            if largest <= tolerance or step == iterations:
                break
            direction = _direction(gradient, pairs, inverse)
            slope = _dot(gradient, direction)
            if slope >= 0:  # rounding; start again from the estimate
                pairs.clear()
                direction = -inverse * gradient
                slope = _dot(gradient, direction)
            change = direction @ samples.T
            fixed = _dot(weights * penalty, direction) - self._sum_of_true(change) / n
            quadratic = _dot(direction * penalty, direction)
            length, predicted = self._search(logits, change, slope, fixed, quadratic)
            if length == 0:  # no shorter step helps in this precision
                break
            moved = length * direction
            weights += moved
            logits.add_(change, alpha=length)
            before = gradient
            gradient = self._error(predicted) @ samples / n + weights * penalty
            turned = gradient - before
            curvature = _dot(moved, turned)
            if curvature > 0:
                pairs.append((moved, turned, curvature))
        return Fit(weights=weights, iterations=step, gradient=largest, converged=largest <= tolerance)

    def _predict(self, logits: torch.Tensor) -> torch.Tensor:
        """Return the probabilities (K, n) of logits (K, n)."""
        return logits.sigmoid() if self._labels is None else logits.softmax(dim=0)

    def _error(self, predicted: torch.Tensor) -> torch.Tensor:
        """Return predicted minus true (K, n), in the memory of `predicted`."""
        if self._present is not None:
            return predicted.sub_(self._present)
        assert self._labels is not None
        return predicted.scatter_add_(0, self._labels[None], self._minus_one)

    def _sum_of_true(self, values: torch.Tensor) -> float:
        """Return the sum of (K, n) values over the true classes of the samples."""
        if self._present is not None:
            return _dot(values, self._present)
        assert self._labels is not None
        return float(values.gather(0, self._labels[None]).sum(dtype=torch.float64))

    def _largest(self, gradient: torch.Tensor, tolerance: float) -> float:
        """Return the largest absolute value of a gradient with respect to the weights of the original features.

        It is rotated back only if its norm, which no rotation changes, allows that it is within the tolerance.
        """
        norm, entries = float(gradient.norm()), self.classes * (len(self.axes.basis) + 1)
        if norm > tolerance * entries**0.5:
            return norm / entries**0.5  # a lower bound
        return max(float((gradient[:, :-1] @ self.axes.basis.T).abs().max()), float(gradient[:, -1].abs().max()))

    def _search(
        self, logits: torch.Tensor, change: torch.Tensor, slope: float, fixed: float, quadratic: float
    ) -> tuple[float, torch.Tensor]:
        """Find a length of a step where the objective along it, which is convex, is nearly flat.

        The bounds are the approximate Wolfe conditions of Hager and Zhang (2005), which compare slopes only: values
        of the objective differ by less than their rounding near the minimum.

        Args:
            logits, change: (K, n) at the start, and their change by a step of length 1.
            slope: of the objective at the start, below 0.
            fixed, quadratic: parts of the slope that do not depend on the predictions: fixed + length * quadratic.

        Returns:
            the length, 0 if none was found, and the predictions there.
        """
        n = logits.shape[1]
        low, low_slope, high, high_slope = 0.0, slope, float("inf"), 0.0
        length, predicted = 1.0, logits
        for _ in range(_TRIALS):
            predicted = self._predict(torch.add(logits, change, alpha=length))
            here = _dot(predicted, change) / n + fixed + length * quadratic
            if 0.9 * slope <= here <= -0.8 * slope:
                return length, predicted
            if here < 0:
                low, low_slope = length, here
            else:
                high, high_slope = length, here
            if high == float("inf"):
                length = min(10 * low, low * max(2.0, slope / (slope - low_slope) if low_slope > slope else 10.0))
            else:  # the secant, within the middle of the bracket
                share = low_slope / (low_slope - high_slope)
                length = low + (high - low) * min(max(share, 0.1), 0.9)
        return 0.0, predicted


def _direction(
    gradient: torch.Tensor, pairs: deque[tuple[torch.Tensor, torch.Tensor, float]], inverse: torch.Tensor
) -> torch.Tensor:
    """Return the step of L-BFGS: the two-loop recursion (Nocedal and Wright, algorithm 7.4).

    Args:
        pairs: (change of the weights, change of the gradient, their product), oldest first.
        inverse: the diagonal of the first estimate of the inverse Hessian, in the shape of the weights.
    """
    rest, shares = gradient.clone(), []
    for moved, turned, curvature in reversed(pairs):
        share = _dot(moved, rest) / curvature
        rest.add_(turned, alpha=-share)
        shares.append(share)
    rest *= inverse
    if pairs:
        moved, turned, curvature = pairs[-1]
        rest *= curvature / _dot(turned * inverse, turned)
    for (moved, turned, curvature), share in zip(pairs, reversed(shares), strict=True):
        rest.add_(moved, alpha=share - _dot(turned, rest) / curvature)
    return rest.neg_()


def _dot(left: torch.Tensor, right: torch.Tensor) -> float:
    """Return the sum of the products of two tensors of one shape."""
    return float(torch.dot(left.flatten(), right.flatten()))
