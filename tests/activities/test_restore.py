"""Restores over in-memory ports: the new disk equals the point, the machine gets it, backups go on as increments."""

from __future__ import annotations

import copy
from dataclasses import replace
from datetime import timedelta

import pytest

from backup_core.domain.errors import MachineRefusedError, ServiceUnavailableError
from backup_core.domain.naming import managed_disk_id, point_key
from backup_core.domain.records import Slot
from backup_core.domain.repoint import MachineDisk
from backup_core.orchestrations.backup_disk import BackupFailedError
from backup_core.orchestrations.restore_disk import RestoreFailedError
from backup_core.ports import ManagedDisk
from tests.activities.test_backup_protocol import names, stop_before
from tests.activities.test_cancel import cancel
from tests.activities.test_retention import keep
from tests.scene import OTHER, PAGE, SOURCE, VM, Scene

TARGET = f"{SOURCE}/vhds/restored.vhd"


@pytest.fixture(params=["writes", "content"])
async def scene(request):
    """A disk of a machine with three restore points, and something written since."""
    stage = Scene(diff=request.param)
    stage.protect()
    stage.write(0, 1, 2, 3, None, 5)
    stage.machine()
    await stage.back_up()
    stage.write(2, 30, None)
    await stage.back_up()
    stage.write(6, 60, 61)
    await stage.back_up()
    stage.write(0, 99)
    return stage


async def test_into_the_machine_and_on_with_an_increment(scene):
    """The article's whole procedure: new disk, new head, repointed, adopted; the next backup is an increment."""
    contents = {point.point: scene.content(point) for point in scene.points()}
    first = scene.points()[0]
    driver = await scene.restore(first, repoint=True, adopt=True, slot=Slot(VM, 0))

    assert driver.output["state"] == "Succeeded"
    restored = scene.blob(TARGET)
    assert restored.content() == contents[first.point]
    machine = scene.machines.machines[VM]
    assert machine.at(0).source == TARGET
    assert (machine.at(0).caching, machine.at(0).name) == ("ReadOnly", "vm-disk")
    assert restored.lease.startswith(VM)
    assert scene.blob(scene.source().url).lease == ""
    policy = scene.catalogue.rows["vm", "policy"].value
    assert policy.source == TARGET
    assert scene.catalogue.claims == {TARGET: "vm"}
    newest = scene.points()[-1]
    assert (newest.kind, newest.source, newest.generation) == ("restored", TARGET, scene.head_row().epoch)
    assert scene.content(newest) == contents[first.point]
    scene.blobs.poke(next(at for at in scene.blobs.blobs if at.url == TARGET), 4, [bytes([77]) * PAGE])
    await scene.back_up()
    last = scene.points()[-1]
    assert (last.kind, last.write_bytes) == ("incremental", PAGE)
    assert scene.content(last) == scene.blob(TARGET).content()
    for point in scene.points()[:3]:
        assert scene.content(point) == contents[point.point]
    row = scene.run_row(driver.output["run"])
    assert row.state == "Succeeded"
    assert scene.rows("pin!") == []
    assert row.restore.old_disk == scene.source().url
    assert "uses the new disk" in row.restore.end


# -- ways to restore ------------------------------------------------------------------------------------------------

RUN = "vm.20260102T030405Z.0000abcd"
AGAIN = "vm.20260102T030406Z.0000abce"


def into(lun=0, **fields):
    """A restore into the machine."""
    return {"repoint": True, "adopt": True, "slot": Slot(VM, lun), "old_disk": f"{SOURCE}/vhds/vm.vhd", **fields}


def on(scene, run=RUN):
    return scene.run_row(run).restore


def held(scene, lun=0):
    disk = scene.machines.machines[VM].at(lun)
    return disk.source if disk else None


def everything_kept(scene, contents):
    """Every restore point that was there is there, with its bytes."""
    for point, content in contents.items():
        found = next(one for one in scene.points() if one.point == point)
        assert found.state == "available"
        assert scene.content(found) == content


def contents_of(scene):
    return {point.point: scene.content(point) for point in scene.points()}


async def test_without_repoint_and_adopt_nothing_of_the_protection_changes(scene):
    """The schedule goes on protecting the live disk: what is written to it is in the next point, an increment."""
    before = (scene.catalogue.rows["vm", "policy"].value, scene.head_row(), dict(scene.catalogue.claims))
    point = scene.points()[0]
    await scene.restore(point)

    assert scene.blob(TARGET).content() == scene.content(point)
    assert (scene.catalogue.rows["vm", "policy"].value, scene.head_row(), dict(scene.catalogue.claims)) == before
    assert (scene.blob(TARGET).snapshots, scene.blob(TARGET).metadata, scene.blob(TARGET).lease) == ({}, {}, "")
    scene.write(9, 90)
    await scene.back_up()
    assert scene.points()[-1].kind == "incremental"
    assert scene.content(scene.points()[-1]) == scene.blob(scene.source().url).content()
    assert not any("restore-" in at.name for at in scene.blobs.blobs)
    assert "protection is unchanged" in on(scene).end


async def test_adopt_without_repoint(scene):
    """The operator exchanges the disk by hand: backups go on from the new one, machines are left alone."""
    point = scene.points()[1]
    content = scene.content(point)
    await scene.restore(point, adopt=True)

    assert held(scene) == scene.source().url
    assert scene.catalogue.rows["vm", "policy"].value.source == TARGET
    scene.blobs.poke(next(at for at in scene.blobs.blobs if at.url == TARGET), 0, [b"\x11" * PAGE])
    await scene.back_up()
    assert [one.kind for one in scene.points()[-2:]] == ["restored", "incremental"]
    assert scene.content(scene.points()[-2]) == content
    assert scene.content(scene.points()[-1]) == scene.blob(TARGET).content()


async def test_an_os_disk(scene):
    """The machine is deallocated, only its VHD is changed, and it runs again."""
    scene.machines.machines.clear()
    scene.blob(scene.source().url).lease = ""
    scene.machine(lun=None)
    await scene.restore(scene.points()[0], **into(None))

    machine = scene.machines.machines[VM]
    assert (held(scene, None), machine.power, machine.at(None).name) == (TARGET, "running", "vm-disk")
    assert scene.asked["deallocate"] == scene.asked["start"] == 1
    assert scene.run_row(RUN).state == "Succeeded"


@pytest.mark.parametrize("power", ["deallocated", "stopped"])
async def test_a_machine_that_was_off_is_not_started(scene, power):
    scene.machines.machines.clear()
    scene.blob(scene.source().url).lease = ""
    scene.machine(lun=None, power=power)
    await scene.restore(scene.points()[0], **into(None))

    assert held(scene, None) == TARGET
    assert scene.asked["start"] == 0
    assert scene.run_row(RUN).state == "Succeeded"


async def test_stop_vm_stops_the_machine_for_a_data_disk(scene):
    await scene.restore(scene.points()[0], **into(stop_vm=True))

    assert scene.asked["deallocate"] == scene.asked["start"] == 1
    assert (held(scene), scene.machines.machines[VM].power) == (TARGET, "running")


async def test_a_machine_whose_changes_take_their_time(scene):
    """They outlast the call: the machine is looked at again until its last change has succeeded."""
    scene.machines.slow = True
    driver, looks = scene.driver(), []

    async def perform(name, asked):
        if name == "move_machine":
            looks.append(name)
            if len(looks) % 3 == 0:
                scene.machines.finish(VM)
        return await scene.perform(name, asked)

    driver._perform = perform
    await scene.restore(scene.points()[0], driver=driver, **into())

    assert held(scene) == TARGET
    assert len(looks) >= 6
    assert scene.run_row(RUN).state == "Succeeded"


async def test_a_point_of_an_older_generation(scene):
    """After a full backup in a new generation, and after a restore: every point stays restorable."""
    await scene.back_up(full=True)
    first, content = scene.points()[0], scene.content(scene.points()[0])
    await scene.restore(scene.points()[1], **into())
    await scene.restore(first, run=AGAIN, target=f"{SOURCE}/vhds/again.vhd", **into(old_disk=TARGET))

    assert held(scene) == f"{SOURCE}/vhds/again.vhd"
    assert scene.blob(f"{SOURCE}/vhds/again.vhd").content() == content
    assert len({point.generation for point in scene.points()}) == 4
    await scene.back_up()
    assert scene.points()[-1].kind == "incremental"


async def test_to_another_account(scene):
    target = f"{OTHER}/vhds/restored.vhd"
    await scene.restore(scene.points()[0], target=target, adopt=True)

    assert scene.blob(target).content() == scene.content(scene.points()[0])
    await scene.back_up()
    assert scene.points()[-1].kind == "incremental"


async def test_a_disk_whose_source_and_registration_are_gone(scene):
    """Point named, target given: the restore points are enough."""
    point = scene.points()[0]
    scene.machines.machines.clear()
    del scene.blobs.blobs[scene.source()]
    del scene.catalogue.rows["vm", "policy"]
    scene.catalogue.claims.clear()
    await scene.restore(point, target=f"{OTHER}/vhds/back.vhd")

    assert scene.blob(f"{OTHER}/vhds/back.vhd").content() == scene.content(point)


async def test_a_managed_disk_takes_the_place_of_another(scene):
    """Imported, swapped in by a change of the machine; from then on the disk is shown as unprotected, in words."""
    old, new = managed_disk_id(VM, "old"), managed_disk_id(VM, "new")
    scene.machines.disks[old] = ManagedDisk(old, "Succeeded", "", 512, sku="Premium_LRS")
    scene.machines.machines.clear()
    scene.machines.add(VM, MachineDisk("old", old, managed=True, lun=0))
    await scene.restore(scene.points()[0], **into(managed_disk=new, adopt=False, old_disk=old))

    assert held(scene) == new
    assert (scene.machines.disks[new].run, scene.machines.disks[new].sku) == (RUN, "Premium_LRS")
    assert scene.machines.machines[VM].at(0).name == "new"
    policy = scene.catalogue.rows["vm", "policy"].value
    assert "managed disks are not backed up" in policy.unprotected
    assert "NOT backed up" in on(scene).end
    with pytest.raises(BackupFailedError, match=r"NotProtected.*managed disks are not backed up"):
        await scene.back_up(run="vm.20260103T000000Z.timer")
    failed = scene.run_row("vm.20260103T000000Z.timer")
    assert (failed.state, failed.error.code) == ("Failed", "NotProtected"), "each window is red for whoever looks"
    assert len(scene.points()) == 3
    assert old in scene.machines.disks


async def test_by_copy_blob(scene):
    """Both copies by the service: no page through plans, sizes and status looked at, content compared."""
    request, driver = scene.restore_request(scene.points()[0], **into()), scene.driver()
    asked = request.model_copy(update={"full_copy": "blob"}).model_dump(mode="json")
    await driver.run("restore_disk", asked, request.run)

    assert scene.asked["start_copy"] == 2
    assert "apply_shard" not in names(driver)
    assert scene.blob(TARGET).content() == scene.content(scene.points()[0])
    assert "copy_blob" in {name for name, *_ in driver.calls} or driver.executions >= 6
    await scene.back_up()
    assert scene.points()[-1].kind == "incremental"


async def test_the_tier_somebody_chose_is_kept(scene):
    scene.blob(scene.source().url).tier = "P30"
    await scene.restore(scene.points()[0])

    assert scene.blob(TARGET).tier == "P30"


async def test_samples_by_setting(scene):
    request, driver = scene.restore_request(scene.points()[0]), scene.driver()
    asked = request.model_copy(update={"verification": "sampled"}).model_dump(mode="json")
    await driver.run("restore_disk", asked, request.run)

    assert [one["full"] for name, one, _ in driver.calls if name == "compare_image"] == [False]


async def test_the_vm_does_not_wait_for_the_promotion(scene):
    """While the new head is still being copied, the machine has its disk already."""
    driver, seen = scene.driver(), []

    async def perform(name, asked):
        if name == "compare_image" and asked["image"]["becomes"] == "head":
            seen.append(held(scene))
        return await scene.perform(name, asked)

    driver._perform = perform
    await scene.restore(scene.points()[0], driver=driver, **into())

    assert seen[-1] == TARGET


async def test_history_stays_small(scene):
    """Many shards, a long wait for the disk, a machine that takes hours: each orchestration goes on as new in time."""
    scene.with_limits(shard_bytes_max=PAGE)
    await scene.restore(scene.points()[2], **into())
    assert scene.run_row(RUN).state == "Succeeded"


async def test_two_copies_have_cursors_of_their_own(scene):
    """Long shards store how far they came: what the one copy has done is not taken for done in the other."""
    scene.with_limits(wave_requests=2, in_flight=1)
    scene.write(0, 1, None, 2, None, 3, None, 4, None, 5, None, 6, None, 7)
    await scene.back_up()
    await scene.restore(scene.points()[-1], **into())

    assert scene.run_row(RUN).state == "Succeeded"
    cursors = {
        name.rpartition("/")[0]
        for name in scene.documents.texts
        if name.startswith(f"vm/{RUN}/") and name.endswith("000000.json")
    }
    assert len(cursors) == 2


# -- beside backups ---------------------------------------------------------------------------------------------------


async def test_a_restore_into_the_machine_waits_for_a_backup_at_work(scene):
    """It copies meanwhile, says for whom it waits, and goes on by itself."""
    backup = await stop_before(scene, "verify_head")
    driver, waited = scene.driver(), []

    async def perform(name, asked):
        answer = await scene.perform(name, asked)
        if name == "report_progress" and asked["phase"] == "queued":
            waited.append(on(scene).attention)
            assert scene.blob(TARGET).content() == scene.content(scene.points()[0])
            assert held(scene) == scene.source().url
            if len(waited) == 3:
                scene.world.pass_time(timedelta(minutes=16))
        return answer

    driver._perform = perform
    await scene.restore(scene.points()[0], driver=driver, **into())

    assert len(waited) == 3
    assert backup.run in waited[0]
    assert held(scene) == TARGET
    assert scene.run_row(RUN).state == "Succeeded"
    assert on(scene).attention == ""


async def test_a_restore_without_repoint_runs_beside_a_backup(scene):
    backup = await stop_before(scene, "verify_head")
    await scene.restore(scene.points()[0])

    assert scene.run_row(RUN).state == "Succeeded"
    assert scene.head_row().owner.run == backup.run


async def test_a_backup_during_a_restore_is_allowed_until_adopt(scene):
    """Its point is newer than the restored one's source; the adoption comes after it all the same."""
    driver, done = scene.driver(), []

    async def perform(name, asked):
        if name == "compare_image" and not done:
            done.append(True)
            scene.write(8, 88)
            await scene.back_up()
        return await scene.perform(name, asked)

    driver._perform = perform
    await scene.restore(scene.points()[0], driver=driver, **into())

    assert scene.run_row(RUN).state == "Succeeded"
    assert [point.kind for point in scene.points()][-2:] == ["incremental", "restored"]
    assert scene.head_row().pair.point == scene.points()[-1].point


async def test_a_backup_while_the_machine_is_changed_is_skipped(scene):
    driver, outputs = scene.driver(), []

    async def perform(name, asked):
        if name == "move_machine" and not outputs:
            outputs.append((await scene.back_up()).output)
        return await scene.perform(name, asked)

    driver._perform = perform
    await scene.restore(scene.points()[0], driver=driver, **into())

    assert outputs[0]["state"] == "skipped"
    assert scene.run_row(RUN).state == "Succeeded"


async def test_two_restores_into_one_machine_at_once(scene):
    """The second finds the machine with another disk than the one it was asked to replace: it changes nothing."""
    driver, other = scene.driver(), f"{SOURCE}/vhds/other-restored.vhd"

    async def perform(name, asked):
        if name == "own_disk" and held(scene) == scene.source().url:
            await scene.restore(scene.points()[1], run=AGAIN, target=other, **into())
        return await scene.perform(name, asked)

    driver._perform = perform
    with pytest.raises(
        RestoreFailedError, match=r"SourceMoved: the disk's source was .*vm\.vhd .* and is .*other-restored\.vhd now"
    ):
        await scene.restore(scene.points()[0], driver=driver, **into())

    assert held(scene) == other
    assert scene.catalogue.rows["vm", "policy"].value.source == other
    assert scene.run_row(AGAIN).state == "Succeeded"
    assert scene.rows("pin!") == []
    assert scene.head_row().owner is None


async def test_two_adoptions_at_once(scene):
    """The one that comes later finds the disk with another source: it changes nothing."""
    driver, other = scene.driver(), f"{SOURCE}/vhds/other-restored.vhd"

    async def perform(name, asked):
        if name == "own_disk" and scene.catalogue.claims == {scene.source().url: "vm"}:
            await scene.restore(scene.points()[1], run=AGAIN, target=other, adopt=True)
        return await scene.perform(name, asked)

    driver._perform = perform
    with pytest.raises(RestoreFailedError, match="SourceMoved"):
        await scene.restore(scene.points()[0], driver=driver, adopt=True)

    assert scene.catalogue.claims == {other: "vm"}
    assert scene.blob(TARGET) is None


async def test_the_machine_got_another_disk_since_it_was_asked(scene):
    """By hand, with the registration as it was: the disk that was to be replaced is not there any more."""
    other = MachineDisk("x", f"{SOURCE}/vhds/by-hand.vhd", managed=False, lun=0)
    scene.blobs.put(scene.source("by-hand"), 32 * PAGE)
    scene.machines.change(VM, other)
    with pytest.raises(RestoreFailedError, match=r"SlotTaken: .*has .*by-hand\.vhd, expected .*vm\.vhd"):
        await scene.restore(scene.points()[0], **into())

    assert held(scene) == other.source
    assert scene.head_row().repoint == ""


async def test_retention_leaves_the_point_alone_while_it_is_restored(scene):
    keep(scene, 1)
    driver, done = scene.driver(), []
    first = scene.points()[0]

    async def perform(name, asked):
        if name == "compare_image" and not done:
            done.append(True)
            await scene.back_up()
            assert first.point in [point.point for point in scene.points()]
        return await scene.perform(name, asked)

    driver._perform = perform
    await scene.restore(first, driver=driver)
    assert scene.run_row(RUN).state == "Succeeded"
    await scene.back_up()
    assert first.point not in [point.point for point in scene.points()]


@pytest.mark.parametrize("state", ["deleting", "lost", "quarantined", None])
async def test_a_point_that_goes_while_it_is_asked_for(scene, state):
    """Between the call and the beginning: refused in words, nothing else happens."""
    first = scene.points()[0]
    request = scene.restore_request(first, **into())
    key = ("vm", point_key(first.point))
    row = scene.catalogue.rows[key]
    if state:
        scene.catalogue.rows[key] = replace(row, value=replace(first, state=state))
    else:
        del scene.catalogue.rows[key]
    before = scene.dump()
    with pytest.raises(RestoreFailedError, match=f"RestorePointUnavailable.* is {state or 'gone'}; nothing was done"):
        await scene.driver().run("restore_disk", request.model_dump(mode="json"), request.run)

    assert scene.dump() == before
    assert (scene.run_row(RUN).state, scene.run_row(RUN).error.code) == ("Failed", "RestorePointUnavailable")


# -- what goes wrong --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["live disk", "stranger"])
async def test_nothing_that_exists_is_ever_written_to(scene, what):
    """A blob of that name appears after the validation: it is left as it is, down to its version."""
    address = scene.source() if what == "live disk" else scene.source("stranger")
    if what == "stranger":
        scene.blobs.put(address, 32 * PAGE).metadata = {"of": "somebody"}
    before = vars(copy.deepcopy(scene.blobs.blobs[address]))
    with pytest.raises(RestoreFailedError, match=r"BlobExists.*never writes onto anything that exists"):
        await scene.restore(scene.points()[0], target=address.url, **into())

    assert vars(scene.blobs.blobs[address]) == before
    assert held(scene) == scene.source().url
    assert scene.rows("pin!") == []
    assert not any("restore-" in at.name for at in scene.blobs.blobs), "the promoted head is removed"


STEPS = [
    "plan_transfer", "open_image", "apply_shard", "compare_image", "own_disk", "seal_image", "remember_machine", "move_machine",
    "adopt_head", "take_backup_snapshot", "commit_point", "settle_change",
]  # fmt: skip
AFTER_THE_MACHINE = {"adopt_head", "take_backup_snapshot", "commit_point"}


def failing(scene, step, fault, times=99, skip=0):
    """A driver whose `step` answers a fault so often, after it has run `skip` times."""
    driver, left, passed = scene.driver(), [times], [skip]

    async def perform(name, asked):
        if name == step:
            if passed[0]:
                passed[0] -= 1
            elif left[0]:
                left[0] -= 1
                return {"fault": {**fault, "message": "told"}, "value": None}
        return await scene.perform(name, asked)

    driver._perform = perform
    return driver


FINAL = {"code": "AccessDenied", "retryable": False}


@pytest.mark.parametrize("step", [step for step in STEPS if step != "settle_change"])
async def test_a_step_that_fails_leaves_a_declared_end_state(scene, step):
    """The machine has one of its disks and backups are of that one; no pin, no lease, no ownership; the next backup is right."""
    contents = contents_of(scene)
    driver = failing(scene, step, FINAL, times=1 if step == "move_machine" else 99)
    with pytest.raises(RestoreFailedError, match=r"AccessDenied: told; restore point .* is unchanged"):
        await scene.restore(scene.points()[0], driver=driver, **into())

    everything_kept(scene, contents)
    row = scene.run_row(RUN)
    assert (row.state, row.error.code) == ("Failed", "AccessDenied")
    new = step in AFTER_THE_MACHINE
    assert held(scene) == (TARGET if new else scene.source().url)
    assert scene.catalogue.rows["vm", "policy"].value.source == held(scene)
    assert scene.rows("pin!") == []
    assert (scene.head_row().owner, scene.head_row().repoint) == (None, "")
    assert all(blob.lease == "" or blob.lease.startswith(VM) for blob in scene.blobs.blobs.values())
    assert ("uses the new disk" in row.restore.end) == new
    await scene.back_up()
    point = scene.points()[-1]
    assert scene.content(point) == scene.blob(held(scene)).content()
    assert (point.kind, point.reason.startswith("the disk's source")) == (("full", True) if new else ("incremental", False))


@pytest.mark.parametrize("step", STEPS)
async def test_a_fault_that_may_pass_is_waited_out(scene, step):
    driver = failing(scene, step, {"code": "ServiceUnavailable", "retryable": True}, times=2)
    await scene.restore(scene.points()[0], driver=driver, **into())

    assert scene.run_row(RUN).state == "Succeeded"
    assert held(scene) == TARGET


@pytest.mark.parametrize("moves", [0, 1, 2])
async def test_an_outage_of_the_resource_manager_is_outlasted(scene, moves):
    """For hours, before, between and after the two changes: the run keeps its state, asks for attention, and goes on."""
    driver = failing(scene, "move_machine", {"code": "ServiceUnavailable", "retryable": True}, times=60, skip=moves)
    inner, asked_for = driver._perform, []

    async def perform(name, asked):
        if name == "report_progress" and asked["attention"]:
            asked_for.append(asked["attention"])
            assert scene.run_row(RUN).state == "Running"
        return await inner(name, asked)

    driver._perform = perform
    await scene.restore(scene.points()[0], driver=driver, **into())

    assert scene.run_row(RUN).state == "Succeeded"
    assert held(scene) == TARGET
    assert "nothing is lost, it goes on as soon as Azure answers" in asked_for[0]
    assert len(asked_for) > 5
    assert on(scene).attention == ""


async def test_a_refused_disk_is_undone(scene):
    """The new disk cannot be attached: the old one is back, read back, and the run says why."""
    real, refused = scene.machines.put_disk, []

    async def put_disk(machine, lun, disk):
        if disk and disk.source == TARGET:
            refused.append(disk)
            raise MachineRefusedError("AcquireDiskLeaseFailed")
        return await real(machine, lun, disk)

    scene.machines.put_disk = put_disk
    with pytest.raises(RestoreFailedError, match=r"MachineRefused: AcquireDiskLeaseFailed; .*uses the old disk again"):
        await scene.restore(scene.points()[0], **into())

    assert len(refused) == 1
    assert held(scene) == scene.source().url
    assert scene.blob(scene.source().url).lease.startswith(VM)
    assert scene.blob(TARGET).content() == scene.content(scene.points()[0]), "the complete disk is kept, and named"
    assert TARGET in on(scene).end
    await scene.back_up()
    assert scene.points()[-1].kind == "incremental"


async def test_when_neither_disk_can_be_attached_it_never_ends(scene):
    """No end state without a disk: it asks for attention until somebody lets it; then the old disk is back."""
    real, attempts = scene.machines.put_disk, []

    async def put_disk(machine, lun, disk):
        if disk and len(attempts) < 40:
            attempts.append(on(scene).attention)
            raise MachineRefusedError("AcquireDiskLeaseFailed")
        return await real(machine, lun, disk)

    scene.machines.put_disk = put_disk
    with pytest.raises(RestoreFailedError, match=r"uses the old disk again"):
        await scene.restore(scene.points()[0], **into())

    assert len(attempts) == 40
    assert "has no disk there and Azure refuses to give it the old one" in attempts[-1]
    assert held(scene) == scene.source().url


async def test_a_version_conflict_is_looked_at_again(scene):
    """Somebody changes the machine between reading and writing: nothing is overwritten, the next look decides."""
    real, raced = scene.machines.put_disk, []

    async def put_disk(machine, lun, disk):
        if not raced:
            raced.append(True)
            scene.machines.change(VM, *scene.machines.machines[VM].disks)
        return await real(machine, lun, disk)

    scene.machines.put_disk = put_disk
    await scene.restore(scene.points()[0], **into())

    assert held(scene) == TARGET
    assert scene.run_row(RUN).retries == 0 or scene.run_row(RUN).state == "Succeeded"


@pytest.mark.parametrize("moment", ["before", "between"])
async def test_somebody_gives_the_machine_a_third_disk(scene, moment):
    """It is left with it; backups stay with the old one; the run says so."""
    real, other = scene.machines.machine, MachineDisk("x", f"{SOURCE}/vhds/os.vhd", managed=False, lun=0)
    calls = []

    async def machine(vm):
        calls.append(vm)
        if len(calls) == (1 if moment == "before" else 3):
            keep_os = [disk for disk in scene.machines.machines[VM].disks if disk.lun is None]
            scene.blob(other.source).lease = ""
            scene.machines.change(VM, *[disk for disk in keep_os if disk.source != other.source], other)
        return await real(vm)

    scene.machines.machine = machine
    with pytest.raises(RestoreFailedError, match="SlotTaken"):
        await scene.restore(scene.points()[0], **into())

    assert held(scene) == other.source
    assert scene.catalogue.rows["vm", "policy"].value.source == scene.source().url
    assert (scene.head_row().owner, scene.head_row().repoint) == (None, "")


async def test_a_vm_that_is_gone(scene):
    del scene.machines.machines[VM]
    with pytest.raises(RestoreFailedError, match="MachineNotFound"):
        await scene.restore(scene.points()[0], **into())

    assert scene.catalogue.rows["vm", "policy"].value.source == scene.source().url
    assert scene.head_row().owner is None


async def test_a_vm_of_another_group(scene):
    """The allow-list is looked at once more where it counts."""
    other = VM.replace("resourceGroups/web", "resourceGroups/payroll")
    scene.machines.machines[other] = scene.machines.machines[VM]
    with pytest.raises(RestoreFailedError, match=r"MachineRefused.*MACHINE_GROUPS"):
        await scene.restore(scene.points()[0], repoint=True, adopt=True, slot=Slot(other, 0))


async def test_a_target_that_left_the_allow_list(scene):
    """Looked at once more where it counts: the restore fails in words, ends its row and lets go."""
    with pytest.raises(RestoreFailedError, match=r"SourceUnfit: .*gone\.test.*SOURCE_ACCOUNTS"):
        await scene.restore(scene.points()[0], target="https://gone.test/vhds/x.vhd", **into())

    assert scene.run_row(RUN).state == "Failed"
    assert (scene.rows("pin!"), scene.head_row().owner) == ([], None)
    assert held(scene) == scene.source().url


async def test_a_promotion_that_fails_after_the_machine_has_its_disk(scene):
    """Backups must be of the disk the machine uses: without a point of its own, the next one is full."""
    driver, inner = scene.driver(), scene.perform

    async def perform(name, asked):
        if name == "compare_image" and asked["image"]["becomes"] == "head":
            return {"fault": {**FINAL, "message": "told"}, "value": None}
        return await inner(name, asked)

    driver._perform = perform
    with pytest.raises(RestoreFailedError, match=r"told; .*backups go on with the new disk, the next one is full"):
        await scene.restore(scene.points()[0], driver=driver, **into())

    assert scene.catalogue.rows["vm", "policy"].value.source == held(scene) == TARGET
    assert scene.catalogue.claims == {TARGET: "vm"}
    await scene.back_up()
    assert scene.points()[-1].kind == "full"
    assert scene.content(scene.points()[-1]) == scene.blob(TARGET).content()


@pytest.mark.parametrize("becomes", ["disk", "head"])
async def test_a_wrong_byte_in_a_copy_is_never_used(scene, becomes):
    """Full comparison is the default: one byte, anywhere that is allocated, in either copy."""
    driver, inner, damaged = scene.driver(), scene.perform, []

    async def perform(name, asked):
        if name == "compare_image" and asked["image"]["becomes"] == becomes and not damaged:
            damaged.append(True)
            blob = scene.blobs.blobs[scene.tools.image(asked["image"]["destination"])]
            blob.pages[1] = b"\xff" + blob.pages[1][1:]
        return await inner(name, asked)

    driver._perform = perform
    with pytest.raises(RestoreFailedError, match=r"VerificationMismatch.*bytes \[512, 1024\)|VerificationMismatch.*bytes \["):
        await scene.restore(scene.points()[0], driver=driver, **into())

    if becomes == "disk":
        assert held(scene) == scene.source().url
        assert scene.blob(TARGET) is None
    assert len(scene.points()) == 3


@pytest.mark.parametrize("ending", ["failed", "aborted", "another copy", "short"])
async def test_a_copy_that_does_not_end_as_ours_is_never_used(scene, ending):
    """A zero-length blob with full metadata proves nothing."""
    scene.blobs.copies_held = True
    request, driver = scene.restore_request(scene.points()[0], **into()), scene.driver()
    inner, looks = scene.perform, []

    async def perform(name, asked):
        if name == "check_copy":
            looks.append(asked["image"]["destination"])
            for address, blob in list(scene.blobs.blobs.items()):
                if blob.arriving and len(looks) > 2:
                    ends(address, blob)
        return await inner(name, asked)

    def ends(address, blob):
        ours = address.url == TARGET
        if not ours or ending in ("another copy", "short"):
            scene.blobs.end_copy(address, "success")
        else:
            scene.blobs.end_copy(address, ending)
        if ours and ending == "another copy":
            blob.copy = replace(blob.copy, copy_id="other")
        if ours and ending == "short":
            blob.size, blob.pages = 0, {}

    driver._perform = perform
    asked = request.model_copy(update={"full_copy": "blob"}).model_dump(mode="json")
    with pytest.raises(RestoreFailedError, match="CopyFailed"):
        await driver.run("restore_disk", asked, request.run)

    assert held(scene) == scene.source().url
    assert len(scene.points()) == 3
    assert scene.rows("pin!") == []


async def test_a_copy_that_stays_pending_can_be_canceled(scene):
    """The service's copy is ended, the blob removed."""
    scene.blobs.copies_held = True
    request, driver, looks = scene.restore_request(scene.points()[0], **into()), scene.driver(), []

    async def perform(name, asked):
        if name == "check_copy":
            looks.append(name)
            if len(looks) == 5:
                await cancel(scene, RUN)
        return await scene.perform(name, asked)

    driver._perform = perform
    asked = request.model_copy(update={"full_copy": "blob"}).model_dump(mode="json")
    output = await driver.run("restore_disk", asked, request.run)

    assert output["state"] == scene.run_row(RUN).state == "Canceled"
    assert scene.blob(TARGET) is None
    assert not any("restore-" in at.name for at in scene.blobs.blobs)


async def test_an_unreachable_source_account(scene):
    """It cannot be written: the restore fails in words, and nothing else has changed."""
    contents = contents_of(scene)
    real = scene.blobs.create

    async def create(blob, *rest):
        if blob.account == SOURCE:
            raise ServiceUnavailableError("no answer")
        await real(blob, *rest)

    scene.blobs.create = create
    with pytest.raises(RestoreFailedError, match="ServiceUnavailable: no answer"):
        await scene.restore(scene.points()[0], **into())

    everything_kept(scene, contents)
    assert held(scene) == scene.source().url
    assert scene.rows("pin!") == []


async def test_a_stranger_on_the_promoted_head(scene):
    """What was proved is what is adopted, to the version."""
    driver, inner = scene.driver(), scene.perform

    async def perform(name, asked):
        if name == "adopt_head":
            blob = scene.blobs.blobs[scene.tools.head(asked["transfer"]["destination"])]
            blob.etag = '"theirs"'
        return await inner(name, asked)

    driver._perform = perform
    with pytest.raises(RestoreFailedError, match=r"HeadAltered.*the next one is full"):
        await scene.restore(scene.points()[0], driver=driver, **into())

    assert scene.catalogue.rows["vm", "policy"].value.source == held(scene) == TARGET


async def test_a_new_disk_that_another_disk_has_claimed(scene):
    driver, inner = scene.driver(), scene.perform

    async def perform(name, asked):
        if name == "commit_point":
            scene.catalogue.claims[TARGET] = "other"
        return await inner(name, asked)

    driver._perform = perform
    with pytest.raises(RestoreFailedError, match="SourceUnfit"):
        await scene.restore(scene.points()[0], driver=driver, adopt=True)

    assert scene.catalogue.claims == {scene.source().url: "vm", TARGET: "other"}
    assert scene.catalogue.rows["vm", "policy"].value.source == scene.source().url
