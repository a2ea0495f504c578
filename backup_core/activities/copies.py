"""A full copy as one Copy Blob of the service: start it, look at it, end it, and take its result over as the run's head."""

from __future__ import annotations

from typing import TYPE_CHECKING

from backup_core.activities.tools import owned
from backup_core.activities.transfer import intent
from backup_core.domain.errors import BlobExistsError, CopyFailedError
from backup_core.domain.metadata import from_metadata, to_metadata
from backup_core.steps import CopyProgress, CopyRef, CopyStarted, Nothing, Opened, Transfer

if TYPE_CHECKING:
    from backup_core.activities.tools import Tools
    from backup_core.domain.naming import BlobAddress


async def start_copy(tools: Tools, transfer: Transfer) -> CopyStarted:
    """Begin to copy the source snapshot to the run's new head; a copy that an earlier delivery began is found again.

    The metadata is given, since a copy would otherwise take over the source's. Raises CopySourceRefusedError.
    """
    await owned(tools, transfer.by)
    source, head = tools.source(transfer.by.source), tools.head(transfer.head)
    mark = intent(transfer)
    try:
        copy = await tools.blobs.start_copy(source, transfer.target, head, to_metadata(mark))
    except BlobExistsError:
        found = await tools.blobs.properties(head)
        if from_metadata(found.metadata) != mark or not found.copy:
            raise
        copy = found.copy.copy_id
    return CopyStarted(copy_id=copy)


async def check_copy(tools: Tools, asked: CopyRef) -> CopyProgress:
    """How far the copy is. Another copy than the one asked for counts as failed."""
    await owned(tools, asked.transfer.by)
    state = (await tools.blobs.properties(tools.head(asked.transfer.head))).copy
    if state is None or state.copy_id != asked.copy_id:
        return CopyProgress(status="failed", done=0, total=asked.transfer.size, why="another copy was made onto the blob")
    return CopyProgress(status=state.status, done=state.done_bytes, total=state.total_bytes, why=state.description)


async def abort_copy(tools: Tools, asked: CopyRef) -> Nothing:
    """End the copy; one that has ended already is left as it is."""
    await owned(tools, asked.transfer.by)
    await tools.blobs.abort_copy(tools.head(asked.transfer.head), asked.copy_id)
    return Nothing()


async def take_over_copy(tools: Tools, asked: CopyRef) -> Opened:
    """Make the finished copy the run's head: leased, at the run's epoch, read back. Raises CopyFailedError unless the blob is
    this run's own complete copy; metadata alone proves nothing, an aborted copy has them too.
    """
    transfer = asked.transfer
    await owned(tools, transfer.by)
    head = tools.head(transfer.head)
    await _must_be_ours(tools, asked, head, leased=False)
    await tools.blobs.acquire_lease(head, transfer.by.lease)
    # The copy took over the source's sequence number, which may be anything: it is set, not raised. Nobody else writes here.
    await tools.blobs.set_sequence_number(head, transfer.by.epoch, transfer.by.lease)
    return Opened(etag=await _must_be_ours(tools, asked, head, leased=True))


async def _must_be_ours(tools: Tools, asked: CopyRef, head: BlobAddress, *, leased: bool) -> str:
    transfer = asked.transfer
    found = await tools.blobs.properties(head)
    state = found.copy
    wanted = (asked.copy_id, "success", transfer.size, intent(transfer))
    seen = (state.copy_id if state else "", state.status if state else "none", found.size, from_metadata(found.metadata))
    if seen != wanted or (leased and found.sequence_number != transfer.by.epoch):
        message = (
            f"{head}: expected copy {asked.copy_id} complete with {transfer.size} bytes at epoch {transfer.by.epoch}; found "
            f"copy {seen[0]} ({seen[1]}) with {found.size} bytes at {found.sequence_number}; the next run copies anew"
        )
        raise CopyFailedError(message)
    return found.etag
