"""Canceling a run in every phase: a declared end state, nothing lost, the disk free for the next run."""

from __future__ import annotations

import json
from datetime import timedelta

import pytest

from backup_core.api import runs
from backup_core.api.context import respond
from backup_core.api.http import Request
from backup_core.domain.ending import HEARTBEAT_MAX
from tests.activities.acts import STEPS_OF_A_BACKUP, cancel, canceled_before, stop_before
from tests.scene import Scene

TOO_LATE = {"drop_previous_snapshot", "prune_points", "finish_run", "commit_point", "take_backup_snapshot"}
"""The last report before them says "committing": whoever cancels after it gets the restore point."""


@pytest.mark.parametrize("step", STEPS_OF_A_BACKUP)
@pytest.mark.parametrize("base", ["first", "later"])
async def test_every_phase_can_be_canceled(scene, step, base):
    """Points are as they were, leases and ownership are gone, and the next run brings a right point."""
    if base == "later":
        await scene.back_up()
    kept = [(point, scene.content(point)) for point in scene.points()]
    scene.write(6, 61, None, 63)
    run, output = await canceled_before(scene, step)

    row = scene.run_row(run)
    assert output["state"] == row.state == ("Succeeded" if step in TOO_LATE else "Canceled")
    assert [(point, scene.content(point)) for point in scene.points()][: len(kept)] == kept
    assert len(scene.points()) == len(kept) + (step in TOO_LATE)
    assert scene.head_row().owner is None
    assert all(blob.lease == "" for blob in scene.blobs.blobs.values())
    if step not in TOO_LATE:
        assert (row.error.code, "the disk is free for the next run" in row.error.message) == ("Canceled", True)
    scene.write(7, 71)
    await scene.back_up()
    assert scene.content(scene.points()[-1]) == scene.blobs.blobs[scene.source()].content()
    assert scene.points()[-1].kind == ("incremental" if kept or step in TOO_LATE else "full")


async def test_cancel_between_two_targets_keeps_the_first(scene):
    """A run that finished an interrupted target is canceled before its own: the finished point stays."""
    await scene.back_up()
    scene.write(6, 61)
    await stop_before(scene, "verify_head")
    scene.world.pass_time(HEARTBEAT_MAX + timedelta(minutes=1))
    run, output = await canceled_before(scene, "raise_epoch")

    assert output["state"] == "Canceled"
    assert len(scene.points()) == 2
    assert scene.run_row(run).points == (scene.points()[-1].point,)


async def test_a_run_that_has_not_begun_ends_at_once(scene):

    async def start(*_):
        return

    started = await respond(scene.api(), runs.post_backup, Request("https://app.test/api", {"disk": "vm"}, start=start))
    run = json.loads(started.body)["id"]
    status, shown = await cancel(scene, run)

    assert (status, shown["state"]) == (202, "Canceled")
    before = scene.dump(with_runs=True)
    driver = scene.driver()
    output = await driver.run("backup_disk", scene.request(run=run).model_dump(mode="json"), run)
    assert output["state"] == "ended"
    assert scene.dump(with_runs=True) == before


async def test_a_dead_run_ends_at_once_and_blocks_nothing(scene):
    """Its orchestration was terminated: nobody would ever look at the request."""
    request = await stop_before(scene, "verify_head")
    assert (await cancel(scene, request.run))[1]["state"] == "Running"
    other = Scene()
    other.protect()
    request = await stop_before(other, "verify_head")
    other.world.pass_time(HEARTBEAT_MAX + timedelta(minutes=1))
    status, shown = await cancel(other, request.run)

    assert (status, shown["state"]) == (202, "Canceled")
    await other.back_up()
    assert other.content(other.points()[-1]) == other.blobs.blobs[other.source()].content()


@pytest.mark.parametrize("canceled", [True, False])
async def test_a_dead_run_is_ended_by_the_one_that_takes_over(scene, canceled):
    """Nothing stays Running for ever; its end is reported."""
    request = await stop_before(scene, "verify_head")
    if canceled:
        await cancel(scene, request.run)
    scene.world.pass_time(HEARTBEAT_MAX + timedelta(minutes=1))
    await scene.back_up()

    row = scene.run_row(request.run)
    assert (row.state, row.error.code) == (("Canceled", "Canceled") if canceled else ("Failed", "Abandoned"))


async def test_a_dead_run_does_not_refuse_a_backup(scene):
    """A backup is requested by HTTP while the owner is silent for too long: accepted; while it lives: refused with its address."""

    async def start(*_):
        return

    async def request_backup():
        return await respond(scene.api(), runs.post_backup, Request("https://app.test/api", {"disk": "vm"}, start=start))

    request = await stop_before(scene, "verify_head")
    refused = await request_backup()
    assert (refused.status, refused.headers["Location"]) == (409, f"https://app.test/api/runs/{request.run}")
    scene.world.pass_time(HEARTBEAT_MAX + timedelta(minutes=1))
    assert (await request_backup()).status == 202


async def test_a_sign_of_life_at_the_last_moment_counts(scene, monkeypatch):
    """The run that was taken for dead writes its row just then: it continues, and the other is skipped."""
    request = await stop_before(scene, "verify_head")
    scene.world.pass_time(HEARTBEAT_MAX + timedelta(minutes=1))
    put = scene.catalogue.put_run

    async def racing(run, etag):
        if run.run == request.run and run.ended_for_good:
            row = await scene.catalogue.run("vm", request.run)
            await put(row.value, row.etag)
        return await put(run, etag)

    monkeypatch.setattr(scene.catalogue, "put_run", racing)
    driver = await scene.back_up()

    assert driver.output["state"] == "skipped"
    assert scene.run_row(request.run).state == "Running"
    assert scene.head_row().owner.run == request.run


async def test_ended_runs_are_not_changed(scene):
    """Canceling twice is success; canceling what has ended otherwise is refused in words."""
    run, _ = await canceled_before(scene, "verify_head")
    assert (await cancel(scene, run))[0] == 200
    done = await scene.back_up()
    before = scene.dump(with_runs=True)
    status, shown = await cancel(scene, done.output["run"])

    assert (status, shown["error"]["code"]) == (409, "RunEnded")
    assert "Succeeded" in shown["error"]["message"]
    assert (await cancel(scene, "vm.20200101T000000Z.timer"))[0] == 404
    assert (await cancel(scene, "x"))[0] == 400
    assert scene.dump(with_runs=True) == before


async def test_a_cancel_that_meets_a_report_is_not_lost(scene, monkeypatch):
    """The run writes its row at the same moment: the request is tried again."""
    request = await stop_before(scene, "verify_head")
    put, raced = scene.catalogue.put_run, []

    async def racing(run, etag):
        if not raced:
            raced.append(True)
            row = await scene.catalogue.run("vm", request.run)
            await put(row.value, row.etag)
        return await put(run, etag)

    monkeypatch.setattr(scene.catalogue, "put_run", racing)
    assert (await cancel(scene, request.run))[0] == 202
    assert scene.run_row(request.run).cancel_requested is not None
