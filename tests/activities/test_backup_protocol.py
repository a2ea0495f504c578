"""The protocol of a backup, end to end over in-memory ports: order, recovery, fencing, and what each step refuses."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import timedelta

import pytest

from backup_core.domain.errors import FencedError
from backup_core.domain.metadata import from_metadata, from_point_metadata, run_of_source_snapshot
from backup_core.domain.ranges import ByteRange
from backup_core.orchestrations.backup_disk import BackupFailedError
from backup_core.ports import Fence
from backup_core.steps.backup import BACKUP_STEPS
from backup_core.steps.copying import COPYING_STEPS
from tests.scene import PAGE, Scene


@pytest.fixture(params=["writes", "content"])
def scene(request):
    """A protected disk of 32 pages with some data, under both kinds of diff."""
    stage = Scene(diff=request.param)
    stage.protect()
    stage.write(0, 1, 2, 3, None, 5)
    stage.write(20, 9, 9)
    return stage


def names(driver):
    return [name for name, _, _ in driver.calls if name != "report_progress"]


async def test_a_full_then_increments(scene):
    """Every point keeps the bytes its disk had; only the newest source snapshot stays."""
    contents = []
    for round_ in range(4):
        scene.write(round_, 40 + round_, None, 50 + round_)
        contents.append(scene.blobs.blobs[scene.source()].content())
        await scene.back_up()

    points = scene.points()
    assert [point.kind for point in points] == ["full", "incremental", "incremental", "incremental"]
    assert [scene.content(point) for point in points] == contents
    assert list(scene.blobs.blobs[scene.source()].snapshots) == [points[-1].source_snapshot]
    assert scene.head_row().pair.point == points[-1].point
    assert scene.head_row().owner is None
    assert scene.head_blob().lease == ""


async def test_the_order_of_steps(scene):
    """Verified before the backup snapshot, committed before the old source snapshot goes."""
    driver = await scene.back_up()

    assert names(driver) == [
        "begin", "take_source_snapshot", "plan_transfer", "open_head", "apply_shard", "verify_head",
        "take_backup_snapshot", "commit_point", "drop_previous_snapshot", "prune_points", "finish_run",
    ]  # fmt: skip


async def test_an_empty_diff_commits_a_point_and_transfers_nothing(scene):
    await scene.back_up()
    driver = await scene.back_up()

    assert "apply_shard" not in names(driver)
    first, second = scene.points()
    assert scene.content(first) == scene.content(second)
    assert (second.write_bytes, second.clear_bytes, second.requests) == (0, 0, 0)


async def test_metadata_describes_each_point(scene):
    """What is on the backup snapshot is enough to know the point: with digests that fit."""
    await scene.back_up()
    scene.write(3, 7)
    await scene.back_up()

    for point in scene.points():
        carried = scene.blobs.blobs[scene.tools.head(point.head)].snapshots[point.backup_snapshot].metadata
        assert from_point_metadata(carried, point.head, point.backup_snapshot) == point
        assert from_point_metadata({**carried, "pagekeeper_size": "512"}, point.head, point.backup_snapshot) is None
    assert from_metadata(scene.head_blob().metadata).state == "committed"


async def test_growth_reads_the_whole_new_tail(scene):
    await scene.back_up()
    blob = scene.blobs.blobs[scene.source()]
    blob.size = 48 * PAGE
    scene.write(40, 7, 8)
    await scene.back_up()

    point = scene.points()[-1]
    assert (point.kind, point.size) == ("incremental", 48 * PAGE)
    assert scene.content(point) == blob.content()


async def test_asking_for_a_full_begins_a_new_generation(scene):
    await scene.back_up()
    await scene.back_up(full=True)

    first, second = scene.points()
    assert (second.kind, second.reason) == ("full", "asked for")
    assert second.generation > first.generation
    assert second.head != first.head
    assert scene.content(first) == scene.content(second)
    assert list(scene.blobs.blobs[scene.source()].snapshots) == [second.source_snapshot]
    assert all(blob.lease == "" for blob in scene.blobs.blobs.values())


def overwrite_source(scene):
    """Copy Blob onto the disk: another blob under the same name, its snapshots kept."""
    old = scene.blobs.blobs[scene.source()]
    fresh = scene.blobs.put(scene.source(), old.size)
    fresh.snapshots = old.snapshots
    fresh.created += timedelta(hours=1)
    scene.write(0, 77)


def shrink_source(scene):
    blob = scene.blobs.blobs[scene.source()]
    blob.size = 24 * PAGE


def delete_head(scene):
    del scene.blobs.blobs[scene.tools.head(scene.head_row().head)]


def alter_head(scene):
    scene.blobs.poke(scene.tools.head(scene.head_row().head), 1, [b"\xee" * PAGE])


def strip_metadata(scene):
    scene.head_blob().metadata = {}


def raise_sequence_number(scene):
    scene.head_blob().sequence_number = 1000


def drop_source_snapshot(scene):
    scene.blobs.blobs[scene.source()].snapshots.clear()


@pytest.mark.parametrize(
    ("disturb", "reason"),
    [
        (overwrite_source, "the service refused the diff: BlobOverwritten"),
        (shrink_source, "the disk shrank"),
        (delete_head, "the backup blob is gone"),
        (alter_head, "the backup blob was changed by somebody else"),
        (raise_sequence_number, "the backup blob was changed by somebody else"),
        (strip_metadata, "the backup blob's metadata is not what was written"),
        (drop_source_snapshot, "the previous source snapshot is gone"),
    ],
)
async def test_what_cannot_be_trusted_becomes_a_full_backup(scene, disturb, reason):
    """Never "nothing changed": a new generation, with the reason in words."""
    await scene.back_up()
    disturb(scene)
    await scene.back_up()

    point = scene.points()[-1]
    assert (point.kind, point.reason) == ("full", reason)
    assert all(blob.lease == "" for blob in scene.blobs.blobs.values())
    assert scene.content(point) == scene.blobs.blobs[scene.source()].content()


async def test_a_third_automatic_full_in_a_row_waits_for_a_person(scene):
    await scene.back_up()
    for _ in range(2):
        delete_head(scene)
        await scene.back_up()
    delete_head(scene)
    with pytest.raises(BackupFailedError, match="TooManyAutomaticFulls"):
        await scene.back_up()

    assert len(scene.points()) == 3
    await scene.back_up(full=True)
    assert scene.points()[-1].reason == "asked for"


async def test_a_head_changed_only_in_its_version_is_still_the_base(scene):
    """A crash between marking the head and recording its version must not cost a full backup: the diff since B is empty."""
    await scene.back_up()
    row = scene.catalogue.rows["vm", "head"]
    scene.catalogue.rows["vm", "head"] = replace(row, value=replace(row.value, head_etag='"stale"'))
    scene.write(2, 33)
    await scene.back_up()

    assert scene.points()[-1].kind == "incremental"


async def test_progress_never_goes_back_and_ends_at_100(scene):
    scene.with_limits(shard_bytes_max=PAGE)
    driver = await scene.back_up(wave=2)
    percents = [answer["value"]["percent"] for name, _, answer in driver.calls if name == "report_progress"]

    assert percents == sorted(percents)
    assert len(set(percents)) > 5
    assert max(percents) < 100
    run = scene.rows("run!")[0]
    assert (run.percent, run.state, run.phase) == (100, "Succeeded", "done")
    assert run.bytes_done == run.bytes_total == 6 * PAGE


async def test_a_large_transfer_continues_as_new(scene):
    """History is bounded: after so many shards the instance goes on with an empty one, and the result is the same."""
    scene.protect("big", pages=200)
    for page in range(0, 200, 2):
        scene.write(page, 1 + page % 250, disk="big")
    scene.with_limits(shard_bytes_max=PAGE)
    driver = await scene.back_up("big", wave=4)

    assert driver.executions == 3
    assert scene.content(scene.points("big")[0]) == scene.blobs.blobs[scene.source("big")].content()


# -- ownership --------------------------------------------------------------------------------------------------


async def stop_before(scene, step, **fields):
    """A run whose orchestration dies just before `step`; its request."""
    request = scene.request(**fields)
    driver = scene.driver()

    async def perform(name, asked):
        if name == step:
            raise KeyboardInterrupt
        return await scene.perform(name, asked)

    driver._perform = perform
    scene.stopped = driver
    with pytest.raises(KeyboardInterrupt):
        await driver.run("backup_disk", request.model_dump(mode="json"), request.run)
    return request


OTHERS = {"list_disks", "begin_new_generation", "raise_epoch", "report_progress", "begin"}
COPY_BLOB = {"start_copy", "check_copy", "abort_copy", "take_over_copy"}
ALL_STEPS = [step.name for step in (*BACKUP_STEPS, *COPYING_STEPS) if step.name not in OTHERS | COPY_BLOB]
"""Steps of a backup by pages, after its begin."""


async def test_a_second_run_is_skipped_while_one_is_at_work(scene):
    await stop_before(scene, "verify_head")
    before = scene.dump()
    driver = await scene.back_up()

    assert driver.output["state"] == "skipped"
    run = scene.rows("run!")[0]
    assert (run.state, "was at work" in run.reason) == ("Skipped", True)
    assert scene.dump() == before


@pytest.mark.parametrize("step", ALL_STEPS)
@pytest.mark.parametrize("base", ["first", "later"])
async def test_a_dead_run_is_taken_over_after_its_heartbeat(scene, step, base):
    """Whatever step it died before: no point is lost or doubled, every point keeps its bytes, the new one is of now."""
    kept = []
    if base == "later":
        await scene.back_up()
        kept = [(point, scene.content(point)) for point in scene.points()]
    scene.write(6, 61, None, 63)
    await stop_before(scene, step)
    scene.write(7, 71)
    scene.world.pass_time(timedelta(minutes=16))
    await scene.back_up()

    newest = scene.points()[-1]
    assert scene.content(newest) == scene.blobs.blobs[scene.source()].content()
    assert all(scene.content(point) == content for point, content in kept)
    assert len({point.source_snapshot for point in scene.points()}) == len(scene.points())
    assert scene.head_row().owner is None
    assert scene.head_row().pair.point == newest.point
    if base == "later":
        assert newest.kind == "incremental"


async def test_an_interrupted_target_is_finished_first_then_a_fresh_one(scene):
    """After a half-applied diff a newer snapshot with a diff from the last point would corrupt: the old target comes first."""
    await scene.back_up()
    scene.write(6, 61, 62)
    await stop_before(scene, "verify_head")
    half = scene.blobs.blobs[scene.source()].content()
    scene.write(6, 1)
    scene.world.pass_time(timedelta(minutes=16))
    driver = await scene.back_up()

    first, finished, fresh = scene.points()
    assert fresh.epoch == finished.epoch + 1, "a put of the first transfer must not reach the second"
    assert names(driver).count("commit_point") == 2
    assert scene.content(finished) == half
    assert finished.reason == "finishes an interrupted run"
    assert scene.content(fresh) == scene.blobs.blobs[scene.source()].content()
    assert driver.output["points"] == [finished.point, fresh.point]
    assert first.point < finished.point < fresh.point


async def test_a_late_put_of_the_first_target_does_not_reach_the_second(scene):
    """A run that finishes an interrupted target goes on under the same lease: the epoch alone shuts its own past out."""
    await scene.back_up()
    scene.write(6, 61, 62)
    await stop_before(scene, "verify_head")
    scene.world.pass_time(timedelta(minutes=16))
    scene.write(6, 71)
    request, driver, late = scene.request(), scene.driver(), []

    async def perform(name, asked):
        answer = await scene.perform(name, asked)
        if name == "apply_shard":
            late.append(asked["image"]["by"])
        if name == "open_head" and late:
            fence = Fence(late[0]["lease"], late[0]["epoch"])
            with pytest.raises(FencedError):
                await scene.blobs.copy_from_url(
                    scene.source(),
                    asked["target"],
                    ByteRange(6 * PAGE, 7 * PAGE),
                    scene.tools.head(asked["destination"]),
                    fence,
                )
            late.append("refused")
        return answer

    driver._perform = perform
    await driver.run("backup_disk", request.model_dump(mode="json"), request.run)

    assert "refused" in late
    assert scene.content(scene.points()[-1]) == scene.blobs.blobs[scene.source()].content()


@pytest.mark.parametrize("page", [2, 6])
async def test_a_stranger_on_a_half_applied_head(scene, page):
    """A dirty head touched outside the interrupted diff is given up; inside it, the page is written again anyway."""
    await scene.back_up()
    scene.write(6, 61, 62)
    await stop_before(scene, "verify_head")
    scene.blobs.poke(scene.tools.head(scene.head_row().head), page, [b"\xee" * PAGE])
    scene.world.pass_time(timedelta(minutes=16))
    await scene.back_up()

    for point in scene.points():
        assert b"\xee" * PAGE not in scene.content(point)
    newest = scene.points()[-1]
    assert newest.kind == ("full" if page == 2 else "incremental")
    assert scene.content(newest) == scene.blobs.blobs[scene.source()].content()


async def test_a_mismatch_quarantines_the_head(scene):
    """The run fails; the next one does not build upon that head, and says why."""
    await scene.back_up()
    scene.write(6, 61)
    request, driver = scene.request(), scene.driver()

    async def perform(name, asked):
        if name == "verify_head":
            scene.head_blob().pages[30] = b"\x01" * PAGE
        return await scene.perform(name, asked)

    driver._perform = perform
    with pytest.raises(BackupFailedError, match="VerificationMismatch"):
        await driver.run("backup_disk", request.model_dump(mode="json"), request.run)
    assert scene.head_row().doubt == "the backup blob failed its verification"
    await scene.back_up()

    point = scene.points()[-1]
    assert (point.kind, point.reason) == ("full", "the backup blob failed its verification")
    assert scene.head_row().doubt == ""
    assert scene.content(point) == scene.blobs.blobs[scene.source()].content()


@pytest.mark.parametrize("verification", ["sampled", "full"])
async def test_equal_maps_with_other_content_are_found(scene, verification):
    """A byte that differs in an allocated page: by samples on a small disk nearly all blocks are read, by `full` all."""
    row = scene.catalogue.rows["vm", "policy"]
    scene.catalogue.rows["vm", "policy"] = replace(row, value=replace(row.value, verification=verification))
    await scene.back_up()
    scene.write(6, 61)
    request, driver = scene.request(), scene.driver()

    async def perform(name, asked):
        if name == "verify_head":
            scene.head_blob().pages[1] = b"\x01" * PAGE
        return await scene.perform(name, asked)

    driver._perform = perform
    with pytest.raises(
        BackupFailedError,
        match=r"VerificationMismatch.*\[0, 4096\)|VerificationMismatch.*\[0, 2560\)|VerificationMismatch.*\[0, 1536\)",
    ):
        await driver.run("backup_disk", request.model_dump(mode="json"), request.run)

    assert len(scene.points()) == 1


async def test_full_verification_reads_every_allocated_byte(scene):
    row = scene.catalogue.rows["vm", "policy"]
    scene.catalogue.rows["vm", "policy"] = replace(row, value=replace(row.value, verification="full"))
    await scene.back_up()

    assert scene.points()[0].verified == f"sizes, page maps, {6 * PAGE} bytes of content"


async def test_a_long_verification_is_resumed(scene):
    """Time's up after each window: maps and content go on where they were, and the digest is the same."""
    await scene.back_up()
    ticks = iter(range(0, 10**9, 1000))
    scene.tools = replace(scene.tools, monotonic=lambda: float(next(ticks)))
    scene.with_limits(window_bytes=5 * PAGE, content_bytes=8 * PAGE)
    driver = await scene.back_up(full=True)

    first, second = scene.points()
    assert names(driver).count("verify_head") > 8
    assert scene.content(second) == scene.content(first)


async def test_a_broken_lease_is_noticed_and_never_taken_again(scene):
    """Somebody breaks the head's lease during a run: its writes are refused and it fails; the next run repairs."""
    await scene.back_up()
    scene.write(6, 61)
    request = scene.request()
    driver = scene.driver()

    async def perform(name, asked):
        if name == "apply_shard":
            scene.head_blob().lease = ""
        return await scene.perform(name, asked)

    driver._perform = perform
    with pytest.raises(BackupFailedError, match="Fenced"):
        await driver.run("backup_disk", request.model_dump(mode="json"), request.run)
    assert scene.run_row(request.run).error.code == "Fenced"
    await scene.back_up()

    assert scene.content(scene.points()[-1]) == scene.blobs.blobs[scene.source()].content()


# -- delivered twice, and late --------------------------------------------------------------------------------------


async def test_every_activity_twice_in_a_row(scene):
    """At-least-once delivery: the second time answers the same and the run's result is the same."""
    await scene.back_up()
    scene.write(6, 61, None, 63)
    await stop_before(scene, "verify_head")
    scene.world.pass_time(timedelta(minutes=16))
    scene.write(6, 71)
    request, driver = scene.request(), scene.driver()

    async def twice(name, asked):
        first = await scene.perform(name, asked)
        second = await scene.perform(name, asked)
        if name not in ("report_progress", "begin"):
            assert second == first, name
        return second

    driver._perform = twice
    await driver.run("backup_disk", request.model_dump(mode="json"), request.run)

    assert "raise_epoch" in names(driver)
    assert len(scene.points()) == 3
    assert scene.content(scene.points()[-1]) == scene.blobs.blobs[scene.source()].content()
    assert len(scene.head_blob().snapshots) == 3


async def test_begin_twice_is_the_same_begin(scene):
    request, driver = scene.request(), scene.driver()
    answers = []

    async def perform(name, asked):
        answer = await scene.perform(name, asked)
        if name == "begin":
            answers.extend([answer, await scene.perform(name, asked)])
        return answer

    driver._perform = perform
    await driver.run("backup_disk", request.model_dump(mode="json"), request.run)

    first, second = (answer["value"] for answer in answers)
    assert {key: first[key] for key in ("epoch", "generation", "head", "state")} == {
        key: second[key] for key in ("epoch", "generation", "head", "state")
    }


@pytest.mark.parametrize("moment", ["after the next run began", "after the next run ended"])
async def test_every_activity_delivered_late_changes_nothing(scene, moment):
    """Calls of an ended run come again once the next has begun, or ended: they bounce, and nothing but run rows differs."""
    await scene.back_up()
    scene.write(6, 61, None, 63)
    old = await scene.back_up()
    scene.write(8, 81)
    if moment == "after the next run began":
        await stop_before(scene, "verify_head")
    else:
        await scene.back_up()
    before = scene.dump()

    for name, asked, _ in old.calls:
        answer = await scene.perform(name, asked)
        if name == "begin":
            assert answer["value"]["state"] == "ended"
        elif name != "finish_run":
            assert answer["fault"]["code"] == "NotOwner", name
        assert scene.dump() == before, name


async def test_a_write_that_arrives_late_is_refused_by_the_service_itself(scene):
    """Past the ownership check too: lease and epoch on the head are the last line."""
    await scene.back_up()
    scene.write(6, 61)
    await stop_before(scene, "verify_head")
    asked = next(asked for name, asked, _ in scene.stopped.calls if name == "apply_shard")
    scene.world.pass_time(timedelta(minutes=16))
    await stop_before(scene, "verify_head")
    row = scene.catalogue.rows["vm", "head"]
    claimed = replace(
        row.value.owner,
        run=asked["image"]["by"]["run"],
        lease=asked["image"]["by"]["lease"],
        epoch=asked["image"]["by"]["epoch"],
    )
    scene.catalogue.rows["vm", "head"] = replace(row, value=replace(row.value, owner=claimed))
    before = scene.dump()

    answer = await scene.perform("apply_shard", asked)

    assert answer["fault"]["code"] == "Fenced"
    assert scene.dump() == before


async def test_two_orchestrations_of_one_run(scene):
    """The instance id races: a second instance of the same run steps back and leaves the first alone."""
    request = await stop_before(scene, "verify_head")
    before = scene.dump(with_runs=True)
    driver = scene.driver()
    output = await driver.run("backup_disk", request.model_dump(mode="json"), request.run, seed="another lease")

    assert output["state"] == "ended"
    assert scene.dump(with_runs=True) == before


# -- verification -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("damage", ["page lost", "page too many", "size"])
async def test_a_damaged_head_is_never_committed(scene, damage):
    """Whatever is wrong with the head's map or size is found before the backup snapshot."""
    request, driver = scene.request(), scene.driver()

    async def perform(name, asked):
        if name == "verify_head":
            head = scene.blobs.blobs[scene.tools.head(asked["transfer"]["destination"])]
            if damage == "page lost":
                head.pages.pop(1, None)
            elif damage == "page too many":
                head.pages[30] = b"\x01" * PAGE
            else:
                head.size -= PAGE
        return await scene.perform(name, asked)

    driver._perform = perform
    with pytest.raises(BackupFailedError, match="VerificationMismatch"):
        await driver.run("backup_disk", request.model_dump(mode="json"), request.run)

    assert scene.points() == []
    run = scene.run_row(request.run)
    assert (run.state, run.error.code) == ("Failed", "VerificationMismatch")


async def test_a_write_during_verification_is_noticed(scene):
    """The mark is written under the version the comparison began with."""
    await scene.back_up()
    scene.write(6, 61)
    request, driver = scene.request(), scene.driver()
    original = scene.blobs.allocated
    armed = []

    def allocated(blob, snapshot, window):
        if armed and blob == scene.source():
            armed.clear()
            scene.blobs.poke(scene.tools.head(scene.head_row().head), 5, [b"\xee" * PAGE])
        return original(blob, snapshot, window)

    async def perform(name, asked):
        if name == "verify_head":
            armed.append(True)
        return await scene.perform(name, asked)

    scene.blobs.allocated = allocated
    driver._perform = perform
    with pytest.raises(BackupFailedError, match=r"BlobChanged|VerificationMismatch"):
        await driver.run("backup_disk", request.model_dump(mode="json"), request.run)

    assert len(scene.points()) == 1


async def test_zeros_written_on_one_side_only_are_proved(scene):
    """A page of explicit zeros is allocated on one side only: read, found zero, accepted."""
    scene.write(10, 0)
    await scene.back_up()
    scene.write(11, 0)
    await scene.back_up()

    assert scene.content(scene.points()[-1]) == scene.blobs.blobs[scene.source()].content()


# -- what is kept from history --------------------------------------------------------------------------------------


async def test_history_carries_references_only(scene):
    """No step's input or output grows with the ranges."""
    for page in range(0, 32, 2):
        scene.write(page, page + 1)
    driver = await scene.back_up()

    assert max(len(json.dumps(asked)) + len(json.dumps(answer)) for _, asked, answer in driver.calls) < 2500


async def test_source_snapshots_say_whose_they_are(scene):
    await scene.back_up()

    (snapshot,) = scene.blobs.blobs[scene.source()].snapshots.values()
    assert run_of_source_snapshot(snapshot.metadata).startswith("vm.")


async def test_the_source_is_never_written_or_leased(scene):
    before = scene.blobs.blobs[scene.source()].etag, scene.blobs.blobs[scene.source()].content()
    await scene.back_up()
    await scene.back_up()

    blob = scene.blobs.blobs[scene.source()]
    assert (blob.etag, blob.content(), blob.lease) == (*before, "")


async def test_the_old_source_snapshot_is_kept_while_the_new_pair_is_in_doubt(scene):
    """Both halves of the new pair are looked up before the old snapshot goes; when one is missing, nothing is deleted."""
    await scene.back_up()
    (old,) = scene.blobs.blobs[scene.source()].snapshots
    scene.write(6, 61)
    request, driver = scene.request(), scene.driver()

    async def perform(name, asked):
        if name == "drop_previous_snapshot":
            scene.head_blob().snapshots.pop(scene.head_row().pair.backup_snapshot)
        return await scene.perform(name, asked)

    driver._perform = perform
    with pytest.raises(BackupFailedError, match="SnapshotMissing"):
        await driver.run("backup_disk", request.model_dump(mode="json"), request.run)

    assert old in scene.blobs.blobs[scene.source()].snapshots


@pytest.mark.parametrize("side", ["source only", "head only"])
async def test_one_sided_ranges_with_data_are_found_by_the_maps_alone(scene, monkeypatch, side):
    """Without any content sample: a page that only one side has and that is not zero fails the run."""

    async def nothing(*_, **__):
        return 0

    monkeypatch.setattr("backup_core.activities.verification._compare_content", nothing)
    await scene.back_up()
    scene.write(6, 61)
    request, driver = scene.request(), scene.driver()

    async def perform(name, asked):
        if name == "verify_head" and side == "source only":
            del scene.head_blob().pages[1]
        elif name == "verify_head":
            scene.head_blob().pages[30] = b"\x01" * PAGE
        return await scene.perform(name, asked)

    driver._perform = perform
    with pytest.raises(BackupFailedError, match=r"VerificationMismatch.*has none"):
        await driver.run("backup_disk", request.model_dump(mode="json"), request.run)


async def test_a_head_altered_after_begin_is_noticed_before_the_first_write(scene):
    """The intent is written under the version `begin` left; nothing is written on another one."""
    await scene.back_up()
    scene.write(6, 61)
    request, driver = scene.request(), scene.driver()

    async def perform(name, asked):
        if name == "open_head":
            scene.blobs.poke(scene.tools.head(scene.head_row().head), 1, [b"\xee" * PAGE])
        return await scene.perform(name, asked)

    driver._perform = perform
    with pytest.raises(BackupFailedError, match="HeadAltered"):
        await driver.run("backup_disk", request.model_dump(mode="json"), request.run)
    assert "apply_shard" not in names(driver)
    await scene.back_up()

    newest = scene.points()[-1]
    assert (newest.kind, newest.reason) == ("full", "the backup blob was changed by somebody else")


async def test_a_backup_snapshot_with_damaged_metadata_is_not_committed(scene):
    request, driver = scene.request(), scene.driver()

    async def perform(name, asked):
        if name == "commit_point":
            head = scene.blobs.blobs[scene.tools.head(asked["transfer"]["destination"])]
            head.snapshots[asked["backup_snapshot"]].metadata["pagekeeper_size"] = "512"
        return await scene.perform(name, asked)

    driver._perform = perform
    with pytest.raises(BackupFailedError, match=r"UnexpectedAnswer.*description is damaged"):
        await driver.run("backup_disk", request.model_dump(mode="json"), request.run)

    assert scene.points() == []
