"""The amount that a restore copies, counted for as long as a call may take: the front end ends a call after 230 s."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from dataclasses import dataclass
from typing import TYPE_CHECKING

from backup_core.domain.ranges import PUT_BYTES_MAX, ByteRange
from backup_core.protocol.listings import changes_between

if TYPE_CHECKING:
    from backup_core.domain.records import RestorePoint
    from backup_core.protocol.tools import Tools


@dataclass(frozen=True)
class Allocation:
    """Bytes and requests of one copy, counted up to the byte `counted_to` of `size`."""

    bytes: int
    requests: int
    counted_to: int
    size: int

    @property
    def whole(self) -> bool:
        """Whether all of it was counted; otherwise the counts are lower bounds."""
        return self.counted_to == self.size

    @property
    def at_most(self) -> tuple[int, int]:
        """Bytes and requests if everything that was not counted is allocated."""
        rest = self.size - self.counted_to
        return self.bytes + rest, self.requests + -(-rest // PUT_BYTES_MAX)


async def allocation_of(tools: Tools, point: RestorePoint) -> Allocation:
    """The allocated part of the point's backup, counted for at most `plan_seconds`."""
    began, count, puts, counted_to = tools.monotonic(), 0, 0, 0
    listed = changes_between(tools, tools.head(point.head), point.backup_snapshot, "", ByteRange(0, point.size))
    try:
        # The time-out is for a request that hangs, the clock for an endless listing.
        async with aclosing(listed), asyncio.timeout(tools.limits.plan_seconds):
            async for one in listed:
                count += one.range.size
                puts += -(-one.range.size // PUT_BYTES_MAX)
                counted_to = one.range.end
                if tools.monotonic() - began > tools.limits.plan_seconds:
                    return Allocation(count, puts, counted_to, point.size)
    except TimeoutError:
        return Allocation(count, puts, counted_to, point.size)
    return Allocation(count, puts, point.size, point.size)
