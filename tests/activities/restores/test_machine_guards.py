"""The guards of a machine's change by a restore, one by one: each of these fails when its line is taken out."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import timedelta

import pytest

from backup_core.domain.ending import HEARTBEAT_MAX, PAUSE_SECONDS_MAX
from backup_core.domain.errors import MachineRefusedError
from backup_core.domain.managed import ManagedDisk
from backup_core.domain.naming import managed_disk_id
from backup_core.domain.ranges import GIB
from backup_core.domain.records import Slot
from backup_core.domain.repoint import MachineDisk
from backup_core.orchestrations.restore_disk import RestoreFailedError
from tests.activities.acts import (
    AGAIN,
    FINAL,
    RUN,
    TARGET,
    attached_disk,
    cancel,
    contents_of,
    everything_kept,
    into,
    on,
    sane,
    stopped_before,
)
from tests.scene import PAGE, SOURCE, VM


async def test_a_cancel_before_the_first_move_leaves_the_machine_as_it_was(scene):
    """But for its version: an earlier execution may have sent a request, which is fenced off."""
    machine = scene.machines.machines[VM]
    driver = scene.driver()

    async def perform(name, request):
        answer = await scene.perform(name, request)
        if name == "store_change":
            await cancel(scene, RUN)
        return answer

    driver._perform = perform
    await scene.restore(scene.points()[0], driver=driver, **into())

    assert scene.run_row(RUN).state == "Canceled"
    # Written once more: whatever another life had decided before is refused.
    assert replace(scene.machines.machines[VM], etag=machine.etag) == machine
    assert scene.head_row().repoint == ""


async def test_a_delivery_that_fails_once_the_machine_has_its_disk(scene):
    """The restore failed, but the machine writes to the new disk: the registration follows it, there and then."""
    driver = scene.driver()

    async def perform(name, request):
        if name == "report_progress" and request["phase"] == "promoting" and attached_disk(scene) == TARGET:
            return {"fault": {**FINAL, "message": "out of order"}, "value": None}
        return await scene.perform(name, request)

    driver._perform = perform
    with pytest.raises(RestoreFailedError, match=r"out of order.*uses the new disk.*backups continue with the new disk"):
        await scene.restore(scene.points()[0], driver=driver, **into())

    assert scene.catalogue.rows["vm", "registration"].value.source == TARGET
    assert scene.head_row().repoint == ""
    await scene.back_up()
    sane(scene)


async def test_a_cancel_just_after_the_machine_has_its_disk_is_too_late_for_it(scene):
    """It keeps the new disk, and backups follow it, in full: the promotion beside it was canceled."""
    driver = scene.driver()

    async def perform(name, request):
        answer = await scene.perform(name, request)
        if name == "move_machine" and answer["value"]["done"]:
            await cancel(scene, RUN)
        return answer

    driver._perform = perform
    await scene.restore(scene.points()[0], driver=driver, **into())

    assert attached_disk(scene) == TARGET
    assert "uses the new disk" in on(scene).end
    assert scene.run_row(RUN).state == "Canceled"
    assert "backups continue with the new disk, the next one is full" in on(scene).end
    await scene.back_up()
    sane(scene)


async def test_a_move_that_shows_no_effect_is_waited_for_and_asks_for_attention(scene):
    """Azure says done and nothing changes: no hot loop, and the run asks for attention."""
    real, vain, words = scene.machines.put_disk, [], []

    async def put_disk(machine, lun, disk):
        if len(vain) < 30:
            vain.append(disk)
            return True
        return await real(machine, lun, disk)

    scene.machines.put_disk = put_disk
    driver = scene.driver()

    async def perform(name, request):
        if name == "report_progress" and request["attention"]:
            words.append(request["attention"])
        return await scene.perform(name, request)

    driver._perform = perform
    await scene.restore(scene.points()[0], driver=driver, **into())

    assert attached_disk(scene) == TARGET
    assert driver._waited > timedelta(seconds=10 * PAUSE_SECONDS_MAX)
    assert "takes long" in words[0]


async def test_a_machine_without_a_disk_that_cannot_be_settled_fails_the_next_backup(scene):
    """Refused for good while it has neither: visibly, and again, until it can be done."""
    await stopped_before(scene, "move_machine", 2)
    scene.world.pass_time(HEARTBEAT_MAX + timedelta(minutes=1))
    real = scene.machines.put_disk

    async def put_disk(machine, lun, disk):
        raise MachineRefusedError("AcquireDiskLeaseFailed")

    scene.machines.put_disk = put_disk
    for _ in range(2):
        with pytest.raises(Exception, match=r"could not be brought to an end: AcquireDiskLeaseFailed; look at the machine"):
            await scene.back_up()
        assert scene.head_row().repoint
    scene.machines.put_disk = real
    await scene.back_up()
    sane(scene)


async def test_a_restore_that_lost_the_disk_stops_changing_the_machine(scene):
    """The host was down for long, a backup took the disk over and settled the machine: what wakes up then ends."""
    contents, driver, done = contents_of(scene), scene.driver(), []

    async def perform(name, request):
        if name == "move_machine" and len(done) == 1:
            done.append(True)
            scene.world.pass_time(HEARTBEAT_MAX + timedelta(minutes=1))
            await scene.back_up()
        if name == "move_machine" and not done:
            done.append(True)
        return await scene.perform(name, request)

    driver._perform = perform
    with pytest.raises(RestoreFailedError, match="NotOwner"):
        await scene.restore(scene.points()[0], driver=driver, **into())

    everything_kept(scene, contents)
    assert scene.run_row(RUN).error.code == "Abandoned"
    sane(scene)


async def test_a_managed_disk_of_that_name_that_is_not_ours_or_failed(scene):
    old, new = managed_disk_id(VM, "old"), managed_disk_id(VM, "new")
    scene.machines.disks[old] = ManagedDisk(old, "Succeeded", "", 512)
    scene.machines.machines.clear()
    scene.machines.add(VM, MachineDisk("old", old, managed=True, lun=0))
    for run, state, words in (("somebody", "Succeeded", "was not made by"), (AGAIN, "Failed", "could not import")):
        scene.machines.disks[new] = ManagedDisk(new, state, run, 512)
        for at in [at for at in scene.blobs.blobs if at.url == TARGET]:
            del scene.blobs.blobs[at]
        with pytest.raises(RestoreFailedError, match=words):
            await scene.restore(
                scene.points()[0], run=AGAIN if run == AGAIN else RUN, **into(managed_disk=new, adopt=False, old_disk=old)
            )

    assert attached_disk(scene) == old


@pytest.mark.parametrize(("size_gb", "kept"), [(1, 1), (2, None), (None, None)])
async def test_the_size_in_the_model_is_kept_when_it_is_the_disks(scene, size_gb, kept):
    from backup_core.protocol.machines import change_of  # noqa: PLC0415
    from backup_core.steps.messages import Actor  # noqa: PLC0415
    from backup_core.steps.restore import SlotRef, StoreChange  # noqa: PLC0415

    machine = scene.machines.machines[VM]
    disks = tuple(replace(disk, size_gb=size_gb) if disk.lun == 0 else disk for disk in machine.disks)
    actor = Actor(disk="vm", run=RUN, lease="l", epoch=1, source=scene.source().url)
    request = StoreChange(
        actor=actor, slot=SlotRef(vm=VM, lun=0), expected=scene.source().url, target=f"{SOURCE}/vhds/n.vhd", managed_disk="", size=GIB + PAGE,
        stop_vm=False,
    )  # fmt: skip

    assert change_of(request, Slot(VM, 0), replace(machine, disks=disks)).new.size_gb == kept


async def test_a_detach_in_flight_once_the_way_back_was_refused(scene):
    """A delivery that was late has read the machine, and wants to take the old disk out: its write is refused, too."""
    before, late = attached_disk(scene), []
    refused = {"value": None, "fault": {**FINAL, "message": "no"}, "step": "move_machine"}
    put_disk, gate = scene.machines.put_disk, asyncio.Event()

    async def waits(machine, lun, disk):
        if disk is None:
            await gate.wait()
        return await put_disk(machine, lun, disk)

    async def perform(name, request):
        if name == "move_machine" and not late:
            scene.machines.put_disk = waits
            late.append(asyncio.create_task(scene.perform(name, request)))
            for _ in range(50):
                await asyncio.sleep(0)
            scene.machines.put_disk = put_disk
            return refused
        if name == "move_machine":
            return refused
        answer = await scene.perform(name, request)
        if name == "close_change":
            gate.set()
            await late[0]
        return answer

    driver = scene.driver()
    driver._perform = perform
    with pytest.raises(RestoreFailedError):
        await scene.restore(scene.points()[0], driver=driver, **into())
    assert attached_disk(scene) == before
