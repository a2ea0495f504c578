"""A journal that remembers."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from backup_core.domain.events import Event


class MemoryJournal:
    """A journal that keeps the events in order."""

    def __init__(self) -> None:
        """An empty journal."""
        self.events: list[Event] = []

    def write(self, event: Event) -> None:
        """Remember the event."""
        self.events.append(event)
