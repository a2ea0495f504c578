"""The wait for a disk's ownership, however long its present owner takes: polled by durable timers, ended by a cancel."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from backup_core.orchestrations import repoint_machine
from backup_core.orchestrations.calls import Flow, Left, Retries, StepFailedError, call, sub_orchestration
from backup_core.orchestrations.kit import LOOKS_PER_EXECUTION, Pauses, concluded, continue_as_new, report
from backup_core.steps.copying import ReportProgress
from backup_core.steps.messages import Actor, Fault
from backup_core.steps.restore import OWN_DISK, OwnDisk, OwnDiskResult, RepointRequest, RepointResult, WaitRequest, WaitResult

if TYPE_CHECKING:
    from backup_core.orchestrations.calls import Context

NAME = "wait_for_disk"
CHANGES_CLOSED_MAX = 9
"""Former changes of machines that are settled at most: there is one at a time, and no run leaves another one meanwhile."""


def wait_for_disk(context: Context) -> Flow[dict[str, Any] | None]:
    """The orchestrator. Returns a Waited; never raises for an expected failure."""
    request = WaitRequest.model_validate(context.get_input())
    flow = _waited(context, request)
    return (yield from concluded(flow, lambda state, fault: WaitResult(canceled=state == "canceled", fault=fault)))


def _waited(context: Context, request: WaitRequest) -> Flow[WaitResult]:
    retries, actor, pauses = Retries(request.retries), request.actor, Pauses(context, request.pause)
    changes_closed = request.changes_closed
    step_input = OwnDisk(
        disk=actor.disk,
        run=actor.run,
        lease=request.lease or actor.lease,
        supersedes=actor.lease if request.lease else "",
    )
    for _ in range(LOOKS_PER_EXECUTION):
        ownership = yield from call(context, OWN_DISK, step_input, retries)
        if ownership.state == "unsettled":
            changes_closed += 1
            yield from _settle(context, owner(actor, ownership, request.lease), ownership, changes_closed)
            continue
        if ownership.state == "owned":
            return WaitResult(ownership=ownership)
        words = f"waits for run {ownership.busy}, which is at work on the disk"
        progress = ReportProgress(actor=actor, phase="queued", attention=words)
        reported = yield from report(context, progress, retries, waitsFor=ownership.busy)
        if reported.cancel:
            raise Left(state="canceled")
        yield from pauses.pause()
    again = {"pause": pauses.seconds, "retries": retries.count, "changes_closed": changes_closed}
    continue_as_new(context, request.model_copy(update=again))


def owner(actor: Actor, ownership: OwnDiskResult, lease: str = "") -> Actor:
    """The restore as the disk's owner, whose right to act is its epoch, and no longer its pin."""
    owns = {"epoch": ownership.epoch, "pin": "", "source": ownership.source or actor.source, "lease": lease or actor.lease}
    return actor.model_copy(update=owns)


def _settle(context: Context, actor: Actor, ownership: OwnDiskResult, number: int) -> Flow[None]:
    if number > CHANGES_CLOSED_MAX:
        message = (
            f"disk {actor.disk}: {CHANGES_CLOSED_MAX} changes of machines were completed and there is one more: "
            f"{ownership.repoint}"
        )
        raise StepFailedError(Fault(code="MachineBusy", message=f"{message}; look at the machine", retryable=False))
    request = RepointRequest(actor=actor, change=ownership.repoint, digest=ownership.repoint_digest, goal="")
    ended = yield from sub_orchestration(context, repoint_machine.NAME, request, RepointResult)
    if ended.fault:
        raise StepFailedError(ended.fault)
