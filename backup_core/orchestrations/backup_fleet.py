"""A window of the schedule: one backup_disk orchestration per registered disk, none of which stops another.

A few disks are backed up side by side. More of them are shared out to as many lanes, each of which backs up its disks one after
another: the first restore points are made soon, and no run waits for a worker so long that it would be taken for abandoned.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

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
    page = yield from call(context, LIST_DISKS, FleetPage(window=request.window), Retries())
    show(context, {"window": request.window, "disks": len(page.runs), "more": page.more})
    end = (yield from _lanes(context, request)) if page.more else (yield from _side_by_side(context, request, page.runs))
    if end.failed:
        message = f"window {request.window}: {end.failed} of {end.failed + sum(end.ended.values())} failed: {named(end.names)}"
        raise FleetFailedError(message)
    return {"window": request.window, "runs": end.ended}


def _side_by_side(context: Context, request: FleetRequest, runs: list[FleetRun]) -> Flow[LaneResult]:
    tasks = [context.call_sub_orchestrator(backup_disk.NAME, window_backup(request, one), one.run) for one in runs]
    ends = yield from all_ended(context, tasks)
    crashed = [f"{one.disk}: {end.why}" for one, end in zip(runs, ends, strict=True) if isinstance(end, Crashed)]
    ended = Counter(state_of(end) for end in ends if not isinstance(end, Crashed))
    return LaneResult(ended=dict(ended), failed=len(crashed), names=crashed[:NAMED_MAX])


def _lanes(context: Context, request: FleetRequest) -> Flow[LaneResult]:
    lanes = [
        Child(
            backup_lane.NAME,
            LaneRequest(fleet=request, lane=lane),
            LaneResult,
            (child_id(context.instance_id, "lane", lane + 1),),
        )
        for lane in range(request.lanes)
    ]
    ended, failed, names = Counter[str](), 0, list[str]()
    for lane, end in enumerate((yield from children(context, lanes)), start=1):
        if isinstance(end, Crashed):
            failed, names = failed + 1, [*names, f"lane {lane}: {end.why}"]
        else:
            ended.update(end.ended)
            failed, names = failed + end.failed, names + end.names
    return LaneResult(ended=dict(ended), failed=failed, names=names[:NAMED_MAX])
