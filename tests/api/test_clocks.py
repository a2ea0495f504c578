"""A worker whose clock is wrong: what a call stores carries the table service's time, as what the steps store does."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import datetime, timedelta

import pytest

from backup_core.api import catalogue, disks, runs
from backup_core.api.context import respond
from backup_core.api.http import Request
from backup_core.domain.naming import run_moment
from tests.scene import Scene

ONE_SECOND = timedelta(seconds=1)


@pytest.fixture(params=[-1, 1], ids=["slow", "fast"])
def skew(request):
    return timedelta(hours=request.param)


async def call(scene, skew, handler, body=None, **route):
    """The answer of a worker whose clock is wrong by `skew`, and the orchestrations that it started."""
    started = []

    async def start(name, instance, request):
        started.append((name, instance, request))

    api = replace(scene.api(), now=lambda: scene.world.now + skew)
    text = json.dumps(body).encode() if body is not None else b""
    reply = await respond(api, handler, Request("https://app.test/api", route, {}, text, {}, start))
    assert reply.status < 400, reply.body
    return json.loads(reply.body), started


@pytest.mark.parametrize("managed", [False, True], ids=["page blob", "managed disk"])
async def test_a_backup_that_it_starts_succeeds(managed, skew):
    """A managed disk's snapshot counts only when it was taken since the run was requested, by the time in the run's id."""
    scene = Scene(managed=managed)
    scene.protect()
    answer, ((name, run, request),) = await call(scene, skew, runs.post_backup, {}, disk="vm")

    assert answer["id"] == run
    assert abs(run_moment(run) - scene.world.now) <= ONE_SECOND
    assert (await scene.driver().run(name, request, run))["state"] == "Succeeded"


async def test_a_registration_that_it_stores(skew):
    """From its time on the disk's runs count, and windows are missed."""
    scene = Scene()
    scene.protect("vm")
    source = str(scene.source("vm"))
    scene.catalogue.rows.pop(("vm", "registration"))
    await call(scene, skew, disks.put_disk, {"source": source, "firstBackup": False}, disk="vm")
    row = (await scene.catalogue.registration("vm")).value
    assert max(abs(one - scene.world.now) for one in (row.created, row.updated, row.since)) <= ONE_SECOND

    await call(scene, skew, disks.delete_disk, disk="vm")
    assert abs((await scene.catalogue.registration("vm")).value.updated - scene.world.now) <= ONE_SECOND


async def test_a_cancel_that_it_stores(skew):
    scene = Scene()
    scene.protect()
    _, ((_, run, _),) = await call(scene, skew, runs.post_backup, {}, disk="vm")
    canceled, _ = await call(scene, skew, runs.post_cancel, run=run)

    assert canceled["state"] == "Canceled"
    assert abs(scene.rows("run!")[0].ended - scene.world.now) <= ONE_SECOND


async def test_a_rebuild_that_it_begins(skew):
    answer, ((_, rebuild, _),) = await call(Scene(), skew, catalogue.post_rebuild, {"dryRun": True})

    assert answer["id"] == rebuild
    assert abs(datetime.strptime(rebuild.split(".")[-2], "%Y%m%dT%H%M%S%z") - Scene().world.now) <= timedelta(minutes=1)
