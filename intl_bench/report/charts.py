"""Charts as SVG whose colors are those of the page, so that they fit light, dark and paper."""

import html
import math
from collections.abc import Sequence
from typing import NamedTuple

_WIDTH, _HEIGHT = 340, 220
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 10, 10, 36
_COLORS = 7
_DASHES = ("", "6 3", "2 2.5", "8 3 2 3")  # so that lines are told apart by more than color
_POINTS = 300  # of a line


class Line(NamedTuple):
    """A line of a chart; values that are not finite are left out."""

    name: str
    xs: Sequence[float]
    ys: Sequence[float]


class Dots(NamedTuple):
    """A row of a chart of seeds.

    Attributes:
        values: (what the value is of, the value).
        published: a published value that may be compared with `mean`, or None.
    """

    name: str
    values: Sequence[tuple[str, float]]
    mean: float
    published: float | None


class _Scale:
    """A mapping of values to pixels, and round values for the marks of an axis."""

    def __init__(self, values: Sequence[float], start: float, end: float, *, log: bool = False) -> None:
        self.log, self.start, self.end = log, start, end
        low, high = min(values), max(values)
        if log:
            self.low, self.high = math.log10(low), math.log10(high)
            self.low, self.high = (self.low, self.high) if self.high > self.low else (self.low - 0.5, self.high + 0.5)
            first, last = math.ceil(self.low - 1e-9), math.floor(self.high + 1e-9)
            every = max(1, math.ceil((last - first) / 5))
            self.decimals = 0
            self.ticks = [10.0**power for power in range(first, last + 1, every)]
            return
        margin = 0.04 * (high - low) or 0.5
        self.low, self.high = low - margin, high + margin
        rough = (self.high - self.low) / 3
        power = 10.0 ** math.floor(math.log10(rough))
        step = power * max(factor for factor in (1, 2, 2.5, 5) if factor * power <= rough)
        # A step of 0.5 needs one decimal, one of 0.25 two.
        self.decimals = next(n for n in range(20) if math.isclose(step, round(step, n), rel_tol=1e-6))
        self.ticks = [n * step for n in range(math.ceil(self.low / step), math.floor(self.high / step) + 1)]

    def __call__(self, value: float) -> float:
        share = ((math.log10(value) if self.log else value) - self.low) / (self.high - self.low)
        return round(self.start + share * (self.end - self.start), 1)

    def text(self, value: float) -> str:
        if self.log:
            power = round(math.log10(value))
            return f"{10.0**power:g}" if -2 <= power <= 3 else f"1e{power}"
        return f"{value / 1000:g}k" if abs(value) >= 10_000 else f"{value + 0.0:.{self.decimals}f}"


def line_chart(
    lines: Sequence[Line], *, x: str, y: str, log_x: bool = False, log_y: bool = False, first: int = 0
) -> str:
    """Return a chart of lines; an empty text if no line has two points.

    Args:
        x, y: the names of the axes.
        first: the number of the first line's color.
    """
    drawn = []
    for number, line in enumerate(lines, start=first):
        pairs = [
            (a, b)
            for a, b in zip(line.xs, line.ys, strict=True)
            if math.isfinite(a) and math.isfinite(b) and (a > 0 or not log_x) and (b > 0 or not log_y)
        ]
        if len(pairs) > 1:
            drawn.append((number, line.name, pairs))
    if not drawn:
        return ""
    across = _Scale([a for _, _, pairs in drawn for a, _ in pairs], _LEFT, _WIDTH - _RIGHT, log=log_x)
    up = _Scale([b for _, _, pairs in drawn for _, b in pairs], _HEIGHT - _BOTTOM, _TOP, log=log_y)
    parts = [_axes(across, up, x)]
    for number, name, pairs in drawn:
        points = " ".join(f"{across(a)},{up(b)}" for a, b in _fewer(pairs))
        title = f"<title>{html.escape(name)}</title>"
        parts.append(f'<polyline class="curve" points="{points}" {_stroke(number)}>{title}</polyline>')
    return _svg(f"{y} over {x}: {len(drawn)} lines", _HEIGHT, parts)


def scatter_chart(lines: Sequence[Line], *, x: str, y: str, log_x: bool = False) -> str:
    """Return a chart of dots, with a color for each of `lines`; an empty text without a dot.

    Args:
        x, y: the names of the axes.
    """
    pairs = [
        (number, line.name, a, b)
        for number, line in enumerate(lines)
        for a, b in zip(line.xs, line.ys, strict=True)
        if math.isfinite(a) and math.isfinite(b) and (a > 0 or not log_x)
    ]
    if not pairs:
        return ""
    across = _Scale([a for _, _, a, _ in pairs], _LEFT, _WIDTH - _RIGHT, log=log_x)
    up = _Scale([b for _, _, _, b in pairs], _HEIGHT - _BOTTOM, _TOP)
    dots = [
        f'<circle class="dot" cx="{across(a)}" cy="{up(b)}" r="3" style="fill:var(--c{number % _COLORS})">'
        f"<title>{html.escape(name)}: {a:.3g}, {b:.2f}</title></circle>"
        for number, name, a, b in pairs
    ]
    return _svg(f"{y} over {x}: {len(pairs)} dots", _HEIGHT, [_axes(across, up, x), *dots])


def legend(names: Sequence[str], *, first: int = 0, dots: bool = False) -> str:
    """Return the legend of lines, or of `dots`, in the order of their colors."""

    def sample(number: int) -> str:
        if dots:
            return f'<circle class="dot" cx="14" cy="7" r="4" style="fill:var(--c{number % _COLORS})"/>'
        return f'<path class="curve" d="M0 7H27" {_stroke(number)}/>'

    items = "".join(
        f'<li><svg viewBox="0 0 27 12" aria-hidden="true">{sample(number)}</svg>{html.escape(name)}</li>'
        for number, name in enumerate(names, start=first)
    )
    return f'<ul class="legend">{items}</ul>\n'


def dot_chart(rows: Sequence[Dots]) -> str:
    """Return a chart with a row of dots for each row: one for each seed, a bar at the mean, a diamond if published."""
    values = [value for row in rows for _, value in row.values]
    values += [row.published for row in rows if row.published is not None]
    across = _Scale(values, 8, _WIDTH - 12)
    across.ticks = [tick for tick in across.ticks if tick >= 0]
    height = 38 * len(rows) + 24
    parts = [
        f'<path class="rule" d="M{across(tick)} 0V{height - 18}"/>'
        f'<text x="{across(tick)}" y="{height - 4}" text-anchor="middle">{across.text(tick)}</text>'
        for tick in across.ticks
    ]
    for number, row in enumerate(rows):
        y = 38 * number + 26
        name = row.name if len(row.name) <= 52 else f"{row.name[:51]}…"
        parts.append(
            f'<text class="name" x="8" y="{y - 11}">{html.escape(name)}</text>'
            f'<path class="rule" d="M8 {y}H{_WIDTH - 12}"/>'
        )
        if row.published is not None:
            x = across(row.published)
            title = f"<title>published: {row.published:g}</title>"
            parts.append(f'<path class="paper" d="M{x} {y - 6}l6 6l-6 6l-6 -6z">{title}</path>')
        parts.append(f'<path class="bar" d="M{across(row.mean)} {y - 7}v14"><title>mean: {row.mean:.2f}</title></path>')
        for seed, value in row.values:
            parts.append(
                f'<circle class="dot" cx="{across(value)}" cy="{y}" r="4"><title>{html.escape(seed)}: {value:.2f}'
                "</title></circle>"
            )
    about = "; ".join(f"{row.name}: {', '.join(f'{value:.2f}' for _, value in row.values)}" for row in rows)
    return _svg(f"Values of the seeds. {about}", height, parts)


def _axes(across: _Scale, up: _Scale, x: str) -> str:
    bottom = _HEIGHT - _BOTTOM
    parts = [
        f'<path class="rule" d="M{_LEFT} {up(tick)}H{_WIDTH - _RIGHT}"/>'
        f'<text x="{_LEFT - 6}" y="{up(tick) + 4}" text-anchor="end">{up.text(tick)}</text>'
        for tick in up.ticks
    ]
    parts += [
        f'<path class="axis" d="M{across(tick)} {bottom}v4"/>'
        f'<text x="{across(tick)}" y="{bottom + 16}" text-anchor="middle">{across.text(tick)}</text>'
        for tick in across.ticks
    ]
    parts.append(f'<path class="axis" d="M{_LEFT} {bottom}H{_WIDTH - _RIGHT}"/>')
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    parts.append(f'<text x="{middle}" y="{_HEIGHT - 4}" text-anchor="middle">{html.escape(x)}</text>')
    return "".join(parts)


def _stroke(number: int) -> str:
    dash = _DASHES[(number // _COLORS + number) % len(_DASHES)]
    return f'style="stroke:var(--c{number % _COLORS})"{f""" stroke-dasharray="{dash}" """ if dash else ""}'


def _fewer(pairs: Sequence[tuple[float, float]]) -> Sequence[tuple[float, float]]:
    """Return means of neighbors, if there are more points than a chart can show."""
    if len(pairs) <= _POINTS:
        return pairs
    size = math.ceil(len(pairs) / _POINTS)
    parts = [pairs[start : start + size] for start in range(0, len(pairs), size)]
    return [(sum(a for a, _ in part) / len(part), sum(b for _, b in part) / len(part)) for part in parts]


def _svg(label: str, height: int, parts: Sequence[str]) -> str:
    return f'<svg viewBox="0 0 {_WIDTH} {height}" role="img" aria-label="{html.escape(label)}">{"".join(parts)}</svg>\n'
