"""Backup snapshots that somebody else deletes: housekeeping finds and reports them and marks them lost; the other points stay."""

from __future__ import annotations

from contextlib import suppress
from datetime import timedelta

import pytest

from backup_core.activities.housekeeping import clean_up_disk
from backup_core.api import disks, points
from backup_core.domain.errors import CleanupError, ContainerMissingError, ServiceUnavailableError, SnapshotMissingError
from backup_core.domain.events import PointsLost
from backup_core.protocol.losses import mark_losses
from backup_core.steps.housekeeping import CleanUpDisk
from tests.activities.acts import call, keep, rebuild, stop_before
from tests.scene import Scene

CLEANUP = CleanUpDisk(disk="vm", actor="house.20260105", lease="00000000-0000-0000-0000-00000000000a", run_days=180)


@pytest.fixture
async def scene():
    """A disk with five restore points, all kept."""
    stage = Scene()
    stage.protect()
    for number in range(5):
        stage.write(number, 10 + number)
        await stage.back_up()
    return stage


def vanish(scene, *gone):
    """Delete these points' snapshots, as a stranger would; return the values that bring them back."""
    heads = [scene.blobs.blobs[scene.tools.head(point.head)].snapshots for point in gone]
    return [
        (snapshots, point.backup_snapshot, snapshots.pop(point.backup_snapshot))
        for snapshots, point in zip(heads, gone, strict=True)
    ]


async def night(scene, after=timedelta(hours=25)):
    scene.world.pass_time(after)
    return await clean_up_disk(scene.tools, CLEANUP)


def states(scene):
    return [point.state for point in scene.points()]


def reported_losses(scene):
    return [one for one in scene.journal.events if isinstance(one, PointsLost)]


async def test_deleted_backups_are_reported_and_marked(scene):
    """The loss is reported once. The points are offered no more; what is there stays as it is, and so does the pair."""
    old = scene.points()
    vanish(scene, old[1], old[2])
    head = scene.head_row()
    await night(scene)
    await night(scene)

    assert states(scene) == ["available", "lost", "lost", "available", "available"]
    assert reported_losses(scene) == [PointsLost("vm", CLEANUP.actor, 2, old[1].point, old[2].point)]
    assert reported_losses(scene)[0].severity == "error"
    assert scene.head_row() == head
    _, offered = await call(scene, points.get_points, disk="vm")
    assert {one["id"] for one in offered["value"]} == {old[number].point for number in (0, 3, 4)}
    await scene.back_up()
    assert scene.points()[-1].kind == "incremental"


async def test_a_snapshot_that_is_back_makes_its_point_available_again(scene):
    """By a rebuild, as the runbook says."""
    ((snapshots, name, snapshot),) = vanish(scene, scene.points()[2])
    await night(scene)
    snapshots[name] = snapshot
    await rebuild(scene)

    assert states(scene) == ["available"] * 5


async def test_a_point_that_only_the_listing_lacks_is_not_lost(scene):
    """A listing that is short, for whatever reason: each is looked up once more."""
    listed = scene.blobs.listed

    async def short(account, container, prefix):
        async for one in listed(account, container, prefix):
            if not one.snapshot:
                yield one

    scene.blobs.listed = short
    await night(scene)

    assert states(scene) == ["available"] * 5
    assert reported_losses(scene) == []


@pytest.mark.parametrize("error", [ContainerMissingError, ServiceUnavailableError])
async def test_a_container_that_cannot_be_listed_is_an_error(scene, error):
    async def refused(*_):
        raise error("no")
        yield

    scene.blobs.listed = refused
    with pytest.raises(CleanupError, match=f"losses: {error.code}"):
        await night(scene)
    assert states(scene) == ["available"] * 5


async def test_a_container_that_is_deleted_during_the_check_is_an_error(scene):
    vanish(scene, *scene.points()[:2])

    async def gone(*_):
        raise ContainerMissingError("no")

    scene.blobs.properties = gone
    with pytest.raises(CleanupError, match="losses: ContainerMissing"):
        await night(scene)
    assert states(scene) == ["available"] * 5


@pytest.mark.parametrize("part", ["mark_deleting", "delete_snapshot", "delete_point"])
async def test_a_point_that_a_prune_is_deleting_is_not_lost(scene, part):
    """It may be anywhere: marked, its snapshot gone, its row gone."""
    keep(scene, 3)
    at = scene.points()[0]
    row = await scene.catalogue.point("vm", at.point)
    look = scene.blobs.properties

    async def meanwhile(blob, snapshot=""):
        if snapshot == at.backup_snapshot:
            marked = await scene.catalogue.mark_deleting(row)
            if part != "mark_deleting":
                await scene.blobs.delete_snapshot(blob, snapshot)
            if part == "delete_point":
                await scene.catalogue.delete_point(marked)
        return await look(blob, snapshot)

    listed = scene.blobs.listed

    async def late(account, container, prefix):
        async for one in listed(account, container, prefix):
            if one.snapshot != at.backup_snapshot:
                yield one

    scene.blobs.properties, scene.blobs.listed = meanwhile, late
    await night(scene)

    assert reported_losses(scene) == []
    assert at.point not in {point.point for point in scene.points()}, "the night's own retention ends what the other one began"


async def test_a_point_that_a_dead_prune_was_deleting_is_not_lost(scene):
    """Its snapshot is gone, its row says why: the night's own retention ends it, and no loss is reported."""
    keep(scene, 4)
    row = await scene.catalogue.mark_deleting(await scene.catalogue.point("vm", scene.points()[0].point))
    vanish(scene, row.value)
    await night(scene)

    assert reported_losses(scene) == []
    assert states(scene) == ["available"] * 4


async def test_a_pair_that_was_committed_while_the_night_looked_stays(scene):
    """The rows were read before its commit: that it is not among them says nothing."""
    rows = [await scene.catalogue.point("vm", point.point) for point in scene.points()]
    head = scene.head_row()
    await mark_losses(scene.tools, "vm", "house", rows[:-1], {(row.value.head, row.value.backup_snapshot) for row in rows})

    assert scene.head_row() == head
    assert states(scene) == ["available"] * 5


async def test_a_night_that_dies_before_it_marks_reports_again(scene):
    """A loss is reported twice rather than never."""
    vanish(scene, scene.points()[1])
    mark = scene.catalogue.mark_lost

    async def dies(_):
        raise KeyboardInterrupt

    scene.catalogue.mark_lost = dies
    with suppress(KeyboardInterrupt):
        await night(scene)
    scene.catalogue.mark_lost = mark
    await night(scene)

    assert len(reported_losses(scene)) == 2
    assert states(scene)[1] == "lost"


async def test_the_losses_marked_in_one_call_are_limited(scene):
    vanish(scene, *scene.points()[1:4])
    await night(scene)
    scene.with_limits(sweeps_max=1)
    vanish(scene, scene.points()[0], scene.points()[4])

    assert (await night(scene)).more
    assert not (await night(scene)).more
    assert states(scene) == ["lost"] * 5


# -- the newest ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("source_snapshot", ["gone", "still there"])
async def test_the_newest_lost_means_the_one_before_counts(scene, source_snapshot):
    """Status goes by what is there, and the next backup is a full one: its content is right whatever the diff reports."""
    old = scene.points()
    if source_snapshot == "still there":
        snapshots = scene.blobs.blobs[scene.source()].snapshots
        snapshots[old[3].source_snapshot] = snapshots[old[4].source_snapshot]
    vanish(scene, old[4])
    await night(scene)
    _, shown = await call(scene, disks.get_disk, disk="vm")

    assert shown["newestRestorePoint"] == old[3].point
    scene.write(4, 3)
    await scene.back_up()
    assert scene.points()[-1].kind == "full"
    assert scene.content(scene.points()[-1]) == scene.blobs.blobs[scene.source()].content()


async def test_after_all_points_are_lost_the_next_backup_begins_anew(scene):
    """No point is shown, and the next backup begins anew."""
    vanish(scene, *scene.points())
    await night(scene)
    _, shown = await call(scene, disks.get_disk, disk="vm")

    assert not shown.get("newestRestorePoint")
    assert states(scene) == ["lost"] * 5
    await scene.back_up()
    assert scene.content(scene.points()[-1]) == scene.blobs.blobs[scene.source()].content()


async def test_a_run_that_owns_the_disk_keeps_its_pair(scene):
    """It makes a newer one; should it die, the next run, or the next night after it, continues from the points that exist."""
    scene.write(7, 7)
    await stop_before(scene, "apply_shard")
    head = scene.head_row()
    vanish(scene, scene.points()[-1])
    await night(scene, timedelta())

    assert scene.head_row() == head
    scene.world.pass_time(timedelta(hours=1))
    await scene.back_up()
    assert scene.points()[-1].state == "available"
    assert scene.content(scene.points()[-1]) == scene.blobs.blobs[scene.source()].content()


# -- what is left --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lost", [[4], [3], [3, 4]])
async def test_lost_points_push_no_other_out(scene, lost):
    """Two are to be kept: the two newest that are there."""
    old = scene.points()
    keep(scene, 2)
    vanish(scene, *(old[number] for number in lost))
    left = [number for number in range(5) if number not in lost][-2:]
    await night(scene)

    assert [point.point for point in scene.points() if point.state == "available"] == [old[number].point for number in left]


@pytest.mark.parametrize("lost", [3, 4])
async def test_a_backups_own_prune_deletes_nothing_while_a_newest_one_is_missing(scene, lost):
    """Nobody has marked it lost yet. The run has a point of its own all the same, and a warning."""
    keep(scene, 3)
    vanish(scene, scene.points()[lost])
    driver = await scene.back_up()

    assert len(scene.points()) == 6
    assert any(SnapshotMissingError.code in one for one in scene.run_row(driver.output["run"]).warnings)
    await night(scene)
    assert states(scene).count("available") == 3


async def test_the_blob_of_a_lost_point_is_kept(scene):
    """It is all that is left of it."""
    old = scene.points()
    await scene.back_up(full=True)
    vanish(scene, *old)
    await night(scene)
    await night(scene)

    assert scene.tools.head(old[0].head) in scene.blobs.blobs
