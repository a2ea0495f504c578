"""Lost restore points, whose backup snapshots are gone although no retention deleted them: found, reported, marked `lost`."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from backup_core.domain.errors import RowChangedError, SnapshotMissingError
from backup_core.domain.events import PointsLost
from backup_core.domain.rebuild import head_of

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from backup_core.domain.rebuild import Place
    from backup_core.domain.records import Head, RestorePoint, Versioned
    from backup_core.protocol.tools import Tools

PAIR_LOST = "the backup snapshot of the newest restore point is gone"


async def mark_losses(
    tools: Tools, disk: str, actor: str, rows: Sequence[Versioned[RestorePoint]], listed: Collection[Place]
) -> bool:
    """Mark as `lost` the points that the listing lacks, after each was looked up once more, and emit the event before that.

    At most `sweeps_max` in one call; returns whether a repeat would look at more. A head row whose pair is among them is set
    back to the newest point that is there, unless a run has the disk: that run makes a newer pair.
    """
    # A run that begins or commits from now on changes the head row's version.
    head = await tools.catalogue.head(disk)
    suspects = [
        row
        for row in rows
        if row.value.state not in ("lost", "deleting") and (row.value.head, row.value.backup_snapshot) not in listed
    ]
    looked_at = suspects[: tools.limits.sweeps_max]
    # G49: each is looked up once more, and its row read after that.
    gone = [row for suspect in looked_at if (row := await _gone(tools, suspect.value))]
    if gone:
        ids = sorted(row.value.point for row in gone)
        tools.journal.write(PointsLost(disk=disk, run=actor, points=len(ids), oldest=ids[0], newest=ids[-1]))
    marked = set()
    for row in gone:
        # Changed meanwhile: a run begins to use it, or deletes the rest of it. The next night looks again.
        with suppress(RowChangedError):
            marked.add((await tools.catalogue.mark_lost(row)).value.point)
    more = len(suspects) > len(looked_at)
    if head and not more:
        await _set_back(tools, head, [row.value for row in rows if row.value.point not in marked])
    return more


async def _gone(tools: Tools, point: RestorePoint) -> Versioned[RestorePoint] | None:
    """The point's row, if its backup snapshot does not exist and no deletion of it has begun.

    The row is read after the snapshot was looked up: a prune marks the row before it deletes the snapshot. A container that is
    missing is an error, and never a lost point.
    """
    try:
        await tools.blobs.properties(tools.head(point.head), point.backup_snapshot)
    except SnapshotMissingError:
        row = await tools.catalogue.point(point.disk, point.point)
        return row if row and row.value == point else None
    return None


async def _set_back(tools: Tools, head: Versioned[Head], points: Sequence[RestorePoint]) -> None:
    pair = head.value.pair
    if pair is None or head.value.owner or any(one.point == pair.point and one.state != "lost" for one in points):
        return
    row = await tools.catalogue.point(head.value.disk, pair.point)
    if row is None or row.value.state != "lost":
        return
    wanted = head_of(head.value, head.value.disk, points, epoch=head.value.epoch, head_etag="", doubt=PAIR_LOST)
    # A run has begun meanwhile: it makes a newer pair.
    with suppress(RowChangedError):
        await tools.catalogue.put_head(wanted, head.etag)
