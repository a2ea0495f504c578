"""Requests for restores to a managed disk: the app refuses what Azure would refuse, before anything is copied."""

from __future__ import annotations

from dataclasses import replace

import pytest

from backup_core.domain.errors import AccessDeniedError
from backup_core.domain.naming import managed_disk_id
from backup_core.domain.repoint import MachineDisk
from devhost.disks import vhd_footer
from tests.api.restoring import MACHINE, give_managed_disk, post, refused
from tests.scene import GROUP, VM, Scene

KEYS = f"{GROUP}/providers/Microsoft.Compute/diskEncryptionSets/keys"
ACCESS = f"{GROUP}/providers/Microsoft.Compute/diskAccesses/access"
OTHER = VM.replace("virtualMachines/", "virtualMachines/other-")
MANAGED = {"target": {"kind": "managedDisk"}, "repoint": True, "machine": MACHINE}


@pytest.fixture
async def vhd():
    """A scene with a disk whose backup is a fixed VHD, and whose machine has a managed disk."""
    stage = Scene()
    stage.protect(pages=2049)
    stage.blobs.poke(stage.source(), 2048, [vhd_footer(1024 * 1024)])
    await stage.back_up()
    give_managed_disk(stage)
    return stage


async def test_a_restore_to_a_managed_disk_requires_a_vhd(scene):
    give_managed_disk(scene)
    request = {"target": {"kind": "managedDisk"}, "repoint": True}
    error = await refused(scene, request, 409, "NotVhd")
    assert "not the footer of a VHD" in error["message"]
    for wrong in ("a b", "-x", "x" * 79 + "-", "x/y"):
        await refused(scene, {"target": {"kind": "managedDisk", "disk": wrong}, "repoint": True}, 400, "InvalidTarget")
    await refused(scene, {"target": {"kind": "managedDisk", "disk": "old"}, "repoint": True}, 409, "TargetExists")


async def test_a_vhd_becomes_a_managed_disk(monkeypatch):
    stage = Scene()
    stage.protect(pages=2049)
    stage.blobs.poke(stage.source(), 2048, [vhd_footer(1024 * 1024)])
    await stage.back_up()
    give_managed_disk(stage)
    body = {"target": {"kind": "managedDisk"}, "repoint": True, "machine": MACHINE}
    status, shown, _ = await post(stage, body)

    assert status == 202
    assert shown["restore"]["managedDisk"].startswith(managed_disk_id(VM, "vm-restored-"))
    assert shown["restore"]["adopt"] is True
    assert shown["restore"]["oldDisk"] == managed_disk_id(VM, "old")
    assert any("terraform import azurerm_managed_disk" in step for step in shown["restore"]["nextSteps"])
    assert any(
        f'az storage blob delete --auth-mode login --blob-url "{shown["restore"]["target"]}"' in step
        for step in shown["restore"]["nextSteps"]
    )


async def test_a_managed_disk_that_no_machine_gets_leaves_its_blob_to_be_deleted(vhd):
    _, shown, _ = await post(vhd, {"target": {"kind": "managedDisk"}, "machine": MACHINE})
    delete, known = shown["restore"]["nextSteps"]

    assert f'delete --auth-mode login --blob-url "{shown["restore"]["target"]}"' in delete
    assert known.endswith(shown["restore"]["managedDisk"])


@pytest.mark.parametrize("body", [{}, {"target": {"kind": "managedDisk"}, "machine": MACHINE}])
async def test_derived_names_are_those_of_the_plan(vhd, body):
    """Derived names are those of the plan, and each plan has new ones, so that two restores do not clash."""
    _, plan, _ = await post(vhd, {**body, "dryRun": True})
    _, other, _ = await post(vhd, {**body, "dryRun": True})
    status, shown, _ = await post(vhd, {**body, "planHash": plan["planHash"]})

    assert status == 202
    assert (shown["restore"]["target"], shown["restore"]["managedDisk"]) == (plan["target"], plan["managedDisk"])
    assert len(plan["planHash"]) <= 64
    assert other["planHash"][:40] != plan["planHash"][:40] or other["target"] == plan["target"]
    await refused(vhd, {**body, "planHash": plan["planHash"][:40] + "20260101000000" + "0" * 8}, 412, "PlanChanged")


@pytest.mark.parametrize("dry_run", [True, False])
async def test_a_confidential_vm_is_refused(vhd, dry_run):
    vhd.machines.machines[VM] = replace(vhd.machines.machines[VM], security_type="ConfidentialVM")
    error = await refused(vhd, MANAGED | {"dryRun": dry_run}, 409, "ConfidentialMachine")

    assert "restore as a page blob" in error["message"]


@pytest.mark.parametrize("dry_run", [True, False])
@pytest.mark.parametrize(
    ("code", "what_to_set"), [("DiskShared", "maxShares"), ("DiskGuestEncrypted", "encryptionSettingsCollection")]
)
async def test_a_disk_that_must_not_be_exchanged(vhd, code, what_to_set, dry_run):
    """Other machines would stay on the shared disk; a guest finds no keys. Beside the machine, such a disk can be restored."""
    former = managed_disk_id(VM, "old")
    shared = code == "DiskShared"
    vhd.machines.disks[former] = replace(
        vhd.machines.disks[former], guest_encrypted=not shared, unkept=(("maxShares", "2"),) if shared else ()
    )
    if shared:
        vhd.machines.add(OTHER, *vhd.machines.machines[VM].disks)
    error = await refused(vhd, MANAGED | {"dryRun": dry_run}, 409, code)
    _, plan, _ = await post(vhd, {"target": {"kind": "managedDisk"}, "machine": MACHINE, "dryRun": True})

    assert error["target"] == "repoint"
    assert "restore with repoint false" in error["message"]
    assert (OTHER in error["message"]) == shared
    assert any(what_to_set in words for words in plan["warnings"])


async def test_a_disk_that_could_be_shared_and_is_not_is_exchanged(vhd):
    former = managed_disk_id(VM, "old")
    vhd.machines.disks[former] = replace(vhd.machines.disks[former], unkept=(("maxShares", "2"),))
    _, plan, _ = await post(vhd, MANAGED | {"dryRun": True})

    assert any("maxShares of the former disk is 2" in words for words in plan["warnings"])


@pytest.mark.parametrize("dry_run", [True, False])
async def test_an_account_whose_id_is_not_known(vhd, dry_run):
    """Azure cannot import without the account's id; the refusal comes before anything is copied."""
    vhd.tools = replace(vhd.tools, account_ids={})
    error = await refused(vhd, MANAGED | {"dryRun": dry_run}, 409, "AccountIdMissing")

    assert "SOURCE_ACCOUNT_IDS" in error["message"]
    assert "an upload (setting DISK_RESTORE, and no blob named in target) needs no account" in error["message"]


async def test_a_managed_disk_that_may_not_be_protected_is_not_adopted(vhd):
    """By default the machine still gets the disk, and the dry run says why it is not adopted; an explicit adoption is refused."""
    vhd.tools = replace(vhd.tools, disk_groups=())
    _, plan, _ = await post(vhd, MANAGED | {"dryRun": True})
    _, shown, _ = await post(vhd, MANAGED | {"planHash": plan["planHash"]})
    error = await refused(vhd, MANAGED | {"adopt": True}, 409, "NotAdoptable")

    assert (plan["adopt"], shown["restore"]["adopt"]) == (False, False)
    assert any("backups do not continue from the new disk" in one and "DISK_GROUPS" in one for one in plan["warnings"])
    assert "DISK_GROUPS" in error["message"]


async def test_a_managed_disk_is_adopted_only_on_request(vhd):
    _, plan, _ = await post(vhd, MANAGED | {"adopt": False, "dryRun": True})
    _, alone, _ = await post(vhd, {"target": {"kind": "managedDisk"}, "machine": MACHINE, "dryRun": True})
    _, by_hand, _ = await post(vhd, {"target": {"kind": "managedDisk"}, "machine": MACHINE, "adopt": True, "dryRun": True})

    assert (plan["adopt"], alone["adopt"], by_hand["adopt"]) == (False, False, True)
    assert any("as unprotected" in step for step in plan["steps"])
    assert any("first snapshot of the managed disk" in step for step in by_hand["steps"])


async def test_a_managed_disk_with_private_export_needs_a_network_path(vhd):
    """The disk's first snapshot is read before the machine gets it, so the dry run already warns."""
    former = managed_disk_id(VM, "old")
    vhd.machines.disks[former] = replace(vhd.machines.disks[former], network_access="AllowPrivate", disk_access=ACCESS)
    _, plan, _ = await post(vhd, MANAGED | {"dryRun": True})
    _, other, _ = await post(vhd, MANAGED | {"adopt": False, "dryRun": True})

    assert plan["adopt"] is True
    assert any("network path" in one for one in plan["warnings"])
    assert not any("network path" in one for one in other["warnings"])
    assert plan["expectedSeconds"]["high"] >= other["expectedSeconds"]["high"]


async def test_a_managed_disk_that_could_not_be_exported_is_not_adopted(vhd):
    """The new disk has the network access of the former one."""
    former = managed_disk_id(VM, "old")
    vhd.machines.disks[former] = replace(vhd.machines.disks[former], network_access="DenyAll")
    _, plan, _ = await post(vhd, MANAGED | {"dryRun": True})

    assert plan["adopt"] is False
    assert any("DenyAll" in one for one in plan["warnings"])


async def test_properties_that_the_new_disk_cannot_have_are_listed(vhd):
    """The new disk is no ultra disk; the dry run also checks permissions on the resources that the new disk names."""
    former = replace(
        vhd.machines.disks[managed_disk_id(VM, "old")], sku="UltraSSD_LRS", encryption_set=KEYS, disk_access=ACCESS
    )
    vhd.machines.disks[former.disk] = former
    vhd.machines.denied.add("Microsoft.Compute/diskAccesses/read")
    _, shown, _ = await post(vhd, MANAGED | {"dryRun": True})

    assert any("is Premium_LRS, the former one UltraSSD_LRS" in warning for warning in shown["warnings"])
    states = {one["action"]: one["state"] for one in shown["permissions"]}
    assert states[f"Microsoft.Compute/diskEncryptionSets/read on {KEYS}"] == "granted"
    assert states[f"Microsoft.Compute/diskAccesses/read on {ACCESS}"] == "denied"
    await refused(vhd, MANAGED, 403, "PermissionMissing")


async def test_permissions_on_linked_resources_that_cannot_be_read_are_unknown(vhd):
    vhd.machines.disks[managed_disk_id(VM, "old")] = replace(
        vhd.machines.disks[managed_disk_id(VM, "old")], encryption_set=KEYS
    )
    request = vhd.machines.permitted

    async def permitted(resource, actions):
        if resource == KEYS:
            message = "no permission to read permissions"
            raise AccessDeniedError(message)
        return await request(resource, actions)

    vhd.machines.permitted = permitted
    _, shown, _ = await post(vhd, MANAGED | {"dryRun": True})

    states = {one["action"]: one["state"] for one in shown["permissions"]}
    assert states[f"Microsoft.Compute/diskEncryptionSets/read on {KEYS}"] == "unknown"


async def test_permissions_on_data_disks_of_other_groups_are_checked(vhd):
    """The list of data disks is sent whole, and Azure checks each disk."""
    far = managed_disk_id(VM, "far").replace("resourceGroups/web", "resourceGroups/far")
    near, (old,) = managed_disk_id(VM, "near"), vhd.machines.machines[VM].disks
    others = [MachineDisk(disk.rpartition("/")[2], disk, managed=True, lun=lun) for lun, disk in ((1, near), (2, far))]
    vhd.machines.machines[VM] = replace(vhd.machines.machines[VM], disks=(old, *others))
    _, shown, _ = await post(vhd, MANAGED | {"dryRun": True})

    actions = [one["action"] for one in shown["permissions"]]
    assert [one for one in actions if one.startswith("Microsoft.Compute/disks/write on ")] == [
        f"Microsoft.Compute/disks/write on {far}"
    ]
