"""Bars beside each other as SVG."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

FOLDER = Path(__file__).parents[1] / "docs" / "pictures"
_FONT = 'font-family="Helvetica, Arial, sans-serif" font-size="12"'
_LEFT, _WIDTH, _BAR, _GAP, _TOP = 250, 430, 16, 8, 40


@dataclass(frozen=True)
class Bar:
    """One bar: a share of 1 is the whole width but for a tenth."""

    label: str
    share: float
    met: bool


def drawn(title: str, bars: Sequence[Bar], goal: float, goal_label: str) -> str:
    """The picture: bars, and a line at the goal."""
    unit, height = _WIDTH / 1.1, _TOP + len(bars) * (_BAR + _GAP) + 30
    at = _LEFT + goal * unit
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_LEFT + _WIDTH + 60} {height}" {_FONT}>',
        f'<rect width="100%" height="100%" fill="#ffffff"/><text x="10" y="22" font-size="14">{escape(title)}</text>',
    ]
    for number, bar in enumerate(bars):
        y = _TOP + number * (_BAR + _GAP)
        width, colour = bar.share * unit, "#2f6f9f" if bar.met else "#b3472d"
        lines.append(
            f'<text x="{_LEFT - 8}" y="{y + 12}" text-anchor="end">{escape(bar.label)}</text>'
            f'<rect x="{_LEFT}" y="{y}" width="{width:.1f}" height="{_BAR}" fill="{colour}"/>'
            f'<text x="{_LEFT + width + 6:.1f}" y="{y + 12}">{bar.share:.1%}</text>'
        )
    lines.append(
        f'<line x1="{at:.1f}" y1="{_TOP - 6}" x2="{at:.1f}" y2="{height - 24}" stroke="#222222" stroke-dasharray="4 3"/>'
        f'<text x="{at:.1f}" y="{height - 8}" text-anchor="middle">{escape(goal_label)}</text>'
    )
    return "\n".join([*lines, "</svg>", ""])
