"""A window of the schedule: one backup_disk orchestration per registered disk, none of which stops another.

A few disks are backed up side by side. More of them are put in an order, and as many lanes each take the next one when they
are done with one: the first restore points are there soon, a source snapshot is taken when its disk's turn begins, and no run
waits for a worker so long that it would be taken for abandoned.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from backup_core.domain.fleet import shards_beside
from backup_core.domain.identity import child_id
from backup_core.domain.shown import NAMED_MAX, named
from backup_core.orchestrations import backup_disk, backup_lane
from backup_core.orchestrations.backup_lane import state_of, window_backup
from backup_core.orchestrations.calls import Child, Crashed, Flow, Retries, all_ended, call, children, show
from backup_core.steps.backup import LIST_DISKS, FleetPage, FleetRequest, LaneRequest, LaneResult

if TYPE_CHECKING:
    from backup_core.orchestrations.calls import Context
    from backup_core.steps.backup import FleetRun

NAME = "backup_fleet"


class FleetFailedError(Exception):
    """At least one disk of the window has no new restore point; the others have theirs. The text names the failed disks."""


def backup_fleet(context: Context) -> Flow[dict[str, Any]]:
    """The orchestrator. Returns how many runs ended in each state; raises when any failed, after all have ended."""
    request = FleetRequest.model_validate(context.get_input())
    listing = FleetPage(window=request.window, former=request.former, lanes=request.lanes)
    page = yield from call(context, LIST_DISKS, listing, Retries())
    show(context, {"window": request.window, "disks": page.disks, "lanes": page.lanes})
    request = request.model_copy(update={"wave": shards_beside(request.wave, page.lanes or page.disks)})
    if page.lanes:
        end = yield from _lanes(context, request, page.lanes)
    else:
        end = yield from _side_by_side(context, request, page.runs)
    faults = [f"{end.failed} of {page.disks} failed: {named(end.names)}"] if end.failed else []
    if end.closed:
        left = max(page.disks - end.failed - sum(end.ended.values()), 1)
        faults.append(f"{left} of {page.disks} had no turn before the next window began: in that one they come first")
    if faults:
        message = f"window {request.window}: {'; '.join(faults)}"
        raise FleetFailedError(message)
    return {"window": request.window, "runs": end.ended}


def _side_by_side(context: Context, request: FleetRequest, runs: list[FleetRun]) -> Flow[LaneResult]:
    tasks = [context.call_sub_orchestrator(backup_disk.NAME, window_backup(request, one), one.run) for one in runs]
    ends = yield from all_ended(context, tasks)
    crashed = [f"{one.disk}: {end.why}" for one, end in zip(runs, ends, strict=True) if isinstance(end, Crashed)]
    ended = Counter(state_of(end) for end in ends if not isinstance(end, Crashed))
    return LaneResult(ended=dict(ended), failed=len(crashed), names=crashed[:NAMED_MAX])


def _lanes(context: Context, request: FleetRequest, count: int) -> Flow[LaneResult]:
    lanes = [
        Child(
            backup_lane.NAME,
            LaneRequest(fleet=request, lane=lane),
            LaneResult,
            (child_id(context.instance_id, "lane", lane + 1),),
        )
        for lane in range(count)
    ]
    ended, failed, names, closed = Counter[str](), 0, list[str](), False
    for lane, end in enumerate((yield from children(context, lanes)), start=1):
        if isinstance(end, Crashed):
            failed, names = failed + 1, [*names, f"lane {lane}: {end.why}"]
        else:
            ended.update(end.ended)
            failed, names, closed = failed + end.failed, names + end.names, closed or end.closed
    return LaneResult(ended=dict(ended), failed=failed, names=names[:NAMED_MAX], closed=closed)
