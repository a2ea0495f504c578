"""A step has a deadline of its own: however its time is spent, it ends before its run would be taken for dead."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest

from backup_core.activities import runner
from backup_core.domain.ending import HEARTBEAT_MAX, STEP_SECONDS_MAX
from backup_core.domain.errors import UnexpectedError
from backup_core.steps.backup import LIST_DISKS
from tests.scene import Scene

PAGE = {"window": "2026-01-01T00:00:00+00:00"}


def test_a_step_ends_before_its_run_is_taken_for_dead():
    assert timedelta(seconds=STEP_SECONDS_MAX) < HEARTBEAT_MAX


async def test_a_step_that_hangs_is_a_fault_to_be_retried(monkeypatch):
    """It is canceled where it is, and reported as a temporary failure."""
    scene, canceled = Scene(), []

    async def hangs(*_):
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            canceled.append(LIST_DISKS.name)
            raise

    monkeypatch.setattr(runner, "STEP_SECONDS_MAX", 0.05)
    monkeypatch.setitem(runner.ACTIVITIES, LIST_DISKS.name, hangs)
    fault = (await scene.perform(LIST_DISKS.name, PAGE))["fault"]

    assert (fault["code"], fault["retryable"]) == ("ServiceTimedOut", True)
    assert "list_disks: not done within 0.05 s" in fault["message"]
    assert canceled == [LIST_DISKS.name], "nothing of it continues"


async def test_another_timeout_is_a_fault_of_the_program(monkeypatch):
    async def broken(*_):
        raise TimeoutError("not ours")

    monkeypatch.setitem(runner.ACTIVITIES, LIST_DISKS.name, broken)
    with pytest.raises(UnexpectedError, match="TimeoutError: not ours"):
        await Scene().perform(LIST_DISKS.name, PAGE)
