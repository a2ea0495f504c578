"""Events as lines of the log: the Functions host carries them to Application Insights, as rows of `traces`."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from backup_core.domain.events import Event

log = logging.getLogger("pagekeeper")
LEVELS = {"info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}


class LogJournal:
    """The journal that writes to the log."""

    def write(self, event: Event) -> None:
        """Write the event's line at its level."""
        log.log(LEVELS[event.severity], "%s", event.line)
