"""Lists over many disks: a bounded number is read side by side, and one that cannot be read hides no other."""

from __future__ import annotations

import asyncio
import heapq
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

from backup_core.api.answers import ErrorAnswer
from backup_core.domain.errors import RecordUnreadableError
from backup_core.domain.naming import run_key

if TYPE_CHECKING:
    from backup_core.domain.records import Run

T = TypeVar("T")
SIDE_BY_SIDE = 16
"""Disks read side by side: the table service answers 2,000 requests/s for one partition, each in about 10 ms."""
ROWS_FIRST = 2
"""Rows of each disk that are read first, before the newest of all are known; more of a disk are read in larger pages."""
ROWS_GROWTH = 8


def unreadable(disk: str, error: RecordUnreadableError) -> ErrorAnswer:
    """The entry of a list for a disk that cannot be shown."""
    return ErrorAnswer(code=error.code, message=str(error), target=disk)


async def each(disks: Sequence[str], look: Callable[[str], Awaitable[T]]) -> tuple[list[T], list[ErrorAnswer]]:
    """The result of `look` for each disk, in their order, and an error for each disk that cannot be read."""
    turns, failed = asyncio.Semaphore(SIDE_BY_SIDE), dict[str, ErrorAnswer]()

    async def one(disk: str) -> tuple[T] | None:
        async with turns:
            try:
                return (await look(disk),)
            # G53: one unreadable disk hides no other.
            except RecordUnreadableError as error:
                failed[disk] = unreadable(disk, error)
                return None

    found = await asyncio.gather(*(one(disk) for disk in disks))
    return [result[0] for result in found if result], [failed[disk] for disk in disks if disk in failed]


ReadRuns = Callable[[str, int, str], Awaitable[list["Run"]]]
"""The runs of a disk, newest first: at most so many, after that run."""


@dataclass
class _Stream:
    """A disk's runs as far as they were read."""

    disk: str
    rows: deque[Run] = field(default_factory=deque)
    size: int = ROWS_FIRST
    ended: bool = False

    async def read(self, runs: ReadRuns, after: str) -> _Stream:
        page = await runs(self.disk, self.size, after)
        self.rows.extend(page)
        self.ended, self.size = len(page) < self.size, self.size * ROWS_GROWTH
        return self


async def newest_runs(disks: Sequence[str], limit: int, after: str, runs: ReadRuns) -> tuple[list[Run], list[ErrorAnswer]]:
    """The newest `limit` runs of all disks that come after the run `after`, newest first, and an error for each disk left out.
    Holds a few rows of each disk, however long its list is.
    """
    streams, failed = await each(disks, lambda disk: _Stream(disk).read(runs, after))
    waiting = [(run_key(stream.rows[0].run), index) for index, stream in enumerate(streams) if stream.rows]
    heapq.heapify(waiting)
    found: list[Run] = []
    while waiting and len(found) < limit:
        _, index = heapq.heappop(waiting)
        stream = streams[index]
        found.append(stream.rows.popleft())
        if not stream.rows and not stream.ended and len(found) < limit:
            try:
                await stream.read(runs, found[-1].run)
            except RecordUnreadableError as error:
                failed.append(unreadable(stream.disk, error))
        if stream.rows:
            heapq.heappush(waiting, (run_key(stream.rows[0].run), index))
    return found, failed
