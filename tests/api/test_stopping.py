"""After a disk's protection was stopped, a run in progress is listed and watched until it ends, and no window begins another."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import timedelta

import pytest

from backup_core.activities.fleet import list_disks
from backup_core.api import disks, runs
from backup_core.api.context import respond
from backup_core.api.http import Request
from backup_core.domain.naming import run_key
from backup_core.domain.records import Pin, Run
from backup_core.domain.status import RUNS_LOOKED_AT
from backup_core.operations.watch import watch
from backup_core.steps.backup import FleetPage
from tests.scene import Scene

RUN = "vm.20260101T000000Z.0123abcd"
SCHEDULE = "0 0 */12 * * *"


@pytest.fixture
def scene():
    """A disk with a run in progress, whose protection was just stopped."""
    stage = Scene()
    stage.protect()
    add_run(stage, "Running")
    return stage


def add_run(scene, state):
    run = Run("vm", RUN, state, "http", full=False, created=scene.world.now, started=scene.world.now)
    scene.catalogue._store(run, run_key(RUN))


async def call(scene, handler, query=None, **route):
    answer = await respond(scene.api(), handler, Request("https://app.test/api", route, query or {}, b"", {}))
    return json.loads(answer.body)


async def listed(scene):
    return [one["id"] for one in (await call(scene, runs.get_runs, {"state": "Running"}))["value"]]


async def watched(scene):
    before = len(scene.journal.events)
    await watch(scene.tools, SCHEDULE)
    return [one.disk for one in scene.journal.events[before:] if type(one).__name__ == "DiskSeen"]


@pytest.mark.parametrize("state", ["NotStarted", "Running"])
async def test_a_run_in_progress_is_listed_and_watched_until_it_ends(scene, state):
    add_run(scene, state)
    assert (await call(scene, disks.delete_disk, disk="vm"))["protection"] == "stopped"
    if state == "Running":
        assert await listed(scene) == [RUN]
    scene.world.pass_time(timedelta(hours=1))
    assert await watched(scene) == ["vm"]
    assert await watched(scene) == ["vm"]

    add_run(scene, "Succeeded")
    assert await watched(scene) == ["vm"], "its end"
    assert scene.claims() == {}
    assert await watched(scene) == []


async def test_a_restore_in_progress_is_found_behind_many_newer_runs(scene):
    """With a window each quarter of an hour they are those of five hours."""
    scene.catalogue._store(Pin("vm", "point", RUN), f"pin!point!{RUN}")
    for number in range(RUNS_LOOKED_AT):
        name = f"vm.20260101T00{number:02d}01Z.timer"
        scene.catalogue._store(Run("vm", name, "Succeeded", "timer", full=False, created=scene.world.now), run_key(name))
    assert (await call(scene, disks.delete_disk, disk="vm"))["protection"] == "stopped"

    assert await watched(scene) == ["vm"]
    assert scene.claims() != {}


async def test_no_window_begins_another(scene):
    await call(scene, disks.delete_disk, disk="vm")
    scene.protect("vn")
    scene.protect("vo")
    found = {}
    for lanes in (1, 2, 3):
        page = await list_disks(scene.tools, FleetPage(window="2026-01-01T12:00:00+00:00", lanes=lanes))
        found[lanes] = ([run.disk for run in page.runs], page.disks, page.lanes)

    assert found == {1: ([], 2, 1), 2: (["vn", "vo"], 2, 0), 3: (["vn", "vo"], 2, 0)}
    assert set(json.loads(scene.documents.texts["_fleets/20260101T120000Z.json"])) == {"vn", "vo"}


async def test_a_disk_without_a_run_is_no_longer_listed_at_once(scene):
    add_run(scene, "Succeeded")
    await call(scene, disks.delete_disk, disk="vm")

    assert scene.claims() == {}


async def test_a_disk_that_is_about_to_be_protected_again_keeps_its_claim(scene):
    """The claim comes before the registration."""
    await call(scene, disks.delete_disk, disk="vm")
    add_run(scene, "Succeeded")
    scene.world.pass_time(timedelta(hours=1))
    await scene.catalogue.claim_source(scene.source().url, "vm")
    await watched(scene)

    assert list(scene.claims()) == [scene.source().url]
    row = scene.catalogue.rows["vm", "registration"]
    scene.catalogue.rows["vm", "registration"] = replace(row, value=replace(row.value, protected=True))
    scene.world.pass_time(timedelta(hours=1))
    await watched(scene)
    assert list(scene.claims()) == [scene.source().url]
