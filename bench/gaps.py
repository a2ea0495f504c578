"""Measure the saving from copying small gaps along. The diffs are random dirt of 4 KiB, the rule is the project's own, and the
time is the modelled time of a page blob.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from dataclasses import dataclass

from backup_core.domain.coalescing import GAP_RATIO, GapCount, coalesced
from backup_core.domain.pacing import BLOB_RATES
from backup_core.domain.ranges import GIB, KIB, ByteRange, DiffRange, joined
from backup_core.protocol.tools import Limits
from bench.page import Section, table, verdict, words

PAGE_BYTES, DISK_BYTES = 4 * KIB, 8 * GIB
SHARES = (0.01, 0.05, 0.20)
GOAL_SHARE, GOAL = 0.05, 0.30
LIFTED = 1000.0
"""A ratio that no gap reaches."""


@dataclass(frozen=True)
class Modelled:
    """One diff: requests, bytes, and the time that a page blob's limits leave, without gaps and with them."""

    share: float
    ratio: float
    requests: tuple[int, int]
    size: tuple[int, int]

    @property
    def seconds(self) -> tuple[float, float]:
        """At the binding limit."""
        before, after = (
            max(count / BLOB_RATES.requests, size / BLOB_RATES.bytes)
            for count, size in zip(self.requests, self.size, strict=True)
        )
        return before, after

    @property
    def part(self) -> float:
        """The time with gaps, of that without."""
        return self.seconds[1] / self.seconds[0]

    @property
    def goal(self) -> bool:
        """Whether there is a goal for it."""
        return (self.share, self.ratio) == (GOAL_SHARE, LIFTED)

    @property
    def met(self) -> bool:
        """Whether it is reached; so is none."""
        return not self.goal or self.part <= GOAL


async def _dirt(share: float) -> AsyncIterator[DiffRange]:
    rng, count = random.Random(f"dirt {share}"), DISK_BYTES // PAGE_BYTES  # noqa: S311  draws dirt, guards nothing
    for page in sorted(rng.sample(range(count), int(share * count))):
        yield DiffRange(ByteRange(page * PAGE_BYTES, (page + 1) * PAGE_BYTES), cleared=False)


async def _held(_: ByteRange) -> bool:
    return True


async def modelled(share: float, ratio: float) -> Modelled:
    """The diff of a disk all of which both sides hold."""
    gaps, count, size = GapCount(), 0, 0
    async for one in joined(_dirt(share)):
        gaps.feed(one)
        count, size = count + 1, size + one.range.size
    chosen = gaps.bytes_max(count, size, ratio, Limits().gaps_min)
    pieces = [piece async for piece in coalesced(joined(_dirt(share)), chosen, _held)]
    return Modelled(share, ratio, (count, len(pieces)), (size, sum(piece.range.size for piece in pieces)))


def measure() -> Section:
    """All shares of dirt, with the default budget and with none."""
    found = [asyncio.run(modelled(share, ratio)) for share in SHARES for ratio in (GAP_RATIO, LIFTED)]
    prose = words(
        f"Random writes of 4 KiB to a disk of {DISK_BYTES // GIB} GiB, all of it allocated; requests, bytes and seconds at a "
        f"page blob's limits, by the rule that plans use. The budget is GAP_RATIO: {GAP_RATIO:g} unchanged bytes for "
        f"each changed "
        f"one by default. Goal: {GOAL_SHARE:.0%} of dirt, the budget lifted, in at most {GOAL:.2f} of the time."
    )
    columns = ("dirty", "budget", "requests", "with gaps", "bytes, times", "s", "with gaps", "part", "goal")
    rows = [
        (
            f"{one.share:.0%}", "lifted" if one.ratio == LIFTED else f"{one.ratio:g}", f"{one.requests[0]:,}",
            f"{one.requests[1]:,}",
            f"{one.size[1] / one.size[0]:.1f}", f"{one.seconds[0]:.0f}", f"{one.seconds[1]:.0f}", f"{one.part:.2f}",
            verdict(met=one.met) if one.goal else "",
        )
        for one in found
    ]  # fmt: skip
    return Section("Gaps copied along", f"{prose}\n\n{table(columns, rows)}", all(one.met for one in found))
