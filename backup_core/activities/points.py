"""Making a verified pair visible: the only writer of restore points."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from backup_core.activities.tools import guard_of, owned
from backup_core.domain.errors import RowExistsError, UnexpectedAnswerError
from backup_core.domain.metadata import from_metadata, from_point_metadata, to_metadata
from backup_core.domain.records import pair_of
from backup_core.steps import Commit, Committed

if TYPE_CHECKING:
    from backup_core.activities.tools import Tools
    from backup_core.domain.records import Head, RestorePoint


async def commit_point(tools: Tools, asked: Commit) -> Committed:
    """Insert the point and move the head row to it in one transaction; then mark the head committed and record its version.

    Each part is found done on a repeat. Raises RowExistsError when another run committed this source snapshot.
    """
    transfer = asked.transfer
    row = await owned(tools, transfer.by)
    blob = tools.head(transfer.head)
    carried = (await tools.blobs.properties(blob, asked.backup_snapshot)).metadata
    point = from_point_metadata(carried, transfer.head, asked.backup_snapshot)
    if point is None or (point.disk, point.source_snapshot) != (transfer.by.disk, transfer.target):
        message = (
            f"{blob} snapshot {asked.backup_snapshot}: its description is damaged: {dict(carried)}; the point was not committed"
        )
        raise UnexpectedAnswerError(message)
    existing = await tools.catalogue.point(point.disk, point.point)
    if existing is None:
        await tools.catalogue.commit([point], _advanced(asked, point, row.value), row.etag)
    elif (existing.value.run, existing.value.backup_snapshot) != (point.run, point.backup_snapshot):
        message = f"disk {point.disk}: restore point {point.point} was committed by run {existing.value.run} already"
        raise RowExistsError(message)
    await _seal(tools, asked)
    return Committed(point=point.point)


def _advanced(asked: Commit, point: RestorePoint, head: Head) -> Head:
    return replace(
        head,
        source=point.source,
        generation=point.generation,
        head=point.head,
        head_etag=asked.etag,
        pair=pair_of(point),
        automatic_fulls=point.automatic_fulls,
        doubt="",
    )


async def _seal(tools: Tools, asked: Commit) -> None:
    """Mark the head committed and record its version; after a crash between the two, the version found is recorded."""
    transfer = asked.transfer
    blob = tools.head(transfer.head)
    found = await tools.blobs.properties(blob)
    mark = from_metadata(found.metadata)
    if mark is None or mark.target != transfer.target:
        message = f"{blob}: its mark is not that of source snapshot {transfer.target}; found {mark}"
        raise UnexpectedAnswerError(message)
    etag = found.etag
    if mark.state != "committed":
        sealed = to_metadata(replace(mark, state="committed"))
        etag = await tools.blobs.set_metadata(blob, sealed, guard_of(transfer.by, asked.etag))
    row = await owned(tools, transfer.by)
    if row.value.head_etag != etag:
        await tools.catalogue.put_head(replace(row.value, head_etag=etag), row.etag)
