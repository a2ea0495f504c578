"""The kind of backup that a run makes: full, incremental, or first the interrupted one of an earlier run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from backup_core.domain.errors import TooManyFullsError

if TYPE_CHECKING:
    from backup_core.domain.metadata import HeadMark
    from backup_core.domain.records import CommonPair, Head, Kind

AUTOMATIC_FULLS_MAX = 2
"""Automatic full backups in a row; a third one fails, so that a person looks at it."""


@dataclass(frozen=True)
class HeadFindings:
    """The state of a disk's head and common pair, as the service answered."""

    head_exists: bool
    head_unchanged: bool
    """Nobody but this app's runs changed the head: it has the recorded version, or differs from the last backup snapshot
    only where an interrupted run was to change it.
    """
    mark: HeadMark | None
    base_exists: bool
    """The pair's source snapshot exists."""
    target_exists: bool
    """The source snapshot a dirty mark names exists."""


@dataclass(frozen=True)
class Decision:
    """The kind of backup that a run makes, and the reason in words for the operator."""

    kind: Kind
    reason: str
    finish_target: str = ""
    """Source snapshot of an interrupted run to be finished first; empty when the head is clean."""
    automatic: bool = False
    """Whether it is a full backup that no caller requested."""


def decide(head: Head, source: str, found: HeadFindings | None, *, full_requested: bool) -> Decision:
    """The kind of the next backup. `found` is None when the catalogue has no committed pair. Raises TooManyFullsError.

    When in doubt the answer is a full backup in a new generation, never "nothing changed".
    """
    pair = head.pair
    if pair is None or found is None:
        return Decision("full", "first backup")
    if full_requested:
        return Decision("full", "asked for")
    if head.source != source:
        return Decision("full", "the disk's source blob was changed in its registration")
    # G15: a doubtful base is never built on.
    doubt = _doubt(head, pair, found)
    if doubt:
        return automatic_full(head, doubt)
    # G13: a dirty head is brought to its recorded target first.
    if interrupted := _interrupted(pair, found):
        return Decision("incremental", "finishes an interrupted run", finish_target=interrupted.target)
    return Decision("incremental", "changes since the last restore point")


def automatic_full(head: Head, reason: str) -> Decision:
    """A full backup that no caller requested. Raises TooManyFullsError when it would be the third in a row."""
    # G15: endless automatic fulls would hide their cause.
    if head.automatic_fulls >= AUTOMATIC_FULLS_MAX:
        message = (
            f"disk {head.disk}: a full backup is needed again ({reason}), after {head.automatic_fulls} automatic ones in a "
            "row; find out why increments fail, then POST the disk's backups with kind 'full'"
        )
        raise TooManyFullsError(message)
    return Decision("full", reason, automatic=True)


def _interrupted(pair: CommonPair, found: HeadFindings) -> HeadMark | None:
    """The mark of a dirty head; None for a clean one."""
    mark = found.mark
    return mark if mark and mark.state != "committed" and mark.target != pair.source_snapshot else None


def _doubt(head: Head, pair: CommonPair, found: HeadFindings) -> str:
    if head.doubt:
        return head.doubt
    if not found.head_exists:
        return "the backup blob is gone"
    if not found.base_exists:
        return "the previous source snapshot is gone"
    if found.mark is None or found.mark.generation != head.generation:
        return "the backup blob's metadata is not what was written"
    if interrupted := _interrupted(pair, found):
        if interrupted.base != pair.source_snapshot:
            return "an interrupted run started from another restore point"
        if not found.target_exists:
            return "the source snapshot of an interrupted run is gone"
    return "" if found.head_unchanged else "the backup blob was changed by somebody else"
