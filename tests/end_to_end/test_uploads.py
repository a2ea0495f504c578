"""Restores to managed disks by an upload, through the real function_app.py, with the stand-ins for Resource Manager and exports."""

from __future__ import annotations

import pytest

from devhost.disks import vhd_footer
from devhost.machines import disk_id, machine_id
from devhost.platform import EVERY_SECOND, Platform
from tests.conftest import SEED
from tests.disk import PAGE, Disk, ManagedDisk
from tests.end_to_end.test_adopted_managed_disks import all_snapshots
from tests.kills import INVISIBLE, killed_while

MIB = 1024 * 1024
SIZE = 20 * MIB
"""The least that Azure takes an upload of."""
SETTINGS = {"BACKUP_SCHEDULE": EVERY_SECOND, "DISK_RESTORE": "upload", "IN_FLIGHT": "2"}


@pytest.fixture(scope="module")
def uploading(storage, all_machines, tmp_path_factory):
    """The app with DISK_RESTORE=upload, and no storage account that a disk could be imported from."""
    settings = SETTINGS | {"CATALOGUE_TABLE": "uploads", "SOURCE_ACCOUNT_IDS": ""}
    with Platform(tmp_path_factory.mktemp("uploads"), storage=storage, machines=all_machines, settings=settings) as running:
        yield running


@pytest.fixture
def disk(uploading, calm, machines, name, rng):
    """A protected managed disk with two restore points, and something written since."""
    disk = ManagedDisk(uploading, name, SIZE).protect()
    for _ in range(2):
        disk.disturb(rng, 6)
        disk.back_up()
    disk.disturb(rng, 2)
    yield disk
    machines.delete(name)
    disk.close()


def upload(disk, **body):
    return {"target": {"kind": "managedDisk"}, "repoint": True, "machine": {"vm": machine_id(disk.name), "lun": 0}, **body}


def made_of(platform, run):
    """What the managed disk of a restore holds."""
    with platform.managed_content(run["restore"]["managedDisk"]) as blob:
        return blob.download_blob().readall()


@pytest.mark.parametrize("footer", ["constant", "differs"])
def test_a_managed_disk_is_restored_to_another_twice(disk, uploading, machines, rng, footer):
    """Byte for byte; each goes on with an increment, no blob is made beside it, nothing is open."""
    machines.switch(footer=footer, upload_signs=footer == "differs")
    former, present = disk, disk
    for _ in range(2):
        point = rng.choice(sorted(present.moments))
        run = uploading.restore(present.name, upload(present, restorePoint=point))
        assert run["state"] == "Succeeded", run
        assert run["restore"]["target"] == run["restore"]["managedDisk"]
        former, present = present, ManagedDisk.adopted(present, run)
        (restored,) = run["restorePoints"]
        assert present.moments[restored][: present.disk_bytes] == former.moments[point][: present.disk_bytes]
        uploading.host.settled(run["id"])
        assert machines.open(disk.name) == []
        present.disturb(rng, 3)
        assert present.back_up()["kind"] == "incremental"

    present.check_every_point()
    present.close()


def test_a_page_blob_becomes_a_managed_disk_by_an_upload(uploading, calm, machines, name, rng):
    """Not adopted, then adopted: the machine has the point's bytes either way."""
    disk = Disk(uploading, name, SIZE + PAGE)
    disk.write(SIZE, vhd_footer(SIZE))
    disk.size -= PAGE
    uploading.protect(name, f"{name}.vhd", machine={"vm": machine_id(name), "lun": 3})
    disk.disturb(rng, 6)
    disk.back_up()
    uploading.managed_disk(f"{name}-converted", vhd=f"{name}.vhd", machine=name, lun=3)
    (point,) = disk.moments
    alone = uploading.restore(name, {"target": {"kind": "managedDisk"}, "machine": {"vm": machine_id(name), "lun": 3}})
    assert alone["state"] == "Succeeded", alone
    assert made_of(uploading, alone) == disk.moments[point]
    run = uploading.restore(name, {"target": {"kind": "managedDisk"}, "repoint": True})

    assert run["state"] == "Succeeded", run
    new = ManagedDisk.adopted(disk, run)
    assert bytes(new.content) == disk.moments[point]
    assert machines.source(name, 3) == new.id
    new.write(MIB, rng.randbytes(8 * PAGE))
    assert new.back_up()["kind"] == "incremental"
    new.check_every_point()
    machines.delete(name)
    new.close()
    disk.close()


def test_an_os_disk(uploading, calm, machines, name, rng):
    """Deallocated, exchanged, started again; the next backup is an increment."""
    disk = Disk(uploading, name, SIZE + PAGE)
    disk.write(SIZE, vhd_footer(SIZE))
    disk.protect()
    disk.write(0, rng.randbytes(40 * PAGE))
    disk.back_up()
    uploading.managed_disk(f"{name}-os", vhd=f"{name}.vhd", osType="Linux")
    machines.make(name, os=disk_id(f"{name}-os"))
    run = uploading.restore(
        name, {"target": {"kind": "managedDisk"}, "repoint": True, "machine": {"vm": machine_id(name), "lun": "os"}}
    )

    assert run["state"] == "Succeeded", run
    new = ManagedDisk.adopted(disk, run)
    assert (machines.source(name, "os"), machines.power(name)) == (new.id, "running")
    new.write(MIB, rng.randbytes(PAGE))
    assert new.back_up()["kind"] == "incremental"
    new.check_every_point()
    machines.delete(name)
    new.close()
    disk.close()


REFUSED = {"status": 403, "code": "RequestDisallowedByPolicy", "times": 9}
REFUSALS = {
    "making the disk": {"method": "PUT", "path": "-restored-", **REFUSED},
    "making the disk, after it was accepted": {
        "method": "PUT", "path": "-restored-", "operation": True, "code": "OperationNotAllowed",
    },
    "access to it": {"method": "POST", "path": "disks/", "skip": 0, **REFUSED},
    "its end": {"method": "POST", "path": "endGetAccess", **REFUSED, "times": 1},
    "first snapshot": {"method": "PUT", "path": "snapshots/pk-", **REFUSED},
    "attaching": {"method": "PATCH", "path": "virtualMachines", "operation": True, "skip": 1, "code": "OperationNotAllowed"},
}  # fmt: skip


@pytest.mark.parametrize("place", REFUSALS)
def test_what_is_refused_leaves_nothing_open(disk, uploading, machines, place):
    """The machine has its old disk, which is backed up incrementally; of the new one there is no snapshot and no access."""
    machines.faults(REFUSALS[place])
    run = uploading.restore(disk.name, upload(disk, restorePoint=min(disk.moments)))
    uploading.host.settled(run["id"])
    machines.reset()

    assert run["state"] == "Failed", run
    assert REFUSALS[place]["code"] in run["error"]["message"]
    assert machines.source(disk.name, 0) == disk.id
    assert machines.open(disk.name) == []
    assert [one["properties"]["creationData"]["sourceResourceId"] for one in all_snapshots(uploading, disk)] == [disk.id]
    assert disk.back_up()["kind"] == "incremental"
    disk.check_every_point()


PLACES = {
    "making the disk": {"method": "PUT", "path": "-restored-"},
    "opening it": {"method": "POST", "path": "beginGetAccess"},
    "writing it": {"verb": "PUT page", "url": "/md-"},
    "ending the upload": {"method": "POST", "path": "endGetAccess"},
    "reading it back": {"verb": "GET blob", "url": "/md-"},
    "first snapshot": {"method": "PUT", "path": "snapshots/pk-"},
    "putting the new disk in": {"method": "PATCH", "path": "virtualMachines", "skip": 1},
}
"""Where a restore is when the host dies: while this request is under way."""


@pytest.mark.timeout(600)
def test_a_kill_at_each_place(calm, machines, tmp_path, rng):
    """The host dies with the request on its way, comes back, and the restore goes on: adopted once, nothing left open."""
    settings = SETTINGS | {"CATALOGUE_TABLE": "uploadkills", "COPY_MODE": "stream", "DEVHOST_INVISIBLE_SECONDS": INVISIBLE[1]}
    with Platform(tmp_path, storage=calm, machines=machines, settings=settings) as platform:
        disk = ManagedDisk(platform, "uploadkilled", SIZE).protect()
        disk.disturb(rng, 6)
        disk.back_up()
        for place, request in PLACES.items():
            body = upload(disk, restorePoint=rng.choice(sorted(disk.moments)))

            def begin(disk=disk, body=body):
                return platform.api("POST", f"/disks/{disk.name}/restores", body).json()["id"]

            run = killed_while(platform, place, request, begin, ("NotStarted", "Running"))
            ended = platform.wait(run)
            platform.host.settled(run)

            told = f"seed {SEED}, killed while {place}: {ended}"
            assert ended["state"] == "Succeeded", told
            new = ManagedDisk.adopted(disk, ended)
            assert machines.source(disk.name, 0) == new.id, told
            assert machines.open(disk.name) == [], told
            disk.close()
            disk = new
            disk.disturb(rng, 2)
            assert disk.back_up()["kind"] == "incremental", told
        disk.check_every_point()
        machines.delete(disk.name)
        disk.close()
