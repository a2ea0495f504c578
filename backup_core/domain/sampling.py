"""The blocks of a disk that a verification reads: chosen anew for each run, the same on a repeat.

Drawn are blocks that both sides have allocated and the diff leaves alone (the only cheap detector of a diff that reports too
little), blocks the diff touches, and a few anywhere (a page map that is wrong on both sides). What only one side has allocated
is not sampled: it is read whole and must be zero.
"""

from __future__ import annotations

import math
import random
from bisect import bisect_left
from dataclasses import dataclass
from typing import TYPE_CHECKING

from backup_core.domain.ranges import PUT_BYTES_MAX, ByteRange

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

KIB = 1024
KEPT_SHARE, CHANGED_SHARE = 0.001, 0.01


@dataclass(frozen=True)
class Samples:
    """The number of blocks to draw: of each kind at least `least`, or all that exist, and at most `most`.

    `n` uniform samples find damage of a share `f` of the blocks with a probability of 1 - (1 - f)^n: 300 find damage of 1 %,
    and 3,000 find damage of 0.1 %, with 95 %. Ten times as many find a tenth of that; a full verification finds every byte.
    """

    least: int = 300
    most: int = 3000
    elsewhere: int = 256
    """Blocks drawn from the whole disk, allocated or not."""
    block_bytes: int = 64 * KIB
    """One read. A larger block costs no more requests, and covers more of the disk with as many samples."""

    def of(self, population: int, share: float) -> int:
        """Number of blocks to draw from `population` blocks."""
        return min(population, max(self.least, min(self.most, math.ceil(share * population))))

    def reads(self, size: int) -> int:
        """Requests of a sampled verification of so many bytes, of both sides, at most."""
        blocks = -(-size // self.block_bytes)
        return 2 * (min(blocks, self.elsewhere) + self.of(blocks, KEPT_SHARE) + self.of(blocks, CHANGED_SHARE))


def reads_expected(size: int, *, full: bool) -> int:
    """Requests of the verification of so many bytes, of both sides, at most: before it is known what is allocated."""
    return 2 * -(-size // PUT_BYTES_MAX) if full else Samples().reads(size)


@dataclass(frozen=True, slots=True)
class BlockRun:
    """Consecutive blocks [first, last)."""

    first: int
    last: int
    changed: bool
    """Whether the diff touches them; else both sides have allocated them."""


async def block_runs(
    allocated: AsyncIterator[ByteRange], changed: AsyncIterator[ByteRange], block_bytes: int
) -> AsyncIterator[BlockRun]:
    """The blocks that either of two ascending lists touches, ascending, each block once; streams both."""
    kept, touched = _runs(allocated, block_bytes), _runs(changed, block_bytes)
    a, t = await anext(kept, None), await anext(touched, None)
    while a or t:
        if t and (a is None or t[0] <= a[0]):
            yield BlockRun(*t, changed=True)
            while a and a[1] <= t[1]:
                a = await anext(kept, None)
            a = (max(a[0], t[1]), a[1]) if a else None
            t = await anext(touched, None)
        elif a:
            end = min(a[1], t[0]) if t else a[1]
            yield BlockRun(a[0], end, changed=False)
            a = (end, a[1]) if end < a[1] else await anext(kept, None)


async def _runs(ranges: AsyncIterator[ByteRange], block_bytes: int) -> AsyncIterator[tuple[int, int]]:
    open_: tuple[int, int] | None = None
    async for one in ranges:
        first, last = one.start // block_bytes, -(-one.end // block_bytes)
        if open_ and first <= open_[1]:
            open_ = (open_[0], max(open_[1], last))
        else:
            if open_:
                yield open_
            open_ = (first, last)
    if open_:
        yield open_


@dataclass(frozen=True)
class Draw:
    """The blocks to be read on the whole disk: by their places among all blocks of their kind, and by number."""

    size: int
    block_bytes: int
    kept: Sequence[int]
    changed: Sequence[int]
    elsewhere: Sequence[int]

    @classmethod
    def of(cls, size: int, kept: int, changed: int, samples: Samples, seed: str) -> Draw:
        """From so many blocks of either kind, without replacement."""
        rng, blocks = random.Random(seed), -(-size // samples.block_bytes)  # noqa: S311  spreads samples, guards nothing
        return cls(
            size,
            samples.block_bytes,
            sorted(rng.sample(range(kept), samples.of(kept, KEPT_SHARE))),
            sorted(rng.sample(range(changed), samples.of(changed, CHANGED_SHARE))),
            sorted(rng.sample(range(blocks), min(blocks, samples.elsewhere))),
        )

    @property
    def count(self) -> int:
        """Reads of one side, at most: a block may be drawn twice and is read once."""
        return len(self.kept) + len(self.changed) + len(self.elsewhere)

    async def inside(
        self, window: ByteRange, runs: AsyncIterator[BlockRun], kept: int, changed: int
    ) -> tuple[list[ByteRange], int, int]:
        """The drawn blocks of a window, ascending; then how many blocks of either kind come before its end. `kept` and
        `changed` come before its beginning, `runs` lie inside.
        """
        drawn: set[int] = set()
        async for run in runs:
            places, passed = (self.changed, changed) if run.changed else (self.kept, kept)
            length = run.last - run.first
            low, high = bisect_left(places, passed), bisect_left(places, passed + length)
            drawn.update(run.first + place - passed for place in places[low:high])
            if run.changed:
                changed += length
            else:
                kept += length
        first, last = window.start // self.block_bytes, -(-window.end // self.block_bytes)
        drawn.update(self.elsewhere[bisect_left(self.elsewhere, first) : bisect_left(self.elsewhere, last)])
        return [self._bytes(block) for block in sorted(drawn)], kept, changed

    def _bytes(self, block: int) -> ByteRange:
        return ByteRange(block * self.block_bytes, min((block + 1) * self.block_bytes, self.size))
