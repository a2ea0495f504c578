"""Samples: enough of them, spread evenly, inside the disk, and the same again for the same seed."""

from __future__ import annotations

import asyncio

from hypothesis import given
from hypothesis import strategies as st

from backup_core.domain.ranges import GIB, PAGE, ByteRange
from backup_core.domain.sampling import BLOCK, sampled


def sample(changed, window, size, seed):
    async def ranges():
        for one in changed:
            yield one

    async def collect():
        return [one async for one in sampled(ranges(), window, size, seed)]

    return asyncio.run(collect())


@given(st.integers(1, 4000), st.lists(st.integers(0, 3999), max_size=20, unique=True), st.text(max_size=5))
def test_samples_are_ascending_blocks_of_the_disk(pages, changed, seed):
    size = pages * PAGE
    parts = [ByteRange(page * PAGE, (page + 1) * PAGE) for page in sorted(changed) if page < pages]
    drawn = sample(parts, ByteRange(0, size), size, seed)

    starts = [one.start for one in drawn]
    assert starts == sorted(set(starts))
    assert all(one.start % BLOCK == 0 and one.end <= size for one in drawn)
    assert drawn == sample(parts, ByteRange(0, size), size, seed)


def test_enough_blocks_are_drawn_everywhere():
    """At least 300, or 0.1 %, over the whole disk, whatever was allocated; one in a hundred of what changed."""
    small, large = 64 * 1024 * 1024, 16 * GIB
    assert len(sample([], ByteRange(0, small), small, "a")) > 290
    drawn = sample([], ByteRange(0, large), large, "a")
    assert 4100 < len(drawn) <= 4195
    quarters = [sum(1 for one in drawn if one.start * 4 // large == quarter) for quarter in range(4)]
    assert min(quarters) > 900
    inside = sample([ByteRange(0, GIB)], ByteRange(0, large), large, "a")
    assert 2300 < sum(1 for one in inside if one.end <= GIB) - sum(1 for one in drawn if one.end <= GIB) < 2900


def test_windows_together_draw_what_the_whole_would():
    size = 8 * GIB
    windows = [ByteRange(start, start + GIB) for start in range(0, size, GIB)]

    assert sum(len(sample([], one, size, str(one.start))) for one in windows) > 2000
