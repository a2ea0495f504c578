"""Snapshots of the source and of the head: taken once per run, found again on a repeat, dropped only when replaced."""

from __future__ import annotations

from typing import TYPE_CHECKING

from backup_core.domain.errors import (
    SnapshotMissingError,
    SnapshotNotReadyError,
    SourceUnfitError,
    UnexpectedAnswerError,
)
from backup_core.domain.metadata import (
    described,
    from_metadata,
    from_point_metadata,
    to_point_metadata,
)
from backup_core.domain.naming import point_id, taking_again_name, taking_name
from backup_core.domain.records import RestorePoint
from backup_core.protocol.rights import guard_of, require_ownership
from backup_core.protocol.source_snapshots import drop_replaced, take_once
from backup_core.steps.backup import (
    BackupSnapshotResult,
    DropPreviousSnapshot,
    SourceSnapshotResult,
    TakeBackupSnapshot,
    TakeSourceSnapshot,
)
from backup_core.steps.messages import Nothing

if TYPE_CHECKING:
    from datetime import datetime

    from backup_core.domain.metadata import HeadMark
    from backup_core.domain.naming import BlobAddress
    from backup_core.domain.records import Head
    from backup_core.protocol.tools import Tools


EMPTY = "{}"


async def take_source_snapshot(tools: Tools, request: TakeSourceSnapshot) -> SourceSnapshotResult:
    """The run's snapshot of the source: taken now, or found when an earlier delivery took it."""
    await require_ownership(tools, request.actor)
    source = tools.source(request.actor.source)
    snapshot = await take_once(tools, request.actor, source)
    properties = await tools.blobs.properties(source, snapshot)
    if not properties.page_blob:
        message = f"disk {request.actor.disk}: source {source} is no longer a page blob; correct the disk's registration"
        raise SourceUnfitError(message)
    if properties.failure:
        message = (
            f"disk {request.actor.disk}: Azure gave up filling snapshot {snapshot} of {source} at {properties.percent} percent "
            f"({properties.failure}); the next run takes another"
        )
        raise SnapshotNotReadyError(message)
    # G62: who calls waits until it is complete.
    return SourceSnapshotResult(snapshot=snapshot, size=properties.size, percent=properties.percent)


async def take_backup_snapshot(tools: Tools, request: TakeBackupSnapshot) -> BackupSnapshotResult:
    """The snapshot of the verified head, under the lease and that version; found again on a repeat.

    The head's snapshots, which are all restore points on it, are listed only where another delivery may have taken one.
    """
    transfer = request.transfer
    row = await require_ownership(tools, transfer.actor)
    blob = tools.head(transfer.head)
    site = tools.site(blob)
    mark = from_metadata((await tools.blobs.properties(blob)).metadata, site)
    # G24: only a head that this run has verified.
    if mark is None or mark.state == "applying" or mark.target != transfer.target or mark.run != transfer.actor.run:
        message = f"{blob}: its mark is not the verified one of run {transfer.actor.run}; found {mark}; no snapshot was taken"
        raise UnexpectedAnswerError(message)
    taking = taking_name(transfer.actor.disk, transfer.actor.run, transfer.target)
    again = taking_again_name(transfer.actor.disk, transfer.actor.run, transfer.target)
    # G28: of two snapshots all deliveries take the older.
    first = await tools.documents.put_if_absent(taking, EMPTY)
    taken = []
    if not first:
        # Before the listing: the first delivery reads it after it has taken its own.
        await tools.documents.put_if_absent(again, EMPTY)
        taken = await _own_backup_snapshots(tools, blob, mark)
    if not taken:
        point = described(_point_to_commit(request, mark.page_map, row.value, await tools.catalogue.now()))
        new = await tools.blobs.snapshot(blob, to_point_metadata(point, site), guard_of(transfer.actor, request.etag))
        if first and await tools.documents.get(again) is None:
            return BackupSnapshotResult(snapshot=new)
        # Two deliveries at once may both have taken one: both use the older, and so does a rebuild.
        taken = await _own_backup_snapshots(tools, blob, mark)
    if not taken:
        message = (
            f"{blob}: the backup snapshot that run {transfer.actor.run} took is gone: the restore point has expired meanwhile"
        )
        raise SnapshotMissingError(message)
    return BackupSnapshotResult(snapshot=taken[0])


async def _own_backup_snapshots(tools: Tools, blob: BlobAddress, mark: HeadMark) -> list[str]:
    """The backup snapshots the run took of this target, oldest first."""
    found = []
    for one in await tools.blobs.snapshots(blob):
        known = from_point_metadata(one.metadata, tools.site(blob), one.snapshot)
        if known and (known.run, known.source_snapshot, known.page_map) == (mark.run, mark.target, mark.page_map):
            found.append(one.snapshot)
    return found


def _point_to_commit(request: TakeBackupSnapshot, page_map: str, head: Head, committed: datetime) -> RestorePoint:
    transfer = request.transfer
    return RestorePoint(
        disk=transfer.actor.disk,
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
        write_bytes=request.applied.write_bytes,
        clear_bytes=request.applied.clear_bytes,
        requests=request.applied.puts + request.applied.clears,
        epoch=transfer.actor.epoch,
        run=transfer.actor.run,
        digest="",
        page_map=page_map,
        verified=f"sizes, page maps, {request.compared} bytes of content",
        committed=committed,
    )


async def drop_previous_snapshot(tools: Tools, request: DropPreviousSnapshot) -> Nothing:
    """Delete the source snapshot of the pair this transfer replaced, once the new pair is confirmed on the service.

    The catalogue is read again here. When anything is unclear the snapshot is kept.
    """
    transfer = request.transfer
    row = await require_ownership(tools, transfer.actor)
    point = await tools.catalogue.point(transfer.actor.disk, point_id(transfer.target))
    if point is None or not point.value.previous_source_snapshot:
        return Nothing()
    former = await tools.catalogue.point(transfer.actor.disk, point_id(point.value.previous_source_snapshot))
    if former:
        await drop_replaced(tools, former.value, row.value)
    return Nothing()
