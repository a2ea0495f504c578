"""Samples: of the blocks both sides have, of those the diff touches, and of any; enough, bounded, and the same for the same seed."""

from __future__ import annotations

import asyncio
import math

from hypothesis import given
from hypothesis import strategies as st

from backup_core.domain.ranges import GIB, MIB, PAGE, ByteRange, windows
from backup_core.domain.sampling import Draw, Samples, block_runs

BLOCK = 4 * PAGE
SMALL = Samples(least=5, most=12, elsewhere=3, block_bytes=BLOCK)


async def inside(ranges, window):
    for one in ranges:
        start, end = max(one.start, window.start), min(one.end, window.end)
        if start < end:
            yield ByteRange(start, end)


def sample(allocated, changed, size, *, samples=SMALL, window=BLOCK * 16, seed="a"):
    """The blocks drawn on a disk, and how many of either kind there are: counted window by window, then drawn window by window."""

    def runs(part):
        return block_runs(inside(allocated, part), inside(changed, part), samples.block_bytes)

    async def collect():
        kept = touched = 0
        for part in windows(size, window):
            async for run in runs(part):
                assert run.first < run.last
                kept, touched = (
                    (kept, touched + run.last - run.first) if run.changed else (kept + run.last - run.first, touched)
                )
        draw, drawn, before = Draw.of(size, kept, touched, samples, seed), [], (0, 0)
        for part in windows(size, window):
            found, *before = await draw.inside(part, runs(part), *before)
            drawn += found
        assert tuple(before) == (kept, touched)
        assert len(drawn) <= draw.count
        return drawn, kept, touched

    return asyncio.run(collect())


def ranges_of(pages):
    return [ByteRange(page * PAGE, (page + 1) * PAGE) for page in sorted(pages)]


page_sets = st.sets(st.integers(0, 399), max_size=120)


@given(page_sets, page_sets, st.integers(1, 400), st.text(max_size=5))
def test_drawn_blocks_agree_with_the_model(allocated, changed, pages, seed):
    """Counts, numbers of each kind and places of blocks agree with a slow model of all blocks."""
    allocated, changed = ({page for page in some if page < pages} for some in (allocated, changed))
    drawn, kept, touched = sample(ranges_of(allocated), ranges_of(changed), pages * PAGE, seed=seed)
    blocks_changed = {page // 4 for page in changed}
    blocks_kept = {page // 4 for page in allocated} - blocks_changed

    assert (kept, touched) == (len(blocks_kept), len(blocks_changed))
    starts = [one.start // BLOCK for one in drawn]
    assert starts == sorted(set(starts))
    assert all(one.start % BLOCK == 0 and one.end == min(one.start + BLOCK, pages * PAGE) for one in drawn)
    assert len(set(starts) & blocks_kept) >= min(len(blocks_kept), SMALL.least)
    assert len(set(starts) & blocks_changed) >= min(len(blocks_changed), SMALL.least)
    assert len(set(starts) - blocks_kept - blocks_changed) <= SMALL.elsewhere
    assert drawn == sample(ranges_of(allocated), ranges_of(changed), pages * PAGE, seed=seed)[0]


def test_every_block_is_drawn_as_often_as_any_other():
    """Over many seeds and all window boundaries, no place of the disk is skipped."""
    size, seeds, counts = 100 * BLOCK, 400, [0] * 100
    only_kept = Samples(least=10, most=10, elsewhere=0, block_bytes=BLOCK)
    for seed in range(seeds):
        for one in sample([ByteRange(0, size)], [], size, samples=only_kept, window=7 * BLOCK, seed=f"s{seed}")[0]:
            counts[one.start // BLOCK] += 1

    assert sum(counts) == 10 * seeds
    assert min(counts) >= 15
    assert max(counts) <= 75


def test_the_reads_of_a_large_disk_are_bounded():
    """A disk of 8 TiB needs at most 3,000 blocks of either kind and a few hundred anywhere; an empty disk needs only those."""
    size, samples = 8 * 1024 * GIB, Samples()
    whole, _, _ = sample([ByteRange(0, size)], [], size, samples=samples, window=64 * GIB)
    both, _, _ = sample([ByteRange(0, size)], [ByteRange(0, size // 2)], size, samples=samples, window=64 * GIB)
    little, _, _ = sample([ByteRange(0, 32 * MIB)], [], size, samples=samples, window=64 * GIB)
    empty, _, _ = sample([], [], size, samples=samples, window=64 * GIB)

    assert len(whole) <= 3256
    assert 6000 <= len(both) <= 6256
    assert len(little) <= 300 + 256
    assert len(empty) == 256


def test_the_chance_to_find_damage_is_the_documented_one():
    """The chance is 95 % with 300 samples and 1 % of damage, or with 3,000 and 0.1 %."""
    for population, share in ((20_000, 0.01), (10_000_000, 0.001)):
        drawn = Samples().of(population, 0.001)
        assert 1 - math.exp(drawn * math.log(1 - share)) >= 0.95
