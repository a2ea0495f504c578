"""Ownership of a head: runs beside each other, runs that died, and steps delivered twice or late."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest

from backup_core.domain.ending import HEARTBEAT_MAX
from backup_core.domain.errors import FencedError
from backup_core.domain.naming import shard_end_name
from backup_core.domain.ranges import ByteRange
from backup_core.orchestrations.backup_disk import BackupFailedError
from backup_core.ports import Fence
from tests.activities.acts import STEPS_OF_A_BACKUP, before_step, names, stop_before
from tests.scene import PAGE


async def test_a_second_run_is_skipped_while_one_is_at_work(scene):
    await stop_before(scene, "verify_head")
    before = scene.dump()
    driver = await scene.back_up()

    assert driver.output["state"] == "skipped"
    run = scene.rows("run!")[0]
    assert (run.state, "was at work" in run.reason) == ("Skipped", True)
    assert scene.dump() == before


@pytest.mark.parametrize("step", STEPS_OF_A_BACKUP)
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
    scene.world.pass_time(HEARTBEAT_MAX + timedelta(minutes=1))
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
    scene.world.pass_time(HEARTBEAT_MAX + timedelta(minutes=1))
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
    """A run that finishes an interrupted target continues under the same lease: the epoch alone fences off its earlier requests."""
    await scene.back_up()
    scene.write(6, 61, 62)
    await stop_before(scene, "verify_head")
    scene.world.pass_time(HEARTBEAT_MAX + timedelta(minutes=1))
    scene.write(6, 71)
    request, driver, late = scene.request(), scene.driver(), []

    async def perform(name, step_input):
        answer = await scene.perform(name, step_input)
        if name == "apply_shard":
            late.append(step_input["image"]["actor"])
        if name == "open_head" and late:
            fence = Fence(late[0]["lease"], late[0]["epoch"])
            with pytest.raises(FencedError):
                await scene.blobs.copy_from_url(
                    scene.source(),
                    step_input["target"],
                    ByteRange(6 * PAGE, 7 * PAGE),
                    scene.tools.head(step_input["destination"]),
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
    scene.world.pass_time(HEARTBEAT_MAX + timedelta(minutes=1))
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
    request = scene.request()
    driver = before_step(scene, "verify_head", lambda _: scene.head_blob().pages.update({30: b"\x01" * PAGE}))
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
    row = scene.catalogue.rows["vm", "registration"]
    scene.catalogue.rows["vm", "registration"] = replace(row, value=replace(row.value, verification=verification))
    await scene.back_up()
    scene.write(6, 61)
    request = scene.request()
    driver = before_step(scene, "verify_head", lambda _: scene.head_blob().pages.update({1: b"\x01" * PAGE}))
    with pytest.raises(
        BackupFailedError,
        match=r"VerificationMismatch.*bytes \[0, \d+\)",
    ):
        await driver.run("backup_disk", request.model_dump(mode="json"), request.run)

    assert len(scene.points()) == 1


async def test_full_verification_reads_every_allocated_byte(scene):
    row = scene.catalogue.rows["vm", "registration"]
    scene.catalogue.rows["vm", "registration"] = replace(row, value=replace(row.value, verification="full"))
    await scene.back_up()

    assert scene.points()[0].verified == f"sizes, page maps, {6 * PAGE + scene.footer_bytes} bytes of content"


async def test_a_long_verification_is_resumed(scene):
    """Time's up after each window: maps and content continue where they were, and the digest is the same."""
    await scene.back_up()
    ticks = iter(range(0, 10**9, 1000))
    scene.tools = replace(scene.tools, monotonic=lambda: float(next(ticks)))
    scene.with_limits(window_bytes=5 * PAGE, batch_reads=1)
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

    async def perform(name, step_input):
        if name == "apply_shard":
            scene.head_blob().lease = ""
        return await scene.perform(name, step_input)

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
    scene.world.pass_time(HEARTBEAT_MAX + timedelta(minutes=1))
    scene.write(6, 71)
    request, driver = scene.request(), scene.driver()

    async def twice(name, step_input):
        first = await scene.perform(name, step_input)
        second = await scene.perform(name, step_input)
        if name not in ("report_progress", "begin_backup"):
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

    async def perform(name, step_input):
        answer = await scene.perform(name, step_input)
        if name == "begin_backup":
            answers.extend([answer, await scene.perform(name, step_input)])
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

    for name, request, _ in old.calls:
        answer = await scene.perform(name, request)
        if name == "begin_backup":
            assert answer["value"]["state"] == "ended"
        elif name != "finish_run":
            assert answer["fault"]["code"] == "NotOwner", name
        assert scene.dump() == before, name


async def test_a_write_that_arrives_late_is_refused_by_the_service_itself(scene):
    """Past the ownership check too, from before the shard was done: lease and epoch on the head are the last line."""
    await scene.back_up()
    scene.write(6, 61)
    await stop_before(scene, "verify_head")
    request = next(request for name, request, _ in scene.stopped.calls if name == "apply_shard")
    scene.world.pass_time(HEARTBEAT_MAX + timedelta(minutes=1))
    await stop_before(scene, "verify_head")
    row = scene.catalogue.rows["vm", "head"]
    claimed = replace(
        row.value.owner,
        run=request["image"]["actor"]["run"],
        lease=request["image"]["actor"]["lease"],
        epoch=request["image"]["actor"]["epoch"],
    )
    scene.catalogue.rows["vm", "head"] = replace(row, value=replace(row.value, owner=claimed))
    del scene.documents.texts[shard_end_name(request["image"]["plan"], request["shard"])]
    before = scene.dump()

    answer = await scene.perform("apply_shard", request)

    assert answer["fault"]["code"] == "Fenced"
    assert scene.dump() == before


async def test_a_lease_that_is_taken_once_more_while_it_is_broken(scene):
    """By a late delivery of the former owner: the new one tries until it has it."""
    await scene.back_up()
    scene.write(6, 61)
    await stop_before(scene, "verify_head")
    scene.world.pass_time(HEARTBEAT_MAX + timedelta(minutes=1))
    break_lease, times = scene.blobs.break_lease, [3]

    async def late(blob):
        await break_lease(blob)
        times[0] -= 1
        if times[0]:
            scene.blobs.blobs[blob].lease = "of the former owner"

    scene.blobs.break_lease = late
    await scene.back_up()

    assert times == [0]
    assert scene.content(scene.points()[-1]) == scene.blobs.blobs[scene.source()].content()


async def test_a_late_begin_breaks_nobodys_lease(scene):
    """The run was the owner when it checked; when it reaches the lease, the next run has that."""
    await scene.back_up()
    scene.write(6, 61)
    request, acquire = scene.request(), scene.blobs.acquire_lease
    begun = (await stop_before(scene, "plan_transfer")).run
    step_input = next(step_input for name, step_input, _ in scene.stopped.calls if name == "begin_backup")
    scene.blobs.blobs[scene.tools.head(scene.head_row().head)].lease = ""

    async def hangs(blob, lease):
        scene.blobs.acquire_lease = acquire
        scene.world.pass_time(HEARTBEAT_MAX + timedelta(minutes=1))
        await stop_before(scene, "verify_head", run=request.run)
        return await acquire(blob, lease)

    scene.blobs.acquire_lease = hangs
    answer = await scene.perform("begin_backup", step_input)

    assert answer["fault"]["code"] == "NotOwner"
    assert (scene.head_row().owner.run, scene.head_blob().lease) == (request.run, scene.head_row().owner.lease)
    assert scene.run_row(begun).error.code == "Abandoned"


async def test_two_orchestrations_of_one_run(scene):
    """Another instance that is handed the run steps back and leaves the first alone."""
    request = await stop_before(scene, "verify_head")
    before = scene.dump(with_runs=True)
    driver = scene.driver()
    output = await driver.run("backup_disk", request.model_dump(mode="json"), "started-by-hand")

    assert output["state"] == "ended"
    assert scene.dump(with_runs=True) == before
