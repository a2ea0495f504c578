"""Deletion of expired restore points, one by one: first the row is marked, then the backup snapshot goes, then the row."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from backup_core.domain.errors import RowChangedError
from backup_core.domain.metadata import from_point_metadata
from backup_core.domain.retention import verdicts
from backup_core.protocol.listings import side_by_side
from backup_core.protocol.ownership import end_if_dead
from backup_core.protocol.points import all_points
from backup_core.steps.backup import PruneResult

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence

    from backup_core.domain.records import Pin, Registration, RestorePoint, Versioned
    from backup_core.ports import BlobProperties
    from backup_core.protocol.tools import Tools

SnapshotsByPoint = dict[str, list[str]]
"""A head's snapshots by the restore point that each was taken for."""


async def _anybody() -> None:
    return


async def prune(
    tools: Tools, registration: Registration, actor: str, still: Callable[[], Awaitable[None]] = _anybody
) -> PruneResult:
    """Delete the disk's expired restore points, at most a few; `more` when some are left. `still` is awaited before each
    deletion, and raises when `actor` may not act any more.
    """
    # G42: raises unless the points that stay are seen on the service.
    expired = await expired_points(tools, registration, actor)
    most = tools.limits.prune_points_max
    return PruneResult(expired=await delete_points(tools, expired[:most], still), more=len(expired) > most)


async def expired_points(
    tools: Tools, registration: Registration, actor: str, *, trusts_deleting: bool = True
) -> list[Versioned[RestorePoint]]:
    """The disk's restore points that expire by that registration, the oldest first, so that what is left after a crash is the
    newest. No ownership is needed: the facts behind the verdicts change only towards keeping the same points or newer ones.

    Raises SnapshotMissingError when one of the newest points, which stay in place of the expired ones, cannot be seen on the
    service: the night marks such points lost, and then they do not count any more.
    """
    disk = registration.disk
    rows = await all_points(tools, disk, "" if registration.retention else "deleting")
    # Read after the rows: a pin set from now on changes a row's version, and its deletion is refused.
    pinned = {pin.point for pin in await tools.catalogue.pins(disk) if not await release_dead_pin(tools, pin, actor)}
    head = await tools.catalogue.head(disk)
    pair = head.value.pair if head else None
    now = await tools.catalogue.now()
    decided = verdicts(
        [row.value for row in rows], registration.retention, pair, pinned, now, registration.since,
        trusts_deleting=trusts_deleting,
    )  # fmt: skip
    if any(verdict.expires and verdict.point.state == "available" for verdict in decided):
        await _require_snapshots(tools, [verdict.point for verdict in decided if verdict.counts])
    by_id = {row.value.point: row for row in rows}
    return [by_id[verdict.point.point] for verdict in reversed(decided) if verdict.expires]


async def delete_points(
    tools: Tools, rows: Sequence[Versioned[RestorePoint]], still: Callable[[], Awaitable[None]] = _anybody
) -> list[str]:
    """Delete those restore points in that order; the ids of the deleted ones."""
    gone, taken = [], dict[str, SnapshotsByPoint]()
    for row in rows:
        await still()
        if await _delete(tools, row, taken):
            gone.append(row.value.point)
    return gone


async def _require_snapshots(tools: Tools, points: list[RestorePoint]) -> None:
    """Raise unless the backup snapshot of each exists."""

    async def each() -> AsyncIterator[RestorePoint]:
        for point in points:
            yield point

    def look(point: RestorePoint) -> Coroutine[Any, Any, BlobProperties]:
        return tools.blobs.properties(tools.head(point.head), point.backup_snapshot)

    async for _ in side_by_side(each(), look, tools.limits.in_flight):
        pass


async def release_dead_pin(tools: Tools, pin: Pin, actor: str) -> bool:
    """Delete the pin of a run that has ended, or that is abandoned and ended here by `actor`; False for the pin of a run at
    work.
    """
    # G31: a pin counts while its run lives.
    if not await end_if_dead(tools, pin.disk, pin.run, actor):
        return False
    await tools.catalogue.unpin(pin)
    return True


async def _delete(tools: Tools, row: Versioned[RestorePoint], taken: dict[str, SnapshotsByPoint]) -> bool:
    """Delete the point; False when its row was changed meanwhile: then it is kept. `taken` has the heads that were listed."""
    try:
        # G43: a crash from here on leaves nothing that looks restorable.
        marked = await tools.catalogue.mark_deleting(row)
    except RowChangedError:
        return False
    await tools.blobs.delete_snapshot(tools.head(row.value.head), row.value.backup_snapshot)
    await _delete_twins(tools, row.value, taken)
    await tools.catalogue.delete_point(marked)
    return True


async def _delete_twins(tools: Tools, point: RestorePoint, taken: dict[str, SnapshotsByPoint]) -> None:
    """Delete another delivery's snapshot of the same point: it would keep the whole blob, and a rebuild would find it.

    A head is listed once, however many of its points expire: nobody takes a snapshot of a point that a newer one follows.
    """
    if point.head not in taken:
        taken[point.head] = await _snapshots_by_point(tools, point.disk, point.head)
    for snapshot in taken[point.head].get(point.point, []):
        if snapshot != point.backup_snapshot:
            await tools.blobs.delete_snapshot(tools.head(point.head), snapshot)


async def _snapshots_by_point(tools: Tools, disk: str, name: str) -> SnapshotsByPoint:
    head, taken = tools.head(name), SnapshotsByPoint()
    for one in await tools.blobs.snapshots(head):
        known = from_point_metadata(one.metadata, tools.site(head), one.snapshot)
        if known and known.disk == disk:
            taken.setdefault(known.point, []).append(one.snapshot)
    return taken
