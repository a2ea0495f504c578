"""A delivery of a step hangs anywhere until another delivery of it has ended, or the next backup too; then it continues.

Acting on what it read long ago, it changes nothing that is needed. It may act on what it reads anew.
"""

from __future__ import annotations

import asyncio
from datetime import timedelta
from functools import partial

import pytest

from backup_core.activities.housekeeping import clean_up_disk
from backup_core.domain.ending import HEARTBEAT_MAX
from backup_core.domain.errors import UnexpectedError
from backup_core.steps.housekeeping import CleanUpDisk
from tests.activities.acts import contents_of, everything_kept, sane
from tests.activities.ways import WAYS, Wire, requests_of, run_over
from tests.scene import PAGE

pytestmark = pytest.mark.slow

SILENT, DAY = HEARTBEAT_MAX + timedelta(minutes=1), timedelta(hours=25)
HOUSE = CleanUpDisk(disk="vm", actor="house.20260105", lease="00000000-0000-0000-0000-00000000000a", run_days=180)
UNPROTECTED = {"a restore to a managed disk", "an upload to a managed disk"}
"""After these the disk is not backed up any more."""
IN_THE_SLOT = {"a restore into the machine", "a backup that settles a machine"}


class Hung(Wire):
    """The delivery that reaches the request of that number waits there. The step is delivered `again`, or given up with its
    orchestration.
    """

    def __init__(self, scene, number, *, again):
        super().__init__(scene)
        self._number, self._again = number, again
        self._came, self._continues, self.delivery = asyncio.Event(), asyncio.Event(), None

    async def perform(self, name, request):
        if self.delivery:
            return await super().perform(name, request)
        delivery, came = asyncio.create_task(super().perform(name, request)), asyncio.create_task(self._came.wait())
        await asyncio.wait({delivery, came}, return_when=asyncio.FIRST_COMPLETED)
        came.cancel()
        if not self._came.is_set():
            return await delivery
        self.delivery = delivery
        if not self._again:
            raise KeyboardInterrupt
        return await super().perform(name, request)

    async def send(self, name, request):
        if len(self.requests) == self._number:
            self.requests.append(name)
            self._came.set()
            await self._continues.wait()
            return await request()
        return await super().send(name, request)

    async def continued(self):
        """Let the delivery run to its end; its answer."""
        self._continues.set()
        return await self.delivery

    async def go_on(self):
        """The delivery runs to its end, whatever that is; nobody wants its answer."""
        try:
            await self.continued()
        except UnexpectedError as error:
            raise AssertionError(str(error)) from error


class Overtaken(Hung):
    """The delivery that hangs continues when the other one, or the step after it too, has ended. The answer of one counts."""

    def __init__(self, scene, number, moment):
        super().__init__(scene, number, again=True)
        self._moment = moment

    async def perform(self, name, request):
        before = self.delivery
        answer = await super().perform(name, request)
        if not self.delivery or self._continues.is_set() or (before is None and self._moment == "after the next step"):
            return answer
        slower = await self.continued()
        return slower if self._moment == "its answer counts" else answer


async def check(way, number, *, again):
    begin, act, points = WAYS[way]
    stage = await begin()
    contents, wire = contents_of(stage), Hung(stage, number, again=again)
    try:
        await act(stage)
    except KeyboardInterrupt:
        assert not again
    assert wire.delivery
    stage.world.pass_time(SILENT)
    if way not in UNPROTECTED:
        await stage.back_up()
    await wire.go_on()
    stage.world.pass_time(SILENT)

    if way not in UNPROTECTED:
        source = stage.tools.source(stage.catalogue.rows["vm", "registration"].value.source)
        stage.blobs.poke(source, 1, [b"\x77" * PAGE])
        await stage.back_up()
        assert stage.points()[-1].kind == "incremental"
        assert stage.content(stage.points()[-1]) == stage.blobs.blobs[source].content()
    if points:
        everything_kept(stage, contents)
    stage.world.pass_time(DAY)
    await clean_up_disk(stage.tools, HOUSE)
    assert stage.rows("pin!") == []
    if way in IN_THE_SLOT:
        sane(stage)


@pytest.mark.parametrize("again", [True, False], ids=["delivered again", "given up"])
@pytest.mark.parametrize("way", WAYS)
async def test_a_delivery_that_hangs(way, again):
    """At each request of the run, reads too."""
    for number, name in enumerate(await requests_of(way)):
        try:
            await check(way, number, again=again)
        except Exception as error:
            message = f"{way}: a delivery that hung at request {number}, {name}: {error}"
            raise AssertionError(message) from error


MOMENTS = ("the other's answer counts", "its answer counts", "after the next step")


@pytest.mark.parametrize("way", WAYS)
async def test_a_delivery_that_is_overtaken(way, rng):
    """Two deliveries at once: the one that was at a request, whichever it is, continues soon after the other has ended."""
    for number, name in enumerate(await requests_of(way)):
        moment = rng.choice(MOMENTS)
        try:
            wire = await run_over(way, partial(Overtaken, number=number, moment=moment))
            assert wire.delivery
        except Exception as error:
            message = f"{way}: a delivery that was overtaken at request {number}, {name}, {moment}: {error}"
            raise AssertionError(message) from error
