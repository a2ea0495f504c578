"""The commit of a verified pair: the only writer of restore points."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from backup_core.domain.errors import RowExistsError, UnexpectedAnswerError
from backup_core.domain.metadata import from_metadata, from_point_metadata, to_metadata
from backup_core.domain.records import pair_of
from backup_core.protocol.registrations import complete_move, prepare_move
from backup_core.protocol.rights import guard_of, require_ownership
from backup_core.steps.backup import CommitPoint, CommitResult

if TYPE_CHECKING:
    from backup_core.domain.records import Head, RestorePoint
    from backup_core.protocol.tools import Tools


async def commit_point(tools: Tools, request: CommitPoint) -> CommitResult:
    """Insert the point and move the head row to it in one transaction; then mark the head committed and record its version.

    Each part is found done on a repeat. Raises RowExistsError when another run committed this source snapshot.
    """
    transfer = request.transfer
    row = await require_ownership(tools, transfer.actor)
    blob = tools.head(transfer.head)
    carried = (await tools.blobs.properties(blob, request.backup_snapshot)).metadata
    point = from_point_metadata(carried, tools.site(blob), request.backup_snapshot)
    # G30: the row is made from the snapshot's own description.
    if point is None or (point.disk, point.source_snapshot) != (transfer.actor.disk, transfer.target):
        message = (
            f"{blob} snapshot {request.backup_snapshot}: its description is damaged: {dict(carried)}; "
            "the restore point was not committed"
        )
        raise UnexpectedAnswerError(message)
    if request.moves_from and older_than_the_pair(point, row.value):
        message = (
            f"disk {point.disk}: the new disk's snapshot {point.source_snapshot} is not newer than the newest restore point; "
            "it is not adopted; the next backup is a full one"
        )
        raise UnexpectedAnswerError(message)
    existing = await tools.catalogue.point(point.disk, point.point)
    if existing is None:
        registration = await prepare_move(tools, transfer.actor.disk, transfer.source) if request.moves_from else None
        try:
            # G27: one transaction, at the version at which the run owned the disk.
            await tools.catalogue.commit([point], _advanced(request, point, row.value), row.etag, registration=registration)
        except RowExistsError:
            # Committed in between: by a request of this very run whose answer was lost, or by another's.
            existing = await tools.catalogue.point(point.disk, point.point)
    if existing and (existing.value.run, existing.value.backup_snapshot) != (point.run, point.backup_snapshot):
        message = f"disk {point.disk}: restore point {point.point} was committed by run {existing.value.run} already"
        raise RowExistsError(message)
    await _mark_committed(tools, request)
    if request.moves_from:
        await complete_move(tools, transfer.actor.disk, request.moves_from)
    return CommitResult(point=point.point)


def older_than_the_pair(point: RestorePoint, head: Head) -> bool:
    """Whether the point would not be the newest: points are in the order of their source snapshots."""
    # G33: a point that is not the newest is not committed.
    pair = head.pair
    return pair is not None and pair.point != point.point and point.source_snapshot <= pair.source_snapshot


def _advanced(request: CommitPoint, point: RestorePoint, head: Head) -> Head:
    return replace(
        # A restore's point ends the change of its machine in the same transaction.
        head.settled() if request.moves_from else head,
        source=point.source,
        generation=point.generation,
        head=point.head,
        head_etag=request.etag,
        pair=pair_of(point),
        automatic_fulls=point.automatic_fulls,
        doubt="",
    )


async def _mark_committed(tools: Tools, request: CommitPoint) -> None:
    """Mark the head committed and record its version; after a crash between the two, the version found is recorded."""
    transfer = request.transfer
    blob = tools.head(transfer.head)
    found = await tools.blobs.properties(blob)
    mark = from_metadata(found.metadata, tools.site(blob))
    if mark is None or mark.target != transfer.target:
        message = f"{blob}: its mark is not that of source snapshot {transfer.target}; found {mark}"
        raise UnexpectedAnswerError(message)
    etag = found.etag
    if mark.state != "committed":
        sealed = to_metadata(replace(mark, state="committed"), tools.site(blob))
        etag = await tools.blobs.set_metadata(blob, sealed, guard_of(transfer.actor, request.etag))
    row = await require_ownership(tools, transfer.actor)
    if row.value.head_etag != etag:
        await tools.catalogue.put_head(replace(row.value, head_etag=etag), row.etag)
