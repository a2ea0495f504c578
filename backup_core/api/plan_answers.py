"""Answers with plans and findings: the plan of a restore, and the rebuild of the catalogue."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from backup_core.api.answers import CamelCaseAnswer, MachineAnswer


class QuarantinedAnswer(CamelCaseAnswer):
    """A backup snapshot that is not what its description says, or has none."""

    blob: str
    snapshot: str
    why: str


class RebuiltDisk(CamelCaseAnswer):
    """The rebuild's findings for one disk, carried out unless it is a dry run; a disk with very many points has several, the
    newest first.
    """

    disk: str
    state: Literal["unchanged", "different", "busy", "unreadable", "changed"]
    """`busy`: a run is at work on the disk, its rows are left alone. `unreadable`: so are rows that cannot be read. `changed`:
    it is not as the dry run has shown it, and was left alone.
    """
    running: str | None
    why: str | None
    """The reason why it cannot be read, or its change, and the next move."""
    adopted: list[str]
    """Restore points whose rows were lost."""
    corrected: list[str]
    """Restore points whose rows differed from their backup snapshots."""
    lost: list[str]
    """Restore points whose backup snapshots are gone; they are not offered any more."""
    quarantined: list[QuarantinedAnswer]
    head_row: Literal["right", "rebuilt"]
    registration: Literal["right", "rebuilt"]


class RebuildAnswer(CamelCaseAnswer):
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
    """Disks that differ from the dry run's finding; they were not changed."""
    failed: int
    failures: list[str]
    """Some that could not be read, and why."""
    plan_hash: str | None
    """Of a dry run that has succeeded: to be presented by the call that carries it out."""
    value: list[RebuiltDisk]
    """Disks that differ, are busy or cannot be read, of those compared until now."""
    next_link: str | None


class EstimateAnswer(CamelCaseAnswer):
    """Seconds, from … to, and the basis of the estimate."""

    low: int
    high: int
    basis: str


class PermissionAnswer(CamelCaseAnswer):
    """The result of a harmless request for a permission."""

    action: str
    state: Literal["granted", "denied", "unknown"]


class RestorePlanAnswer(CamelCaseAnswer):
    """The plan of a restore. Nothing was changed."""

    disk: str
    restore_point: str
    source: str
    """The disk that the restore point is of; a warning says when that is not the disk's present source."""
    taken: str
    logical_bytes: int
    allocated_bytes: int
    """The amount of one copy."""
    is_lower_bound: bool
    """Whether `allocatedBytes` and `bytesToCopy` are only what was counted in the 20 s a dry run counts for: a disk with very
    many ranges has more.
    """
    counted_to_bytes: int
    """The offset up to which the disk was counted; `logicalBytes` when all of it was."""
    bytes_to_copy: int
    target: str
    """The new disk; a derived name is the same in the call that presents `planHash`."""
    managed_disk: str | None
    method: Literal["upload", "import"] | None
    """How the managed disk is made: written by this app, or by Azure of the page blob `target`. Null for a page blob."""
    machine: MachineAnswer | None
    adopt: bool
    steps: list[str]
    expected_seconds: EstimateAnswer
    downtime: str
    permissions: list[PermissionAnswer]
    warnings: list[str]
    plan_hash: str
    """To be presented by the call that carries it out."""
