"""Which blocks of a disk a verification reads: chosen anew for each run, the same on a repeat."""

from __future__ import annotations

import math
import random
from typing import TYPE_CHECKING

from backup_core.domain.ranges import ByteRange

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

BLOCK = 4096
DRAWN_MIN, DRAWN_SHARE, INSIDE_SHARE = 300, 0.001, 0.01
"""At least 300 blocks, or 0.1 %, wherever they fall: 300 uniform samples find 1 % of damage with a probability of 95 %.
Besides, one block in a hundred where something was written.
"""


def drawn_count(size: int, window: ByteRange, least: int) -> int:
    """How many blocks of the window are drawn; over all windows at least `least`, and 0.1 % of the disk's blocks."""
    wanted = max(least, math.ceil(DRAWN_SHARE * size / BLOCK))
    return math.ceil(wanted * window.size / size)


async def sampled(
    changed: AsyncIterator[ByteRange], window: ByteRange, size: int, seed: str, least: int = DRAWN_MIN
) -> AsyncIterator[ByteRange]:
    """Blocks of the window to compare, ascending: drawn over the whole window, unallocated parts included, and one in a
    hundred of the blocks that `changed` (ascending) touches.
    """
    rng = random.Random(seed)  # noqa: S311  spreads samples, guards nothing
    first, last = window.start // BLOCK, -(-window.end // BLOCK)
    drawn = sorted(rng.randrange(first, last) for _ in range(drawn_count(size, window, least)))
    waiting, done = iter([*drawn, last]), first - 1
    upcoming = next(waiting)
    async for part in changed:
        for block in _one_in_a_hundred(part, rng):
            while upcoming <= block and upcoming < last:
                if upcoming > done:
                    yield _bytes(upcoming, size)
                    done = upcoming
                upcoming = next(waiting)
            if block > done:
                yield _bytes(block, size)
                done = block
    while upcoming < last:
        if upcoming > done:
            yield _bytes(upcoming, size)
            done = upcoming
        upcoming = next(waiting)


def _one_in_a_hundred(part: ByteRange, rng: random.Random) -> Iterator[int]:
    block, end = part.start // BLOCK, -(-part.end // BLOCK)
    block += int(math.log(1.0 - rng.random()) / math.log(1.0 - INSIDE_SHARE))
    while block < end:
        yield block
        block += 1 + int(math.log(1.0 - rng.random()) / math.log(1.0 - INSIDE_SHARE))


def _bytes(block: int, size: int) -> ByteRange:
    return ByteRange(block * BLOCK, min((block + 1) * BLOCK, size))
