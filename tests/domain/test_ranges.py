"""Range arithmetic against sets of pages."""

from __future__ import annotations

import asyncio
import random
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backup_core.domain.plan import SHARDS_PER_CALL, Planner, dealt
from backup_core.domain.ranges import MIB, PAGE, PUT_BYTES_MAX, ByteRange, DiffRange, chunks, mapped, one_sided, windows


@st.composite
def page_maps(draw, pages=200):
    """Ascending, disjoint ranges of pages, some of them adjacent."""
    cuts = sorted(draw(st.sets(st.integers(0, pages), max_size=40)))
    ranges = [ByteRange(a * PAGE, b * PAGE) for a, b in pairwise(cuts)]
    return [one for one in ranges if draw(st.booleans())]


def pages(ranges):
    return {page for one in ranges for page in range(one.start // PAGE, one.end // PAGE)}


async def streamed(items):
    for item in items:
        yield item


@pytest.mark.parametrize(("start", "end"), [(0, 0), (512, 0), (-512, 512), (1, 512), (0, 513)])
def test_an_invalid_range_is_refused(start, end):
    with pytest.raises(ValueError, match="not a non-empty range"):
        ByteRange(start, end)


@given(st.integers(0, 50), st.integers(1, 50_000), st.integers(1, 9000))
def test_chunks_cover_the_whole_in_order(start, count, chunk):
    whole = ByteRange(start * PAGE, (start + count) * PAGE)
    cut = list(chunks(whole, chunk * PAGE))

    assert cut[0].start == whole.start
    assert cut[-1].end == whole.end
    assert all(a.end == b.start for a, b in pairwise(cut))
    assert all(one.size <= chunk * PAGE for one in cut)


def test_windows_of_an_empty_disk():
    assert list(windows(0, 4096)) == []


@given(page_maps(), page_maps())
def test_one_sided_ranges_are_the_symmetric_difference(left, right):
    async def collect():
        return [one async for one in one_sided(streamed(left), streamed(right))]

    found = asyncio.run(collect())

    assert pages([one.range for one in found if one.side == "left"]) == pages(left) - pages(right)
    assert pages([one.range for one in found if one.side == "right"]) == pages(right) - pages(left)
    assert [one.range.start for one in found] == sorted(one.range.start for one in found)


@given(page_maps(), page_maps())
def test_comparing_two_maps_assigns_each_page_to_its_sides(left, right):
    async def collect():
        return [one async for one in mapped(streamed(left), streamed(right))]

    found = asyncio.run(collect())

    assert pages([one.range for one in found if one.side == "both"]) == pages(left) & pages(right)
    assert pages([one.range for one in found]) == pages(left) | pages(right)
    assert all(one.range.end <= other.range.start for one, other in pairwise(found))


@given(page_maps(), st.lists(st.booleans(), min_size=40, max_size=40), st.integers(1, 20), st.integers(1, 5))
def test_a_plan_covers_the_diff_within_its_bounds(ranges, cleared, bytes_pages, requests):
    """Every page of the diff lies in exactly one shard; sums agree; no shard exceeds its bounds but by a single chunk."""
    planner = Planner(bytes_pages * PAGE, requests)
    for one, clear in zip(ranges, cleared, strict=False):
        planner.feed(DiffRange(one, clear))
    plan = planner.finish()

    inside = [pages([ByteRange(shard.start, shard.end)]) & pages(ranges) for shard in plan.shards]
    assert sum(len(one) for one in inside) == len(pages(ranges))
    assert plan.write_bytes == sum(one.size for one, clear in zip(ranges, cleared, strict=False) if not clear)
    assert plan.clear_bytes == sum(one.size for one, clear in zip(ranges, cleared, strict=False) if clear)
    assert plan.ranges == len(ranges)
    assert all(shard.requests <= requests for shard in plan.shards)
    assert all(shard.write_bytes <= bytes_pages * PAGE or shard.requests == 1 for shard in plan.shards)
    assert all(a.end <= b.start for a, b in pairwise(plan.shards))


@pytest.mark.parametrize("large", [0.0, 0.02, 1.0])
@pytest.mark.parametrize("count", [4500, 9000, 20_000, 70_000])
def test_shards_cost_about_the_same(large, count):
    """The largest shard has at most 15 % more than the mean, in requests or bytes, whichever is the limit."""
    bytes_max, requests_max, rng = 1024 * MIB, 4096, random.Random(count)
    planner, at = Planner(bytes_max, requests_max), 0
    for _ in range(count):
        size = PUT_BYTES_MAX if rng.random() < large else 16 * PAGE
        planner.feed(DiffRange(ByteRange(at, at + size), cleared=False))
        at += size + 256 * PAGE
    plan = planner.finish()
    costs = [max(shard.write_bytes / bytes_max, shard.requests / requests_max) for shard in plan.shards]

    assert max(costs) <= min(1, 1.15 * sum(costs) / len(costs))
    assert len(costs) <= 1.1 * sum(costs) + 1, "and there are no more than must be"


def regions(rng):
    """The requests of a disk whose parts were written in different ways: a plan of one to some thirty shards."""
    at = 0
    for _ in range(rng.randint(1, 12)):
        region = rng.choice(["small", "large", "mixed", "cleared", "in turn"])
        for number in range(rng.choice([300, 1500, 5000])):
            large = {"large": 1, "mixed": rng.random() < 0.06, "in turn": number // 16 % 2}.get(region, 0)
            size = PUT_BYTES_MAX if large else 8 * PAGE
            yield DiffRange(ByteRange(at, at + size), cleared=region == "cleared")
            at += size + 256 * PAGE


@pytest.mark.parametrize("seed", range(40))
def test_shards_of_a_mixed_diff_cost_about_the_same(seed):
    """Shards are balanced also where one part of the disk is limited by bytes, the next by requests, another by both."""
    bytes_max, requests_max = 1024 * MIB, 4096
    planner = Planner(bytes_max, requests_max)
    for one in regions(random.Random(seed)):
        planner.feed(one)
    plan = planner.finish()
    costs = [max(shard.write_bytes / bytes_max, shard.requests / requests_max) for shard in plan.shards]

    assert max(costs) <= min(1, 1.15 * sum(costs) / len(costs))


@given(st.sets(st.integers(0, 99), max_size=60), st.integers(0, 200), st.integers(1, 16))
def test_shards_are_distributed_evenly(open_, more, calls):
    """Each shard is given once, in order; no call stays empty while there are shards."""
    left = [*sorted(open_), *range(100, 100 + more)]
    hands = dealt(sorted(open_), 100, 100 + more, calls)

    assert len(hands) == min(calls, len(left))
    assert sorted(shard for hand in hands for shard in hand) == left[: calls * SHARDS_PER_CALL]
    assert all(hand == sorted(hand) for hand in hands)
    assert {len(hand) for hand in hands} <= {len(hands[0]), len(hands[0]) - 1} if hands else not left


def test_a_disk_that_fills_its_shards_has_no_more_of_them():
    planner = Planner(1024 * MIB, 4096)
    planner.feed(DiffRange(ByteRange(0, 100 * 1024 * MIB), cleared=False))

    assert [shard.write_bytes for shard in planner.finish().shards] == [1024 * MIB] * 100


def test_a_plan_counts_the_least_requests():
    """A plan counts one request per started 4 MiB of a written range, and one per cleared range."""
    planner = Planner(1024 * PUT_BYTES_MAX, 10_000)
    planner.feed(DiffRange(ByteRange(0, 2 * PUT_BYTES_MAX + PAGE), cleared=False))
    planner.feed(DiffRange(ByteRange(3 * PUT_BYTES_MAX, 500 * PUT_BYTES_MAX), cleared=True))

    assert planner.finish().requests == 4
