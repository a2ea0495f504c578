"""A disk id gets another source: without `followsOn` this is refused; with it, nothing of the former disk counts for the new one."""

from __future__ import annotations

import json
from datetime import timedelta

import pytest

from backup_core.api import disks, points, restores
from backup_core.api.context import respond
from backup_core.api.http import Request
from tests.scene import Scene


@pytest.fixture
async def scene():
    """A scene with a disk of three restore points, and another blob."""
    stage = Scene()
    stage.protect()
    for number in range(3):
        stage.write(number, 10 + number)
        await stage.back_up()
    stage.blobs.put(stage.source("other"), 512)
    return stage


class Starts:
    def __init__(self):
        self.requests = []

    async def __call__(self, name, instance, request):
        self.requests.append((name, instance, request))


async def call(scene, handler, body=None, *, start=None, **route):
    content = b"" if body is None else json.dumps(body).encode()
    request = Request("https://app.test/api", {"disk": "vm", **route}, {}, content, {}, start=start or Starts())
    answer = await respond(scene.api(), handler, request)
    return answer.status, json.loads(answer.body)


async def follow_on(scene, **fields):
    body = {"source": scene.source("other").url, "followsOn": True, **fields}
    start = Starts()
    status, shown = await call(scene, disks.put_disk, body, start=start)
    assert status == 200, shown
    return shown, start


@pytest.mark.parametrize("stopped", [False, True])
async def test_another_source_by_mistake_is_refused(scene, stopped):
    """Another source by mistake changes nothing, also after protection was stopped; the error names both disks and both next moves."""
    if stopped:
        await call(scene, disks.delete_disk)
    before = scene.dump(with_runs=True)
    status, shown = await call(scene, disks.put_disk, {"source": scene.source("other").url, "firstBackup": True})

    assert (status, shown["error"]["code"], shown["error"]["target"]) == (409, "SourceChanged", "source")
    assert scene.source().url in shown["error"]["message"]
    assert '"followsOn": true' in shown["error"]["message"]
    assert scene.dump(with_runs=True) == before


async def test_the_source_is_compared_with_the_points_when_the_registration_is_lost(scene):
    """The points themselves name the disk that they are of."""
    del scene.catalogue.rows["vm", "registration"]
    status, shown = await call(scene, disks.put_disk, {"source": scene.source("other").url})

    assert (status, shown["error"]["code"]) == (409, "SourceChanged")
    assert (await call(scene, disks.put_disk, {"source": scene.source().url}))[0] == 201


async def test_the_same_source_needs_no_confirmation(scene):
    """A source that a restore moved to needs none either: points of the former source are no reason to refuse."""
    await follow_on(scene)
    await scene.back_up()

    assert (await call(scene, disks.put_disk, {"source": scene.source("other").url, "description": "new"}))[0] == 200


async def test_nothing_of_the_former_disk_protects_the_new_one(scene):
    """Before its first backup the new disk has no point and no age; it becomes overdue in time; the first backup starts on request."""
    scene.world.pass_time(timedelta(hours=30))
    shown, start = await follow_on(scene, firstBackup=True)

    assert [shown[key] for key in ("newestRestorePoint", "lastSuccess", "rpoSeconds", "lastStatus", "overdue")] == [
        None, None, None, None, False,
    ]  # fmt: skip
    assert [name for name, _, _ in start.requests] == ["backup_disk"]
    scene.catalogue.rows = {key: row for key, row in scene.catalogue.rows.items() if start.requests[0][1] not in key[1]}
    scene.world.pass_time(timedelta(hours=25))
    assert (await call(scene, disks.get_disk))[1]["overdue"] is True
    driver = await scene.back_up()
    now = (await call(scene, disks.get_disk))[1]
    assert (now["overdue"], now["lastStatus"], now["rpoSeconds"]) == (False, "Succeeded", 0)
    assert [now["newestRestorePoint"]] == driver.output["points"]


async def test_latest_is_never_the_former_disk(scene):
    """`latest` is refused with both next moves; named by id the former disk's point is restored, and plan and list name its disk."""
    former = scene.points()[-1]
    await follow_on(scene)
    status, shown = await call(scene, restores.post_restore, {"dryRun": True})

    assert (status, shown["error"]["code"]) == (404, "RestorePointNotFound")
    assert former.point in shown["error"]["message"]
    status, plan = await call(scene, restores.post_restore, {"restorePoint": former.point, "dryRun": True})
    assert (status, plan["source"]) == (200, scene.source().url)
    assert any(scene.source().url in one and scene.source("other").url in one for one in plan["warnings"])
    assert {one["source"] for one in (await call(scene, points.get_points))[1]["value"]} == {scene.source().url}
    await scene.back_up()
    status, plan = await call(scene, restores.post_restore, {"dryRun": True})
    assert (plan["restorePoint"], plan["source"]) == (scene.points()[-1].point, scene.source("other").url)
    assert not [one for one in plan["warnings"] if "before" in one]


async def test_latest_finds_a_source_that_came_back(scene):
    """`latest` finds the newest point of the present source, also behind newer points of another source."""
    own = scene.points()[-1]
    await follow_on(scene)
    await scene.back_up()
    status, _ = await call(scene, disks.put_disk, {"source": scene.source().url, "followsOn": True})
    _, plan = await call(scene, restores.post_restore, {"dryRun": True})

    assert (status, plan["restorePoint"]) == (200, own.point)


async def test_the_first_backup_deletes_no_point_of_the_former_disk(scene):
    """With keepLast 1 the newest point of each source is kept, that of the former source for ninety days."""
    former = scene.points()[-1].point
    await follow_on(scene, retention={"keepLast": 1})
    await scene.back_up()
    await scene.back_up()

    assert [point.point for point in scene.points()] == [former, scene.points()[-1].point]
    assert scene.points()[-1].source == scene.source("other").url
    scene.world.pass_time(timedelta(days=91))
    await scene.back_up()
    assert [point.source for point in scene.points()] == [scene.source("other").url]
