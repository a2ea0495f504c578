"""Samples: enough of them outside the diff and inside it, inside the disk, and the same again for the same seed."""

from __future__ import annotations

import asyncio

from hypothesis import given
from hypothesis import strategies as st

from backup_core.domain.ranges import GIB, MIB, PAGE, ByteRange, windows
from backup_core.domain.sampling import BLOCK, Sampling


def sample(changed, size, *, windows_of=GIB, seed="a"):
    """All blocks drawn on a disk of `size` with the diff `changed`."""
    sampling = Sampling.of(size, sum(one.size for one in changed), len(changed))

    async def inside(window):
        for one in changed:
            start, end = max(one.start, window.start), min(one.end, window.end)
            if start < end:
                yield ByteRange(start, end)

    async def collect():
        return [
            one
            for window in windows(size, windows_of)
            for one in await sampling.blocks(inside(window), window, f"{seed}:{window.start}")
        ]

    return asyncio.run(collect())


def touches(block, changed):
    return any(one.start < block.end and block.start < one.end for one in changed)


@given(st.integers(1, 40_000), st.lists(st.integers(0, 3999), max_size=20, unique=True), st.text(max_size=5))
def test_samples_are_enough_and_blocks_of_the_disk(pages, changed, seed):
    """Ascending, distinct, repeatable; outside the diff 300 or all there are, inside it one in a hundred or more."""
    size = pages * PAGE
    parts = [ByteRange(page * PAGE, (page + 1) * PAGE) for page in sorted(changed) if page < pages]
    drawn = sample(parts, size, windows_of=MIB, seed=seed)

    starts = [one.start for one in drawn]
    assert starts == sorted(set(starts))
    assert all(one.start % BLOCK == 0 and one.end <= size for one in drawn)
    assert drawn == sample(parts, size, windows_of=MIB, seed=seed)
    blocks = -(-size // BLOCK)
    touched = {start // BLOCK for part in parts for start in (part.start, part.end - 1)}
    outside = sum(1 for one in drawn if not touches(one, parts))
    assert outside >= min(300, blocks - len(touched))
    assert len(drawn) - outside >= len(touched) / 100


def test_a_large_disk_is_sampled_by_a_thousandth_everywhere():
    size = 16 * GIB
    drawn = sample([], size)

    assert 4195 <= len(drawn) <= 4195 + 16
    quarters = [sum(1 for one in drawn if one.start * 4 // size == quarter) for quarter in range(4)]
    assert min(quarters) > 900


def test_what_the_diff_leaves_alone_gets_all_the_samples():
    """A disk of which nearly everything changed: the few blocks outside are still sampled 300 times, or read altogether."""
    size = 4 * GIB
    nearly_all = [ByteRange(0, 3 * GIB), ByteRange(3 * GIB + 512 * MIB, 4 * GIB)]
    drawn = sample(nearly_all, size)

    assert sum(1 for one in drawn if not touches(one, nearly_all)) >= 1049  # 0.1 % of the disk's blocks
    inside = sum(1 for one in drawn if touches(one, nearly_all))
    assert inside >= 0.01 * 3.5 * GIB / BLOCK
    all_but_ten = [ByteRange(10 * BLOCK, size)]
    assert sum(1 for one in sample(all_but_ten, size) if not touches(one, all_but_ten)) == 10
