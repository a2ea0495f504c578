"""Some of a window's disks, one after another: the next in the order of all whenever one is done."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from backup_core.domain.shown import NAMED_MAX, shortened
from backup_core.orchestrations import backup_disk
from backup_core.orchestrations.calls import Flow, Retries, call, failure_text, show
from backup_core.orchestrations.kit import begin_anew
from backup_core.steps.backup import TAKE_TURN, BackupRequest, LaneRequest, LaneResult, TakeTurn

if TYPE_CHECKING:
    from backup_core.orchestrations.calls import Context
    from backup_core.steps.backup import FleetRequest, FleetRun

NAME = "backup_lane"
TURNS_PER_EXECUTION = 16
"""Disks, before the instance continues as new: its history stays small."""


def backup_lane(context: Context) -> Flow[dict[str, Any] | None]:
    """The orchestrator. Returns a LaneResult; never raises for a disk that failed."""
    request = LaneRequest.model_validate(context.get_input())
    ended, failed, names = Counter(request.end.ended), request.end.failed, list(request.end.names)
    number = request.turn
    for _ in range(TURNS_PER_EXECUTION):
        wanted = TakeTurn(window=request.fleet.window, lane=request.lane, turn=number)
        turn = yield from call(context, TAKE_TURN, wanted, Retries())
        if turn.run is None:
            return LaneResult(ended=dict(ended), failed=failed, names=names, closed=turn.closed).model_dump(mode="json")
        disk, number = turn.run.disk, turn.turn + 1
        show(context, {"disk": disk, "failed": failed, "ended": sum(ended.values())})
        try:
            # Under an id of its own, as in `sub_orchestration`: a lane may be begun twice.
            raw = yield context.call_sub_orchestrator(backup_disk.NAME, window_backup(request.fleet, turn.run))
        except Exception as error:  # noqa: BLE001  a failed sub-orchestration arrives as a plain Exception
            failed, names = failed + 1, [*names, shortened(f"{disk}: {failure_text(error)}")][:NAMED_MAX]
        else:
            ended[state_of(raw)] += 1
    end = LaneResult(ended=dict(ended), failed=failed, names=names)
    begin_anew(context, request.model_copy(update={"turn": number, "end": end}))
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
