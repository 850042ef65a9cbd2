"""Charts as SVG without script: drawn small, to stand beside each other on a screen and below each other on a phone."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup, escape

WIDTH, HEIGHT = 380, 240
LEFT, RIGHT, TOP, BOTTOM = 54, 20, 12, 42
DODGE = 5  # pixels between the points of two lines at one place
BINS = 30
COLORS = 8


@dataclass(frozen=True)
class Series:
    """A line. ``low`` and ``high`` are limits of intervals, NaN where there is none; ``place`` gives the color."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    place: int
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None
    step: bool = False
    dots: bool = True
    line: bool = True


def number(value: float) -> str:
    """A number with three significant digits, thousands set apart and a real minus."""
    if not math.isfinite(value):
        return "–"
    if abs(value) >= 1000 or (value == int(value) and abs(value) < 1000):
        text = f"{value:,.0f}" if abs(value) < 1e15 else f"{value:.3g}"
    else:
        text = f"{value:.3g}"
    return text.replace("-", "−")


def signed(value: float) -> str:
    """The same with its sign; a real minus."""
    text = number(abs(value))
    return text if text == "–" else f"{'−' if value < 0 else '+'}{text}"


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers between two limits, about ``count`` of them."""
    span = high - low
    if not span > 0 or not math.isfinite(span):
        return [low]
    raw = span / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(step * k, 12) for k in range(first, math.floor(high / step + 1e-9) + 1)]


class _Plot:
    """Axes, and what is drawn between them."""

    def __init__(self, x: tuple[float, float], y: tuple[float, float], x_label: str, y_label: str):
        self.x, self.y = _apart(x), _apart(y)
        self.parts: list[str] = []
        bottom, middle = HEIGHT - BOTTOM, (TOP + HEIGHT - BOTTOM) / 2
        for tick in ticks(*self.y):
            at = self.down(tick)
            self.add(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>')
            self.add(f'<text class="tick" x="{LEFT - 6}" y="{at + 4:.1f}" text-anchor="end">{_tick(tick)}</text>')
        for tick in ticks(*self.x):
            at = self.across(tick)
            self.add(f'<text class="tick" x="{at:.1f}" y="{bottom + 16}" text-anchor="middle">{_tick(tick)}</text>')
        self.add(f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{bottom}" y2="{bottom}"/>')
        self.add(
            f'<text class="label" x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 6}" text-anchor="middle">{escape(x_label)}</text>'
            f'<text class="label" transform="translate(11 {middle}) rotate(-90)" text-anchor="middle">{escape(y_label)}</text>'
        )

    def add(self, part: str) -> None:
        self.parts.append(part)

    def across(self, value: float) -> float:
        return LEFT + (value - self.x[0]) / (self.x[1] - self.x[0]) * (WIDTH - LEFT - RIGHT)

    def down(self, value: float) -> float:
        return HEIGHT - BOTTOM - (value - self.y[0]) / (self.y[1] - self.y[0]) * (HEIGHT - TOP - BOTTOM)

    def bar(self, low: float, high: float, bottom: float, top: float, kind: str, title: str) -> None:
        left, right, upper, lower = self.across(low), self.across(high), self.down(top), self.down(bottom)
        if top > bottom:
            self.add(
                f'<rect class="{kind}" x="{left + 0.4:.1f}" width="{max(right - left - 0.8, 0.6):.1f}" y="{upper:.1f}" '
                f'height="{lower - upper:.1f}"><title>{escape(title)}</title></rect>'
            )

    def svg(self, description: str) -> Markup:
        return Markup(
            f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(description)}">'
            + "".join(self.parts)
            + "</svg>"
        )


def histogram(
    values: np.ndarray, x_label: str, *, signed: bool, marked: np.ndarray | None = None, name: str = ""
) -> Markup:
    """Counts of rows by score; rows beyond the 0.5 % and 99.5 % points are in the outer bars.

    Args:
        values: ``[rows]``, finite. signed: color what is below 0.
        marked: ``[rows]`` bool, drawn in another color at the foot.
    """
    low, high = _apart((float(values.min()), float(values.max())))
    near, far = (float(x) for x in np.percentile(values, (0.5, 99.5)))
    if far > near and (high - low) > 2 * (far - near):
        low, high = near, far
    edges = np.linspace(low, high, BINS + 1)
    clipped = np.clip(values, low, high)
    counts = np.histogram(clipped, edges)[0]
    known = np.zeros(BINS, int) if marked is None else np.histogram(clipped[marked], edges)[0]
    plot = _Plot((low, high), (0, float(counts.max())), x_label, "rows")
    for left, right, count, some in zip(edges[:-1], edges[1:], counts, known, strict=True):
        span = f"{number(left)} to {number(right)}"
        kind = "bar below" if signed and right <= 1e-12 else "bar"
        plot.bar(left, right, some, count, kind, f"{count} rows from {span}")
        plot.bar(left, right, 0, some, "bar marked", f"{some} of {count} rows from {span} are known label errors")
    if low < 0 < high:
        at = plot.across(0)
        plot.add(f'<line class="zero" x1="{at:.1f}" x2="{at:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>')
    return plot.svg(
        f"Histogram of {len(values)} scores{f' of {name}' if name else ''}: median {number(float(np.median(values)))}, from "
        f"{number(float(values.min()))} to {number(float(values.max()))}."
    )


def kept_and_dropped(edges: Sequence[float], bins: Sequence[Sequence[int]], name: str) -> Markup:
    """Kept rows at the foot of each bar, dropped ones on top; ``bins`` are pairs (rows, kept rows)."""
    plot = _Plot((edges[0], edges[-1]), (0, max([count for count, _ in bins] + [1])), "score", "rows")
    for left, right, (count, kept) in zip(edges[:-1], edges[1:], bins, strict=True):
        span = f"{number(left)} to {number(right)}"
        plot.bar(left, right, 0, kept, "bar", f"{kept} kept from {span}")
        plot.bar(left, right, kept, count, "bar dropped", f"{count - kept} dropped from {span}")
    total, kept = sum(count for count, _ in bins), sum(some for _, some in bins)
    return plot.svg(f"Histogram of scores of {name}: {kept} of {total} rows kept.")


def lines(series: Sequence[Series], x_label: str, y_label: str, description: str) -> Markup:
    """Lines with whiskers for intervals."""
    xs = [x for one in series for x in one.x]
    ys = [
        y
        for one in series
        for values in (one.y, one.low or (), one.high or ())
        for y in values
        if y is not None and math.isfinite(y)
    ]
    low, high = (min(ys), max(ys)) if ys else (0.0, 1.0)
    room = 0.06 * (high - low)
    first, last = _apart((min(xs, default=0), max(xs, default=1)))
    beside = 0.05 * (last - first) if any(one.low is not None for one in series) else 0.015 * (last - first)
    plot = _Plot((first - beside, last + beside), (low - room, high + room), x_label, y_label)
    several = sum(one.low is not None for one in series)
    for turn, one in enumerate(series):
        aside = DODGE * (turn - (several - 1) / 2) if several else 0.0
        finite = [(x, y) for x, y in zip(one.x, one.y, strict=True) if math.isfinite(y)]
        points = [(plot.across(x) + aside, plot.down(y)) for x, y in finite]
        color = f"s{one.place % COLORS}"
        if one.low is not None and one.high is not None:
            for x, least, most in zip(one.x, one.low, one.high, strict=True):
                if least is not None and most is not None and math.isfinite(least) and math.isfinite(most):
                    at = plot.across(x) + aside
                    plot.add(
                        f'<line class="whisker {color}" x1="{at:.1f}" x2="{at:.1f}" y1="{plot.down(least):.1f}" y2="{plot.down(most):.1f}"/>'
                    )
        if one.line and points:
            path = [f"M{points[0][0]:.1f} {points[0][1]:.1f}"]
            for x, y in points[1:]:
                path.append(f"H{x:.1f}V{y:.1f}" if one.step else f"L{x:.1f} {y:.1f}")
            plot.add(f'<path class="line {color}" d="{"".join(path)}"/>')
        if one.dots:
            for (x, y), (at, value) in zip(points, finite, strict=True):
                title = escape(f"{one.name}: {number(value)} at {number(at)}")
                plot.add(_marker(x, y, one.place, color, title, small=not one.line))
    return plot.svg(description)


def swatch(place: int, kind: str = "") -> Markup:
    """A sample of a series' color and marker, or of a bar's color, for a legend."""
    if kind:
        round_ = kind.endswith(" round")
        shape = 'cx="10" cy="7" r="3"' if round_ else 'x="1" y="3" width="18" height="8"'
        inside = f'<{"circle" if round_ else "rect"} class="{kind}" {shape}/>'
    else:
        color = f"s{place % COLORS}"
        inside = f'<path class="line {color}" d="M0 7H20"/>' + _marker(10, 7, place, color, Markup(""))
    return Markup(f'<svg class="swatch" viewBox="0 0 20 14" aria-hidden="true">{inside}</svg>')


def _marker(x: float, y: float, place: int, color: str, title: Markup, small: bool = False) -> str:
    inside = f"<title>{title}</title>" if title else ""
    shape = place % 4
    if small:
        return f'<circle class="dot faint {color}" cx="{x:.1f}" cy="{y:.1f}" r="2.2">{inside}</circle>'
    if shape == 0:
        return f'<circle class="dot {color}" cx="{x:.1f}" cy="{y:.1f}" r="3.4">{inside}</circle>'
    if shape == 1:
        return f'<rect class="dot {color}" x="{x - 3.2:.1f}" y="{y - 3.2:.1f}" width="6.4" height="6.4">{inside}</rect>'
    corners = ((0, -4.4), (4.4, 0), (0, 4.4), (-4.4, 0)) if shape == 2 else ((0, -4.2), (4.2, 3.4), (-4.2, 3.4))
    path = "L".join(f"{x + a:.1f} {y + b:.1f}" for a, b in corners)
    return f'<path class="dot {color}" d="M{path}Z">{inside}</path>'


def _apart(limits: tuple[float, float]) -> tuple[float, float]:
    """Limits that are not the same."""
    low, high = limits
    if high - low > 1e-12 * max(abs(low), abs(high), 1e-300):
        return low, high
    room = abs(low) * 0.1 or 1.0
    return low - room, high + room


def _tick(value: float) -> str:
    if value and abs(value) >= 10_000:
        for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
            if abs(value) >= size:
                return f"{value / size:g}{letter}".replace("-", "−")
    return f"{value:.6g}".replace("-", "−")
