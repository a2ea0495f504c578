"""The in-memory ports' common parts: the service's clock, and the gate that every call passes."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta

Gate = Callable[[str], Awaitable[None]]
"""Called before and after the effect of a port call with its name; may wait, and may raise to disturb the call."""


async def _open(_: str) -> None:
    return


class InMemoryServices:
    """Time and disturbance. Every effect takes a tick of 100 ns, so that no two have the same time."""

    def __init__(self, before: Gate = _open, after: Gate = _open) -> None:
        """`before` runs ahead of each effect, `after` once it has happened and before its reply."""
        self.before, self.after = before, after
        self.ticks = 0
        self.started = datetime(2026, 1, 1, tzinfo=UTC)

    def tick(self) -> int:
        """The next tick."""
        self.ticks += 1
        return self.ticks

    @property
    def now(self) -> datetime:
        """The service's time."""
        return self.started + timedelta(microseconds=self.ticks)

    def pass_time(self, span: timedelta) -> None:
        """Let time pass for the services."""
        self.ticks += int(span / timedelta(microseconds=1))
