"""Bodies of requests and answers. Answers use camelCase names, as Azure's own do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator
from pydantic.alias_generators import to_camel
from pydantic.config import JsonDict
from pydantic.json_schema import SkipJsonSchema

from backup_core.domain.naming import MACHINE_ID
from backup_core.domain.progress import eta_seconds
from backup_core.domain.records import KEEP_LAST_MAX, MIN_AGE_DAYS_MAX, Head, PointState, Registration, RestorePoint, Run, Slot
from backup_core.domain.status import DiskStatus, Protection
from backup_core.operations.restores import RestoreWish

DESCRIPTION_LENGTH_MAX = 500
URL_LENGTH_MAX = 2048
EARLIEST, LATEST = datetime(2016, 1, 1, tzinfo=UTC), datetime(2200, 1, 1, tzinfo=UTC)
"""Times outside cannot be of a restore point."""


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


def _given(value: object) -> object:
    if value is None or value == "":
        message = "it is there but empty; expected the planHash of a dry run's answer: look whether that was refused"
        raise ValueError(message)
    return value


PlanHash = Annotated[Annotated[str, Field(min_length=1, max_length=64)] | SkipJsonSchema[None], BeforeValidator(_given)]
"""The hash that a dry run answered; None when left out. An empty one is refused: a script whose dry run failed sends it."""


def _without_default(schema: JsonDict) -> None:
    schema.pop("default", None)


class RetentionBody(_Body):
    """Which restore points are kept: the newest `keepLast`, and all that are younger than `minAgeDays`."""

    keep_last: int = Field(alias="keepLast", ge=1, le=KEEP_LAST_MAX)
    min_age_days: int = Field(default=0, alias="minAgeDays", ge=0, le=MIN_AGE_DAYS_MAX)


class MachineBody(_Body):
    """The virtual machine that uses a disk, and where: a LUN, or `os` for the OS disk."""

    vm: str = Field(max_length=500)
    lun: Annotated[int, Field(ge=0, le=63)] | Literal["os"]

    @field_validator("vm")
    @classmethod
    def _is_machine(cls, value: str) -> str:
        if not MACHINE_ID.fullmatch(value):
            message = "expected /subscriptions/…/resourceGroups/…/providers/Microsoft.Compute/virtualMachines/…"
            raise ValueError(message)
        return value

    @property
    def slot(self) -> Slot:
        """As the catalogue keeps it."""
        return Slot(self.vm, None if self.lun == "os" else self.lun)


class DiskBody(_Body):
    """PUT /disks/{disk}."""

    source: str = Field(min_length=1, max_length=URL_LENGTH_MAX)
    description: str = Field(default="", max_length=DESCRIPTION_LENGTH_MAX)
    verification: Literal["sampled", "full"] = "sampled"
    retention: RetentionBody | None = None
    """Null keeps every restore point."""
    machine: MachineBody | None = None
    """The VM that uses the disk: what a restore repoints unless it is told another one."""
    follows_on: bool = Field(default=False, alias="followsOn")
    """The source takes the place of the former one, whose restore points stay with this disk; needed only when it has some."""
    first_backup: bool = Field(default=False, alias="firstBackup")
    """Back up at once if the source has no restore point yet."""


class BackupBody(_Body):
    """POST /disks/{disk}/backups."""

    kind: Literal["auto", "full"] = "auto"


class TargetBody(_Body):
    """Where a restore goes: always to something new."""

    kind: Literal["pageBlob", "managedDisk"] = "pageBlob"
    account: str | None = Field(default=None, min_length=1, max_length=URL_LENGTH_MAX)
    """Blob endpoint, one of the setting SOURCE_ACCOUNTS; the disk's own when left out."""
    container: str | None = Field(default=None, min_length=1, max_length=63)
    blob: str | None = Field(default=None, min_length=1, max_length=1024)
    """Name of the new disk blob; derived from the disk and the run when left out."""
    disk: str | None = Field(default=None, min_length=1, max_length=80)
    """Name of the managed disk, for `managedDisk`."""


class RestoreBody(_Body):
    """POST /disks/{disk}/restores."""

    restore_point: str = Field(default="latest", alias="restorePoint", max_length=40)
    """A restore point's id, or `latest`."""
    time: datetime | None = Field(default=None, strict=False)
    """Instead: the newest restore point that was not taken later."""
    target: TargetBody = Field(default_factory=TargetBody)
    repoint: bool = False
    """Give the new disk to the machine."""
    machine: MachineBody | None = None
    """The machine; the registration's when left out."""
    stop_vm: bool = Field(default=False, alias="stopVm")
    """Deallocate the machine while a data disk is exchanged; for an OS disk that is always done."""
    adopt: bool | None = None
    """Go on backing up from the new disk; null is true exactly when the machine gets a page blob."""
    dry_run: bool = Field(default=False, alias="dryRun")
    plan_hash: PlanHash = Field(default=None, alias="planHash", json_schema_extra=_without_default)
    """The hash a dry run answered: refused when the world has changed since."""

    @field_validator("time", mode="before")
    @classmethod
    def _is_text(cls, value: object) -> object:
        if value is not None and not isinstance(value, str):
            message = "expected ISO 8601 text with a zone, such as 2026-11-22T12:00:00Z"
            raise ValueError(message)
        return value

    @model_validator(mode="after")
    def _one_way(self) -> RestoreBody:
        if self.time and self.restore_point != "latest":
            message = "restorePoint and time are both given; expected one of them"
            raise ValueError(message)
        if self.time and (self.time.tzinfo is None or not EARLIEST <= self.time <= LATEST):
            message = "time: expected ISO 8601 with a zone, between 2016 and 2200"
            raise ValueError(message)
        if self.target.disk and self.target.kind == "pageBlob":
            message = "target.disk names a managed disk, but target.kind is pageBlob"
            raise ValueError(message)
        if self.stop_vm and not self.repoint:
            message = "stopVm is for repoint only"
            raise ValueError(message)
        return self

    @property
    def wish(self) -> RestoreWish:
        """What the planning of a restore is asked for."""
        return RestoreWish(
            restore_point=self.restore_point,
            time=self.time,
            managed=self.target.kind == "managedDisk",
            account=self.target.account or "",
            container=self.target.container or "",
            blob=self.target.blob or "",
            disk=self.target.disk or "",
            slot=self.machine.slot if self.machine else None,
            repoint=self.repoint,
            stop_vm=self.stop_vm,
            adopt=self.adopt,
        )


class RebuildBody(_Body):
    """POST /catalogue/rebuild."""

    dry_run: bool = Field(default=True, alias="dryRun")
    plan_hash: PlanHash = Field(default=None, alias="planHash", json_schema_extra=_without_default)
    """The hash a dry run came to; needed when `dryRun` is false."""


class _Answer(BaseModel):
    # What is shown is all there is: a client may rely on the names.
    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, extra="forbid")


class RetentionAnswer(_Answer):
    """Which restore points are kept."""

    keep_last: int
    min_age_days: int


class MachineAnswer(_Answer):
    """A virtual machine and where it has the disk."""

    vm: str
    lun: int | Literal["os"]


def slot_shown(slot: Slot | None) -> MachineAnswer | None:
    """The slot as answers show it."""
    return MachineAnswer(vm=slot.vm, lun="os" if slot.lun is None else slot.lun) if slot else None


class DiskAnswer(_Answer):
    """A protected disk."""

    id: str
    source: str
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
    """When the newest restore point was taken: what the disk held then can be had back."""
    rpo_seconds: int | None
    """Age of that moment: what would be lost if the disk were lost now."""
    last_status: Literal["Succeeded", "Failed", "Canceled"] | None
    """How the last backup ended that was not skipped."""
    next_backup: datetime | None
    """The next window of the schedule."""
    overdue: bool
    """No restore point was taken since the window before the present one."""
    running: str | None
    """URL of the run at work on the disk, or of the first backup that this call has started."""
    warnings: list[str] = Field(default_factory=list)
    """What cannot be done with the disk as it is; looked at when it is registered."""

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


class DisksAnswer(_Answer):
    """A page of disks, by id."""

    value: list[DiskAnswer]
    unreadable: list[ErrorAnswer] = Field(default_factory=list)
    """Disks of this page whose rows cannot be read: `target` is the disk."""
    next_link: str | None = None


class PointAnswer(_Answer):
    """A restore point."""

    id: str
    disk: str
    state: PointState
    """Only available ones can be restored."""
    kind: Literal["full", "incremental", "restored"]
    reason: str
    source: str
    """The disk's source then: a disk may have had another one before."""
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


class RestoreAnswer(_Answer):
    """What a restore was asked for, and what came of it."""

    restore_point: str
    target: str
    managed_disk: str | None
    machine: MachineAnswer | None
    repoint: bool
    adopt: bool
    old_disk: str | None
    """What the machine used before; it is kept."""
    needs_attention: str | None
    """Why somebody should look although the run goes on trying."""
    end_state: str | None
    """What everything was left in, in words."""
    downtime_seconds: int | None
    warnings: list[str]
    next_steps: list[str]
    """What to change in Terraform or Bicep so that the next apply does not put the old disk back."""


class RunAnswer(_Answer):
    """A run, from asked for to ended."""

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
    """How many of them passed through the worker."""
    ranges_total: int
    requests_total: int
    requests_done: int
    requests_verified: int
    """How many read content of either side to compare it."""
    retries: int
    eta_seconds: int | None
    """About how long it still takes, from how long it took so far; null while that says nothing."""
    created: datetime
    started: datetime | None
    ended: datetime | None
    restore_points: list[str]
    expired: list[str]
    """Restore points it deleted, because their retention had ended."""
    warnings: list[str]
    """What failed after the restore point was committed."""
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


class RunsAnswer(_Answer):
    """A page of runs, newest first."""

    value: list[RunAnswer]
    unreadable: list[ErrorAnswer] = Field(default_factory=list)
    """Disks whose runs cannot be read, and are missing here: `target` is the disk."""
    next_link: str | None = None


class QuarantinedAnswer(_Answer):
    """A backup snapshot that is not what its description says, or has none."""

    blob: str
    snapshot: str
    why: str


class RebuiltDisk(_Answer):
    """What the rebuild found, or did, for one disk; of a disk with very many points there are several, the newest first."""

    disk: str
    state: Literal["unchanged", "different", "busy", "unreadable", "changed"]
    """`busy`: a run is at work on the disk, its rows are left alone. `unreadable`: so are rows that cannot be read. `changed`:
    it is not as the dry run has shown it, and was left alone.
    """
    running: str | None
    why: str | None
    """What cannot be read, or has changed, and what to do."""
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
    """The catalogue compared with the blobs: how far that is, and a page of what was found."""

    id: str
    state: Literal["Running", "Succeeded", "Failed", "Canceled"]
    dry_run: bool
    created: datetime
    ended: datetime | None
    examined: int
    different: int
    busy: int
    unreadable: int
    changed: int
    """Not as the dry run has shown them, and left alone."""
    failed: int
    failures: list[str]
    """Some that could not be looked at, and why."""
    plan_hash: str | None
    """Of a dry run that has succeeded: to be presented by the call that carries it out."""
    value: list[RebuiltDisk]
    """Disks that differ, are busy or cannot be read, as far as they were looked at."""
    next_link: str | None


class EstimateAnswer(_Answer):
    """Seconds, from … to, and what they rest on."""

    low: int
    high: int
    basis: str


class PermissionAnswer(_Answer):
    """What a harmless request says of a permission."""

    action: str
    state: Literal["granted", "denied", "unknown"]


class RestorePlanAnswer(_Answer):
    """What a restore would do. Nothing was changed."""

    disk: str
    restore_point: str
    source: str
    """The disk that the restore point is of; a warning says when that is not the disk's present source."""
    taken: str
    logical_bytes: int
    allocated_bytes: int
    """What one copy copies."""
    is_lower_bound: bool
    """Whether `allocatedBytes` and `bytesToCopy` are only what was counted in the 20 s a dry run counts for: a disk with very
    many ranges has more.
    """
    counted_to_bytes: int
    """How far the disk was counted; `logicalBytes` when all of it was."""
    bytes_to_copy: int
    target: str
    """The new disk; a derived name is the same in the call that presents `planHash`."""
    managed_disk: str | None
    machine: MachineAnswer | None
    adopt: bool
    steps: list[str]
    expected_seconds: EstimateAnswer
    downtime: str
    permissions: list[PermissionAnswer]
    warnings: list[str]
    plan_hash: str
    """To be presented by the call that carries it out."""


class ErrorEnvelope(_Answer):
    """Every refusal and failure."""

    error: ErrorAnswer


class HealthAnswer(_Answer):
    """Whether the catalogue and the backup account answer, and which version of the app does."""

    version: str
    status: Literal["ok", "unhealthy"]
    checks: dict[str, str]
