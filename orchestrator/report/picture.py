"""The learning curve of a run as a picture, an SVG file that needs nothing else, for pages that only take pictures."""

from __future__ import annotations

import math
from html import escape
from typing import TYPE_CHECKING

from orchestrator.report.charts import thinned
from orchestrator.report.formats import number, ticks

if TYPE_CHECKING:
    from collections.abc import Sequence

    from orchestrator.report.run_record import RunRecord

_WIDTH, _HEIGHT = 640, 320
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 16, 40, 44  # margins
_RETURN, _SCORE, _INK, _GRID = "#3366cc", "#c2410c", "#333333", "#dddddd"


def learning_curve(run: RunRecord, title: str, until: float = math.inf) -> str:
    """The mean return of the last 100 episodes over agent steps, with a dot for each evaluation, as the text of an SVG.

    `until` is the agent step at which the picture ends. Empty where there is nothing to draw: no episode has ended.
    """
    returns = [point for point in run.points("agent_step", "rollout/recent_return") if point[0] <= until]
    scores = [point for point in run.evaluations() if point[0] <= until]
    if not returns:
        return ""
    values = [value for _, value in (*returns, *scores)]
    low, high = min(values), max(values)
    margin = 0.05 * (high - low) or max(1.0, abs(high)) * 0.05
    low, high, last = low - margin, high + margin, max(step for step, _ in (*returns, *scores)) or 1.0

    def across(step: float) -> float:
        return _LEFT + step / last * (_WIDTH - _LEFT - _RIGHT)

    def down(value: float) -> float:
        return _HEIGHT - _BOTTOM - (value - low) / (high - low) * (_HEIGHT - _TOP - _BOTTOM)

    shapes = [f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="white"/>', _text(_LEFT, 22, title, size=14)]
    for value in ticks(low, high):
        shapes.append(_line(_LEFT, down(value), _WIDTH - _RIGHT, down(value)))
        shapes.append(_text(_LEFT - 6, down(value) + 4, number(value), anchor="end"))
    below = _HEIGHT - _BOTTOM + 16
    shapes += [_text(across(step), below, number(step), anchor="middle") for step in ticks(0.0, last)]
    shapes.append(_text(_WIDTH - _RIGHT, _HEIGHT - 8, "agent steps", anchor="end"))
    shapes.append(_text(_LEFT, _HEIGHT - 8, "mean return of the last 100 episodes", color=_RETURN))
    shapes.append(_path([(across(step), down(value)) for step, value in thinned(returns)]))
    if scores:
        shapes.append(_text(_LEFT + 240, _HEIGHT - 8, "evaluations", color=_SCORE))
        shapes += [f'<circle cx="{across(x):.1f}" cy="{down(y):.1f}" r="3" fill="{_SCORE}"/>' for x, y in scores]
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img"'
    return "\n".join([f'{head} font-family="sans-serif" aria-label="{escape(title)}">', *shapes, "</svg>", ""])


def _text(x: float, y: float, text: str, *, size: int = 11, anchor: str = "start", color: str = _INK) -> str:
    place = f'x="{x:.1f}" y="{y:.1f}"'
    return f'<text {place} font-size="{size}" text-anchor="{anchor}" fill="{color}">{escape(text)}</text>'


def _line(x: float, y: float, to_x: float, to_y: float) -> str:
    return f'<line x1="{x:.1f}" y1="{y:.1f}" x2="{to_x:.1f}" y2="{to_y:.1f}" stroke="{_GRID}"/>'


def _path(places: Sequence[tuple[float, float]]) -> str:
    points = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    return f'<polyline points="{points}" fill="none" stroke="{_RETURN}" stroke-width="2" stroke-linejoin="round"/>'
