"""Thousands of disturbed histories without a violation; every planted bug caught; one seed is one history."""

from __future__ import annotations

import logging
from collections import Counter

import pytest

from tests.simulator.command import histories, summary
from tests.simulator.planted import PLANTED, catch, known
from tests.simulator.simulation import simulate
from tests.simulator.stage import LONG_EVERY, REPLAYED_EVERY

HISTORIES = 5000


@pytest.fixture(autouse=True)
def quiet():
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.timeout(900)
def test_no_violation_in_five_thousand_histories():
    """The invariants are true after every step of all histories.

    They have both kinds of diff, all ways to copy, backups beside restores, crashes at every call, strangers and clock skew.
    """
    counts, violations = Counter(), []
    print(f"seeds 0 to {HISTORIES - 1}")
    for report in histories(range(HISTORIES)):
        counts.update(report.counts)
        if report.violation:
            violations.append(f"seed {report.seed}: {report.violation}")
    print(summary(counts, HISTORIES, 0))

    assert violations == []
    # The histories must be worth something: points were made, and every kind of disturbance happened.
    assert counts["points"] > 2 * HISTORIES
    disturbances = [
        f"{kind} {stage} effect"
        for kind in ("unavailable", "worker crash", "zombie", "refused", "unknown 409")
        for stage in ("before", "after")
    ]
    strangers = [
        f"third party: {act}"
        for act in (
            "break lease",
            "delete S",
            "overwrite",
            "grow",
            "shrink",
            "alter head",
            "change machine",
            "copy S onto its disk",
            "another deployment's snapshot",
        )
    ]
    others = [
        "crash before checkpoint",
        "duplicate delivery",
        "timer fired twice",
        "orchestration terminated",
        "a diff hides an allocation",
        "run canceled",
        "sub-orchestrations",
        "commits refused",
        "answers delivered twice",
        "unwritten ends reported",
        "living orchestrations replaced",
        "starts refused",
        "fleets",
        "copy ends: success",
        "copy ends: failed",
        "points pinned",
        "points expired",
        "rebuilds",
        "ends reported by the watch",
        *(f"swept: {what}" for what in ("snapshots", "blobs", "documents", "pins")),
        *(f"restores succeeded: {how}" for how in ("repoint", "adopt", "plain")),
        "restores onto the live disk",
        "restores onto a stranger's blob",
        "timers fired early",
        "rows unreadable for a while",
        "rows and documents unreadable for good",
        "deletions refused for a while",
        "accounts gone",
        "unchanged pages copied along",
    ]
    of_managed_disks = [
        *(f"third party: {act}" for act in ("end access", "reach limit", "fail filling", "slow creation")),
        "uploads",
        "snapshots that take long",
        "snapshots filled later",
        "requests for a name that exists",
        "exports refused",
        "exports expired",
    ]
    assert counts["long lists"] >= HISTORIES // LONG_EVERY // 2
    assert [name for name in disturbances + strangers + others if counts[name] < HISTORIES // 100] == []
    assert [name for name in of_managed_disks if counts[name] < 20] == []


@pytest.mark.parametrize("bug", PLANTED)
def test_each_planted_bug_is_caught(bug):
    """Some history shows each planted bug, and nothing is wrong in the same history without the bug."""
    caught = catch(bug, known().get(bug))

    assert caught, f"{bug}: not caught in {len(PLANTED[bug].seeds())} histories"
    print(f"caught by seed {caught.seed}, known was {known().get(bug)}: {caught.violation}")
    assert caught.without == ""


def test_a_history_is_known_for_each_planted_bug():
    """The seeds are those of `python -m tests.simulator.planted`: without one, the search takes minutes."""
    assert list(known()) == sorted(PLANTED)


def test_a_seed_is_a_history():
    """The same number gives the same trace, step by step."""
    first, second = simulate(7, keep_trace=True), simulate(7, keep_trace=True)

    assert first.trace == second.trace
    assert len(first.trace) > 50
    assert first.counts == second.counts


def test_histories_run_through_the_sdks_replay_too():
    """One in a hundred is run by the Durable SDK over a history, and its orchestrator is deterministic."""
    reports = [simulate(seed) for seed in (0, REPLAYED_EVERY, 2 * REPLAYED_EVERY)]

    assert [report.violation for report in reports] == ["", "", ""]
    assert all(report.counts["points"] for report in reports)
