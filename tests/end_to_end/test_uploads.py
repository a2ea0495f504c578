"""Restores to managed disks by an upload, through the real function_app.py, with the stand-ins for Resource Manager and exports."""

from __future__ import annotations

import pytest

from devhost.machines import machine_id
from devhost.platform import EVERY_SECOND, Platform
from tests.end_to_end import managed_restores as restores
from tests.end_to_end.managed_restores import LUN, MIB, REFUSED, into_its_machine
from tests.kills import INVISIBLE

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
    disk = restores.with_two_points(uploading, name, SIZE, rng)
    yield disk
    machines.delete(name)
    disk.close()


def made_of(platform, run):
    """The content of a restore's managed disk."""
    with platform.managed_content(run["restore"]["managedDisk"]) as blob:
        return blob.download_blob().readall()


@pytest.mark.parametrize("footer", ["constant", "differs"])
def test_a_managed_disk_is_restored_to_another_twice(disk, machines, rng, footer):
    """No intermediate blob is made."""
    machines.switch(footer=footer, upload_signs=footer == "differs")
    runs = restores.restored_twice(disk, rng, into_its_machine)

    assert [run["restore"]["target"] for run in runs] == [run["restore"]["managedDisk"] for run in runs]


def test_a_page_blob_becomes_a_managed_disk_by_an_upload(uploading, calm, machines, name, rng):
    """The machine has the point's bytes whether the disk is adopted or not."""
    disk = restores.converted(uploading, name, SIZE, rng)
    point = max(disk.moments)
    alone = uploading.restore(name, {"target": {"kind": "managedDisk"}, "machine": {"vm": machine_id(name), "lun": LUN}})
    assert alone["state"] == "Succeeded", alone
    assert made_of(uploading, alone) == disk.moments[point]
    run = uploading.restore(name, {"target": {"kind": "managedDisk"}, "repoint": True})

    assert run["state"] == "Succeeded", run
    assert made_of(uploading, run) == disk.moments[point]
    assert machines.source(name, LUN) == run["restore"]["managedDisk"]
    restores.backs_up_as(disk, run, rng).close()
    machines.delete(name)
    disk.close()


def test_an_os_disk_is_restored_by_upload(uploading, calm, machines, name, rng):
    restores.an_os_disk_is_exchanged(uploading, machines, name, SIZE, rng)


REFUSALS = restores.REFUSALS | {
    "making the disk, after it was accepted": {
        "method": "PUT", "path": "-restored-", "operation": True, "code": "OperationNotAllowed",
    },
    "access to it": {"method": "POST", "path": "disks/", "skip": 0, **REFUSED},
    "its end": {"method": "POST", "path": "endGetAccess", **REFUSED, "times": 1},
}  # fmt: skip


@pytest.mark.parametrize("place", REFUSALS)
def test_a_refused_upload_leaves_no_access_open(disk, place):
    restores.refused_leaves_nothing(disk, REFUSALS[place], into_its_machine)


PLACES = restores.PLACES | {
    "writing it": {"verb": "PUT page", "url": "/md-"},
    "ending the upload": {"method": "POST", "path": "endGetAccess"},
    "reading it back": {"verb": "GET blob", "url": "/md-"},
}


@pytest.mark.timeout(600)
def test_a_kill_at_each_place(calm, machines, tmp_path, rng):
    settings = SETTINGS | {"CATALOGUE_TABLE": "uploadkills", "COPY_MODE": "stream", "DEVHOST_INVISIBLE_SECONDS": INVISIBLE[1]}
    with Platform(tmp_path, storage=calm, machines=machines, settings=settings) as platform:
        restores.killed_at_each(platform, "uploadkilled", SIZE, rng, PLACES, into_its_machine)
