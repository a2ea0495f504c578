"""Where the app tells what happened."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from backup_core.domain.events import Event


class Journal(Protocol):
    """Where the app tells what happened. Telling never fails and never waits."""

    def write(self, event: Event) -> None:
        """Tell the event."""
