"""docs/performance.md: sections, each written by one measurement."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

PAGE = Path(__file__).parents[1] / "docs" / "performance.md"
HEAD = """# Performance

Written by `make bench`. Nothing of this was measured in Azure. Seconds are of this machine; ratios
hold within one run, counts hold anywhere.
"""


@dataclass(frozen=True)
class Section:
    """The title, the text and the verdict of one measurement."""

    title: str
    text: str
    met: bool
    """Whether every figure is at its goal."""


def words(text: str) -> str:
    """The paragraph, wrapped as the handbook's."""
    return textwrap.fill(" ".join(text.split()), 128)


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [f"| {' | '.join(row)} |" for row in (columns, *rows)]
    lines.insert(1, "|---" * len(columns) + "|")
    return "\n".join(lines)


def verdict(*, met: bool) -> str:
    """Whether a goal was reached, for a table."""
    return "met" if met else "missed"


def page(sections: Iterable[Section]) -> str:
    """The whole page."""
    return "\n".join([HEAD, *(f"## {one.title}\n\n{one.text}\n" for one in sections)])
