"""Restores to managed disks that backups go on from, through the real function_app.py, with the stand-in for Resource Manager."""

from __future__ import annotations

import pytest

from devhost.disks import vhd_footer
from devhost.machines import disk_id, machine_id
from devhost.platform import EVERY_SECOND, Platform
from tests.conftest import SEED
from tests.disk import PAGE, Disk, ManagedDisk
from tests.kills import INVISIBLE, killed_while

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
    disk.close()


def to_managed(platform, name, **body):
    return platform.restore(name, {"target": {"kind": "managedDisk"}, "repoint": True, **body})


@pytest.mark.parametrize("signs", [False, True], ids=["footer kept", "footer of its own"])
def test_a_page_blob_becomes_a_managed_disk_without_losing_a_point(blob_disk, platform, machines, rng, signs):
    """The registration follows, the first snapshot equals the point, the next backup is an increment, and all points stay."""
    machines.switch(import_signs=signs)
    first = blob_disk.points()[-1]["id"]
    run = to_managed(platform, blob_disk.name, restorePoint=first)
    # A run's row ends before what it has opened is closed.
    platform.host.settled(run["id"])

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
    disk.close()


def test_an_os_disk(platform, calm, machines, name, rng):
    """Deallocated, exchanged, started again; the next backup is an increment."""
    disk = Disk(platform, name, 2 * MIB + PAGE)
    disk.write(2 * MIB, vhd_footer(2 * MIB))
    disk.protect()
    disk.write(0, rng.randbytes(40 * PAGE))
    disk.back_up()
    platform.managed_disk(f"{name}-os", vhd=f"{name}.vhd", osType="Linux")
    machines.make(name, os=disk_id(f"{name}-os"))
    run = to_managed(platform, name, machine={"vm": machine_id(name), "lun": "os"})

    assert run["state"] == "Succeeded", run
    new = ManagedDisk.adopted(disk, run)
    assert (machines.source(name, "os"), machines.power(name)) == (new.id, "running")
    new.write(MIB, rng.randbytes(PAGE))
    assert new.back_up()["kind"] == "incremental"
    new.check_every_point()
    machines.delete(name)
    new.close()
    disk.close()


def managed_again(platform, disk, **body):
    """Restore a managed disk into its machine; the page blob between goes to the source account."""
    target = {"kind": "managedDisk", "account": platform.storage.source.blobs, "container": "vhds"}
    return {"target": target, "repoint": True, "machine": {"vm": machine_id(disk.name), "lun": 0}, **body}


@pytest.fixture
def managed_disk(platform, calm, machines, name, rng):
    """A protected managed disk with two restore points, and something written since."""
    disk = ManagedDisk(platform, name, 4 * MIB).protect()
    for _ in range(2):
        disk.disturb(rng, 6)
        disk.back_up()
    disk.disturb(rng, 2)
    yield disk
    machines.delete(name)
    disk.close()


@pytest.mark.parametrize("footer", ["constant", "differs"])
def test_a_managed_disk_is_restored_to_another_twice(managed_disk, platform, machines, rng, footer):
    """Each goes on with an increment; the former disk keeps its last snapshot, and nothing is open."""
    machines.switch(footer=footer)
    former, disk = managed_disk, managed_disk
    for _ in range(2):
        point = rng.choice(sorted(disk.moments))
        run = platform.restore(disk.name, managed_again(platform, disk, restorePoint=point))
        assert run["state"] == "Succeeded", run
        former, disk = disk, ManagedDisk.adopted(disk, run)
        (restored,) = run["restorePoints"]
        assert disk.moments[restored][: disk.disk_bytes] == former.moments[point][: disk.disk_bytes]
        disk.disturb(rng, 3)
        assert disk.back_up()["kind"] == "incremental"
        assert [one["properties"]["diskState"] for one in (*former.snapshots(), *disk.snapshots())] == ["Unattached"] * 2

    disk.check_every_point()
    disk.close()


REFUSED = {"status": 403, "code": "RequestDisallowedByPolicy", "times": 9}
REFUSALS = {
    "import": {"method": "PUT", "path": "-restored-", **REFUSED},
    "import, after it was accepted": {"method": "PUT", "path": "-restored-", "operation": True, "code": "InvalidVhd"},
    "first snapshot": {"method": "PUT", "path": "snapshots/pk-", **REFUSED},
    "access": {"method": "POST", "path": "beginGetAccess", **REFUSED},
    "taking the old disk out": {"method": "PATCH", "path": "virtualMachines", **REFUSED, "times": 1},
    "attaching": {"method": "PATCH", "path": "virtualMachines", "operation": True, "skip": 1, "code": "OperationNotAllowed"},
}


@pytest.mark.parametrize("place", REFUSALS)
def test_what_is_refused_leaves_nothing(managed_disk, platform, machines, place):
    """The machine has its old disk, which is backed up incrementally; of the new one there is no snapshot and no access."""
    machines.faults(REFUSALS[place])
    disk = managed_disk
    run = platform.restore(disk.name, managed_again(platform, disk, restorePoint=min(disk.moments)))
    platform.host.settled(run["id"])
    machines.reset()

    assert run["state"] == "Failed", run
    assert machines.source(disk.name, 0) == disk.id
    assert machines.open(disk.name) == []
    assert [one["properties"]["creationData"]["sourceResourceId"] for one in all_snapshots(platform, disk)] == [disk.id]
    assert platform.api("GET", f"/disks/{disk.name}").json()["protection"] == "protected"
    assert disk.back_up()["kind"] == "incremental"
    disk.check_every_point()


def all_snapshots(platform, disk):
    """Of the disk, and of those that restores have made of it."""
    return [one for one in platform.machines.snapshots() if one["name"].startswith(f"pk-{disk.name}-")]


def test_a_damaged_export_of_the_new_disk(managed_disk, platform, calm, machines):
    """Its snapshot cannot be read: no machine gets the disk, and nothing is left of it."""
    disk = managed_disk
    calm.faults({"verb": "GET blob", "url": "/md-local/", "status": 403, "code": "AuthorizationFailure", "times": 99})
    run = platform.restore(disk.name, managed_again(platform, disk, restorePoint=min(disk.moments)))
    platform.host.settled(run["id"])
    calm.reset()

    assert (run["state"], run["error"]["code"]) == ("Failed", "AccessDenied")
    assert machines.source(disk.name, 0) == disk.id
    assert (machines.open(disk.name), len(all_snapshots(platform, disk))) == ([], 1)
    assert "was not used" in run["restore"]["endState"]
    assert disk.back_up()["kind"] == "incremental"


PLACES = {
    "importing": {"method": "PUT", "path": "-restored-"},
    "first snapshot": {"method": "PUT", "path": "snapshots/pk-"},
    "opening it": {"method": "POST", "path": "beginGetAccess"},
    "comparing it": {"verb": "GET blob", "url": "/md-local/"},
    "taking the old disk out": {"method": "PATCH", "path": "virtualMachines"},
    "putting the new disk in": {"method": "PATCH", "path": "virtualMachines", "skip": 1},
    "adopting the head": {"verb": "PUT metadata", "skip": 1},
    "taking over the footer": {"verb": "PUT page"},
    "snapshot of the head": {"verb": "PUT snapshot"},
    "closing": {"method": "POST", "path": "endGetAccess"},
}
"""Where a restore is when the host dies: while this request is under way."""


@pytest.mark.timeout(600)
def test_a_kill_at_seeded_places(calm, machines, tmp_path, rng):
    """The host dies with the request on its way, comes back, and the restore goes on: adopted once, nothing left open."""
    settings = {
        "BACKUP_SCHEDULE": EVERY_SECOND, "CATALOGUE_TABLE": "adoptionkills", "IN_FLIGHT": "2",
        "DEVHOST_INVISIBLE_SECONDS": INVISIBLE[1],
    }  # fmt: skip
    with Platform(tmp_path, storage=calm, machines=machines, settings=settings) as platform:
        disk = ManagedDisk(platform, "adoptkilled", 2 * MIB).protect()
        disk.disturb(rng, 6)
        disk.back_up()
        for place in rng.sample(sorted(PLACES), 5):
            machines.switch(import_signs=True)
            body = managed_again(platform, disk, restorePoint=rng.choice(sorted(disk.moments)))

            def begin(disk=disk, body=body):
                return platform.api("POST", f"/disks/{disk.name}/restores", body).json()["id"]

            # A run's row ends before what it has opened is closed.
            states = ("NotStarted", "Running", *(("Succeeded",) if place == "closing" else ()))
            run = killed_while(platform, place, PLACES[place], begin, states)
            ended = platform.wait(run)
            platform.host.settled(run)

            told = f"seed {SEED}, killed while {place}: {ended}"
            assert ended["state"] == "Succeeded", told
            new = ManagedDisk.adopted(disk, ended)
            assert machines.source(disk.name, 0) == new.id, told
            assert machines.open(disk.name) == [], told
            assert len(new.snapshots()) == 1, told
            disk.close()
            disk = new
            disk.disturb(rng, 2)
            assert disk.back_up()["kind"] == "incremental", told
        disk.check_every_point()
        machines.delete(disk.name)
        disk.close()
