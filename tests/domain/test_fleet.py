"""The order of a window's disks, and the row that lanes share: simulated with many lanes and a fake clock."""

from __future__ import annotations

import heapq
import json
import math
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backup_core.domain.ending import HEARTBEAT_MAX, STEP_SECONDS_USUAL
from backup_core.domain.fleet import (
    ACTIVE_DISKS,
    ACTIVE_SHARDS_MAX,
    Candidate,
    Turns,
    expected_seconds,
    in_order,
    lanes_for,
    shards_beside,
)
from backup_core.domain.pacing import ACCOUNT_RATES, BLOB_RATES
from backup_core.domain.records import Run

NOW = datetime(2026, 11, 28, 12, tzinfo=UTC)
GAP = timedelta(minutes=30)
durations = st.lists(st.floats(0.1, 1e5), min_size=1, max_size=60)
candidates = st.lists(
    st.builds(
        Candidate, st.text("abc", min_size=1, max_size=4), st.floats(0) | st.just(math.inf), st.booleans(), st.booleans()
    ),
    unique_by=lambda one: one.disk,
)


def played(seconds, lanes, disturb=None):
    """The places in the order of their turns, and the time when the last disk was done. `disturb` may repeat or restart a request."""
    turns = Turns.first("window", "digest", len(seconds), lanes, NOW)
    given, now = [], 0.0
    idle = [(0.0, lane, 0) for lane in range(lanes)]
    while idle:
        now, lane, number = heapq.heappop(idle)
        turns, turn = turns.given(lane, number, NOW + timedelta(seconds=now))
        if disturb:
            turns, turn = disturb(turns, turn, lane, number)
        if turn:
            given.append(turn.place)
            assert len(given) <= len(seconds), "a disk has had a second turn"
            heapq.heappush(idle, (now + seconds[turn.place], lane, turn.number + 1))
    return given, now


@given(durations, st.integers(1, 64))
def test_each_disk_has_one_turn_in_its_order(seconds, active):
    """The order is kept for any number of lanes and any durations."""
    lanes = lanes_for(len(seconds), 0, active)

    assert lanes <= active
    assert played(seconds, lanes)[0] == list(range(len(seconds)))


@given(durations, st.integers(1, 16), st.data())
def test_a_lane_that_repeats_its_request_or_restarts_loses_no_disk(seconds, active, data):
    """A repeated request gets the same answer; a lane that restarts gets its latest disk again, and continues from there."""

    def again(turns, turn, lane, number):
        if turn and data.draw(st.booleans()):
            assert turns.given(lane, number, NOW + GAP) == (turns, turn)
            assert turns.given(lane, 0, NOW + GAP) == (turns, turns.lanes[lane])
        return turns, turn

    assert sorted(played(seconds, lanes_for(len(seconds), 0, active), again)[0]) == list(range(len(seconds)))


@given(durations, st.integers(1, 16))
def test_longest_first_takes_at_most_four_thirds_of_the_shortest_time(seconds, active):
    """Lower bounds of the shortest time: the longest disk, the lanes' mean, the two shortest of the `lanes` + 1 longest."""
    seconds, lanes = sorted(seconds, reverse=True), lanes_for(len(seconds), 0, active)
    least = max(seconds[0], sum(seconds) / lanes, sum(seconds[lanes - 1 : lanes + 1]) if len(seconds) > lanes else 0.0)

    assert played(seconds, lanes)[1] <= 4 / 3 * least + 1e-6


@given(candidates)
def test_the_order_contains_all_disks_sorted_by_priority(some):
    """Disks without a run come first, then those that waited, then the longest. The order of the input does not matter."""
    order, by_name = in_order(some), {one.disk: one for one in some}

    assert sorted(order) == sorted(by_name)
    assert order == in_order(reversed(some))
    for first, second in pairwise(by_name[one] for one in order):
        if first.at_work != second.at_work:
            assert second.at_work
        elif first.waited != second.waited:
            assert first.waited
        else:
            assert (-first.seconds, first.disk) < (-second.seconds, second.disk)


@given(st.integers(1, 10_000), st.integers(0, 200), st.integers(1, 64))
def test_disks_with_a_run_in_progress_take_lanes_of_the_next_window_but_never_all(disks, in_progress, active):
    lanes = lanes_for(disks, in_progress, active)

    assert 1 <= lanes <= min(disks, active)
    assert lanes + in_progress <= active or lanes <= math.ceil(active / 4)
    assert lanes == min(disks, active) or in_progress > 0


def test_a_short_window_skips_no_disk_for_ever():
    """Forty disks where a window has time for thirty: each has its turn at least every other window."""
    waited, served = set(), []
    for _ in range(6):
        order = in_order(Candidate(f"disk{n:02}", seconds=n, waited=f"disk{n:02}" in waited) for n in range(40))
        served.append(set(order[:30]))
        waited = set(order[30:])

    assert all(one | other == {f"disk{n:02}" for n in range(40)} for one, other in pairwise(served))


def past(minutes, kind="incremental", **fields):
    started = NOW - timedelta(days=1)
    fields = {"state": "Succeeded", "started": started, "ended": started + timedelta(minutes=minutes), **fields}
    return Run("vm", "vm.20261127T120000Z.timer", trigger="timer", full=False, created=NOW, kind=kind, **fields)


@pytest.mark.parametrize(
    ("runs", "minutes"),
    [
        ([past(1), past(9), past(2)], 2),
        ([past(3), past(600, "full")], 3),
        ([past(600, "full")], 600),
        ([past(600, "full"), past(4, state="Failed"), past(7, state="Skipped"), past(5, operation="restore")], 600),
        ([past(4, state="Running", ended=None)], 8),
        ([], 8),
    ],
)
def test_the_duration_of_a_disk_is_estimated_from_its_past_runs(runs, minutes):
    """The estimate is the median increment, else any successful backup, else the size at a page blob's limit, here 8 minutes."""
    assert expected_seconds(runs, int(480 * BLOB_RATES.bytes)) == pytest.approx(60 * minutes)


def test_an_unknown_duration_is_assumed_to_be_long():
    assert expected_seconds([]) == math.inf
    assert in_order([Candidate("long", 1e9), Candidate("unknown")])[0] == "unknown"


def test_which_disks_count_as_waiting():
    """Disks whose turn is to come wait, and disks that a lane got just now. A disk that a lane got long ago, and that has no run, does
    not: it was forgotten.
    """
    turns = Turns.first("window", "digest", 6, 2, NOW)
    turns, _ = turns.given(0, 1, NOW + timedelta(hours=1))
    order = ["a", "b", "c", "d", "e", "f"]

    assert turns.waiting(order, NOW + timedelta(hours=1), GAP) == {"c", "d", "e", "f"}
    assert turns.waiting(order, NOW + timedelta(hours=1, minutes=31), GAP) == {"d", "e", "f"}


def test_many_disks_have_fewer_shards_each():
    """The total of activities stays the same, so that no run waits for a worker until it counts as dead."""
    assert [shards_beside(4, active) for active in (0, 1, 16, 17, 32, 50, 64)] == [4, 4, 4, 3, 2, 1, 1]
    durable = json.loads((Path(__file__).parents[2] / "host.json").read_text())["extensions"]["durableTask"]
    for active in range(1, ACTIVE_SHARDS_MAX + 1):
        waits = active * shards_beside(16, active) * STEP_SECONDS_USUAL / durable["maxConcurrentActivityFunctions"]
        assert waits < HEARTBEAT_MAX.total_seconds() / 2


def test_the_number_of_parallel_disks_is_the_least_that_uses_an_account_fully():
    """The number uses the account's bytes and requests fully; one disk less would not."""
    assert ACTIVE_DISKS <= ACTIVE_SHARDS_MAX
    assert (ACTIVE_DISKS - 1) * BLOB_RATES.bytes < ACCOUNT_RATES.bytes <= ACTIVE_DISKS * BLOB_RATES.bytes
    assert ACTIVE_DISKS * BLOB_RATES.requests >= ACCOUNT_RATES.requests
