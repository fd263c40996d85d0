"""Figures of the ablations, drawn from the finished cells: mean and standard deviation over seeds."""

import dataclasses
import math
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

T = TypeVar("T")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Point:
    """One pre-training with its configuration and its results.

    Attributes:
        method: display name of the method.
        config: the configuration of the pre-training.
        metrics: the metrics of the pre-training's record and of its records of `DRAWN`. If the loss became infinite,
            "diverged" is 100 and there is no other metric.
        details: the details of the pre-training's record, with the spectra of `spectra.values.record_values`.
    """

    method: str
    seed: int | None
    config: Mapping[str, Any]
    metrics: Mapping[str, float]
    details: Mapping[str, Any]


DRAWN = ("linear", "knn")  # the tasks whose scores figures show
_RANK = "effective rank\n(% of the smaller of samples and dimension)"
Setting = Callable[[Point], Any]
Value = Callable[[Point], float | None]
"""Returns the value of a point that is drawn; None if the point has no such value."""


def power(points: Sequence[Point]) -> Any:
    """Draw Figure 2(b): accuracy and the inverse condition number of the transformed output over the power p."""
    values = {
        "transformed output": _log10(_metric("transformed/inverse_condition")),
        "embedding": _log10(_metric("embedding/inverse_condition")),
    }
    return _evenly_spaced(points, _power, "power p", values, "log10 of 1 / condition number")


def trace_loss(points: Sequence[Point]) -> Any:
    """Draw Figure 3: spectra (of the coupled iteration), accuracy and divergence over the iterations T of IterNorm.

    An exact iteration leaves no whitened eigenvalue above 1. A diverging iteration leaves large eigenvalues, or the run
    ends with NaN.
    """
    figure, ((white, embedding), (accuracy, largest)) = _figure(2, 2)
    shown = [point for point in points if point.config["method"]["variant"] == "coupled"]
    counts = sorted({_iterations(point) for point in shown})
    for axes, what in ((white, "transformed"), (embedding, "embedding")):
        for (method, t), group in _grouped(shown, lambda point: (point.method, _iterations(point))):
            spectra = [point.details.get("spectra", {}).get(what) for point in group]
            curves = [curve for curve in spectra if curve and curve["eigenvalues"]]
            if curves:  # a spectrum that is not finite has no curve
                values = zip(*(curve["eigenvalues"] for curve in curves), strict=True)
                axes.plot(
                    [100 * rank / curves[0]["count"] for rank in curves[0]["ranks"]],
                    [statistics.geometric_mean([max(value, 1e-12) for value in same]) for same in values],
                    color=f"C{counts.index(t)}",
                    linestyle="-" if method == "INTL" else "--",
                    label=f"T = {t}" if method == "INTL" else None,
                    linewidth=1,
                )
        axes.set_yscale("log")
        _finish(axes, "eigenvalue, in descending order (% of all)", f"eigenvalue of the {what} covariance")
    series = _grouped(points, lambda point: (point.method, point.config["method"]["variant"]))
    for (method, variant), group in series:
        label, style = ("with", "-") if method == "INTL" else ("without", "--")
        label += f" trace loss, {variant}"
        _line(accuracy, group, _iterations, _metric("top1"), label, style)
        for t, runs in _grouped(group, _iterations):
            diverged = sum(point.metrics["diverged"] > 0 for point in runs)
            label += f" (T = {t}: NaN in {diverged} of {len(runs)})" if diverged else ""
        _line(largest, group, _iterations, _log10(_largest), label, style)
    _finish(accuracy, "iterations T", "linear top-1 (%)")
    _finish(largest, "iterations T", "log10 of the largest whitened eigenvalue")
    white.set_title("solid: with trace loss, dashed: without", fontsize=8)
    return figure


def embedding_dim(points: Sequence[Point]) -> Any:
    """Draw Figure 4: accuracy and effective rank over the embedding dimension."""
    return _against(points, lambda point: point.config["projector"]["out"], "embedding dimension", share=False)


def batch_size(points: Sequence[Point]) -> Any:
    """Draw Table 4 as a figure: accuracy, and effective rank in percent of its maximum, over the batch size."""
    return _against(points, lambda point: point.config["batch_size"], "batch size", share=True)


def beta(points: Sequence[Point]) -> Any:
    """Draw accuracy and effective rank over the weight of the trace loss."""
    values = {"embedding": _metric("embedding/rank"), "transformed output": _metric("transformed/rank")}
    return _evenly_spaced(points, _beta, "weight of the trace loss", values, _RANK)


def iterations_rate(points: Sequence[Point]) -> Any:
    """Draw accuracy and effective rank over the iterations T, with a line for each learning rate."""
    figure, (left, right) = _figure(2)
    for rate, group in _grouped(points, lambda point: point.config["base_lr"]):
        _line(left, group, _iterations, _metric("top1"), f"learning rate {rate:g}")
        _line(right, group, _iterations, _metric("embedding/rank"), f"learning rate {rate:g}")
    for axes, label in ((left, "linear top-1 (%)"), (right, f"embedding: {_RANK}")):
        axes.set_xticks(sorted({_iterations(point) for point in points}))
        _finish(axes, "iterations T", label)
    return figure


def _against(points: Sequence[Point], x: Setting, label: str, *, share: bool) -> Any:
    """Draw accuracy and effective rank over a setting.

    Args:
        share: whether the rank is in percent of the largest possible rank.
    """
    figure, (left, right) = _figure(2)
    _line(left, points, x, _metric("top1"), "linear top-1")
    _line(left, points, x, _metric("knn5"), "5-NN")
    for spectrum, name in (("embedding", "embedding"), ("transformed", "transformed output")):
        _line(right, points, x, _metric(f"{spectrum}/rank") if share else _rank(spectrum), name)
    rank = _RANK if share else "effective rank"
    for axes, what in ((left, "accuracy (%)"), (right, rank)):
        axes.set_xscale("log", base=2)
        values = sorted({x(point) for point in points})
        axes.set_xticks(values, [str(value) for value in values])
        axes.minorticks_off()
        _finish(axes, label, what)
    return figure


FIGURES: dict[str, Callable[[Sequence[Point]], Any]] = {
    "power": power,
    "trace_loss": trace_loss,
    "embedding_dim": embedding_dim,
    "batch_size": batch_size,
    "beta": beta,
    "iterations_rate": iterations_rate,
}


def _power(point: Point) -> float:
    return float(point.config["method"]["power"])


def _evenly_spaced(
    points: Sequence[Point], setting: Callable[[Point], float], name: str, values: Mapping[str, Value], label: str
) -> Any:
    """Draw accuracy, and beside it `values` by their names, over a setting whose values are evenly spaced."""
    figure, (left, right) = _figure(2)
    ticks = sorted({setting(point) for point in points})
    positions = {tick: position for position, tick in enumerate(ticks)}

    def x(point: Point) -> int:
        return positions[setting(point)]

    _line(left, points, x, _metric("top1"), "linear top-1")
    _line(left, points, x, _metric("knn5"), "5-NN")
    for what, value in values.items():
        _line(right, points, x, value, what)
    for axes, text in ((left, "accuracy (%)"), (right, label)):
        axes.set_xticks(range(len(ticks)), [f"{tick:g}" for tick in ticks])
        _finish(axes, name, text)
    return figure


def _beta(point: Point) -> float:
    return float(point.config["method"]["beta"])


def _iterations(point: Point) -> int:
    return int(point.config["method"]["iterations"])


def _grouped(items: Iterable[T], key: Callable[[T], Any]) -> list[tuple[Any, list[T]]]:
    groups = defaultdict(list)
    for item in items:
        groups[key(item)].append(item)
    return sorted(groups.items())


def _metric(name: str) -> Value:
    return lambda point: point.metrics.get(name)


def _rank(spectrum: str) -> Value:
    def rank(point: Point) -> float | None:
        found = point.details.get("spectra", {}).get(spectrum)
        return None if found is None else found["numbers"]["rank"]

    return rank


def _largest(point: Point) -> float | None:
    """Return the largest eigenvalue of the transformed output."""
    found = point.details.get("spectra", {}).get("transformed", {}).get("eigenvalues")
    return found[0] if found else None


def _log10(value: Value) -> Value:
    def log10(point: Point) -> float | None:
        number = value(point)
        return None if number is None else math.log10(max(number, 1e-16))  # the number is 0 for a collapsed spectrum

    return log10


def _line(axes: Any, points: Sequence[Point], x: Setting, value: Value, label: str, style: str = "-") -> None:
    """Draw mean and standard deviation (divisor n - 1) of `value` over the seeds for each x."""
    measured = [(point, found) for point in points if (found := value(point)) is not None]
    if not measured:
        return
    groups = [(where, [found for _, found in group]) for where, group in _grouped(measured, lambda pair: x(pair[0]))]
    axes.errorbar(
        [where for where, _ in groups],
        [statistics.mean(values) for _, values in groups],
        yerr=[statistics.stdev(values) if len(values) > 1 else 0 for _, values in groups],
        label=label,
        linestyle=style,
        marker="o",
        markersize=3,
        capsize=2,
        linewidth=1,
    )


def _figure(columns: int, rows: int = 1) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5 * columns, 3.6 * rows), layout="constrained")
    return figure, figure.subplots(rows, columns)


def _finish(axes: Any, x: str, y: str) -> None:
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(alpha=0.3)
    if axes.get_legend_handles_labels()[1]:
        axes.legend(fontsize=7)
