"""Bodies of requests and answers. Answers use camelCase names, as Azure's own do."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

from backup_core.domain.records import Head, Policy, RestorePoint, Run

DESCRIPTION_LENGTH_MAX = 500
URL_LENGTH_MAX = 2048


class _Asked(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class DiskAsked(_Asked):
    """PUT /disks/{disk}."""

    source: str = Field(min_length=1, max_length=URL_LENGTH_MAX)
    description: str = Field(default="", max_length=DESCRIPTION_LENGTH_MAX)
    verification: Literal["sampled", "full"] = "sampled"


class BackupAsked(_Asked):
    """POST /disks/{disk}/backups."""

    kind: Literal["auto", "full"] = "auto"


class _Answer(BaseModel):
    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True)


class DiskAnswer(_Answer):
    """A protected disk."""

    id: str
    source: str
    description: str
    verification: Literal["sampled", "full"]
    protected: bool
    created: datetime
    updated: datetime
    generation: int
    newest_restore_point: str | None
    running: str | None
    """URL of the run at work on the disk."""

    @classmethod
    def of(cls, policy: Policy, head: Head | None, running: str | None) -> DiskAnswer:
        """From the catalogue's rows."""
        return cls(
            id=policy.disk,
            source=policy.source,
            description=policy.description,
            verification=policy.verification,
            protected=policy.protected,
            created=policy.created,
            updated=policy.updated,
            generation=head.generation if head else 0,
            newest_restore_point=head.pair.point if head and head.pair else None,
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
    state: Literal["available", "lost", "quarantined"]
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
            error=ErrorAnswer(code=run.error.code, message=run.error.message) if run.error else None,
        )


class RunsAnswer(_Answer):
    """A page of runs, newest first."""

    value: list[RunAnswer]
    next_link: str | None = None


class HealthAnswer(_Answer):
    """Whether the catalogue and the backup account answer."""

    status: Literal["ok", "unhealthy"]
    checks: dict[str, str]
