"""Restores over in-memory ports: the new disk equals the point, the machine gets it, backups continue as increments."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest

from backup_core.domain.ending import HEARTBEAT_MAX
from backup_core.domain.managed import ManagedDisk
from backup_core.domain.naming import managed_disk_id, point_key
from backup_core.domain.records import Slot
from backup_core.domain.repoint import MachineDisk
from backup_core.orchestrations.backup_disk import BackupFailedError
from backup_core.orchestrations.restore_disk import RestoreFailedError
from tests.activities.acts import AGAIN, RUN, TARGET, attached_disk, into, keep, names, on, stop_before
from tests.scene import GROUP, OTHER, PAGE, SOURCE, VM


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
    registration = scene.catalogue.rows["vm", "registration"].value
    assert registration.source == TARGET
    assert scene.claims() == {TARGET: "vm"}
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


async def test_without_repoint_and_adopt_nothing_of_the_protection_changes(scene):
    """The schedule continues to protect the live disk: what is written to it is in the next point, an increment."""
    before = (scene.catalogue.rows["vm", "registration"].value, scene.head_row(), scene.claims())
    point = scene.points()[0]
    await scene.restore(point)

    assert scene.blob(TARGET).content() == scene.content(point)
    assert (scene.catalogue.rows["vm", "registration"].value, scene.head_row(), scene.claims()) == before
    assert (scene.blob(TARGET).snapshots, scene.blob(TARGET).metadata, scene.blob(TARGET).lease) == ({}, {}, "")
    scene.write(9, 90)
    await scene.back_up()
    assert scene.points()[-1].kind == "incremental"
    assert scene.content(scene.points()[-1]) == scene.blob(scene.source().url).content()
    assert not any("restore-" in at.name for at in scene.blobs.blobs)
    assert "protection is unchanged" in on(scene).end


async def test_adopt_without_repoint(scene):
    """The operator exchanges the disk by hand: backups continue from the new one, machines are left alone."""
    point = scene.points()[1]
    content = scene.content(point)
    await scene.restore(point, adopt=True)

    assert attached_disk(scene) == scene.source().url
    assert scene.catalogue.rows["vm", "registration"].value.source == TARGET
    scene.blobs.poke(next(at for at in scene.blobs.blobs if at.url == TARGET), 0, [b"\x11" * PAGE])
    await scene.back_up()
    assert [one.kind for one in scene.points()[-2:]] == ["restored", "incremental"]
    assert scene.content(scene.points()[-2]) == content
    assert scene.content(scene.points()[-1]) == scene.blob(TARGET).content()


async def test_a_restored_os_disk_replaces_the_vms_own(scene):
    """The machine is deallocated, only its VHD is changed, and it runs again."""
    scene.machines.machines.clear()
    scene.blob(scene.source().url).lease = ""
    scene.machine(lun=None)
    await scene.restore(scene.points()[0], **into(None))

    machine = scene.machines.machines[VM]
    assert (attached_disk(scene, None), machine.power, machine.at(None).name) == (TARGET, "running", "vm-disk")
    assert scene.port_calls["deallocate"] == scene.port_calls["start"] == 1
    assert scene.run_row(RUN).state == "Succeeded"


@pytest.mark.parametrize("power", ["deallocated", "stopped"])
async def test_a_machine_that_was_off_is_not_started(scene, power):
    scene.machines.machines.clear()
    scene.blob(scene.source().url).lease = ""
    scene.machine(lun=None, power=power)
    await scene.restore(scene.points()[0], **into(None))

    assert attached_disk(scene, None) == TARGET
    assert scene.port_calls["start"] == 0
    assert scene.run_row(RUN).state == "Succeeded"


async def test_stop_vm_stops_the_machine_for_a_data_disk(scene):
    await scene.restore(scene.points()[0], **into(stop_vm=True))

    assert scene.port_calls["deallocate"] == scene.port_calls["start"] == 1
    assert (attached_disk(scene), scene.machines.machines[VM].power) == (TARGET, "running")


async def test_a_machine_whose_changes_take_their_time(scene):
    """They outlast the call: the machine is looked at again until its last change has succeeded."""
    scene.machines.slow = True
    driver, looks = scene.driver(), []

    async def perform(name, request):
        if name == "move_machine":
            looks.append(name)
            if len(looks) % 3 == 0:
                scene.machines.finish(VM)
        return await scene.perform(name, request)

    driver._perform = perform
    await scene.restore(scene.points()[0], driver=driver, **into())

    assert attached_disk(scene) == TARGET
    assert len(looks) >= 6
    assert scene.run_row(RUN).state == "Succeeded"


async def test_a_point_of_an_older_generation(scene):
    """After a full backup in a new generation, and after a restore: every point stays restorable."""
    await scene.back_up(full=True)
    first, content = scene.points()[0], scene.content(scene.points()[0])
    await scene.restore(scene.points()[1], **into())
    await scene.restore(first, run=AGAIN, target=f"{SOURCE}/vhds/again.vhd", **into(old_disk=TARGET))

    assert attached_disk(scene) == f"{SOURCE}/vhds/again.vhd"
    assert scene.blob(f"{SOURCE}/vhds/again.vhd").content() == content
    assert len({point.generation for point in scene.points()}) == 4
    await scene.back_up()
    assert scene.points()[-1].kind == "incremental"


async def test_a_restore_to_another_account_equals_the_point(scene):
    target = f"{OTHER}/vhds/restored.vhd"
    await scene.restore(scene.points()[0], target=target, adopt=True)

    assert scene.blob(target).content() == scene.content(scene.points()[0])
    await scene.back_up()
    assert scene.points()[-1].kind == "incremental"


async def test_a_tier_is_not_sent_to_another_account(scene):
    """Its kind of account may have none: the service would refuse the blob."""
    scene.blob(scene.source().url).tier = "P30"
    await scene.restore(scene.points()[0], target=f"{OTHER}/vhds/restored.vhd")

    assert scene.blob(f"{OTHER}/vhds/restored.vhd").tier == ""


async def test_a_disk_whose_source_and_registration_are_gone(scene):
    """Point named, target given: the restore points are enough."""
    point = scene.points()[0]
    scene.machines.machines.clear()
    del scene.blobs.blobs[scene.source()]
    del scene.catalogue.rows["vm", "registration"]
    scene.catalogue.claimed.clear()
    await scene.restore(point, target=f"{OTHER}/vhds/back.vhd")

    assert scene.blob(f"{OTHER}/vhds/back.vhd").content() == scene.content(point)


async def test_a_disk_whose_account_is_gone_and_off_the_allow_list(scene):
    """As the runbook has it: the account is lost, its id removed from the deployment, a new one added. Still registered."""
    point = scene.points()[0]
    for blob in [one for one in scene.blobs.blobs if one.account == SOURCE]:
        del scene.blobs.blobs[blob]
    scene.tools = replace(scene.tools, source_accounts=(OTHER,))
    await scene.restore(point, target=f"{OTHER}/vhds/back.vhd")

    assert scene.blob(f"{OTHER}/vhds/back.vhd").content() == scene.content(point)


async def test_a_managed_disk_takes_the_place_of_another(scene):
    """Imported, swapped in by a change of the machine; from then on the disk is shown as unprotected, in words."""
    old, new = managed_disk_id(VM, "old"), managed_disk_id(VM, "new")
    scene.machines.disks[old] = ManagedDisk(old, "Succeeded", "", 512, sku="Premium_LRS")
    scene.machines.machines.clear()
    scene.machines.add(VM, MachineDisk("old", old, managed=True, lun=0))
    await scene.restore(scene.points()[0], **into(managed_disk=new, adopt=False, old_disk=old))

    assert attached_disk(scene) == new
    assert (scene.machines.disks[new].run, scene.machines.disks[new].sku) == (RUN, "Premium_LRS")
    assert scene.machines.machines[VM].at(0).name == "new"
    registration = scene.catalogue.rows["vm", "registration"].value
    assert "the new disk is not backed up" in registration.unprotected
    assert "NOT backed up" in on(scene).end
    with pytest.raises(BackupFailedError, match=r"NotProtected.*the new disk is not backed up"):
        await scene.back_up(run="vm.20260103T000000Z.timer")
    failed = scene.run_row("vm.20260103T000000Z.timer")
    assert (failed.state, failed.error.code) == ("Failed", "NotProtected"), "each window is red for whoever looks"
    assert len(scene.points()) == 3
    assert old in scene.machines.disks


TRAITS = {
    "tier": "P30",
    "encryption": "EncryptionAtRestWithCustomerKey",
    "encryption_set": f"{GROUP}/providers/Microsoft.Compute/diskEncryptionSets/keys",
    "network_access": "AllowPrivate",
    "disk_access": f"{GROUP}/providers/Microsoft.Compute/diskAccesses/access",
    "public_access": "Disabled",
}


async def test_the_new_managed_disk_is_as_the_former_one(scene):
    """Encryption, access, tier, and the account in the request to Azure."""
    old, new = managed_disk_id(VM, "old"), managed_disk_id(VM, "new")
    scene.machines.disks[old] = ManagedDisk(old, "Succeeded", "", 40 * PAGE, sku="Premium_LRS", **TRAITS)
    scene.machines.machines.clear()
    scene.machines.add(VM, MachineDisk("old", old, managed=True, lun=0))
    await scene.restore(scene.points()[0], **into(managed_disk=new, adopt=False, old_disk=old))

    made = scene.machines.disks[new]
    assert {name: getattr(made, name) for name in TRAITS} == TRAITS
    assert made.source == TARGET
    assert scene.machines.accounts[new] == f"{GROUP}/providers/Microsoft.Storage/storageAccounts/source"


async def test_an_os_disk_is_of_the_security_type_of_its_machine(scene):
    """Or Azure would not attach it."""
    old, new = managed_disk_id(VM, "old"), managed_disk_id(VM, "new")
    scene.machines.disks[old] = ManagedDisk(old, "Succeeded", "", 512, security_type="TrustedLaunch")
    scene.machines.machines.clear()
    scene.machines.add(VM, MachineDisk("old", old, managed=True, os_type="Linux"))
    scene.machines.machines[VM] = replace(scene.machines.machines[VM], security_type="TrustedLaunch", generation="V2")
    await scene.restore(scene.points()[0], **into(managed_disk=new, adopt=False, old_disk=old, slot=Slot(VM, None)))

    made = scene.machines.disks[new]
    assert (made.security_type, made.generation, made.os_type) == ("TrustedLaunch", "V2", "Linux")
    assert attached_disk(scene, None) == new


async def test_a_managed_disk_through_an_account_whose_id_is_not_known(scene):
    """The restore is refused with a message before any request to Azure; the machine keeps its disk."""
    old, new = managed_disk_id(VM, "old"), managed_disk_id(VM, "new")
    scene.machines.disks[old] = ManagedDisk(old, "Succeeded", "", 512)
    scene.machines.machines.clear()
    scene.machines.add(VM, MachineDisk("old", old, managed=True, lun=0))
    scene.tools = replace(scene.tools, account_ids={})
    with pytest.raises(RestoreFailedError, match=r"AccountIdMissing.*SOURCE_ACCOUNT_IDS"):
        await scene.restore(scene.points()[0], **into(managed_disk=new, adopt=False, old_disk=old))

    assert (new in scene.machines.disks, attached_disk(scene)) == (False, old)


@pytest.mark.parametrize("other", ["another run's", "of another blob"])
async def test_a_disk_made_by_others_meanwhile_is_kept_though_azure_ignores_the_condition(scene, other):
    """The new disk is read back: one that another run made, or of another blob, is not attached."""
    old, new = managed_disk_id(VM, "old"), managed_disk_id(VM, "new")
    scene.machines.disks[old] = ManagedDisk(old, "Succeeded", "", 512)
    scene.machines.machines.clear()
    scene.machines.add(VM, MachineDisk("old", old, managed=True, lun=0))

    async def faster(wanted, account, location):
        mine, source = (AGAIN, TARGET) if other == "another run's" else (RUN, f"{SOURCE}/vhds/other.vhd")
        scene.machines.disks[wanted.disk] = replace(wanted, state="Succeeded", run=mine, source=source)
        return True

    scene.machines.import_disk = faster
    with pytest.raises(RestoreFailedError, match=r"MachineRefused.*was not made by .* left alone"):
        await scene.restore(scene.points()[0], **into(managed_disk=new, adopt=False, old_disk=old))

    assert attached_disk(scene) == old


async def test_a_restore_by_copy_blob_copies_no_pages_itself(scene):
    """Both copies by the service: no page through plans, sizes and status looked at, content compared."""
    request, driver = scene.restore_request(scene.points()[0], **into()), scene.driver()
    step_input = request.model_copy(update={"full_copy": "blob"}).model_dump(mode="json")
    await driver.run("restore_disk", step_input, request.run)

    assert scene.port_calls["start_copy"] == 2
    assert "apply_shard" not in names(driver)
    assert scene.blob(TARGET).content() == scene.content(scene.points()[0])
    assert "copy_blob" in {name for name, *_ in driver.calls} or driver.executions >= 6
    await scene.back_up()
    assert scene.points()[-1].kind == "incremental"


async def test_the_tier_somebody_chose_is_kept(scene):
    scene.blob(scene.source().url).tier = "P30"
    await scene.restore(scene.points()[0])

    assert scene.blob(TARGET).tier == "P30"


async def test_verification_can_be_set_to_samples(scene):
    request, driver = scene.restore_request(scene.points()[0]), scene.driver()
    step_input = request.model_copy(update={"verification": "sampled"}).model_dump(mode="json")
    await driver.run("restore_disk", step_input, request.run)

    assert [one["full"] for name, one, _ in driver.calls if name == "compare_image"] == [False]


async def test_the_vm_does_not_wait_for_the_promotion(scene):
    """While the new head is still being copied, the machine has its disk already."""
    driver, seen = scene.driver(), []

    async def perform(name, request):
        if name == "compare_image" and request["image"]["becomes"] == "head":
            seen.append(attached_disk(scene))
        return await scene.perform(name, request)

    driver._perform = perform
    await scene.restore(scene.points()[0], driver=driver, **into())

    assert seen[-1] == TARGET


async def test_the_history_of_a_restore_is_bounded(scene):
    """Many shards, a long wait for the disk, a machine that takes hours: each orchestration continues as new in time."""
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
    """It copies meanwhile, names the run it waits for, and continues by itself."""
    backup = await stop_before(scene, "verify_head")
    driver, waited = scene.driver(), []

    async def perform(name, request):
        answer = await scene.perform(name, request)
        if name == "report_progress" and request["phase"] == "queued":
            waited.append(on(scene).attention)
            assert scene.blob(TARGET).content() == scene.content(scene.points()[0])
            assert attached_disk(scene) == scene.source().url
            if len(waited) == 3:
                scene.world.pass_time(HEARTBEAT_MAX + timedelta(minutes=1))
        return answer

    driver._perform = perform
    await scene.restore(scene.points()[0], driver=driver, **into())

    assert len(waited) == 3
    assert backup.run in waited[0]
    assert attached_disk(scene) == TARGET
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

    async def perform(name, request):
        if name == "compare_image" and not done:
            done.append(True)
            scene.write(8, 88)
            await scene.back_up()
        return await scene.perform(name, request)

    driver._perform = perform
    await scene.restore(scene.points()[0], driver=driver, **into())

    assert scene.run_row(RUN).state == "Succeeded"
    assert [point.kind for point in scene.points()][-2:] == ["incremental", "restored"]
    assert scene.head_row().pair.point == scene.points()[-1].point


async def test_a_backup_while_the_machine_is_changed_is_skipped(scene):
    driver, outputs = scene.driver(), []

    async def perform(name, request):
        if name == "move_machine" and not outputs:
            outputs.append((await scene.back_up()).output)
        return await scene.perform(name, request)

    driver._perform = perform
    await scene.restore(scene.points()[0], driver=driver, **into())

    assert outputs[0]["state"] == "skipped"
    assert scene.run_row(RUN).state == "Succeeded"


async def test_two_restores_into_one_machine_at_once(scene):
    """The second finds the machine with another disk than the one it was to replace: it changes nothing."""
    driver, other = scene.driver(), f"{SOURCE}/vhds/other-restored.vhd"

    async def perform(name, request):
        if name == "own_disk" and attached_disk(scene) == scene.source().url:
            await scene.restore(scene.points()[1], run=AGAIN, target=other, **into())
        return await scene.perform(name, request)

    driver._perform = perform
    with pytest.raises(
        RestoreFailedError, match=r"SourceMoved: the disk's source was .*vm\.vhd .* and is .*other-restored\.vhd now"
    ):
        await scene.restore(scene.points()[0], driver=driver, **into())

    assert attached_disk(scene) == other
    assert scene.catalogue.rows["vm", "registration"].value.source == other
    assert scene.run_row(AGAIN).state == "Succeeded"
    assert scene.rows("pin!") == []
    assert scene.head_row().owner is None


async def test_two_adoptions_at_once(scene):
    """The one that comes later finds the disk with another source: it changes nothing."""
    driver, other = scene.driver(), f"{SOURCE}/vhds/other-restored.vhd"

    async def perform(name, request):
        if name == "own_disk" and scene.claims() == {scene.source().url: "vm"}:
            await scene.restore(scene.points()[1], run=AGAIN, target=other, adopt=True)
        return await scene.perform(name, request)

    driver._perform = perform
    with pytest.raises(RestoreFailedError, match="SourceMoved"):
        await scene.restore(scene.points()[0], driver=driver, adopt=True)

    assert scene.claims() == {other: "vm"}
    assert scene.blob(TARGET) is None


async def test_a_machine_that_got_another_disk_since_the_request_is_not_changed(scene):
    """By hand, with the registration as it was: the disk that was to be replaced is not there any more."""
    other = MachineDisk("x", f"{SOURCE}/vhds/by-hand.vhd", managed=False, lun=0)
    scene.blobs.put(scene.source("by-hand"), 32 * PAGE)
    scene.machines.change(VM, other)
    with pytest.raises(RestoreFailedError, match=r"SlotTaken: .*has .*by-hand\.vhd, expected .*vm\.vhd"):
        await scene.restore(scene.points()[0], **into())

    assert attached_disk(scene) == other.source
    assert scene.head_row().repoint == ""


async def test_retention_leaves_the_point_alone_while_it_is_restored(scene):
    keep(scene, 1)
    driver, done = scene.driver(), []
    first = scene.points()[0]

    async def perform(name, request):
        if name == "compare_image" and not done:
            done.append(True)
            await scene.back_up()
            assert first.point in [point.point for point in scene.points()]
        return await scene.perform(name, request)

    driver._perform = perform
    await scene.restore(first, driver=driver)
    assert scene.run_row(RUN).state == "Succeeded"
    await scene.back_up()
    assert first.point not in [point.point for point in scene.points()]


@pytest.mark.parametrize("state", ["deleting", "lost", "quarantined", None])
async def test_a_point_that_disappears_before_its_restore_begins_is_refused(scene, state):
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
