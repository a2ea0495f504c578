"""The execution of shards of a plan: copies and clears side by side, with a stored cursor, stopped in time."""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import aclosing
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pydantic import TypeAdapter

from backup_core.domain.coalescing import Request, coalesced
from backup_core.domain.errors import FencedError, RecordAlteredError, UnexpectedAnswerError
from backup_core.domain.naming import DiskAddress, cursor_name, shard_end_name
from backup_core.domain.ranges import ByteRange
from backup_core.protocol.documents import PLAN, held_document, read_document
from backup_core.protocol.listings import HeldByBoth, changed_ranges
from backup_core.protocol.rights import fence_of, require_right_to_act
from backup_core.steps.copying import ApplyShard, ShardResult, TransferCounts
from backup_core.steps.messages import Message

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from backup_core.domain.plan import Plan, Shard
    from backup_core.protocol.tools import Tools
    from backup_core.steps.copying import ImageCopy


class Cursor(Message):
    """The progress of a shard: stored only after the service has answered for everything before `at`."""

    at: int
    applied: TransferCounts
    unchanged_bytes: int = 0
    """Written besides: in gaps that are copied along."""


CURSOR = TypeAdapter(Cursor)


async def apply_shard(tools: Tools, request: ApplyShard) -> ShardResult:
    """Copy the shards one after another, while there is time; a repeat answers the same of those that are done."""
    image, before, began = request.image, TransferCounts(), tools.monotonic()
    plan: Plan | None = None
    for shards_before, number in enumerate([request.shard, *request.then]):
        await require_right_to_act(tools, image.actor)
        if plan is None:
            plan = await held_document(tools, PLAN, image.plan, image.plan_digest, "start the run again")
        reached = await _apply_one(tools, image, plan, number, began)
        reached = reached.model_copy(update={"before": before, "shards_before": shards_before})
        if not reached.done or tools.monotonic() - began > tools.limits.shard_seconds:
            break
        before = reached.of_done
    return reached


async def _apply_one(tools: Tools, image: ImageCopy, plan: Plan, number: int, began: float) -> ShardResult:
    """Copy the shard's changed ranges and clear its cleared ones, from its cursor on, within the time of a call since `began`;
    a repeat writes the same bytes again, and nothing once the shard is done.

    Every write to a blob carries the lease and the epoch, and no upload is written once it has ended, so a delivery after the
    run has ended is refused by the service too.
    """
    shard = plan.shards[number]
    name, end = cursor_name(image.plan, number), shard_end_name(image.plan, number)
    # G22: a shard that is done writes nothing more.
    if done := await _ended(tools, end, shard, image):
        return done
    cursor = await _stored(tools, name, shard) or Cursor(at=shard.start, applied=TransferCounts())
    copying = _Copying(tools, image, name, cursor, plan.gap_bytes_max, began)
    try:
        reached = await copying.run(ByteRange(cursor.at, shard.end)) if cursor.at < shard.end else cursor
    except FencedError:
        # The run itself closes the blob for its comparison, once another delivery has done the shard and stored that.
        if done := await _ended(tools, end, shard, image):
            return done
        raise
    if copying.complete:
        # G20: the shard's own listing must agree with the plan.
        _check(reached, shard, image)
        await tools.documents.put_if_absent(end, reached.model_dump_json())
    return ShardResult(applied=reached.applied, at=reached.at, done=copying.complete)


async def _stored(tools: Tools, name: str, shard: Shard) -> Cursor | None:
    """The stored progress of the shard. Raises RecordAlteredError for a place outside of it."""
    stored = await tools.documents.get(name)
    cursor = read_document(CURSOR, name, stored) if stored else None
    if cursor and not shard.start <= cursor.at <= shard.end:
        message = (
            f"document {name}: it says that all before {cursor.at} is done, expected a place in shard [{shard.start}, "
            f"{shard.end}); somebody else wrote it; nothing was done; the next run copies anew"
        )
        raise RecordAlteredError(message)
    return cursor


async def _ended(tools: Tools, name: str, shard: Shard, image: ImageCopy) -> ShardResult | None:
    """The end of the shard that another delivery has stored, checked against the plan."""
    done = await _stored(tools, name, shard)
    if done is None:
        return None
    _check(done, shard, image)
    return ShardResult(applied=done.applied, at=done.at, done=True)


@dataclass
class _Piece:
    """One request, and its result."""

    request: Request
    applied: TransferCounts | None = None


class _Copying:
    """Requests side by side. Never more than a wave of them is ahead of the stored cursor, so that a crash repeats no more."""

    def __init__(self, tools: Tools, image: ImageCopy, name: str, cursor: Cursor, gap_bytes_max: int, began: float) -> None:
        self._tools, self._image, self._name, self._gap_bytes_max = tools, image, name, gap_bytes_max
        self._began = began
        self._cursor = cursor
        self._ahead: deque[_Piece] = deque()
        """Requests after the cursor, in order, answered or not."""
        self._unsaved = 0
        """Requests between the stored cursor and this one."""
        self._open: dict[asyncio.Task[TransferCounts], _Piece] = {}
        self._saving: asyncio.Task[None] | None = None
        self._saving_count = 0
        self._issued = 0
        self.complete = True

    async def run(self, part: ByteRange) -> Cursor:
        """Do the part until it is done or the time is up."""
        limits = self._tools.limits
        try:
            async with aclosing(_requests(self._tools, self._image, part, self._gap_bytes_max)) as requests:
                async for request in requests:
                    while len(self._open) >= limits.in_flight or len(self._ahead) + self._unsaved >= limits.wave_requests:
                        await self._await_answers()
                    # At least one wave is done, whatever the clock says, so that each call gets further than the one before.
                    if self._issued >= limits.in_flight and self._tools.monotonic() - self._began > limits.shard_seconds:
                        self.complete = False
                        break
                    self._start(request)
            while self._open:
                await self._await_answers()
            if self._saving:
                await self._saving
            if not self.complete:
                await self._save(self._cursor)
        finally:
            left = [*self._open, *([self._saving] if self._saving else [])]
            for task in left:
                task.cancel()
            await asyncio.gather(*left, return_exceptions=True)
        return self._cursor

    def _start(self, request: Request) -> None:
        self._issued += 1
        waiting = _Piece(request)
        self._ahead.append(waiting)
        self._open[asyncio.create_task(_apply(self._tools, self._image, request))] = waiting

    async def _await_answers(self) -> None:
        """Wait for an answer; move the cursor over answered requests without a gap, and store it in time."""
        if not self._saving and (not self._open or self._unsaved * 2 >= self._tools.limits.wave_requests):
            self._saving_count = self._unsaved
            self._saving = asyncio.create_task(self._save(self._cursor))
        waited = [*self._open, *([self._saving] if self._saving else [])]
        done, _ = await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
        if self._saving and self._saving in done:
            self._saving.result()
            self._saving, self._unsaved = None, self._unsaved - self._saving_count
        for task in [task for task in self._open if task in done]:
            self._open[task].applied = task.result()
            del self._open[task]
        # G21: the cursor passes answered requests only, without a gap.
        while self._ahead and (applied := self._ahead[0].applied) is not None:
            request, cursor = self._ahead.popleft().request, self._cursor
            unchanged = cursor.unchanged_bytes + request.unchanged_bytes
            self._cursor = Cursor(at=request.range.end, applied=cursor.applied.plus(applied), unchanged_bytes=unchanged)
            self._unsaved += 1

    async def _save(self, cursor: Cursor) -> None:
        await self._tools.documents.put(self._name, cursor.model_dump_json())


async def _requests(tools: Tools, image: ImageCopy, part: ByteRange, gap_bytes_max: int) -> AsyncGenerator[Request, None]:
    async for one in coalesced(changed_ranges(tools, image, part), gap_bytes_max, HeldByBoth(tools, image, part.end)):
        yield one


async def _apply(tools: Tools, image: ImageCopy, request: Request) -> TransferCounts:
    piece = request.range
    destination, fence = tools.destination(image.destination, image.actor.run), fence_of(image.actor)
    try:
        if request.cleared:
            await tools.blobs.clear(destination, piece, fence)
            return TransferCounts(clear_bytes=piece.size, clears=1)
        # Zeros in a gap stay: once they were cleared, a repeat would no longer find the gap held by both, and cut otherwise.
        # G57: not in a put that copies a gap along.
        keep_zeros = bool(request.unchanged_bytes)
        source = tools.image(image.source)
        streamed = await tools.copying.copy(source, image.target, piece, destination, fence, keep_zeros=keep_zeros)
    except FencedError as error:
        why = "" if isinstance(destination, DiskAddress) else "; another run owns the blob now, or the lease was broken"
        message = f"run {image.actor.run}: {error}{why}"
        raise FencedError(message) from error
    return TransferCounts(write_bytes=request.changed_bytes, puts=1, streamed_bytes=streamed)


def _check(cursor: Cursor, shard: Shard, image: ImageCopy) -> None:
    """Raise unless the work is as planned: snapshots do not change, so a difference means that a listing was wrong."""
    tally = cursor.applied
    done = (tally.write_bytes, tally.clear_bytes, tally.puts + tally.clears, cursor.unchanged_bytes)
    planned = (shard.write_bytes, shard.clear_bytes, shard.requests, shard.unchanged_bytes)
    if done != planned:
        message = (
            f"run {image.actor.run}: shard [{shard.start}, {shard.end}) was planned as {planned} (bytes written, bytes "
            f"cleared, requests, unchanged bytes written) and listed again as {done}; two listings of the same snapshots "
            "differ; the next run lists anew"
        )
        raise UnexpectedAnswerError(message)
