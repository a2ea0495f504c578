"""Helpers of the tests: backups and restores that die, fail or are canceled at a step, and checks of the result."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta

import pytest

from backup_core.api import catalogue, runs
from backup_core.api.context import respond
from backup_core.api.http import Request
from backup_core.domain.naming import REBUILDS
from backup_core.domain.records import Retention, Slot
from backup_core.orchestrations.rebuild_catalogue import RebuildFailedError
from backup_core.steps.backup import BACKUP_STEPS
from backup_core.steps.copying import COPYING_STEPS
from tests.scene import SOURCE, VM

RUN = "vm.20260102T030405Z.0000abcd"
AGAIN = "vm.20260102T030406Z.0000abce"
TARGET = f"{SOURCE}/vhds/restored.vhd"
FINAL = {"code": "AccessDenied", "retryable": False}
OTHERS = {"list_disks", "take_turn", "begin_new_generation", "raise_epoch", "report_progress", "begin_backup"}
COPY_BLOB = {"start_copy", "check_copy", "abort_copy", "take_over_copy"}
STEPS_OF_A_BACKUP = [step.name for step in (*BACKUP_STEPS, *COPYING_STEPS) if step.name not in OTHERS | COPY_BLOB]
"""Steps of a backup by pages, after its begin."""
STEPS_OF_A_RESTORE = [
    "plan_transfer", "open_image", "apply_shard", "compare_image", "own_disk", "seal_image", "store_change", "move_machine",
    "adopt_head", "take_backup_snapshot", "commit_point", "close_change",
]  # fmt: skip


# -- backups ---------------------------------------------------------------------------------------------------------


def names(driver):
    return [name for name, _, _ in driver.calls if name != "report_progress"]


def before_step(scene, step, act, count=1):
    """A driver that lets `act` happen just before `step` comes for the `count`th time."""
    driver, left = scene.driver(), [count]

    async def perform(name, request):
        if name == step:
            left[0] -= 1
            if left[0] == 0:
                outcome = act(request)
                if outcome is not None:
                    await outcome
        return await scene.perform(name, request)

    driver._perform = perform
    return driver


async def stop_before(scene, step, **fields):
    """A run whose orchestration dies just before `step`; its request."""
    request = scene.request(**fields)
    driver = scene.driver()

    async def perform(name, step_input):
        if name == step:
            raise KeyboardInterrupt
        return await scene.perform(name, step_input)

    driver._perform = perform
    scene.stopped = driver
    with pytest.raises(KeyboardInterrupt):
        await driver.run("backup_disk", request.model_dump(mode="json"), request.run)
    return request


async def call(scene, handler, body=None, query=None, **route):
    request = Request("https://app.test/api", route, query or {}, json.dumps(body).encode() if body else b"")
    reply = await respond(scene.api(), handler, request)
    return reply.status, json.loads(reply.body)


async def cancel(scene, run):
    return await call(scene, runs.post_cancel, run=run)


async def canceled_before(scene, step, **fields):
    """Cancel a run just before `step`; return its id and output."""
    request, driver = scene.request(**fields), scene.driver()
    step_input = False

    async def perform(name, input_):
        nonlocal step_input
        if name == step and not step_input:
            step_input = True
            assert (await cancel(scene, request.run))[0] == 202
        return await scene.perform(name, input_)

    driver._perform = perform
    output = await driver.run("backup_disk", request.model_dump(mode="json"), request.run)
    return request.run, output


def keep(scene, last, days=0):
    row = scene.catalogue.rows["vm", "registration"]
    scene.catalogue.rows["vm", "registration"] = replace(row, value=replace(row.value, retention=Retention(last, days)))


async def rebuild(scene):
    """A dry run, which changes nothing, then the real one; what it came to, and another dry run after it."""
    before = without_rebuilds(scene)
    dry = await rebuilt(scene)
    assert (dry["state"], dry["dryRun"]) == ("Succeeded", True)
    assert without_rebuilds(scene) == before
    done = await rebuilt(scene, dryRun=False, planHash=dry["planHash"])
    assert done["state"] == "Succeeded"
    assert done["value"] == dry["value"]
    return done, await rebuilt(scene)


def without_rebuilds(scene):
    """Everything there is, but for what rebuilds keep of themselves."""
    blobs, rows, texts, claims = scene.dump(with_runs=True)
    return blobs, rows, {name: text for name, text in texts.items() if not name.startswith(REBUILDS)}, claims


async def rebuilt(scene, driver=None, **request):
    """A rebuild to its end, as a call shows it then."""
    rebuild, start = await accepted_rebuild(scene, **request)
    with suppress(RebuildFailedError):
        await (driver or scene.driver()).run(*start)
    return (await call(scene, catalogue.get_rebuild, rebuild=rebuild))[1]


async def accepted_rebuild(scene, **step_input):
    """The id of a rebuild that is accepted, and what its orchestration is started with: name, input, instance."""
    started = []

    async def start(name, instance, input_):
        started.append((name, input_, instance))

    request = Request("https://app.test/api", body=json.dumps(step_input).encode(), start=start)
    reply = await respond(scene.api(), catalogue.post_rebuild, request)
    assert reply.status == 202, reply.body
    (one,) = started
    scene.world.pass_time(timedelta(seconds=1))
    return json.loads(reply.body)["id"], one


# -- restores --------------------------------------------------------------------------------------------------------


def into(lun=0, **fields):
    """A restore into the machine."""
    return {"repoint": True, "adopt": True, "slot": Slot(VM, lun), "old_disk": f"{SOURCE}/vhds/vm.vhd", **fields}


def on(scene, run=RUN):
    return scene.run_row(run).restore


def attached_disk(scene, lun=0):
    disk = scene.machines.machines[VM].at(lun)
    return disk.source if disk else None


def contents_of(scene):
    return {point.point: scene.content(point) for point in scene.points()}


def everything_kept(scene, contents):
    """Every restore point that was there is there, with its bytes."""
    for point, content in contents.items():
        found = next(one for one in scene.points() if one.point == point)
        assert found.state == "available"
        assert scene.content(found) == content


def failing(scene, step, fault, times=99, skip=0):
    """A driver whose `step` answers a fault so often, after it has run `skip` times."""
    driver, left, passed = scene.driver(), [times], [skip]

    async def perform(name, request):
        if name == step:
            if passed[0]:
                passed[0] -= 1
            elif left[0]:
                left[0] -= 1
                return {"fault": {**fault, "message": "refused by the test"}, "value": None}
        return await scene.perform(name, request)

    driver._perform = perform
    return driver


async def stopped_before(scene, step, count=1, **fields):
    """A restore whose worker dies just before it reaches `step` for the `count`th time, and never runs again."""
    request, driver, left = scene.restore_request(scene.points()[0], **(fields or into())), scene.driver(), [count]

    async def perform(name, step_input):
        if name == step:
            left[0] -= 1
            if left[0] <= 0:
                raise KeyboardInterrupt
        return await scene.perform(name, step_input)

    driver._perform = perform
    with pytest.raises(KeyboardInterrupt):
        await driver.run("restore_disk", request.model_dump(mode="json"), request.run)
    return driver


def sane(scene):
    """Assert what must be true once no run is at work, whatever happened."""
    assert attached_disk(scene) is not None, "the machine has a disk"
    assert scene.catalogue.rows["vm", "registration"].value.source == attached_disk(scene), (
        "backups are of the disk the machine uses"
    )
    assert list(scene.claims()) == [attached_disk(scene)]
    assert scene.rows("pin!") == []
    assert (scene.head_row().owner, scene.head_row().repoint) == (None, "")
    point = scene.points()[-1]
    assert scene.content(point) == scene.bytes_of(attached_disk(scene))
    assert scene.blobs.open == set()
