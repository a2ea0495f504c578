"""Making a verified pair visible: the only writer of restore points."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime
from typing import TYPE_CHECKING

from backup_core.activities.tools import guard_of, owned
from backup_core.domain.errors import RowExistsError, UnexpectedAnswerError
from backup_core.domain.metadata import from_metadata, to_metadata
from backup_core.domain.naming import point_id
from backup_core.domain.records import CommonPair, RestorePoint
from backup_core.steps import Commit, Committed

if TYPE_CHECKING:
    from backup_core.activities.tools import Tools
    from backup_core.domain.metadata import HeadMark
    from backup_core.domain.records import Head, Versioned


async def commit_point(tools: Tools, asked: Commit) -> Committed:
    """Insert the point and move the head row to it in one transaction; then mark the head committed and record its version.

    Each part is found done on a repeat. Raises RowExistsError when another run committed this source snapshot.
    """
    transfer = asked.transfer
    row = await owned(tools, transfer.by)
    blob, point = tools.head(transfer.head), point_id(transfer.target)
    mark = from_metadata((await tools.blobs.properties(blob, asked.backup_snapshot)).metadata)
    if mark is None or mark.digest != mark.canonical_digest() or mark.target != transfer.target:
        message = f"{blob} snapshot {asked.backup_snapshot}: its mark is damaged: {mark}; the point was not committed"
        raise UnexpectedAnswerError(message)
    existing = await tools.catalogue.point(transfer.by.disk, point)
    if existing is None:
        await tools.catalogue.commit(_point(asked, mark, row), _advanced(asked, row.value), row.etag)
    elif existing.run != transfer.by.run or existing.backup_snapshot != asked.backup_snapshot:
        message = f"disk {transfer.by.disk}: restore point {point} was committed by run {existing.run} already"
        raise RowExistsError(message)
    await _seal(tools, asked, mark)
    return Committed(point=point)


def _point(asked: Commit, mark: HeadMark, row: Versioned[Head]) -> RestorePoint:
    transfer, pair = asked.transfer, row.value.pair
    return RestorePoint(
        disk=transfer.by.disk,
        point=point_id(transfer.target),
        kind=transfer.kind,
        reason=transfer.reason,
        generation=transfer.generation,
        head=transfer.head,
        source=transfer.by.source,
        source_snapshot=transfer.target,
        previous_source_snapshot=pair.source_snapshot if pair else "",
        backup_snapshot=asked.backup_snapshot,
        size=transfer.size,
        write_bytes=asked.applied.write_bytes,
        clear_bytes=asked.applied.clear_bytes,
        requests=asked.applied.puts + asked.applied.clears,
        epoch=transfer.by.epoch,
        run=transfer.by.run,
        digest=mark.digest,
        page_map=mark.page_map,
        verified=f"sizes, page maps, {asked.compared} bytes of content",
        committed=datetime.fromisoformat(asked.now),
    )


def _advanced(asked: Commit, head: Head) -> Head:
    transfer = asked.transfer
    return replace(
        head,
        source=transfer.by.source,
        generation=transfer.generation,
        head=transfer.head,
        head_etag=asked.etag,
        pair=CommonPair(point_id(transfer.target), transfer.target, asked.backup_snapshot, transfer.size),
        automatic_fulls=head.automatic_fulls + 1 if transfer.automatic else 0,
        doubt="",
    )


async def _seal(tools: Tools, asked: Commit, mark: HeadMark) -> None:
    """Mark the head committed and record its version; after a crash between the two, the version found is recorded."""
    transfer = asked.transfer
    blob = tools.head(transfer.head)
    found = await tools.blobs.properties(blob)
    carried = from_metadata(found.metadata)
    if carried is not None and carried.state == "committed" and carried.target == transfer.target:
        etag = found.etag
    else:
        sealed = to_metadata(replace(mark, state="committed"))
        etag = await tools.blobs.set_metadata(blob, sealed, guard_of(transfer.by, asked.etag))
    row = await owned(tools, transfer.by)
    if row.value.head_etag != etag:
        await tools.catalogue.put_head(replace(row.value, head_etag=etag), row.etag)
