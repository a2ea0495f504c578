"""The nightly timer, on real parts: it cleans up every disk and deletes the histories of old orchestrations."""

from __future__ import annotations

import shutil
from datetime import UTC, datetime, timedelta

import pytest

from devhost.platform import REPOSITORY, Platform, awaited
from tests.disk import PAGE, Disk

MIB = 1024 * 1024


PRETENDING = """
import importlib.util, pathlib
from datetime import datetime

spec = importlib.util.spec_from_file_location("pretending", {file!r})
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)

class Clock(datetime):
    @classmethod
    def now(cls, zone):
        pretended = pathlib.Path({pretended!r})
        return datetime.fromisoformat(pretended.read_text()) if pretended.exists() else datetime.now(zone)

module.datetime = Clock
app = module.app
"""
"""The app, whose timers read the present time from the file `pretended`."""


@pytest.fixture
def own(calm, tmp_path):
    """A platform with a catalogue and backups of its own, whose present time can be set."""
    settings = {"CATALOGUE_TABLE": "house", "HEADS_CONTAINER": "househeads", "PLANS_CONTAINER": "houseplans"}
    app = tmp_path / "app"
    app.mkdir()
    shutil.copy(REPOSITORY / "host.json", app)
    (app / "function_app.py").write_text(
        PRETENDING.format(file=str(REPOSITORY / "function_app.py"), pretended=str(tmp_path / "now"))
    )
    with Platform(tmp_path, storage=calm, settings=settings, app=app) as running:
        yield running, tmp_path


def test_a_night_deletes_only_old_histories(own, name):
    """The history of a run that began HISTORY_DAYS ago is deleted; that of a later run stays, and so do all other young things."""
    platform, folder = own
    disk = Disk(platform, name, MIB).protect()
    disk.write(0, b"\1" * PAGE)
    old = disk.back_up()["id"]
    between = datetime.now(UTC)
    young = disk.back_up()["id"]
    platform.host.settled(f"{disk.name}.")
    points, snapshots = disk.points(), disk.source_snapshots()
    platform.host.fire("purge_history")
    platform.host.fire("housekeeping")

    (house,) = platform.host.settled("house.")
    assert house["runtimeStatus"] == "Completed", house
    assert {one["instanceId"] for one in platform.host.instances(f"{disk.name}.")} == {old, young}
    (folder / "now").write_text((between + timedelta(days=30)).isoformat())
    platform.host.fire("purge_history")
    awaited(lambda: not platform.host.instances(old), "the old history is forgotten")
    assert platform.host.instances(young)
    assert (disk.points(), disk.source_snapshots()) == (points, snapshots)
    assert "timer function" not in platform.host.log.read_text()
    assert platform.api("GET", f"/runs/{old}").json()["state"] == "Succeeded"
    disk.service.close()


def test_without_pruning_by_backups_points_expire_at_night(own, name):
    """With PRUNE_AFTER_BACKUP=false, as for an app whose identity may not delete backups, the night deletes expired points."""
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
        assert [one["points"] for one in platform.host.events() if one["event"] == "cleanup"] == [2]
        disk.service.close()
