"""Coalescing of gaps: for any diff and page maps, the changes are copied exactly, and only permitted gaps are copied along."""

from __future__ import annotations

import itertools
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backup_core.domain.coalescing import GapCount, Request, coalesced, with_gaps
from backup_core.domain.ranges import KIB, MIB, PAGE, PUT_BYTES_MAX, ByteRange, DiffRange, requests


async def each(items):
    for item in items:
        yield item


async def cut(changes, shared=(), gap_max=128 * KIB):
    """The requests for a diff when the pages of `shared` exist on both sides."""

    async def is_shared(gap):
        return any(one.start <= gap.start and gap.end <= one.end for one in shared)

    return [one async for one in coalesced(each(changes), gap_max, is_shared)]


EVERYTHING = [ByteRange(0, 1 << 40)]


def written(start, size):
    return DiffRange(ByteRange(start, start + size), cleared=False)


def cleared(start, size):
    return DiffRange(ByteRange(start, start + size), cleared=True)


UNIT = 8 * KIB


@st.composite
def diffs(draw):
    """Ascending changes that do not touch one of their own kind, some larger than a put; and the ranges that exist on both sides."""
    at, changes = draw(st.integers(0, 3)) * UNIT, []
    for _ in range(draw(st.integers(0, 14))):
        size = draw(st.sampled_from([1, 2, 3, 15, 16, 17, 300, 512, 513, 700])) * UNIT
        clear = draw(st.integers(0, 4)) == 0
        gap = draw(st.sampled_from([0, 1, 2, 5, 14, 15, 16, 17])) * UNIT
        if changes and gap == 0 and changes[-1].cleared == clear:
            gap = UNIT
        changes.append(DiffRange(ByteRange(at + gap, at + gap + size), clear))
        at += gap + size
    edges = sorted(draw(st.sets(st.integers(0, at // UNIT + 2), max_size=8)))
    shared = [ByteRange(a * UNIT, b * UNIT) for a, b in zip(edges[::2], edges[1::2], strict=False)]
    return changes, EVERYTHING if draw(st.booleans()) else shared


LARGEST = st.sampled_from([2 * UNIT, 15 * UNIT, 16 * UNIT, 512 * KIB])


def pages(ranges):
    return {page for one in ranges for page in range(one.start, one.end, UNIT)}


@given(diffs(), LARGEST)
async def test_changes_are_copied_exactly_and_gaps_only_where_permitted(diff, gap_max):
    changes, shared = diff
    found = await cut(changes, shared, gap_max)
    puts, clears = [one.range for one in found if not one.cleared], [one.range for one in found if one.cleared]
    must = pages(one.range for one in changes if not one.cleared)
    gaps = pages(puts) - must

    assert must <= pages(puts)
    assert clears == [one.range for one in changes if one.cleared], "clears are as they were"
    assert not pages(puts) & pages(clears)
    assert all(any(one.start <= gap < one.end for one in shared) for gap in gaps)
    assert sum(one.unchanged_bytes for one in found) == len(gaps) * UNIT
    assert all(one.range.size <= PUT_BYTES_MAX for one in found if not one.cleared)
    assert all(a.range.end <= b.range.start for a, b in itertools.pairwise(found))


@given(diffs(), LARGEST)
async def test_each_gap_saves_a_request(diff, gap_max):
    changes, shared = diff
    found = await cut(changes, shared, gap_max)
    least = [DiffRange(one.range, one.cleared) for change in changes for one in requests(change)]
    starts = {one.range.start for one in least}
    joins = sum(sum(start in starts for start in range(one.range.start, one.range.end, UNIT)) - 1 for one in found)

    assert len(found) == len(least) - joins
    assert all(one.unchanged_bytes == 0 or one.range.start in starts for one in found)
    assert await cut(changes, shared, 0) == [Request(one.range, one.cleared) for one in least], "0 is off"


@given(diffs(), LARGEST, st.data())
async def test_a_shard_that_resumes_after_any_request_is_cut_as_before(diff, gap_max, data):
    """A shard resumes from its cursor, and shards are cut between requests; both list only the changes that follow."""
    changes, shared = diff
    found = await cut(changes, shared, gap_max)
    if not found:
        return
    done = data.draw(st.integers(1, len(found)))
    at = found[done - 1].range.end
    rest = [DiffRange(ByteRange(max(one.range.start, at), one.range.end), one.cleared) for one in changes if one.range.end > at]

    assert await cut(rest, shared, gap_max) == found[done:]


@given(diffs(), LARGEST)
async def test_the_verification_covers_every_page_that_may_have_been_rewritten(diff, gap_max):
    changes, shared = diff
    may = pages([one async for one in with_gaps(each(changes), gap_max)])

    assert pages(one.range for one in await cut(changes, shared, gap_max)) <= may


@pytest.mark.parametrize(
    ("changes", "shared", "count"),
    [
        ([written(0, 4 * KIB), written(12 * KIB, 4 * KIB)], EVERYTHING, 1),
        ([written(0, 4 * KIB), written(12 * KIB, 4 * KIB)], [ByteRange(0, 8 * KIB)], 2),
        ([written(0, 4 * KIB), cleared(8 * KIB, PAGE), written(12 * KIB, 4 * KIB)], EVERYTHING, 3),
        ([written(0, 4 * MIB), written(4 * MIB + PAGE, 4 * KIB)], EVERYTHING, 2),
        ([written(0, 5 * MIB), written(5 * MIB + PAGE, 3 * MIB - PAGE)], EVERYTHING, 2),
        ([written(0, MIB), written(MIB + 128 * KIB, MIB)], EVERYTHING, 1),
        ([written(0, MIB), written(MIB + 128 * KIB + PAGE, MIB)], EVERYTHING, 2),
    ],
)
async def test_examples(changes, shared, count):
    """A gap is copied only if both sides have it, within one put, not across a clear, and if that saves time."""
    assert len(await cut(changes, shared)) == count


def random_dirt(share):
    """Random changes to a share of the 4-KiB pages of an allocated disk."""
    rng, count = random.Random(5), 200_000
    dirty = sorted(rng.sample(range(count), int(share * count)))
    runs, start = [], dirty[0]
    for before, after in itertools.pairwise([*dirty, count * 2]):
        if after != before + 1:
            runs.append(written(start * 4 * KIB, (before + 1 - start) * 4 * KIB))
            start = after
    return runs


def seconds(count, size):
    """The time that so many requests and bytes take on a standard page blob."""
    return max(count / 500, size / (60 * MIB))


def largest(changes, ratio, saved_min=64):
    counted = GapCount()
    for one in changes:
        counted.feed(one)
    pieces = [piece for one in changes for piece in requests(one)]
    return counted.bytes_max(len(pieces), sum(piece.range.size for piece in pieces if not piece.cleared), ratio, saved_min)


@pytest.mark.parametrize(("share", "goal"), [(0.01, 0.65), (0.05, 0.30), (0.2, 0.2)])
async def test_coalescing_random_changes_takes_a_fraction_of_the_time(share, goal):
    """With unlimited extra bytes, 5 % of random changes takes at most 0.30 of the time: the project's goal."""
    changes = random_dirt(share)
    found = await cut(changes, EVERYTHING, largest(changes, 1e9))

    plain = seconds(len(changes), sum(one.range.size for one in changes))
    assert seconds(len(found), sum(one.range.size for one in found)) <= goal * plain


async def test_coalescing_within_the_default_budget_still_saves_time():
    changes = random_dirt(0.05)
    found = await cut(changes, EVERYTHING, largest(changes, 2.0))
    changed = sum(one.range.size for one in changes)

    assert len(found) <= 0.65 * len(changes)
    assert sum(one.unchanged_bytes for one in found) <= 2 * changed


def test_a_diff_that_is_limited_by_bytes_copies_no_gap():
    """A diff with few gaps, or a budget of zero, copies none either."""
    large = [written(number * 2 * MIB, MIB) for number in range(100)]
    small = [written(number * 16 * KIB, 4 * KIB) for number in range(65)]

    assert largest(large, 2.0) == 0
    assert largest(small, 3.0) == 12 * KIB
    assert largest(small, 2.9) == 0, "each gap is three times a change"
    assert largest(small[:64], 3.0) == 0, "63 gaps"
    assert largest(small, 0.0) == 0
    assert largest([DiffRange(one.range, cleared=True) for one in small], 100.0) == 0
