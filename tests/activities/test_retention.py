"""Deleting expired restore points: in an order that survives every crash, and never one that somebody uses."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import timedelta

import pytest

from backup_core.api import disks
from backup_core.api.context import respond
from backup_core.api.http import Request
from backup_core.domain.ending import HEARTBEAT_MAX
from backup_core.domain.records import Pin, Retention
from backup_core.protocol.pruning import prune
from tests.activities.acts import keep, rebuild, stop_before
from tests.scene import Scene


@pytest.fixture
async def scene():
    """A disk with five restore points, and a retention of two from now on."""
    stage = Scene()
    stage.protect()
    for number in range(5):
        stage.write(number, 10 + number)
        await stage.back_up()
    keep(stage, 2)
    return stage


def backup_snapshots(scene):
    return sorted(
        name for address, blob in scene.blobs.blobs.items() if address.container == "heads" for name in blob.snapshots
    )


async def test_the_end_of_a_backup_prunes(scene):
    """Each point that is kept keeps its bytes; the run says what it deleted; the next backup is an increment."""
    old = scene.points()
    contents = {point.point: scene.content(point) for point in old}
    driver = await scene.back_up()

    kept = scene.points()
    assert [point.point for point in kept[:1]] == [old[-1].point]
    assert len(kept) == 2
    assert scene.content(kept[0]) == contents[kept[0].point]
    assert backup_snapshots(scene) == sorted(point.backup_snapshot for point in kept)
    assert set(scene.run_row(driver.output["run"]).expired) == {point.point for point in old[:-1]}
    await scene.back_up()
    assert scene.points()[-1].kind == "incremental"


async def test_a_backup_snapshot_that_was_taken_twice_is_deleted_with_its_point(scene):
    """Two deliveries at once may both have taken one; the other would keep the blob, and bring the point back in a rebuild."""
    snapshots = scene.blobs.blobs[scene.tools.head(scene.points()[0].head)].snapshots
    for number, point in enumerate(scene.points()):
        snapshots[f"2026-01-01T00:01:0{number}.0000000Z"] = snapshots[point.backup_snapshot]
    kept = scene.points()[-1]
    await scene.back_up()

    assert len(scene.points()) == 2
    assert backup_snapshots(scene) == sorted(
        [*(point.backup_snapshot for point in scene.points()), "2026-01-01T00:01:04.0000000Z"]
    )
    assert scene.content(scene.points()[0]) == snapshots[kept.backup_snapshot].content()


async def test_without_a_retention_nothing_is_deleted(scene):
    row = scene.catalogue.rows["vm", "registration"]
    scene.catalogue.rows["vm", "registration"] = replace(row, value=replace(row.value, retention=None))
    await scene.back_up()

    assert len(scene.points()) == 6


async def test_more_than_one_call_deletes(scene):
    scene.with_limits(prune_points_max=1)
    driver = await scene.back_up()

    assert [name for name, _, _ in driver.calls].count("prune_points") == 4
    assert len(scene.points()) == 2


async def test_a_prune_lists_each_head_once(scene, monkeypatch):
    """However many points expire: a head with thousands of them is megabytes of listing."""
    keep(scene, 1)
    listings, listed = [], scene.blobs.snapshots

    async def counted(blob):
        listings.append(blob.name)
        return await listed(blob)

    monkeypatch.setattr(scene.blobs, "snapshots", counted)
    pruned = await prune(scene.tools, scene.rows("registration")[0], "house.20260105")

    assert len(pruned.expired) > 1
    assert listings == [scene.head_row().head]


async def test_a_point_in_use_stays_while_its_run_lives(scene):
    """A pin counts as long as its run gives signs of life: a terminated one blocks nothing for ever."""
    oldest = scene.points()[0]
    request = await stop_before(scene, "verify_head")
    await scene.catalogue.pin(Pin("vm", oldest.point, request.run), await scene.catalogue.point("vm", oldest.point))
    keeper = scene.run_row(request.run)
    scene.world.pass_time(HEARTBEAT_MAX + timedelta(minutes=1))
    scene.catalogue._store(
        keeper, next(key for _, key in scene.catalogue.rows if key.endswith(request.run) and key.startswith("run!"))
    )
    row = scene.catalogue.rows["vm", "head"]
    scene.catalogue.rows["vm", "head"] = replace(row, value=replace(row.value, owner=None))
    await scene.back_up()
    assert oldest.point in [point.point for point in scene.points()]
    scene.world.pass_time(HEARTBEAT_MAX + timedelta(minutes=1))
    await scene.back_up()

    assert oldest.point not in [point.point for point in scene.points()]


async def test_an_unpinned_point_is_deleted(scene):
    oldest = scene.points()[0]
    pin = Pin("vm", oldest.point, scene.rows("run!")[0].run)
    await scene.catalogue.pin(pin, await scene.catalogue.point("vm", oldest.point))
    await scene.catalogue.unpin(pin)
    await scene.back_up()

    assert len(scene.points()) == 2


async def test_a_pin_at_the_last_moment_wins(scene, monkeypatch):
    """Using and deleting compete for one version: whoever writes the row first."""
    oldest, mark, raced = scene.points()[0], scene.catalogue.mark_deleting, []

    async def racing(row):
        if row.value.point == oldest.point and not raced:
            raced.append(True)
            await scene.catalogue.pin(
                Pin("vm", oldest.point, "some.20260101T000000Z.timer"), await scene.catalogue.point("vm", oldest.point)
            )
        return await mark(row)

    monkeypatch.setattr(scene.catalogue, "mark_deleting", racing)
    await scene.back_up()

    assert scene.points()[0].point == oldest.point
    assert scene.points()[0].state == "available"
    assert scene.content(scene.points()[0])


@pytest.mark.parametrize("call", ["mark_deleting", "delete_snapshot", "delete_point"])
@pytest.mark.parametrize("moment", ["before", "after"])
async def test_a_prune_that_dies_is_ended_by_the_next(scene, monkeypatch, call, moment):
    """At every call: what was begun is not offered any more, what was not is whole, and the next run does the rest."""
    where = scene.blobs if call == "delete_snapshot" else scene.catalogue
    real, died = getattr(where, call), []

    async def dying(*step_input):
        if moment == "after":
            await real(*step_input)
        died.append(step_input)
        raise KeyboardInterrupt

    before = backup_snapshots(scene)
    request, driver = scene.request(), scene.driver()

    async def perform(name, step_input):
        if name == "prune_points":
            monkeypatch.setattr(where, call, dying)
        return await scene.perform(name, step_input)

    driver._perform = perform
    with pytest.raises(KeyboardInterrupt):
        await driver.run("backup_disk", request.model_dump(mode="json"), request.run)
    monkeypatch.setattr(where, call, real)

    for point in scene.points():
        assert point.state == "deleting" or scene.content(point)
    assert len(died) == 1
    assert len(before) + 1 - len(backup_snapshots(scene)) in (0, 1)
    scene.world.pass_time(HEARTBEAT_MAX + timedelta(minutes=1))
    await scene.back_up()
    assert [point.state for point in scene.points()] == ["available"] * 2
    assert backup_snapshots(scene) == sorted(point.backup_snapshot for point in scene.points())


async def test_a_point_on_its_way_out_is_not_brought_back(scene):
    """A rebuild between mark and deletion leaves it alone, whether its snapshot is there or not."""
    row = await scene.catalogue.point("vm", scene.points()[0].point)
    await scene.catalogue.mark_deleting(row)
    done, _ = await rebuild(scene)
    assert done["value"] == []
    head = scene.blobs.blobs[scene.tools.head(row.value.head)]
    del head.snapshots[row.value.backup_snapshot]
    done, _ = await rebuild(scene)
    assert done["value"] == []
    await scene.back_up()

    assert len(scene.points()) == 2


async def test_a_zombie_prunes_nothing(scene):
    """A prune delivered after its run has ended bounces."""
    old = await scene.back_up()
    request = next(request for name, request, _ in old.calls if name == "prune_points")
    keep(scene, 1)
    before = scene.dump(with_runs=True)
    answer = await scene.perform("prune_points", request)

    assert answer["fault"]["code"] == "NotOwner"
    assert scene.dump(with_runs=True) == before


async def test_a_snapshot_that_cannot_be_deleted_is_reported_and_tried_again(scene, monkeypatch):
    """The new restore point stays; what was to go is marked, not offered, and gone with the next run."""
    from backup_core.domain.errors import AccessDeniedError  # noqa: PLC0415

    real = scene.blobs.delete_snapshot

    async def denied(blob, snapshot):
        if blob.container == "heads":
            raise AccessDeniedError("no right to delete")
        await real(blob, snapshot)

    monkeypatch.setattr(scene.blobs, "delete_snapshot", denied)
    driver = await scene.back_up()
    assert any("AccessDenied" in one for one in scene.run_row(driver.output["run"]).warnings)
    assert len([point for point in scene.points() if point.state == "available"]) == 5
    monkeypatch.setattr(scene.blobs, "delete_snapshot", real)
    await scene.back_up()

    assert [point.state for point in scene.points()] == ["available"] * 2


async def test_the_retention_is_set_and_shown_by_http(scene):
    async def put(**retention):
        body = json.dumps({"source": str(scene.source()), **retention}).encode()
        reply = await respond(scene.api(), disks.put_disk, Request("https://app.test/api", {"disk": "vm"}, {}, body))
        return reply.status, json.loads(reply.body)

    status, shown = await put(retention={"keepLast": 14, "minAgeDays": 7})
    assert (status, shown["retention"]) == (200, {"keepLast": 14, "minAgeDays": 7})
    assert scene.catalogue.rows["vm", "registration"].value.retention == Retention(14, 7)
    status, shown = await put()
    assert (status, shown["retention"]) == (200, None)
    for wrong in ({"keepLast": 0}, {"keepLast": 3, "minAgeDays": -1}, {"keepLast": "3"}, {"minAgeDays": 3}, 5):
        before = scene.dump()
        status, shown = await put(retention=wrong)
        assert (status, shown["error"]["code"]) == (400, "InvalidRequest")
        assert scene.dump() == before
