"""A lane: some of a window's disks, one after another, so that a few of thousands are backed up at the same time."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from backup_core.domain.shown import NAMED_MAX, shortened
from backup_core.orchestrations import backup_disk
from backup_core.orchestrations.calls import Flow, Retries, call, failure_text, show
from backup_core.orchestrations.kit import begin_anew
from backup_core.steps.backup import LIST_DISKS, BackupRequest, FleetPage, LaneRequest, LaneResult

if TYPE_CHECKING:
    from backup_core.orchestrations.calls import Context
    from backup_core.steps.backup import FleetRequest, FleetRun

NAME = "backup_lane"


def backup_lane(context: Context) -> Flow[dict[str, Any] | None]:
    """The orchestrator. Returns a LaneResult; never raises for a disk that failed. A slice of disks per execution."""
    request = LaneRequest.model_validate(context.get_input())
    step_input = FleetPage(window=request.fleet.window, after=request.after, lane=request.lane, lanes=request.fleet.lanes)
    page = yield from call(context, LIST_DISKS, step_input, Retries())
    ended, failed, names = Counter(request.end.ended), request.end.failed, list(request.end.names)
    for one in page.runs:
        show(context, {"disk": one.disk, "failed": failed, "ended": sum(ended.values())})
        try:
            # Under an id of its own, as in `sub_orchestration`: a lane may be begun twice.
            raw = yield context.call_sub_orchestrator(backup_disk.NAME, window_backup(request.fleet, one))
        except Exception as error:  # noqa: BLE001  a failed sub-orchestration arrives as a plain Exception
            failed, names = failed + 1, [*names, shortened(f"{one.disk}: {failure_text(error)}")][:NAMED_MAX]
        else:
            ended[state_of(raw)] += 1
    end = LaneResult(ended=dict(ended), failed=failed, names=names)
    if not page.more:
        return end.model_dump(mode="json")
    begin_anew(context, request.model_copy(update={"after": page.runs[-1].disk, "end": end}))
    return None


def window_backup(request: FleetRequest, one: FleetRun) -> dict[str, Any]:
    """Input of the backup of a disk for a window."""
    step_input = BackupRequest(
        disk=one.disk,
        run=one.run,
        trigger="timer",
        window=request.window,
        wave=request.wave,
        full_copy=request.full_copy,
        prune=request.prune,
    )
    return step_input.model_dump(mode="json")


def state_of(output: Any) -> str:  # noqa: ANN401  any JSON
    """The end of a backup; `unknown` for another call's output that was taken for it."""
    return str(output.get("state", "unknown")) if isinstance(output, dict) else "unknown"
