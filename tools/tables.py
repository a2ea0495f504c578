"""Tables of handwritten pages whose rows follow from the code."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def with_rows(text: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """The page with these rows in its table of those columns. Raises ValueError unless it has exactly one such table."""
    head = f"{_line(columns)}{'|---' * len(columns)}|\n"
    before, *rest = text.split(head)
    if len(rest) != 1:
        message = f"the page has {len(rest)} tables with the columns {', '.join(columns)}; expected one"
        raise ValueError(message)
    lines = rest[0].splitlines(keepends=True)
    kept = next((number for number, line in enumerate(lines) if not line.startswith("|")), len(lines))
    return before + head + "".join(map(_line, rows)) + "".join(lines[kept:])


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |\n"
