"""Restores to managed disks that backups continue from: the first snapshot, the footer, what is left when it fails anywhere."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest

from backup_core.activities.housekeeping import clean_up_disk
from backup_core.domain.ending import HEARTBEAT_MAX
from backup_core.domain.naming import managed_disk_id, point_id, point_key
from backup_core.domain.records import Slot
from backup_core.orchestrations.restore_disk import RestoreFailedError
from tests.activities.acts import (
    FINAL,
    RUN,
    STEPS_OF_A_RESTORE,
    attached_disk,
    before_step,
    cancel,
    contents_of,
    everything_kept,
    failing,
    into,
    names,
    on,
    sane,
    stopped_before,
)
from tests.activities.restores.managed import KINDS, NEW, NIGHT, OLD, machine_with_managed_disk
from tests.scene import PAGE, VM

ADOPTED = into(managed_disk=NEW, old_disk=OLD)
STEPS = [
    *(one for one in STEPS_OF_A_RESTORE if one != "close_change"),
    "import_disk",
    "take_source_snapshot",
    "compare_snapshot",
]


@pytest.fixture(params=KINDS)
async def stage(request):
    return await machine_with_managed_disk(request.param, ADOPTED)


def new(scene):
    return scene.blobs.disks[scene.tools.source(NEW)]


def nothing_is_left(scene):
    """Of a restore that was not committed: no access, and no snapshot on the disk that it made."""
    assert scene.blobs.open == set()
    made = scene.blobs.disks.get(scene.tools.source(NEW))
    assert made is None or made.snapshots == {}


async def test_a_disk_that_is_shared_meanwhile_is_not_exchanged(stage):
    """The restore was requested when it was not shared yet: the other machine would stay on the old disk."""
    old, other = stage.wanted["old_disk"], f"{VM}-other"
    stage.machines.disks[old] = replace(stage.machines.disks[old], unkept=(("maxShares", "2"),))
    stage.machines.add(other, *stage.machines.machines[VM].disks)
    with pytest.raises(RestoreFailedError, match=rf"is shared: {other} would stay on it.*the machine was not changed"):
        await stage.restore(stage.points()[0], **stage.wanted)

    assert attached_disk(stage) == old
    nothing_is_left(stage)


@pytest.mark.parametrize("signs", [False, True])
async def test_the_next_backup_is_an_increment_and_all_points_stay(stage, signs):
    """Also where Azure has given the new disk a footer of its own: the head ends as the disk does."""
    stage.machines.signs = signs
    contents, last = contents_of(stage), stage.head_row().pair.source_snapshot
    first = stage.points()[0]
    await stage.restore(first, **stage.wanted)

    sane(stage)
    assert attached_disk(stage) == stage.claims().popitem()[0] == NEW
    restored = stage.points()[-1]
    assert (restored.kind, restored.source) == ("restored", NEW)
    assert list(new(stage).snapshots) == [restored.source_snapshot]
    assert stage.content(restored)[:-PAGE] == contents[first.point][:-PAGE]
    assert (stage.content(restored)[-PAGE:] == contents[first.point][-PAGE:]) != signs
    assert last in stage.blobs.blobs[stage.source()].snapshots, "the old disk keeps its last snapshot"
    stage.blobs.poke(stage.tools.source(NEW), 4, [bytes([77]) * PAGE])
    await stage.back_up()
    assert (stage.points()[-1].kind, stage.points()[-1].write_bytes) == ("incremental", PAGE)
    sane(stage)
    everything_kept(stage, contents)
    assert stage.rows("registration")[0].unprotected == ""


async def test_the_snapshot_is_taken_before_the_machine_has_the_disk(stage):
    """And what the guest writes from then on is in the next increment."""

    def guest(_):
        stage.blobs.poke(stage.tools.source(NEW), 9, [b"\7" * PAGE])

    def attached(request):
        assert new(stage).snapshots, request
        assert stage.run_row(RUN).source_snapshots == tuple(new(stage).snapshots)

    driver = before_step(stage, "store_change", attached)
    await stage.restore(stage.points()[0], driver=driver, **stage.wanted)
    guest(None)
    await stage.back_up()

    assert stage.points()[-1].kind == "incremental"
    sane(stage)


async def test_a_disk_that_was_unprotected_is_protected_again(stage):
    """By a restore that is adopted; one that is not says so, as before."""
    await stage.restore(stage.points()[0], **(stage.wanted | {"adopt": False}))
    assert "is not backed up" in stage.rows("registration")[0].unprotected
    again = {
        **stage.wanted,
        "managed_disk": managed_disk_id(VM, "newer"),
        "old_disk": NEW,
        "target": "https://source.test/vhds/2.vhd",
    }
    await stage.restore(stage.points()[0], run="vm.20260102T030406Z.0000abce", **again)

    assert stage.rows("registration")[0].unprotected == ""
    sane(stage)


async def test_by_hand_no_machine_is_touched(stage):
    before = attached_disk(stage)
    await stage.restore(stage.points()[0], adopt=True, managed_disk=NEW, slot=Slot(VM, 0))

    assert (attached_disk(stage), stage.rows("registration")[0].source) == (before, NEW)
    stage.blobs.poke(stage.tools.source(NEW), 4, [bytes([77]) * PAGE])
    await stage.back_up()
    assert stage.points()[-1].kind == "incremental"
    assert stage.content(stage.points()[-1]) == stage.bytes_of(NEW)


async def test_a_snapshot_that_is_filled_in_the_background_is_waited_for(stage):
    stage.blobs.fill_percent = 30
    await stage.restore(stage.points()[0], **stage.wanted)

    sane(stage)


async def test_a_disk_that_differs_from_its_restore_point_is_given_to_no_machine(stage):
    """Azure made it of something else."""
    before = attached_disk(stage)

    def spoil(_):
        stage.blobs.poke(stage.tools.source(NEW), 2, [b"\xff" * PAGE])

    driver = before_step(stage, "take_source_snapshot", spoil)
    with pytest.raises(RestoreFailedError, match="VerificationMismatch"):
        await stage.restore(stage.points()[0], driver=driver, **stage.wanted)

    assert attached_disk(stage) == before
    assert "was not used" in on(stage).end
    nothing_is_left(stage)
    await stage.back_up()


@pytest.mark.parametrize("step", STEPS)
async def test_a_failure_at_each_step(stage, step):
    """The machine has one of the two disks, it is the one that is backed up, and nothing is left of the other way."""
    before, contents = attached_disk(stage), contents_of(stage)
    driver = failing(stage, step, FINAL)
    with pytest.raises(RestoreFailedError):
        await stage.restore(stage.points()[0], driver=driver, **stage.wanted)

    assert attached_disk(stage) in (before, NEW)
    assert (attached_disk(stage) == NEW) == (step in ("adopt_head", "take_backup_snapshot", "commit_point"))
    registered = stage.rows("registration")[0].source
    assert registered == (NEW if attached_disk(stage) == NEW else str(stage.source()))
    assert stage.head_row().owner is None
    nothing_is_left(stage)
    everything_kept(stage, contents)
    await stage.back_up()
    assert stage.content(stage.points()[-1]) == stage.bytes_of(registered)


@pytest.mark.parametrize("step", STEPS)
async def test_a_cancel_at_each_step(stage, step):
    """A cancel counts until the machine is touched; later the restore is completed."""
    before = attached_disk(stage)
    driver = before_step(stage, step, lambda _: cancel(stage, RUN))
    await stage.restore(stage.points()[0], driver=driver, **stage.wanted)
    ended = stage.run_row(RUN).state

    assert (attached_disk(stage) == NEW) == (ended == "Succeeded")
    assert attached_disk(stage) == (NEW if ended == "Succeeded" else before)
    if ended != "Succeeded":
        nothing_is_left(stage)
    assert stage.blobs.open == set()
    await stage.back_up()


@pytest.mark.parametrize("step", STEPS)
async def test_a_restore_that_dies_at_each_step_leaves_nothing(stage, step):
    """The next backup brings it to an end, and a night, a day later, removes what it had taken."""
    contents = contents_of(stage)
    await stopped_before(stage, step, **stage.wanted)
    stage.world.pass_time(HEARTBEAT_MAX + timedelta(minutes=1))
    await stage.back_up()
    stage.world.pass_time(timedelta(hours=25))
    await clean_up_disk(stage.tools, NIGHT)

    registered = stage.rows("registration")[0].source
    assert registered == (NEW if attached_disk(stage) == NEW else str(stage.source()))
    assert stage.content(stage.points()[-1]) == stage.bytes_of(registered)
    if registered == NEW:
        assert list(new(stage).snapshots) == [stage.head_row().pair.source_snapshot]
        assert stage.blobs.open == set()
    else:
        nothing_is_left(stage)
    everything_kept(stage, contents)


async def test_the_night_ends_the_access_that_a_dead_restore_has_opened(stage):
    await stopped_before(stage, "store_change", **stage.wanted)
    assert {disk for disk, _ in stage.blobs.open} >= {stage.tools.source(NEW)}
    stage.world.pass_time(HEARTBEAT_MAX + timedelta(minutes=1))
    await clean_up_disk(stage.tools, NIGHT)

    assert stage.blobs.open == set()


async def test_a_snapshot_that_the_clocks_call_older_is_not_adopted(stage):
    """Nothing is given to the machine: the restore point would not be the newest."""
    before = attached_disk(stage)
    later = (stage.world.now + timedelta(days=2)).strftime("%Y-%m-%dT%H:%M:%S.%f") + "0Z"

    def late(_):
        head = stage.head_row()
        stage.catalogue._store(replace(head, pair=replace(head.pair, source_snapshot=later)), "head")

    driver = before_step(stage, "compare_snapshot", late)
    with pytest.raises(RestoreFailedError, match="older, by the clocks"):
        await stage.restore(stage.points()[0], driver=driver, **stage.wanted)
    assert attached_disk(stage) == before
    nothing_is_left(stage)


async def test_a_commit_whose_answer_was_lost_keeps_its_snapshot(stage):
    """The restore receives a failure; the restore point stands, and the next backup is an increment on it."""
    driver, perform = stage.driver(), stage.perform

    async def lost(name, request):
        answer = await perform(name, request)
        if name == "commit_point":
            return {"fault": {**FINAL, "message": "refused by the test"}, "value": None}
        return answer

    driver._perform = lost
    with pytest.raises(RestoreFailedError):
        await stage.restore(stage.points()[0], driver=driver, **stage.wanted)

    pair = stage.head_row().pair
    assert list(new(stage).snapshots) == [pair.source_snapshot]
    assert "is left" in on(stage).end
    stage.blobs.poke(stage.tools.source(NEW), 4, [bytes([77]) * PAGE])
    await stage.back_up()
    assert stage.points()[-1].kind == "incremental"
    sane(stage)


async def test_the_last_snapshot_of_a_disk_that_was_adopted_once_stays(stage):
    """Also when its restore point has expired: the app deletes nothing of a disk that it does not back up any more."""
    await stage.restore(stage.points()[0], **stage.wanted)
    (last,) = new(stage).snapshots
    again = {"managed_disk": managed_disk_id(VM, "newer"), "old_disk": NEW, "target": "https://source.test/vhds/2.vhd"}
    await stage.restore(stage.points()[0], run="vm.20260102T030406Z.0000abce", **(stage.wanted | again))
    del stage.catalogue.rows["vm", point_key(point_id(last))]
    stage.world.pass_time(timedelta(hours=25))
    await clean_up_disk(stage.tools, NIGHT)

    assert list(new(stage).snapshots) == [last]


async def test_the_night_deletes_no_snapshot_that_another_took(stage):
    """On a disk that a restore has made: one that does not name the run itself stays, whatever the run's row says."""
    await stopped_before(stage, "store_change", **stage.wanted)
    (taken,) = new(stage).snapshots
    new(stage).snapshots[taken].metadata = {}
    stage.world.pass_time(HEARTBEAT_MAX + timedelta(minutes=1))
    await stage.back_up()
    stage.world.pass_time(timedelta(hours=25))
    await clean_up_disk(stage.tools, NIGHT)

    assert list(new(stage).snapshots) == [taken]


async def test_a_snapshot_that_cannot_be_removed_is_not_left_open(stage):
    """A lock on the snapshots: the restore says what is left, and ends the access; a later night removes it."""
    disk = stage.tools.source(NEW)
    driver = failing(stage, "store_change", FINAL)
    perform = driver._perform

    async def locked(name, request):
        if name == "discard_snapshot":
            return {"fault": {**FINAL, "message": "refused by the test"}, "value": None}
        return await perform(name, request)

    driver._perform = locked
    with pytest.raises(RestoreFailedError):
        await stage.restore(stage.points()[0], driver=driver, **stage.wanted)

    assert stage.blobs.open == set()
    assert f"a snapshot of the managed disk is left, which the night removes: {disk}" in on(stage).end
    stage.world.pass_time(timedelta(hours=25))
    await clean_up_disk(stage.tools, NIGHT)
    nothing_is_left(stage)


async def test_a_disk_that_differs_is_not_adopted_by_hand(stage):
    before = attached_disk(stage)
    driver = failing(stage, "compare_snapshot", FINAL)
    with pytest.raises(RestoreFailedError):
        await stage.restore(stage.points()[0], driver=driver, adopt=True, managed_disk=NEW, slot=Slot(VM, 0))

    assert (attached_disk(stage), stage.rows("registration")[0].source) == (before, str(stage.source()))
    nothing_is_left(stage)


async def test_a_long_comparison_continues_step_by_step(stage):
    stage.with_limits(verify_seconds=-1.0, window_bytes=8 * PAGE)
    driver = stage.driver()
    await stage.restore(stage.points()[0], driver=driver, **stage.wanted)

    assert names(driver).count("compare_snapshot") > 2
    sane(stage)


async def test_a_long_comparison_is_canceled(stage):
    before = attached_disk(stage)
    stage.with_limits(verify_seconds=-1.0, window_bytes=8 * PAGE)
    driver = before_step(stage, "compare_snapshot", lambda _: cancel(stage, RUN), count=2)
    await stage.restore(stage.points()[0], driver=driver, **stage.wanted)

    assert (stage.run_row(RUN).state, attached_disk(stage)) == ("Canceled", before)
    nothing_is_left(stage)


async def test_a_snapshot_that_is_never_filled_fails_the_restore(stage):
    before = attached_disk(stage)
    driver = before_step(stage, "take_source_snapshot", lambda _: setattr(stage.blobs, "fill_percent", 0))
    with pytest.raises(RestoreFailedError, match="SnapshotNotReady"):
        await stage.restore(stage.points()[0], driver=driver, **stage.wanted)

    assert attached_disk(stage) == before
    nothing_is_left(stage)


async def test_a_restore_that_waits_for_its_snapshot_is_canceled(stage):
    before = attached_disk(stage)
    stage.blobs.fill_percent = 1
    driver = before_step(stage, "take_source_snapshot", lambda _: cancel(stage, RUN), count=3)
    await stage.restore(stage.points()[0], driver=driver, **stage.wanted)

    assert (stage.run_row(RUN).state, attached_disk(stage)) == ("Canceled", before)
    nothing_is_left(stage)


async def test_a_restore_by_hand_that_is_canceled_while_it_waits(stage):
    stage.blobs.fill_percent = 1
    driver = before_step(stage, "take_source_snapshot", lambda _: cancel(stage, RUN), count=2)
    await stage.restore(stage.points()[0], driver=driver, adopt=True, managed_disk=NEW, slot=Slot(VM, 0))

    assert stage.run_row(RUN).state == "Canceled"
    assert stage.rows("registration")[0].source == str(stage.source())
    nothing_is_left(stage)
