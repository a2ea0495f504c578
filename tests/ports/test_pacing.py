"""Requests that wait for their turn: separate by account, fair between disks, and all sent in the end. Time is made up."""

from __future__ import annotations

import asyncio
import heapq
from collections import Counter

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from backup_core.adapters import pacing
from backup_core.adapters.authority import SharedSasAuthority
from backup_core.adapters.pacing import Pacers
from backup_core.adapters.page_data import PageData
from backup_core.adapters.transport import Transport
from backup_core.domain.naming import BlobAddress
from backup_core.domain.pacing import Rates
from backup_core.domain.ranges import MIB, ByteRange
from backup_core.ports.blobs import Fence

ONE, OTHER = "https://one.test", "https://other.test"
DISK, NEIGHBOUR, ELSEWHERE = BlobAddress(ONE, "h", "disk"), BlobAddress(ONE, "h", "neighbour"), BlobAddress(OTHER, "h", "disk")
BUSY, ACCOUNT_BUSY = "The server is busy.", "Operations per second is over the account limit."
SLOW = Rates(10, 1000 * MIB)


class Time:
    """A clock that moves on to the next sleeper once nobody has anything left to do."""

    def __init__(self, monkeypatch):
        self.now, self._sleepers, self._order = 0.0, [], 0
        self._yield = asyncio.sleep
        monkeypatch.setattr(pacing.asyncio, "sleep", self.sleep)

    def monotonic(self):
        return self.now

    async def sleep(self, seconds):
        self._order += 1
        woken = asyncio.get_running_loop().create_future()
        heapq.heappush(self._sleepers, (self.now + seconds, self._order, woken))
        await woken

    async def pass_until(self, end, *tasks):
        """Let the time pass until `end`, or until the tasks are done."""
        while True:
            for _ in range(20):
                await self._yield(0)
            if (tasks and all(task.done() for task in tasks)) or not self._sleepers or self._sleepers[0][0] > end:
                self.now = max(self.now, end) if not tasks else self.now
                return
            when, _, woken = heapq.heappop(self._sleepers)
            self.now = max(self.now, when)
            if not woken.done():
                woken.set_result(None)


@pytest.fixture
def time(monkeypatch):
    return Time(monkeypatch)


def sender(pacers, blob, seen, *, refuse="", size=512):
    """Send to the blob for ever, one request after the other; the service refuses each with the words `refuse`, if any."""

    async def send():
        while True:
            leave = await pacers.leave(blob, size)
            seen[blob] += 1
            if refuse:
                leave.refused(refuse, pacers._monotonic(), 0.0)
            else:
                leave.succeeded()

    return asyncio.create_task(send())


async def ended(*tasks):
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_requests_to_a_blob_follow_at_its_pace_whoever_sends_them(time):
    """Eight shards of a disk have together what one has."""
    pacers, seen = Pacers(SLOW, monotonic=time.monotonic), Counter()
    tasks = [sender(pacers, DISK, seen) for _ in range(8)]
    await time.pass_until(10.0)
    await ended(*tasks)

    assert 100 <= seen[DISK] <= 100 * 1.25 + 2


async def test_a_refused_blob_slows_no_other(time):
    """Neither on another account nor on its own: the service has said nothing of the account."""
    pacers, seen = Pacers(SLOW, monotonic=time.monotonic), Counter()
    tasks = [sender(pacers, DISK, seen, refuse=BUSY), sender(pacers, NEIGHBOUR, seen), sender(pacers, ELSEWHERE, seen)]
    await time.pass_until(10.0)
    await ended(*tasks)

    assert seen[DISK] <= 60
    assert min(seen[NEIGHBOUR], seen[ELSEWHERE]) >= 100


async def test_a_refused_account_slows_its_disks_and_no_other_accounts(time):
    pacers, seen = Pacers(Rates(100, 1000 * MIB), SLOW, monotonic=time.monotonic), Counter()
    tasks = [sender(pacers, DISK, seen, refuse=ACCOUNT_BUSY), sender(pacers, NEIGHBOUR, seen), sender(pacers, ELSEWHERE, seen)]
    await time.pass_until(10.0)
    await ended(*tasks)

    assert seen[DISK] + seen[NEIGHBOUR] < 95
    assert seen[ELSEWHERE] >= 100


async def test_disks_take_turns_at_their_account(time):
    """One with sixty requests waiting has no more of it than one with a single one."""
    pacers, seen = Pacers(Rates(1000, 1000 * MIB), SLOW, monotonic=time.monotonic), Counter()
    tasks = [*(sender(pacers, DISK, seen) for _ in range(60)), sender(pacers, NEIGHBOUR, seen)]
    await time.pass_until(10.0)
    await ended(*tasks)

    assert abs(seen[DISK] - seen[NEIGHBOUR]) <= 2


async def test_retry_after_delays_every_request_to_the_blob(time):
    pacers = Pacers(SLOW, monotonic=time.monotonic)
    (await pacers.leave(DISK, 512)).refused(BUSY, time.now, 9.0)
    waiting = asyncio.create_task(pacers.leave(DISK, 512))
    await time.pass_until(8.9)
    assert not waiting.done()
    await time.pass_until(9.1, waiting)

    assert waiting.done()


async def test_of_very_many_blobs_the_paces_used_last_are_kept(time, monkeypatch):
    monkeypatch.setattr(pacing, "BLOBS_KEPT", 3)
    pacers = Pacers(monotonic=time.monotonic)
    for number in (0, 1, 2, 0, 3):
        await pacers.leave(BlobAddress(ONE, "h", str(number)), 512)

    assert [blob.name for blob in pacers._blobs] == ["2", "0", "3"]


# -- through the transport ---------------------------------------------------------------------------------------------


class Throttled:
    """A page blob's server that takes so many requests in each second of the made-up time, and refuses the rest."""

    def __init__(self, time, per_second):
        self._time, self.per_second = time, per_second
        self._second, self._taken = 0, 0
        self.put, self.refused = Counter(), 0

    async def handle(self, request):
        if int(self._time.now) != self._second:
            self._second, self._taken = int(self._time.now), 0
        self._taken += 1
        if self._taken > self.per_second:
            self.refused += 1
            return web.Response(status=503, reason=BUSY, headers={"x-ms-error-code": "ServerBusy"})
        self.put[request.headers["x-ms-range"]] += 1
        return web.Response(status=201)


async def test_a_storm_fails_no_request(monkeypatch):
    """All requests succeed once although for minutes the service takes a twentieth of the documented rate.

    Afterwards the pace grows.
    """
    clock = Time(monkeypatch)

    async def slept(seconds):
        clock.now += seconds
        await clock._yield(0)

    monkeypatch.setattr(pacing.asyncio, "sleep", slept)
    server = Throttled(clock, 25)
    app = web.Application()
    app.router.add_route("*", "/{tail:.*}", server.handle)
    async with TestServer(app) as listening:
        account = str(listening.make_url("/one")).rstrip("/")
        pacers = Pacers(monotonic=clock.monotonic)
        transport = Transport({account: SharedSasAuthority("sig=x")}, clock.monotonic, pacers)
        data, head = PageData(transport), BlobAddress(account, "h", "d")
        ranges = [ByteRange(page * 512, page * 512 + 512) for page in range(0, 3000, 2)]

        async def work(todo):
            for part in todo:
                await data.clear(head, part, Fence("lease", 1))

        async def clear(parts):
            todo = iter(parts)
            await asyncio.gather(*(work(todo) for _ in range(8)))

        await clear(ranges)
        assert set(server.put.values()) == {1}
        assert len(server.put) == len(ranges)
        slowest, server.per_second = pacers._blobs[head].pace.share, 10**6
        await clear(ranges * 10)
        await transport.close()

    assert server.refused <= len(ranges) / 10
    assert pacers._blobs[head].pace.share > slowest * 2


async def test_a_large_put_weighs_its_bytes_and_a_clear_of_any_length_none():
    """Put Page From URL too: the bytes reach the blob, though not through this process."""
    sizes = []

    class Noted(Pacers):
        async def leave(self, blob, size):
            sizes.append((blob.name, size))
            return await super().leave(blob, size)

    async def handle(request):
        whole = request.method == "GET"
        return web.Response(status=206 if whole else 201, body=b"x" * 1024 if whole else b"")

    app = web.Application()
    app.router.add_route("*", "/{tail:.*}", handle)
    async with TestServer(app) as listening:
        account = str(listening.make_url("/one")).rstrip("/")
        transport = Transport({account: SharedSasAuthority("sig=x")}, pacers=Noted())
        data, disk, head, fence = (
            PageData(transport),
            BlobAddress(account, "v", "disk"),
            BlobAddress(account, "h", "head"),
            Fence("l", 1),
        )
        await data.from_url(disk, "2026-01-01T00:00:00.0000000Z", ByteRange(0, 1024), head, fence)
        await data.stream(disk, "2026-01-01T00:00:00.0000000Z", ByteRange(0, 1024), head, fence)
        await data.clear(head, ByteRange(0, 64 * MIB), fence)
        await transport.close()

    assert sizes == [("head", 1024), ("disk", 1024), ("head", 1024), ("head", 0)]
