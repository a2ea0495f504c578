"""The pace of requests: the rule by itself, then against a simulated service that refuses requests above its limits."""

from __future__ import annotations

import heapq
import random
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backup_core.domain.pacing import (
    BLOB_RATES,
    CREDIT_SECONDS,
    CUT,
    HOLD_SECONDS_MAX,
    SHARE_MAX,
    SHARE_MIN,
    Admission,
    Pace,
)
from backup_core.domain.ranges import MIB

SMALL, LARGE = 8192, 4 * MIB


def sent(pace, count, size, now=0.0):
    """Send `count` requests, each as soon as it is due; returns when the last was sent."""
    for _ in range(count):
        now = max(now, pace.due)
        pace, _ = pace.admit(now, size)
    return now


def test_small_requests_are_sent_at_the_request_rate_and_large_requests_at_the_byte_rate():
    assert sent(Pace(BLOB_RATES), 5001, SMALL) == pytest.approx(10 - CREDIT_SECONDS)
    assert sent(Pace(BLOB_RATES), 151, LARGE) == pytest.approx(10 - CREDIT_SECONDS)
    assert sent(Pace(BLOB_RATES, share=0.5), 5001, SMALL) == pytest.approx(20 - CREDIT_SECONDS)


def test_a_long_pause_is_no_credit_for_a_burst():
    pace, _ = Pace(BLOB_RATES).admit(0.0, SMALL)

    assert sent(pace, 501, SMALL, now=1000.0) == pytest.approx(1001 - CREDIT_SECONDS)


def test_a_refusal_cuts_once_for_all_that_were_sent_before_it():
    pace = Pace(BLOB_RATES)
    before = Admission(0.5, SMALL, pressed=True)
    cut = pace.on_refused(before, 1.0)
    again = cut.on_refused(before, 1.1)

    assert (cut.share, again.share) == (CUT, CUT)
    assert again.on_refused(Admission(1.2, SMALL, pressed=True), 1.3).share == pytest.approx(CUT * CUT)


def test_only_a_request_that_the_pace_delayed_raises_the_pace():
    pace = Pace(BLOB_RATES)

    assert pace.on_success(Admission(0.0, SMALL, pressed=False)) == pace
    assert pace.on_success(Admission(0.0, SMALL, pressed=True)).share > pace.share
    _, idle = Pace(BLOB_RATES).admit(0.0, SMALL)
    assert not idle.pressed


def test_retry_after_delays_all_requests_for_at_most_the_life_of_a_request():
    admission = Admission(0.0, SMALL, pressed=True)

    assert Pace(BLOB_RATES).on_refused(admission, 1.0, 7.0).due == 8.0
    assert Pace(BLOB_RATES).on_refused(admission, 1.0, 7.0).on_refused(admission, 2.0, 1.0).due == 8.0
    assert Pace(BLOB_RATES).on_refused(admission, 1.0, 1e6).due == 1.0 + HOLD_SECONDS_MAX


@given(st.lists(st.tuples(st.booleans(), st.sampled_from([0, SMALL, LARGE])), max_size=300))
def test_the_pace_stays_within_bounds_for_any_answers(answers):
    """For any answers, the next request is due no later than its size at the slowest pace explains."""
    pace, now = Pace(BLOB_RATES), 0.0
    for good, size in answers:
        now = max(now, pace.due)
        pace, admission = pace.admit(now, size)
        pace = pace.on_success(admission) if good else pace.on_refused(admission, now)
        assert SHARE_MIN <= pace.share <= SHARE_MAX
        assert pace.due - now <= max(1 / BLOB_RATES.requests, size / BLOB_RATES.bytes) / SHARE_MIN + 1e-9


# -- against a service that refuses ----------------------------------------------------------------------------------


@dataclass
class Simulated:
    """A page blob with token buckets, and processes with a pace each that share it. Time is simulated; the seed is fixed."""

    processes: int
    in_flight: int
    sizes: tuple[int, ...]
    capacity: float = 1.0
    """What the service takes, as a multiple of the documented rates."""
    burst_seconds: float = 0.25
    seconds: float = 60.0
    settled: float = 5.0

    def run(self):
        """(share of the binding limit that was used, share of requests refused), both after the first seconds."""
        rng = random.Random(1)
        requests, size_limit = BLOB_RATES.requests * self.capacity, BLOB_RATES.bytes * self.capacity
        tokens, byte_tokens, filled = requests * self.burst_seconds, size_limit * self.burst_seconds, 0.0
        paces = [Pace(BLOB_RATES) for _ in range(self.processes)]
        waiting = [[self.sizes[n % len(self.sizes)] for n in range(self.in_flight)] for _ in paces]
        turn, done, moved, refused, count = self.in_flight, 0, 0, 0, 0
        events, order, awake = [], 0, [False] * self.processes

        def at(when, kind, process, what=None):
            nonlocal order
            order += 1
            heapq.heappush(events, (when, order, kind, process, what))

        def wake(process, now):
            if waiting[process] and not awake[process]:
                awake[process] = True
                at(max(now, paces[process].due), "send", process)

        for process in range(self.processes):
            wake(process, 0.0)
        while events and events[0][0] <= self.seconds:
            now, _, kind, process, what = heapq.heappop(events)
            if kind == "send":
                awake[process] = False
                if paces[process].due <= now:
                    paces[process], admission = paces[process].admit(now, waiting[process].pop(0))
                    at(now + rng.uniform(0.01, 0.03), "arrive", process, admission)
            elif kind == "arrive":
                tokens = min(tokens + (now - filled) * requests, requests * self.burst_seconds)
                byte_tokens = min(byte_tokens + (now - filled) * size_limit, size_limit * self.burst_seconds)
                filled = now
                taken = tokens >= 1 and byte_tokens >= what.size
                if taken:
                    tokens, byte_tokens = tokens - 1, byte_tokens - what.size
                if now > self.settled:
                    count, refused = count + 1, refused + (not taken)
                    done, moved = done + taken, moved + what.size * taken
                at(now + 0.01, "good" if taken else "refused", process, what)
            elif kind == "good":
                paces[process] = paces[process].on_success(what)
                waiting[process].append(self.sizes[turn % len(self.sizes)])
                turn += 1
            elif kind == "refused":
                paces[process] = paces[process].on_refused(what, now)
                waiting[process].append(what.size)
            wake(process, now)
        seconds = self.seconds - self.settled
        return max(done / seconds / requests, moved / seconds / size_limit), refused / count


@pytest.mark.parametrize("in_flight", [32, 64, 128])
@pytest.mark.parametrize(
    "sizes",
    [(SMALL,), (LARGE,), (*[SMALL] * 100, LARGE), (*[SMALL] * 20, LARGE)],
    ids=["small", "large", "many small", "mixed"],
)
def test_one_process_reaches_the_limit_and_is_hardly_refused(in_flight, sizes):
    """The goals of `make bench`: at least 95 % of the binding limit, at most 5 % refused."""
    used, refused = Simulated(1, in_flight, sizes).run()

    assert used >= 0.95
    assert refused <= 0.05


@pytest.mark.parametrize("processes", [2, 4, 8])
def test_processes_that_share_a_blob_converge_to_shares_of_its_limit(processes):
    """Small requests; with large ones, 15 a second for all of them, each learns more slowly."""
    used, refused = Simulated(processes, 16, (SMALL,)).run()
    assert used >= 0.95
    assert refused <= 0.05
    used, refused = Simulated(processes, 16, (LARGE,)).run()
    assert used >= 0.9
    assert refused <= 0.2


@pytest.mark.parametrize(("capacity", "settled"), [(0.25, 5.0), (3.0, 70.0)])
def test_the_pace_converges_to_limits_other_than_documented(capacity, settled):
    """The pace falls within seconds; it rises, as for a premium blob, within about a minute."""
    used, refused = Simulated(1, 128, (SMALL,), capacity=capacity, settled=settled, seconds=settled + 30).run()

    assert used >= 0.95
    assert refused <= 0.05
