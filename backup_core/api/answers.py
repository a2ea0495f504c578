# Long: the fields of all answers, which people and their scripts read.
"""Answers about disks, restore points and runs, and errors. They use camelCase names, as Azure's own do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

from backup_core.domain.naming import SourceKind, source_kind
from backup_core.domain.progress import eta_seconds
from backup_core.domain.records import Head, PointState, Registration, RestorePoint, Run, Slot
from backup_core.domain.status import DiskStatus, Protection


class CamelCaseAnswer(BaseModel):
    """An answer whose fields have camelCase names."""

    # What is shown is all there is: a client may rely on the names.
    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, extra="forbid")


class RetentionAnswer(CamelCaseAnswer):
    """The rule by which restore points are kept."""

    keep_last: int
    min_age_days: int


class MachineAnswer(CamelCaseAnswer):
    """A virtual machine and where it has the disk."""

    vm: str
    lun: int | Literal["os"]


def slot_shown(slot: Slot | None) -> MachineAnswer | None:
    """The slot as answers show it."""
    return MachineAnswer(vm=slot.vm, lun="os" if slot.lun is None else slot.lun) if slot else None


class DiskAnswer(CamelCaseAnswer):
    """A protected disk."""

    id: str
    source: str
    source_kind: SourceKind
    """A page blob, whose URL is the source, or a managed disk, whose resource id is."""
    description: str
    verification: Literal["sampled", "full"]
    retention: RetentionAnswer | None
    protected: bool
    protection: Protection
    """`unprotected`: the machine uses a disk that is not backed up; `protectionNote` says which, and what to do."""
    protection_note: str | None
    machine: MachineAnswer | None
    created: datetime
    updated: datetime
    generation: int
    newest_restore_point: str | None
    last_success: datetime | None
    """When the newest restore point was taken: the disk can be restored as of then."""
    rpo_seconds: int | None
    """Age of that moment: the data of this time would be lost if the disk were lost now."""
    last_status: Literal["Succeeded", "Failed", "Canceled"] | None
    """The state of the last backup that was not skipped."""
    next_backup: datetime | None
    """The next window of the schedule."""
    overdue: bool
    """No restore point was taken since the window before the present one."""
    running: str | None
    """URL of the run at work on the disk, or of the first backup that this call has started."""
    warnings: list[str] = Field(default_factory=list)
    """Warnings about the disk, found when it is registered."""

    @classmethod
    def of(
        cls,
        registration: Registration,
        head: Head | None,
        status: DiskStatus,
        running: str | None,
        next_backup: datetime | None,
        warnings: Sequence[str] = (),
    ) -> DiskAnswer:
        """From the catalogue's rows, and what they say of the disk."""
        last = status.last
        return cls(
            id=registration.disk,
            source=registration.source,
            source_kind=source_kind(registration.source),
            description=registration.description,
            verification=registration.verification,
            retention=RetentionAnswer(**asdict(registration.retention)) if registration.retention else None,
            protected=registration.protected,
            protection=status.protection,
            protection_note=registration.unprotected or None,
            machine=slot_shown(registration.machine),
            created=registration.created,
            updated=registration.updated,
            generation=head.generation if head else 0,
            newest_restore_point=status.newest_point or None,
            last_success=status.last_success,
            rpo_seconds=status.rpo_seconds,
            last_status=last.state if last and last.state in ("Succeeded", "Failed", "Canceled") else None,
            next_backup=next_backup,
            overdue=status.overdue,
            running=running,
            warnings=list(warnings),
        )


class DisksAnswer(CamelCaseAnswer):
    """A page of disks, by id."""

    value: list[DiskAnswer]
    unreadable: list[ErrorAnswer] = Field(default_factory=list)
    """Disks of this page whose rows cannot be read: `target` is the disk."""
    next_link: str | None = None


class PointAnswer(CamelCaseAnswer):
    """A restore point."""

    id: str
    disk: str
    state: PointState
    """Only available ones can be restored."""
    kind: Literal["full", "incremental", "restored"]
    reason: str
    source: str
    """The disk's source then: a disk may have had another one before."""
    source_kind: SourceKind
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
            source=point.source,
            source_kind=source_kind(point.source),
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


class PointsAnswer(CamelCaseAnswer):
    """A page of restore points, newest first."""

    value: list[PointAnswer]
    next_link: str | None = None


class ErrorAnswer(CamelCaseAnswer):
    """An error."""

    code: str
    message: str
    target: str | None = None
    details: list[ErrorAnswer] = Field(default_factory=list)


class RestoreAnswer(CamelCaseAnswer):
    """The request of a restore, and its result."""

    restore_point: str
    target: str
    managed_disk: str | None
    machine: MachineAnswer | None
    repoint: bool
    adopt: bool
    old_disk: str | None
    """The disk that the machine used before; it is kept."""
    needs_attention: str | None
    """Reason why a person should look at the run, which continues to retry."""
    end_state: str | None
    """The declared end state, in words."""
    downtime_seconds: int | None
    warnings: list[str]
    next_steps: list[str]
    """Changes for Terraform or Bicep, so that the next apply does not put the old disk back."""


class RunAnswer(CamelCaseAnswer):
    """A run, from its request to its end."""

    id: str
    disk: str
    operation: Literal["backup", "restore"]
    state: Literal["NotStarted", "Running", "Succeeded", "Failed", "Skipped", "Canceled"]
    trigger: Literal["timer", "http"]
    kind: str | None
    reason: str
    phase: str
    percent: int
    bytes_total: int
    bytes_done: int
    bytes_streamed: int
    """Bytes of them that passed through the worker."""
    ranges_total: int
    requests_total: int
    requests_done: int
    requests_verified: int
    """Requests of them that read content of either side to compare it."""
    retries: int
    eta_seconds: int | None
    """Estimated remaining time, at its present rate; null while that is unknown."""
    created: datetime
    started: datetime | None
    ended: datetime | None
    restore_points: list[str]
    expired: list[str]
    """Restore points it deleted, because their retention had ended."""
    warnings: list[str]
    """Failures after the restore point was committed."""
    cancel_requested: datetime | None
    error: ErrorAnswer | None
    restore: RestoreAnswer | None
    """Of a restore only."""

    @classmethod
    def of(cls, run: Run, now: datetime, restore: RestoreAnswer | None = None) -> RunAnswer:
        """From the catalogue's row."""
        return cls(
            id=run.run,
            disk=run.disk,
            operation=run.operation,
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
            requests_verified=run.requests_verified,
            retries=run.retries,
            eta_seconds=None if run.ended_for_good else eta_seconds(run.started, now, run.percent),
            created=run.created,
            started=run.started,
            ended=run.ended,
            restore_points=list(run.points),
            expired=list(run.expired),
            warnings=list(run.warnings),
            cancel_requested=run.cancel_requested,
            error=ErrorAnswer(code=run.error.code, message=run.error.message) if run.error else None,
            restore=restore,
        )


class RunsAnswer(CamelCaseAnswer):
    """A page of runs, newest first."""

    value: list[RunAnswer]
    unreadable: list[ErrorAnswer] = Field(default_factory=list)
    """Disks whose runs cannot be read, and are missing here: `target` is the disk."""
    next_link: str | None = None


class ErrorEnvelope(CamelCaseAnswer):
    """Every refusal and failure."""

    error: ErrorAnswer


class HealthAnswer(CamelCaseAnswer):
    """Whether the catalogue and the backup account answer, and which version of the app does."""

    version: str
    status: Literal["ok", "unhealthy"]
    checks: dict[str, str]
