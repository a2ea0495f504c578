"""The data path: ranged Get Blob, Put Page, clear and Put Page From URL (Blob service REST reference, version 2021-12-02)."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Awaitable, Callable
from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import quote

from backup_core.adapters.transport import Ask, nothing
from backup_core.domain.errors import TransferDamagedError, UnexpectedAnswerError
from backup_core.domain.ranges import PUT_BYTES_MAX, DiffRange
from backup_core.domain.zeros import without_zeros
from backup_core.ports import Fence

if TYPE_CHECKING:
    from collections.abc import Mapping

    import aiohttp

    from backup_core.adapters.transport import Receive, Transport
    from backup_core.domain.naming import BlobAddress, Source
    from backup_core.domain.ranges import ByteRange

T = TypeVar("T")
Upload = Callable[[Callable[[str], Awaitable[None]]], Awaitable[None]]
"""Has a write done with the whole URL by which a managed disk is uploaded to, again after a refusal where that may help."""
_RANGE_MD5 = "x-ms-range-get-content-md5"
BUFFERS_KEPT = 32
"""128 MiB at most are kept for reuse between requests."""


class PageData:
    """Reads and writes pages, checksums both ways. Every write to a blob has the fence, one to a managed disk its upload."""

    def __init__(self, transport: Transport) -> None:
        """Send by `transport`."""
        self._transport = transport
        self._buffers: list[bytearray] = []
        self._unchecked: set[str] = set()
        """Headers of checksums that the addresses of managed disks refuse."""

    # A managed disk's snapshot is read by its export: then `export` is the whole URL of it, with its signature.

    async def read(self, blob: Source, snapshot: str, part: ByteRange, export: str = "") -> bytes:
        """Exactly the range, its MD5 as the service computed it."""
        buffer = bytearray(part.size)
        await self._fill(blob, snapshot, part, buffer, export)
        return bytes(buffer)

    async def stream(
        self,
        source: Source,
        snapshot: str,
        part: ByteRange,
        head: Source,
        fence: Fence | Upload,
        *,
        keep_zeros: bool = False,
        export: str = "",
    ) -> None:
        """Read the range and put it on the head, in a buffer used again afterwards; long runs of zeros are cleared,
        unless `keep_zeros`.
        """
        buffer = self._buffers.pop() if self._buffers else bytearray(PUT_BYTES_MAX)
        digest = await self._fill(source, snapshot, part, buffer, export)
        for piece in [DiffRange(part, cleared=False)] if keep_zeros else without_zeros(buffer, part):
            at = piece.range
            if piece.cleared:
                await self.clear(head, at, fence)
            else:
                data = memoryview(buffer)[at.start - part.start : at.end - part.start]
                # The MD5 that was compared goes along: it would be half of the processor's work to compute it again.
                await self.write(head, at.start, data, fence, digest if at == part else None)
        # After a failure a broken connection may still hold the buffer, so only a used-up one is kept.
        if len(self._buffers) < BUFFERS_KEPT:
            self._buffers.append(buffer)

    async def _fill(self, blob: Source, snapshot: str, part: ByteRange, buffer: bytearray, export: str) -> bytes:
        """Read the range into the buffer; its MD5."""
        headers = {"x-ms-range": f"bytes={part.start}-{part.end - 1}", _RANGE_MD5: "true"}
        what = f"read bytes [{part.start}, {part.end}) of {blob} {snapshot}".rstrip()
        ask = Ask("GET", blob, what, snapshot=snapshot, headers=headers, size=part.size, url=export)
        return await self._send(ask, _into(buffer, part.size, what), _RANGE_MD5)

    async def write(
        self, blob: Source, offset: int, data: bytes | memoryview, fence: Fence | Upload, digest: bytes | None = None
    ) -> None:
        """Put the pages; the service checks their MD5, which is `digest` where that is known."""
        headers = {"x-ms-page-write": "update", "Content-MD5": base64.b64encode(digest or _md5(data)).decode()}
        await self._put(blob, offset, offset + len(data), headers, fence, "write", data)

    async def clear(self, blob: Source, part: ByteRange, fence: Fence | Upload) -> None:
        """Clear the range."""
        await self._put(blob, part.start, part.end, {"x-ms-page-write": "clear"}, fence, "clear")

    async def from_url(self, source: BlobAddress, snapshot: str, part: ByteRange, head: Source, fence: Fence | Upload) -> None:
        """Have the head's account fetch the range itself. The source is authorised apart, for reading this snapshot only."""
        query, authorised = await self._transport.authority(source.account).as_source(source, snapshot)
        url = f"{source.url}?snapshot={quote(snapshot, safe='')}" + (f"&{query}" if query else "")
        await self.fetch(source, snapshot, part, head, fence, url, authorised)

    async def fetch(
        self,
        source: Source,
        snapshot: str,
        part: ByteRange,
        head: Source,
        fence: Fence | Upload,
        url: str,
        authorised: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        """Have the head's account fetch the range from a whole URL, with the headers that authorise the source."""
        headers = {
            "x-ms-page-write": "update",
            "x-ms-copy-source": url,
            "x-ms-source-range": f"bytes={part.start}-{part.end - 1}",
            **authorised,
        }
        await self._put(head, part.start, part.end, headers, fence, f"have fetched from {source} {snapshot}")

    async def signed_source(self, source: BlobAddress, snapshot: str) -> str:
        """The snapshot's URL with a signature to read it, for a Copy Blob."""
        query = await self._transport.authority(source.account).signed(source, snapshot)
        return f"{source.url}?snapshot={quote(snapshot, safe='')}&{query}"

    async def _put(
        self,
        blob: Source,
        start: int,
        end: int,
        headers: dict[str, str],
        fence: Fence | Upload,
        verb: str,
        data: bytes | memoryview | None = None,
    ) -> None:
        headers |= {"x-ms-range": f"bytes={start}-{end - 1}", "Content-Type": "application/octet-stream"}
        if isinstance(fence, Fence):
            headers |= {"x-ms-lease-id": fence.lease, "x-ms-if-sequence-number-eq": str(fence.epoch)}
        what = f"{verb} bytes [{start}, {end}) of {blob}"
        moved = 0 if headers["x-ms-page-write"] == "clear" else end - start
        ask = Ask("PUT", blob, what, query="comp=page", headers=headers, body=data, size=moved, write=True)
        if isinstance(fence, Fence):
            await self._transport.send(ask, nothing)
        else:
            await fence(lambda url: self._send(replace(ask, url=url), nothing, "Content-MD5"))

    async def _send(self, ask: Ask, receive: Receive[T], checksum: str) -> T:
        """The answer; from the address of a managed disk or of its snapshot without that header, where it is refused.

        No client is known to send the MD5 of pages there (azcopy, Add-AzVhd, Debian's image tools), and whether that of a range
        is given is not documented. It is left out for as long as the process lives. What is written is compared in any case.
        """
        headers = dict(ask.headers or {})
        if not ask.url or headers.pop(checksum, None) is None:
            return await self._transport.send(ask, receive)
        bare = replace(ask, headers=headers)
        if checksum in self._unchecked:
            return await self._transport.send(bare, receive)
        try:
            return await self._transport.send(ask, receive)
        except UnexpectedAnswerError:
            answer = await self._transport.send(bare, receive)
        self._unchecked.add(checksum)
        return answer


def _into(buffer: bytearray, size: int, what: str) -> Receive[bytes]:
    """Receives a body of exactly `size` bytes into `buffer`, compares its MD5, and gives it."""

    async def receive(answer: aiohttp.ClientResponse) -> bytes:
        arrived = 0
        view = memoryview(buffer)
        async for chunk in answer.content.iter_any():
            if arrived + len(chunk) <= size:
                view[arrived : arrived + len(chunk)] = chunk
            arrived += len(chunk)
        digest = answer.headers.get("Content-MD5")
        # An export's snapshot inherits the MD5 of a whole blob that it is not: only the range's own counts.
        digest = None if digest == answer.headers.get("x-ms-blob-content-md5") else digest
        found = _md5(view[:size])
        if arrived != size or (digest and base64.b64decode(digest) != found):
            message = f"{what}: {arrived} bytes arrived, expected {size} with MD5 {digest}; nothing was written"
            raise TransferDamagedError(message)
        return found

    return receive


def _md5(data: bytes | bytearray | memoryview) -> bytes:
    return hashlib.md5(data, usedforsecurity=False).digest()
