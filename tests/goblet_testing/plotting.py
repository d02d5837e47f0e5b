"""Plots as SVG, of the two kinds that the benches need: bars and lines, on a logarithmic scale."""

import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape

_COLOURS = ("#0b6e99", "#d9822b", "#5a9a4a", "#a23b72", "#6b6b6b", "#b8a100", "#3a3a9a")
_LEFT, _RIGHT, _TOP, _ROW = 150, 90, 64, 16
_WIDTH, _HEIGHT = 760, 420


def bars(title: str, unit: str, groups: Mapping[str, Mapping[str, float]]) -> str:
    """Return an SVG of horizontal bars: a group a row block, in it a bar a series, with its value.

    Values of 0 and less have no place on the scale and are left out.
    """
    values = [value for group in groups.values() for value in group.values() if value > 0]
    scale = _Scale(values, _LEFT, _WIDTH - _RIGHT)
    names = _series(groups.values())
    parts = [_text(_LEFT, 20, f"{title} [{unit}]", weight="bold"), *_legend(names)]
    y = _TOP
    for label, group in groups.items():
        parts.append(_text(_LEFT - 8, y + _ROW * len(group) / 2 + 4, label, anchor="end"))
        for name, value in group.items():
            if value > 0:
                width = max(1.0, scale.at(value) - _LEFT)
                colour = _colour(names, name)
                parts.append(
                    f'<rect x="{_LEFT}" y="{y}" width="{width:.1f}" height="{_ROW - 3}" '
                    f'fill="{colour}"/>'
                )
                parts.append(_text(_LEFT + width + 4, y + _ROW - 5, f"{value:.3g}", size=10))
            y += _ROW
        y += _ROW // 2
    return _svg(parts, height=y + 8)


def lines(
    title: str, x_unit: str, unit: str, series: Mapping[str, Sequence[tuple[float, float]]]
) -> str:
    """Return an SVG of one line a series, both scales logarithmic."""
    points = [(x, y) for line in series.values() for x, y in line if x > 0 and y > 0]
    across = _Scale([x for x, _ in points], _LEFT, _WIDTH - _RIGHT)
    up = _Scale([y for _, y in points], _HEIGHT - 40, _TOP)
    names = list(series)
    parts = [_text(_LEFT, 20, f"{title} [{unit}] by {x_unit}", weight="bold"), *_legend(names)]
    parts += [_text(across.at(x), _HEIGHT - 20, f"{x:g}", anchor="middle") for x in across.ticks]
    for y in up.ticks:
        parts.append(_text(_LEFT - 8, up.at(y) + 4, f"{y:g}", anchor="end"))
        parts.append(
            f'<line x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{up.at(y):.1f}" y2="{up.at(y):.1f}" '
            'stroke="#ddd"/>'
        )
    for name, line in series.items():
        places = [(across.at(x), up.at(y)) for x, y in line if x > 0 and y > 0]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        colour = _colour(names, name)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in places]
    return _svg(parts, height=_HEIGHT)


class _Scale:
    """Powers of ten that hold some values, laid between two places."""

    def __init__(self, values: Sequence[float], first: float, last: float) -> None:
        lowest, highest = (min(values), max(values)) if values else (1.0, 10.0)
        self._low = math.floor(math.log10(lowest))
        self._high = max(self._low + 1, math.ceil(math.log10(highest)))
        self._first, self._last = first, last

    @property
    def ticks(self) -> list[float]:
        return [10.0**power for power in range(self._low, self._high + 1)]

    def at(self, value: float) -> float:
        share = (math.log10(value) - self._low) / (self._high - self._low)
        return self._first + share * (self._last - self._first)


def _series(groups: Iterable[Mapping[str, float]]) -> list[str]:
    return list(dict.fromkeys(name for group in groups for name in group))


def _colour(names: Sequence[str], name: str) -> str:
    return _COLOURS[names.index(name) % len(_COLOURS)]


def _legend(names: Sequence[str]) -> list[str]:
    parts = []
    x = float(_LEFT)
    for name in names:
        parts.append(f'<rect x="{x}" y="34" width="10" height="10" fill="{_colour(names, name)}"/>')
        parts.append(_text(x + 14, 43, name, size=11))
        x += 26 + 6.2 * len(name)
    return parts


def _text(
    x: float, y: float, text: str, *, anchor: str = "start", size: int = 12, weight: str = "normal"
) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" text-anchor="{anchor}" '
        f'font-weight="{weight}">{escape(text)}</text>'
    )


def _svg(parts: Sequence[str], *, height: float) -> str:
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{height:.0f}" '
        'font-family="sans-serif">'
    )
    return "\n".join([head, '<rect width="100%" height="100%" fill="white"/>', *parts, "</svg>\n"])
