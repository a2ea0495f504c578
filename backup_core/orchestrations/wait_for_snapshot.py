"""Wait for a snapshot of a managed disk that Azure fills in the background, polled by durable timers. The wait ends when it
takes too long or is canceled.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from backup_core.domain.managed_snapshots import FILLED_DEADLINE
from backup_core.orchestrations.calls import Flow, Left, Retries, StepFailedError, call
from backup_core.orchestrations.kit import LOOKS_PER_EXECUTION, Pauses, concluded, continue_as_new, report
from backup_core.steps.backup import TAKE_SOURCE_SNAPSHOT, SnapshotWaitRequest, SnapshotWaitResult, TakeSourceSnapshot
from backup_core.steps.copying import ReportProgress
from backup_core.steps.messages import Fault

if TYPE_CHECKING:
    from backup_core.domain.records import Phase
    from backup_core.orchestrations.calls import Context

NAME = "wait_for_snapshot"


def wait_for_snapshot(context: Context) -> Flow[dict[str, Any] | None]:
    """The orchestrator. Returns a SnapshotWaitResult; never raises for an expected failure."""
    request = SnapshotWaitRequest.model_validate(context.get_input())
    flow = _waited(context, request)
    return (yield from concluded(flow, lambda state, fault: SnapshotWaitResult(canceled=state == "canceled", fault=fault)))


def _waited(context: Context, request: SnapshotWaitRequest) -> Flow[SnapshotWaitResult]:
    retries, pauses = Retries(request.retries), Pauses(context, request.pause)
    # Its own pauses and no clock: another life of the same episode must end at the same poll.
    waited, actor = request.waited, request.actor
    phase: Phase = "comparing" if request.kind == "restored" else "snapshot"
    for _ in range(LOOKS_PER_EXECUTION):
        progress = ReportProgress(actor=actor, phase=phase, kind=request.kind, reason=request.reason)
        reported = yield from report(context, progress, retries)
        if reported.cancel:
            raise Left(state="canceled")
        waited += yield from pauses.pause()
        # The same step: it finds the run's snapshot.
        taken = yield from call(context, TAKE_SOURCE_SNAPSHOT, TakeSourceSnapshot(actor=actor), retries)
        if taken.percent == 100:
            return SnapshotWaitResult(taken=taken, retries=retries.count)
        if waited > FILLED_DEADLINE.total_seconds():
            message = (
                f"snapshot {taken.snapshot} of {actor.source} can be read to {taken.percent} percent after {FILLED_DEADLINE}; "
                "look at it in the portal; the next run takes another"
            )
            raise StepFailedError(Fault(code="SnapshotNotReady", message=message, retryable=False))
    again = {"pause": pauses.seconds, "waited": waited, "retries": retries.count}
    continue_as_new(context, request.model_copy(update=again))
