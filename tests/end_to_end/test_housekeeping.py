"""The nightly timer, on real parts: it looks at every disk, and old orchestrations are forgotten."""

from __future__ import annotations

import sqlite3

import pytest

from devhost.platform import Platform, awaited
from tests.disk import PAGE, Disk

MIB = 1024 * 1024


@pytest.fixture
def own(calm, tmp_path):
    """A platform whose catalogue and backups are its own."""
    settings = {"CATALOGUE_TABLE": "house", "HEADS_CONTAINER": "househeads", "PLANS_CONTAINER": "houseplans"}
    with Platform(tmp_path, storage=calm, settings=settings) as running:
        yield running, tmp_path


def test_a_night(own, name):
    """Nothing young goes; the history of a run that ended 40 days ago does, that of one that goes on does not."""
    platform, folder = own
    disk = Disk(platform, name, MIB).protect()
    disk.write(0, b"\1" * PAGE)
    old, young = disk.back_up()["id"], disk.back_up()["id"]
    with sqlite3.connect(folder / "host" / "hub.sqlite") as hub:
        hub.execute("UPDATE instances SET created = '2026-01-01T00:00:00.0000000Z' WHERE id = ?", (old,))
    platform.host.settled(f"{disk.name}.")
    points, snapshots = disk.points(), disk.source_snapshots()
    platform.host.fire("housekeeping")
    platform.host.fire("purge_history")

    (house,) = platform.host.settled("house.")
    assert house["runtimeStatus"] == "Completed", house
    awaited(lambda: not platform.host.instances(old), "the old history is forgotten")
    assert platform.host.instances(young)
    assert (disk.points(), disk.source_snapshots()) == (points, snapshots)
    assert "timer function" not in platform.host.log.read_text()
    assert platform.api("GET", f"/runs/{old}").json()["state"] == "Succeeded"
    disk.service.close()


def test_without_the_backups_own_prune_points_go_at_night(own, name):
    """PRUNE_AFTER_BACKUP=false, as for an app whose identity may not delete backups."""
    platform, folder = own
    settings = {"CATALOGUE_TABLE": "house", "HEADS_CONTAINER": "househeads", "PLANS_CONTAINER": "houseplans"}
    with Platform(folder / "other", storage=platform.storage, settings={**settings, "PRUNE_AFTER_BACKUP": "false"}) as unpruned:
        disk = Disk(unpruned, name, MIB)
        unpruned.protect(name, f"{name}.vhd", retention={"keepLast": 1})
        for value in range(3):
            disk.write(0, bytes([value + 1]) * PAGE)
            disk.back_up()
        kept = disk.points()[0]["id"]
        assert len(disk.points()) == 3
        platform.host.fire("housekeeping")

        awaited(lambda: len(disk.points()) == 1, "one restore point is left")
        disk.moments = {kept: disk.moments[kept]}
        with unpruned.blobs(unpruned.storage.backup) as client:
            point = disk.points()[0]
            snapshot = client.get_blob_client("househeads", point["blob"], snapshot=point["snapshot"])
            assert snapshot.download_blob().readall() == disk.moments[kept]
        assert [one["points"] for one in platform.host.events() if one["event"] == "tidied"] == [2]
        disk.service.close()
