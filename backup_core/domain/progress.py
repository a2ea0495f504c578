"""Percent of a run: it never decreases, and is 100 only after the run has succeeded."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datetime import datetime

    from backup_core.domain.records import Phase

_BACKUP_SPAN = {
    "waiting": (0, 0),
    "preparing": (0, 1),
    "snapshot": (1, 2),
    "planning": (2, 4),
    "copying": (4, 84),
    "verifying": (84, 96),
    "committing": (96, 98),
    "cleaning": (98, 99),
}
_RESTORE_SPAN = {
    "copying": (4, 84),
    "verifying": (84, 96),
    "importing": (96, 97),
    "queued": (97, 97),
    "comparing": (97, 97),
    "repointing": (97, 98),
    "undoing": (98, 98),
    "promoting": (98, 98),
    "adopting": (98, 99),
}
_PHASE_SPAN = _BACKUP_SPAN | _RESTORE_SPAN
"""Each phase's share of a round; verification has its own, so that a run never shows 100 while it continues."""


_WORK = (4, 96)
"""The share of copying and verifying together."""


def verifying_from(copies: int, reads: int) -> int:
    """The percent at which verifying begins, when copying takes so many requests and verifying so many. Each is taken to
    cost the same; either phase has a tenth of the work at least.
    """
    start, end = _WORK
    share = copies / (copies + reads) if copies + reads else 0.5
    return int(start + (end - start) * min(0.9, max(0.1, share)))


def is_behind(present: Phase, percent_so_far: int, reported: Phase) -> bool:
    """Whether a report is of an earlier phase than the run's row shows. Then it is late, or from a second life of work that was
    further already. The first of two rounds ends with "cleaning" below 50 percent; after it the phases begin again.
    """
    if present == "done" or (present == "cleaning" and percent_so_far < HALF):
        return False
    order = list(_PHASE_SPAN)
    return order.index(reported) < order.index(present)


def hears_of_cancel(present: Phase, percent_so_far: int, reported: Phase) -> bool:
    """Whether the reporting work gets the request to cancel. Work that is behind does not get it: it would abandon what an
    earlier life has begun, such as a change of a machine. Once it is as far, it undoes that too.
    """
    return not is_behind(present, percent_so_far, reported) or (present, reported) == ("undoing", "repointing")


def percent(phase: str, done: int, total: int, before: int, *, rounds_left: int = 0, verifying: int = 0) -> int:
    """Percent of the run in `phase`, of which `done` of `total` is complete; at least `before`, at most 99.

    A run that first finishes an interrupted target has a second round ahead (`rounds_left` 1): the first fills half.
    `verifying` is the percent at which that phase begins, where it is known.
    """
    start, end = _PHASE_SPAN[phase]
    if verifying and phase == "copying":
        end = verifying
    elif verifying and phase == "verifying":
        start = verifying
    share = min(done / total, 1.0) if total > 0 else 0.0
    value = int(start + (end - start) * share)
    return min(99, max(before, value // (1 + rounds_left)))


HALF = 50
TELLING_PERCENT = 5
"""Below this percentage the elapsed time gives no estimate of the remaining time."""


def eta_seconds(started: datetime | None, now: datetime, percent: int) -> int | None:
    """Seconds that the run still takes at its present rate; None while that is unknown. Phases differ, so it is a guess."""
    if started is None or percent < TELLING_PERCENT:
        return None
    return max(0, int((now - started).total_seconds() / percent * (100 - percent)))
