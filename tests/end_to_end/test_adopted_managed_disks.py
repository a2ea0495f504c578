"""Restores to managed disks that backups go on from, through the real function_app.py, with the stand-in for Resource Manager."""

from __future__ import annotations

import pytest

from devhost.disks import vhd_footer
from devhost.machines import machine_id
from tests.disk import PAGE, Disk, ManagedDisk

MIB = 1024 * 1024
LUN = 3


@pytest.fixture
def blob_disk(platform, calm, machines, name, rng):
    """A protected page blob of 4 MiB, which is a fixed VHD, with two restore points; its VM was converted to managed disks."""
    disk = Disk(platform, name, 4 * MIB + PAGE)
    disk.write(4 * MIB, vhd_footer(4 * MIB))
    disk.size -= PAGE
    platform.protect(name, f"{name}.vhd", machine={"vm": machine_id(name), "lun": LUN})
    for _ in range(2):
        disk.disturb(rng, 6)
        disk.back_up()
    platform.managed_disk(f"{name}-converted", vhd=f"{name}.vhd", machine=name, lun=LUN)
    yield disk
    machines.delete(name)
    disk.service.close()


def to_managed(platform, name, **body):
    return platform.restore(name, {"target": {"kind": "managedDisk"}, "repoint": True, **body})


@pytest.mark.parametrize("signs", [False, True], ids=["footer kept", "footer of its own"])
def test_a_page_blob_becomes_a_managed_disk_without_losing_a_point(blob_disk, platform, machines, rng, signs):
    """The registration follows, the first snapshot equals the point, the next backup is an increment, and all points stay."""
    machines.switch(import_signs=signs)
    first = blob_disk.points()[-1]["id"]
    run = to_managed(platform, blob_disk.name, restorePoint=first)

    assert run["state"] == "Succeeded", run
    disk = ManagedDisk.adopted(blob_disk, run)
    assert platform.machines.source(disk.name, LUN) == disk.id
    assert bytes(disk.content[: disk.disk_bytes]) == blob_disk.moments[first][: disk.disk_bytes]
    shown = platform.api("GET", f"/disks/{disk.name}").json()
    assert (shown["protection"], shown["sourceKind"]) == ("protected", "managedDisk")
    assert shown["source"].lower() == disk.id.lower()
    assert [one["properties"]["diskState"] for one in disk.snapshots()] == ["Unattached"]
    disk.check_every_point()
    disk.write(MIB, rng.randbytes(8 * PAGE))
    increment = disk.back_up()
    assert (increment["kind"], increment["bytesTotal"]) == ("incremental", 8 * PAGE)
    disk.check_every_point()
    disk.blob.close()
