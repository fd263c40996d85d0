"""Test the distribution of each random parameter against 10,000 draws of the classes of torchvision."""

import math

import numpy as np
import pytest
import torch
from torchvision.transforms import ColorJitter, GaussianBlur, RandomResizedCrop

from intl_bench.core.seeding import uniforms
from pretrain.images import views
from pretrain.images.crops import BOX_DRAWS, draw_shapes, fit_boxes
from pretrain.images.views import PARAMETER_DRAWS, ViewConfig, draw_parameters

DRAWS = 10_000
FLAGS = [views.JITTER, views.GRAY, views.SIGMA, views.SOLARIZE, views.FLIP]


def parameters(config: ViewConfig, count: int = DRAWS) -> np.ndarray:
    return draw_parameters(config, uniforms(0, "test", 0, np.arange(count), 0, PARAMETER_DRAWS))


def p_value(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Return the p-value of the two-sample Kolmogorov-Smirnov test, by Kolmogorov's asymptotic series."""
    a, b = np.sort(np.float32(ours)), np.sort(np.float32(theirs))
    points = np.concatenate([a, b])
    distance = np.abs(np.searchsorted(a, points, "right") / len(a) - np.searchsorted(b, points, "right") / len(b)).max()
    if distance == 0:
        return 1.0
    squared = distance**2 * len(a) * len(b) / (len(a) + len(b))
    return min(1.0, 2 * sum((-1) ** (k - 1) * math.exp(-2 * k**2 * squared) for k in range(1, 101)))


def chances(ours: np.ndarray, p: float) -> float:
    """Return the two-sided p-value of a count of flags, by the normal approximation of the binomial distribution."""
    return math.erfc(abs(ours.mean() - p) / math.sqrt(2 * p * (1 - p) / len(ours)))


def test_the_statistical_test_detects_small_differences() -> None:
    uniform = uniforms(1, "test", 0, np.arange(DRAWS), 0, 2)
    assert p_value(uniform[:, 0], uniform[:, 1]) > 0.01
    assert p_value(uniform[:, 0], uniform[:, 1] ** 1.1) < 0.01
    assert chances(uniform[:, 0] < 0.52, 0.5) < 0.01


@pytest.mark.parametrize(
    ("height", "width", "scale"),
    [(375, 500, (0.08, 1.0)), (300, 100, (0.2, 0.857)), (32, 32, (0.08, 1.0)), (500, 375, (0.086, 0.429))],
)
def test_boxes(height: int, width: int, scale: tuple[float, float]) -> None:
    torch.manual_seed(0)
    image = torch.empty(3, height, width)
    theirs = np.array([RandomResizedCrop.get_params(image, list(scale), [3 / 4, 4 / 3]) for _ in range(DRAWS)])
    config = ViewConfig(min_scale=scale[0], max_scale=scale[1])
    uniform = uniforms(0, "test", 0, np.arange(DRAWS), 0, BOX_DRAWS)
    ours = fit_boxes(draw_shapes(config, uniform), height, width)

    def measures(boxes: np.ndarray) -> dict[str, np.ndarray]:
        top, left, h, w = boxes.T
        # Both sides round to whole pixels in the same way. A box as large as the image has no relative position.
        down, right = top / np.maximum(height - h, 1), left / np.maximum(width - w, 1)
        names = ("top", "left", "height", "width", "area", "log ratio", "down", "right")
        return dict(zip(names, (top, left, h, w, h * w, np.log(w / h), down, right), strict=True))

    expected = measures(theirs)
    assert {name: p_value(values, expected[name]) for name, values in measures(ours).items()} == {
        name: pytest.approx(1, abs=0.99) for name in expected
    }


@pytest.mark.parametrize("strengths", [(0.4, 0.4, 0.2, 0.1), (1.5, 0.8, 0.0, 0.5), (0.8, 0.8, 0.8, 0.2)])
def test_factors_of_the_jitter(strengths: tuple[float, float, float, float]) -> None:
    torch.manual_seed(1)  # with seed 0, the draws of torchvision happen to be far from uniform
    jitter = ColorJitter(*strengths)
    theirs = [
        ColorJitter.get_params(jitter.brightness, jitter.contrast, jitter.saturation, jitter.hue) for _ in range(DRAWS)
    ]
    names = ("brightness", "contrast", "saturation", "hue")
    ours = parameters(ViewConfig(**dict(zip(names, strengths, strict=True))))
    for number, name in enumerate(names):
        off = 0.0 if name == "hue" else 1.0
        expected = [off if values[1 + number] is None else values[1 + number] for values in theirs]
        assert p_value(ours[:, views.FACTORS][:, number], np.array(expected)) > 0.01
        places = np.array([values[0].tolist().index(number) for values in theirs])
        assert p_value((ours[:, views.ORDER] == number).argmax(axis=1), places) > 0.01


def test_all_orders_are_equally_likely() -> None:
    counts = np.unique(parameters(ViewConfig(), 24 * 500)[:, views.ORDER], axis=0, return_counts=True)[1]
    assert len(counts) == 24
    assert ((counts - 500) ** 2 / 500).sum() < 41.6  # chi square with 23 degrees of freedom, p = 0.01


def test_sigma_of_the_blur() -> None:
    torch.manual_seed(0)
    for low, high in ((0.1, 2.0), (0.5, 0.7)):
        config = ViewConfig(blur_p=1.0, blur_sigma_min=low, blur_sigma_max=high)
        theirs = np.array([GaussianBlur.get_params(low, high) for _ in range(DRAWS)])
        assert p_value(parameters(config)[:, views.SIGMA], theirs) > 0.01


@pytest.mark.parametrize("p", [(0.8, 0.2, 0.5, 0.1, 0.5), (0.3, 0.9, 0.02, 0.2, 0.35)])
def test_probabilities(p: tuple[float, ...]) -> None:
    names = ("jitter_p", "grayscale_p", "blur_p", "solarize_p", "flip_p")
    rows = parameters(ViewConfig(**dict(zip(names, p, strict=True))))
    flags = rows[:, FLAGS] > 0
    assert [chances(flags[:, number], p[number]) > 0.01 for number in range(5)] == [True] * 5
    # The decisions are uncorrelated with each other and with the factors.
    columns = np.concatenate([flags, rows[:, views.FACTORS], rows[:, views.ORDER]], axis=1)
    correlation = np.corrcoef(columns.T)[:9, :9] - np.eye(9)
    assert np.abs(correlation).max() < 4 / math.sqrt(DRAWS)
    # The width of the blur is uncorrelated with the decision to blur.
    sigma = rows[flags[:, 2], views.SIGMA]
    assert p_value(sigma, np.linspace(0.1, 2.0, DRAWS)) > 0.01


@pytest.mark.parametrize(("p", "flag"), [(0.0, False), (1.0, True)])
def test_certain_and_impossible(p: float, flag: bool) -> None:
    rows = parameters(ViewConfig(jitter_p=p, grayscale_p=p, blur_p=p, solarize_p=p, flip_p=p))
    assert ((rows[:, FLAGS] > 0) == flag).all()


def test_views_epochs_and_boxes_are_independent() -> None:
    """Boxes and parameters of one view are uncorrelated with each other and with those of other views and epochs."""
    draws = PARAMETER_DRAWS + BOX_DRAWS
    columns = [uniforms(0, "views", epoch, np.arange(DRAWS), view, draws) for epoch, view in ((0, 0), (0, 1), (1, 0))]
    correlation = np.corrcoef(np.concatenate(columns, axis=1).T) - np.eye(3 * draws)
    assert np.abs(correlation).max() < 5 / math.sqrt(DRAWS)
