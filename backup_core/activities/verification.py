"""Comparing a head with its source snapshot before anything is committed."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from backup_core.activities.tools import guard_of, owned
from backup_core.domain.errors import UnexpectedAnswerError, VerificationError
from backup_core.domain.metadata import PageMapDigest, from_metadata, to_metadata
from backup_core.domain.ranges import ByteRange, OneSided, chunks, one_sided, windows
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
    """Compare sizes and page maps, window by window, and mark the head verified at the end.

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
        return Verified(offset=transfer.size, chain=mark.page_map, etag=found.etag, done=True)
    size = (await tools.blobs.properties(source, transfer.target)).size
    if found.size != size:
        message = f"{head}: {found.size} bytes, but source snapshot {transfer.target} has {size}; not committed"
        raise VerificationError(message)
    etag, chain, offset = asked.etag or found.etag, asked.chain or PageMapDigest.START, asked.offset
    began = tools.monotonic()
    for window in windows(size, tools.limits.window_bytes, offset):
        chain = await _compare(tools, transfer, source, head, window, chain)
        offset = window.end
        if offset < size and tools.monotonic() - began > tools.limits.verify_seconds:
            return Verified(offset=offset, chain=chain, etag=etag, done=False)
    etag = await tools.blobs.set_metadata(head, to_metadata(mark.verified(chain)), guard_of(transfer.by, etag))
    return Verified(offset=size, chain=chain, etag=etag, done=True)


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
