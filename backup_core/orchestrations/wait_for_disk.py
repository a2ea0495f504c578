"""Becoming the disk's owner, however long the run that has it takes: looked at by durable timers, ended by a cancel."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from backup_core.orchestrations import repoint_machine
from backup_core.orchestrations.calls import Flow, Left, Retries, StepFailedError, call, sub_orchestration
from backup_core.orchestrations.kit import LOOKS_PER_EXECUTION, Pauses, concluded, continue_as_new, report
from backup_core.steps.copying import Report
from backup_core.steps.messages import Fault, RunRef
from backup_core.steps.restore import OWN_DISK, OwnDisk, Owned, Repointed, RepointRequest, Waited, WaitForDisk

if TYPE_CHECKING:
    from backup_core.orchestrations.calls import Context

NAME = "wait_for_disk"
SETTLINGS_MAX = 9
"""Former changes of machines that are settled: there is at most one at a time, and nobody leaves another one meanwhile."""


def wait_for_disk(context: Context) -> Flow[dict[str, Any] | None]:
    """The orchestrator. Returns a Waited; never raises for an expected failure."""
    request = WaitForDisk.model_validate(context.get_input())
    flow = _waited(context, request)
    return (yield from concluded(flow, lambda state, fault: Waited(canceled=state == "canceled", fault=fault)))


def _waited(context: Context, request: WaitForDisk) -> Flow[Waited]:
    retries, by, pauses = Retries(request.retries), request.by, Pauses(context, request.pause)
    settlings = request.settlings
    asked = OwnDisk(
        disk=by.disk,
        run=by.run,
        lease=request.lease or by.lease,
        supersedes=by.lease if request.lease else "",
    )
    for _ in range(LOOKS_PER_EXECUTION):
        owned = yield from call(context, OWN_DISK, asked, retries)
        if owned.state == "unsettled":
            settlings += 1
            yield from _settle(context, owner(by, owned, request.lease), owned, settlings)
            continue
        if owned.state == "owned":
            return Waited(owned=owned)
        words = f"waits for run {owned.busy}, which is at work on the disk"
        progress = Report(by=by, phase="queued", attention=words)
        reported = yield from report(context, progress, retries, waitsFor=owned.busy)
        if reported.cancel:
            raise Left(state="canceled")
        yield from pauses.pause()
    again = {"pause": pauses.seconds, "retries": retries.count, "settlings": settlings}
    continue_as_new(context, request.model_copy(update=again))


def owner(by: RunRef, owned: Owned, lease: str = "") -> RunRef:
    """The restore as the disk's owner: from now on its epoch is its right to act, and not its pin."""
    owns = {"epoch": owned.epoch, "pin": "", "source": owned.source or by.source, "lease": lease or by.lease}
    return by.model_copy(update=owns)


def _settle(context: Context, by: RunRef, owned: Owned, number: int) -> Flow[None]:
    if number > SETTLINGS_MAX:
        message = f"disk {by.disk}: {SETTLINGS_MAX} changes of machines were settled and there is one more: {owned.repoint}"
        raise StepFailedError(Fault(code="MachineBusy", message=f"{message}; look at the machine", retryable=False))
    asked = RepointRequest(by=by, change=owned.repoint, digest=owned.repoint_digest, goal="")
    ended = yield from sub_orchestration(context, repoint_machine.NAME, asked, Repointed)
    if ended.fault:
        raise StepFailedError(ended.fault)
