"""The time after which a silent run counts as dead: longer than any silence of a living run."""

from __future__ import annotations

import json
from datetime import timedelta

from backup_core.domain.ending import (
    HEARTBEAT_MAX,
    PAUSE_SECONDS_MAX,
    STANDSTILL_MAX,
    STEP_SECONDS_MAX,
    STEP_SECONDS_USUAL,
    WAITS_MAX,
)
from backup_core.domain.errors import SnapshotRateError
from backup_core.orchestrations import deliver_disk
from backup_core.orchestrations.calls import PAUSES
from backup_core.protocol.tools import Limits
from devhost.platform import REPOSITORY

PAUSE, STEP, USUAL = (timedelta(seconds=each) for each in (PAUSE_SECONDS_MAX, STEP_SECONDS_MAX, STEP_SECONDS_USUAL))


def test_a_crashed_run_pauses_for_as_long_as_the_host_hides_messages():
    provider = json.loads((REPOSITORY / "host.json").read_text())["extensions"]["durableTask"]["storageProvider"]

    for name in ("controlQueueVisibilityTimeout", "workItemQueueVisibilityTimeout"):
        hours, minutes, seconds = map(int, provider[name].split(":"))
        assert timedelta(hours=hours, minutes=minutes, seconds=seconds) == STANDSTILL_MAX


def test_a_living_run_never_counts_as_dead():
    """No wait between two heartbeats is longer, with crashes included."""
    assert PAUSE + STEP + STANDSTILL_MAX + STEP <= HEARTBEAT_MAX, "one crash in the longest step"
    assert PAUSE + 4 * USUAL + 3 * STANDSTILL_MAX < HEARTBEAT_MAX, "three crashes in usual ones"
    premium = timedelta(seconds=SnapshotRateError.wait_seconds)
    assert premium + 2 * USUAL + 2 * STANDSTILL_MAX < HEARTBEAT_MAX, "two crashes around a premium disk's wait for its snapshot"
    assert max(WAITS_MAX, sum(PAUSES, timedelta())) + (len(PAUSES) + 1) * USUAL + STANDSTILL_MAX < HEARTBEAT_MAX, (
        "all attempts of a step, whatever waits the service asks for"
    )
    assert max(PAUSE, premium) < WAITS_MAX, "one such wait of any service"


def test_long_operations_send_heartbeats_in_time():
    assert Limits.shard_seconds == Limits.verify_seconds == STEP_SECONDS_USUAL
    assert deliver_disk.IMPORT_PAUSE < PAUSE
    assert max(PAUSES) < PAUSE
