"""The steps of housekeeping: leftovers of runs, disk by disk."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from backup_core.steps.messages import Message, Step, always


class CleanupRequest(Message):
    """Input of the keep_house orchestration; `after` and the fields after it are a continued instance's position."""

    run_days: int
    """Rows of runs older than this are deleted."""
    after: str = ""
    failed: list[str] = Field(default_factory=list)


class DiskPage(Message):
    """A slice of all disks that are registered or have backups, after the id `after`."""

    after: str


class DiskPageResult(Message):
    """The slice; `more` when the list continues after it."""

    disks: list[str]
    more: bool


class CleanUpDisk(Message):
    """Remove leftovers of the disk's runs that nothing needs."""

    disk: str
    actor: str
    """The orchestration that calls."""
    lease: str
    """Holds a blob while it is deleted."""
    run_days: int


class CleanupResult(Message):
    """Counts of what was removed; `more` when a repeat would find more."""

    points: int = 0
    snapshots: int = 0
    blobs: int = 0
    documents: int = 0
    pins: int = 0
    runs: int = 0
    registrations: int = 0
    """Released claims, and renewed copies of the registration."""
    more: bool = False


class CleanUpRebuilds(Message):
    """Remove the documents of old rebuilds."""

    run_days: int


class RebuildCleanupResult(Message):
    """The number of removed documents."""

    documents: int


LIST_BACKED_UP_DISKS = Step("list_backed_up_disks", DiskPage, DiskPageResult, always("retention"))
CLEAN_UP_DISK = Step("clean_up_disk", CleanUpDisk, CleanupResult, always("retention"))
CLEAN_UP_REBUILDS = Step("clean_up_rebuilds", CleanUpRebuilds, RebuildCleanupResult, always("retention"))

HOUSEKEEPING_STEPS: tuple[Step[Any, Any], ...] = (LIST_BACKED_UP_DISKS, CLEAN_UP_DISK, CLEAN_UP_REBUILDS)
