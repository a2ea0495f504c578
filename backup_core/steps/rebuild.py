"""The steps of a rebuild: the catalogue compared with the blobs, and brought back, disk by disk."""

from __future__ import annotations

from typing import Any, Literal

from backup_core.domain.rebuild import Tally
from backup_core.steps.messages import Message, Nothing, Step


class RebuildRequest(Message):
    """Input of the rebuild_catalogue orchestration; `after` and what follows are where a continued-as-new one goes on."""

    rebuild: str
    plan: str = ""
    """The dry run that is carried out; empty makes one."""
    after: str = ""
    tally: Tally = Tally()
    chain: str = ""
    """Digest of all that was found so far."""


class RebuildPage(Message):
    """A slice of all disks that are registered or have backups, after the id `after`."""

    rebuild: str
    after: str


class RebuildPageResult(Message):
    """The slice; `more` when the list goes on after the last one."""

    disks: list[str]
    more: bool


class RebuildDisk(Message):
    """Compare a part of a disk: its points that are not newer than `below`, or all when it is empty."""

    rebuild: str
    plan: str
    disk: str
    part: int = 1
    below: str = ""
    """Source snapshot of the oldest point of the part before."""


class RebuildDiskResult(Message):
    """What was found, and done, for that part of that disk."""

    disk: str
    part: int
    state: Literal["unchanged", "different", "busy", "unreadable", "changed"]
    digest: str
    """Of what was found; empty when nothing differs."""
    below: str
    """Where the next part begins; empty when there is none."""


class RebuildReport(Message):
    """How far a rebuild is."""

    rebuild: str
    tally: Tally


class RebuildReportResult(Message):
    """Whether it is to end: somebody asked for it, or it has ended or been replaced already."""

    goes_on: bool


class FinishRebuild(Message):
    """End a rebuild."""

    rebuild: str
    state: Literal["Succeeded", "Failed", "Canceled"]
    tally: Tally
    chain: str


LIST_REBUILD_DISKS = Step("list_rebuild_disks", RebuildPage, RebuildPageResult)
REBUILD_DISK = Step("rebuild_disk", RebuildDisk, RebuildDiskResult)
REPORT_REBUILD = Step("report_rebuild", RebuildReport, RebuildReportResult)
FINISH_REBUILD = Step("finish_rebuild", FinishRebuild, Nothing)

REBUILD_STEPS: tuple[Step[Any, Any], ...] = (LIST_REBUILD_DISKS, REBUILD_DISK, REPORT_REBUILD, FINISH_REBUILD)
