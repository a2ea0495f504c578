"""Calls that run side by side: what becomes of those that fail together."""

from __future__ import annotations

import asyncio
import gc

import pytest

from backup_core.protocol.listings import side_by_side


async def test_calls_that_fail_at_once_leave_no_error_in_the_log(caplog):
    """The first failure is raised. asyncio logs a failed task that nobody asks for, in the app's log and without its run."""

    async def two():
        for item in range(2):
            yield item

    async def fail(item):
        raise ValueError(item)

    with pytest.raises(ValueError, match=r"^[01]$"):
        [_ async for _ in side_by_side(two(), fail, 2)]
    await asyncio.sleep(0)
    gc.collect()

    assert caplog.records == []
