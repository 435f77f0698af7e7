"""Charts as HTML: SVG for the lines, stretched to the width there is, and ordinary text for everything to read, so
that it keeps its size on a narrow page. Without scripts; `hover.js` adds the values under the pointer."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape

from orchestrator.report.formats import duration, number, ticks, time_unit

POINTS = 400
"""Most points of a curve; more would not be seen."""
_HEIGHT = 1000.0  # of the drawing's own coordinates, as is its width
_NAMED, _WIDE = 5, 16
"""Percent of a time line from which a bar has room for its name, on a wide page and on any."""


@dataclass(frozen=True, slots=True)
class Axis:
    """`scale` turns a value into what is shown of it, in `unit`."""

    label: str
    unit: str = ""
    scale: float = 1.0
    from_zero: bool = False

    @property
    def title(self) -> str:
        return f"{self.label} ({self.unit})" if self.unit else self.label


def time_axis(label: str, greatest: float, *, from_zero: bool = False) -> Axis:
    """An axis of seconds, in the unit that suits the greatest of them."""
    unit, length = time_unit(greatest)
    return Axis(label, unit, 1 / length, from_zero)


@dataclass(frozen=True, slots=True)
class Series:
    """A curve; `color` is the name of a CSS variable. `faint` is drawn behind, and not named in the legend."""

    name: str
    color: str
    points: Sequence[tuple[float, float]]
    faint: bool = False
    dots: bool = False


@dataclass(frozen=True, slots=True)
class _Scale:
    low: float
    high: float

    def place(self, value: float) -> float:
        return (value - self.low) / (self.high - self.low)


def thinned(points: Sequence[tuple[float, float]], most: int = POINTS) -> list[tuple[float, float]]:
    """The means of neighboring points where there are more than `most`."""
    size = math.ceil(len(points) / most)
    if size <= 1:
        return list(points)
    groups = [points[start : start + size] for start in range(0, len(points), size)]
    return [(sum(x for x, _ in group) / len(group), sum(y for _, y in group) / len(group)) for group in groups]


def line_chart(title: str, x_axis: Axis, y_axis: Axis, series: Sequence[Series], note: str = "") -> str:
    """A figure with one curve for each series; nothing where there is nothing to draw."""
    drawn = [
        (one, [(x * x_axis.scale, y * y_axis.scale) for x, y in thinned(one.points)]) for one in series if one.points
    ]
    if not drawn:
        return ""
    x_scale = _range([x for _, points in drawn for x, _ in points], from_zero=x_axis.from_zero, margin=0.0)
    y_scale = _range([y for _, points in drawn for _, y in points], from_zero=y_axis.from_zero, margin=0.06)
    shapes: list[str] = []
    for one, points in sorted(drawn, key=lambda pair: not pair[0].faint):
        places = [(_HEIGHT * x_scale.place(x), _HEIGHT * (1 - y_scale.place(y))) for x, y in points]
        kind, style = "faint" if one.faint else "line", f'style="stroke:var({one.color})"'
        if len(places) > 1:
            shapes.append(f'<path class="{kind}" {style} d="{_path(places)}"/>')
        if one.dots or len(places) == 1:  # a line of no length with round ends is a dot that is not stretched
            dots = " ".join(f"M{x:.1f} {y:.1f}h0" for x, y in places)
            shapes.append(f'<path class="{kind} dots" {style} d="{dots}"/>')
    hover = [
        {"name": one.name, "color": one.color, "points": _rounded(points)} for one, points in drawn if not one.faint
    ]
    legend = [(one.name, one.color) for one, _ in drawn if not one.faint]
    return _figure(title, note, x_axis, y_axis, x_scale, y_scale, shapes, hover, legend if len(legend) > 1 else [])


def area_chart(
    title: str, x_axis: Axis, y_axis: Axis, xs: Sequence[float], bands: Sequence[tuple[str, str, Sequence[float]]]
) -> str:
    """A figure with bands (name, color, values) stacked on each other."""
    columns = [(name, color, thinned(list(zip(xs, values, strict=True)))) for name, color, values in bands]
    places = [x * x_axis.scale for x, _ in columns[0][2]]
    if len(places) == 1:  # an area needs two sides
        places = [places[0] - 0.5, places[0] + 0.5]
        columns = [(name, color, points * 2) for name, color, points in columns]
    below = [0.0] * len(places)
    stacked: list[tuple[str, list[float], list[float]]] = []
    hover: list[dict[str, object]] = []
    for name, color, points in columns:
        values = [y * y_axis.scale for _, y in points]
        above = [low + value for low, value in zip(below, values, strict=True)]
        stacked.append((color, below, above))
        hover.append({"name": name, "color": color, "points": _rounded(list(zip(places, values, strict=True)))})
        below = above
    x_scale = _range(places, from_zero=False, margin=0.0)
    y_scale = _range(below, from_zero=True, margin=0.06)
    shapes: list[str] = []
    for color, low, high in stacked:
        outline = [*zip(places, high, strict=True), *reversed([*zip(places, low, strict=True)])]
        scaled = [(_HEIGHT * x_scale.place(x), _HEIGHT * (1 - y_scale.place(y))) for x, y in outline]
        shapes.append(f'<path class="band" style="fill:var({color})" d="{_path(scaled)}Z"/>')
    legend = [(name, color) for name, color, _ in columns]
    return _figure(title, "", x_axis, y_axis, x_scale, y_scale, shapes, hover, legend)


def _range(values: Sequence[float], *, from_zero: bool, margin: float) -> _Scale:
    low, high = min(values), max(values)
    if from_zero:
        low, high = min(low, 0.0), max(high, 0.0)
    if high == low:
        half = abs(high) * 0.1 or 1.0
        return _Scale(low - (0.0 if from_zero else half), high + half)
    room = (high - low) * margin
    return _Scale(low if from_zero and low == 0 else low - room, high + room)


def _path(places: Sequence[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in places)


def _rounded(points: Sequence[tuple[float, float]]) -> list[list[float]]:
    return [[float(f"{x:.6g}"), float(f"{y:.4g}")] for x, y in points]


def _figure(
    title: str,
    note: str,
    x_axis: Axis,
    y_axis: Axis,
    x_scale: _Scale,
    y_scale: _Scale,
    shapes: Sequence[str],
    hover: Sequence[Mapping[str, object]],
    legend: Sequence[tuple[str, str]],
) -> str:
    x_ticks, y_ticks = ticks(x_scale.low, x_scale.high, 6), ticks(y_scale.low, y_scale.high, 5)
    grid = "".join(
        f'<path class="grid" d="M0 {y:.1f}H{_HEIGHT:.0f}"/>'
        for y in (_HEIGHT * (1 - y_scale.place(tick)) for tick in y_ticks)
    )
    y_labels = "".join(
        f'<span style="bottom:{100 * y_scale.place(tick):.2f}%">{number(tick)}</span>' for tick in y_ticks
    )
    x_labels = "".join(f'<span style="left:{100 * x_scale.place(tick):.2f}%">{number(tick)}</span>' for tick in x_ticks)
    data = {
        "x": [x_scale.low, x_scale.high],
        "y": [y_scale.low, y_scale.high],
        "xName": x_axis.label,
        "xUnit": x_axis.unit,
        "yUnit": y_axis.unit,
        "series": hover,
    }
    return (
        f'<figure class="chart"><figcaption><h3>{escape(title)}</h3>'
        f"<p>{escape(y_axis.title)}{f'; {escape(note)}' if note else ''}</p>{_legend(legend)}</figcaption>"
        f'<div class="plot" role="img" aria-label="{escape(title)}"><div class="y-labels">{y_labels}</div>'
        f'<div class="canvas"><svg viewBox="0 0 {_HEIGHT:.0f} {_HEIGHT:.0f}" preserveAspectRatio="none" '
        f'aria-hidden="true">{grid}{"".join(shapes)}</svg></div>'
        f'<div class="x-labels">{x_labels}</div>'
        f'<script type="application/json">{_embedded(data)}</script></div>'
        f'<p class="x-title">{escape(x_axis.title)}</p></figure>'
    )


def _legend(entries: Sequence[tuple[str, str]]) -> str:
    if not entries:
        return ""
    items = "".join(f'<li><i style="background:var({color})"></i>{escape(name)}</li>' for name, color in entries)
    return f'<ul class="legend">{items}</ul>'


def _embedded(data: object) -> str:
    # Inside of a script element nothing is unescaped by HTML, but JSON's own escapes are.
    return json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")


@dataclass(frozen=True, slots=True)
class Piece:
    """A bar of a time line; `level` 1 is drawn inside of level 0. Times in seconds."""

    name: str
    color: str
    began: float
    ended: float
    level: int = 0


@dataclass(frozen=True, slots=True)
class Row:
    name: str
    pieces: Sequence[Piece] = field(default=())


def time_line(
    rows: Sequence[Row], began: float, ended: float, legend: Sequence[tuple[str, str]], marks: Sequence[float] = ()
) -> str:
    """Rows of bars between two moments, on one axis; `marks` are moments to draw a line at."""
    length = ended - began
    axis = time_axis("time since the first of these epochs began", length)

    def left(moment: float) -> float:
        return 100 * (min(max(moment, began), ended) - began) / length

    def bar(piece: Piece) -> str:
        start, width = left(piece.began), left(piece.ended) - left(piece.began)
        label = escape(piece.name) if width > _NAMED and not piece.level else ""
        kind = f"level-{piece.level}{' named' if label else ''}{' wide' if width > _WIDE else ''}"
        title = escape(f"{piece.name}: {duration(piece.ended - piece.began)}")
        return (
            f'<b class="{kind}" style="left:{start:.3f}%;width:{width:.3f}%;background:'
            f'var({piece.color})" title="{title}">{label}</b>'
        )

    lines = "".join(
        f'<div class="row"><span title="{escape(row.name)}">{escape(row.name)}</span><div class="lane">'
        f"{''.join(bar(piece) for piece in row.pieces if piece.ended >= began and piece.began <= ended)}</div></div>"
        for row in rows
    )
    shown = ticks(0, length * axis.scale, 6)
    labels = "".join(
        f'<span style="left:{100 * tick / (length * axis.scale):.2f}%">{number(tick)}</span>' for tick in shown
    )
    lines_down = "".join(f'<i style="left:{left(mark):.3f}%"></i>' for mark in marks)
    return (
        f'{_legend(legend)}<div class="time-line">{lines}<div class="row marks"><span></span>'
        f'<div class="lane">{lines_down}</div></div>'
        f'<div class="row axis"><span></span><div class="x-labels">{labels}</div></div></div>'
        f'<p class="x-title">{escape(axis.title)}</p>'
    )


def share_bar(label: str, parts: Sequence[tuple[str, str, float]], format_value: Callable[[float], str]) -> str:
    """One bar divided into parts (name, color, value), with the parts' shares below it."""
    whole = sum(value for _, _, value in parts)
    if whole <= 0:
        return ""
    shares = [(name, color, value, 100 * value / whole) for name, color, value in parts if value > 0]
    bars = "".join(
        f'<b style="width:{percent:.3f}%;background:var({color})" title="{escape(name)}: {format_value(value)}"></b>'
        for name, color, value, percent in shares
    )
    texts = "".join(
        f'<li><i style="background:var({color})"></i>{escape(name)} <em>{percent:.1f} %</em></li>'
        for name, color, _, percent in shares
    )
    return (
        f'<div class="share"><h4>{escape(label)}</h4><div class="bar">{bars}</div><ul class="legend">{texts}</ul></div>'
    )
