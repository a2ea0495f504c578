"""A server with a page blob's limits, and nothing else of one. It answers puts and clears as fast as it can up to the limits of
a standard page blob, and refuses the rest with 503 ServerBusy. It keeps no content.

The service's own way to count is not published. Here both limits are token buckets that hold a quarter of a second.
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import re
import time
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING

from backup_core.domain.pacing import BLOB_RATES

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

BURST_SECONDS = 0.25
LATENCY_SECONDS = 0.01
"""How long the server takes for each request, refused or not."""
SETTLED_SECONDS = 5.0
"""After the first request so long, refusals count apart."""
_HEADER = re.compile(rb"\r\n([A-Za-z-]+): ([^\r]*)")


@dataclass
class _Bucket:
    per_second: float
    tokens: float = 0.0

    def __post_init__(self) -> None:
        self.tokens = self.per_second * BURST_SECONDS

    def fill(self, seconds: float) -> None:
        self.tokens = min(self.tokens + seconds * self.per_second, self.per_second * BURST_SECONDS)


@dataclass
class Limited:
    """One blob: its two limits, and what was sent to it."""

    requests: _Bucket = field(default_factory=lambda: _Bucket(BLOB_RATES.requests))
    bytes: _Bucket = field(default_factory=lambda: _Bucket(BLOB_RATES.bytes))
    began: float = 0.0
    filled: float = 0.0
    taken: int = 0
    refused: int = 0
    late: int = 0
    """Requests after the first seconds, refused or not."""
    late_refused: int = 0

    def takes(self, size: int, now: float) -> bool:
        """Whether a request that moves `size` bytes is within the limits at `now`."""
        self.began = self.began or now
        self.requests.fill(now - self.filled)
        self.bytes.fill(now - self.filled)
        self.filled = now
        good = self.requests.tokens >= 1 and self.bytes.tokens >= size
        if good:
            self.requests.tokens -= 1
            self.bytes.tokens -= size
        self.taken += good
        self.refused += not good
        if now - self.began > SETTLED_SECONDS:
            self.late += 1
            self.late_refused += not good
        return good


class _Connection(asyncio.Protocol):
    """One connection; requests with bodies are read to their end."""

    def __init__(self, blobs: dict[bytes, Limited]) -> None:
        self._blobs, self._data, self._body = blobs, b"", 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._data += data
        while b"\r\n\r\n" in self._data:
            head, _, rest = self._data.partition(b"\r\n\r\n")
            headers = {name.lower(): value for name, value in _HEADER.findall(head)}
            length = int(headers.get(b"content-length", b"0"))
            if len(rest) < length:
                return
            self._data = rest[length:]
            self._answer(head, headers)

    def _answer(self, head: bytes, headers: dict[bytes, bytes]) -> None:
        method, target, _ = head.split(b" ", 2)
        path = target.partition(b"?")[0]
        blob = self._blobs.setdefault(path, Limited())
        body, status = b"", b"201 Created"
        if method == b"GET":
            body, status = json.dumps([blob.taken, blob.refused, blob.late, blob.late_refused]).encode(), b"200 OK"
            del self._blobs[path]
        else:
            first, last = map(int, headers[b"x-ms-range"].removeprefix(b"bytes=").split(b"-"))
            size = 0 if headers[b"x-ms-page-write"] == b"clear" else last + 1 - first
            if not blob.takes(size, time.monotonic()):
                status = b"503 The server is busy.\r\nx-ms-error-code: ServerBusy"
        answer = b"HTTP/1.1 %s\r\nContent-Length: %d\r\n\r\n%s" % (status, len(body), body)
        asyncio.get_running_loop().call_later(LATENCY_SECONDS, self._transport.write, answer)


def _serve(port: Connection) -> None:
    async def serve() -> None:
        blobs: dict[bytes, Limited] = {}
        server = await asyncio.get_running_loop().create_server(lambda: _Connection(blobs), "127.0.0.1", 0)
        port.send(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    asyncio.run(serve())


class ThrottlingServer:
    """The server in a process of its own, which ends with this one."""

    def __enter__(self) -> Self:
        """Start it."""
        here, there = multiprocessing.get_context("spawn").Pipe()
        self._process = multiprocessing.get_context("spawn").Process(target=_serve, args=(there,), daemon=True)
        self._process.start()
        if not here.poll(30):
            message = "the throttling server did not start within 30 s"
            raise RuntimeError(message)
        self.url = f"http://127.0.0.1:{here.recv()}"
        """Accounts are its first segments, blobs all below; a GET of a blob answers what was sent to it, and forgets that."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """End it."""
        self._process.terminate()
        self._process.join()
