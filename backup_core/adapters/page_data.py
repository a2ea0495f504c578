"""The data path: ranged Get Blob, Put Page and clear over plain HTTP.

The SDK's download of a page blob lists all its ranges first and fills what it believes unallocated with zeros, without
reading: three requests per chunk and a hazard. So bytes go through here; everything else through the SDK. Protocol: Get Blob
and Put Page of the Blob service REST reference, version 2021-12-02.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import random
from typing import TYPE_CHECKING
from urllib.parse import quote

import aiohttp
from yarl import URL

from backup_core.adapters.answers import fault_of
from backup_core.domain.errors import ServiceUnavailableError, TransferDamagedError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from backup_core.adapters.authority import Authority
    from backup_core.domain.naming import BlobAddress
    from backup_core.domain.ranges import ByteRange
    from backup_core.ports import Fence

VERSION = "2021-12-02"
ATTEMPTS_MAX = 6
PAUSE_SECONDS = 0.25
"""First pause; each further one doubles, with full jitter: about 8 s in all before the orchestrator's own retries."""
PAUSE_SECONDS_MAX = 10.0
TIMEOUT = aiohttp.ClientTimeout(total=120, sock_connect=10, sock_read=60)


class PageData:
    """Reads and writes pages, with retries, checksums both ways and the fence on every write."""

    def __init__(self, authorities: Mapping[str, Authority]) -> None:
        """`authorities` by account endpoint."""
        self._authorities = authorities
        self._session: aiohttp.ClientSession | None = None
        self._jitter = random.Random()  # noqa: S311  spreads retries, protects nothing

    async def close(self) -> None:
        """Close the connections."""
        if self._session:
            await self._session.close()
            self._session = None

    def _connected(self) -> aiohttp.ClientSession:
        if self._session is None:
            connector = aiohttp.TCPConnector(limit=64)
            self._session = aiohttp.ClientSession(connector=connector, timeout=TIMEOUT, auto_decompress=False)
        return self._session

    async def read(self, blob: BlobAddress, snapshot: str, part: ByteRange) -> bytes:
        """Exactly the range, its MD5 as the service computed it."""
        headers = {"x-ms-range": f"bytes={part.start}-{part.end - 1}", "x-ms-range-get-content-md5": "true"}
        query = f"snapshot={quote(snapshot, safe='')}" if snapshot else ""
        what = f"read bytes [{part.start}, {part.end}) of {blob} {snapshot}".rstrip()
        answer, data = await self._send("GET", blob, snapshot, query, headers, b"", what, write=False)
        digest = answer.get("Content-MD5")
        if len(data) != part.size or (digest and base64.b64decode(digest) != _md5(data)):
            message = f"{what}: {len(data)} bytes arrived, expected {part.size} with MD5 {digest}; nothing was written"
            raise TransferDamagedError(message)
        return data

    async def write(self, blob: BlobAddress, offset: int, data: bytes, fence: Fence) -> None:
        """Put the pages; the service checks their MD5."""
        headers = {"x-ms-page-write": "update", "Content-MD5": base64.b64encode(_md5(data)).decode()}
        await self._put(blob, offset, offset + len(data), headers, data, fence, "write")

    async def clear(self, blob: BlobAddress, part: ByteRange, fence: Fence) -> None:
        """Clear the range."""
        await self._put(blob, part.start, part.end, {"x-ms-page-write": "clear"}, b"", fence, "clear")

    async def _put(
        self, blob: BlobAddress, start: int, end: int, headers: dict[str, str], data: bytes, fence: Fence, verb: str
    ) -> None:
        fenced = {
            "x-ms-range": f"bytes={start}-{end - 1}",
            "x-ms-lease-id": fence.lease,
            "x-ms-if-sequence-number-eq": str(fence.epoch),
            "Content-Type": "application/octet-stream",
        }
        what = f"{verb} bytes [{start}, {end}) of {blob}"
        await self._send("PUT", blob, "", "comp=page", headers | fenced, data, what, write=True)

    async def _send(
        self,
        method: str,
        blob: BlobAddress,
        snapshot: str,
        query: str,
        headers: dict[str, str],
        data: bytes,
        what: str,
        *,
        write: bool,
    ) -> tuple[Mapping[str, str], bytes]:
        """Send until answered; 500, 503, time-outs and broken connections are tried again. A repeated put is harmless."""
        authority = self._authorities[blob.account]
        for attempt in range(1, ATTEMPTS_MAX + 1):
            retry_after = ""
            signed = "&".join(filter(None, (query, authority.query(blob, snapshot, write=write))))
            url = URL(f"{blob.url}?{signed}", encoded=True)
            sent = {**headers, **await authority.headers(), "x-ms-version": VERSION}
            try:
                async with self._connected().request(method, url, headers=sent, data=data or None) as answer:
                    body = await answer.read()
                    if answer.status < 300:
                        return answer.headers, body
                    retry_after = answer.headers.get("Retry-After", "")
                    code = answer.headers.get("x-ms-error-code", "")
                    fault = fault_of(answer.status, code, answer.reason or "", what, snapshot=bool(snapshot))
            except (aiohttp.ClientError, TimeoutError, ConnectionError) as error:
                # The library's own text may hold the URL with its signature: only its kind is passed on.
                fault = ServiceUnavailableError(f"{what}: no answer ({type(error).__name__}); it is tried again")
            if not isinstance(fault, ServiceUnavailableError) or attempt == ATTEMPTS_MAX:
                raise fault from None
            await asyncio.sleep(self._pause(attempt, retry_after))
        raise AssertionError  # the last attempt returns or raises

    def _pause(self, attempt: int, retry_after: str) -> float:
        if retry_after.isdigit():
            return min(float(retry_after), PAUSE_SECONDS_MAX) + self._jitter.uniform(0, PAUSE_SECONDS)
        return self._jitter.uniform(0, min(PAUSE_SECONDS * 2**attempt, PAUSE_SECONDS_MAX))


def _md5(data: bytes) -> bytes:
    return hashlib.md5(data, usedforsecurity=False).digest()
