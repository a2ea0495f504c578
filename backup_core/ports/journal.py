"""The journal of events."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from backup_core.domain.events import Event


class Journal(Protocol):
    """The log of the app's events. A write never fails and never waits."""

    def write(self, event: Event) -> None:
        """Emit the event."""
