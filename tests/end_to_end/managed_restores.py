"""Shared setups, acts and checks of the tests that restore to managed disks, by imports and by uploads."""

from __future__ import annotations

from devhost.disks import vhd_footer
from devhost.machines import disk_id, machine_id
from tests.conftest import SEED
from tests.disk import PAGE, Disk, ManagedDisk
from tests.kills import killed_while

MIB = 1024 * 1024
LUN = 3
REFUSED = {"status": 403, "code": "RequestDisallowedByPolicy", "times": 9}
REFUSALS = {
    "making the disk": {"method": "PUT", "path": "-restored-", **REFUSED},
    "first snapshot": {"method": "PUT", "path": "snapshots/pk-", **REFUSED},
    "attaching": {"method": "PATCH", "path": "virtualMachines", "operation": True, "skip": 1, "code": "OperationNotAllowed"},
}
PLACES = {
    "making the disk": {"method": "PUT", "path": "-restored-"},
    "first snapshot": {"method": "PUT", "path": "snapshots/pk-"},
    "opening it": {"method": "POST", "path": "beginGetAccess"},
    "putting the new disk in": {"method": "PATCH", "path": "virtualMachines", "skip": 1},
}
"""The request of a restore that is in progress when the host dies, by its place."""


def into_its_machine(disk, **body):
    """A restore of the managed disk into its machine."""
    return {"target": {"kind": "managedDisk"}, "repoint": True, "machine": {"vm": machine_id(disk.name), "lun": 0}, **body}


def with_two_points(platform, name, size, rng):
    """A protected managed disk with two restore points, and something written since."""
    disk = ManagedDisk(platform, name, size).protect()
    for _ in range(2):
        disk.disturb(rng, 6)
        disk.back_up()
    disk.disturb(rng, 2)
    return disk


def converted(platform, name, size, rng):
    """A protected page blob that is a fixed VHD, with two restore points; its VM was converted to managed disks."""
    disk = Disk(platform, name, size + PAGE)
    disk.write(size, vhd_footer(size))
    disk.size -= PAGE
    platform.protect(name, f"{name}.vhd", machine={"vm": machine_id(name), "lun": LUN})
    for _ in range(2):
        disk.disturb(rng, 6)
        disk.back_up()
    platform.managed_disk(f"{name}-converted", vhd=f"{name}.vhd", machine=name, lun=LUN)
    return disk


def backs_up_as(former, run, rng):
    """Adopt the managed disk that a restore has made: its next backup is an increment, and every point keeps its content."""
    disk = ManagedDisk.adopted(former, run)
    disk.write(MIB, rng.randbytes(8 * PAGE))
    increment = disk.back_up()
    assert (increment["kind"], increment["bytesTotal"]) == ("incremental", 8 * PAGE)
    disk.check_every_point()
    return disk


def an_os_disk_is_exchanged(platform, machines, name, size, rng):
    """Restore an OS disk into its machine: the machine is deallocated, gets the disk and starts again.

    The machine has a controller that only some disks support; the next backup is an increment.
    """
    disk = Disk(platform, name, size + PAGE)
    disk.write(size, vhd_footer(size))
    disk.protect()
    disk.write(0, rng.randbytes(40 * PAGE))
    disk.back_up()
    able = {"supportedCapabilities": {"diskControllerTypes": "SCSI, NVMe", "acceleratedNetwork": True}}
    platform.managed_disk(f"{name}-os", vhd=f"{name}.vhd", properties={"osType": "Linux", **able})
    machines.make(name, os=disk_id(f"{name}-os"), controller="NVMe")
    body = {"target": {"kind": "managedDisk"}, "repoint": True, "machine": {"vm": machine_id(name), "lun": "os"}}
    run = platform.restore(name, body)

    assert run["state"] == "Succeeded", run
    assert (machines.source(name, "os"), machines.power(name)) == (run["restore"]["managedDisk"], "running")
    backs_up_as(disk, run, rng).close()
    machines.delete(name)
    disk.close()


def restored_twice(disk, rng, body):
    """Restore a disk twice, byte for byte, and return the two runs.

    After each restore an increment follows, the former disk keeps its last snapshot, and nothing is open.
    """
    platform, runs, present = disk.platform, [], disk
    for _ in range(2):
        point = rng.choice(sorted(present.moments))
        run = platform.restore(present.name, body(present, restorePoint=point))
        assert run["state"] == "Succeeded", run
        former, present = present, ManagedDisk.adopted(present, run)
        (restored,) = run["restorePoints"]
        assert present.moments[restored][: present.disk_bytes] == former.moments[point][: present.disk_bytes]
        # A run's row ends before what it has opened is closed.
        platform.host.settled(run["id"])
        assert platform.machines.open(disk.name) == []
        present.disturb(rng, 3)
        assert present.back_up()["kind"] == "incremental"
        assert [one["properties"]["diskState"] for one in (*former.snapshots(), *present.snapshots())] == ["Unattached"] * 2
        runs.append(run)

    present.check_every_point()
    present.close()
    return runs


def refused_leaves_nothing(disk, fault, body):
    """Show that after a refused restore the machine keeps its old disk, which is backed up incrementally.

    Of the new disk there is no snapshot and no access.
    """
    platform, machines = disk.platform, disk.platform.machines
    machines.faults(fault)
    run = platform.restore(disk.name, body(disk, restorePoint=min(disk.moments)))
    platform.host.settled(run["id"])
    machines.reset()

    assert run["state"] == "Failed", run
    assert fault["code"] in run["error"]["message"]
    assert machines.source(disk.name, 0) == disk.id
    assert machines.open(disk.name) == []
    assert [one["properties"]["creationData"]["sourceResourceId"] for one in all_snapshots(disk)] == [disk.id]
    assert platform.api("GET", f"/disks/{disk.name}").json()["protection"] == "protected"
    assert disk.back_up()["kind"] == "incremental"
    disk.check_every_point()


def all_snapshots(disk):
    """The snapshots of the disk, and of the disks that restores have made of it."""
    return [one for one in disk.platform.machines.snapshots() if one["name"].startswith(f"pk-{disk.name}-")]


def killed_at_each(platform, name, size, rng, places, body, **switches):
    """Kill the host at each request in turn: the restarted host completes the restore, adopted once, with nothing left open.

    `switches` are those of the stand-in for Resource Manager.
    """
    machines = platform.machines
    disk = ManagedDisk(platform, name, size).protect()
    disk.disturb(rng, 6)
    disk.back_up()
    for place, request in places.items():
        machines.switch(**switches)
        wanted = body(disk, restorePoint=rng.choice(sorted(disk.moments)))

        def begin(disk=disk, wanted=wanted):
            return platform.api("POST", f"/disks/{disk.name}/restores", wanted).json()["id"]

        # A run's row ends before what it has opened is closed.
        states = ("NotStarted", "Running", *(("Succeeded",) if place == "closing" else ()))
        run = killed_while(platform, place, request, begin, states)
        ended = platform.wait(run)
        platform.host.settled(run)

        details = f"seed {SEED}, killed while {place}: {ended}"
        assert ended["state"] == "Succeeded", details
        new = ManagedDisk.adopted(disk, ended)
        assert machines.source(disk.name, 0) == new.id, details
        assert machines.open(disk.name) == [], details
        assert len(new.snapshots()) == 1, details
        disk.close()
        disk = new
        disk.disturb(rng, 2)
        assert disk.back_up()["kind"] == "incremental", details
    disk.check_every_point()
    machines.delete(disk.name)
    disk.close()
