"""The steps of housekeeping: what runs have left behind, disk by disk."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from backup_core.steps.messages import Message, Step, always


class HouseRequest(Message):
    """Input of the keep_house orchestration; `after` and what follows are where a continued-as-new instance goes on."""

    run_days: int
    """Runs older than this are forgotten."""
    after: str = ""
    failed: list[str] = Field(default_factory=list)


class KeptPage(Message):
    """A slice of all disks that are registered or have backups, after the id `after`."""

    after: str


class KeptDisks(Message):
    """The slice; `more` when the list goes on after the last one."""

    disks: list[str]
    more: bool


class Tidy(Message):
    """Remove what runs of the disk have left behind and nobody needs."""

    disk: str
    by: str
    """The orchestration that asks."""
    lease: str
    """Holds a blob while it is deleted."""
    run_days: int


class Tidied(Message):
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


class TidyRebuilds(Message):
    """Remove what rebuilds of long ago have kept of themselves."""

    run_days: int


class RebuildsTidied(Message):
    """How many documents went."""

    documents: int


LIST_KEPT = Step("list_kept_disks", KeptPage, KeptDisks, always("retention"))
TIDY_DISK = Step("tidy_disk", Tidy, Tidied, always("retention"))
TIDY_REBUILDS = Step("tidy_rebuilds", TidyRebuilds, RebuildsTidied, always("retention"))

HOUSEKEEPING_STEPS: tuple[Step[Any, Any], ...] = (LIST_KEPT, TIDY_DISK, TIDY_REBUILDS)
