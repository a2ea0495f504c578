"""How near the copying comes to a page blob's limits: the real steps against a server that refuses what is above them.

`docs/performance.md` is written from the result.
"""

from __future__ import annotations

import asyncio
import json
import os
import platform
import textwrap
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import aiohttp

from backup_core.activities.runner import run_step
from backup_core.adapters.authority import SharedSasAuthority
from backup_core.adapters.pacing import Pacers
from backup_core.adapters.page_data import PageData
from backup_core.adapters.transport import Transport
from backup_core.domain.identity import Deployment
from backup_core.domain.pacing import BLOB_RATES
from backup_core.domain.ranges import KIB, MIB, ByteRange, DiffRange, requests
from backup_core.domain.records import Head, Owner
from backup_core.ports.blobs import BlobProperties
from backup_core.protocol.copy_route import Copying
from backup_core.protocol.tools import Limits, Tools
from backup_core.steps import STEPS
from backup_core.steps.copying import ApplyShard, ImageCopy
from backup_core.steps.messages import Actor
from devhost.throttling import BURST_SECONDS, LATENCY_SECONDS, SETTLED_SECONDS, ThrottlingServer
from tests.doubles.catalogue import MemoryCatalogue
from tests.doubles.documents import MemoryDocuments
from tests.doubles.journal import MemoryJournal
from tests.doubles.world import InMemoryServices

if TYPE_CHECKING:
    from backup_core.domain.naming import BlobAddress
    from backup_core.ports.blobs import Fence

PAGE = Path(__file__).parents[1] / "docs" / "performance.md"
BY_NAME = {step.name: step for step in STEPS}
SIDE_BY_SIDE = (1, 4, 8)
USED_LEAST, REFUSED_MOST = 0.95, 0.05


@dataclass(frozen=True)
class Diff:
    """Written ranges, far enough from each other for none to be copied along."""

    name: str
    sizes: Callable[[int], int]
    """The size of each range, by its number."""
    count: int

    def changes(self) -> list[DiffRange]:
        """The ranges, ascending."""
        found, at = [], 0
        for number in range(self.count):
            found.append(DiffRange(ByteRange(at, at + self.sizes(number)), cleared=False))
            at += self.sizes(number) + MIB
        return found


def diffs(seconds: float) -> list[Diff]:
    """A small, a large and a mixed one, each of so many seconds at its binding limit."""
    small, large = int(seconds * BLOB_RATES.requests), int(seconds * BLOB_RATES.bytes / (4 * MIB))
    return [
        Diff("small, of 8 KiB", lambda _: 8 * KIB, small),
        Diff("large, of 4 MiB", lambda _: 4 * MIB, large),
        Diff("mixed, one in 50 of 4 MiB", lambda number: 4 * MIB if number % 50 == 25 else 8 * KIB, int(0.7 * small)),
    ]


@dataclass(frozen=True)
class Reached:
    """The figures of one copied diff."""

    diff: str
    shards: int
    """Side by side."""
    seconds: float
    least: float
    """Seconds at the binding limit."""
    requests: int
    refused: float
    """Of the requests after the first seconds."""

    @property
    def used(self) -> float:
        """The used part of the binding limit."""
        return self.least / self.seconds

    @property
    def met(self) -> bool:
        """Whether both are at their goal."""
        return self.used >= USED_LEAST and self.refused <= REFUSED_MOST


class _Blobs:
    """The source's side from a list; the destination's over HTTP."""

    def __init__(self, data: PageData, changes: list[DiffRange]) -> None:
        self._data, self._changes = data, changes

    async def diff(self, _: BlobAddress, __: str, ___: str, window: ByteRange) -> AsyncIterator[DiffRange]:
        for one in self._changes:
            start, end = max(one.range.start, window.start), min(one.range.end, window.end)
            if start < end:
                yield DiffRange(ByteRange(start, end), one.cleared)

    async def properties(self, _: BlobAddress, __: str = "") -> BlobProperties:
        return BlobProperties(self._changes[-1].range.end, "", True, datetime(2026, 1, 1, tzinfo=UTC), 1, {})

    async def copy_from_url(self, source: BlobAddress, snapshot: str, part: ByteRange, head: BlobAddress, fence: Fence) -> None:
        await self._data.from_url(source, snapshot, part, head, fence)


async def copied(server: str, diff: Diff, shards: int) -> Reached:
    """Plan the diff and copy it by the real steps, `shards` of its shards side by side."""
    source, backup = f"{server}/source", f"{server}/backup"
    transport = Transport({one: SharedSasAuthority("sig=x") for one in (source, backup)}, pacers=Pacers())
    world, changes = InMemoryServices(), diff.changes()
    catalogue, blobs = MemoryCatalogue(world), cast("Any", _Blobs(PageData(transport), changes))
    actor = Actor(disk="vm", run="vm.20260101T000000Z.timer", lease="lease", epoch=1, source=f"{source}/vhds/vm.vhd")
    catalogue._store(Head("vm", 1, Owner(actor.run, actor.lease, actor.epoch)), "head")  # noqa: SLF001  past every gate
    pieces = [piece for one in changes for piece in requests(one)]
    size = sum(piece.range.size for piece in pieces)
    # Eight shards, or a few more, so that eight can be copied side by side.
    limits = Limits(shard_bytes_max=max(size // 7, 64 * MIB), shard_requests_max=max(len(pieces) // 7, 16), gap_ratio=0)
    tools = Tools(
        blobs, catalogue, MemoryDocuments(world), (source,), backup, "heads", time.monotonic,
        Copying(blobs, "server", time.monotonic), cast("Any", None), MemoryJournal(), Deployment("backup/pagekeeper"), limits,
    )  # fmt: skip
    image = ImageCopy(
        actor=actor, source=actor.source, base="2026-01-01T00:00:00.0000000Z", target="2026-01-02T00:00:00.0000000Z",
        destination=f"vm/{shards}/disk.vhd", kind="incremental", generation=1, size=changes[-1].range.end,
    )  # fmt: skip

    async def step(name: str, message: Any) -> Any:  # noqa: ANN401  any JSON
        return (await run_step(BY_NAME[name], lambda _: tools, message.model_dump(mode="json")))["value"]

    planned = await step("plan_transfer", image)
    image = image.model_copy(update={"plan": planned["plan"], "plan_digest": planned["digest"]})
    todo = iter(range(planned["shards"]))

    async def work() -> None:
        for shard in todo:
            while not (await step("apply_shard", ApplyShard(image=image, shard=shard)))["done"]:
                pass

    began = time.monotonic()
    await asyncio.gather(*(work() for _ in range(shards)))
    seconds = time.monotonic() - began
    await transport.close()
    async with aiohttp.ClientSession() as session, session.get(tools.head(image.destination).url) as answer:
        taken, _, late, late_refused = json.loads(await answer.read())
    if taken != len(pieces):
        message = f"{taken} requests were taken, expected {len(pieces)}"
        raise RuntimeError(message)
    least = max(len(pieces) / BLOB_RATES.requests, size / BLOB_RATES.bytes)
    return Reached(diff.name, shards, seconds, least, len(pieces), late_refused / late if late else 0.0)


async def measured(seconds: float) -> list[Reached]:
    """Each diff with one, four and eight shards side by side."""
    with ThrottlingServer() as server:
        return [await copied(server.url, diff, shards) for diff in diffs(seconds) for shards in SIDE_BY_SIDE]


def written(found: list[Reached], seconds: float) -> str:
    """`docs/performance.md`."""
    how = f"""
        Written by `make bench`. How near the copying comes to a page blob's limits, 500 requests/s and 60 MiB/s: the real steps
        that plan and copy, by Put Page From URL, against a server on loopback that keeps nothing, answers each request after
        {LATENCY_SECONDS * 1000:g} ms, and refuses what is above the limits with 503 ServerBusy. Nothing of this was measured in
        Azure, which does not publish how it counts: here both limits are token buckets that hold {BURST_SECONDS:g} s and begin
        full, so a diff of some {seconds:g} s may come out a little above 100 %. One process copies all shards. Python
        {platform.python_version()}, {os.cpu_count()} cores."""
    goals = (
        f"Goals: at least {USED_LEAST:.0%} of the binding limit; at most {REFUSED_MOST:.0%} of the requests refused after the "
        f"first {SETTLED_SECONDS:g} s."
    )
    columns = ("diff", "shards side by side", "requests", "s at the limit", "s taken", "of the limit", "refused", "goals")
    rows = [
        (
            one.diff, f"{one.shards}", f"{one.requests:,}", f"{one.least:.1f}", f"{one.seconds:.1f}", f"{one.used:.1%}",
            f"{one.refused:.2%}", "met" if one.met else "missed",
        )
        for one in found
    ]  # fmt: skip
    table = [f"| {' | '.join(row)} |" for row in (columns, *rows)]
    table.insert(1, "|---" * len(columns) + "|")
    return "\n".join(["# Performance", "", textwrap.fill(" ".join(how.split()), 128), "", goals, "", *table, ""])


def main(seconds: float = 15.0) -> int:
    """Measure, show, and write the page; 0 when every figure is at its goal."""
    found = asyncio.run(measured(seconds))
    text = written(found, seconds)
    PAGE.write_text(text)
    print(text)
    return 0 if all(one.met for one in found) else 1
