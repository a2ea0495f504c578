"""Lists and plans a million ranges of a disk of 8 TiB with the real adapter and activity; prints the memory it took.

A process of its own serves the page lists, so that the memory measured is the product's alone.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import resource
import sys

from aiohttp import web

from backup_core.adapters.authority import SharedSasAuthority
from backup_core.adapters.page_lists import PageLists
from backup_core.adapters.transport import Transport
from backup_core.domain.naming import BlobAddress
from backup_core.domain.plan import Planner
from backup_core.domain.ranges import DISK_BYTES_MAX, ByteRange, joined
from backup_core.protocol.listings import changes_between
from backup_core.protocol.tools import Limits, Tools

RANGES, RANGES_PER_PAGE = 1_000_000, 10_000
STEP = DISK_BYTES_MAX // RANGES // 512 * 512
BYTES_MAX = 60 * 1000 * 1000


async def page_list(request):
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


def serve(port):
    app = web.Application()
    app.router.add_get("/{tail:.*}", page_list)

    async def main():
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        port.put(site._server.sockets[0].getsockname()[1])
        await asyncio.Event().wait()

    asyncio.run(main())


class Blobs:
    """The listing of the port, by the real adapter."""

    def __init__(self, lists):
        self.lists = lists

    def diff(self, blob, snapshot, previous, window):
        return self.lists.ranges(blob, snapshot, previous, window)


async def measure(port):
    account = f"http://127.0.0.1:{port}/source"
    transport = Transport({account: SharedSasAuthority("sig=x")})
    tools = Tools(Blobs(PageLists(transport)), None, None, (account,), "", "heads", lambda: 0.0, None, None, None, None)
    blob, limits = BlobAddress(account, "vhds", "disk.vhd"), Limits()

    async def plan(size):
        planner = Planner(limits.shard_bytes_max, limits.shard_requests_max)
        async for change in joined(changes_between(tools, blob, "new", "old", ByteRange(0, size))):
            planner.feed(change)
        return planner.finish()

    await plan(STEP * 1000)  # what the first request alone takes
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    planned = await plan(DISK_BYTES_MAX)
    added = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    await transport.close()
    return planned, added


def main():
    port = multiprocessing.get_context("spawn").Queue()
    server = multiprocessing.get_context("spawn").Process(target=serve, args=(port,), daemon=True)
    server.start()
    try:
        planned, added = asyncio.run(measure(port.get(timeout=30)))
    finally:
        server.terminate()
        server.join()
    print(f"{planned.ranges:,} ranges, {len(planned.shards)} shards, {added / 1e6:.1f} MB added (goal: at most 60)")
    return 0 if planned.ranges == RANGES and added <= BYTES_MAX else 1


if __name__ == "__main__":
    sys.exit(main())
