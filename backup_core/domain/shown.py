"""Texts and statuses of bounded length, with a mark where they were cut."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

CUT = "…"
FAILURE_CHARS_MAX = 500
"""Of a failure's text. Durable Functions appends kilobytes of a .NET exception to what the failed activity said."""
NAMED_MAX = 20
"""Failures that one text names."""
STATUS_BYTES_MAX = 8 * 1024
"""Of a custom status, as JSON in UTF-16. Above 16 KiB Durable Functions fails the orchestration."""
_STEPS = ((FAILURE_CHARS_MAX, NAMED_MAX), (100, 10), (40, 3))


def shortened(text: str, chars_max: int = FAILURE_CHARS_MAX) -> str:
    """The text, or its beginning and a mark where it was cut: at most `chars_max` characters."""
    return text if len(text) <= chars_max else text[: chars_max - len(CUT)] + CUT


def named(failures: Sequence[str]) -> str:
    """The failures in one text: NAMED_MAX of them, each shortened, and how many more there are."""
    more = [f"and {len(failures) - NAMED_MAX} more"] if len(failures) > NAMED_MAX else []
    return "; ".join([shortened(one) for one in failures[:NAMED_MAX]] + more)


def bounded(status: Mapping[str, Any]) -> dict[str, Any]:
    """The custom status, its texts and lists cut until it fits into STATUS_BYTES_MAX."""
    # G55: a longer status would fail the orchestration.
    for chars_max, items_max in _STEPS:
        shown = {name: _cut(value, chars_max, items_max) for name, value in status.items()}
        if len(json.dumps(shown, ensure_ascii=False).encode("utf-16-le", "surrogatepass")) <= STATUS_BYTES_MAX:
            return shown
    return {"phase": shortened(str(status.get("phase", "")), 40), "cut": "the rest is too long to be shown"}


def _cut(value: Any, chars_max: int, items_max: int) -> Any:  # noqa: ANN401  any JSON
    if isinstance(value, str):
        return shortened(value, chars_max)
    if isinstance(value, dict):
        return {name: _cut(one, chars_max, items_max) for name, one in value.items()}
    if isinstance(value, list | tuple):
        kept = [_cut(one, chars_max, items_max) for one in value[:items_max]]
        return [*kept, f"{CUT} and {len(value) - items_max} more"] if len(value) > items_max else kept
    return value
