"""The time after which a silent run counts as dead: longer than any silence of a living run."""

from __future__ import annotations

import json
from contextlib import suppress
from datetime import UTC, datetime, timedelta

import pytest

from backup_core.domain.ending import (
    HEARTBEAT_MAX,
    PAUSE_SECONDS_MAX,
    SIGN_SECONDS_MAX,
    STANDSTILL_MAX,
    STEP_SECONDS_MAX,
    STEP_SECONDS_USUAL,
    WAITS_MAX,
)
from backup_core.domain.errors import SnapshotRateError
from backup_core.orchestrations import deliver_disk
from backup_core.orchestrations.calls import PAUSES, Retries, StepFailedError, wave
from backup_core.protocol.tools import Limits
from backup_core.steps import STEPS
from backup_core.steps.backup import LIST_DISKS, FleetPage
from backup_core.steps.messages import Fault, Message, StepOutcome
from devhost.platform import REPOSITORY

PAUSE, STEP, USUAL = (timedelta(seconds=each) for each in (PAUSE_SECONDS_MAX, STEP_SECONDS_MAX, STEP_SECONDS_USUAL))

SIGN = timedelta(seconds=SIGN_SECONDS_MAX)
FULL_QUEUE = HEARTBEAT_MAX / 2
"""The longest wait for a worker: `test_many_disks_have_fewer_shards_each`."""


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
    assert max(PAUSE, premium) + STEP + STANDSTILL_MAX + SIGN < HEARTBEAT_MAX, (
        "a wait, and a crash in the longest step after it"
    )
    assert FULL_QUEUE + STEP + STANDSTILL_MAX <= HEARTBEAT_MAX, "a full queue, and a crash in the longest step after it"
    assert premium + FULL_QUEUE + USUAL < HEARTBEAT_MAX, "a wait, and a full queue after it"


@pytest.mark.parametrize("seconds", [0, 60, 119, 120, 200, 300, 450, 599, 600, 620])
@pytest.mark.parametrize("asked", [0, 5, 60, int(PAUSE_SECONDS_MAX), SnapshotRateError.wait_seconds])
def test_the_attempts_of_a_step_take_less_than_a_living_run_may_be_silent(seconds, asked):
    """However long each attempt takes, and however long the service asks to wait: without any sign of life in between."""
    fault = Fault(code="ServiceTimedOut", message="slow", retryable=True, wait_seconds=asked, silent_seconds=seconds)
    outcome = StepOutcome(fault=fault, step=LIST_DISKS.name).model_dump(mode="json")
    elapsed, attempts = timedelta(), 0
    steps = wave(Clockless(), LIST_DISKS, [FleetPage(window="2026-01-01T00:00:00+00:00")], Retries())
    waits_for = next(steps)
    with suppress(StepFailedError):
        while True:
            pause = waits_for if isinstance(waits_for, timedelta) else None
            elapsed += timedelta(seconds=seconds) if pause is None else pause
            attempts += pause is None
            waits_for = steps.send(outcome if pause is None else None)

    assert elapsed <= WAITS_MAX + STEP + SIGN
    assert elapsed + STANDSTILL_MAX <= HEARTBEAT_MAX + SIGN
    assert attempts == len(PAUSES) + 1 or seconds >= 120 or asked, (
        "requests that reach their own deadline are tried as often as ever"
    )


class Clockless:
    """A context whose timers are the time that they take."""

    instance_id, version, current_utc_datetime = "", None, datetime(2026, 1, 1, tzinfo=UTC)

    def call_activity(self, name, input_):
        return name, input_

    def create_timer(self, fire_at):
        return fire_at - self.current_utc_datetime


def test_the_host_ends_a_step_that_its_deadline_did_not_end():
    """One that blocks its worker. The attempt after it still ends while the run counts as living."""
    host = json.loads((REPOSITORY / "host.json").read_text())
    hours, minutes, seconds = map(int, host["functionTimeout"].split(":"))
    limit = timedelta(hours=hours, minutes=minutes, seconds=seconds)

    assert limit > STEP + SIGN
    assert limit + PAUSES[0] + STEP + SIGN + STANDSTILL_MAX < HEARTBEAT_MAX


def test_each_step_of_a_run_knows_its_run():
    """It could give no sign of life otherwise."""
    of_no_run = {step.name for step in STEPS if not names_a_run(step.takes)}

    assert of_no_run == {
        "list_disks", "take_turn", "list_backed_up_disks", "clean_up_disk", "clean_up_rebuilds", "list_rebuild_disks",
        "rebuild_disk", "report_rebuild", "finish_rebuild",
    }  # fmt: skip


def names_a_run(takes):
    fields = takes.model_fields
    inner = next((fields[name].annotation for name in ("actor", "transfer", "image") if name in fields), None)
    inner = inner if isinstance(inner, type) and issubclass(inner, Message) else None
    return names_a_run(inner) if inner else {"disk", "run"} <= set(fields)


def test_long_operations_send_heartbeats_in_time():
    assert Limits.shard_seconds == Limits.verify_seconds == STEP_SECONDS_USUAL
    assert deliver_disk.IMPORT_PAUSE < PAUSE
    assert max(PAUSES) < PAUSE
