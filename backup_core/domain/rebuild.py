"""The catalogue as a function of the blobs: what the rows should say, given what the backup snapshots say of themselves."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from backup_core.domain.records import Head, RestorePoint, Versioned, pair_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

Place = tuple[str, str]
"""(head, backup snapshot)."""
DIRTY = "the catalogue was rebuilt while the backup blob was half written"


@dataclass(frozen=True)
class Compared:
    """Where rows and backup snapshots differ."""

    missing: tuple[RestorePoint, ...] = ()
    """Points without a row, oldest first: whole by their description, not yet checked against the blob."""
    changed: tuple[Versioned[RestorePoint], ...] = ()
    """Rows to be replaced, with the versions they were read at."""
    damaged: tuple[Place, ...] = ()
    """Backup snapshots whose description is not whole."""


def compare(rows: Sequence[Versioned[RestorePoint]], found: Mapping[Place, RestorePoint | None]) -> Compared:
    """Compare the rows of a disk with its backup snapshots; None stands for a description that is not whole.

    Of several snapshots of one point without a row the last run's oldest counts: those of earlier runs were never committed,
    and a run goes on with the oldest of its own.
    """
    changed = [changed for row in rows if (changed := _changed(row, found))]
    known = {row.value.point for row in rows}
    missing: dict[str, RestorePoint] = {}
    for point in sorted(filter(None, found.values()), key=lambda one: (-one.epoch, one.backup_snapshot)):
        if point.point not in known:
            missing.setdefault(point.point, point)
    damaged = sorted(place for place, point in found.items() if point is None)
    ordered = sorted(missing.values(), key=lambda one: one.source_snapshot)
    return Compared(tuple(ordered), tuple(changed), tuple(damaged))


def _changed(row: Versioned[RestorePoint], found: Mapping[Place, RestorePoint | None]) -> Versioned[RestorePoint] | None:
    point = row.value
    if point.state == "deleting":
        return None  # whether its snapshot is still there or not, the next prune ends it
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
    """What the head row should say. An existing one whose pair is the newest point is right as it is.

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
