"""Orchestrators stepped by hand: the steps they call, the faults they retry, and those that end them."""

from __future__ import annotations

import asyncio
import json
import random
from dataclasses import replace
from datetime import timedelta

import pytest

from backup_core.domain.ending import HEARTBEAT_MAX, PAUSE_SECONDS_MAX, WAITS_MAX
from backup_core.domain.errors import SnapshotRateError
from backup_core.domain.fleet import Turns
from backup_core.domain.naming import run_key
from backup_core.domain.records import Run
from backup_core.orchestrations.backup_disk import BackupFailedError
from backup_core.orchestrations.backup_fleet import FleetFailedError
from backup_core.orchestrations.calls import PAUSES
from backup_core.orchestrations.registry import ORCHESTRATORS
from backup_core.steps.backup import FleetPage, FleetRequest, LaneRequest, TakeTurn
from tests.activities import acts
from tests.doubles.driver import Driver
from tests.scene import Scene


@pytest.fixture
def scene():
    stage = Scene()
    stage.protect()
    stage.write(0, 1, None, 2, None, 3)
    return stage


def failing(scene, step, outcomes):
    """A driver whose `step` returns or raises each of `outcomes` before it really runs."""
    driver, left = scene.driver(), list(outcomes)

    async def perform(name, request):
        if name == step and left:
            outcome = left.pop(0)
            if isinstance(outcome, Exception):
                raise outcome
            return {"fault": {"code": outcome, "message": "told", "retryable": outcome == "ServiceUnavailable"}, "value": None}
        return await scene.perform(name, request)

    driver._perform = perform
    return driver


async def run(scene, driver, **fields):
    request = scene.request(**fields)
    return await driver.run("backup_disk", request.model_dump(mode="json"), request.run)


@pytest.mark.parametrize("step", ["begin_backup", "plan_transfer", "apply_shard", "commit_point", "finish_run"])
async def test_a_transient_fault_is_retried(scene, step):
    """Durable timers lie between the attempts, and the retries are counted for the operator."""
    driver = failing(scene, step, ["ServiceUnavailable", "ServiceUnavailable"])
    output = await run(scene, driver)

    assert output["state"] == "Succeeded"
    assert driver._waited.total_seconds() >= 25
    # Those of the last step are not known to it.
    assert scene.rows("run!")[0].retries == (0 if step == "finish_run" else 2)


async def test_the_snapshot_rate_of_premium_blobs_is_waited_out(scene, monkeypatch):
    """One snapshot is allowed in ten minutes: earlier attempts are in vain, and the wait is too short to make a run dead."""
    snapshot, refused = scene.blobs.snapshot, []

    async def limited(blob, metadata, guard=None):
        if guard is None and not refused:
            refused.append(blob)
            raise SnapshotRateError("one in ten minutes")
        return await snapshot(blob, metadata, guard)

    monkeypatch.setattr(scene.blobs, "snapshot", limited)
    driver = scene.driver()
    output = await run(scene, driver)

    assert output["state"] == "Succeeded"
    assert timedelta(minutes=10) <= driver._waited < HEARTBEAT_MAX


@pytest.mark.parametrize("seconds", [SnapshotRateError.wait_seconds, PAUSE_SECONDS_MAX])
async def test_waits_that_a_service_asks_for_again_and_again_do_not_make_a_run_dead(scene, seconds):
    """Meanwhile the run has no heartbeat: it fails by itself, with the reason, before another run would take its disk."""
    fault = {"code": "SnapshotRate", "retryable": True, "wait_seconds": int(seconds)}
    driver = acts.failing(scene, "take_source_snapshot", fault)
    with pytest.raises(BackupFailedError, match="SnapshotRate"):
        await run(scene, driver)

    assert timedelta(seconds=seconds) <= driver._waited <= WAITS_MAX


async def test_a_crashed_activity_is_retried(scene):
    output = await run(scene, failing(scene, "verify_head", [RuntimeError("worker gone")]))

    assert output["state"] == "Succeeded"


async def test_a_lasting_fault_fails_the_run_visibly(scene):
    driver = failing(scene, "apply_shard", ["ServiceUnavailable"] * 9)
    with pytest.raises(BackupFailedError, match="ServiceUnavailable: told"):
        await run(scene, driver)

    (row,) = scene.rows("run!")
    assert (row.state, row.error.code, row.retries) == ("Failed", "ServiceUnavailable", len(PAUSES))
    assert scene.head_row().owner is None


async def test_retries_after_the_last_report_of_progress_are_shown(scene):
    """The former snapshot is deleted after it."""
    await run(scene, scene.driver())
    await run(scene, failing(scene, "drop_previous_snapshot", ["ServiceUnavailable"] * 2))

    assert sorted(row.retries for row in scene.rows("run!")) == [0, 2]


async def test_a_final_fault_is_not_retried(scene):
    driver = failing(scene, "apply_shard", ["AccessDenied"])
    with pytest.raises(BackupFailedError, match="AccessDenied"):
        await run(scene, driver)

    assert driver._waited.total_seconds() == 0


async def test_only_the_failed_calls_of_a_wave_are_repeated(scene):
    scene.with_limits(shard_bytes_max=512)
    driver = failing(scene, "apply_shard", ["ServiceUnavailable"])
    await run(scene, driver, wave=3)

    shards = [request["shard"] for name, request, answer in driver.calls if name == "apply_shard" and answer["value"]]
    assert sorted(shards) == [0, 1, 2]


async def test_a_crash_in_a_wave_does_not_repeat_the_others(scene):
    """Calls that have ended well are not repeated."""
    scene.with_limits(shard_bytes_max=512)
    driver = failing(scene, "apply_shard", [RuntimeError("worker gone")])
    await run(scene, driver, wave=3)

    shards = [request["shard"] for name, request, _ in driver.calls if name == "apply_shard"]
    assert sorted(shards) == [0, 1, 2]


FLEET = FleetRequest(window="2026-01-01T12:00:00+00:00", wave=4)


async def fleet(scene, driver=None, **fields):
    """The output of a window's fan-out."""
    request = FLEET.model_copy(update=fields).model_dump(mode="json")
    return await (driver or scene.driver()).run("backup_fleet", request, "fleet.20260101T120000Z")


async def test_a_fleet_returns_counts(scene):
    """The fleet does not return each disk's answer: for thousands of disks that would be megabytes."""
    scene.protect("other")
    assert await fleet(scene) == {"window": FLEET.window, "runs": {"Succeeded": 2}}
    assert await fleet(scene) == {"window": FLEET.window, "runs": {"ended": 2}}


def many(scene, count):
    """So many disks in all; their names, the shortest last: each took as many minutes as its number says."""
    names = ["vm", *(f"disk{number:02}" for number in range(1, count))]
    for disk in names[1:]:
        scene.protect(disk)
    began = scene.world.now - timedelta(days=1)
    for minutes, disk in enumerate(names):
        run = f"{disk}.20251231T120000Z.timer"
        ended = began + timedelta(minutes=minutes)
        row = Run(
            disk, run, "Succeeded", "timer", full=False, created=began, started=began, ended=ended, kind="incremental",
            window="20251231T120000Z",
        )  # fmt: skip
        scene.catalogue._store(row, run_key(run))
    return names[::-1]


def begun(driver):
    """The disks in the order in which their backups began."""
    return [request["disk"] for name, request, _ in driver.calls if name == "begin_backup"]


@pytest.mark.parametrize(("disks", "lanes", "executions"), [(12, 3, 4), (17, 1, 3), (34, 2, 5)])
async def test_many_disks_are_backed_up_longest_first(scene, disks, lanes, executions):
    """Each disk is backed up once, also where a lane continues as new; the lanes begin with the longest disks."""
    names = many(scene, disks)
    driver = scene.driver()
    output = await fleet(scene, driver, lanes=lanes)

    assert output["runs"] == {"Succeeded": disks}
    # The driver runs one lane to its end before the next.
    assert begun(driver) == [names[0], *names[lanes:], *names[1:lanes]]
    assert driver.executions - disks == executions
    for disk in names:
        assert len(scene.points(disk)) == 1
        assert scene.rows("window!", disk) == [f"{disk}.20260101T120000Z.timer"]


async def test_a_disk_that_missed_the_previous_window_comes_first(scene):
    """Such a disk comes first however short it is. A disk whose backup is still running comes last, and takes a lane's place."""
    names = many(scene, 8)
    former = "2025-12-31T12:00:00+00:00"
    del scene.catalogue.rows["vm", run_key("vm.20251231T120000Z.timer")]
    row = scene.catalogue.rows[names[0], run_key(f"{names[0]}.20251231T120000Z.timer")].value
    scene.catalogue._store(replace(row, state="Running", ended=None), run_key(row.run))
    driver = scene.driver()
    await fleet(scene, driver, lanes=2, former=former)

    assert begun(driver) == ["vm", *names[1:-1], names[0]]
    (listed,) = [answer["value"] for name, _, answer in driver.calls if name == "list_disks"]
    assert (listed["disks"], listed["lanes"]) == (8, 1)


async def test_a_failing_disk_of_a_lane_does_not_stop_the_lanes_other_disks(scene):
    names = many(scene, 6)
    del scene.blobs.blobs[scene.source("disk02")]
    with pytest.raises(FleetFailedError, match="1 of 6 failed: disk02: "):
        await fleet(scene, lanes=1)

    assert {disk for disk in names if not scene.points(disk)} == {"disk02"}


async def test_a_crashed_lane_is_named_and_the_others_back_up_its_disks(scene):
    """All its disks but the current one are backed up: the current one's outcome is unknown."""
    names = many(scene, 6)
    driver = scene.driver()

    async def perform(name, request):
        if name == "take_turn" and request["lane"] == 0:
            raise RuntimeError("no catalogue")
        return await scene.perform(name, request)

    driver._perform = perform
    with pytest.raises(FleetFailedError, match="1 of 6 failed: lane 1: "):
        await fleet(scene, driver, lanes=2)

    assert begun(driver) == names[1:]


async def test_a_lane_that_starts_twice_loses_no_disk(scene):
    """A repeated episode of the fleet has started the lane twice: it gets its latest disk again, then those after it."""
    names = many(scene, 6)
    driver, calls = scene.driver(), []

    async def perform(name, request):
        if name == "take_turn":
            calls.append(request)
            if len(calls) == 4:  # the message that came twice, in the place of the first one's
                lane = LaneRequest(fleet=FLEET, lane=0).model_dump(mode="json")
                again = await scene.driver().run("backup_lane", lane, "fleet.20260101T120000Z~l1")
                assert again["ended"] == {"ended": 1, "Succeeded": 2}
        return await scene.perform(name, request)

    driver._perform = perform
    assert (await fleet(scene, driver, lanes=1))["runs"] == {"Succeeded": 3, "ended": 1}
    assert all(len(scene.points(disk)) == 1 for disk in names)


async def test_a_lost_answer_is_requested_again(scene):
    """A turn is given once, whether its delivery is repeated or its answer is lost."""
    names = many(scene, 9)
    driver, lost = scene.driver(), set()

    async def perform(name, request):
        answer = await scene.perform(name, request)
        if name in ("list_disks", "take_turn"):
            assert await scene.perform(name, request) == answer
            if str(request) not in lost:
                lost.add(str(request))
                raise RuntimeError("the worker died with the answer")
        return answer

    driver._perform = perform
    assert (await fleet(scene, driver, lanes=2))["runs"] == {"Succeeded": 9}
    assert sorted(begun(driver)) == sorted(names)


async def test_the_next_window_ends_the_turns_of_this_one(scene):
    """Disks without a turn are reported, and come first in the next window; backups in progress continue."""
    names = many(scene, 9)
    driver, begins = scene.driver(), []

    async def perform(name, request):
        answer = await scene.perform(name, request)
        begins.extend([request["disk"]] if name == "begin_backup" else [])
        if len(begins) == 4 and name == "begin_backup":
            page = FleetPage(window="2026-01-02T00:00:00+00:00", former=FLEET.window, lanes=2)
            assert (await scene.perform("list_disks", page.model_dump(mode="json")))["fault"] is None
        return answer

    driver._perform = perform
    with pytest.raises(FleetFailedError, match="5 of 9 had no turn before the next window began"):
        await fleet(scene, driver, lanes=2)
    assert begins == [names[0], *names[2:5]]

    order = json.loads(scene.documents.texts["_fleets/20260102T000000Z.json"])
    assert order[:5] == [names[1], *names[5:]]


async def test_a_small_window_ends_the_turns_of_a_large_one(scene):
    """The small window's disks all begin in it. Another backup for the previous window would give them two restore points at
    once.
    """
    many(scene, 9)
    driver, begins = scene.driver(), []

    async def perform(name, request):
        answer = await scene.perform(name, request)
        begins.extend([request["disk"]] if name == "begin_backup" else [])
        if len(begins) == 4 and name == "begin_backup":
            page = FleetPage(window="2026-01-02T00:00:00+00:00", former=FLEET.window, lanes=9)
            listed = (await scene.perform("list_disks", page.model_dump(mode="json")))["value"]
            assert (len(listed["runs"]), listed["lanes"]) == (9, 0)
        return answer

    driver._perform = perform
    with pytest.raises(FleetFailedError, match="5 of 9 had no turn before the next window began"):
        await fleet(scene, driver, lanes=2)
    assert len(begins) == 4


async def test_a_large_window_that_is_listed_after_a_small_one_ends_at_once(scene):
    """The row of turns that the small one took over says so."""
    many(scene, 3)
    for window, lanes in (("2026-01-01T00:00:00+00:00", 2), ("2026-01-02T00:00:00+00:00", 9)):
        await scene.perform("list_disks", FleetPage(window=window, lanes=lanes).model_dump(mode="json"))
    with pytest.raises(FleetFailedError, match="3 of 3 had no turn"):
        await fleet(scene, lanes=2)


async def test_a_small_window_alone_needs_no_turns(scene):
    many(scene, 3)
    await fleet(scene, lanes=3)

    assert await scene.catalogue.turns() is None
    assert not [name for name in scene.documents.texts if name.startswith("_fleets/")]


async def test_a_small_window_that_is_listed_again_as_a_large_one_backs_up_its_disks(scene):
    """Disks were registered in between, and the first answer was lost: those of the stored order have their runs."""
    names = many(scene, 3)
    for window, lanes in (("2026-01-01T00:00:00+00:00", 2), (FLEET.window, 3)):
        await scene.perform("list_disks", FleetPage(window=window, lanes=lanes).model_dump(mode="json"))
    scene.protect("late")
    driver = scene.driver()

    assert (await fleet(scene, driver, lanes=3))["runs"] == {"Succeeded": 3}
    assert sorted(begun(driver)) == sorted(names)


async def test_a_former_window_that_is_listed_late_ends_at_once(scene):
    many(scene, 3)
    page = FleetPage(window="2026-01-02T00:00:00+00:00", lanes=2)
    await scene.perform("list_disks", page.model_dump(mode="json"))
    turns = await scene.catalogue.turns()
    with pytest.raises(FleetFailedError, match="3 of 3 had no turn"):
        await fleet(scene, lanes=2)

    assert await scene.catalogue.turns() == turns


@pytest.mark.parametrize("lost", ["row", "order", "altered"])
async def test_lost_turns_end_the_window_visibly(scene, lost):
    """Backups in progress continue; the order of the remaining disks is not guessed."""
    many(scene, 4)
    driver = scene.driver()

    async def perform(name, request):
        if name == "take_turn" and request["turn"] == 1:
            if lost == "row":
                scene.catalogue.rows.pop((Turns.disk, "turns"), None)
            elif lost == "order":
                scene.documents.texts.pop("_fleets/20260101T120000Z.json", None)
            else:
                scene.documents.texts["_fleets/20260101T120000Z.json"] = '["vm", "vm", "vm", "vm"]'
        return await scene.perform(name, request)

    driver._perform = perform
    code = "RecordAltered" if lost == "altered" else "UnexpectedAnswer"
    with pytest.raises(FleetFailedError, match=f"failed: lane 1: .*{code}"):
        await fleet(scene, driver, lanes=2)


async def test_many_lanes_compete_for_one_row():
    """Each lane still gets a disk of its own, in whatever order their requests arrive."""
    rng = random.Random(20261128)

    async def late(_):
        for _ in range(rng.randrange(6)):
            await asyncio.sleep(0)

    scene = Scene(before=late)
    scene.protect()
    names = many(scene, 30)
    page = FleetPage(window=FLEET.window, lanes=5)
    await scene.perform("list_disks", page.model_dump(mode="json"))
    given = []
    for number in range(7):
        turns = [TakeTurn(window=FLEET.window, lane=lane, turn=number).model_dump(mode="json") for lane in range(5)]
        while turns:
            answers = await asyncio.gather(*(scene.perform("take_turn", turn) for turn in turns))
            given += [answer["value"]["run"]["disk"] for answer in answers if answer["value"] and answer["value"]["run"]]
            assert all(answer["fault"]["retryable"] for answer in answers if answer["fault"])
            turns = [turn for turn, answer in zip(turns, answers, strict=True) if answer["fault"]]

    assert given[:5] == names[:5]
    assert sorted(given) == sorted(names)


async def test_disks_that_were_never_backed_up_are_ordered_by_size(scene):
    """Disks that cannot be read come first: each fails soon, or takes long."""
    for pages, disk in ((64, "large"), (8, "small"), (8, "gone"), (8, "damaged")):
        scene.protect(disk, pages)
    del scene.blobs.blobs[scene.source("gone")]
    run = "damaged.20251231T120000Z.timer"
    scene.catalogue._store(Run("damaged", run, "Succeeded", "timer", full=False, created=scene.world.now), run_key(run))
    scene.catalogue.damaged.add(("damaged", run_key(run)))
    await scene.perform("list_disks", FleetPage(window=FLEET.window, lanes=1).model_dump(mode="json"))

    order = json.loads(scene.documents.texts["_fleets/20260101T120000Z.json"])
    assert order == ["damaged", "gone", "large", "vm", "small"]


async def test_many_disks_are_copied_with_fewer_shards_each(scene):
    driver = scene.driver()
    waves = []
    flow = driver.orchestrators["backup_disk"]
    driver.orchestrators = {
        **driver.orchestrators,
        "backup_disk": lambda context: waves.append(context.get_input()["wave"]) or flow(context),
    }
    many(scene, 40)
    await fleet(scene, driver, lanes=32)
    assert set(waves) == {2}


async def test_one_failing_disk_reddens_the_fleet_after_all_have_ended(scene):
    scene.protect("other")
    del scene.blobs.blobs[scene.source()]
    with pytest.raises(FleetFailedError, match="1 of 2 failed: vm: "):
        await scene.driver().run(
            "backup_fleet", FleetRequest(window="2026-01-01T12:00:00+00:00", wave=4).model_dump(mode="json"), "fleet.x"
        )

    assert len(scene.points("other")) == 1


async def test_a_fleet_without_disks():
    scene = Scene()
    output = await Driver(ORCHESTRATORS, scene.perform).run(
        "backup_fleet", FleetRequest(window="2026-01-01T12:00:00+00:00", wave=4).model_dump(mode="json"), "fleet.x"
    )

    assert output["runs"] == {}
