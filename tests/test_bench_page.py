"""The requests of an idle increment are counted anew and compared with the page; the other sections judge by their goals."""

from __future__ import annotations

from dataclasses import replace

import pytest

from backup_core.domain.coalescing import GAP_RATIO
from backup_core.domain.ranges import GIB, MIB
from bench import gaps, idle, listing, worker
from bench.page import PAGE, page
from bench.worker import Took

pytestmark = pytest.mark.platform


async def test_the_page_lists_every_request_of_an_increment_without_changes(calm):
    """Each request has a reason. When the protocol changes, `make bench` writes the page again."""
    found = idle.section(await idle.increment(calm))

    assert page([found]).partition("## ")[2] in PAGE.read_text()


def test_a_request_without_a_reason_is_an_error():
    with pytest.raises(KeyError):
        idle.section([idle.Asked("begin_backup", "GET", "table", "pins", 1)])


async def test_gaps_are_modelled_by_the_rule_of_the_plans():
    found = await gaps.modelled(0.05, GAP_RATIO)

    assert not found.goal
    assert found.requests[1] < 0.7 * found.requests[0]
    assert found.size[1] <= (1 + GAP_RATIO) * found.size[0]
    assert not replace(found, ratio=gaps.LIFTED).met
    assert replace(found, ratio=gaps.LIFTED, requests=(1000, 299), size=(MIB, MIB)).met


WAYS = {"product": [Took(0.6, 9, MIB, MIB)], "sdk": [Took(1, 9, MIB, MIB)], "sdk-checked": [Took(2, 9, MIB, MIB)]}
GOOD = Took(9, 9, 100 * MIB, 600 * MIB)


@pytest.mark.parametrize(
    ("ways", "small", "large"),
    [
        (WAYS | {"product": [Took(0.66, 9, MIB, MIB)]}, GOOD, GOOD),
        (WAYS, GOOD, replace(GOOD, added=1025 * MIB)),
        (WAYS, replace(GOOD, added=500 * MIB), GOOD),
        (WAYS, GOOD, replace(GOOD, before=GIB)),
    ],
    ids=["CPU", "in flight", "flat", "peak"],
)
def test_a_worker_that_misses_one_goal_misses(ways, small, large):
    assert worker.section(WAYS, GOOD, GOOD, GIB).met
    assert not worker.section(ways, small, large, GIB).met


def test_a_listing_has_two_goals():
    good, sdk = Took(1.9, 9, MIB, 60_000_000), Took(10, 9, MIB, 200_000_000)

    assert listing.section(good, sdk).met
    assert not listing.section(replace(good, cpu=2.1), sdk).met
    assert not listing.section(replace(good, added=60_000_001), sdk).met
