"""The catalogue as a function of the blobs: the right rows, given the descriptions of the backup snapshots."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import TYPE_CHECKING, Literal

from backup_core.domain.records import Head, RestorePoint, Versioned, pair_of
from backup_core.domain.shown import NAMED_MAX, shortened

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

Place = tuple[str, str]
"""(head, backup snapshot)."""
DIRTY = "the catalogue was rebuilt while the backup blob was half written"


@dataclass(frozen=True)
class Tally:
    """The result of a rebuild: disks by finding, and the names of some that failed, with the reason."""

    examined: int = 0
    different: int = 0
    busy: int = 0
    unreadable: int = 0
    changed: int = 0
    """Disks that differ from the dry run's finding; they are not changed."""
    failed: int = 0
    names: tuple[str, ...] = ()

    def with_disk(self, states: Iterable[str], why: str = "") -> Tally:
        """The tally with one disk more, with the findings of its parts; `why` is the reason if the disk could not be read."""
        found = set(states)
        return replace(
            self,
            examined=self.examined + 1,
            failed=self.failed + bool(why),
            names=(*self.names, shortened(why))[:NAMED_MAX] if why else self.names,
            **{state: getattr(self, state) + (state in found) for state in ("different", "busy", "unreadable", "changed")},
        )


@dataclass(frozen=True)
class Rebuild:
    """One comparison of the whole catalogue with the blobs: a dry run, or the execution of a dry run's plan."""

    rebuild: str
    state: Literal["Running", "Succeeded", "Failed", "Canceled"]
    created: datetime
    plan: str = ""
    """The dry run that is carried out; empty is a dry run."""
    tally: Tally = field(default_factory=Tally)
    ended: datetime | None = None
    plan_hash: str = ""
    """Of a dry run that has succeeded."""


@dataclass(frozen=True)
class Found:
    """Findings of a rebuild for a part of a disk, a bounded number of its points; carried out unless it is a dry run."""

    disk: str
    state: Literal["unchanged", "different", "busy", "unreadable", "changed"]
    running: str = ""
    why: str = ""
    adopted: tuple[str, ...] = ()
    corrected: tuple[str, ...] = ()
    lost: tuple[str, ...] = ()
    quarantined: tuple[tuple[str, str, str], ...] = ()
    """Blob, snapshot, why."""
    head_row: bool = False
    """Whether the head row is made again."""
    registration: bool = False
    floor: str = ""
    """The oldest source snapshot of the part's missing points; empty when no part follows."""

    def within(self, planned: Found) -> bool:
        """Whether everything found was planned: then it may be carried out. What is missing has been done already."""
        pairs = [
            (self.adopted, planned.adopted),
            (self.corrected, planned.corrected),
            (self.lost, planned.lost),
            (self.quarantined, planned.quarantined),
        ]
        more = (self.head_row and not planned.head_row) or (self.registration and not planned.registration)
        return not more and all(set(mine) <= set(others) for mine, others in pairs)


@dataclass(frozen=True)
class Compared:
    """The differences between rows and backup snapshots."""

    missing: tuple[RestorePoint, ...] = ()
    """Points without a row, oldest first: whole by their description, not yet checked against the blob."""
    changed: tuple[Versioned[RestorePoint], ...] = ()
    """Rows to be replaced, with the versions they were read at."""
    damaged: tuple[Place, ...] = ()
    """Backup snapshots whose description is not whole."""

    def part(self, below: str, down_to: str, points_max: int) -> tuple[Compared, str]:
        """One part of the findings, and its floor: the oldest point of the part while older ones are left, else empty. The part
        has missing points older than `below`: the newest `points_max`, or those down to `down_to`. The first part, with an
        empty `below`, also has all other findings.
        """
        older = [point for point in self.missing if not below or point.source_snapshot < below]
        chosen = [point for point in older if point.source_snapshot >= down_to] if down_to else older[-points_max:]
        floor = chosen[0].source_snapshot if len(chosen) < len(older) and chosen else ""
        if below:
            return Compared(tuple(chosen)), floor
        return replace(self, missing=tuple(chosen)), floor


def compare(rows: Sequence[Versioned[RestorePoint]], found: Mapping[Place, RestorePoint | None]) -> Compared:
    """Compare the rows of a disk with its backup snapshots; None stands for a description that is not whole.

    Of several snapshots of one point without a row the last run's oldest counts: those of earlier runs were never committed,
    and a run continues with the oldest of its own.
    """
    changed = [changed for row in rows if (changed := _changed(row, found))]
    known = {row.value.point for row in rows}
    missing: dict[str, RestorePoint] = {}
    # G28: the older of one run's snapshots, as the run itself takes.
    for point in sorted(filter(None, found.values()), key=lambda one: (-one.epoch, one.backup_snapshot)):
        if point.point not in known:
            missing.setdefault(point.point, point)
    damaged = sorted(place for place, point in found.items() if point is None)
    ordered = sorted(missing.values(), key=lambda one: one.source_snapshot)
    return Compared(tuple(ordered), tuple(changed), tuple(damaged))


def _changed(row: Versioned[RestorePoint], found: Mapping[Place, RestorePoint | None]) -> Versioned[RestorePoint] | None:
    point = row.value
    if point.state == "deleting":
        return None  # whether its snapshot exists or not, the next prune completes its deletion
    place = (point.head, point.backup_snapshot)
    if place not in found:
        wanted = replace(point, state="lost")
    elif (described := found[place]) is None:
        wanted = replace(point, state="quarantined")
    else:
        # Quarantine is lifted by a person, never by a listing.
        wanted = replace(described, state="quarantined" if point.state == "quarantined" else "available")
    return None if wanted == point else replace(row, value=wanted)


def newest(points: Iterable[RestorePoint]) -> RestorePoint | None:
    """The newest point that can be restored."""
    available = [point for point in points if point.state == "available"]
    return max(available, key=lambda point: point.source_snapshot, default=None)


def head_of(
    existing: Head | None, disk: str, points: Sequence[RestorePoint], *, epoch: int, head_etag: str, doubt: str
) -> Head:
    """The right head row. An existing one whose pair is the newest point is right already.

    `epoch` is the highest that any blob shows; `head_etag` and `doubt` describe the newest point's backup blob.
    """
    point = newest(points)
    pair = pair_of(point) if point else None
    if existing and existing.pair == pair:
        return existing
    base = existing or Head(disk)
    base = replace(base, epoch=max(base.epoch, epoch), pair=pair)
    if point is None:
        return replace(base, source="", generation=0, head="", head_etag="", automatic_fulls=0, doubt="")
    return replace(
        base,
        source=point.source,
        generation=point.generation,
        head=point.head,
        head_etag=head_etag,
        automatic_fulls=point.automatic_fulls,
        doubt=doubt or (existing.doubt if existing else ""),
    )
