"""Orchestrators stepped by hand: what they ask for, what they retry, what they give up on."""

from __future__ import annotations

import json
from collections import Counter
from datetime import timedelta
from pathlib import Path

import pytest

from backup_core.domain.ending import HEARTBEAT_MAX
from backup_core.domain.errors import SnapshotRateError
from backup_core.domain.fleet import ACTIVE_DISKS_MAX, lane_of
from backup_core.orchestrations.backup_disk import BackupFailedError
from backup_core.orchestrations.backup_fleet import FleetFailedError
from backup_core.orchestrations.registry import ORCHESTRATORS
from backup_core.protocol.tools import Limits
from backup_core.steps.backup import BackupRequest, FleetRequest
from tests.doubles.driver import Driver
from tests.scene import Scene


@pytest.fixture
def scene():
    stage = Scene()
    stage.protect()
    stage.write(0, 1, None, 2, None, 3)
    return stage


def failing(scene, step, outcomes):
    """A driver whose `step` answers, or raises, from `outcomes` before it really runs."""
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
async def test_a_fault_that_may_pass_is_tried_again(scene, step):
    """With durable timers in between, and counted for the operator."""
    driver = failing(scene, step, ["ServiceUnavailable", "ServiceUnavailable"])
    output = await run(scene, driver)

    assert output["state"] == "Succeeded"
    assert driver._waited.total_seconds() >= 25
    if step in ("apply_shard", "commit_point"):
        assert scene.rows("run!")[0].retries == 2


async def test_the_snapshot_rate_of_premium_blobs_is_waited_out(scene, monkeypatch):
    """One snapshot in ten minutes: trying sooner is in vain; the wait is shorter than what makes a run dead."""
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


async def test_a_crashed_activity_is_tried_again(scene):
    output = await run(scene, failing(scene, "verify_head", [RuntimeError("worker gone")]))

    assert output["state"] == "Succeeded"


async def test_a_fault_that_stays_fails_the_run_visibly(scene):
    driver = failing(scene, "apply_shard", ["ServiceUnavailable"] * 9)
    with pytest.raises(BackupFailedError, match="ServiceUnavailable: told"):
        await run(scene, driver)

    (row,) = scene.rows("run!")
    assert (row.state, row.error.code, row.retries) == ("Failed", "ServiceUnavailable", 0)
    assert scene.head_row().owner is None


async def test_a_final_fault_is_not_tried_again(scene):
    driver = failing(scene, "apply_shard", ["AccessDenied"])
    with pytest.raises(BackupFailedError, match="AccessDenied"):
        await run(scene, driver)

    assert driver._waited.total_seconds() == 0


async def test_only_what_failed_in_a_wave_is_repeated(scene):
    scene.with_limits(shard_bytes_max=512)
    driver = failing(scene, "apply_shard", ["ServiceUnavailable"])
    await run(scene, driver, wave=3)

    shards = [request["shard"] for name, request, answer in driver.calls if name == "apply_shard" and answer["value"]]
    assert sorted(shards) == [0, 1, 2]


async def test_a_crash_in_a_wave_is_no_fault_of_the_others(scene):
    """What has ended well is not done again."""
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


async def test_a_fleet_answers_counts(scene):
    """Not what each disk has answered: of thousands that would be megabytes."""
    scene.protect("other")
    assert await fleet(scene) == {"window": FLEET.window, "runs": {"Succeeded": 2}}
    assert await fleet(scene) == {"window": FLEET.window, "runs": {"ended": 2}}


@pytest.mark.parametrize("slice_", [1, 2, 100])
async def test_many_disks_are_shared_out_to_lanes(scene, slice_):
    """All are backed up once, whatever an execution takes: each in its own lane, one after another."""
    names = ["vm", *(f"disk{number}" for number in range(11))]
    for disk in names[1:]:
        scene.protect(disk)
    scene.with_limits(fleet_disks_max=slice_ if slice_ < len(names) else 11)
    driver, order = scene.driver(), []

    async def perform(name, request):
        order.extend([request["disk"]] if name == "begin_backup" else [])
        return await scene.perform(name, request)

    driver._perform = perform
    output = await fleet(scene, driver, lanes=3)

    assert output["runs"] == {"Succeeded": 12}
    for lane in range(3):
        assert [disk for disk in order if lane_of(disk, 3) == lane] == sorted(
            disk for disk in names if lane_of(disk, 3) == lane
        )
    for disk in names:
        assert len(scene.points(disk)) == 1
        assert scene.rows("window!", disk) == [f"{disk}.20260101T120000Z.timer"]


async def test_a_failing_disk_of_a_lane_stops_no_other_of_it(scene):
    for number in range(5):
        scene.protect(f"disk{number}")
    scene.with_limits(fleet_disks_max=2)
    del scene.blobs.blobs[scene.source("disk2")]
    with pytest.raises(FleetFailedError, match="1 of 6 failed: disk2: "):
        await fleet(scene, lanes=1)

    assert [len(scene.points(f"disk{number}")) for number in range(5)] == [1, 1, 0, 1, 1]


async def test_a_lane_that_crashes_is_named(scene):
    """Nobody says how many of its disks it did; the others are backed up."""
    for number in range(5):
        scene.protect(f"disk{number}")
    scene.with_limits(fleet_disks_max=5)
    driver = scene.driver()

    async def perform(name, request):
        if name == "list_disks" and request["lane"] == lane_of("vm", 2) and request["lanes"] == 2:
            raise RuntimeError("no catalogue")
        return await scene.perform(name, request)

    driver._perform = perform
    with pytest.raises(FleetFailedError, match=rf"failed: lane {lane_of('vm', 2) + 1}: "):
        await fleet(scene, driver, lanes=2)

    assert len(scene.points("vm")) == 0
    others = [f"disk{number}" for number in range(5) if lane_of(f"disk{number}", 2) != lane_of("vm", 2)]
    assert others
    assert all(len(scene.points(disk)) == 1 for disk in others)


def test_lanes_are_even_and_stay_as_they_are():
    """5,000 disks on 16 lanes; a disk's lane does not depend on the others."""
    sizes = Counter(lane_of(f"disk-{number}", ACTIVE_DISKS_MAX) for number in range(5000))

    assert len(sizes) == ACTIVE_DISKS_MAX
    assert max(sizes.values()) < 1.3 * 5000 / ACTIVE_DISKS_MAX


def test_no_run_waits_for_a_worker_until_it_is_taken_for_dead():
    """A run is heard of again at the latest when the activities before its own have had their time."""
    durable = json.loads((Path(__file__).parent.parent.parent / "host.json").read_text())["extensions"]["durableTask"]
    limits, shards = Limits(), BackupRequest.model_fields["wave"].default
    waits = ACTIVE_DISKS_MAX * shards * limits.shard_seconds / durable["maxConcurrentActivityFunctions"]

    assert waits < HEARTBEAT_MAX.total_seconds() / 2


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
