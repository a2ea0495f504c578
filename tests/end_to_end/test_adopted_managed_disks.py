"""Restores to managed disks that backups then continue with, through the real function_app.py.

The stand-in for Resource Manager answers. The disks are smaller than Azure accepts for an upload, or are made from a blob's
name: they are imported.
"""

from __future__ import annotations

import pytest

from devhost.platform import EVERY_SECOND, Platform
from tests.disk import ManagedDisk
from tests.end_to_end import managed_restores as restores
from tests.end_to_end.managed_restores import LUN, MIB, REFUSED, all_snapshots, into_its_machine
from tests.kills import INVISIBLE


@pytest.fixture
def blob_disk(platform, calm, machines, name, rng):
    """A protected page blob of 4 MiB, which is a fixed VHD, with two restore points; its VM was converted to managed disks."""
    disk = restores.converted(platform, name, 4 * MIB, rng)
    yield disk
    machines.delete(name)
    disk.close()


@pytest.mark.parametrize("signs", [False, True], ids=["footer kept", "footer of its own"])
def test_a_page_blob_becomes_a_managed_disk_without_losing_a_point(blob_disk, platform, machines, rng, signs):
    """The registration follows, the first snapshot equals the point, the next backup is an increment, and all points stay."""
    machines.switch(import_signs=signs)
    first = blob_disk.points()[-1]["id"]
    run = platform.restore(blob_disk.name, {"target": {"kind": "managedDisk"}, "repoint": True, "restorePoint": first})
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
    disk.close()
    restores.backs_up_as(blob_disk, run, rng).close()


def test_an_os_disk_is_restored_by_import(platform, calm, machines, name, rng):
    restores.an_os_disk_is_exchanged(platform, machines, name, 2 * MIB, rng)


def imported(disk, **body):
    """Restore a managed disk into its machine by import; the intermediate page blob lies in the source account."""
    target = {"kind": "managedDisk", "account": disk.platform.storage.source.blobs, "container": "vhds"}
    return into_its_machine(disk, target=target, **body)


@pytest.fixture
def managed_disk(platform, calm, machines, name, rng):
    """A protected managed disk with two restore points, and something written since."""
    disk = restores.with_two_points(platform, name, 4 * MIB, rng)
    yield disk
    machines.delete(name)
    disk.close()


@pytest.mark.parametrize("footer", ["constant", "differs"])
def test_a_managed_disk_is_restored_to_another_twice(managed_disk, machines, rng, footer):
    """Each restore uses an intermediate page blob."""
    machines.switch(footer=footer)
    runs = restores.restored_twice(managed_disk, rng, imported)

    assert all(run["restore"]["target"] != run["restore"]["managedDisk"] for run in runs)


REFUSALS = restores.REFUSALS | {
    "import, after it was accepted": {"method": "PUT", "path": "-restored-", "operation": True, "code": "InvalidVhd"},
    "access": {"method": "POST", "path": "beginGetAccess", **REFUSED},
    "taking the old disk out": {"method": "PATCH", "path": "virtualMachines", **REFUSED, "times": 1},
}


@pytest.mark.parametrize("place", REFUSALS)
def test_a_refused_restore_leaves_no_disk(managed_disk, place):
    restores.refused_leaves_nothing(managed_disk, REFUSALS[place], imported)


def test_a_new_disk_whose_export_is_damaged_is_discarded(managed_disk, platform, calm, machines):
    """The new disk's snapshot cannot be read: no machine gets the disk, and nothing is left of it."""
    disk = managed_disk
    calm.faults({"verb": "GET blob", "url": "/md-local/", "status": 403, "code": "AuthorizationFailure", "times": 99})
    run = platform.restore(disk.name, imported(disk, restorePoint=min(disk.moments)))
    platform.host.settled(run["id"])
    calm.reset()

    assert (run["state"], run["error"]["code"]) == ("Failed", "AccessDenied")
    assert machines.source(disk.name, 0) == disk.id
    assert (machines.open(disk.name), len(all_snapshots(disk))) == ([], 1)
    assert "was not used" in run["restore"]["endState"]
    assert disk.back_up()["kind"] == "incremental"


PLACES = restores.PLACES | {
    "comparing it": {"verb": "GET blob", "url": "/md-local/"},
    "taking the old disk out": {"method": "PATCH", "path": "virtualMachines"},
    "adopting the head": {"verb": "PUT metadata", "skip": 1},
    "taking over the footer": {"verb": "PUT page"},
    "snapshot of the head": {"verb": "PUT snapshot"},
    "closing": {"method": "POST", "path": "endGetAccess"},
}


@pytest.mark.timeout(600)
def test_a_kill_at_seeded_places(calm, machines, tmp_path, rng):
    settings = {
        "BACKUP_SCHEDULE": EVERY_SECOND, "CATALOGUE_TABLE": "adoptionkills", "IN_FLIGHT": "2",
        "DEVHOST_INVISIBLE_SECONDS": INVISIBLE[1],
    }  # fmt: skip
    places = {place: PLACES[place] for place in rng.sample(sorted(PLACES), 5)}
    with Platform(tmp_path, storage=calm, machines=machines, settings=settings) as platform:
        restores.killed_at_each(platform, "adoptkilled", 2 * MIB, rng, places, imported, import_signs=True)
