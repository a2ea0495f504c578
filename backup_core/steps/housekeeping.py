"""The steps of housekeeping: what runs have left behind, disk by disk."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from backup_core.steps.messages import Message, Step, always


class CleanupRequest(Message):
    """Input of the keep_house orchestration; `after` and what follows are where a continued-as-new instance goes on."""

    run_days: int
    """Runs older than this are forgotten."""
    after: str = ""
    failed: list[str] = Field(default_factory=list)


class DiskPage(Message):
    """A slice of all disks that are registered or have backups, after the id `after`."""

    after: str


class DiskPageResult(Message):
    """The slice; `more` when the list goes on after the last one."""

    disks: list[str]
    more: bool


class CleanUpDisk(Message):
    """Remove what runs of the disk have left behind and nobody needs."""

    disk: str
    actor: str
    """The orchestration that asks."""
    lease: str
    """Holds a blob while it is deleted."""
    run_days: int


class CleanupResult(Message):
    """How much went; `more` when a repeat would find more."""

    points: int = 0
    snapshots: int = 0
    blobs: int = 0
    documents: int = 0
    pins: int = 0
    runs: int = 0
    registrations: int = 0
    """Claims given up, and copies of the registration brought up to date."""
    more: bool = False


class CleanUpRebuilds(Message):
    """Remove what rebuilds of long ago have kept of themselves."""

    run_days: int


class RebuildCleanupResult(Message):
    """How many documents went."""

    documents: int


LIST_BACKED_UP_DISKS = Step("list_backed_up_disks", DiskPage, DiskPageResult, always("retention"))
CLEAN_UP_DISK = Step("clean_up_disk", CleanUpDisk, CleanupResult, always("retention"))
CLEAN_UP_REBUILDS = Step("clean_up_rebuilds", CleanUpRebuilds, RebuildCleanupResult, always("retention"))

HOUSEKEEPING_STEPS: tuple[Step[Any, Any], ...] = (LIST_BACKED_UP_DISKS, CLEAN_UP_DISK, CLEAN_UP_REBUILDS)
