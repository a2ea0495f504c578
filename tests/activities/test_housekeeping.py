# Long: the duties of a night share their scenes, as the code of protocol/cleanup.py stands in one file.
"""Housekeeping: what runs left behind goes after a day; nothing that anybody could still need does."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest

from backup_core.activities import points
from backup_core.activities.housekeeping import clean_up_disk, list_backed_up_disks
from backup_core.activities.rebuild import clean_up_rebuilds
from backup_core.api import disks
from backup_core.domain.ending import ABANDONED
from backup_core.domain.errors import AccessDeniedError, CleanupError, RowChangedError
from backup_core.domain.events import DiskCleaned, RunWarned
from backup_core.domain.metadata import from_metadata
from backup_core.domain.naming import REBUILDS, disk_of_run, fleet_order_name, run_key
from backup_core.domain.records import Retention
from backup_core.orchestrations.backup_disk import BackupFailedError
from backup_core.orchestrations.clean_up_disks import NAME, ROUNDS_MAX, CleanupFailedError
from backup_core.steps.housekeeping import CleanUpDisk, CleanUpRebuilds, CleanupRequest, DiskPage
from tests.activities.acts import FINAL, RUN, TARGET, attached_disk, call, failing, into, stop_before, stopped_before
from tests.scene import PAGE

DAY = timedelta(hours=25)
LEASE = "00000000-0000-0000-0000-00000000000a"


def cleanup_request(disk="vm", run_days=180):
    return CleanUpDisk(disk=disk, actor="house.20260105", lease=LEASE, run_days=run_days)


async def cleaned(stage, after=DAY, **fields):
    """The result of a cleanup call after that time."""
    stage.world.pass_time(after)
    return (await clean_up_disk(stage.tools, cleanup_request(**fields))).model_dump(exclude_defaults=True)


def snapshots(stage):
    return set(stage.blobs.blobs[stage.source()].snapshots)


def heads(stage):
    return sorted(at.name for at in stage.blobs.blobs if at.container == "heads")


# -- nothing that is needed goes -------------------------------------------------------------------------------------------


async def test_a_disk_in_good_order_keeps_everything_but_plans(scene):
    """However long ago its last run was. A repeat finds nothing."""
    for value in range(3):
        scene.write(0, value)
        await scene.back_up()
    blobs = scene.dump()[0]

    assert set(await cleaned(scene)) == {"documents"}
    assert await cleaned(scene) == {}
    assert scene.dump()[0] == blobs
    assert scene.documents.texts.keys() == {"vm/registration.json"}
    await scene.back_up()
    assert scene.points()[-1].kind == "incremental"


@pytest.mark.parametrize("step", ["plan_transfer", "open_head", "apply_shard", "verify_head", "take_backup_snapshot"])
async def test_the_snapshots_that_an_interrupted_increment_needs_are_kept(scene, step):
    """Weeks later the next run still finishes the recorded target first, and its point is right."""
    await scene.back_up()
    scene.write(7, 7, None, 9)
    wanted = scene.blobs.blobs[scene.source()].content()
    await stop_before(scene, step)
    dirty = scene.mark().state != "committed"
    scene.write(9, 1)

    await cleaned(scene, timedelta(days=20))
    assert scene.rows("run!")[0].error.code == ABANDONED
    await scene.back_up()

    assert [point.kind for point in scene.points()][1:] == (["incremental"] * 2 if dirty else ["incremental"])
    if dirty:
        assert scene.content(scene.points()[1]) == wanted
    assert scene.content(scene.points()[-1]) == scene.blobs.blobs[scene.source()].content()


async def test_a_run_at_work_loses_nothing(scene):
    """Be it older than a day: it gives signs of life."""
    await scene.back_up()
    scene.write(7, 7)
    driver, request, before = scene.driver(), scene.request(), []

    async def perform(name, given):
        if name == "apply_shard":
            scene.world.pass_time(DAY)
            row = scene.catalogue.rows["vm", run_key(request.run)]
            await scene.catalogue.put_run(row.value, row.etag)
            before.append((snapshots(scene), heads(scene)))
            await clean_up_disk(scene.tools, cleanup_request())
            assert (snapshots(scene), heads(scene)) == before[0]
        return await scene.perform(name, given)

    driver._perform = perform
    await driver.run("backup_disk", request.model_dump(mode="json"), request.run)

    assert before
    assert scene.run_row(request.run).state == "Succeeded"


async def test_a_restore_at_work_keeps_its_point_and_its_new_head(restorable):
    """Its row is fresh, so its pin counts and its promoted blob is not half-made for anybody."""
    driver = restorable.driver()

    async def perform(name, given):
        if name == "adopt_head":
            restorable.world.pass_time(DAY)
            row = restorable.catalogue.rows["vm", run_key(RUN)]
            await restorable.catalogue.put_run(row.value, row.etag)
            found = heads(restorable)
            await clean_up_disk(restorable.tools, cleanup_request())
            assert heads(restorable) == found
            assert len(restorable.rows("pin!")) == 1
        return await restorable.perform(name, given)

    driver._perform = perform
    await restorable.restore(restorable.points()[0], driver=driver, **into())
    assert restorable.run_row(RUN).state == "Succeeded"


@pytest.mark.parametrize("lost", ["head", "registration"])
async def test_without_its_rows_nothing_of_a_disk_is_sure(scene, lost):
    """A lost catalogue is rebuilt from what is there: it must still be there."""
    await scene.back_up()
    scene.write(7, 7)
    await stop_before(scene, "apply_shard")
    del scene.catalogue.rows["vm", lost]
    blobs = {key: sorted(blob.snapshots) for key, blob in scene.blobs.blobs.items()}

    gone = await cleaned(scene)
    assert not gone.keys() & {"snapshots", "points"}
    assert {key: sorted(blob.snapshots) for key, blob in scene.blobs.blobs.items()} == blobs


async def test_a_head_whose_mark_cannot_be_read_keeps_the_source_snapshots(scene):
    await scene.back_up()
    with pytest.raises(BackupFailedError):
        await failed_after_snapshot(scene)
    scene.head_blob().metadata.clear()
    found = snapshots(scene)

    await cleaned(scene)
    assert snapshots(scene) == found


async def test_a_stored_change_of_a_machine_stays_until_it_is_settled(restorable):
    """It is what brings the machine its disk back."""
    await stopped_before(restorable, "move_machine")
    name = restorable.head_row().repoint
    old = attached_disk(restorable)

    for _ in range(2):  # in the first night its run is ended, which is a change of the run
        await cleaned(restorable)
    assert name in restorable.documents.texts
    await restorable.back_up()
    assert (attached_disk(restorable), restorable.head_row().repoint) == (old, "")
    await cleaned(restorable)
    assert name not in restorable.documents.texts


async def test_snapshots_of_other_people_and_other_disks_stay(scene):
    await scene.back_up()
    blob = scene.blobs.blobs[scene.source()]
    theirs = await scene.blobs.snapshot(scene.source(), {"made": "by hand"})
    others = await scene.blobs.snapshot(
        scene.source(), {"pagekeeper_disk": "db", "pagekeeper_run": "db.20260101T000001Z.timer"}
    )
    forged = await scene.blobs.snapshot(scene.source(), {"pagekeeper_run": "../../etc"})

    await cleaned(scene)
    assert {theirs, others, forged} <= set(blob.snapshots)


def lose_rows(stage, *kinds):
    """Rows whose key begins so are lost."""
    for key in [key for key in stage.catalogue.rows if key[1].startswith(kinds)]:
        del stage.catalogue.rows[key]


async def test_young_snapshots_are_kept_though_their_run_is_not_known(scene):
    """The row of the run that uses it may be lost, and the run at work: only its age decides."""
    await scene.back_up()
    for _ in range(2):
        request = scene.request()
        failed = failing(scene, "drop_previous_snapshot", FINAL)
        await failed.run("backup_disk", request.model_dump(mode="json"), request.run)
    first, *needed = sorted(snapshots(scene))
    assert len(needed) == 2
    lose_rows(scene, "run!")
    documents = set(scene.documents.texts)

    await cleaned(scene, timedelta())
    assert (snapshots(scene), set(scene.documents.texts)) == ({first, *needed}, documents)
    await cleaned(scene)
    assert snapshots(scene) == set(needed)
    assert scene.documents.texts.keys() == {"vm/registration.json"}


async def test_snapshots_stay_while_the_pair_is_of_another_source(scene):
    """Nobody can say what the first increment of the new source will start from."""
    await scene.back_up()
    row = scene.catalogue.rows["vm", "registration"]
    scene.blobs.put(scene.source("new"), 32 * PAGE)
    scene.catalogue.rows["vm", "registration"] = replace(row, value=replace(row.value, source=str(scene.source("new"))))
    with pytest.raises(BackupFailedError):
        await failed_after_snapshot(scene)
    taken = set(scene.blobs.blobs[scene.source("new")].snapshots)

    await cleaned(scene)
    assert len(taken) == 1
    assert set(scene.blobs.blobs[scene.source("new")].snapshots) == taken


async def replaced_source(scene):
    """A backup of another source, whose run could not delete the former source's last snapshot; that snapshot."""
    await scene.back_up()
    former = scene.points()[0].source_snapshot
    scene.blobs.put(scene.source("new"), 32 * PAGE)
    row = scene.catalogue.rows["vm", "registration"]
    scene.catalogue.rows["vm", "registration"] = replace(row, value=replace(row.value, source=str(scene.source("new"))))
    before, refuses = scene.world.before, True

    async def refused(name):
        if refuses and name == "delete_snapshot":
            raise AccessDeniedError("a lock; remove it")
        await before(name)

    scene.world.before = refused
    await scene.back_up()
    refuses = False
    assert former in snapshots(scene)
    return former


async def test_a_former_sources_last_snapshot_is_deleted_by_a_later_night(scene):
    """A later night looks for it by its exact time, and for nothing else on a disk that is not this one's any more."""
    former = await replaced_source(scene)
    theirs = await scene.blobs.snapshot(scene.source(), {})
    assert (await cleaned(scene, timedelta(hours=1))).get("snapshots") is None
    scene.blobs.blobs[scene.source("new")].snapshots, removed = {}, scene.blobs.blobs[scene.source("new")].snapshots
    with pytest.raises(CleanupError):
        await cleaned(scene)
    assert former in snapshots(scene), "the present pair was not seen"
    scene.blobs.blobs[scene.source("new")].snapshots = removed

    assert (await cleaned(scene))["snapshots"] == 1
    assert snapshots(scene) == {theirs}
    assert "snapshots" not in await cleaned(scene)


async def test_a_former_sources_snapshot_that_names_another_disk_stays(scene):
    former = await replaced_source(scene)
    scene.blobs.blobs[scene.source()].snapshots[former].metadata = {"made": "by hand"}

    assert "snapshots" not in await cleaned(scene)
    assert former in snapshots(scene)


async def test_the_disk_a_restore_has_replaced_keeps_its_last_snapshot(restorable):
    """It is what the old disk can be gone back to by (ADR 0014)."""
    await restorable.restore(restorable.points()[0], adopt=True)
    await restorable.back_up()
    kept = snapshots(restorable)
    assert kept

    await cleaned(restorable)
    assert snapshots(restorable) == kept


async def test_a_former_source_that_this_app_cannot_read_is_left_alone(scene):
    former = await replaced_source(scene)
    scene.tools = replace(scene.tools, source_accounts=(), disk_groups=())

    await cleaned(scene)
    assert former in snapshots(scene)


async def test_the_pairs_snapshot_stays_whatever_the_mark_says(scene):
    await scene.back_up()
    for name in ("target", "base"):
        scene.head_blob().metadata[f"pagekeeper_{name}"] = "2020-01-01T00:00:00.0000000Z"

    await cleaned(scene)
    assert snapshots(scene) == {scene.head_row().pair.source_snapshot}


@pytest.mark.parametrize("lost", ["points", "all rows"])
async def test_a_committed_head_without_points_stays(scene, lost):
    """Its points and their snapshots are gone, by whatever hand: while the catalogue names it, or names nothing."""
    await scene.back_up()
    found = heads(scene)
    scene.head_blob().snapshots.clear()
    lose_rows(scene, "point!", *(("head", "run!") if lost == "all rows" else ()))

    await cleaned(scene)
    assert heads(scene) == found


async def test_a_half_made_head_that_names_another_disk_stays(scene):
    """Its mark contradicts itself: by its run it would be this disk's."""
    await stop_before(scene, "verify_head")
    (at,) = [at for at in scene.blobs.blobs if at.container == "heads"]
    scene.blobs.blobs[at].metadata["pagekeeper_disk"] = "db"

    await cleaned(scene)
    assert heads(scene) == [at.name]


async def test_a_claim_that_was_just_made_stays(scene):
    """Its registration follows in a moment."""
    scene.world.pass_time(DAY)
    await scene.catalogue.claim_source(str(scene.source("new")), "vm")

    await cleaned(scene, timedelta())
    assert scene.claims() == {str(scene.source()): "vm", str(scene.source("new")): "vm"}


async def test_points_of_a_stopped_disk_stay(scene):
    """Nothing new is made of it any more: what there is may be all that is left of the disk."""
    for value in range(2):
        scene.write(0, value)
        await scene.back_up(prune=False)
    row = scene.catalogue.rows["vm", "registration"]
    scene.catalogue.rows["vm", "registration"] = replace(row, value=replace(row.value, retention=Retention(1), protected=False))

    await cleaned(scene)
    assert len(scene.points()) == 2


# -- what goes ---------------------------------------------------------------------------------------------------------------


async def failed_after_snapshot(stage):
    """A run that takes its snapshot and then fails for good, leaving it."""
    driver = stage.driver()

    async def perform(name, given):
        if name == "plan_transfer":
            fault = {"code": "AccessDenied", "message": "no", "retryable": False, "wait_seconds": 0}
            return {"fault": fault, "value": None}
        return await stage.perform(name, given)

    driver._perform = perform
    request = stage.request()
    await driver.run("backup_disk", request.model_dump(mode="json"), request.run)


async def test_the_snapshot_of_a_failed_run_is_deleted_after_a_day(scene):
    await scene.back_up()
    kept = snapshots(scene)
    with pytest.raises(BackupFailedError):
        await failed_after_snapshot(scene)
    assert len(snapshots(scene)) == 2

    assert "snapshots" not in await cleaned(scene, timedelta(hours=23))
    assert snapshots(scene) != kept
    assert (await cleaned(scene, timedelta(hours=2)))["snapshots"] == 1
    assert snapshots(scene) == kept
    assert [one.snapshots for one in scene.journal.events if isinstance(one, DiskCleaned)][-1] == 1


@pytest.mark.parametrize("step", ["plan_transfer", "open_head"])
async def test_the_snapshot_of_a_silent_owner_stays_until_the_next_run_has_the_disk(scene, step):
    """It may wake up at this very moment and make the snapshot its target. Once it has lost the disk it cannot."""
    await scene.back_up()
    scene.write(7, 7)
    await stop_before(scene, step)
    silent = snapshots(scene)

    assert "snapshots" not in await cleaned(scene)
    assert snapshots(scene) == silent
    await scene.back_up()
    assert (await cleaned(scene))["snapshots"] == 1
    assert snapshots(scene) == {scene.head_row().pair.source_snapshot}


async def test_a_target_that_is_marked_while_housekeeping_looks_stays(scene):
    """A mark that a run set before it lost the disk counts: the mark is read after the owner, for each snapshot."""
    await scene.back_up()
    scene.write(7, 7)
    await stop_before(scene, "apply_shard")
    marked, row = scene.head_blob().metadata.copy(), scene.catalogue.rows["vm", "head"]
    scene.catalogue.rows["vm", "head"] = replace(row, value=replace(row.value, owner=None))
    scene.head_blob().metadata = {**marked, "pagekeeper_target": scene.head_row().pair.source_snapshot}
    look = scene.catalogue.head

    async def meanwhile(disk):
        found = await look(disk)
        scene.head_blob().metadata = dict(marked)
        return found

    scene.catalogue.head = meanwhile
    assert "snapshots" not in await cleaned(scene)
    assert from_metadata(marked, scene.tools.site(scene.tools.head(scene.head_row().head))).target in snapshots(scene)


@pytest.mark.parametrize("step", ["apply_shard", "verify_head"])
async def test_an_unfinished_first_head_is_deleted_despite_the_lease_of_a_dead_run(scene, step):
    await stop_before(scene, step)
    assert len(heads(scene)) == 1

    assert (await cleaned(scene))["blobs"] == 1
    assert heads(scene) == []
    await scene.back_up()
    assert scene.content(scene.points()[0]) == scene.blobs.blobs[scene.source()].content()


async def test_a_half_made_head_beside_the_present_one(scene):
    await scene.back_up()
    kept = heads(scene)
    await stop_before(scene, "verify_head", full=True)
    assert len(heads(scene)) == 2

    assert (await cleaned(scene))["blobs"] == 1
    assert heads(scene) == kept


async def test_a_generation_that_has_expired_leaves_no_blob(scene):
    """Its last restore point is gone: so is the blob they were of."""
    await scene.back_up()
    first = heads(scene)
    await scene.back_up(full=True)
    await cleaned(scene)
    assert set(first) < set(heads(scene))

    scene.catalogue.rows["vm", "registration"] = replace(
        row := scene.catalogue.rows["vm", "registration"], value=replace(row.value, retention=Retention(1))
    )
    assert (await cleaned(scene))["points"] == 1
    assert (await cleaned(scene))["blobs"] == 1
    assert heads(scene) == [scene.head_row().head]
    assert scene.content(scene.points()[0]) == scene.blobs.blobs[scene.source()].content()


async def test_a_blob_that_got_a_snapshot_in_between_stays(scene):
    """The service itself refuses to delete a blob with snapshots."""
    await stop_before(scene, "verify_head")
    at = next(at for at in scene.blobs.blobs if at.container == "heads")
    acquire = scene.blobs.acquire_lease

    async def meanwhile(blob, lease):
        await acquire(blob, lease)
        if not scene.blobs.blobs[at].snapshots:
            await scene.blobs.snapshot(at, {"made": "by hand"})

    scene.blobs.acquire_lease = meanwhile
    assert "blobs" not in await cleaned(scene)
    assert heads(scene) == [at.name]
    assert scene.blobs.blobs[at].lease == ""


async def test_a_pending_copy_nobody_waits_for_is_ended(scene):
    scene.blobs.copies_delayed = True
    await stop_before(scene, "check_copy", full_copy="blob")
    assert len(heads(scene)) == 1

    await cleaned(scene)
    assert heads(scene) == []


async def test_abandoned_pins_go_and_their_runs_end(restorable):
    await stopped_before(restorable, "compare_image")
    assert len(restorable.rows("pin!")) == 1

    assert (await cleaned(restorable))["pins"] == 1
    assert restorable.rows("pin!") == []
    assert restorable.run_row(RUN).error.code == ABANDONED
    assert "house.20260105" in restorable.run_row(RUN).error.message


async def test_a_run_that_never_began_ends_after_a_day(scene):
    """Its start was lost: it must not be shown as waiting for ever."""
    await stop_before(scene, "take_source_snapshot")
    run = scene.rows("run!")[0].run
    await cleaned(scene)
    assert scene.run_row(run).state == "Running"
    await scene.documents.put(f"vm/{run}/x.json", "{}")
    await cleaned(scene)
    assert scene.run_row(run).state == "Failed"


async def test_old_runs_are_forgotten_but_the_newest(scene):
    await scene.back_up()
    await scene.back_up()
    assert (await cleaned(scene, timedelta(days=181)))["runs"] == 1
    assert len(scene.rows("run!")) == 1
    assert len(scene.points()) == 2


# -- points ------------------------------------------------------------------------------------------------------------------


async def test_points_expire_without_the_backups_own_prune(scene):
    for value in range(4):
        scene.write(0, value)
        await scene.back_up(prune=False)
    scene.catalogue.rows["vm", "registration"] = replace(
        row := scene.catalogue.rows["vm", "registration"], value=replace(row.value, retention=Retention(2))
    )
    kept = scene.points()[-2:]
    await scene.back_up(prune=False)
    assert len(scene.points()) == 5

    assert (await cleaned(scene))["points"] == 3
    assert scene.points()[0] == kept[1]
    assert [scene.content(point)[:1] for point in scene.points()] == [b"\3", b"\3"]


@pytest.mark.parametrize("duty", ["pins", "snapshots", "list_documents", "forget_runs", "claims"])
async def test_a_duty_that_fails_stops_no_other(scene, duty):
    """The failed duty is named and reported; the others remove what they find."""
    for value in range(3):
        scene.write(0, value)
        await scene.back_up(prune=False)
    scene.catalogue.rows["vm", "registration"] = replace(
        row := scene.catalogue.rows["vm", "registration"], value=replace(row.value, retention=Retention(1))
    )
    scene.documents.texts["vm/registration.json"] = "{}"
    before = scene.world.before

    async def refused(name):
        if name == duty:
            raise AccessDeniedError("a lock; remove it")
        await before(name)

    scene.world.before = refused
    with pytest.raises(CleanupError, match=r"AccessDenied: a lock; remove it; the other duties were done"):
        await cleaned(scene)

    (cleaned_event,) = [one for one in scene.journal.events if isinstance(one, DiskCleaned)]
    if duty not in ("pins", "snapshots"):  # retention reads both too: without them it deletes nothing
        assert cleaned_event.points == 2
    if duty != "list_documents":
        assert cleaned_event.documents > 0
    if duty != "claims":
        assert cleaned_event.registrations == 1
    assert {one.run for one in scene.journal.events if isinstance(one, RunWarned)} == {"house.20260105"}


# -- all disks ---------------------------------------------------------------------------------------------------------------


# -- registrations -------------------------------------------------------------------------------------------------------------


async def test_a_registration_that_moved_half_way(restorable, monkeypatch):
    """A restore died right after its commit.

    A day later the former disk can be registered again, and what a rebuild would
    go by names the new one.
    """

    def dies(*_):
        raise KeyboardInterrupt

    former = restorable.source().url
    monkeypatch.setattr(points, "complete_move", dies)
    with pytest.raises(KeyboardInterrupt):
        await restorable.restore(restorable.points()[0], **into())
    assert restorable.claims() == {former: "vm", TARGET: "vm"}
    assert former in restorable.documents.texts["vm/registration.json"]

    assert "registrations" not in await cleaned(restorable, timedelta(hours=23))
    assert (await cleaned(restorable, timedelta(hours=2)))["registrations"] == 2
    assert restorable.claims() == {TARGET: "vm"}
    assert TARGET in restorable.documents.texts["vm/registration.json"]
    assert "registrations" not in await cleaned(restorable)


async def test_a_registration_that_is_just_about_to_move(scene):
    """Between claim and registration an old claim, made again, is not taken for a leftover."""
    other = str(scene.source("other"))
    await scene.catalogue.claim_source(other, "vm")
    scene.world.pass_time(DAY)
    method = scene.catalogue.claims

    async def meanwhile(disk):
        claims = await method(disk)
        await scene.catalogue.claim_source(other, "vm")
        return claims

    scene.catalogue.claims = meanwhile
    await cleaned(scene, timedelta())

    assert other in scene.claims()


async def test_a_stopped_protection_claims_nothing(scene):
    """Of a disk that is not protected any more nothing is left that keeps its source from being registered."""
    await call(scene, disks.delete_disk, disk="vm")
    await scene.catalogue.claim_source(str(scene.source()), "vm")

    assert (await cleaned(scene))["registrations"] == 1
    assert scene.claims() == {}


async def test_the_removals_of_one_cleanup_call_are_limited(scene):
    for value in range(3):
        scene.write(0, value)
        await scene.back_up()
    scene.with_limits(sweeps_max=1)

    assert await cleaned(scene) == {"documents": 1, "more": True}


async def test_disks_that_are_registered_or_have_backups_are_kept_in_order(scene):
    await scene.back_up()
    scene.protect("db")
    scene.catalogue.claimed.pop(str(scene.source()))

    assert (await list_backed_up_disks(scene.tools, DiskPage(after=""))).disks == ["db", "vm"]
    assert (await list_backed_up_disks(scene.tools, DiskPage(after="db"))).disks == ["vm"]
    scene.with_limits(cleanup_disks_max=1)
    assert (await list_backed_up_disks(scene.tools, DiskPage(after=""))).more


async def clean_up_disks(stage):
    driver = stage.driver()
    driver.output = await driver.run(NAME, CleanupRequest(run_days=180).model_dump(mode="json"), "house.20260105")
    return driver


async def test_the_orchestration_looks_at_every_disk_until_nothing_is_left(scene):
    scene.protect("db")
    for disk in ("vm", "db"):
        for value in range(3):
            scene.write(0, value, disk=disk)
            await scene.back_up(disk)
    scene.with_limits(sweeps_max=1, cleanup_disks_max=1)
    scene.world.pass_time(DAY)
    await clean_up_disks(scene)

    assert {name for name in scene.documents.texts if disk_of_run(name.split("/")[1])} == set()


async def test_more_than_a_night_takes_is_left_for_the_next(scene):
    for value in range(ROUNDS_MAX + 1):
        scene.write(0, value)
        await scene.back_up()
    scene.with_limits(sweeps_max=1)
    scene.world.pass_time(DAY)
    plans = len(scene.documents.texts)
    first, second = await clean_up_disks(scene), await clean_up_disks(scene)

    assert first.output["removed"] == ROUNDS_MAX
    assert 0 < second.output["removed"] == plans - ROUNDS_MAX - len(scene.documents.texts)


async def test_documents_of_rebuilds_and_windows_of_long_ago_go(scene):
    """A bounded number in a call; those younger than runs are kept stay, and so does every other document."""
    old = [fleet_order_name(f"2026010{day}T000000Z") for day in (1, 2)] + [f"{REBUILDS}old.json"]
    for name in (*old, "vm/plan.json"):
        await scene.documents.put(name, "[]")
    scene.world.pass_time(timedelta(days=181))
    young = fleet_order_name("20260701T000000Z")
    await scene.documents.put(young, "[]")
    others = scene.documents.texts.keys() - set(old)
    scene.with_limits(sweeps_max=2)
    gone = [(await clean_up_rebuilds(scene.tools, CleanUpRebuilds(run_days=180))).documents for _ in range(3)]

    assert gone == [2, 1, 0]
    assert young in others
    assert scene.documents.texts.keys() == others


async def test_a_disk_that_fails_stops_no_other_and_is_named(scene):
    scene.protect("db")
    for disk in ("db", "vm"):
        await scene.back_up(disk)
    forget = scene.catalogue.forget_runs

    async def broken(disk, *rest):
        if disk == "db":
            raise RowChangedError("row 7 was changed")
        return await forget(disk, *rest)

    scene.catalogue.forget_runs = broken
    scene.world.pass_time(DAY)
    with pytest.raises(
        CleanupFailedError,
        match="leftovers of 1 disks could not be removed: db: HousekeepingFailed: disk db: rows: RowChanged: row 7",
    ):
        await clean_up_disks(scene)

    assert not [name for name in scene.documents.texts if name.startswith("vm/vm.")]
