"""Rows and documents that somebody else alters while a run is at work: no run acts on them."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import timedelta

import pytest

from backup_core.domain.ending import HEARTBEAT_MAX
from backup_core.domain.naming import BlobAddress, plan_name, point_key, repoint_name, run_key, shard_end_name
from backup_core.orchestrations.backup_disk import BackupFailedError
from backup_core.orchestrations.restore_disk import RestoreFailedError
from tests.activities.acts import (
    RUN,
    TARGET,
    attached_disk,
    before_step,
    contents_of,
    everything_kept,
    into,
    sane,
    stopped_before,
)
from tests.scene import PAGE, SOURCE, VM

CHANGE = repoint_name("vm", RUN)
STRANGE = f"{SOURCE}/vhds/strange.vhd"


def exchange(scene, **fields):
    """Somebody writes another change of the machine in place of the stored one."""
    scene.blobs.put(BlobAddress(SOURCE, "vhds", "strange.vhd"), 32 * PAGE)
    change = json.loads(scene.documents.texts[CHANGE])
    scene.documents._store(CHANGE, json.dumps(change | {name: change[name] | more for name, more in fields.items()}))


async def failed_restore(scene, driver, match):
    with pytest.raises(RestoreFailedError, match=match):
        await scene.restore(scene.points()[0], driver=driver, **into())


@pytest.mark.parametrize("count", [1, 2, 3])
async def test_an_exchanged_change_of_a_machine_gives_it_no_other_disk(scene, count):
    """Exchanged before any of its moves: the machine has its old disk again, by what the run knows of it itself."""
    contents = contents_of(scene)
    driver = before_step(
        scene, "move_machine", lambda _: exchange(scene, new={"source": STRANGE}, old={"source": STRANGE}), count
    )
    await failed_restore(scene, driver, r"RecordAltered: document .*machine.json: somebody else wrote it")

    assert attached_disk(scene) == scene.source().url
    await scene.back_up()
    sane(scene)
    everything_kept(scene, contents)


async def test_a_change_that_lay_there_before_is_not_taken_for_the_runs_own(scene):
    """Somebody has guessed the run's document and written it first."""
    other = await stopped_before(scene, "move_machine")
    text = scene.documents.texts[CHANGE].replace(TARGET, STRANGE)
    assert STRANGE in text
    late = next(request for name, request, _ in other.calls if name == "store_change")
    scene.documents._store(CHANGE, text)
    before = scene.dump(with_runs=True)

    answer = await scene.perform("store_change", late)

    assert answer["fault"]["code"] == "RecordAltered"
    assert "expected data disk at LUN 0 of VM web-1 to get" in answer["fault"]["message"]
    assert scene.dump(with_runs=True) == before


async def test_a_change_of_a_dead_restore_is_settled_by_its_own_document_only(scene):
    """It died between the two disks, and then somebody exchanged the disk that it would go back to."""
    await stopped_before(scene, "move_machine", 2)
    genuine = scene.documents.texts[CHANGE]
    exchange(scene, old={"source": STRANGE})
    scene.world.pass_time(HEARTBEAT_MAX + timedelta(minutes=1))
    machine = scene.machines.machines[VM]
    with pytest.raises(BackupFailedError, match="RecordAltered"):
        await scene.back_up()

    assert scene.machines.machines[VM] == machine
    scene.documents._store(CHANGE, genuine)
    await scene.back_up()
    sane(scene)


async def test_the_machine_is_read_back_by_the_runs_own_request(scene):
    """Whatever the steps between answer: a machine with another disk is no success."""
    driver = scene.driver()

    async def perform(name, request):
        answer = await scene.perform(name, request)
        if name == "move_machine" and answer["value"]["done"] and request["goal"] == "new":
            answer["value"]["source"] = STRANGE
        return answer

    driver._perform = perform
    await failed_restore(scene, driver, f"SlotTaken: the machine has {STRANGE}, expected {TARGET}")


async def test_a_restores_row_that_asks_for_something_else_is_not_carried_out(scene):
    point = scene.points()[0]
    request = scene.restore_request(point, **into())
    row = scene.run_row(RUN)
    scene.catalogue._store(replace(row, restore=replace(row.restore, target=STRANGE)), run_key(RUN))
    driver = scene.driver()
    with pytest.raises(RestoreFailedError, match=r"RecordAltered: row of restore"):
        await driver.run("restore_disk", request.model_dump(mode="json"), request.run)

    assert [name for name, _, _ in driver.calls] == ["begin_restore", "finish_restore"]
    assert (scene.blob(STRANGE), scene.rows("pin!"), attached_disk(scene)) == (None, [], scene.source().url)


async def test_a_point_whose_row_names_another_snapshot_is_not_restored(scene):
    first, second, *_ = scene.points()
    scene.catalogue._store(replace(first, backup_snapshot=second.backup_snapshot), point_key(first.point))
    driver = scene.driver()
    await failed_restore(scene, driver, r"RecordAltered: .*differs from what .* says of itself")

    assert scene.blob(TARGET) is None
    assert attached_disk(scene) == scene.source().url


@pytest.mark.parametrize("what", ["plan", "end", "cursor"])
async def test_a_plan_that_leaves_something_out_copies_nothing(scene, what):
    """An exchanged plan, and a shard said to be done or to have come further than it goes, are refused by the step."""
    stopped = await stopped_before(scene, "apply_shard", adopt=False)
    image = next(request for name, request, _ in stopped.calls if name == "open_image")
    plan, shard = json.loads(scene.documents.texts[image["plan"]]), {"at": 0, "applied": {}}
    assert image["plan"] == plan_name("vm", RUN, image["target"], "", "disk")
    if what == "plan":
        scene.documents._store(image["plan"], json.dumps(plan | {"shards": [plan["shards"][0] | {"end": PAGE}]}))
    elif what == "end":
        scene.documents._store(shard_end_name(image["plan"], 0), json.dumps(shard | {"at": plan["shards"][0]["end"]}))
    else:
        name = shard_end_name(image["plan"], 0).replace("-end", "")
        scene.documents._store(name, json.dumps(shard | {"at": plan["shards"][0]["end"] + PAGE}))
    before = scene.dump()

    answer = await scene.perform("apply_shard", {"image": image, "shard": 0})

    assert answer["fault"]["code"] == ("UnexpectedAnswer" if what == "end" else "RecordAltered")
    assert scene.dump() == before
