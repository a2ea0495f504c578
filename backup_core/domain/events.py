"""Events: one JSON line each, in the log. Alerts and the workbook read these lines and nothing else.

A field that a query names is a field of one of these classes; the tests hold `infra/` to that.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, ClassVar

from backup_core import __version__
from backup_core.domain.redaction import redacted

if TYPE_CHECKING:
    from backup_core.domain.records import Run

PREFIX = "pagekeeper "
"""Begins each event's line: `traces | where message startswith 'pagekeeper '`."""


@dataclass(frozen=True)
class Event:
    """An event of the log. Times are ISO 8601, durations seconds, amounts bytes; null means unknown."""

    event: ClassVar[str]
    """The value of the field `event`."""
    level: ClassVar[str] = "info"

    @property
    def line(self) -> str:
        """The event as its line in the log, with the app's version, free of secrets. Each value is redacted by itself: in the
        whole line a code would look like a secret.
        """
        shown = {name: redacted(value) if isinstance(value, str) else value for name, value in asdict(self).items()}
        fields = {"event": self.event, "version": __version__, **shown}
        return PREFIX + json.dumps(fields, ensure_ascii=True, separators=(",", ":"))

    @property
    def severity(self) -> str:
        """`info`, `warning` or `error`: the line's level."""
        return self.level


@dataclass(frozen=True)
class PhaseBegun(Event):
    """A run began another phase, or needs attention."""

    event: ClassVar[str] = "phase"

    disk: str
    run: str
    operation: str
    phase: str
    percent: int
    bytes_total: int
    bytes_done: int
    attention: str

    @property
    def severity(self) -> str:
        """A warning when somebody should look."""
        return "warning" if self.attention else "info"

    @classmethod
    def of(cls, run: Run) -> PhaseBegun:
        """From the run's row."""
        return cls(
            disk=run.disk,
            run=run.run,
            operation=run.operation,
            phase=run.phase,
            percent=run.percent,
            bytes_total=run.bytes_total,
            bytes_done=run.bytes_done,
            attention=attention_of(run),
        )


@dataclass(frozen=True)
class RunEnded(Event):
    """A run has ended. Emitted by the writer of its row, or by the watch when that writer died before it."""

    event: ClassVar[str] = "run"

    disk: str
    run: str
    operation: str
    state: str
    code: str
    message: str
    kind: str
    trigger: str
    window: str
    seconds: int | None
    bytes_done: int
    bytes_streamed: int
    ranges: int
    requests: int
    retries: int
    points: int
    expired: int
    churn_ratio: float | None
    """An increment's changed bytes as a multiple of what is usual for the disk."""

    @property
    def severity(self) -> str:
        """An error for a failed run, a warning for a skipped one."""
        return {"Failed": "error", "Skipped": "warning"}.get(self.state, "info")

    @classmethod
    def of(cls, run: Run, churn: float | None) -> RunEnded:
        """From the run's row."""
        seconds = int((run.ended - run.started).total_seconds()) if run.ended and run.started else None
        return cls(
            disk=run.disk,
            run=run.run,
            operation=run.operation,
            state=run.state,
            code=run.error.code if run.error else "",
            message=run.error.message if run.error else run.reason,
            kind=run.kind,
            trigger=run.trigger,
            window=run.window,
            seconds=seconds,
            bytes_done=run.bytes_done,
            bytes_streamed=run.bytes_streamed,
            ranges=run.ranges_total,
            requests=run.requests_done,
            retries=run.retries,
            points=len(run.points),
            expired=len(run.expired),
            churn_ratio=churn,
        )


@dataclass(frozen=True)
class RunWarned(Event):
    """A failure after a run had succeeded: of cleaning, of retention, of the release of a lease; or a failed duty of the
    night, with its orchestration for a run. Emitted by the last step, and again by each repeat of it.
    """

    event: ClassVar[str] = "warning"
    level: ClassVar[str] = "warning"

    disk: str
    run: str
    message: str


@dataclass(frozen=True)
class PointsLost(Event):
    """Backup snapshots of restore points are gone, and no retention has deleted them. Emitted by the night that found it,
    before the points are marked `lost`: at least once, and again only where that night was interrupted.
    """

    event: ClassVar[str] = "lost"
    level: ClassVar[str] = "error"

    disk: str
    run: str
    """The night's orchestration."""
    points: int
    oldest: str
    newest: str
    """Ids of the oldest and the newest of them."""


@dataclass(frozen=True)
class DiskSeen(Event):
    """The status of a disk, by the catalogue. Emitted for each registered disk by every watch."""

    event: ClassVar[str] = "disk"

    disk: str
    protection: str
    newest_point: str
    last_success: str
    rpo_seconds: int | None
    overdue: bool
    window_without_run: str
    """The window whose run should have begun half an hour ago and did not, if any."""
    last_status: str
    last_code: str
    quarantined: bool
    at_work: str
    """The run that has not ended, if any."""
    silent_seconds: int | None
    """Seconds since its row changed last."""
    attention: str

    @property
    def severity(self) -> str:
        """A warning when something has to be done."""
        wrong = self.overdue or self.window_without_run or self.quarantined or self.protection == "unprotected"
        return "warning" if wrong else "info"


@dataclass(frozen=True)
class FleetSeen(Event):
    """A watch has completed: the app's heartbeat. Its absence is an alert of its own."""

    event: ClassVar[str] = "fleet"

    disks: int
    protected: int
    overdue: int
    unseen: int
    """Disks whose state could not be read; they have no line of their own."""
    why: str
    """The first of them, and why."""

    @property
    def severity(self) -> str:
        """A warning when not every disk was seen."""
        return "warning" if self.unseen else "info"


@dataclass(frozen=True)
class DiskCleaned(Event):
    """Housekeeping of a disk: the leftovers that were removed, and whether its registration was corrected."""

    event: ClassVar[str] = "cleanup"

    disk: str
    points: int
    snapshots: int
    blobs: int
    documents: int
    pins: int
    runs: int
    registrations: int


def attention_of(run: Run) -> str:
    """Why a person should look at the run, which continues; empty without a reason."""
    return run.restore.attention if run.restore else ""


EVENTS: tuple[type[Event], ...] = (PhaseBegun, RunEnded, RunWarned, PointsLost, DiskSeen, FleetSeen, DiskCleaned)
