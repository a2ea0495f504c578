"""After its restore point is committed a run has succeeded: what fails then is a warning, and every further duty is tried."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest

from backup_core.adapters.rows import to_entity
from backup_core.api import runs
from backup_core.api.context import respond
from backup_core.api.http import Request
from backup_core.domain.errors import AccessDeniedError, UnexpectedAnswerError
from backup_core.domain.events import RunWarned
from backup_core.domain.naming import point_id, point_key, run_key
from backup_core.domain.records import EXPIRED_NAMED_MAX
from tests.activities.acts import keep
from tests.scene import Scene

DUTIES = {"report_progress": "progress", "drop_previous_snapshot": "previous source snapshot", "prune_points": "retention"}


@pytest.fixture
async def scene():
    """A disk with three restore points, of which two have expired."""
    stage = Scene()
    stage.protect()
    for number in range(3):
        stage.write(number, 10 + number)
        await stage.back_up()
    keep(stage, 1)
    stage.write(5, 50)
    return stage


async def backed_up(scene, refuse):
    """One run, whose steps `refuse` may answer by a fault; its row, and the steps that were called."""
    request, driver, asked_for = scene.request(), scene.driver(), []

    async def perform(name, step_input):
        asked_for.append(name)
        fault = refuse(name, step_input)
        return {"value": None, "fault": fault, "step": name} if fault else await scene.perform(name, step_input)

    driver._perform = perform
    await driver.run("backup_disk", request.model_dump(mode="json"), request.run)
    return scene.run_row(request.run), asked_for


def fault(code="UnexpectedAnswer", *, retryable=False):
    return {"code": code, "message": "409 BlobImmutableDueToPolicy", "retryable": retryable, "wait_seconds": 0}


@pytest.mark.parametrize("retryable", [False, True])
@pytest.mark.parametrize("failing", [*DUTIES, "all"])
async def test_a_duty_that_fails(scene, failing, retryable):
    """Also one that fails to the last attempt: the others are done, the point is there, the next run is an increment."""

    def refuse(name, request):
        after = name != "report_progress" or request["phase"] == "cleaning"
        return fault(retryable=retryable) if after and name in DUTIES and failing in (name, "all") else None

    row, asked_for = await backed_up(scene, refuse)
    failed = DUTIES.values() if failing == "all" else [DUTIES[failing]]

    assert (row.state, row.error, len(row.points)) == ("Succeeded", None, 1)
    assert [words.partition(":")[0] for words in row.warnings] == list(failed)
    assert all("409 BlobImmutableDueToPolicy" in words for words in row.warnings)
    assert set(DUTIES) <= set(asked_for)
    assert [one.message for one in scene.journal.events if isinstance(one, RunWarned)] == list(row.warnings)
    assert scene.head_row().owner is None
    scene.write(6, 60)
    await scene.back_up()
    assert scene.points()[-1].kind == "incremental"


@pytest.mark.parametrize("error", [AccessDeniedError("a role was taken away"), UnexpectedAnswerError("409 a lock")])
async def test_a_lease_that_cannot_be_released(scene, error):
    """The disk is given up all the same, and the next run breaks the lease."""
    release = scene.blobs.release_lease

    async def refused(*_):
        raise error

    scene.blobs.release_lease = refused
    row, _ = await backed_up(scene, lambda *_: None)

    assert row.state == "Succeeded"
    assert scene.head_row().owner is None
    (warning,) = [one for one in scene.journal.events if isinstance(one, RunWarned)]
    assert str(error) in warning.message
    scene.blobs.release_lease = release
    await scene.back_up()
    assert scene.points()[-1].kind == "incremental"


async def test_before_the_commit_it_fails(scene):
    """Seen from the other side: a refused report while it copies is no warning."""
    with pytest.raises(Exception, match="UnexpectedAnswer"):
        await backed_up(
            scene, lambda name, request: fault() if name == "report_progress" and request["phase"] == "copying" else None
        )


async def test_the_end_is_written_however_many_points_expire(scene):
    """1,500 of them: the row names some, and fits a table's column; the API shows it."""
    first, at = scene.points()[0], scene.world.now - timedelta(days=900)
    for number in range(1500):
        taken = f"{at + timedelta(minutes=number):%Y-%m-%dT%H:%M:%S}.0000000Z"
        point = replace(first, point=point_id(taken), source_snapshot=taken)
        scene.catalogue._store(point, point_key(point.point))
    row, _ = await backed_up(scene, lambda *_: None)

    assert (row.state, len(scene.points()), len(row.expired)) == ("Succeeded", 1, EXPIRED_NAMED_MAX)
    columns = to_entity(row, run_key(row.run))
    assert max(len(value) for value in columns.values() if isinstance(value, str)) <= 32 * 1024
    answer = await respond(scene.api(), runs.get_run, Request("https://app.test/api", {"run": row.run}, {}, b"", {}))
    assert answer.status == 200
