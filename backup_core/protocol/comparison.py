"""The comparison of an image with its snapshot: sizes, page maps, content."""

from __future__ import annotations

from contextlib import aclosing
from typing import TYPE_CHECKING

from backup_core.domain.errors import VerificationError
from backup_core.domain.naming import is_resource_id
from backup_core.domain.ranges import ByteRange, chunks, windows
from backup_core.domain.sampling import BlockRun, Draw, block_runs
from backup_core.domain.vhd import FOOTER_BYTES
from backup_core.protocol.listings import side_by_side
from backup_core.protocol.page_maps import (
    Proof,
    compare_maps,
    compare_maps_and_count,
    compared_one,
    require_equal,
    sides,
    touched,
)
from backup_core.steps.copying import Blocks, ComparisonResult, ImageCopy

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Sequence

    from backup_core.protocol.tools import Tools


async def compared(
    tools: Tools, image: ImageCopy, progress: ComparisonResult, found_size: int, *, full: bool, former: str = ""
) -> ComparisonResult:
    """Compare sizes and page maps, then content, window by window, from where `progress` came to; stops in time.

    A range only one side has allocated must hold zeros: it is read, in whole or by the samples of what a former run has
    proved. Of the content, every allocated byte is compared when `full`, else samples, and whatever the increment was to write
    and the head does not show as written since its backup snapshot `former`. Raises VerificationError.
    """
    source, (blob, _) = tools.image(image.source), compared_one(tools, image)
    # G24: sizes, page maps and content against the source snapshot.
    size = (await tools.blobs.properties(source, image.target)).size
    if found_size != size:
        message = f"{blob}: {found_size} bytes, but snapshot {image.target} of {source} has {size}; not used"
        raise VerificationError(message)
    size = _end(image, size)
    deadline, reached = tools.monotonic() + tools.limits.verify_seconds, progress
    if not reached.content:
        for window in windows(size, tools.limits.window_bytes, reached.offset):
            proof = Proof(tools, image, reached.proved, deadline)
            if full:
                reached = await compare_maps(tools, image, window, reached, proof)
            else:
                reached = await compare_maps_and_count(tools, image, window, reached, proof, former)
            if reached.offset == size:
                expected = reached.reads_expected if full else 2 * _draw(tools, image, reached).count
                begun = {"content": True, "offset": 0, "reads_expected": reached.reads + expected}
                reached = reached.model_copy(update=begun)
            if proof.stopped or tools.monotonic() > deadline:
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
    """The progress after some pieces each, and at the end, of the comparison of every allocated byte."""
    source, limits = tools.image(image.source), tools.limits
    for window in windows(_end(image, image.size), limits.window_bytes, reached.offset):
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
    """The progress after each window of the comparison of the drawn blocks."""
    draw = _draw(tools, image, reached)
    for window in windows(_end(image, image.size), tools.limits.window_bytes, reached.offset):
        before = reached.before
        drawn, kept, changed = await draw.inside(window, _block_runs(tools, image, window), before.kept, before.changed)
        reached = await _compare_pieces(tools, image, drawn, reached)
        passed = {"offset": window.end, "before": Blocks(kept=kept, changed=changed)}
        reached = reached.model_copy(update=passed)
        yield reached


def _draw(tools: Tools, image: ImageCopy, reached: ComparisonResult) -> Draw:
    """The same at every call: from the run, what it copies, and what was counted."""
    seed = f"{image.actor.run}:{image.target}"
    return Draw.of(_end(image, image.size), reached.blocks.kept, reached.blocks.changed, tools.limits.samples, seed)


async def _block_runs(tools: Tools, image: ImageCopy, window: ByteRange) -> AsyncIterator[BlockRun]:
    """The blocks that the samples of a window are drawn from."""
    kept = (part.range async for part in sides(tools, image, window) if part.side == "both")
    async for run in block_runs(kept, touched(tools, image, window), tools.limits.samples.block_bytes):
        yield run


async def _compare_pieces(
    tools: Tools, image: ImageCopy, pieces: Sequence[ByteRange], reached: ComparisonResult
) -> ComparisonResult:
    """Read the pieces from both sides and compare them."""

    async def each() -> AsyncIterator[ByteRange]:
        for piece in pieces:
            yield piece

    comparisons = side_by_side(each(), lambda piece: require_equal(tools, image, piece), tools.limits.in_flight)
    reads = sum([reads async for reads in comparisons])
    more = sum(piece.size for piece in pieces)
    return reached.model_copy(update={"compared": reached.compared + more, "reads": reached.reads + reads})


def _end(image: ImageCopy, size: int) -> int:
    """End of the comparison of an image of `size` bytes. It ends before the footer of a managed disk, which Azure may write
    anew. Azure has checked the footer, or there would be no disk.
    """
    return size - FOOTER_BYTES if is_resource_id(image.destination) else size
