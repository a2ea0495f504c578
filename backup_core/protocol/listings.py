"""Long listings, read in parts side by side."""

from __future__ import annotations

import asyncio
import itertools
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Iterable
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, TypeVar

from backup_core.domain.naming import Source
from backup_core.domain.ranges import ByteRange, DiffRange, joined, mapped, windows
from backup_core.steps.copying import ImageCopy

if TYPE_CHECKING:
    from backup_core.protocol.tools import Tools


P = TypeVar("P")
T = TypeVar("T")
R = TypeVar("R")


async def changes_between(
    tools: Tools, blob: Source, snapshot: str, base: str, part: ByteRange
) -> AsyncGenerator[DiffRange, None]:
    """The changes inside `part` since the snapshot `base`, listed in windows side by side; without a base, everything
    allocated.
    """

    async def listed(window: ByteRange) -> AsyncGenerator[DiffRange, None]:
        if base:
            async for changed in tools.blobs.diff(blob, snapshot, base, window):
                yield changed
        else:
            async for allocated in tools.blobs.allocated(blob, snapshot, window):
                yield DiffRange(allocated, cleared=False)

    async for one in in_order(windows(part.end, tools.limits.window_bytes, part.start), listed, tools.limits.windows_ahead):
        yield one


BATCH, BATCHES_AHEAD = 1000, 10
"""Entries that a listing may be ahead of its reader: a page of the service's answer."""


async def in_order(
    parts: Iterable[P], list_part: Callable[[P], AsyncGenerator[T, None]], ahead: int
) -> AsyncGenerator[T, None]:
    """The items of `list_part` for each part, in the order of the parts, with `ahead` of them listed at the same time.

    Each listing is at most a page ahead of the reader, so the memory is bounded whatever the parts hold.
    """
    waiting: deque[tuple[asyncio.Task[None], asyncio.Queue[list[T]]]] = deque()
    upcoming = iter(parts)

    def start() -> None:
        for part in itertools.islice(upcoming, ahead - len(waiting)):
            queue: asyncio.Queue[list[T]] = asyncio.Queue(BATCHES_AHEAD)
            waiting.append((asyncio.create_task(_fill(queue, list_part(part))), queue))

    try:
        start()
        while waiting:
            task, queue = waiting[0]
            while batch := await queue.get():
                for one in batch:
                    yield one
            await task  # raises the failure that ended the listing
            waiting.popleft()
            start()
    finally:
        for task, _ in waiting:
            task.cancel()
        await asyncio.gather(*(task for task, _ in waiting), return_exceptions=True)


async def _fill(queue: asyncio.Queue[list[T]], items: AsyncGenerator[T, None]) -> None:
    """Put the items on the queue in batches, and an empty one at the end, also after a failure."""
    batch: list[T] = []
    try:
        async with aclosing(items):
            async for one in items:
                batch.append(one)
                if len(batch) == BATCH:
                    await queue.put(batch)
                    batch = []
    except Exception:
        await _end(queue, batch)
        raise
    await _end(queue, batch)


async def _end(queue: asyncio.Queue[list[T]], batch: list[T]) -> None:
    if batch:
        await queue.put(batch)
    await queue.put([])


async def side_by_side(items: AsyncIterator[T], do: Callable[[T], Coroutine[Any, Any, R]], limit: int) -> AsyncIterator[R]:
    """The answer of `do` for each item, as each completes, at most `limit` at a time; the first failure cancels the rest."""
    in_flight: set[asyncio.Task[R]] = set()
    done: set[asyncio.Task[R]] = set()
    try:
        async for item in items:
            if len(in_flight) >= limit:
                done, in_flight = await asyncio.wait(in_flight, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    yield task.result()
            in_flight.add(asyncio.create_task(do(item)))
        while in_flight:
            done, in_flight = await asyncio.wait(in_flight)
            for task in done:
                yield task.result()
    finally:
        for task in in_flight:
            task.cancel()
        # Those done as well: one that failed beside the first failure is not asked for, and asyncio would log it as an error.
        await asyncio.gather(*done, *in_flight, return_exceptions=True)


def changed_ranges(tools: Tools, image: ImageCopy, part: ByteRange) -> AsyncIterator[DiffRange]:
    """The changes inside `part`, merged, so that plan and shard cut them alike whatever the windows they were listed in."""
    return joined(_listed(tools, image, part))


class Ascending:
    """Ranges that are listed while ascending questions are asked of them: from the first one on, nothing before."""

    def __init__(self, listed: Callable[[int], AsyncIterator[ByteRange]]) -> None:
        """`listed` gives what is there from an offset on."""
        self._listed = listed
        self._ranges: AsyncIterator[ByteRange] | None = None
        self._at: ByteRange | None = None

    async def inside(self, part: ByteRange) -> AsyncIterator[ByteRange]:
        """The ranges of the part that both have."""
        if self._ranges is None:
            self._ranges = self._listed(part.start)
            self._at = await anext(self._ranges, None)
        while self._at and self._at.start < part.end:
            if self._at.end > part.start:
                yield ByteRange(max(self._at.start, part.start), min(self._at.end, part.end))
            if self._at.end >= part.end:
                return
            self._at = await anext(self._ranges, None)


class HeldByBoth:
    """Whether the source's snapshot and the destination both have a gap allocated. Asked for ascending gaps; lists nothing
    before the first question.

    The run's own writes and clears change no answer: they are ranges of the diff, and gaps that both have.
    """

    def __init__(self, tools: Tools, image: ImageCopy, end: int) -> None:
        """For gaps before `end`."""
        self._tools, self._image, self._end = tools, image, end
        self._held = Ascending(self._listed)

    async def __call__(self, gap: ByteRange) -> bool:
        """Whether both have all of it."""
        return [part async for part in self._held.inside(gap)] == [gap]

    async def _listed(self, start: int) -> AsyncIterator[ByteRange]:
        tools, image = self._tools, self._image
        source, destination = tools.image(image.source), tools.image(image.destination)
        # The destination may not have grown yet, and no gap in what the disk has grown by is held.
        end = min(self._end, (await tools.blobs.properties(source, image.base)).size)
        if start >= end:
            return
        left = changes_between(tools, source, image.target, "", ByteRange(start, end))
        right = changes_between(tools, destination, "", "", ByteRange(start, end))
        # G56: only what both sides have.
        both = mapped((one.range async for one in left), (one.range async for one in right))
        async for one in joined(DiffRange(part.range, cleared=False) async for part in both if part.side == "both"):
            yield one.range


async def _listed(tools: Tools, image: ImageCopy, part: ByteRange) -> AsyncIterator[DiffRange]:
    """The diff up to the base's size, then the whole new tail of a disk that grew."""
    source = tools.image(image.source)
    old_size = (await tools.blobs.properties(source, image.base)).size if image.base else 0
    cut = min(max(old_size, part.start), part.end)
    if image.base and cut > part.start:
        async for changed in changes_between(tools, source, image.target, image.base, ByteRange(part.start, cut)):
            yield changed
    if part.end > cut:
        async for changed in changes_between(tools, source, image.target, "", ByteRange(cut, part.end)):
            yield changed
