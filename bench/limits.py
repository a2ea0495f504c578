"""Measure the copying against a page blob's limits: the real steps against a server that refuses what is above them."""

from __future__ import annotations

import asyncio
import json
import os
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass

import aiohttp

from backup_core.domain.pacing import BLOB_RATES
from backup_core.domain.ranges import KIB, MIB, ByteRange, DiffRange, requests
from backup_core.protocol.tools import Limits
from bench.page import Section, table, verdict, words
from bench.picture import FOLDER, Bar, drawn
from bench.rig import rig
from devhost.throttling import BURST_SECONDS, LATENCY_SECONDS, SETTLED_SECONDS, ThrottlingServer

SIDE_BY_SIDE = (1, 4, 8)
USED_LEAST, REFUSED_MOST = 0.95, 0.05
PICTURE, PICTURED = FOLDER / "limits.svg", "How much of a page blob's binding limit is used"


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


async def copied(server: str, diff: Diff, shards: int) -> Reached:
    """Plan the diff and copy it by the real steps, `shards` of its shards side by side."""
    changes = diff.changes()
    pieces = [piece for one in changes for piece in requests(one)]
    size = sum(piece.range.size for piece in pieces)
    # Eight shards, or a few more, so that eight can be copied side by side.
    limits = Limits(shard_bytes_max=max(size // 7, 64 * MIB), shard_requests_max=max(len(pieces) // 7, 16), gap_ratio=0)
    async with rig(server, changes, limits, "server") as steps:
        destination = steps.disk(f"{shards}")
        todo = iter(range(await destination.plan()))

        async def work() -> None:
            for shard in todo:
                await destination.copy(shard)

        began = time.monotonic()
        await asyncio.gather(*(work() for _ in range(shards)))
        seconds = time.monotonic() - began
    async with aiohttp.ClientSession() as session, session.get(destination.url) as answer:
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


def section(found: list[Reached], seconds: float) -> Section:
    """The section that compares the copying with a page blob's limits."""
    how = f"""
        A page blob takes 500 requests/s and 60 MiB/s: here are the real steps that plan and copy, by Put Page From URL, against
        a server on loopback that keeps nothing, answers each request after {LATENCY_SECONDS * 1000:g} ms, and refuses what is
        above the limits with 503 ServerBusy. Azure does not publish how it counts: here both limits are token buckets that hold
        {BURST_SECONDS:g} s and begin full, so a diff of some {seconds:g} s may come out a little above 100 %. One
        process copies
        all shards. Python {platform.python_version()}, {os.cpu_count()} cores."""
    goals = (
        f"Goals: at least {USED_LEAST:.0%} of the binding limit; at most {REFUSED_MOST:.0%} of the requests refused after the "
        f"first {SETTLED_SECONDS:g} s."
    )
    columns = ("diff", "shards side by side", "requests", "s at the limit", "s taken", "of the limit", "refused", "goals")
    rows = [
        (
            one.diff, f"{one.shards}", f"{one.requests:,}", f"{one.least:.1f}", f"{one.seconds:.1f}", f"{one.used:.1%}",
            f"{one.refused:.2%}", verdict(met=one.met),
        )
        for one in found
    ]  # fmt: skip
    picture = f"![{PICTURED}](pictures/{PICTURE.name})"
    text = f"{words(how)}\n\n{goals}\n\n{picture}\n\n{table(columns, rows)}"
    return Section("A page blob's limits", text, all(one.met for one in found))


def picture(found: list[Reached]) -> str:
    """A bar for each diff: the share of the binding limit that it has used."""
    bars = [Bar(f"{one.diff}, {one.shards} shards", one.used, one.met) for one in found]
    return drawn(PICTURED, bars, USED_LEAST, f"goal: {USED_LEAST:.0%}")


def measure(seconds: float = 15.0) -> Section:
    """The three diffs, at one, four and eight shards."""
    found = asyncio.run(measured(seconds))
    PICTURE.write_text(picture(found))
    return section(found, seconds)
