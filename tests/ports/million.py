"""Lists and plans a million ranges of a disk of 8 TiB with the real adapter and activity; prints the memory it took.

A process of its own serves the page lists, so that the memory measured is the product's alone.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import re
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from multiprocessing.queues import Queue
from pathlib import Path
from typing import Any, cast

from aiohttp import web

from backup_core.adapters.authority import SharedSasAuthority
from backup_core.adapters.page_lists import PageLists
from backup_core.adapters.transport import Transport
from backup_core.domain.naming import BlobAddress
from backup_core.domain.plan import Plan, Planner
from backup_core.domain.ranges import DISK_BYTES_MAX, ByteRange, DiffRange, joined
from backup_core.protocol.listings import changes_between
from backup_core.protocol.tools import Limits, Tools

RANGES, RANGES_PER_PAGE = 1_000_000, 10_000
STEP = DISK_BYTES_MAX // RANGES // 512 * 512
BYTES_MAX = 60 * 1000 * 1000


async def page_list(request: web.Request) -> web.Response:
    """One page of a disk on which every STEP bytes 8 KiB were written."""
    first, _, last = request.headers["x-ms-range"].removeprefix("bytes=").partition("-")
    number = int(request.query.get("marker", -(-int(first) // STEP)))
    parts = ["<PageList>"]
    for one in range(number, number + RANGES_PER_PAGE):
        start = one * STEP
        if one >= RANGES or start > int(last):
            number = 0
            break
        parts.append(f"<PageRange><Start>{start}</Start><End>{start + 8191}</End></PageRange>")
    else:
        number += RANGES_PER_PAGE
    parts.append(f"<NextMarker>{number or ''}</NextMarker></PageList>")
    return web.Response(body="".join(parts).encode(), content_type="application/xml")


def serve(port: Queue[int]) -> None:
    app = web.Application()
    app.router.add_get("/{tail:.*}", page_list)

    async def main() -> None:
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        port.put(cast("Any", site)._server.sockets[0].getsockname()[1])
        await asyncio.Event().wait()

    asyncio.run(main())


class Blobs:
    """The listing of the port, by the real adapter."""

    def __init__(self, lists: PageLists) -> None:
        self.lists = lists

    def diff(self, blob: BlobAddress, snapshot: str, previous: str, window: ByteRange) -> AsyncIterator[DiffRange]:
        return self.lists.ranges(blob, snapshot, previous, window)


def peak_bytes() -> int:
    """The most memory that this process has had, from Linux: what getrusage says may be the parent's."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found
    return int(found[1]) * 1024


async def measure(port: int) -> tuple[Plan, int, float]:
    """The plan, the bytes of memory it added, and its seconds of CPU."""
    account = f"http://127.0.0.1:{port}/source"
    transport = Transport({account: SharedSasAuthority("sig=x")})
    no: Any = None
    blobs = cast("Any", Blobs(PageLists(transport)))
    tools = Tools(blobs, no, no, (account,), "", "heads", lambda: 0.0, no, no, no, no)
    blob, limits = BlobAddress(account, "vhds", "disk.vhd"), Limits()

    async def plan(size: int) -> Plan:
        planner = Planner(limits.shard_bytes_max, limits.shard_requests_max)
        async for change in joined(changes_between(tools, blob, "new", "old", ByteRange(0, size))):
            planner.feed(change)
        return planner.finish()

    await plan(STEP * 1000)  # what the first request alone takes
    before, cpu = peak_bytes(), time.process_time()
    planned = await plan(DISK_BYTES_MAX)
    seconds = time.process_time() - cpu
    added = peak_bytes() - before
    await transport.close()
    return planned, added, seconds


@contextmanager
def served() -> Iterator[int]:
    """The port of the server."""
    port = multiprocessing.get_context("spawn").Queue()
    server = multiprocessing.get_context("spawn").Process(target=serve, args=(port,), daemon=True)
    server.start()
    try:
        yield port.get(timeout=30)
    finally:
        server.terminate()
        server.join()


def main() -> int:
    with served() as port:
        planned, added, seconds = asyncio.run(measure(port))
    print(
        f"{planned.ranges:,} ranges, {len(planned.shards)} shards, {added / 1e6:.1f} MB added (goal: at most 60), "
        f"{seconds:.2f} s of CPU"
    )
    return 0 if planned.ranges == RANGES and added <= BYTES_MAX else 1


if __name__ == "__main__":
    sys.exit(main())
