"""Comparing a head with its source snapshot before anything is committed."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from backup_core.activities.fencing import shut
from backup_core.activities.proof import proof, proved
from backup_core.activities.tools import allowed, guard_of, owned, policy_of, side_by_side
from backup_core.activities.transfer import work
from backup_core.domain.errors import HeadAlteredError, UnexpectedAnswerError, VerificationError
from backup_core.domain.metadata import PageMapDigest, from_metadata, to_metadata
from backup_core.domain.ranges import ByteRange, OneSided, chunks, one_sided, windows
from backup_core.domain.sampling import Sampling
from backup_core.steps.backup import Verify
from backup_core.steps.copying import ImageCopy, Verified
from backup_core.steps.restore import CompareImage

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from backup_core.activities.tools import Tools
    from backup_core.domain.naming import BlobAddress

_ZEROS = bytes(4 * 1024 * 1024)


QUARANTINE = "the backup blob failed its verification"


async def verify_head(tools: Tools, asked: Verify) -> Verified:
    """Compare the head with its source snapshot; a mismatch quarantines the head, and the next run is a full backup.

    Raises VerificationError after the quarantine is in the head row.
    """
    try:
        return await _verify(tools, asked)
    except VerificationError:
        row = await owned(tools, asked.transfer.by)
        if row.value.head == asked.transfer.head and not row.value.doubt:
            await tools.catalogue.put_head(replace(row.value, doubt=QUARANTINE), row.etag)
        raise


async def _verify(tools: Tools, asked: Verify) -> Verified:
    """Compare, and mark the head verified at the end: under the lease and the version the comparison began with, so that
    nothing written in between can slip in. What this run's own copying still has under way is refused from the first call on.
    """
    transfer = asked.transfer
    await owned(tools, transfer.by)
    head = tools.head(transfer.head)
    so_far = await _so_far(tools, asked, transfer)
    # Read after the version that is compared: a mark that another delivery has set is seen here, or refuses the one set below.
    found = await tools.blobs.properties(head)
    mark = from_metadata(found.metadata)
    if mark is None or (mark.run, mark.target) != (transfer.by.run, transfer.target):
        message = f"{head}: its mark is not that of run {transfer.by.run}; found {mark}"
        raise UnexpectedAnswerError(message)
    if mark.state in ("verified", "committed"):
        return Verified(
            content=True, offset=transfer.size, chain=mark.page_map, etag=found.etag, compared=asked.compared, done=True
        )
    full = (await policy_of(tools, transfer.by.disk)).verification == "full"
    comparison = Comparison(transfer, full, asked.changed_bytes, asked.ranges)
    reached = await compared(tools, comparison, so_far, found.size)
    if not reached.done:
        return reached
    marked = to_metadata(mark.verified(reached.chain))
    etag = await tools.blobs.set_metadata(head, marked, guard_of(transfer.by, reached.etag))
    return reached.model_copy(update={"etag": etag})


async def compare_image(tools: Tools, asked: CompareImage) -> Verified:
    """Compare a restored image with its point, and store that it was proved equal: later its metadata tell nothing of it. From
    the first call on nothing that the copying sent can land any more.

    Raises VerificationError, and HeadAlteredError when somebody else wrote to the blob meanwhile.
    """
    image = asked.image
    await allowed(tools, image.by)
    if known := await proof(tools, image):
        return known
    blob = tools.image(image.destination)
    so_far = await _so_far(tools, asked, image)
    size = (await tools.blobs.properties(blob)).size
    reached = await compared(tools, Comparison(image, asked.full), so_far, size)
    if reached.done and (now := (await tools.blobs.properties(blob)).etag) != reached.etag:
        message = f"{blob}: changed by somebody else while it was compared (version {reached.etag}, found {now}); not used"
        raise HeadAlteredError(message)
    return await proved(tools, image, reached) if reached.done else reached


async def _so_far(tools: Tools, asked: Verify | CompareImage, image: ImageCopy) -> Verified:
    """Where the comparison came to. Before it begins, the blob is shut to everything the copying may still have under way."""
    etag = asked.etag or await shut(tools, tools.image(image.destination), image.by.epoch + 1, image.by.lease)
    return Verified(
        content=asked.content,
        offset=asked.offset,
        chain=asked.chain or PageMapDigest.START,
        etag=etag,
        compared=asked.compared,
        done=False,
    )


@dataclass(frozen=True)
class Comparison:
    """What is compared, and how much of its content."""

    image: ImageCopy
    full: bool
    changed_bytes: int = 0
    """What the plan says of the diff: bytes it touches, and in how many ranges. Samples are spread over the rest."""
    ranges: int = 0


async def compared(tools: Tools, comparison: Comparison, so_far: Verified, found_size: int) -> Verified:
    """Compare sizes and page maps, then content, window by window, from where `so_far` came to; stops in time.

    A range only one side has allocated must hold zeros: it is read and proved. Raises VerificationError.
    """
    image = comparison.image
    source, blob = tools.image(image.source), tools.image(image.destination)
    size = (await tools.blobs.properties(source, image.target)).size
    if found_size != size:
        message = f"{blob}: {found_size} bytes, but snapshot {image.target} of {source} has {size}; not used"
        raise VerificationError(message)
    began, reached = tools.monotonic(), so_far
    if not reached.content:
        for window in windows(size, tools.limits.window_bytes, reached.offset):
            chain = await _compare(tools, image, source, blob, window, reached.chain)
            ended = window.end == size
            reached = reached.model_copy(update={"chain": chain, "content": ended, "offset": 0 if ended else window.end})
            if tools.monotonic() - began > tools.limits.verify_seconds:
                return reached
    for window in windows(size, tools.limits.content_bytes, reached.offset):
        more = await _compare_content(tools, comparison, window)
        reached = reached.model_copy(update={"compared": reached.compared + more, "offset": window.end})
        if window.end < size and tools.monotonic() - began > tools.limits.verify_seconds:
            return reached
    return reached.model_copy(update={"done": True})


# -- content ------------------------------------------------------------------------------------------------------


async def _compare_content(tools: Tools, comparison: Comparison, window: ByteRange) -> int:
    """Read blocks of the window from both sides and compare them; returns the bytes compared."""
    image = comparison.image
    pieces = _every_chunk(tools, image, window) if comparison.full else _sample(tools, comparison, window)
    comparisons = side_by_side(pieces, lambda piece: _equal(tools, image, piece), tools.limits.in_flight)
    return sum([size async for size in comparisons])


async def _every_chunk(tools: Tools, image: ImageCopy, window: ByteRange) -> AsyncIterator[ByteRange]:
    async for allocated in tools.blobs.allocated(tools.image(image.source), image.target, window):
        for piece in chunks(allocated):
            yield piece


async def _sample(tools: Tools, comparison: Comparison, window: ByteRange) -> AsyncIterator[ByteRange]:
    image = comparison.image
    sampling = Sampling.of(image.size, comparison.changed_bytes, comparison.ranges, tools.limits.samples_min)
    changed = (one.range async for one in work(tools, image, window))
    for block in await sampling.blocks(changed, window, f"{image.by.run}:{image.target}:{window.start}"):
        yield block


async def _equal(tools: Tools, image: ImageCopy, piece: ByteRange) -> int:
    source, blob = tools.image(image.source), tools.image(image.destination)
    wanted, found = await asyncio.gather(tools.blobs.read(source, image.target, piece), tools.blobs.read(blob, "", piece))
    if wanted != found:
        message = (
            f"disk {image.by.disk}: bytes [{piece.start}, {piece.end}) of {blob} differ from snapshot {image.target} of "
            f"{source}; {_consequence(image)}"
        )
        raise VerificationError(message)
    return piece.size


# -- page maps ----------------------------------------------------------------------------------------------------


async def _compare(
    tools: Tools, image: ImageCopy, source: BlobAddress, blob: BlobAddress, window: ByteRange, chain: str
) -> str:
    digest = PageMapDigest(chain)

    async def digested() -> AsyncIterator[ByteRange]:
        async for allocated in tools.blobs.allocated(blob, "", window):
            digest.add(allocated.start, allocated.end)
            yield allocated

    async for lone in one_sided(tools.blobs.allocated(source, image.target, window), digested()):
        await _prove_zero(tools, image, (source, blob), lone)
    return digest.finish()


async def _prove_zero(tools: Tools, image: ImageCopy, sides: tuple[BlobAddress, BlobAddress], lone: OneSided) -> None:
    blob, snapshot = (sides[0], image.target) if lone.left else (sides[1], "")
    for piece in chunks(lone.range):
        data = await tools.blobs.read(blob, snapshot, piece)
        if data != _ZEROS[: len(data)]:
            other = "the copy" if lone.left else "the original"
            message = (
                f"disk {image.by.disk}: bytes [{piece.start}, {piece.end}) of {blob} {snapshot} hold data where {other} "
                f"has none; {_consequence(image)}"
            )
            raise VerificationError(message)


def _consequence(image: ImageCopy) -> str:
    if image.by.pin:
        return f"the restored image was not used, restore point {image.by.pin} is as it was; verify it, and restore again"
    return "the point was not committed; the next run makes a full backup"
