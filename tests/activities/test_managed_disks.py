"""Backups of managed disks: they wait until a snapshot is filled and end each access; disks made anew or grown."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest

from backup_core.activities.housekeeping import clean_up_disk
from backup_core.domain.ending import HEARTBEAT_MAX
from backup_core.domain.errors import AccessDeniedError, ServiceUnavailableError
from backup_core.domain.events import RunWarned
from backup_core.domain.metadata import source_snapshot_metadata
from backup_core.orchestrations.backup_disk import BackupFailedError
from backup_core.orchestrations.backup_fleet import FleetFailedError
from backup_core.orchestrations.kit import LOOKS_PER_EXECUTION
from backup_core.steps.backup import FleetRequest
from backup_core.steps.housekeeping import CleanUpDisk
from tests.activities.acts import (
    FINAL,
    STEPS_OF_A_BACKUP,
    before_step,
    cancel,
    canceled_before,
    failing,
    names,
    rebuild,
    stop_before,
)
from tests.doubles.azure_disks import Taken
from tests.scene import PAGE, Scene

NO_RUN = "vm.20260101T000000Z.timer"
"""A run that no row names."""
NIGHT = CleanUpDisk(disk="vm", actor="house.20260105", lease="00000000-0000-0000-0000-00000000000a", run_days=180)


@pytest.fixture
def scene():
    stage = Scene(managed=True)
    stage.protect()
    stage.write(0, 1, 2, 3, None, 5)
    return stage


def disk(scene):
    return scene.blobs.disks[scene.source()]


def right(scene):
    """Whether the newest restore point is the disk as it is."""
    return scene.content(scene.points()[-1]) == disk(scene).content()


# -- access ---------------------------------------------------------------------------------------------------------------


async def test_a_run_ends_its_export_access_and_keeps_one_snapshot(scene):
    for value in range(3):
        scene.write(value, 40 + value)
        await scene.back_up()

        assert scene.blobs.open == set()
        assert list(disk(scene).snapshots) == [scene.head_row().pair.source_snapshot]
        assert right(scene)


def copied_by_two_processes(scene, place):
    """A backup by Copy Blob of a service whose second grant ends the first. Another process has the same delivery: it comes to its
    end while this one's is at the port call `place`, each time there is one.
    """
    scene.blobs.cloud.grant_extends, scene.blobs.copies_delayed = False, True
    process, before, driver, beside = ["one"], scene.world.before, scene.driver(), []
    scene.blobs.process = lambda: process[0]

    async def met(name):
        if name == place and process == ["one"] and beside:
            process[0] = "two"
            beside.append(await scene.perform("start_copy", beside.pop()))
            process[0] = "one"
            beside.clear()
        await before(name)

    async def perform(name, step_input):
        if name == "start_copy":
            beside.append(step_input)
        if name == "check_copy":
            for address, blob in scene.blobs.blobs.items():
                if blob.arriving:
                    scene.blobs.end_copy(address, "success" if scene.blobs.can_arrive(address) else "failed")
        answer = await scene.perform(name, step_input)
        beside.clear()
        return answer

    scene.world.before, driver._perform = met, perform
    return driver


@pytest.mark.parametrize("place", ["grant", "start_copy"])
async def test_two_processes_that_copy_at_once_copy_the_disk(scene, place):
    """Two copies at once fill one disk correctly.

    The one's access ends while the other's copy reads by it, or before its own has begun: the failed copy is begun again, and
    whose copy is there already is used.
    """
    request, driver = scene.request(full_copy="blob"), copied_by_two_processes(scene, place)
    output = await driver.run("backup_disk", request.model_dump(mode="json"), request.run)

    assert output["state"] == "Succeeded"
    assert scene.blobs.open == set()
    assert scene.points()[0].kind == "full"
    assert right(scene)


async def test_a_copy_whose_access_is_lost_each_time_is_begun_later(scene):
    """Others open the snapshot just before each request of the first delivery: the failure is a temporary one."""
    before, lost = scene.world.before, []
    scene.blobs.cloud.grant_extends = False

    async def losing(name):
        if name == "start_copy" and len(lost) < 2:
            lost.append(name)
            for one in scene.blobs.cloud.all():
                scene.blobs.cloud.revoke(one)
        await before(name)

    scene.world.before = losing
    driver = await scene.back_up(full_copy="blob")

    assert len(lost) == 2
    assert names(driver).count("start_copy") == 2
    assert right(scene)


@pytest.mark.parametrize("step", STEPS_OF_A_BACKUP)
async def test_a_canceled_run_leaves_nothing_open(scene, step):
    await scene.back_up()
    scene.write(6, 61)
    await canceled_before(scene, step)

    assert scene.blobs.open == set()
    assert scene.head_row().owner is None


async def test_a_failed_run_leaves_nothing_open(scene):
    driver = failing(scene, "verify_head", FINAL)
    request = scene.request()
    with pytest.raises(BackupFailedError):
        await driver.run("backup_disk", request.model_dump(mode="json"), request.run)

    assert scene.blobs.open == set()


async def test_the_export_access_of_a_dead_run_is_ended_by_the_night_or_the_next_run(scene):
    """Not while it lives: it reads."""
    await scene.back_up()
    scene.write(6, 61)
    await stop_before(scene, "verify_head")
    opened = set(scene.blobs.open)
    assert opened
    await clean_up_disk(scene.tools, NIGHT)
    assert scene.blobs.open == opened
    scene.world.pass_time(HEARTBEAT_MAX + timedelta(minutes=1))
    await clean_up_disk(scene.tools, NIGHT)
    assert scene.blobs.open == set()
    await scene.back_up()

    assert scene.blobs.open == set()
    assert right(scene)


async def test_a_run_that_lost_the_disk_ends_nobody_elses_access(scene):
    """Its end comes late, while another run reads."""
    request = await stop_before(scene, "apply_shard")
    scene.world.pass_time(HEARTBEAT_MAX + timedelta(minutes=1))
    lease = scene.head_row().owner.lease

    def late(_):
        opened = set(scene.blobs.open)
        assert opened

        async def ends():
            end = {"disk": "vm", "run": request.run, "lease": lease, "state": "Failed"}
            await scene.perform("finish_run", end)
            assert scene.blobs.open == opened

        return ends()

    driver = before_step(scene, "verify_head", late)
    following = scene.request()
    await driver.run("backup_disk", following.model_dump(mode="json"), following.run)

    assert scene.run_row(following.run).state == "Succeeded"


async def test_access_that_cannot_be_ended_is_a_warning_and_left_to_the_night(scene):
    close = scene.blobs.close_access

    async def refused(source):
        raise AccessDeniedError(f"{source}: not permitted")

    scene.blobs.close_access = refused
    await scene.back_up()
    assert scene.rows("run!")[0].state == "Succeeded"
    assert any("stays open until the night" in one.message for one in scene.journal.events if isinstance(one, RunWarned))
    assert scene.head_row().owner is None
    assert scene.blobs.open
    scene.blobs.close_access = close
    await clean_up_disk(scene.tools, NIGHT)

    assert scene.blobs.open == set()


async def test_a_step_is_tried_again_after_a_temporary_fault_before_the_disk_is_released(scene):
    close, faults = scene.blobs.close_access, [ServiceUnavailableError("busy")]

    async def busy(source):
        if faults:
            raise faults.pop()
        await close(source)

    scene.blobs.close_access = busy
    driver = await scene.back_up()

    assert names(driver).count("finish_run") == 2
    assert scene.blobs.open == set()
    assert scene.head_row().owner is None


async def test_a_page_blobs_run_has_nothing_to_end():
    stage = Scene()
    stage.protect()
    await stage.back_up()

    assert stage.port_calls["close_access"] == 0


# -- snapshots that are filled in the background --------------------------------------------------------------------------


async def test_a_run_waits_until_its_snapshot_is_filled(scene):
    """By the same step, which finds it again; meanwhile nothing is read, and one snapshot is taken."""
    scene.blobs.fill_percent = 30
    driver = await scene.back_up()

    assert names(driver).count("take_source_snapshot") == 4
    assert len(disk(scene).snapshots) == 1
    assert right(scene)


async def test_a_slow_snapshot_continues_in_new_executions(scene):
    scene.blobs.fill_percent = 2
    driver = await scene.back_up()

    assert names(driver).count("take_source_snapshot") == 50
    assert driver.executions > 50 // LOOKS_PER_EXECUTION
    assert right(scene)


async def test_a_snapshot_that_is_never_filled_fails_the_run_and_the_next_takes_another(scene):
    scene.blobs.fill_percent = 0
    with pytest.raises(BackupFailedError, match="SnapshotNotReady"):
        await scene.back_up()
    failed = scene.rows("run!")[0]
    assert failed.error.code == "SnapshotNotReady"
    assert "0 percent after 1 day" in failed.error.message
    assert scene.head_row().owner is None
    scene.blobs.fill_percent = 100
    await scene.back_up()

    assert right(scene)
    assert scene.head_row().pair.source_snapshot not in failed.source_snapshots


async def test_a_snapshot_that_azure_gives_up_fails_the_run_at_once(scene):
    scene.blobs.fill_percent, scene.blobs.fill_failure = 50, "the source disk was resized"
    driver = before_step(scene, "finish_run", lambda _: None)
    request = scene.request()
    with pytest.raises(BackupFailedError, match="the source disk was resized"):
        await driver.run("backup_disk", request.model_dump(mode="json"), request.run)

    assert names(driver).count("take_source_snapshot") == 1
    assert scene.run_row(request.run).error.code == "SnapshotNotReady"


async def test_a_run_that_waits_for_its_snapshot_is_canceled(scene):
    scene.blobs.fill_percent = 1
    request = scene.request()
    driver = before_step(scene, "take_source_snapshot", lambda _: cancel(scene, request.run), count=3)
    output = await driver.run("backup_disk", request.model_dump(mode="json"), request.run)

    assert output["state"] == scene.run_row(request.run).state == "Canceled"
    assert scene.head_row().owner is None


async def test_a_fault_that_comes_while_the_run_waits_ends_it(scene):
    scene.blobs.fill_percent = 1
    request = scene.request()

    def lose(_):
        disk(scene).snapshots.clear()

    driver = before_step(scene, "take_source_snapshot", lose, count=3)
    with pytest.raises(BackupFailedError, match="SnapshotMissing"):
        await driver.run("backup_disk", request.model_dump(mode="json"), request.run)

    assert scene.head_row().owner is None


async def test_a_snapshot_that_appeared_after_its_run_had_ended_is_deleted(scene):
    """A request for it was late: no row names it, and its name alone says whose it is. One with another name stays."""
    with pytest.raises(BackupFailedError):
        await failing(scene, "take_source_snapshot", FINAL).run("backup_disk", scene.request().model_dump(mode="json"), "first")
    failed = scene.rows("run!")[0]
    tags = source_snapshot_metadata(scene.tools.site(scene.source()), "vm", failed.run)
    await scene.back_up()
    late = await scene.blobs.snapshot(scene.source(), tags)
    theirs = scene.blobs.freeze(disk(scene), tags)
    assert failed.source_snapshots == ()
    scene.world.pass_time(timedelta(days=2))
    await clean_up_disk(scene.tools, NIGHT)

    assert late not in disk(scene).snapshots
    assert set(disk(scene).snapshots) == {theirs, scene.head_row().pair.source_snapshot}


async def test_the_night_deletes_the_snapshots_that_azure_failed_to_make(scene):
    """At the disk's limit each run leaves one. Those stay that are younger than a day, somebody else's or another run's name."""
    cloud, site = scene.blobs.cloud, scene.tools.site(scene.source())
    await scene.back_up()
    cloud.limit_reached = 2
    for _ in range(2):
        with pytest.raises(BackupFailedError, match="SnapshotLimit"):
            await scene.back_up()
    theirs = {"": {"made": "by hand"}, "pk-vm-0": source_snapshot_metadata(site, "vm", NO_RUN)}
    for name, tags in theirs.items():
        cloud._keep(Taken("", name or "by-hand", scene.source(), "", dict(tags), "Failed"), scene.source().group)
    await clean_up_disk(scene.tools, NIGHT)
    assert len(failed(cloud)) == 4
    scene.world.pass_time(timedelta(days=2))
    done = await clean_up_disk(scene.tools, NIGHT)

    assert failed(cloud) == {"by-hand", "pk-vm-0"}
    assert done.snapshots == 2
    await scene.back_up()
    assert right(scene)


async def test_a_snapshot_that_has_not_failed_is_not_deleted_as_failed(scene):
    await scene.back_up()
    (taken,) = scene.blobs.cloud.all()
    await scene.blobs.delete_failed_snapshot(scene.source(), taken.name)
    await scene.blobs.delete_failed_snapshot(scene.source(), "pk-nowhere")

    assert scene.blobs.cloud.all() == [taken]


def failed(cloud):
    return {one.name for one in cloud.all() if one.state == "Failed"}


async def test_tags_that_a_policy_gives_each_resource_change_nothing(scene):
    """As Azure's built-in policy does that has resources inherit a tag from their group; late snapshots are still known."""
    scene.blobs.cloud.policy_tags = {"costCenter": "42"}
    await scene.back_up()
    scene.write(1, 77)
    await scene.back_up()
    late = await scene.blobs.snapshot(scene.source(), source_snapshot_metadata(scene.tools.site(scene.source()), "vm", NO_RUN))
    scene.world.pass_time(timedelta(days=2))
    await clean_up_disk(scene.tools, NIGHT)

    assert [row.kind for row in scene.points()] == ["full", "incremental"]
    assert right(scene)
    assert late not in disk(scene).snapshots


# -- the disk changes -----------------------------------------------------------------------------------------------------


async def test_a_disk_made_anew_under_its_name_gets_a_full_backup(scene):
    """In a new generation, with the reason; its predecessor's points stay, and its last snapshot goes."""
    await scene.back_up()
    former = scene.content(scene.points()[0])
    scene.world.tick()
    scene.protect()
    scene.write(9, 9)
    await scene.back_up()

    first, second = scene.points()
    assert (second.kind, second.generation > first.generation) == ("full", True)
    assert "refused the diff" in second.reason
    assert scene.content(first) == former
    assert right(scene)
    assert list(disk(scene).snapshots) == [second.source_snapshot]


@pytest.mark.parametrize("pages", [33, 64])
async def test_a_disk_that_has_grown_continues_incrementally(scene, pages):
    await scene.back_up()
    scene.blobs.grow_disk(scene.source(), pages * PAGE)
    scene.write(pages - 1, 7)
    await scene.back_up()

    assert scene.points()[-1].kind == "incremental"
    assert right(scene)


async def test_a_footer_that_differs_is_backed_up(scene):
    await scene.back_up()
    disk(scene).pages[32] = b"conectix".ljust(PAGE, b"-")
    await scene.back_up()

    assert (scene.points()[-1].kind, scene.points()[-1].write_bytes) == ("incremental", PAGE)
    assert right(scene)


async def test_a_lost_catalogue_is_rebuilt_from_the_backups(scene):
    """The backups name the managed disk; the next backup is an increment again."""
    await scene.back_up()
    scene.write(3, 4)
    await scene.back_up()
    for key in [key for key in scene.catalogue.rows if key[1].startswith(("registration", "head", "point!"))]:
        del scene.catalogue.rows[key]
    scene.catalogue.claimed.clear()
    scene.world.pass_time(HEARTBEAT_MAX)
    await rebuild(scene)
    scene.write(4, 6)
    await scene.back_up()

    assert scene.claims() == {str(scene.source()): "vm"}
    assert [point.kind for point in scene.points()] == ["full", "incremental", "incremental"]
    assert right(scene)


async def test_a_disk_outside_the_allowed_groups_is_not_touched(scene):
    scene.tools = replace(scene.tools, disk_groups=())
    with pytest.raises(BackupFailedError, match="DISK_GROUPS"):
        await scene.back_up()
    await clean_up_disk(scene.tools, NIGHT)

    assert not disk(scene).snapshots


async def test_a_broken_disk_hinders_no_other(scene):
    """Of the same window: one is deleted, the other gets its point."""
    scene.protect("other")
    scene.write(2, 8, disk="other")
    scene.lose_source("vm")
    request = FleetRequest(window="2026-01-01T00:00:00+00:00", wave=4)
    with pytest.raises(FleetFailedError, match="1 of 2 failed"):
        await scene.driver().run("backup_fleet", request.model_dump(mode="json"), "fleet.20260101T000000Z")

    assert (scene.rows("run!")[0].state, scene.rows("run!")[0].error.code) == ("Failed", "BlobMissing")
    assert scene.rows("run!", "other")[0].state == "Succeeded"
    assert scene.content(scene.points("other")[0]) == scene.blobs.disks[scene.source("other")].content()
    assert scene.blobs.open == set()
