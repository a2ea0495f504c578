"""Two deliveries of one step, of which the slower does part of its work when the faster has ended: it disturbs nothing."""

from __future__ import annotations

from dataclasses import replace

import pytest

from backup_core.domain.errors import BlobExistsError
from backup_core.domain.metadata import source_snapshot_metadata
from backup_core.orchestrations.backup_disk import BackupFailedError
from backup_core.protocol.fencing import fence_off
from backup_core.protocol.images import hold_own
from backup_core.protocol.source_snapshots import take_once
from backup_core.steps.messages import Actor
from tests.activities.acts import RUN, TARGET, attached_disk, before_step, cancel, into, stop_before, stopped_before
from tests.scene import VM


async def nothing():
    """Nothing happens meanwhile."""


def overtaken(scene, step, port, method, meanwhile=nothing):
    """A driver whose `step` is delivered twice, where the faster delivery overtakes the slower one.

    The slower one reaches its first call of the method. Then the faster one runs to its end, and its answer counts; `meanwhile`
    happens; and the slower one continues.
    """
    driver, answers = scene.driver(), []

    async def perform(name, request):
        if name != step or answers:
            return await scene.perform(name, request)
        real = getattr(port, method)

        async def slow(*args, **fields):
            setattr(port, method, real)
            found = await real(*args, **fields) if method == "properties" else None
            answers.append(await scene.perform(name, request))
            await meanwhile()
            return found or await real(*args, **fields)

        setattr(port, method, slow)
        driver.slower = await scene.perform(name, request)
        return answers[0]

    driver._perform = perform
    return driver


async def test_both_continue_with_the_older_source_snapshot(scene):
    """Each has taken one: whichever answer counts, and whatever a later delivery finds, it is the same."""
    request, driver = scene.request(), overtaken(scene, "take_source_snapshot", scene.blobs, "snapshot")
    await driver.run("backup_disk", request.model_dump(mode="json"), request.run)

    (target,) = [answer["value"] for name, _, answer in driver.calls if name == "take_source_snapshot"]
    assert driver.slower["value"] == target
    assert scene.run_row(request.run).state == "Succeeded"


@pytest.mark.parametrize("scene", ["writes", "content"], indirect=True)
async def test_a_strangers_snapshot_is_not_recorded_by_a_delivery_that_hung(scene):
    """Before it listed, the run's snapshot was copied onto the disk and deleted: the oldest that names the run is theirs."""
    request, theirs = scene.request(), []

    async def rolled_back():
        (ours,) = scene.run_row(request.run).source_snapshots
        scene.blobs.copy_over(scene.source(), ours, scene.source())
        theirs.append(await scene.blobs.snapshot(scene.source(), {}))
        await scene.blobs.delete_snapshot(scene.source(), ours)

    driver = overtaken(scene, "take_source_snapshot", scene.blobs, "snapshots", rolled_back)
    with pytest.raises(BackupFailedError, match="SnapshotMissing"):
        await driver.run("backup_disk", request.model_dump(mode="json"), request.run)

    row = scene.run_row(request.run)
    assert len(row.source_snapshots) == 1
    assert not set(theirs) & set(row.source_snapshots)


@pytest.mark.parametrize("scene", ["writes", "content"], indirect=True)
async def test_a_strangers_snapshot_is_not_recorded_for_a_run_that_has_ended(scene):
    """The run died before it recorded its snapshot, which was copied onto the disk and deleted: theirs is the oldest."""
    request = await stop_before(scene, "take_source_snapshot")
    source, site = scene.source(), scene.tools.site(scene.source())
    ours = await scene.blobs.snapshot(source, source_snapshot_metadata(site, "vm", request.run))
    scene.blobs.copy_over(source, ours, source)
    await scene.blobs.snapshot(source, {})
    await scene.blobs.delete_snapshot(source, ours)
    row = await scene.catalogue.run("vm", request.run)
    await scene.catalogue.put_run(replace(row.value, state="Failed", ended=scene.world.now), row.etag)

    actor = Actor(disk="vm", run=request.run, lease=scene.head_row().owner.lease, epoch=1, source=source.url)
    await take_once(scene.tools, actor, source)
    assert scene.run_row(request.run).source_snapshots == ()


async def test_a_head_is_marked_verified_once(scene):
    """The slower one has read the head before it was marked: marked again it would be another version than the one to commit."""
    request, driver = scene.request(), overtaken(scene, "verify_head", scene.blobs, "properties")
    await driver.run("backup_disk", request.model_dump(mode="json"), request.run)

    assert scene.run_row(request.run).state == "Succeeded"


@pytest.mark.parametrize("method", ["snapshot", "set_metadata"])
async def test_a_disk_is_sealed_once(restorable, method):
    """The slower one is refused, for the lease is released: it finds done what it was to do."""
    driver = overtaken(restorable, "seal_image", restorable.blobs, method)
    await restorable.restore(restorable.points()[0], driver, adopt=True)

    assert driver.slower["fault"] is None
    assert restorable.run_row(RUN).state == "Succeeded"
    assert restorable.blob(TARGET).lease == ""


async def test_a_shard_that_is_refused_because_it_was_done_is_done(restorable):
    """The slower one begins to write when the faster one has done the shard, and the image was fenced off for its comparison."""
    driver, slower = restorable.driver(), []
    copy = restorable.blobs.copy_from_url

    async def perform(name, request):
        if name != "apply_shard" or request["image"]["becomes"] != "disk" or slower:
            return await restorable.perform(name, request)
        slower.append(None)

        async def slow(*args):
            restorable.blobs.copy_from_url = copy
            answers.append(await restorable.perform(name, request))
            await fence_off(restorable.tools, restorable.tools.image(TARGET), 1, request["image"]["actor"]["lease"])
            return await copy(*args)

        answers, restorable.blobs.copy_from_url = [], slow
        slower[0] = await restorable.perform(name, request)
        assert slower == answers
        return answers[0]

    driver._perform = perform
    await restorable.restore(restorable.points()[0], driver, adopt=True)

    assert slower[0]["fault"] is None
    assert restorable.run_row(RUN).state == "Succeeded"


async def test_no_way_forward_once_it_was_turned_back_from(restorable):
    """The machine has its old disk again and the change is not settled yet: the earlier request arrives late, and anew."""
    driver, late = restorable.driver(), []

    async def perform(name, request):
        if name == "move_machine" and request["goal"] == "new" and "move" not in [one for one, _ in late]:
            late.append(("move", request))
            assert (await cancel(restorable, RUN))[0] == 202
        if name == "close_change":
            machine = restorable.machines.machines[VM]
            move = next(one for what, one in late if what == "move")
            answers = [
                await restorable.perform("move_machine", move),
                await restorable.perform(name, request | {"goal": "new"}),
            ]
            assert [one["fault"]["code"] for one in answers] == ["NotOwner", "NotOwner"]
            assert restorable.machines.machines[VM] == machine
            late.append(("settled", None))
        return await restorable.perform(name, request)

    driver._perform = perform
    await restorable.restore(restorable.points()[0], driver, **into())

    assert [what for what, _ in late] == ["move", "settled"]
    assert attached_disk(restorable) == restorable.source().url
    assert restorable.run_row(RUN).state == "Canceled"


async def test_a_copy_is_taken_over_once(restorable):
    """Later the sequence number is the one that fenced the copy off for its comparison: it is not set back."""
    taken = []
    driver = before_step(restorable, "seal_image", lambda _: restorable.perform("take_over_copy", taken[0]))
    perform = driver._perform

    async def noted(name, step_input):
        if name == "take_over_copy" and step_input["image"]["becomes"] == "disk":
            taken.append(step_input)
        return await perform(name, step_input)

    driver._perform = noted
    request = restorable.restore_request(restorable.points()[0], adopt=True)
    step_input = request.model_copy(update={"full_copy": "blob"}).model_dump(mode="json")
    await driver.run("restore_disk", step_input, request.run)

    assert taken
    assert restorable.run_row(RUN).state == "Succeeded"


async def test_a_disk_that_is_released_while_it_is_leased_is_free(restorable):
    """Another delivery completes it between the look and the lease: the machine must be able to take its own."""
    await stopped_before(restorable, "compare_image", adopt=False)
    at, acquire = restorable.tools.image(TARGET), restorable.blobs.acquire_lease
    restorable.blobs.blobs[at].lease = ""

    async def meanwhile(blob, lease):
        await acquire(blob, lease)
        restorable.blobs.blobs[blob].metadata = {}

    restorable.blobs.acquire_lease = meanwhile
    actor = Actor(disk="vm", run=RUN, lease="00000000-0000-0000-0000-00000000000b", epoch=0, source="")
    with pytest.raises(BlobExistsError, match="may have completed it already"):
        await hold_own(restorable.tools, at, actor)

    assert restorable.blob(TARGET).lease == ""


async def test_a_disk_that_was_released_is_not_leased_again(restorable):
    """A late delivery that still opens it: the machine is about to take its own lease."""
    await restorable.restore(restorable.points()[0])
    actor = Actor(disk="vm", run=RUN, lease="00000000-0000-0000-0000-00000000000b", epoch=0, source="")
    request = restorable.port_calls["acquire_lease"]
    with pytest.raises(BlobExistsError, match="may have completed it already"):
        await hold_own(restorable.tools, restorable.tools.image(TARGET), actor)

    assert restorable.blob(TARGET).lease == ""
    assert restorable.port_calls["acquire_lease"] == request, "not even for a moment"
