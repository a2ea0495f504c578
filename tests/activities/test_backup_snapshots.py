"""The backup snapshot: taken without listing all restore points of the head, and one and the same whoever takes it."""

from __future__ import annotations

import asyncio
import json
from contextlib import suppress

import pytest

from backup_core.domain.errors import ServiceUnavailableError
from backup_core.domain.metadata import from_point_metadata
from backup_core.domain.rebuild import compare
from tests.scene import Scene

STEP = "take_backup_snapshot"


async def about_to_take():
    """A disk with two restore points, and the step's input in the run that makes the third."""
    stage = Scene()
    stage.protect()
    for value in (1, 2):
        stage.write(0, value)
        await stage.back_up()
    stage.write(0, 3)
    driver, request, step_input = stage.driver(), stage.request(), []

    async def perform(name, given):
        if name == STEP:
            step_input.append(given)
            raise KeyboardInterrupt
        return await stage.perform(name, given)

    driver._perform = perform
    with suppress(KeyboardInterrupt):
        await driver.run("backup_disk", request.model_dump(mode="json"), request.run)
    return stage, step_input[0]


class Turns:
    """A delivery that reaches a request before its turn waits there."""

    def __init__(self, stage):
        self._gates, self.requests, before = {}, {}, stage.world.before

        async def gate(name):
            task = asyncio.current_task()
            self.requests.setdefault(task, []).append(name)
            number, come, go_on = self._gates.get(task, (-1, None, None))
            if len(self.requests[task]) - 1 == number:
                come.set()
                await go_on.wait()
            await before(name)

        stage.world.before = gate

    def until(self, delivery, number):
        """A task of the delivery, an event for its arrival at that request, and one that lets it continue."""
        come, go_on = asyncio.Event(), asyncio.Event()
        task = asyncio.create_task(delivery)
        self._gates[task] = number, come, go_on
        task.add_done_callback(lambda _: come.set())
        return task, come, go_on


async def of_a_rebuild(stage):
    """The snapshot that a rebuild would take for the newest point, and how many were taken of it."""
    head = stage.tools.head(stage.head_row().head)
    found = {
        (head.name, one.snapshot): from_point_metadata(one.metadata, stage.tools.site(head), one.snapshot)
        for one in await stage.blobs.snapshots(head)
    }
    newest = compare([], found).missing[-1]
    return newest.backup_snapshot, sum(one.point == newest.point for one in found.values())


async def test_a_backup_lists_no_restore_points_of_its_head():
    stage, listed = Scene(), []
    stage.protect()
    snapshots, blobs = stage.blobs.snapshots, stage.blobs.listed

    async def counted(blob):
        listed.append(blob.container)
        return await snapshots(blob)

    def whole(account, container, prefix):
        listed.append(container)
        return blobs(account, container, prefix)

    stage.blobs.snapshots, stage.blobs.listed = counted, whole
    for value in range(5):
        stage.write(0, value)
        await stage.back_up()

    assert len(stage.points()) == 5
    assert "heads" not in listed


REQUESTS = 10


@pytest.mark.parametrize("first", range(REQUESTS))
async def test_two_deliveries_at_once_take_the_same(first):
    """Each stops at any of its requests, the other continues there; so do both, and a rebuild."""
    for second in range(REQUESTS):
        stage, request = await about_to_take()
        turns = Turns(stage)
        one, one_came, one_goes_on = turns.until(stage.perform(STEP, request), first)
        await one_came.wait()
        other, other_came, other_goes_on = turns.until(stage.perform(STEP, json.loads(json.dumps(request))), second)
        await other_came.wait()
        one_goes_on.set()
        answers = [await one]
        other_goes_on.set()
        answers.append(await other)

        wanted, taken = await of_a_rebuild(stage)
        assert [answer["value"] and answer["value"]["snapshot"] for answer in answers] == [wanted] * 2, (first, second)
        assert taken <= 2


async def test_those_are_all_requests():
    """Seen from the other side."""
    stage, request = await about_to_take()
    turns = Turns(stage)
    first, second = [turns.until(stage.perform(STEP, request), -1)[0] for _ in range(2)]
    await asyncio.gather(first, second)

    assert len(turns.requests) == 2
    assert max(map(len, turns.requests.values())) <= REQUESTS


async def test_a_lost_answer_takes_no_second_one():
    """The next delivery finds what the first has taken."""
    stage, request = await about_to_take()
    take = stage.blobs.snapshot

    async def lost(*given):
        await take(*given)
        raise ServiceUnavailableError("no answer; temporary failure")

    stage.blobs.snapshot = lost
    assert (await stage.perform(STEP, request))["fault"]["code"] == "ServiceUnavailable"
    stage.blobs.snapshot = take
    answer = await stage.perform(STEP, request)

    assert (answer["value"]["snapshot"], 1) == await of_a_rebuild(stage)
