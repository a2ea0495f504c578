"""The waves that copy a plan's shards: each shard is copied once at any speed, and none waits for a slow one."""

from __future__ import annotations

from datetime import UTC, datetime
from random import Random
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backup_core.orchestrations.calls import Left, Retries
from backup_core.orchestrations.shard_waves import CALLS_PER_EXECUTION, apply_shards
from backup_core.steps.copying import CopyProgress, ImageCopy, PlanResult, TransferCounts
from backup_core.steps.messages import Actor

IMAGE = ImageCopy(
    actor=Actor(disk="vm", run="vm.20260101T000000Z.timer", lease="lease", epoch=1, source="https://source"),
    source="https://source", target="S", destination="head", kind="full", generation=1, size=512,
)  # fmt: skip
PUTS = 100
"""Requests of a shard."""


class Storage:
    """The requests done of each shard, and the calls that did them: each call has time for so many requests."""

    def __init__(self):
        self.puts, self.total, self.waves, self.reports, self.executions = {}, 0, [], [], 1

    def answer(self, request, time):
        """The answer of the step: it does shards one after another while there is time, and at least one request."""
        before, time = 0, max(time, 1)
        for shards_before, shard in enumerate([request["shard"], *request["then"]]):
            had = self.puts.get(shard, 0)
            self.puts[shard] = min(PUTS, had + time)
            time -= self.puts[shard] - had
            self.total += self.puts[shard] - had
            done = self.puts[shard] == PUTS
            value = {
                "applied": {"puts": self.puts[shard]}, "at": 1, "done": done, "before": {"puts": before}, "shards_before": shards_before
            }  # fmt: skip
            if not done or not time:
                break
            before += PUTS
        return {"value": value, "fault": None}

    def copied(self, shards, calls, times):
        """The total after all shards are done; each wave gets the time of its calls from `times`."""
        progress = CopyProgress()

        def report(counts):
            self.reports.append(counts.puts)
            assert counts.puts == self.total, "what is reported is what was done"
            yield from ()

        def continue_as_new(reached):
            nonlocal progress
            # As the next execution reads it.
            progress = CopyProgress.model_validate_json(reached.model_dump_json())
            state = "continued"
            raise Left(state)

        while True:
            context = SimpleNamespace(
                version=None, call_activity=lambda _, request: request, task_all=list, current_utc_datetime=datetime(2026, 1, 1, tzinfo=UTC)
            )  # fmt: skip
            flow = apply_shards(
                context, IMAGE, PlanResult(shards=shards), progress, calls, Retries(), report=report,
                continue_as_new=continue_as_new,
            )  # fmt: skip
            try:
                return self._run(flow, times)
            except Left:
                self.executions += 1

    def _run(self, flow, times):
        sent, ended = None, {}
        while True:
            try:
                task = flow.send(sent)
            except StopIteration as stop:
                return stop.value
            tasks = task if isinstance(task, list) else [task]
            if id(tasks[0]) not in ended:
                self.waves.append(tasks)
                ended = {id(one): self.answer(one, time) for one, time in zip(tasks, times(len(tasks)), strict=True)}
            sent = None if isinstance(task, list) else ended[id(task)]


@given(st.integers(0, 300), st.integers(1, 16), st.integers(0, 2**32))
def test_each_shard_is_done_once(shards, calls, seed):
    """Each shard is done once, through any number of executions and at any speed of the calls. No more calls than allowed run
    at a time.
    """
    storage, rng = Storage(), Random(seed)
    applied = storage.copied(shards, calls, lambda count: [rng.choice([1, 60, 250, 10**6]) for _ in range(count)])

    assert storage.puts == dict.fromkeys(range(shards), PUTS)
    assert applied == TransferCounts(puts=PUTS * shards)
    assert storage.reports == sorted(storage.reports)
    assert storage.executions == 1 or len(storage.waves) * calls > CALLS_PER_EXECUTION


@pytest.mark.parametrize("slow", [1, 5, 50])
@pytest.mark.parametrize("shards", [40, 41, 333])
def test_a_slow_call_keeps_no_other_waiting(shards, slow):
    """One of four calls is on a worker that gets hardly anything done: the others take over its shards.

    The calls are at work as long as the shards take at their speeds, plus at most one shard of the slow call. Waves of one
    shard for each call would last as long as all shards of the slow call.
    """
    storage, fast = Storage(), 250
    storage.copied(shards, 4, lambda count: [slow, fast, fast, fast][:count])

    least = shards * PUTS / (3 * fast + slow)
    assert len(storage.waves) <= least + PUTS / slow + 2


def test_a_fast_call_gets_many_shards_in_one_wave():
    """Fast calls copy many shards in one wave."""
    storage = Storage()
    storage.copied(64, 4, lambda count: [10**6] * count)

    assert len(storage.waves) == 1
