"""A journal that remembers."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from backup_core.domain.events import Event


class MemoryJournal:
    """Keeps what was told, in order."""

    def __init__(self) -> None:
        """Nothing was told yet."""
        self.events: list[Event] = []

    def write(self, event: Event) -> None:
        """Remember the event."""
        self.events.append(event)
