"""The comparison of the page maps of an image and its snapshot, and the proofs that no sample can give.

Ranges that one side alone has are zeros; ranges that the head does not show as written are equal all the same.
"""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

from backup_core.domain.coalescing import with_gaps
from backup_core.domain.errors import SnapshotMissingError, VerificationError
from backup_core.domain.metadata import PageMapDigest
from backup_core.domain.ranges import PUT_BYTES_MAX, ByteRange, Mapped, chunks, mapped
from backup_core.domain.sampling import block_runs
from backup_core.protocol.documents import PLAN, held_document
from backup_core.protocol.listings import Ascending, changed_ranges, changes_between, side_by_side
from backup_core.steps.copying import Blocks, ComparisonResult, ImageCopy
from backup_core.steps.restore import NewDisk

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Coroutine

    from backup_core.domain.naming import Source
    from backup_core.protocol.tools import Tools


_ZEROS = bytes(PUT_BYTES_MAX)


class Proof:
    """Reads ranges whole, to prove that they are zeros or equal, some pieces at a time, until the time is up."""

    def __init__(self, tools: Tools, image: ImageCopy, at: int, deadline: float) -> None:
        """From `at` on."""
        self._tools, self._image, self._deadline = tools, image, deadline
        self._pieces: list[Mapped] = []
        self.at, self.reads, self.stopped = at, 0, False

    async def add(self, lone: Mapped) -> None:
        """Prove the next range: of one side zeros, of both equal. `stopped` afterwards if the time allowed no more."""
        if lone.range.end <= self.at:
            return
        for piece in chunks(ByteRange(max(lone.range.start, self.at), lone.range.end)):
            # G58: read whole.
            self._pieces.append(Mapped(piece, lone.side))
            if len(self._pieces) == self._tools.limits.batch_reads:
                await self.finish()
                self.stopped = self._tools.monotonic() > self._deadline
                if self.stopped:
                    return

    async def finish(self) -> None:
        """Prove what was added."""

        async def each() -> AsyncIterator[Mapped]:
            for piece in self._pieces:
                yield piece

        def prove(piece: Mapped) -> Coroutine[Any, Any, int]:
            if piece.side == "both":
                return require_equal(self._tools, self._image, piece.range)
            return _prove_zero(self._tools, self._image, piece)

        async for reads in side_by_side(each(), prove, self._tools.limits.in_flight):
            self.reads += reads
        if self._pieces:
            self.at = self._pieces[-1].range.end
        self._pieces = []

    def stopped_at(self, reached: ComparisonResult) -> ComparisonResult:
        """The offset at which the window continues: its counts begin again there."""
        return reached.model_copy(update={"proved": self.at, "reads": reached.reads + self.reads})


async def compare_maps(
    tools: Tools, image: ImageCopy, window: ByteRange, reached: ComparisonResult, proof: Proof
) -> ComparisonResult:
    """Compare the page maps inside the window, and add up the reads that the content will take: of all the source has."""
    digest, expected = PageMapDigest(reached.chain), 0
    async with aclosing(_mapped(tools, image, window, digest)) as parts:
        async for part in parts:
            if part.side == "right":
                await proof.add(part)
            else:
                expected += 2 * -(-part.range.size // PUT_BYTES_MAX)
            if proof.stopped:
                return proof.stopped_at(reached)
    await proof.finish()
    reads = reached.reads + proof.reads
    passed = {"chain": digest.finish(), "offset": window.end, "proved": 0, "reads": reads}
    return reached.model_copy(update=passed | {"reads_expected": reached.reads_expected + expected})


async def compare_maps_and_count(
    tools: Tools, image: ImageCopy, window: ByteRange, reached: ComparisonResult, proof: Proof, former: str
) -> ComparisonResult:
    """Compare the page maps inside the window, and count the blocks that samples will be drawn from. `former` is the head's
    backup snapshot that its increment began with; empty for any other image.
    """
    digest = PageMapDigest(reached.chain)
    unwritten = Ascending(lambda start: _unwritten(tools, image, former, ByteRange(start, window.end)))

    async def kept() -> AsyncIterator[ByteRange]:
        async with aclosing(sides(tools, image, window, digest)) as parts:
            async for part in parts:
                if part.side == "both":
                    # G74: no sample decides about what the head does not show as written.
                    async for one in unwritten.inside(part.range):
                        await proof.add(Mapped(one, "both"))
                        if proof.stopped:
                            return
                    yield part.range
                else:
                    await proof.add(part)
                if proof.stopped:
                    return

    counts = {True: reached.blocks.changed, False: reached.blocks.kept}
    async for run in block_runs(kept(), touched(tools, image, window), tools.limits.samples.block_bytes):
        counts[run.changed] += run.last - run.first
        if proof.stopped:
            break
    if proof.stopped:
        return proof.stopped_at(reached)
    await proof.finish()
    reads = reached.reads + proof.reads
    passed = {"chain": digest.finish(), "offset": window.end, "proved": 0, "reads": reads}
    return reached.model_copy(update=passed | {"blocks": Blocks(kept=counts[False], changed=counts[True])})


async def _unwritten(tools: Tools, image: ImageCopy, former: str, part: ByteRange) -> AsyncIterator[ByteRange]:
    """The ranges that the diff writes, and that the head itself does not show as written since its backup snapshot `former`.

    There are none, unless the service has lost what it had answered: an account that fails over to another region comes back as
    it was some time before, while a run knows that it has written.
    """
    if not former:
        return
    head = tools.image(image.destination)

    async def written() -> AsyncIterator[ByteRange]:
        try:
            cut = min(max((await tools.blobs.properties(head, former)).size, part.start), part.end)
        except SnapshotMissingError:
            return  # somebody has deleted it: nothing shows what was written since, and all of it is read
        for start, end, since in ((part.start, cut, former), (cut, part.end, "")):
            if start < end:
                async for one in changes_between(tools, head, "", since, ByteRange(start, end)):
                    yield one.range

    wanted = (one.range async for one in changed_ranges(tools, image, part) if not one.cleared)
    async for one in mapped(wanted, written()):
        if one.side == "left":
            yield one.range


async def sides(
    tools: Tools, image: ImageCopy, window: ByteRange, digest: PageMapDigest | None = None
) -> AsyncGenerator[Mapped, None]:
    """As `_mapped`; but what the source alone has, and had at the base too, counts as of both: it was proved when the base's
    restore point was made, and is sampled as everything else that the diff leaves alone. A disk's zeros are read once, not by
    each of its backups.
    """
    source = tools.image(image.source)

    async def listed(start: int) -> AsyncIterator[ByteRange]:
        end = min(window.end, (await tools.blobs.properties(source, image.base)).size)
        if start < end:
            async for one in tools.blobs.allocated(source, image.base, ByteRange(start, end)):
                yield one

    base = Ascending(listed)
    async for part in _mapped(tools, image, window, digest or PageMapDigest(PageMapDigest.START)):
        # G58: only ranges that the source had at the base are left to the samples.
        if part.side != "left" or not image.base:
            yield part
            continue
        async for one in mapped(_once(part.range), base.inside(part.range)):
            yield one


async def _once(one: ByteRange) -> AsyncIterator[ByteRange]:
    yield one


async def _mapped(tools: Tools, image: ImageCopy, window: ByteRange, digest: PageMapDigest) -> AsyncGenerator[Mapped, None]:
    """The page maps of both sides beside each other; the destination's goes into the digest."""
    source, one = tools.image(image.source), compared_one(tools, image)

    async def digested() -> AsyncIterator[ByteRange]:
        async for allocated in tools.blobs.allocated(*one, window):
            digest.add(allocated.start, allocated.end)
            yield allocated

    async for part in mapped(tools.blobs.allocated(source, image.target, window), digested()):
        yield part


async def _prove_zero(tools: Tools, image: ImageCopy, lone: Mapped) -> int:
    """Read what one side alone has allocated; how many requests that took. Raises VerificationError unless it is zeros."""
    left = lone.side == "left"
    blob, snapshot = (tools.image(image.source), image.target) if left else compared_one(tools, image)
    reads = 0
    for piece in chunks(lone.range):
        data = await tools.blobs.read(blob, snapshot, piece)
        reads += 1
        if data != _ZEROS[: len(data)]:
            other = "the copy" if left else "the original"
            message = (
                f"disk {image.actor.disk}: bytes [{piece.start}, {piece.end}) of {blob} {snapshot} hold data where {other} "
                f"has none; {consequence(image)}"
            )
            raise VerificationError(message)
    return reads


async def require_equal(tools: Tools, image: ImageCopy, piece: ByteRange) -> int:
    """Read the piece from both sides; how many requests that took. Raises VerificationError unless they are equal."""
    source, one = tools.image(image.source), compared_one(tools, image)
    wanted, found = await asyncio.gather(tools.blobs.read(source, image.target, piece), tools.blobs.read(*one, piece))
    if wanted != found:
        message = (
            f"disk {image.actor.disk}: bytes [{piece.start}, {piece.end}) of {one[0]} differ from snapshot {image.target} of "
            f"{source}; {consequence(image)}"
        )
        raise VerificationError(message)
    return 2


async def touched(tools: Tools, image: ImageCopy, window: ByteRange) -> AsyncIterator[ByteRange]:
    """The ranges that the copying may have written: a gap that it has copied along says nothing about unchanged data."""
    gap_bytes_max = 0
    if image.base and image.plan:
        plan = await held_document(tools, PLAN, image.plan, image.plan_digest, "start the run again")
        gap_bytes_max = plan.gap_bytes_max
    async for one in with_gaps(changed_ranges(tools, image, window), gap_bytes_max):
        yield one


def compared_one(tools: Tools, image: ImageCopy) -> tuple[Source, str]:
    """Address and snapshot of the copy that is compared with the image's snapshot. A new disk is compared by a snapshot of it.
    For any other copy the snapshot is empty.
    """
    if isinstance(image, NewDisk):
        return tools.image(image.destination), image.snapshot
    return tools.destination(image.destination, image.actor.run), ""


def consequence(image: ImageCopy) -> str:
    """The consequence for an image that differs from its snapshot, in words."""
    if image.actor.pin:
        return f"the restored image was not used, restore point {image.actor.pin} is as it was; verify it, and restore again"
    return "the point was not committed; the next run makes a full backup"
