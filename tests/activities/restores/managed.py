"""The disk that tests of restores to managed disks begin with, and the night after them."""

from __future__ import annotations

from backup_core.domain.managed import ManagedDisk
from backup_core.domain.naming import managed_disk_id
from backup_core.domain.repoint import MachineDisk
from backup_core.steps.housekeeping import CleanUpDisk
from devhost.disks import vhd_footer
from tests.scene import PAGE, VM, Scene

OLD, NEW = managed_disk_id(VM, "old"), managed_disk_id(VM, "new")
KINDS = ["page blob", "managed disk"]
NIGHT = CleanUpDisk(disk="vm", actor="house.20260105", lease="00000000-0000-0000-0000-00000000000a", run_days=180)


async def machine_with_managed_disk(kind, wanted, *, vhd=False):
    """A disk of that kind with three restore points, whose machine has a managed disk: that disk, or its conversion.

    With `vhd` a page blob ends with the footer of one.
    """
    scene = Scene(managed=kind == "managed disk")
    if vhd and not scene.managed:
        scene.protect(pages=33)
        scene.blobs.poke(scene.source(), 32, [vhd_footer(32 * PAGE)])
    else:
        scene.protect()
    scene.write(0, 1, 2, 3, None, 5)
    for value in (30, 60, 90):
        await scene.back_up()
        scene.write(6, value)
    old = str(scene.source()) if scene.managed else OLD
    scene.machines.disks[old] = ManagedDisk(old, "Succeeded", "", 32 * PAGE, sku="Premium_LRS")
    scene.machines.add(VM, MachineDisk("old", old, managed=True, lun=0))
    scene.wanted = wanted | {"old_disk": old}
    return scene
