"""A restore to a managed disk does what its dry run said: by the same method, under the same names, with no other permission."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import pytest

from backup_core.domain.managed import UPLOAD_BYTES_MIN
from backup_core.domain.repoint import MachineDisk, same_disk
from devhost.disks import vhd_footer
from tests.api.restoring import Starts, give_managed_disk, post
from tests.scene import PAGE, SOURCE, VM, Scene

WAYS = {
    "adopted": {"repoint": True},
    "not adopted": {"repoint": True, "adopt": False},
    "adopted by hand": {"adopt": True},
    "beside": {},
}
RIGHTS = {
    "import": {"disks/write"},
    "upload": {"disks/write", "disks/beginGetAccess/action", "disks/endGetAccess/action"},
}


async def backed_up(kind, lun, size):
    """A scene with a backed-up disk of `size` bytes, whose machine has a managed disk in the slot."""
    stage, pages = Scene(managed=kind == "managed disk"), size // PAGE
    stage.protect(pages=pages + (not stage.managed))
    stage.write(0, 1, 2, None, 4)
    stage.blobs.poke(stage.source(), pages, [vhd_footer(size)])
    await stage.back_up()
    if stage.managed:
        stage.machines.add(VM, MachineDisk("vm", str(stage.source()), managed=True, lun=lun))
    else:
        give_managed_disk(stage)
        machine = stage.machines.machines[VM]
        stage.machines.machines[VM] = replace(machine, disks=(replace(machine.disks[0], lun=lun),))
    return stage


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("kind", "lun", "small", "named", "setting"),
    list(product(("page blob", "managed disk"), (0, None), (False, True), (False, True), ("upload", "import"))),
)
async def test_a_restore_does_what_its_dry_run_said(kind, lun, small, named, setting, way):
    stage = await backed_up(kind, lun, 1024 * 1024 if small else UPLOAD_BYTES_MIN)
    stage.tools = replace(stage.tools, disk_restore=setting)
    stage.blobs.put(stage.tools.disk_blob(f"{SOURCE}/vhds/other.vhd"), PAGE)
    place = {"account": SOURCE, "container": "vhds"} if named else {}
    machine = {"vm": VM, "lun": "os" if lun is None else lun}
    body = {"target": {"kind": "managedDisk", **place}, "machine": machine, **WAYS[way]}
    before, (point,) = stage.dump(with_runs=True), stage.points()
    status, plan, _ = await post(stage, body | {"dryRun": True})
    assert stage.dump(with_runs=True) == before
    if kind == "managed disk" and not named and (small or setting == "import"):
        assert (status, plan["error"]["code"]) == (400, "TargetNeeded")
        return
    assert status == 200, plan
    starts = Starts()
    status, shown, _ = await post(stage, body | {"planHash": plan["planHash"]}, start=starts)
    assert status == 202, shown
    ((name, instance, request),) = starts.requests
    made = stage.port_calls
    await stage.driver().run(name, request, instance)

    run = stage.run_row(shown["id"])
    assert run.state == "Succeeded", run
    assert plan["method"] == ("import" if named or small or setting == "import" else "upload")
    assert (made["create_for_upload"], made["import_disk"]) == ((1, 0) if plan["method"] == "upload" else (0, 1))
    assert (run.restore.target, run.restore.managed_disk, run.restore.adopt) == (
        plan["target"], plan["managedDisk"], plan["adopt"]
    )  # fmt: skip
    slot = stage.machines.machines[VM].at(lun)
    assert (slot.source == plan["managedDisk"]) == ("repoint" in WAYS[way])
    assert stage.blobs.disks[stage.tools.source(plan["managedDisk"])].content() == stage.content(point)
    registered = stage.rows("registration")[0]
    assert same_disk(registered.source, plan["managedDisk"]) == plan["adopt"]
    requested = {permission["action"].removeprefix("Microsoft.Compute/") for permission in plan["permissions"]}
    assert {action for action in requested if action.startswith("disks/")} == RIGHTS[plan["method"]]
    assert (f"write blobs in {SOURCE}/vhds" in requested) == (plan["method"] == "import")
    assert ("virtualMachines/write" in requested) == ("repoint" in WAYS[way])
    assert ("virtualMachines/deallocate/action" in requested) == ("repoint" in WAYS[way] and lun is None)
