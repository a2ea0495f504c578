"""The disks a window of the schedule backs up: their order, and whose turn it is."""

from __future__ import annotations

import asyncio
import math
from datetime import datetime
from typing import TYPE_CHECKING

from backup_core.domain.ending import dead
from backup_core.domain.errors import BackupError, RecordUnreadableError, UnexpectedAnswerError
from backup_core.domain.fleet import PAST_RUNS, Candidate, expected_seconds, in_order, lanes_for
from backup_core.domain.naming import timer_run_id, window_id
from backup_core.protocol.turns import begin_turns, order_of
from backup_core.protocol.updates import update_row
from backup_core.steps.backup import FleetPage, FleetPageResult, FleetRun, TakeTurn, TakeTurnResult

if TYPE_CHECKING:
    from backup_core.protocol.tools import Tools

SIDE_BY_SIDE = 32


async def list_disks(tools: Tools, request: FleetPage) -> FleetPageResult:
    """The window's disks, each with its run; of more than `lanes`, only how many: their order is stored, and their turns begin.

    At most four requests for a disk, of 32 disks at the same time. Repeated, it answers by the order that is stored.
    """
    window = datetime.fromisoformat(request.window)
    former = window_id(datetime.fromisoformat(request.former)) if request.former else ""
    at_once = asyncio.Semaphore(SIDE_BY_SIDE)

    async def stopped(disk: str) -> bool:
        async with at_once:
            return await _is_stopped(tools, disk)

    async def candidate(disk: str) -> Candidate:
        async with at_once:
            return await _candidate(tools, disk, former)

    listed = await tools.catalogue.disks()
    ended = await asyncio.gather(*map(stopped, listed))
    disks = [disk for disk, no_longer in zip(listed, ended, strict=True) if not no_longer]
    if len(disks) <= request.lanes:
        if disks and await tools.catalogue.turns():
            # All begin together, so that no turn is left of this window, and none of a larger one before it.
            await begin_turns(tools, window_id(window), disks, len(disks))
        return FleetPageResult(runs=[_run(disk, window) for disk in disks], disks=len(disks))
    candidates = await asyncio.gather(*map(candidate, disks))
    lanes = lanes_for(len(disks), sum(one.at_work for one in candidates), request.lanes)
    turns = await begin_turns(tools, window_id(window), in_order(candidates), lanes)
    return FleetPageResult(runs=[], disks=len(disks), lanes=len(turns.lanes))


async def take_turn(tools: Tools, request: TakeTurn) -> TakeTurnResult:
    """The disk of the lane's turn of that number, given to it under the row's version. Repeated, it answers the same."""
    window = datetime.fromisoformat(request.window)

    async def take() -> TakeTurnResult:
        row = await tools.catalogue.turns()
        if row is None or row.value.window < window_id(window):
            message = (
                f"window {window_id(window)}: its turns are not in the catalogue; its other disks are left to the next one"
            )
            raise UnexpectedAnswerError(message)
        if row.value.window > window_id(window):
            return TakeTurnResult(closed=True)
        turns, turn = row.value.given(request.lane, request.turn, await tools.catalogue.now())
        if turn is None:
            return TakeTurnResult()
        # G69: under the version that it was decided on, so that no disk is given to two lanes.
        if turns is not row.value:
            await tools.catalogue.put_turns(turns, row.etag)
        order = await order_of(tools, turns)
        return TakeTurnResult(run=_run(order[turn.place], window), turn=turn.number)

    return await update_row(take, f"window {window_id(window)}: its turns", "other lanes took theirs")


def _run(disk: str, window: datetime) -> FleetRun:
    return FleetRun(disk=disk, run=timer_run_id(disk, window))


async def _is_stopped(tools: Tools, disk: str) -> bool:
    """Whether the disk is listed only for a run that is still at work. One that cannot be read gets its run: that says why."""
    try:
        row = await tools.catalogue.registration(disk)
    except RecordUnreadableError:
        # G53: the disk's run reports that its row cannot be read; the window continues.
        return False
    return row is not None and not row.value.protected


async def _candidate(tools: Tools, disk: str, former: str) -> Candidate:
    """The values that decide the disk's place in the order. A value that cannot be read stays unknown: the disk's run reports
    why.
    """
    try:
        runs = await tools.catalogue.runs(disk, PAST_RUNS)
        open_ = next((run for run in runs if run.operation == "backup" and run.state == "Running"), None)
        row = await tools.catalogue.run(disk, open_.run) if open_ else None
        at_work = row is not None and not row.value.ended_for_good and not dead(row, await tools.catalogue.now())
    except RecordUnreadableError:
        return Candidate(disk)
    seconds = expected_seconds(runs)
    if math.isinf(seconds):
        seconds = expected_seconds(runs, await _size(tools, disk))
    return Candidate(disk, seconds, waited=bool(former) and all(run.window != former for run in runs), at_work=at_work)


async def _size(tools: Tools, disk: str) -> int | None:
    """Bytes of the disk; None when it cannot be looked at."""
    try:
        row = await tools.catalogue.registration(disk)
        return (await tools.blobs.properties(tools.source(row.value.source))).size if row else None
    except BackupError:
        return None
