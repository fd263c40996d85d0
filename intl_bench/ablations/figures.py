"""The figures of the ablations, each from the cells that have ended: mean and standard deviation over seeds."""

import dataclasses
import math
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class Point:
    """One pre-training: its configuration, and all that was measured of it.

    Attributes:
        metrics: of its record and of those of its scores; "diverged" is 100 where the loss became infinite, and then
            there is nothing else.
        details: of its record; spectra as `spectra.record_values` leaves them.
    """

    method: str
    seed: int
    config: Mapping[str, Any]
    metrics: Mapping[str, float]
    details: Mapping[str, Any]


Setting = Callable[[Point], Any]


def power(points: Sequence[Point]) -> Any:
    """Figure 2(b): accuracy and the inverse condition number of the transformed output against the power p."""
    figure, (left, right) = _figure(2)
    ticks = sorted({_power(point) for point in points})
    place = {p: number for number, p in enumerate(ticks)}

    def x(point: Point) -> int:
        return place[_power(point)]

    _line(left, points, x, "top1", "linear top-1")
    _line(left, points, x, "knn5", "5-NN")
    _line(right, points, x, "transformed/inverse_condition", "transformed output", _decades)
    _line(right, points, x, "embedding/inverse_condition", "embedding", _decades)
    for axes, label in ((left, "accuracy (%)"), (right, "log10 of 1 / condition number")):
        axes.set_xticks(range(len(ticks)), [f"{p:g}" for p in ticks])
        _finish(axes, "power p", label)
    return figure


def trace_loss(points: Sequence[Point]) -> Any:
    """Figure 3: spectra, accuracy and divergence against IterNorm's iterations, with and without trace loss."""
    figure, ((white, embedding), (accuracy, divergence)) = _figure(2, 2)
    shown = [point for point in points if point.config["method"]["variant"] == "coupled"]
    counts = sorted({_iterations(point) for point in shown})
    for axes, what in ((white, "transformed"), (embedding, "embedding")):
        for (method, t), group in _grouped(shown, lambda point: (point.method, _iterations(point))):
            spectra = [point.details.get("spectra", {}).get(what) for point in group]
            curves = [curve["eigenvalues"] for curve in spectra if curve and curve["eigenvalues"]]
            if curves:  # a spectrum that is not finite has none
                means = [
                    statistics.geometric_mean([max(v, 1e-12) for v in values]) for values in zip(*curves, strict=True)
                ]
                axes.plot(
                    [100 * n / max(1, len(means) - 1) for n in range(len(means))],
                    means,
                    color=f"C{counts.index(t)}",
                    linestyle="-" if method == "INTL" else "--",
                    label=f"T = {t}" if method == "INTL" else None,
                    linewidth=1,
                )
        axes.set_yscale("log")
        _finish(axes, "eigenvalue, in descending order (% of all)", f"eigenvalue of the {what} covariance")
    series = _grouped(points, lambda point: (point.method, point.config["method"]["variant"]))
    for (method, variant), group in series:
        label = f"{'with' if method == 'INTL' else 'without'} trace loss, {variant}"
        _line(accuracy, group, _iterations, "top1", label)
        _line(divergence, group, _iterations, "diverged", label)
    _finish(accuracy, "iterations T", "linear top-1 (%)")
    _finish(divergence, "iterations T", "runs that diverged (%)")
    white.set_title("solid: with trace loss, dashed: without", fontsize=8)
    return figure


def embedding_dim(points: Sequence[Point]) -> Any:
    """Figure 4: accuracy against the embedding dimension."""
    return _against(points, lambda point: point.config["projector"]["out"], "embedding dimension")


def batch_size(points: Sequence[Point]) -> Any:
    """Table 4 as a figure: accuracy against the batch size."""
    return _against(points, lambda point: point.config["batch_size"], "batch size")


def _against(points: Sequence[Point], x: Setting, label: str) -> Any:
    figure, (left, right) = _figure(2)
    _line(left, points, x, "top1", "linear top-1")
    _line(left, points, x, "knn5", "5-NN")
    _line(right, points, x, "embedding/rank", "embedding")
    _line(right, points, x, "transformed/rank", "transformed output")
    for axes, what in ((left, "accuracy (%)"), (right, "effective rank (% of the largest possible)")):
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
}


def _power(point: Point) -> float:
    return float(point.config["method"]["power"])


def _iterations(point: Point) -> int:
    return int(point.config["method"]["iterations"])


def _grouped(points: Iterable[Point], key: Setting) -> list[tuple[Any, list[Point]]]:
    groups = defaultdict(list)
    for point in points:
        groups[key(point)].append(point)
    return sorted(groups.items())


def _decades(value: float) -> float:
    return math.log10(max(value, 1e-16))  # zero where the spectrum has collapsed


def _line(
    axes: Any,
    points: Sequence[Point],
    x: Setting,
    metric: str,
    label: str,
    shown: Callable[[float], float] = float,
) -> None:
    """Mean and standard deviation (divisor n - 1) of a metric, as it is shown, over the seeds of each x."""
    measured = [point for point in points if metric in point.metrics]
    if not measured:
        return
    groups = [(where, [shown(point.metrics[metric]) for point in group]) for where, group in _grouped(measured, x)]
    axes.errorbar(
        [where for where, _ in groups],
        [statistics.mean(values) for _, values in groups],
        yerr=[statistics.stdev(values) if len(values) > 1 else 0 for _, values in groups],
        label=label,
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
