"""A step has a deadline of its own: however its time is spent, it ends before its run would be taken for dead."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

import pytest

from backup_core.activities import runner
from backup_core.domain.ending import HEARTBEAT_MAX, STANDSTILL_MAX, STEP_SECONDS_MAX
from backup_core.domain.errors import ServiceTimedOutError, ServiceUnavailableError, UnexpectedError
from backup_core.orchestrations.backup_disk import BackupFailedError
from backup_core.orchestrations.registry import ORCHESTRATORS
from backup_core.protocol.run_rows import give_sign_of_life
from backup_core.steps.backup import LIST_DISKS
from tests.activities.acts import stop_before
from tests.doubles.driver import Driver
from tests.scene import Scene

START = datetime(2026, 1, 1, tzinfo=UTC)
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


class Slowness:
    """A scene whose steps take long, and the silences of its run: between two changes of its row, pauses included."""

    def __init__(self, scene, monkeypatch, slow, *, fails="", signs=True):
        self.scene, self.slow, self.fails, self.signs = scene, slow, fails, signs
        self.acting, self.silences, self.waited = False, [], timedelta()
        self.driver = Driver(ORCHESTRATORS, self.perform, lambda: START)
        self.put = scene.catalogue.put_run
        monkeypatch.setattr(runner, "monotonic", self.seconds)
        monkeypatch.setattr(scene.catalogue, "put_run", self.put_run)
        for name, activity in runner.ACTIVITIES.items():
            monkeypatch.setitem(runner.ACTIVITIES, name, self.slowed(name, activity))

    def slowed(self, name, activity):
        async def act(tools, request):
            self.acting = True
            try:
                if name in self.slow:
                    self.scene.world.pass_time(timedelta(seconds=STEP_SECONDS_MAX - 1))
                if name == self.fails:
                    raise ServiceTimedOutError("not done in its time")
                return await activity(tools, request)
            finally:
                self.acting = False

        return act

    def seconds(self):
        return self.scene.world.now.timestamp()

    async def perform(self, name, request):
        self.scene.world.pass_time(self.driver._waited - self.waited)
        self.waited = self.driver._waited
        return await self.scene.perform(name, request)

    async def put_run(self, run, etag):
        if not self.signs and not self.acting:
            raise ServiceUnavailableError("the catalogue is away")
        row = await self.scene.catalogue.run(run.disk, run.run)
        if row and row.value.state == "Running":
            self.silences.append(self.scene.world.now - row.changed)
        return await self.put(run, etag)

    async def run(self):
        self.scene.write(0, 7)
        request = self.scene.request()
        return await self.driver.run("backup_disk", request.model_dump(mode="json"), request.run)


@pytest.mark.parametrize("signs", [True, False], ids=["signs", "no signs"])
@pytest.mark.parametrize("step", ["plan_transfer", "open_head", "apply_shard", "verify_head", "commit_point"])
async def test_a_step_that_reaches_its_deadline_each_time_fails_in_time(scene, monkeypatch, step, signs):
    """Also where the run cannot give a sign of life meanwhile: what an attempt took counts as waited then."""
    slowness = Slowness(scene, monkeypatch, {step}, fails=step, signs=signs)
    with pytest.raises(BackupFailedError, match="ServiceTimedOut"):
        await slowness.run()

    assert max(slowness.silences) < HEARTBEAT_MAX - STANDSTILL_MAX


async def test_steps_that_all_take_long_do_not_make_their_run_dead(scene, monkeypatch):
    """Between two reports there may be several steps."""
    slowness = Slowness(scene, monkeypatch, set(runner.ACTIVITIES))

    assert (await slowness.run())["state"] == "Succeeded"
    assert max(slowness.silences) < HEARTBEAT_MAX - STANDSTILL_MAX


async def test_a_run_that_has_ended_gets_no_sign_of_life(scene):
    run = (await scene.back_up()).output["run"]
    ended = await scene.catalogue.run("vm", run)
    scene.world.pass_time(timedelta(minutes=1))
    await give_sign_of_life(scene.tools, "vm", run)
    await give_sign_of_life(scene.tools, "vm", "vm.20250101T000000Z.timer")

    assert (await scene.catalogue.run("vm", run)).changed == ended.changed


async def test_a_sign_of_life_that_another_writer_forestalls_is_given(scene, monkeypatch):
    working = await stop_before(scene, "plan_transfer")
    put = scene.catalogue.put_run

    async def after_another(run, etag):
        await put(run, etag)
        return await put(run, etag)

    monkeypatch.setattr(scene.catalogue, "put_run", after_another)
    scene.world.pass_time(timedelta(minutes=1))
    await give_sign_of_life(scene.tools, "vm", working.run)

    assert scene.world.now - (await scene.catalogue.run("vm", working.run)).changed < timedelta(seconds=1)
