"""Comparing an image with its snapshot: sizes, page maps, content."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import TYPE_CHECKING

from backup_core.domain.coalescing import with_gaps
from backup_core.domain.errors import VerificationError
from backup_core.domain.metadata import PageMapDigest
from backup_core.domain.ranges import PUT_BYTES_MAX, ByteRange, Mapped, chunks, mapped, windows
from backup_core.domain.sampling import BlockRun, Draw, block_runs
from backup_core.protocol.documents import PLAN, held_document
from backup_core.protocol.listings import changed_ranges, side_by_side
from backup_core.steps.copying import Blocks, ComparisonResult, ImageCopy

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Sequence

    from backup_core.protocol.tools import Tools


_ZEROS = bytes(PUT_BYTES_MAX)


async def compared(
    tools: Tools, image: ImageCopy, progress: ComparisonResult, found_size: int, *, full: bool
) -> ComparisonResult:
    """Compare sizes and page maps, then content, window by window, from where `progress` came to; stops in time.

    A range only one side has allocated must hold zeros: it is read and proved. Of the content, every allocated byte is compared
    when `full`, else samples. Raises VerificationError.
    """
    source, blob = tools.image(image.source), tools.destination(image.destination)
    size = (await tools.blobs.properties(source, image.target)).size
    if found_size != size:
        message = f"{blob}: {found_size} bytes, but snapshot {image.target} of {source} has {size}; not used"
        raise VerificationError(message)
    deadline, reached = tools.monotonic() + tools.limits.verify_seconds, progress
    if not reached.content:
        for window in windows(size, tools.limits.window_bytes, reached.offset):
            reached = await (_compare_maps if full else _compare_maps_and_count)(tools, image, window, reached)
            if window.end == size:
                expected = reached.reads_expected if full else 2 * _draw(tools, image, reached).count
                reached = reached.model_copy(update={"content": True, "offset": 0, "reads_expected": expected})
            if tools.monotonic() > deadline:
                return reached
    content = _whole_content(tools, image, reached) if full else _sampled_content(tools, image, reached)
    async with aclosing(content) as parts:
        async for part in parts:
            reached = part
            if reached.offset < size and tools.monotonic() > deadline:
                return reached
    return reached.model_copy(update={"done": True})


# -- content ------------------------------------------------------------------------------------------------------


async def _whole_content(tools: Tools, image: ImageCopy, reached: ComparisonResult) -> AsyncGenerator[ComparisonResult, None]:
    """Every allocated byte, some pieces at a time; how far it came after each time, and at the end."""
    source, limits = tools.image(image.source), tools.limits
    for window in windows(image.size, limits.window_bytes, reached.offset):
        allocated = tools.blobs.allocated(source, image.target, window)
        async for batch in _batches(_pieces(allocated), limits.batch_reads):
            reached = await _compare_pieces(tools, image, batch, reached)
            yield reached.model_copy(update={"offset": batch[-1].end})
        reached = reached.model_copy(update={"offset": window.end})
        yield reached


async def _pieces(ranges: AsyncIterator[ByteRange]) -> AsyncIterator[ByteRange]:
    async for one in ranges:
        for piece in chunks(one):
            yield piece


async def _batches(pieces: AsyncIterator[ByteRange], size: int) -> AsyncIterator[list[ByteRange]]:
    batch: list[ByteRange] = []
    async for piece in pieces:
        batch.append(piece)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


async def _sampled_content(tools: Tools, image: ImageCopy, reached: ComparisonResult) -> AsyncGenerator[ComparisonResult, None]:
    """The drawn blocks, window by window; how far it came after each."""
    draw = _draw(tools, image, reached)
    for window in windows(image.size, tools.limits.window_bytes, reached.offset):
        before = reached.before
        drawn, kept, changed = await draw.inside(window, _block_runs(tools, image, window), before.kept, before.changed)
        reached = await _compare_pieces(tools, image, drawn, reached)
        passed = {"offset": window.end, "before": Blocks(kept=kept, changed=changed)}
        reached = reached.model_copy(update=passed)
        yield reached


def _draw(tools: Tools, image: ImageCopy, reached: ComparisonResult) -> Draw:
    """The same at every call: from the run, what it copies, and what was counted."""
    seed = f"{image.actor.run}:{image.target}"
    return Draw.of(image.size, reached.blocks.kept, reached.blocks.changed, tools.limits.samples, seed)


def _block_runs(tools: Tools, image: ImageCopy, window: ByteRange) -> AsyncIterator[BlockRun]:
    """What the samples of a window are drawn from."""
    source, blob = tools.image(image.source), tools.destination(image.destination)
    maps = mapped(tools.blobs.allocated(source, image.target, window), tools.blobs.allocated(blob, "", window))
    both = (part.range async for part in maps if part.side == "both")
    return block_runs(both, _changed(tools, image, window), tools.limits.samples.block_bytes)


async def _changed(tools: Tools, image: ImageCopy, window: ByteRange) -> AsyncIterator[ByteRange]:
    """What the copying may have written: a gap that it has copied along says nothing of what the diff leaves alone."""
    gap_bytes_max = 0
    if image.base and image.plan:
        plan = await held_document(tools, PLAN, image.plan, image.plan_digest, "start the run again")
        gap_bytes_max = plan.gap_bytes_max
    async for one in with_gaps(changed_ranges(tools, image, window), gap_bytes_max):
        yield one


async def _compare_pieces(
    tools: Tools, image: ImageCopy, pieces: Sequence[ByteRange], reached: ComparisonResult
) -> ComparisonResult:
    """Read the pieces from both sides and compare them."""

    async def each() -> AsyncIterator[ByteRange]:
        for piece in pieces:
            yield piece

    comparisons = side_by_side(each(), lambda piece: _equal(tools, image, piece), tools.limits.in_flight)
    more = sum([size async for size in comparisons])
    return reached.model_copy(update={"compared": reached.compared + more, "reads": reached.reads + 2 * len(pieces)})


async def _equal(tools: Tools, image: ImageCopy, piece: ByteRange) -> int:
    source, blob = tools.image(image.source), tools.destination(image.destination)
    wanted, found = await asyncio.gather(tools.blobs.read(source, image.target, piece), tools.blobs.read(blob, "", piece))
    if wanted != found:
        message = (
            f"disk {image.actor.disk}: bytes [{piece.start}, {piece.end}) of {blob} differ from snapshot {image.target} of "
            f"{source}; {_consequence(image)}"
        )
        raise VerificationError(message)
    return piece.size


# -- page maps ----------------------------------------------------------------------------------------------------


async def _compare_maps(tools: Tools, image: ImageCopy, window: ByteRange, reached: ComparisonResult) -> ComparisonResult:
    """Compare the page maps inside the window, and add up the reads that the content will take."""
    digest, reads, expected = PageMapDigest(reached.chain), 0, 0
    async for part in _mapped(tools, image, window, digest):
        if part.side != "right":
            expected += 2 * -(-part.range.size // PUT_BYTES_MAX)
        if part.side != "both":
            reads += await _prove_zero(tools, image, part)
    passed = {
        "chain": digest.finish(),
        "offset": window.end,
        "reads": reached.reads + reads,
        "reads_expected": reached.reads_expected + expected,
    }
    return reached.model_copy(update=passed)


async def _compare_maps_and_count(
    tools: Tools, image: ImageCopy, window: ByteRange, reached: ComparisonResult
) -> ComparisonResult:
    """Compare the page maps inside the window, and count the blocks that samples will be drawn from."""
    digest, reads = PageMapDigest(reached.chain), 0

    async def both() -> AsyncIterator[ByteRange]:
        nonlocal reads
        async for part in _mapped(tools, image, window, digest):
            if part.side == "both":
                yield part.range
            else:
                reads += await _prove_zero(tools, image, part)

    kept, changed = reached.blocks.kept, reached.blocks.changed
    async for run in block_runs(both(), _changed(tools, image, window), tools.limits.samples.block_bytes):
        if run.changed:
            changed += run.last - run.first
        else:
            kept += run.last - run.first
    passed = {
        "chain": digest.finish(),
        "offset": window.end,
        "reads": reached.reads + reads,
        "blocks": Blocks(kept=kept, changed=changed),
    }
    return reached.model_copy(update=passed)


async def _mapped(tools: Tools, image: ImageCopy, window: ByteRange, digest: PageMapDigest) -> AsyncIterator[Mapped]:
    """The page maps of both sides beside each other; the destination's goes into the digest."""
    source, blob = tools.image(image.source), tools.destination(image.destination)

    async def digested() -> AsyncIterator[ByteRange]:
        async for allocated in tools.blobs.allocated(blob, "", window):
            digest.add(allocated.start, allocated.end)
            yield allocated

    async for part in mapped(tools.blobs.allocated(source, image.target, window), digested()):
        yield part


async def _prove_zero(tools: Tools, image: ImageCopy, lone: Mapped) -> int:
    """Read what one side alone has allocated; how many requests that took. Raises VerificationError unless it is zeros."""
    left = lone.side == "left"
    blob, snapshot = (tools.image(image.source), image.target) if left else (tools.destination(image.destination), "")
    reads = 0
    for piece in chunks(lone.range):
        data = await tools.blobs.read(blob, snapshot, piece)
        reads += 1
        if data != _ZEROS[: len(data)]:
            other = "the copy" if left else "the original"
            message = (
                f"disk {image.actor.disk}: bytes [{piece.start}, {piece.end}) of {blob} {snapshot} hold data where {other} "
                f"has none; {_consequence(image)}"
            )
            raise VerificationError(message)
    return reads


def _consequence(image: ImageCopy) -> str:
    if image.actor.pin:
        return f"the restored image was not used, restore point {image.actor.pin} is as it was; verify it, and restore again"
    return "the point was not committed; the next run makes a full backup"
