"""A whole image as one Copy Blob of the service: started, polled, aborted, and its result taken over as the run's own."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from backup_core.domain.errors import BlobChangedError, BlobExistsError, CopyFailedError
from backup_core.ports import Guard
from backup_core.protocol.copied import copy_of, store_complete
from backup_core.protocol.images import hold_own, kept_tier
from backup_core.protocol.marks import is_own, metadata_of
from backup_core.protocol.proofs import proof
from backup_core.protocol.rights import require_right_to_act
from backup_core.steps.copying import CheckCopyResult, CopyRef, ImageCopy, OpenResult, StartCopy, StartCopyResult
from backup_core.steps.messages import Nothing

if TYPE_CHECKING:
    from backup_core.domain.naming import BlobAddress
    from backup_core.ports import BlobProperties, CopyState
    from backup_core.protocol.tools import Tools


PROVED = "proved"
"""Stands for the copy of an image that is complete and proved; the service is not asked for it any more."""


async def start_copy(tools: Tools, image: StartCopy) -> StartCopyResult:
    """Begin to copy the snapshot to the run's new blob, or over the copy that it `replaces`: only while that is there, and
    failed. Any other of this image's, which an earlier delivery began, is found again.

    The metadata is given, since a copy would otherwise take over the source's. Raises CopySourceRefusedError.
    """
    await require_right_to_act(tools, image.actor)
    if await proof(tools, image):
        return StartCopyResult(copy_id=PROVED)
    destination, metadata, tier = tools.made_blob(image.destination), metadata_of(tools, image), await kept_tier(tools, image)
    over = ""
    if image.replaces:
        copy, etag = await _own_copy(tools, image, destination)
        # G23: another one may be in progress, or complete.
        if (copy.copy_id, copy.status) != (image.replaces, "failed"):
            return StartCopyResult(copy_id=copy.copy_id)
        over = etag
    try:
        begun = await tools.blobs.start_copy(tools.image(image.source), image.target, destination, metadata, tier, over)
    except (BlobExistsError, BlobChangedError):
        begun = (await _own_copy(tools, image, destination))[0].copy_id
    return StartCopyResult(copy_id=begun)


async def _own_copy(tools: Tools, image: ImageCopy, destination: BlobAddress) -> tuple[CopyState, str]:
    """The copy that this image's blob was made by, and the blob's version. Raises BlobExistsError for any other blob."""
    found = await tools.blobs.properties(destination)
    # G19: an existing blob is used only with this run's own mark.
    copy = await copy_of(tools, image, found)
    if not is_own(tools, found.metadata, image) or not copy:
        message = (
            f"{destination} exists, and is no copy that run {image.actor.run} has begun; nothing was written; use another name"
        )
        raise BlobExistsError(message)
    return copy, found.etag


async def check_copy(tools: Tools, request: CopyRef) -> CheckCopyResult:
    """The progress of the copy. Another copy than the requested one counts as failed."""
    await require_right_to_act(tools, request.image.actor)
    if await proof(tools, request.image):
        return CheckCopyResult(status="success", done=request.image.size, total=request.image.size)
    state = await copy_of(tools, request.image, await tools.blobs.properties(tools.made_blob(request.image.destination)))
    if state is None or state.copy_id != request.copy_id:
        return CheckCopyResult(status="failed", done=0, total=request.image.size, why="another copy was made onto the blob")
    return CheckCopyResult(status=state.status, done=state.done_bytes, total=state.total_bytes, why=state.description)


async def abort_copy(tools: Tools, request: CopyRef) -> Nothing:
    """End the copy; one that has ended already is left as it is."""
    await require_right_to_act(tools, request.image.actor)
    await tools.blobs.abort_copy(tools.made_blob(request.image.destination), request.copy_id)
    return Nothing()


async def take_over_copy(tools: Tools, request: CopyRef) -> OpenResult:
    """Make the finished copy the run's own: leased, at the run's epoch, read back. Raises CopyFailedError unless the blob is
    this run's own complete copy; metadata alone proves nothing, an aborted copy has them too.
    """
    image = request.image
    await require_right_to_act(tools, image.actor)
    if known := await proof(tools, image):
        return OpenResult(etag=known.etag)
    destination = tools.made_blob(image.destination)
    # G23: the copy counts by its id, status, size, mark and number, all read back.
    found = await _own_complete_copy(tools, request, destination)
    # Before the number is set: from then on the service says nothing of the copy.
    await store_complete(tools, image, request.copy_id)
    await hold_own(tools, destination, image.actor)
    if found.sequence_number not in _numbers(request):
        # The copy took over the source's number, which may be any. Another delivery of this step may have changed it meanwhile;
        # what it is now is read back below.
        with suppress(BlobChangedError):
            await tools.blobs.set_sequence_number(destination, image.actor.epoch, Guard(image.actor.lease, found.etag))
    return OpenResult(etag=(await _own_complete_copy(tools, request, destination, _numbers(request))).etag)


def _numbers(request: CopyRef) -> tuple[int, int]:
    """Sequence numbers of a copy that was taken over: the epoch, or the next one, which closes it for its comparison."""
    return request.image.actor.epoch, request.image.actor.epoch + 1


async def _own_complete_copy(
    tools: Tools, request: CopyRef, blob: BlobAddress, numbers: tuple[int, ...] = ()
) -> BlobProperties:
    image = request.image
    found = await tools.blobs.properties(blob)
    state = await copy_of(tools, image, found)
    wanted = (request.copy_id, "success", image.size)
    seen = (state.copy_id if state else "", state.status if state else "none", found.size)
    if seen != wanted or not is_own(tools, found.metadata, image) or (numbers and found.sequence_number not in numbers):
        message = (
            f"{blob}: expected copy {request.copy_id} complete with {image.size} bytes at epoch {image.actor.epoch}; found "
            f"copy {seen[0]} ({seen[1]}) with {found.size} bytes at {found.sequence_number}; the next run copies anew"
        )
        raise CopyFailedError(message)
    return found
