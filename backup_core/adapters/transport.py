"""Requests of the data path over plain HTTP: authorised, retried within a budget, answered or refused in the project's errors.

The SDK's own calls cost several times the processor time of these, and its download of a page blob lists all ranges before
each read. Protocol: Blob service REST reference, version 2021-12-02.
"""

from __future__ import annotations

import asyncio
import itertools
import math
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import quote

import aiohttp
from yarl import URL

from backup_core.adapters.answers import COPY_SOURCE_CODE, fault_of, no_answer
from backup_core.adapters.pacing import Pacers
from backup_core.domain.errors import (
    AccessDeniedError,
    BackupError,
    HostUnknownError,
    ServiceTimedOutError,
    ServiceUnavailableError,
    TransferDamagedError,
)
from backup_core.domain.naming import BlobAddress

if TYPE_CHECKING:
    from collections.abc import Mapping

    from backup_core.adapters.authority import Authority
    from backup_core.domain.naming import Source

T = TypeVar("T")
Receive = Callable[[aiohttp.ClientResponse], Awaitable[T]]
"""Takes the body of a successful answer. Called anew for each attempt."""

THROTTLED = frozenset({429, 503})
"""Statuses by which the service says that there are too many requests."""
GOOD = {"GET": (200, 206), "PUT": (201,)}
"""Statuses of a successful answer. Any other good one is not the service's, and says nothing of what was written."""
VERSION = "2021-12-02"
REQUEST_SECONDS = 120.0
"""Deadline of one request from its first attempt on; what it cannot outlast is left to the orchestrator's slower retries.
Generous, because a page blob at its limits answers 503 to many requests side by side, each of which has to come through in
the end; far below the time after which a run without a heartbeat is taken for dead.
"""
PAUSE_SECONDS = 0.25
"""First pause; each further one doubles, with full jitter."""
PAUSE_SECONDS_MAX = 10.0
CONNECTIONS_MAX = 64
"""To each account. What one of them keeps waiting takes none of another's."""
CONNECT_SECONDS, READ_SECONDS = 10.0, 60.0
"""Longest silence of the service while connecting, and while answering."""


@dataclass(frozen=True)
class Ask:
    """One request to a blob or snapshot. `what` describes it in errors."""

    method: str
    blob: Source
    what: str
    snapshot: str = ""
    query: str = ""
    headers: Mapping[str, str] | None = None
    body: bytes | bytearray | memoryview | None = None
    size: int = 0
    """Bytes of pages it moves, be it through this process or not."""
    write: bool = False
    waits_out_timeouts: bool = True
    """Whether a time-out is tried again as it is; a listing is rather asked for less."""
    url: str = field(default="", repr=False)
    """An export's whole URL with its signature, used as it is; the snapshot is part of it."""

    @property
    def copies(self) -> bool:
        """Whether it has the account read another blob. A refused upload to a managed disk has ended: that is no copy."""
        return not self.url and "x-ms-copy-source" in (self.headers or {})


class Transport:
    """Connections to all accounts, kept and reused."""

    def __init__(
        self,
        authorities: Mapping[str, Authority],
        monotonic: Callable[[], float] = time.monotonic,
        pacers: Pacers | None = None,
    ) -> None:
        """`authorities` by account endpoint; `monotonic` gives seconds; `pacers` are shared by the transports of a process."""
        self._authorities, self._monotonic = authorities, monotonic
        self._pacers = pacers or Pacers(monotonic=monotonic)
        self._session: aiohttp.ClientSession | None = None
        self._jitter = random.Random()  # noqa: S311  spreads retries, protects nothing

    async def close(self) -> None:
        """Close the connections."""
        if self._session:
            await self._session.close()
            self._session = None

    def _connected(self) -> aiohttp.ClientSession:
        if self._session is None:
            connector = aiohttp.TCPConnector(limit=0, limit_per_host=CONNECTIONS_MAX)
            self._session = aiohttp.ClientSession(connector=connector, auto_decompress=False)
        return self._session

    def authority(self, account: str) -> Authority:
        """The authority that signs requests to the account."""
        return self._authorities[account]

    async def send(self, ask: Ask, receive: Receive[T]) -> T:
        """The result of `receive` for the answer. 500, 503, time-outs, broken connections and damaged bytes are retried until
        the deadline: every request of the data path may be repeated. Each attempt waits for its turn at the pace of the blob
        and of the account. Raises the error of the last answer.
        """
        deadline = math.inf
        for attempt in itertools.count(1):
            retry_after = ""
            fault: BackupError
            leave = await self._pacers.leave(ask.blob, ask.size)
            deadline = min(deadline, self._monotonic() + REQUEST_SECONDS)
            url, headers = await self._authorised(ask)
            left = aiohttp.ClientTimeout(
                total=max(deadline - self._monotonic(), 1), sock_connect=CONNECT_SECONDS, sock_read=READ_SECONDS
            )
            try:
                async with self._connected().request(
                    ask.method, url, headers=headers, data=ask.body, timeout=left, allow_redirects=False
                ) as answer:
                    if answer.status in GOOD[ask.method]:
                        received = await receive(answer)
                        leave.succeeded()
                        return received
                    await answer.read()
                    retry_after = answer.headers.get("Retry-After", "")
                    code = answer.headers.get("x-ms-error-code", "")
                    if answer.status in THROTTLED:
                        leave.refused(answer.reason or "", self._monotonic(), _seconds(retry_after) or 0.0)
                    fault = fault_of(
                        answer.status, code, answer.reason or "", ask.what, snapshot=bool(ask.snapshot), copies=ask.copies,
                        source_code=answer.headers.get(COPY_SOURCE_CODE, ""),
                    )  # fmt: skip
            except TimeoutError:
                fault = ServiceTimedOutError(f"{ask.what}: no answer in time; temporary failure")
            except (aiohttp.ClientError, ConnectionError) as error:
                fault = no_answer(error, ask.what)
            except TransferDamagedError as error:
                fault = error
            too_long = isinstance(fault, ServiceTimedOutError) and not ask.waits_out_timeouts
            pause = self._pause(attempt, retry_after)
            passing = isinstance(fault, (ServiceUnavailableError, TransferDamagedError))
            if not passing or too_long or self._monotonic() + pause > deadline:
                raise (_without_host(fault) if ask.url and isinstance(fault, HostUnknownError) else fault) from None
            await asyncio.sleep(pause)
        raise AssertionError  # the loop returns or raises

    async def _authorised(self, ask: Ask) -> tuple[URL, dict[str, str]]:
        if ask.url:
            return (
                URL("&".join(filter(None, (ask.url, ask.query))), encoded=True),
                {**(ask.headers or {}), "x-ms-version": VERSION},
            )
        authority = self._authorities[ask.blob.account]
        assert isinstance(ask.blob, BlobAddress)  # a managed disk is read by its export's URL alone
        snapshot = f"snapshot={quote(ask.snapshot, safe='')}" if ask.snapshot else ""
        signed = "&".join(filter(None, (snapshot, ask.query, authority.query(ask.blob, ask.snapshot, write=ask.write))))
        return (
            URL(f"{ask.blob.url}?{signed}", encoded=True),
            {**(ask.headers or {}), **await authority.headers(), "x-ms-version": VERSION},
        )

    def _pause(self, attempt: int, retry_after: str) -> float:
        if (seconds := _seconds(retry_after)) is not None:
            return seconds + self._jitter.uniform(0, PAUSE_SECONDS)
        return self._jitter.uniform(0, min(PAUSE_SECONDS * 2 ** min(attempt, 10), PAUSE_SECONDS_MAX))


def _without_host(fault: HostUnknownError) -> AccessDeniedError:
    """The refusal of an export's address whose host no name server knows. Nobody has misspelt it: its access has ended, or its
    name is so new that it is not known yet (microsoft/AzureStorageExplorer#6083).
    """
    denied = AccessDeniedError(f"{fault}; it is the host of an address that Azure has granted, and perhaps has ended")
    denied.by_signature = True
    return denied


def _seconds(retry_after: str) -> float | None:
    return float(retry_after) if retry_after.isdigit() else None


async def nothing(_: aiohttp.ClientResponse) -> None:
    """For answers without a body."""
