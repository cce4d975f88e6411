"""Accuracy against epsilon as an SVG drawing, for a page that loads nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

_WIDTH, _HEIGHT = 640.0, 320.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 52.0, 150.0, 18.0, 46.0
#: Colours of the first curves, in their order; a curve's name stands at its end too, so colour alone tells nothing.
_COLOURS = ("#9a6324", "#1d5fa8", "#5b7f3a", "#7a4b94")
_TICKS = (0.0, 0.25, 0.5, 0.75, 1.0)
_MARK = 5.0

Point = Mapping[str, Any]


def draw_curve(curves: Mapping[str, Sequence[Point]], *, robust: Point, chance: float, units: str) -> str:
    """The curves with their 95% intervals, and the suite's result at the threat model's epsilon as a diamond.

    :param curves: name -> points with ``epsilon``, ``accuracy`` and ``interval_95``, by rising epsilon
    :param robust: the point of the whole suite
    :param chance: the accuracy of a guess
    :param units: of epsilon
    """
    furthest = max(robust["epsilon"], *(point["epsilon"] for points in curves.values() for point in points))
    frame = _Frame(furthest)
    parts = [
        f'<svg viewBox="0 0 {_WIDTH:g} {_HEIGHT:g}" role="img" aria-label="Accuracy against epsilon" class="curve">',
        *_axes(frame, curves, units),
        _line(frame.x(0), frame.y(chance), frame.x(furthest), frame.y(chance), "chance"),
        _text(frame.x(furthest) + 8, frame.y(chance) + 4, "chance", "label"),
    ]
    for points, colour in zip(curves.values(), _COLOURS, strict=False):
        parts += _curve(frame, points, colour)
    parts += _labels(frame, curves)
    parts += _diamond(frame, robust)
    return "".join((*parts, "</svg>"))


class _Frame:
    """From epsilon and accuracy to places in the drawing."""

    def __init__(self, furthest: float) -> None:
        self.furthest = furthest

    def x(self, epsilon: float) -> float:
        return _LEFT + (_WIDTH - _LEFT - _RIGHT) * epsilon / self.furthest

    def y(self, accuracy: float) -> float:
        return _TOP + (_HEIGHT - _TOP - _BOTTOM) * (1 - accuracy)


def _axes(frame: _Frame, curves: Mapping[str, Sequence[Point]], units: str) -> list[str]:
    right = frame.x(frame.furthest)
    parts = []
    for tick in _TICKS:
        parts.append(_line(frame.x(0), frame.y(tick), right, frame.y(tick), "rule"))
        parts.append(_text(frame.x(0) - 8, frame.y(tick) + 4, f"{tick:.0%}", "tick end"))
    radii = sorted({point["epsilon"] for points in curves.values() for point in points})
    last = -_WIDTH
    for radius in radii:
        x = frame.x(radius)
        parts.append(_line(x, frame.y(0), x, frame.y(0) + 4, "axis"))
        # Radii may lie closer together than their numbers are wide.
        if x - last > 30:
            parts.append(_text(x, frame.y(0) + 18, f"{radius:g}", "tick middle"))
            last = x
    parts.append(_line(frame.x(0), frame.y(0), right, frame.y(0), "axis"))
    parts.append(_text((frame.x(0) + right) / 2, _HEIGHT - 8, f"epsilon ({units})", "title middle"))
    return parts


def _curve(frame: _Frame, points: Sequence[Point], colour: str) -> list[str]:
    upper = [(frame.x(point["epsilon"]), frame.y(point["interval_95"][1])) for point in points]
    lower = [(frame.x(point["epsilon"]), frame.y(point["interval_95"][0])) for point in points]
    middle = [(frame.x(point["epsilon"]), frame.y(point["accuracy"])) for point in points]
    return [
        f'<polygon points="{_pairs([*upper, *reversed(lower)])}" fill="{colour}" fill-opacity="0.13"/>',
        f'<polyline points="{_pairs(middle)}" fill="none" stroke="{colour}" stroke-width="2"/>',
        *(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.6" fill="{colour}"/>' for x, y in middle),
    ]


def _labels(frame: _Frame, curves: Mapping[str, Sequence[Point]]) -> list[str]:
    """Names of the curves, in the upper right corner, beside a sample of their line."""
    parts = []
    x = frame.x(frame.furthest) + 12
    for row, (name, colour) in enumerate(zip(curves, _COLOURS, strict=False)):
        y = _TOP + 12 + 20 * row
        parts.append(
            f'<line x1="{x:.1f}" y1="{y - 4:.1f}" x2="{x + 18:.1f}" y2="{y - 4:.1f}" stroke="{colour}" stroke-width="2"/>'
        )
        parts.append(_text(x + 24, y, f"{name}, PGD", "label"))
    y = _TOP + 12 + 20 * min(len(curves), len(_COLOURS))
    parts.append(_rhombus(x + 9, y - 4))
    parts.append(_text(x + 24, y, "whole suite", "label"))
    return parts


def _diamond(frame: _Frame, robust: Point) -> list[str]:
    x, (low, high) = frame.x(robust["epsilon"]), robust["interval_95"]
    return [
        _line(x, frame.y(low), x, frame.y(high), "whisker"),
        _rhombus(x, frame.y(robust["accuracy"])),
    ]


def _rhombus(x: float, y: float) -> str:
    corners = [(x, y - _MARK), (x + _MARK, y), (x, y + _MARK), (x - _MARK, y)]
    return f'<polygon points="{_pairs(corners)}" fill="#b3261e"/>'


def _line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" class="{kind}"/>'


def _text(x: float, y: float, text: str, kind: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" class="{kind}">{escape(text)}</text>'


def _pairs(points: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
