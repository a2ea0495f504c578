"""Restores to a managed disk by upload need no storage account; a disk that cannot be uploaded is imported."""

from __future__ import annotations

from dataclasses import replace

import pytest

from backup_core.domain.managed import UPLOAD_BYTES_MIN
from backup_core.domain.naming import managed_disk_id
from backup_core.domain.repoint import MachineDisk
from devhost.disks import vhd_footer
from tests.api.restoring import MACHINE, give_managed_disk, post, refused
from tests.scene import GROUP, PAGE, SOURCE, VM, Scene

KEYS = f"{GROUP}/providers/Microsoft.Compute/diskEncryptionSets/keys"
ACCESS = f"{GROUP}/providers/Microsoft.Compute/diskAccesses/access"
MANAGED = {"target": {"kind": "managedDisk"}, "repoint": True, "machine": MACHINE}
PLAN = MANAGED | {"dryRun": True}
PAGES = UPLOAD_BYTES_MIN // PAGE


@pytest.fixture(params=["page blob", "managed disk"])
async def vhd(request):
    """A scene with a disk whose backup is a fixed VHD, and whose machine has a managed disk."""
    stage = Scene(managed=request.param == "managed disk")
    stage.protect(pages=PAGES if stage.managed else PAGES + 1)
    stage.blobs.poke(stage.source(), PAGES, [vhd_footer(UPLOAD_BYTES_MIN)])
    await stage.back_up()
    if stage.managed:
        stage.machines.add(VM, MachineDisk("vm", str(stage.source()), managed=True, lun=0))
    else:
        give_managed_disk(stage)
    stage.tools = replace(stage.tools, disk_restore="upload", account_ids={})
    return stage


def states(plan):
    return {one["action"]: one["state"] for one in plan["permissions"]}


async def test_a_managed_disk_is_uploaded_without_a_storage_account(vhd):
    """An upload needs neither a storage account nor an account's resource id."""
    _, plan, _ = await post(vhd, PLAN)
    status, shown, _ = await post(vhd, MANAGED | {"planHash": plan["planHash"]})

    assert status == 202
    assert plan["method"] == "upload"
    assert shown["restore"]["target"] == shown["restore"]["managedDisk"] == plan["target"] == plan["managedDisk"]
    assert shown["restore"]["managedDisk"].startswith(managed_disk_id(VM, "vm-restored-"))
    assert not any("storage blob delete" in step for step in shown["restore"]["nextSteps"])
    assert any(f"to the new managed disk {plan['target']}" in step for step in plan["steps"])
    assert not any("import" in step for step in plan["steps"])


async def test_the_permissions_of_an_upload_are_checked(vhd):
    vhd.machines.denied.add("Microsoft.Compute/disks/endGetAccess/action")
    _, plan, _ = await post(vhd, PLAN)

    assert states(plan)["Microsoft.Compute/disks/write"] == "granted"
    assert states(plan)["Microsoft.Compute/disks/beginGetAccess/action"] == "granted"
    assert states(plan)["Microsoft.Compute/disks/endGetAccess/action"] == "denied"
    assert not any("write blobs" in action for action in states(plan))
    await refused(vhd, MANAGED, 403, "PermissionMissing")


@pytest.mark.parametrize("place", [{"account": SOURCE}, {"container": "vhds"}, {"blob": "new.vhd"}])
async def test_a_call_that_names_a_blob_imports_it(vhd, place):
    vhd.tools = replace(vhd.tools, account_ids={SOURCE: f"{GROUP}/providers/Microsoft.Storage/storageAccounts/source"})
    vhd.blobs.put(vhd.tools.disk_blob(f"{SOURCE}/vhds/other.vhd"), 512)
    whole = {"account": SOURCE, "container": "vhds"} | place
    _, plan, _ = await post(vhd, PLAN | {"target": {"kind": "managedDisk", **whole}})

    assert plan["method"] == "import"
    assert plan["target"].startswith(f"{SOURCE}/vhds/")
    assert any("import" in step for step in plan["steps"])


async def test_the_setting_import_prevents_an_upload(vhd):
    vhd.tools = replace(vhd.tools, disk_restore="import")
    if vhd.managed:
        await refused(vhd, MANAGED, 400, "TargetNeeded")
    else:
        await refused(vhd, MANAGED, 409, "AccountIdMissing")


@pytest.mark.parametrize(
    ("former", "why"),
    [
        ({"encryption_set": KEYS, "disk_access": ACCESS}, "both a disk access and an encryption set"),
        ({"network_access": "DenyAll"}, "DenyAll"),
    ],
)
async def test_a_disk_that_cannot_be_uploaded_is_imported(vhd, former, why):
    """The dry run says why; so does the refusal where the call must name a blob for the import."""
    (disk,) = vhd.machines.machines[VM].disks
    vhd.machines.disks[disk.source] = replace(vhd.machines.disks[disk.source], **former)
    vhd.tools = replace(vhd.tools, account_ids={SOURCE: f"{GROUP}/providers/Microsoft.Storage/storageAccounts/source"})
    if vhd.managed:
        error = await refused(vhd, MANAGED, 400, "TargetNeeded")
        assert why in error["message"]
        return
    _, plan, _ = await post(vhd, PLAN)

    assert plan["method"] == "import"
    assert any(why in one for one in plan["warnings"])


async def test_the_os_disk_of_a_trusted_launch_machine_is_imported(vhd):
    machine = vhd.machines.machines[VM]
    (disk,) = machine.disks
    vhd.machines.machines[VM] = replace(machine, security_type="TrustedLaunch", disks=(replace(disk, lun=None),))
    body = PLAN | {"machine": {"vm": VM, "lun": "os"}}
    if vhd.managed:
        error = await refused(vhd, body, 400, "TargetNeeded")
        assert "TrustedLaunch" in error["message"]
        return
    await refused(vhd, body, 409, "AccountIdMissing")


async def test_a_plan_for_a_page_blob_names_no_method(vhd):
    if vhd.managed:
        return
    _, plan, _ = await post(vhd, {"dryRun": True})

    assert plan["method"] is None


async def test_a_disk_that_is_too_small_for_an_upload_is_imported():
    stage = Scene()
    stage.protect(pages=PAGES - 2047)
    stage.blobs.poke(stage.source(), PAGES - 2048, [vhd_footer(UPLOAD_BYTES_MIN - 1024 * 1024)])
    await stage.back_up()
    give_managed_disk(stage)
    stage.tools = replace(stage.tools, disk_restore="upload")
    _, plan, _ = await post(stage, PLAN)

    assert plan["method"] == "import"
    assert any("less than" in one for one in plan["warnings"])
