"""The steps of a rebuild: the catalogue is compared with the blobs, and restored, disk by disk."""

from __future__ import annotations

from typing import Any, Literal

from backup_core.domain.rebuild import Tally
from backup_core.steps.messages import Message, Nothing, Step


class RebuildRequest(Message):
    """Input of the rebuild_catalogue orchestration; `after` and the fields after it are the position of a continued-as-new
    instance.
    """

    rebuild: str
    plan: str = ""
    """The dry run that is carried out; empty makes one."""
    after: str = ""
    tally: Tally = Tally()
    chain: str = ""
    """Digest of the findings until now."""


class RebuildPage(Message):
    """A slice of all disks that are registered or have backups, after the id `after`."""

    rebuild: str
    after: str


class RebuildPageResult(Message):
    """The slice; `more` when the list continues after it."""

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
    """The findings for that part of that disk, carried out unless it is a dry run."""

    disk: str
    part: int
    state: Literal["unchanged", "different", "busy", "unreadable", "changed"]
    digest: str
    """Digest of the findings; empty when nothing differs."""
    below: str
    """The beginning of the next part; empty when there is none."""


class RebuildReport(Message):
    """The progress of a rebuild."""

    rebuild: str
    tally: Tally


class RebuildReportResult(Message):
    """Whether it is to end: a caller requested that, or it has ended or been replaced already."""

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
