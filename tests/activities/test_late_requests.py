"""A worker dies while a request is on its way. Its step is delivered again, and the request arrives in the middle of that: the run
succeeds all the same. The same happens when only the answer is lost, and the SDK sends the request again.
"""

from __future__ import annotations

from contextlib import suppress
from functools import partial

import pytest

from backup_core.domain.errors import BackupError
from tests.activities.ways import WAYS, Wire, requests_of, run_over

pytestmark = pytest.mark.slow

READS = {
    "properties", "snapshots", "read", "may_write", "get", "registration", "head", "run", "runs", "point", "points", "pins", "request",
    "source_holder", "claims", "disks", "now", "machine", "managed_disk",
}  # fmt: skip
UNCONDITIONAL = {"break_lease"}
"""Has to win against an owner that is still writing, so no version can be named. One that arrives late costs the run that broke it
before, as whatever else takes its lease away does.
"""
LATER = 12
"""A request arrives before one of so many others: those of a step from its beginning, and the first of the next one."""


class DiedError(Exception):
    """The worker is gone."""


class Late(Wire):
    """The `lost` request leaves and kills the worker; it arrives `after` others."""

    def __init__(self, scene, lost, after):
        super().__init__(scene)
        self._lost, self._after, self._on_its_way = lost, after, None

    async def perform(self, name, request):
        try:
            return await super().perform(name, request)
        except Exception as error:
            if DiedError.__name__ not in str(error):
                raise
        return await super().perform(name, request)

    async def send(self, name, request):
        number = len(self.requests)
        if number == self._lost:
            self.requests.append(name)
            self._on_its_way = request
            raise DiedError
        if self._on_its_way and number == self._lost + 1 + self._after:
            arrived, self._on_its_way = self._on_its_way, None
            with suppress(BackupError):  # nobody waits for its answer
                await arrived()
        return await super().send(name, request)


@pytest.mark.parametrize("way", WAYS)
async def test_a_request_that_arrives_late(way):
    """Every request that changes something, before each of the next that are made: one way or the other the run does its work."""
    for number, name in enumerate(await requests_of(way)):
        for after in range(LATER if name not in READS | UNCONDITIONAL else 0):
            try:
                await run_over(way, partial(Late, lost=number, after=after))
            except Exception as error:
                message = f"{way}: request {number}, {name}, arriving {after} requests late: {error}"
                raise AssertionError(message) from error
