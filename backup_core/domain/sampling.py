"""Which blocks of a disk a verification reads: chosen anew for each run, the same on a repeat."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING

from backup_core.domain.ranges import ByteRange

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

BLOCK = 4096
OUTSIDE_MIN, OUTSIDE_SHARE, INSIDE_SHARE = 300, 0.001, 0.01
"""Of the blocks the diff leaves alone, unallocated ones included, at least 300, or 0.1 % of the disk's: the only cheap detector
of a diff that reports too little. 300 uniform samples find 1 % of damage with a probability of 95 %. Of the blocks it touches,
one in a hundred.
"""


@dataclass(frozen=True)
class Sampling:
    """How a disk is sampled, window by window, so that all windows together draw enough."""

    size: int
    untouched: int
    """Blocks the diff leaves alone on the whole disk, or fewer; each window draws its share of the samples by it."""
    least: int = OUTSIDE_MIN

    @classmethod
    def of(cls, size: int, changed_bytes: int, ranges: int, least: int = OUTSIDE_MIN) -> Sampling:
        """For a diff of so many bytes in so many ranges: each may touch a block more at either end."""
        return cls(size, max(0, (size - changed_bytes) // BLOCK - 2 * ranges), least)

    async def blocks(self, changed: AsyncIterator[ByteRange], window: ByteRange, seed: str) -> list[ByteRange]:
        """Blocks of the window to compare, ascending. `changed` is the diff inside the window."""
        rng = random.Random(seed)  # noqa: S311  spreads samples, guards nothing
        first, last = window.start // BLOCK, -(-window.end // BLOCK)
        touched = bytearray(last - first)
        async for part in changed:
            start, end = part.start // BLOCK - first, -(-part.end // BLOCK) - first
            touched[start:end] = b"\1" * (end - start)
        inside = [block for block, mark in enumerate(touched) if mark]
        outside = [block for block, mark in enumerate(touched) if not mark]
        drawn = rng.sample(outside, self._share(len(outside))) + rng.sample(inside, math.ceil(INSIDE_SHARE * len(inside)))
        return [self._bytes(first + block) for block in sorted(drawn)]

    def _share(self, outside: int) -> int:
        """How many of the window's `outside` untouched blocks are drawn."""
        wanted = max(self.least, math.ceil(OUTSIDE_SHARE * self.size / BLOCK))
        return min(outside, math.ceil(wanted * outside / max(self.untouched, outside, 1)))

    def _bytes(self, block: int) -> ByteRange:
        return ByteRange(block * BLOCK, min((block + 1) * BLOCK, self.size))
