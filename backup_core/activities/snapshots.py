"""Snapshots of the source and of the head: taken once per run, found again on a repeat, dropped only when replaced."""

from __future__ import annotations

from typing import TYPE_CHECKING

from backup_core.activities.tools import guard_of, owned
from backup_core.domain.errors import SnapshotMissingError, SourceUnfitError, UnexpectedAnswerError
from backup_core.domain.metadata import (
    described,
    from_metadata,
    from_point_metadata,
    run_of_source_snapshot,
    source_snapshot_metadata,
    to_point_metadata,
)
from backup_core.domain.naming import point_id
from backup_core.domain.records import RestorePoint
from backup_core.steps.backup import BackedUp, Clean, Snapshotted, TakeBackup, TakeSnapshot
from backup_core.steps.messages import Nothing

if TYPE_CHECKING:
    from datetime import datetime

    from backup_core.activities.tools import Tools
    from backup_core.domain.metadata import HeadMark
    from backup_core.domain.naming import BlobAddress
    from backup_core.domain.records import Head


async def take_source_snapshot(tools: Tools, asked: TakeSnapshot) -> Snapshotted:
    """The run's snapshot of the source: taken now, or found when an earlier delivery took it."""
    await owned(tools, asked.by)
    source = tools.source(asked.by.source)
    taken = await _taken_of_source(tools, source, asked.by.run)
    if not taken:
        await tools.blobs.snapshot(source, source_snapshot_metadata(asked.by.disk, asked.by.run))
        # Two deliveries at once may both have taken one: both go on with the older, and so does every later delivery.
        taken = await _taken_of_source(tools, source, asked.by.run)
    if not taken:
        message = f"{source}: the snapshot that run {asked.by.run} took is gone; something else deletes snapshots of the disk"
        raise SnapshotMissingError(message)
    snapshot = taken[0]
    properties = await tools.blobs.properties(source, snapshot)
    if not properties.page_blob:
        message = f"disk {asked.by.disk}: source {source} is no longer a page blob; correct the disk's policy"
        raise SourceUnfitError(message)
    return Snapshotted(snapshot=snapshot, size=properties.size)


async def _taken_of_source(tools: Tools, source: BlobAddress, run: str) -> list[str]:
    """The source snapshots the run took, oldest first."""
    return [one.snapshot for one in await tools.blobs.snapshots(source) if run_of_source_snapshot(one.metadata) == run]


async def take_backup_snapshot(tools: Tools, asked: TakeBackup) -> BackedUp:
    """The snapshot of the verified head, under the lease and that version; found again on a repeat."""
    transfer = asked.transfer
    row = await owned(tools, transfer.by)
    blob = tools.head(transfer.head)
    mark = from_metadata((await tools.blobs.properties(blob)).metadata)
    if mark is None or mark.state == "applying" or mark.target != transfer.target or mark.run != transfer.by.run:
        message = f"{blob}: its mark is not the verified one of run {transfer.by.run}; found {mark}; no snapshot was taken"
        raise UnexpectedAnswerError(message)
    taken = await _taken(tools, blob, mark)
    if not taken:
        point = described(_point(asked, mark.page_map, row.value, await tools.catalogue.now()))
        await tools.blobs.snapshot(blob, to_point_metadata(point), guard_of(transfer.by, asked.etag))
        # Two deliveries at once may both have taken one: both go on with the older, and so does a rebuild.
        taken = await _taken(tools, blob, mark)
    if not taken:
        message = (
            f"{blob}: the backup snapshot that run {transfer.by.run} took is gone: the restore point has expired meanwhile"
        )
        raise SnapshotMissingError(message)
    return BackedUp(snapshot=taken[0])


async def _taken(tools: Tools, blob: BlobAddress, mark: HeadMark) -> list[str]:
    """The backup snapshots the run took of this target, oldest first."""
    found = []
    for one in await tools.blobs.snapshots(blob):
        known = from_point_metadata(one.metadata, blob.name, one.snapshot)
        if known and (known.run, known.source_snapshot, known.page_map) == (mark.run, mark.target, mark.page_map):
            found.append(one.snapshot)
    return found


def _point(asked: TakeBackup, page_map: str, head: Head, committed: datetime) -> RestorePoint:
    transfer = asked.transfer
    return RestorePoint(
        disk=transfer.by.disk,
        point=point_id(transfer.target),
        kind=transfer.kind,
        reason=transfer.reason,
        automatic_fulls=head.automatic_fulls + 1 if transfer.automatic else 0,
        generation=transfer.generation,
        head=transfer.head,
        source=transfer.source,
        source_snapshot=transfer.target,
        previous_source_snapshot=head.pair.source_snapshot if head.pair else "",
        backup_snapshot="",
        size=transfer.size,
        write_bytes=asked.applied.write_bytes,
        clear_bytes=asked.applied.clear_bytes,
        requests=asked.applied.puts + asked.applied.clears,
        epoch=transfer.by.epoch,
        run=transfer.by.run,
        digest="",
        page_map=page_map,
        verified=f"sizes, page maps, {asked.compared} bytes of content",
        committed=committed,
    )


async def drop_previous_snapshot(tools: Tools, asked: Clean) -> Nothing:
    """Delete the source snapshot of the pair this transfer replaced, once the new pair is confirmed on the service.

    The catalogue is read again here. When anything is unclear the snapshot is kept.
    """
    transfer = asked.transfer
    row = await owned(tools, transfer.by)
    pair = row.value.pair
    found = await tools.catalogue.point(transfer.by.disk, point_id(transfer.target))
    if pair is None or found is None or pair.source_snapshot != transfer.target or not found.value.previous_source_snapshot:
        return Nothing()
    point = found.value
    known = await tools.catalogue.point(transfer.by.disk, point_id(point.previous_source_snapshot))
    previous = known.value if known else None
    if previous is None or previous.source_snapshot >= point.source_snapshot:
        return Nothing()
    # Raises, and so keeps the old one, unless both halves of the new pair are there.
    await tools.blobs.properties(tools.source(point.source), pair.source_snapshot)
    await tools.blobs.properties(tools.head(point.head), pair.backup_snapshot)
    await tools.blobs.delete_snapshot(tools.source(previous.source), previous.source_snapshot)
    return Nothing()
