"""Comparing a head with its source snapshot before anything is committed."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING

from backup_core.activities.tools import guard_of, owned, policy_of, side_by_side
from backup_core.activities.transfer import work
from backup_core.domain.errors import UnexpectedAnswerError, VerificationError
from backup_core.domain.metadata import PageMapDigest, from_metadata, to_metadata
from backup_core.domain.ranges import ByteRange, OneSided, chunks, one_sided, windows
from backup_core.domain.sampling import Sampling
from backup_core.steps import Verified, Verify

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from backup_core.activities.tools import Tools
    from backup_core.domain.naming import BlobAddress
    from backup_core.steps import Transfer

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
    """Compare sizes and page maps, then content, window by window, and mark the head verified at the end.

    A range only one side has allocated must hold zeros: it is read and proved. The mark is written under the lease and the
    version the comparison began with, so nothing written in between can slip in. Raises VerificationError.
    """
    transfer = asked.transfer
    await owned(tools, transfer.by)
    source, head = tools.source(transfer.by.source), tools.head(transfer.head)
    found = await tools.blobs.properties(head)
    mark = from_metadata(found.metadata)
    if mark is None or (mark.run, mark.target) != (transfer.by.run, transfer.target):
        message = f"{head}: its mark is not that of run {transfer.by.run}; found {mark}"
        raise UnexpectedAnswerError(message)
    if mark.state == "verified":
        return _answer(asked, transfer.size, mark.page_map, found.etag, asked.compared, content=True, done=True)
    size = (await tools.blobs.properties(source, transfer.target)).size
    if found.size != size:
        message = f"{head}: {found.size} bytes, but source snapshot {transfer.target} has {size}; not committed"
        raise VerificationError(message)
    etag, chain, offset, compared = asked.etag or found.etag, asked.chain or PageMapDigest.START, asked.offset, asked.compared
    began = tools.monotonic()
    if not asked.content:
        for window in windows(size, tools.limits.window_bytes, offset):
            chain = await _compare(tools, transfer, source, head, window, chain)
            if tools.monotonic() - began > tools.limits.verify_seconds:
                ended = window.end == size
                return _answer(asked, 0 if ended else window.end, chain, etag, compared, content=ended, done=False)
        offset = 0
    full = (await policy_of(tools, transfer.by.disk)).verification == "full"
    for window in windows(size, tools.limits.content_bytes, offset):
        compared += await _compare_content(tools, asked, window, full=full)
        if window.end < size and tools.monotonic() - began > tools.limits.verify_seconds:
            return _answer(asked, window.end, chain, etag, compared, content=True, done=False)
    etag = await tools.blobs.set_metadata(head, to_metadata(mark.verified(chain)), guard_of(transfer.by, etag))
    return _answer(asked, size, chain, etag, compared, content=True, done=True)


def _answer(asked: Verify, offset: int, chain: str, etag: str, compared: int, *, content: bool, done: bool) -> Verified:
    return Verified(content=content or asked.content, offset=offset, chain=chain, etag=etag, compared=compared, done=done)


# -- content ------------------------------------------------------------------------------------------------------


async def _compare_content(tools: Tools, asked: Verify, window: ByteRange, *, full: bool) -> int:
    """Read blocks of the window from both sides and compare them; returns the bytes compared."""
    transfer = asked.transfer
    pieces = _every_chunk(tools, transfer, window) if full else _sample(tools, asked, window)
    comparisons = side_by_side(pieces, lambda piece: _equal(tools, transfer, piece), tools.limits.in_flight)
    return sum([size async for size in comparisons])


async def _every_chunk(tools: Tools, transfer: Transfer, window: ByteRange) -> AsyncIterator[ByteRange]:
    async for allocated in tools.blobs.allocated(tools.source(transfer.by.source), transfer.target, window):
        for piece in chunks(allocated):
            yield piece


async def _sample(tools: Tools, asked: Verify, window: ByteRange) -> AsyncIterator[ByteRange]:
    transfer = asked.transfer
    sampling = Sampling.of(transfer.size, asked.changed_bytes, asked.ranges, tools.limits.samples_min)
    changed = (one.range async for one in work(tools, transfer, window))
    for block in await sampling.blocks(changed, window, f"{transfer.by.run}:{transfer.target}:{window.start}"):
        yield block


async def _equal(tools: Tools, transfer: Transfer, piece: ByteRange) -> int:
    source, head = tools.source(transfer.by.source), tools.head(transfer.head)
    wanted, found = await asyncio.gather(tools.blobs.read(source, transfer.target, piece), tools.blobs.read(head, "", piece))
    if wanted != found:
        message = (
            f"disk {transfer.by.disk}: bytes [{piece.start}, {piece.end}) of {head} differ from source snapshot "
            f"{transfer.target}; the point was not committed; the next run makes a full backup"
        )
        raise VerificationError(message)
    return piece.size


# -- page maps ----------------------------------------------------------------------------------------------------


async def _compare(
    tools: Tools, transfer: Transfer, source: BlobAddress, head: BlobAddress, window: ByteRange, chain: str
) -> str:
    digest = PageMapDigest(chain)

    async def digested() -> AsyncIterator[ByteRange]:
        async for allocated in tools.blobs.allocated(head, "", window):
            digest.add(allocated.start, allocated.end)
            yield allocated

    async for lone in one_sided(tools.blobs.allocated(source, transfer.target, window), digested()):
        await _prove_zero(tools, transfer, source, head, lone)
    return digest.finish()


async def _prove_zero(tools: Tools, transfer: Transfer, source: BlobAddress, head: BlobAddress, lone: OneSided) -> None:
    blob, snapshot = (source, transfer.target) if lone.left else (head, "")
    for piece in chunks(lone.range):
        data = await tools.blobs.read(blob, snapshot, piece)
        if data != _ZEROS[: len(data)]:
            other = "the backup" if lone.left else "the source snapshot"
            message = (
                f"disk {transfer.by.disk}: bytes [{piece.start}, {piece.end}) of {blob} {snapshot} hold data where {other} "
                "has none; the point was not committed; the next run makes a full backup"
            )
            raise VerificationError(message)
