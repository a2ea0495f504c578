"""Bodies of requests, with camelCase names, as Azure's own have."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator
from pydantic.config import JsonDict
from pydantic.json_schema import SkipJsonSchema

from backup_core.domain.naming import MACHINE_ID
from backup_core.domain.records import KEEP_LAST_MAX, MIN_AGE_DAYS_MAX, Slot
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
    """The restore points to keep: the newest `keepLast`, and all that are younger than `minAgeDays`."""

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
    """The VM that uses the disk: a restore repoints it unless its request names another one."""
    follows_on: bool = Field(default=False, alias="followsOn")
    """The source takes the place of the former one, whose restore points stay with this disk; needed only when it has some."""
    first_backup: bool = Field(default=False, alias="firstBackup")
    """Back up at once if the source has no restore point yet."""


class BackupBody(_Body):
    """POST /disks/{disk}/backups."""

    kind: Literal["auto", "full"] = "auto"


class TargetBody(_Body):
    """The target of a restore: always something new."""

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
    """Continue the backups from the new disk; null is true when the machine gets it and it can be protected."""
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
        """The request, for the planning of a restore."""
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
    """The hash that a dry run answered; needed when `dryRun` is false."""
