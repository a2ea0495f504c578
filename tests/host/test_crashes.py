"""After kill -9 at any moment the next start continues, every activity runs at least once, and the result is the same."""

from __future__ import annotations

import time

import pytest

from tests.conftest import SEED
from tests.host.conftest import SampleHost


@pytest.mark.parametrize("attempt", range(3))
def test_kill_and_resume_at_seeded_moments(tmp_path, rng, attempt):
    """Five kills at random offsets of an orchestration with waves, timers and a child."""
    host = SampleHost(tmp_path)
    try:
        instance = host.begin("rounds", {"waves": 8})
        offsets = [rng.uniform(0.0, 0.25) for _ in range(5)]
        for offset in offsets:
            time.sleep(offset)  # the offset is the experiment, not a wait for a condition
            host.kill()
            host.start()
        ended = host.until(instance)
    finally:
        host.stop()

    assert ended["output"] == sum(n * n for n in range(32)) + 100, f"seed {SEED}, offsets {offsets}"
    assert {f"square {n}" for n in [*range(32), 10]} == set(host.notes())


def test_an_activity_killed_in_the_middle_runs_again(tmp_path):
    """The activity runs at least once, because the work row survives the process that ran it."""
    host = SampleHost(tmp_path)
    try:
        instance = host.begin("fan_out", {"count": 2, "seconds": 0.5})
        host.until_notes(2)
        host.kill()
        host.start()
        ended = host.until(instance)
    finally:
        host.stop()

    assert ended["output"]["sum"] == 1
    assert sorted(note for note in host.notes() if note.startswith("square")) == [
        "square 0",
        "square 0",
        "square 1",
        "square 1",
    ]
