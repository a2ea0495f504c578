"""Snapshots of a source: taken once by a run and recorded in its row, deleted once a newer pair has replaced them."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from backup_core.domain.errors import BlobMissingError, SnapshotMissingError
from backup_core.domain.metadata import run_of_source_snapshot, source_snapshot_metadata
from backup_core.domain.naming import disk_of_run
from backup_core.protocol.run_rows import in_one
from backup_core.protocol.updates import update_row

if TYPE_CHECKING:
    from collections.abc import Sequence

    from backup_core.domain.metadata import Site
    from backup_core.domain.naming import Source
    from backup_core.domain.records import Head, RestorePoint
    from backup_core.ports import Guard
    from backup_core.protocol.tools import Tools
    from backup_core.steps.messages import Actor


async def take_once(tools: Tools, actor: Actor, disk: Source, guard: Guard | None = None) -> str:
    """The run's snapshot of the disk, taken by this or an earlier delivery, and recorded in the run's row. Later only that row
    tells it from a snapshot that inherited its metadata.
    """
    if known := await recorded(tools, actor):
        return min(known)
    site = tools.site(disk)
    fresh = []
    if not await _oldest(tools, site, actor.run):
        fresh = [await tools.blobs.snapshot(disk, source_snapshot_metadata(site, actor.disk, actor.run), guard)]
    # Two deliveries at once may both have taken one: both use the older, and so does every later delivery. Younger ones
    # are not recorded but by who took them: somebody may have copied the oldest onto the disk, and snapshots inherit.
    taken = await _oldest(tools, site, actor.run)
    if not taken:
        message = f"{disk}: the snapshot that run {actor.run} took is gone; something else deletes snapshots of the disk"
        raise SnapshotMissingError(message)
    # G16: the older of two, recorded by its time.
    return min(await _record(tools, actor, listed=taken, fresh=fresh))


async def _oldest(tools: Tools, site: Site, run: str) -> list[str]:
    """The oldest snapshot of the disk that names the run, if there is one."""
    listed = await tools.blobs.snapshots(site.blob)
    return [one.snapshot for one in listed if run_of_source_snapshot(one.metadata, site) == run][:1]


async def recorded(tools: Tools, actor: Actor) -> Sequence[str]:
    """The snapshots of a disk that the run's row records."""
    row = await tools.catalogue.run(actor.disk, actor.run)
    return row.value.source_snapshots if row else ()


async def delete_recorded(tools: Tools, disk: Source, snapshot: str, run: str) -> bool:
    """Delete a snapshot that a run's row names, if it says itself that this run took it: a row alone deletes nothing. Whether
    there was one.
    """
    try:
        found = await tools.blobs.properties(disk, snapshot)
    except (BlobMissingError, SnapshotMissingError):
        return False
    if run_of_source_snapshot(found.metadata, tools.site(disk)) != run:
        return False
    await tools.blobs.delete_snapshot(disk, snapshot)
    return True


async def _record(tools: Tools, actor: Actor, *, listed: list[str], fresh: list[str]) -> Sequence[str]:
    """Add the snapshots to the run's row; all that are there now. A run without a row has nothing removed after it.

    What was `listed` and not taken by this delivery counts only while the run has recorded none and has not ended: when a
    delivery that hung lists, a stranger's snapshot that inherited the run's mark may be the oldest.
    """

    async def record() -> Sequence[str]:
        row = await tools.catalogue.run(actor.disk, actor.run)
        if row is None:
            return [*listed, *fresh]
        late = bool(row.value.source_snapshots) or row.value.ended_for_good
        known = in_one(row.value.source_snapshots, fresh if late else [*listed, *fresh])
        if known != row.value.source_snapshots:
            await tools.catalogue.put_run(replace(row.value, source_snapshots=known), row.etag)
        return known or listed

    return await update_row(record, f"run {actor.run}: its row", "its source snapshot was added to it")


async def drop_replaced(tools: Tools, former: RestorePoint, head: Head) -> bool:
    """Delete the source snapshot of a point that the disk's present pair has replaced; False when none is to be deleted.

    Raises unless both halves of the present pair are on the service: the former snapshot is kept then.
    """
    if head.pair is None or former.source_snapshot >= head.pair.source_snapshot:
        return False
    # G29: without a common pair the next backup is a full one.
    await tools.blobs.properties(tools.source(head.source), head.pair.source_snapshot)
    await tools.blobs.properties(tools.head(head.head), head.pair.backup_snapshot)
    source = tools.source(former.source)
    if not await _is_of_disk(tools, source, former):
        return False
    # G68: nothing starts from it any more.
    await tools.blobs.delete_snapshot(source, former.source_snapshot)
    return True


async def _is_of_disk(tools: Tools, source: Source, point: RestorePoint) -> bool:
    """Whether the point's source snapshot exists and says itself that a run of the disk took it. A row alone deletes nothing on
    a source.
    """
    try:
        found = await tools.blobs.properties(source, point.source_snapshot)
    except (BlobMissingError, SnapshotMissingError):
        return False
    return disk_of_run(run_of_source_snapshot(found.metadata, tools.site(source))) == point.disk
