"""The comparison of a head with its source snapshot, before anything is committed."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from backup_core.domain.errors import HeadAlteredError, UnexpectedAnswerError, VerificationError
from backup_core.domain.metadata import PageMapDigest, from_metadata, to_metadata
from backup_core.domain.naming import DiskAddress
from backup_core.protocol.comparison import compared
from backup_core.protocol.fencing import fence_off
from backup_core.protocol.managed_disks import end_upload, require_at_rest
from backup_core.protocol.proofs import proof, store_proof
from backup_core.protocol.rights import guard_of, registration_of, require_ownership, require_right_to_act
from backup_core.steps.backup import VerifyHead
from backup_core.steps.copying import ComparisonResult, ImageCopy
from backup_core.steps.restore import CompareImage

if TYPE_CHECKING:
    from backup_core.protocol.tools import Tools
    from backup_core.steps.restore import CompareSnapshot


QUARANTINE = "the backup blob failed its verification"


async def verify_head(tools: Tools, request: VerifyHead) -> ComparisonResult:
    """Compare the head with its source snapshot; a mismatch quarantines the head, and the next run is a full backup.

    Raises VerificationError after the quarantine is in the head row.
    """
    try:
        # G25: the mark names the version that the comparison began with.
        return await _verify(tools, request)
    except VerificationError:
        row = await require_ownership(tools, request.transfer.actor)
        if row.value.head == request.transfer.head and not row.value.doubt:
            # G26: a head that is known to be wrong is no base any more.
            await tools.catalogue.put_head(replace(row.value, doubt=QUARANTINE), row.etag)
        raise


async def _verify(tools: Tools, request: VerifyHead) -> ComparisonResult:
    """Compare the head, and mark it verified at the end. The mark is set under the lease and the version that the comparison
    began with, so that any write in between is noticed. From the first call on, the service refuses writes that this run still
    has in flight.
    """
    transfer = request.transfer
    row = await require_ownership(tools, transfer.actor)
    head = tools.head(transfer.head)
    progress = await _progress(tools, request, transfer)
    # Read after the version that is compared: a mark that another delivery has set is seen here, or refuses the one set below.
    found = await tools.blobs.properties(head)
    mark = from_metadata(found.metadata, tools.site(head))
    if mark is None or (mark.run, mark.target) != (transfer.actor.run, transfer.target):
        message = f"{head}: its mark is not that of run {transfer.actor.run}; found {mark}"
        raise UnexpectedAnswerError(message)
    if mark.state in ("verified", "committed"):
        ended = {"content": True, "offset": transfer.size, "chain": mark.page_map, "etag": found.etag, "done": True}
        return progress.model_copy(update=ended)
    full = (await registration_of(tools, transfer.actor.disk)).verification == "full"
    former = row.value.pair.backup_snapshot if transfer.base and row.value.pair else ""
    reached = await compared(tools, transfer, progress, found.size, full=full, former=former)
    if not reached.done:
        return reached
    marked = to_metadata(mark.verified(reached.chain), tools.site(head))
    etag = await tools.blobs.set_metadata(head, marked, guard_of(transfer.actor, reached.etag))
    return reached.model_copy(update={"etag": etag})


async def compare_image(tools: Tools, request: CompareImage) -> ComparisonResult:
    """Compare a restored image with its point, and store that it was proved equal: later its metadata do not say so. From
    the first call on, the service refuses writes of the copying that are still in flight.

    Raises VerificationError, and HeadAlteredError when somebody else wrote to the blob meanwhile.
    """
    image = request.image
    await require_right_to_act(tools, image.actor)
    if known := await proof(tools, image):
        return known
    progress = await _progress(tools, request, image)
    size = (await tools.blobs.properties(tools.destination(image.destination, image.actor.run))).size
    reached = await compared(tools, image, progress, size, full=request.full)
    if not reached.done:
        return reached
    await _require_unchanged(tools, image, reached.etag)
    return await store_proof(tools, image, reached)


async def _require_unchanged(tools: Tools, image: ImageCopy, etag: str) -> None:
    """Raise HeadAlteredError when the image has changed since its comparison began."""
    destination = tools.destination(image.destination, image.actor.run)
    if isinstance(destination, DiskAddress):
        await require_at_rest(tools, image.destination, image.actor.run, etag)
        return
    # G25: the version that was compared is the one that is proved.
    if (now := (await tools.blobs.properties(destination)).etag) != etag:
        message = f"{destination}: changed by somebody else while it was compared (version {etag}, found {now}); not used"
        raise HeadAlteredError(message)


async def compare_snapshot(tools: Tools, request: CompareSnapshot) -> ComparisonResult:
    """Compare the first snapshot of an imported disk with the restore point it was made of. Raises VerificationError, and
    UnexpectedAnswerError for a snapshot that is not newer than the newest restore point: it could not be adopted.
    """
    image = request.image
    row = await require_ownership(tools, image.actor)
    pair = row.value.pair
    if pair and image.snapshot < pair.source_snapshot:
        message = (
            f"disk {image.actor.disk}: snapshot {image.snapshot} of {image.destination} is older, by the clocks of Azure, than "
            f"{pair.source_snapshot}, that of the newest restore point; it is not adopted; restore again"
        )
        raise UnexpectedAnswerError(message)
    size = (await tools.blobs.properties(tools.source(image.destination), image.snapshot)).size
    progress = ComparisonResult(done=False, **(request.position() | {"chain": request.chain or PageMapDigest.START}))
    # G59: compared with the restore point before a machine has the disk.
    return await compared(tools, image, progress, size, full=request.full)


async def _progress(tools: Tools, request: VerifyHead | CompareImage, image: ImageCopy) -> ComparisonResult:
    """The progress of the comparison. Before it begins, the image is closed to writes of the copying still in flight."""
    etag = request.etag or await _close(tools, image)
    begun = {"etag": etag, "chain": request.chain or PageMapDigest.START}
    return ComparisonResult(done=False, **(request.position() | begun))


async def _close(tools: Tools, image: ImageCopy) -> str:
    """Close the image to writes still in flight; its version then. A managed disk can never be opened to them again."""
    destination = tools.destination(image.destination, image.actor.run)
    if isinstance(destination, DiskAddress):
        # G71: the write access is ended before the first page is compared.
        return await end_upload(tools, image.destination, image.actor.run)
    # G9: puts in flight are refused before the first page is compared.
    return await fence_off(tools, destination, image.actor.epoch + 1, image.actor.lease)
