"""Bodies of requests and answers. Answers use camelCase names, as Azure's own do."""

from __future__ import annotations

from dataclasses import asdict
from datetime import datetime
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

from backup_core.domain.naming import snapshot_time
from backup_core.domain.records import Head, PointState, Policy, RestorePoint, Run
from backup_core.domain.windows import next_window, overdue_since

DESCRIPTION_LENGTH_MAX = 500
URL_LENGTH_MAX = 2048


class _Asked(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class RetentionAsked(_Asked):
    """Which restore points are kept: the newest `keepLast`, and all that are younger than `minAgeDays`."""

    keep_last: int = Field(alias="keepLast", ge=1, le=10_000)
    min_age_days: int = Field(default=0, alias="minAgeDays", ge=0, le=36_500)


class DiskAsked(_Asked):
    """PUT /disks/{disk}."""

    source: str = Field(min_length=1, max_length=URL_LENGTH_MAX)
    description: str = Field(default="", max_length=DESCRIPTION_LENGTH_MAX)
    verification: Literal["sampled", "full"] = "sampled"
    retention: RetentionAsked | None = None
    """Null keeps every restore point."""
    first_backup: bool = Field(default=False, alias="firstBackup")
    """Back up at once if the disk has no restore point yet."""


class BackupAsked(_Asked):
    """POST /disks/{disk}/backups."""

    kind: Literal["auto", "full"] = "auto"


class RebuildAsked(_Asked):
    """POST /catalogue/rebuild."""

    dry_run: bool = Field(default=True, alias="dryRun")
    plan_hash: str | None = Field(default=None, alias="planHash", max_length=64)
    """The hash a dry run answered; needed when `dryRun` is false."""
    after: str = Field(default="", max_length=63)
    """Only disks after this id."""
    top: int = Field(default=100, ge=1, le=1000)
    """At most so many disks."""


class _Answer(BaseModel):
    # What is shown is all there is: a client may rely on the names.
    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, extra="forbid")


class RetentionAnswer(_Answer):
    """Which restore points are kept."""

    keep_last: int
    min_age_days: int


class DiskAnswer(_Answer):
    """A protected disk."""

    id: str
    source: str
    description: str
    verification: Literal["sampled", "full"]
    retention: RetentionAnswer | None
    protected: bool
    created: datetime
    updated: datetime
    generation: int
    newest_restore_point: str | None
    last_success: datetime | None
    """When the newest restore point was taken: what the disk held then can be had back."""
    rpo_seconds: int | None
    """Age of that moment: what would be lost if the disk were lost now."""
    last_status: Literal["Succeeded", "Failed", "Canceled"] | None
    """How the last run ended that was not skipped."""
    next_backup: datetime | None
    """The next window of the schedule."""
    overdue: bool
    """No restore point was taken since the window before the present one."""
    running: str | None
    """URL of the run at work on the disk."""

    @classmethod
    def of(
        cls, policy: Policy, head: Head | None, last: Run | None, running: str | None, schedule: str, now: datetime
    ) -> DiskAnswer:
        """From the catalogue's rows."""
        taken = snapshot_time(head.pair.source_snapshot) if head and head.pair else None
        due = max(overdue_since(schedule, now), policy.created)
        return cls(
            id=policy.disk,
            source=policy.source,
            description=policy.description,
            verification=policy.verification,
            retention=RetentionAnswer(**asdict(policy.retention)) if policy.retention else None,
            protected=policy.protected,
            created=policy.created,
            updated=policy.updated,
            generation=head.generation if head else 0,
            newest_restore_point=head.pair.point if head and head.pair else None,
            last_success=taken,
            rpo_seconds=max(0, int((now - taken).total_seconds())) if taken else None,
            last_status=last.state if last and last.state in ("Succeeded", "Failed", "Canceled") else None,
            next_backup=next_window(schedule, now) if policy.protected else None,
            overdue=policy.protected and (taken or policy.created) < due,
            running=running,
        )


class DisksAnswer(_Answer):
    """A page of disks, by id."""

    value: list[DiskAnswer]
    next_link: str | None = None


class PointAnswer(_Answer):
    """A restore point."""

    id: str
    disk: str
    state: PointState
    """Only available ones can be restored."""
    kind: Literal["full", "incremental"]
    reason: str
    taken: str
    """Time of the source snapshot: what the disk held then is what the point holds."""
    committed: datetime
    verified: str
    logical_bytes: int
    changed_bytes: int
    cleared_bytes: int
    requests: int
    generation: int
    run: str
    blob: str
    """Name of the backup blob in its container."""
    snapshot: str
    """The backup snapshot: a complete image of the disk."""
    digest: str

    @classmethod
    def of(cls, point: RestorePoint) -> PointAnswer:
        """From the catalogue's row."""
        return cls(
            id=point.point,
            disk=point.disk,
            state=point.state,
            kind=point.kind,
            reason=point.reason,
            taken=point.source_snapshot,
            committed=point.committed,
            verified=point.verified,
            logical_bytes=point.size,
            changed_bytes=point.write_bytes,
            cleared_bytes=point.clear_bytes,
            requests=point.requests,
            generation=point.generation,
            run=point.run,
            blob=point.head,
            snapshot=point.backup_snapshot,
            digest=point.digest,
        )


class PointsAnswer(_Answer):
    """A page of restore points, newest first."""

    value: list[PointAnswer]
    next_link: str | None = None


class ErrorAnswer(_Answer):
    """What went wrong."""

    code: str
    message: str
    target: str | None = None
    details: list[ErrorAnswer] = Field(default_factory=list)


class RunAnswer(_Answer):
    """A run, from asked for to ended."""

    id: str
    disk: str
    state: Literal["NotStarted", "Running", "Succeeded", "Failed", "Skipped", "Canceled"]
    trigger: Literal["timer", "http"]
    kind: str | None
    reason: str
    phase: str
    percent: int
    bytes_total: int
    bytes_done: int
    bytes_streamed: int
    """How many of them passed through the worker."""
    ranges_total: int
    requests_total: int
    requests_done: int
    retries: int
    created: datetime
    started: datetime | None
    ended: datetime | None
    restore_points: list[str]
    expired: list[str]
    """Restore points it deleted, because their retention had ended."""
    cancel_requested: datetime | None
    error: ErrorAnswer | None

    @classmethod
    def of(cls, run: Run) -> RunAnswer:
        """From the catalogue's row."""
        return cls(
            id=run.run,
            disk=run.disk,
            state=run.state,
            trigger=run.trigger,
            kind=run.kind or None,
            reason=run.reason,
            phase=run.phase,
            percent=run.percent,
            bytes_total=run.bytes_total,
            bytes_done=run.bytes_done,
            bytes_streamed=run.bytes_streamed,
            ranges_total=run.ranges_total,
            requests_total=run.requests_total,
            requests_done=run.requests_done,
            retries=run.retries,
            created=run.created,
            started=run.started,
            ended=run.ended,
            restore_points=list(run.points),
            expired=list(run.expired),
            cancel_requested=run.cancel_asked,
            error=ErrorAnswer(code=run.error.code, message=run.error.message) if run.error else None,
        )


class RunsAnswer(_Answer):
    """A page of runs, newest first."""

    value: list[RunAnswer]
    next_link: str | None = None


class QuarantinedAnswer(_Answer):
    """A backup snapshot that is not what its description says, or has none."""

    blob: str
    snapshot: str
    why: str


class RebuiltDisk(_Answer):
    """What the rebuild found, or did, for one disk."""

    disk: str
    state: Literal["unchanged", "different", "busy"]
    """`busy`: a run is at work on the disk, its rows are left alone."""
    running: str | None
    adopted: list[str]
    """Restore points whose rows were lost."""
    corrected: list[str]
    """Restore points whose rows differed from their backup snapshots."""
    lost: list[str]
    """Restore points whose backup snapshots are gone; they are not offered any more."""
    quarantined: list[QuarantinedAnswer]
    head_row: Literal["right", "rebuilt"]
    registration: Literal["right", "rebuilt"]


class RebuildAnswer(_Answer):
    """A slice of the catalogue compared with the blobs."""

    dry_run: bool
    value: list[RebuiltDisk]
    """Disks that differ or are busy."""
    examined: int
    plan_hash: str
    """To be presented by the call that carries it out."""
    after: str | None
    """Where to go on; null when this was the last slice."""


class ErrorEnvelope(_Answer):
    """Every refusal and failure."""

    error: ErrorAnswer


class HealthAnswer(_Answer):
    """Whether the catalogue and the backup account answer."""

    status: Literal["ok", "unhealthy"]
    checks: dict[str, str]
