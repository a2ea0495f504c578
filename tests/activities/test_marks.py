"""Metadata prove nothing about who wrote them: snapshots inherit their blob's, copies take over their source's."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest

from backup_core.activities.housekeeping import clean_up_disk
from backup_core.domain.errors import BackupError
from backup_core.domain.events import RunWarned
from backup_core.domain.identity import Deployment, catalogue_name
from backup_core.domain.metadata import restoring_run, run_of_source_snapshot
from backup_core.domain.naming import BlobAddress
from backup_core.protocol.survey import carry_out, survey
from backup_core.steps.housekeeping import CleanUpDisk
from tests.activities.acts import RUN, TARGET, into, stop_before
from tests.scene import BACKUP, Scene

NIGHT = CleanUpDisk(disk="vm", actor="house.20260105", lease="00000000-0000-0000-0000-00000000000a", run_days=180)


async def a_night(stage, days=2):
    """The warnings of a later night's housekeeping."""
    stage.world.pass_time(timedelta(days=days))
    await clean_up_disk(stage.tools, NIGHT)
    return [one for one in stage.journal.events if isinstance(one, RunWarned)][-1].message


def snapshots(stage):
    return set(stage.blobs.blobs[stage.source()].snapshots)


async def rolled_back(stage):
    """The operator copies our newest source snapshot onto its disk, marks and all."""
    stage.blobs.copy_over(stage.source(), stage.head_row().pair.source_snapshot, stage.source())


# -- snapshots of a source -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scene", ["writes", "content"], indirect=True)
async def test_snapshots_that_inherit_our_metadata_stay(scene):
    """A disk rolled back by Copy Blob from our snapshot: what another tool takes of it from then on is not ours to delete."""
    await scene.back_up()
    run = scene.points()[0].run
    await rolled_back(scene)
    theirs = [await scene.blobs.snapshot(scene.source(), {}) for _ in range(3)]
    names = [
        run_of_source_snapshot(scene.blobs.blobs[scene.source()].snapshots[one].metadata, scene.tools.site(scene.source()))
        for one in theirs
    ]
    assert names == [run] * 3, "nothing in the metadata distinguishes them from ours"
    scene.write(1, 1)
    await scene.back_up()

    warnings = await a_night(scene)
    assert set(theirs) <= snapshots(scene)
    assert warnings.count(f"it names run {run}") == 3
    await a_night(scene, days=400)
    assert set(theirs) <= snapshots(scene), "nor when the row of that run is gone"


@pytest.mark.parametrize("scene", ["writes", "content"], indirect=True)
async def test_an_own_snapshot_is_distinguished_from_inherited_marks(scene):
    """A failed run's own snapshot is deleted by its exact time, even if its metadata was copied onto the disk."""
    await scene.back_up()
    await stop_before(scene, "plan_transfer")
    (ours,) = snapshots(scene) - {scene.head_row().pair.source_snapshot}
    scene.blobs.copy_over(scene.source(), ours, scene.source())
    theirs = await scene.blobs.snapshot(scene.source(), {})
    scene.world.pass_time(timedelta(hours=1))
    await scene.back_up()

    await a_night(scene)
    assert ours not in snapshots(scene)
    assert theirs in snapshots(scene)


async def test_a_run_continues_with_its_own_snapshot_or_none(scene):
    """Its snapshot was copied onto the disk and deleted; what inherited its metadata since is not what the run took."""
    step = "plan_transfer"
    request, driver = scene.request(), scene.driver()

    async def perform(name, given):
        if name == step:
            raise KeyboardInterrupt
        if name == "take_source_snapshot":
            taken = await scene.perform(name, given)
            (ours,) = snapshots(scene)
            scene.blobs.copy_over(scene.source(), ours, scene.source())
            del scene.blobs.blobs[scene.source()].snapshots[ours]
            await scene.blobs.snapshot(scene.source(), {})
            again = await scene.perform(name, given)
            assert taken["value"]["snapshot"] == ours
            assert again["fault"]["code"] == "SnapshotMissing"
            assert scene.run_row(request.run).source_snapshots == (ours,)
            return again
        return await scene.perform(name, given)

    driver._perform = perform
    with pytest.raises(Exception, match="SnapshotMissing"):
        await driver.run("backup_disk", request.model_dump(mode="json"), request.run)


@pytest.mark.parametrize("scene", ["writes", "content"], indirect=True)
async def test_only_the_oldest_snapshot_that_names_the_run_is_recorded(scene):
    """The first delivery died before it recorded its snapshot; that was copied onto the disk, and inherited, before the second."""
    await scene.back_up()
    put, died = scene.catalogue.put_run, []

    async def dies(run, etag):
        if run.source_snapshots and not died:
            (ours,) = snapshots(scene) - {scene.head_row().pair.source_snapshot}
            scene.blobs.copy_over(scene.source(), ours, scene.source())
            died.append((ours, await scene.blobs.snapshot(scene.source(), {})))
            message = "no answer"
            raise ConnectionError(message)
        return await put(run, etag)

    scene.catalogue.put_run = dies
    driver = scene.driver()

    async def perform(name, given):
        try:
            return await scene.perform(name, given)
        except BackupError:
            return await scene.perform(name, given)

    driver._perform = perform
    request = scene.request()
    await driver.run("backup_disk", request.model_dump(mode="json"), request.run)

    ours, theirs = died[0]
    assert scene.run_row(request.run).source_snapshots == (ours,)
    assert scene.points()[-1].source_snapshot == ours
    await a_night(scene)
    assert theirs in snapshots(scene)


async def test_a_former_snapshot_that_names_another_disk_stays(scene):
    """A row alone deletes nothing on a source."""
    await scene.back_up()
    former = scene.points()[0].source_snapshot
    scene.blobs.blobs[scene.source()].snapshots[former].metadata = {"made": "by hand"}
    await scene.back_up()

    assert former in snapshots(scene)


# -- blobs in the backup account --------------------------------------------------------------------------------------------


async def test_a_copy_of_a_head_is_not_an_abandoned_head(scene):
    """Somebody saved a backup blob under another name: its mark names the blob it was copied from."""
    await scene.back_up()
    point = scene.points()[0]
    rescued = BlobAddress(BACKUP, "heads", "vm/rescued/disk.vhd")
    scene.blobs.put(rescued, 512)
    scene.blobs.copy_over(scene.tools.head(point.head), "", rescued)

    warnings = await a_night(scene)
    assert rescued in scene.blobs.blobs
    assert rescued.name in warnings


async def test_a_snapshot_that_inherited_a_description_is_no_restore_point(scene):
    """Somebody copied a backup snapshot onto its head, wrote on that, and took a snapshot: a rebuild must not offer it."""
    await scene.back_up()
    point = scene.points()[0]
    at = scene.tools.head(point.head)
    scene.blobs.copy_over(at, point.backup_snapshot, at)
    scene.world.pass_time(timedelta(hours=1))
    scene.blobs.poke(at, 0, [b"\x77" * 512])
    theirs = await scene.blobs.snapshot(at, {})
    del scene.blobs.blobs[at].snapshots[point.backup_snapshot]
    for key in [key for key in scene.catalogue.rows if key[1].startswith(("point!", "head"))]:
        del scene.catalogue.rows[key]
    found = await survey(scene.tools, "vm")
    await carry_out(scene.tools, found)

    assert scene.points() == []
    assert [place for place, _ in found.quarantined] == [(point.head, theirs)]


# -- restores ------------------------------------------------------------------------------------------------------------------


async def test_a_snapshot_of_the_unfinished_disk_is_not_the_restores_own(restorable):
    """Taken by another tool while the disk was being copied, it inherits the mark of the restore. The head would be half a disk."""
    taken, driver = [], restorable.driver()

    async def perform(name, given):
        if name == "compare_image" and not taken:
            blob = restorable.tools.source(TARGET)
            taken.append(await restorable.blobs.snapshot(blob, {}))
            inherited = restorable.blobs.blobs[blob].snapshots[taken[0]].metadata
            assert restoring_run(inherited, restorable.tools.site(blob)) == RUN
        return await restorable.perform(name, given)

    driver._perform = perform
    await restorable.restore(restorable.points()[0], driver=driver, **into())

    assert restorable.run_row(RUN).state == "Succeeded"
    assert restorable.head_row().pair.source_snapshot not in taken
    assert restorable.run_row(RUN).source_snapshots == (restorable.head_row().pair.source_snapshot,)


# -- two deployments ---------------------------------------------------------------------------------------------------------


def beside(stage):
    """Another deployment of the app, with its own catalogue and backups, which protects the same disk under the same id."""
    other = Scene(managed=stage.managed)
    other.world, other.blobs = stage.world, stage.blobs
    other.catalogue._world = other.documents._world = stage.world
    other.tools = replace(
        other.tools, blobs=stage.blobs, heads_container="otherheads", deployment=Deployment("backup/other"),
        copying=stage.tools.copying,
    )  # fmt: skip
    registration = stage.catalogue.rows["vm", "registration"].value
    other.catalogue.claim(registration.source, "vm")
    other.catalogue._store(registration, "registration")
    return other


async def test_two_deployments_on_one_disk_leave_each_other_alone(scene):
    """Same disk, same id, same runs by name: each continues from its own snapshots, and deletes its own."""
    other = beside(scene)
    for value in range(3):
        for each in (scene, other):
            each.write(value, value + 1)
            await each.back_up()
    for each in (scene, other):
        assert [point.kind for point in each.points()] == ["full", "incremental", "incremental"]
        assert len({point.run for point in scene.points()} & {point.run for point in other.points()}) == 3
        assert each.content(each.points()[-1])[: 512 * value] == scene.blobs.blobs[scene.source()].content()[: 512 * value]
    pairs = {each.head_row().pair.source_snapshot for each in (scene, other)}
    assert snapshots(scene) == pairs

    await stop_before(other, "plan_transfer")
    left = snapshots(scene)
    scene.world.pass_time(timedelta(days=2))
    await clean_up_disk(scene.tools, NIGHT)
    assert snapshots(scene) == left, "also what the other has left behind is the other's"


async def test_a_snapshot_of_another_deployment_is_not_the_runs_own(scene):
    """Both begin the window's run, which has the same id in both."""
    other = beside(scene)
    await other.back_up()
    await scene.back_up()

    assert scene.points()[0].run == other.points()[0].run
    assert scene.points()[0].source_snapshot != other.points()[0].source_snapshot


async def test_marks_of_a_former_catalogue_count_as_ones_own(scene):
    """After a rebuild into a new catalogue backups continue as increments, once a run is named whose work they continue."""
    await scene.back_up()
    for known, kind in ((frozenset({"backup/pagekeeper"}), "incremental"), (frozenset(), "full")):
        scene.tools = replace(scene.tools, deployment=Deployment("backup/renewed", known))
        for key in [key for key in scene.catalogue.rows if key[1].startswith(("point!", "head"))]:
            del scene.catalogue.rows[key]
        await carry_out(scene.tools, await survey(scene.tools, "vm"))
        scene.write(5, 5)
        await scene.back_up()
        assert scene.points()[-1].kind == kind
        scene.tools = replace(scene.tools, deployment=Deployment("backup/pagekeeper"))
        await scene.back_up(full=True)


@pytest.mark.parametrize(
    ("endpoint", "table", "name"),
    [
        ("https://backup.table.core.windows.net", "Pagekeeper", "backup/pagekeeper"),
        ("http://127.0.0.1:10002/backup", "pagekeeper", "backup/pagekeeper"),
    ],
)
def test_a_catalogue_has_one_name(endpoint, table, name):
    assert catalogue_name(endpoint, table) == name
