"""The status of a disk, derived in one place for the API's answers, the watch and the alerts."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Literal

from backup_core.domain.naming import snapshot_time, window_id
from backup_core.domain.windows import overdue_since, window_begun_by

if TYPE_CHECKING:
    from collections.abc import Sequence

    from backup_core.domain.records import Head, Registration, Run

Protection = Literal["protected", "stopped", "unprotected"]
CLOCK_TOLERANCE = timedelta(minutes=5)
"""Difference between the clocks of two workers that is no fault of either."""
RUNS_LOOKED_AT = 20
"""Newest runs among which the last one that was not skipped is looked for."""


@dataclass(frozen=True)
class DiskStatus:
    """A disk's protection at a moment."""

    protection: Protection
    newest_point: str
    """Of the disk's present source, as all that follows."""
    last_success: datetime | None
    """When the newest restore point was taken: the disk can be restored as of then."""
    rpo_seconds: int | None
    """Age of that moment: the data of this time would be lost if the disk were lost now."""
    overdue: bool
    """No restore point was taken since the window before the present one, or the machine's disk is not backed up at all."""
    window_without_run: datetime | None
    """The latest window whose run must have begun by now and has not: the timer did not work."""
    window_run: Run | None
    """The timer's run of that window or of a later one."""
    last: Run | None
    """The backup that ended last, of those that were not skipped."""


def status_of(registration: Registration, head: Head | None, runs: Sequence[Run], schedule: str, now: datetime) -> DiskStatus:
    """The disk's status from its rows; `runs` are the newest ones, newest first."""
    # Restore points of a former source say nothing about the present one.
    pair = head.pair if head and head.source == registration.source else None
    taken = snapshot_time(pair.source_snapshot) if pair else None
    ended = (run for run in runs if run.operation == "backup" and run.ended_for_good and run.state != "Skipped")
    backups = (run for run in ended if run.created >= registration.since.replace(microsecond=0))
    window = window_begun_by(schedule, now)
    # Runs are listed in the order of their requests, to the second, and not of their ends.
    last = max(backups, key=lambda run: _ended_by(run, now), default=None)
    protection: Protection = (
        "stopped" if not registration.protected else "unprotected" if registration.unprotected else "protected"
    )
    is_served = protection != "protected" or registration.since > window or any(_began_since(run, window) for run in runs)
    return DiskStatus(
        protection=protection,
        newest_point=pair.point if pair else "",
        last_success=taken,
        rpo_seconds=max(0, int((now - taken).total_seconds())) if taken else None,
        overdue=registration.protected
        and (bool(registration.unprotected) or (taken or registration.since) < overdue_since(schedule, now)),
        window_without_run=None if is_served else window,
        window_run=next((run for run in runs if run.window and _began_since(run, window)), None),
        last=last,
    )


def _ended_by(run: Run, now: datetime) -> tuple[bool, datetime]:
    """The sort key of a run: its end. One dated in the future, by a wrong clock, sorts before all others: it would hide every
    later run until that day.
    """
    moment = run.ended or run.created
    return moment <= now + CLOCK_TOLERANCE, moment


def _began_since(run: Run, window: datetime) -> bool:
    """Whether the run is a backup of `window` or a later one, or was requested since."""
    served = run.window >= window_id(window) if run.window else run.created >= window
    return run.operation == "backup" and served
