"""kill -9 of the host in the middle of a backup: after the restart, exactly one new point, equal to the disk."""

from __future__ import annotations

import time

import pytest

from devhost.platform import EVERY_SECOND, Platform, awaited
from tests.conftest import SEED
from tests.disk import PAGE, Disk, ManagedDisk
from tests.kills import INVISIBLE, killed_while

MIB = 1024 * 1024


def puts(storage):
    counts = storage.counts()
    return sum(counts.get(verb, {}).get("requests", 0) for verb in ("PUT page-from-url", "PUT clear"))


@pytest.mark.parametrize(("workers", "kills"), [(1, 6), (2, 3)])
def test_kills_at_seeded_offsets(calm, tmp_path, rng, workers, kills):
    """A backup survives the death of the host, or of one of two workers, after some puts were accepted.

    The run ends with one point, byte for byte.
    """
    settings = {
        "BACKUP_SCHEDULE": EVERY_SECOND, "CATALOGUE_TABLE": f"kills{workers}", "IN_FLIGHT": "2", "WAVE_SHARDS": "2",
        "DEVHOST_INVISIBLE_SECONDS": INVISIBLE[workers],
    }  # fmt: skip
    with Platform(tmp_path, storage=calm, settings=settings, workers=workers) as platform:
        disk = Disk(platform, f"killed{workers}", 24 * MIB).protect()
        disk.disturb(rng, 10)
        disk.back_up()
        for kill in range(kills):
            disk.disturb(rng, 4)
            for start in range(12):
                disk.write(start * 2 * MIB, rng.randbytes(MIB))
            known = {point["id"] for point in disk.points()}
            content = bytes(disk.content)
            calm.reset()
            # Slow enough that a kill falls into the copying, fast enough for twenty.
            calm.faults({"verb": "PUT page-from-url", "delayMs": 15, "times": 1000})
            run = platform.api("POST", f"/disks/{disk.name}/backups").json()["id"]
            awaited(lambda: puts(calm), "the first put")
            offset = rng.uniform(0.0, 0.35)
            time.sleep(offset)  # the offset is the experiment
            platform.host.kill()
            platform.host.start()
            ended = platform.wait(run)

            assert ended["state"] == "Succeeded", f"seed {SEED}, kill {kill} at {offset}: {ended}"
            (fresh,) = {point["id"] for point in disk.points()} - known
            disk.moments[fresh] = content
        calm.reset()
        disk.check_every_point()
        assert len(disk.moments) == kills + 1
        disk.service.close()


BACKUP_PLACES = {
    "taking the snapshot": {"method": "PUT", "path": "snapshots/pk-"},
    "opening it": {"method": "POST", "path": "beginGetAccess"},
    "opening the former one": {"method": "POST", "path": "beginGetAccess", "skip": 1},
    "planning": {"verb": "GET pagelist", "url": "/md-local/"},
    "copying": {"verb": "PUT page-from-url", "skip": 2},
    "comparing": {"verb": "GET blob", "url": "/md-local/", "skip": 3},
    "snapshot of the head": {"verb": "PUT snapshot"},
    "committing": {"verb": "POST table", "skip": 1},
    "closing": {"method": "POST", "path": "endGetAccess"},
    "dropping the former snapshot": {"method": "DELETE", "path": "snapshots/pk-"},
}
"""The request of a managed disk's backup that is in progress when the host dies, by its place."""


@pytest.mark.parametrize(("workers", "kills"), [(1, 10), (2, 3)])
def test_a_kill_at_each_place_of_a_managed_disks_backup(calm, machines, tmp_path, rng, workers, kills):
    """A managed disk's backup survives the death of the host, or of one of two workers at some of the places.

    There is one point more, byte for byte; one snapshot is left, and no access to it.
    """
    settings = {
        "BACKUP_SCHEDULE": EVERY_SECOND, "CATALOGUE_TABLE": f"managedkills{workers}", "IN_FLIGHT": "2",
        "DEVHOST_INVISIBLE_SECONDS": INVISIBLE[workers],
    }  # fmt: skip
    with Platform(tmp_path, storage=calm, machines=machines, settings=settings, workers=workers) as platform:
        disk = ManagedDisk(platform, f"mkilled{workers}", 4 * MIB).protect()
        disk.back_up()
        for place in rng.sample(sorted(BACKUP_PLACES), kills):
            for offset in range(0, disk.disk_bytes, MIB):
                disk.write(offset + rng.randrange(1000) * PAGE, rng.randbytes(9 * PAGE))
            known = {point["id"] for point in disk.points()}

            def begin():
                return platform.api("POST", f"/disks/{disk.name}/backups").json()["id"]

            # A run's row ends before what it has opened is closed.
            states = ("NotStarted", "Running", *(("Succeeded",) if place == "closing" else ()))
            run = killed_while(platform, place, BACKUP_PLACES[place], begin, states)
            ended = platform.wait(run)
            platform.host.settled(run)

            told = f"seed {SEED}, killed while {place}: {ended}"
            assert (ended["state"], ended["kind"]) == ("Succeeded", "incremental"), told
            (fresh,) = {point["id"] for point in disk.points()} - known
            disk.moments[fresh] = bytes(disk.content)
            assert [one["properties"]["diskState"] for one in disk.snapshots()] == ["Unattached"], told
        disk.check_every_point()
        disk.close()


PLACES = {
    "planning": {"verb": "GET pagelist"},
    "making the disk": {"verb": "PUT blob"},
    "copying": {"verb": "PUT page-from-url", "skip": 2},
    "shutting it to what is late": {"verb": "PUT properties"},
    "comparing": {"verb": "GET blob"},
    "snapshot of the new disk": {"verb": "PUT snapshot"},
    "taking the mark from it": {"verb": "PUT metadata"},
    "letting go of it": {"verb": "PUT lease", "skip": 3},
    "adopting the head": {"verb": "PUT metadata", "skip": 1},
    "snapshot of the head": {"verb": "PUT snapshot", "skip": 1},
    "committing": {"verb": "POST table", "skip": 2},
    "taking the old disk out": {"method": "PATCH", "path": "virtualMachines"},
    "putting the new disk in": {"method": "PATCH", "path": "virtualMachines", "skip": 1},
}
"""The request of a restore that is in progress when the host dies, by its place."""


@pytest.mark.parametrize(("workers", "kills"), [(1, 8), (2, 3)])
def test_a_kill_at_seeded_places_of_a_restore(calm, machines, tmp_path, rng, workers, kills):
    """A restore survives the death of the host, or of one of two workers, while a request is in progress.

    The machine has the point, byte for byte, once; the next backup is an increment.
    """
    settings = {
        "BACKUP_SCHEDULE": EVERY_SECOND, "CATALOGUE_TABLE": f"restorekills{workers}", "IN_FLIGHT": "2",
        "DEVHOST_INVISIBLE_SECONDS": INVISIBLE[workers],
    }  # fmt: skip
    with Platform(tmp_path, storage=calm, machines=machines, settings=settings, workers=workers) as platform:
        name = f"rekilled{workers}"
        disk = Disk(platform, name, 8 * MIB)
        vm = machines.make(name, data={0: platform.disk_url(f"{name}.vhd")})
        platform.protect(name, f"{name}.vhd", machine={"vm": vm, "lun": 0})
        disk.lease = machines.lease(disk.blob.url)
        for value in range(2):
            disk.disturb(rng, 6)
            for ends in (0, 8 * MIB - PAGE):  # two requests per copy at least, whatever the seed
                disk.write(ends, bytes([value + 1]) * PAGE)
            disk.back_up()
        points = sorted(disk.moments)
        for place in rng.sample(sorted(PLACES), kills):
            request, point = PLACES[place], rng.choice(points)
            body = {"restorePoint": point, "repoint": True}

            def begin(body=body):
                return platform.api("POST", f"/disks/{name}/restores", body).json()["id"]

            run = killed_while(platform, place, request, begin)
            ended = platform.wait(run)

            assert ended["state"] == "Succeeded", f"seed {SEED}, killed while {place}: {ended}"
            disk.moved(machines.source(name, 0))
            disk.lease = machines.lease(disk.blob.url)
            assert disk.read() == disk.moments[point], f"seed {SEED}, killed while {place}"
            (adopted,) = ended["restorePoints"]
            disk.moments[adopted] = disk.moments[point]
            disk.content = bytearray(disk.read())
            disk.disturb(rng, 2)
            assert disk.back_up()["kind"] == "incremental", f"seed {SEED}, killed while {place}"
        disk.check_every_point()
        machines.delete(name)
        disk.service.close()
