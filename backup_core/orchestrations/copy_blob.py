"""Waiting for a Copy Blob of the service: looked at by durable timers, ended when it takes too long or is canceled.

It costs no worker time, and its history stays small: after so many looks it continues as new.
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

from backup_core.domain.ending import PAUSE_SECONDS_MAX
from backup_core.domain.plan import COPY_DEADLINE
from backup_core.orchestrations.calls import Flow, Retries, StepFailedError, beside, call, now, progress_shown, show
from backup_core.steps.copying import ABORT_COPY, CHECK_COPY, REPORT_PROGRESS, START_COPY, CopyEnd, CopyRef, CopyRequest, Report
from backup_core.steps.messages import Fault

if TYPE_CHECKING:
    from backup_core.orchestrations.calls import Context
    from backup_core.steps.copying import CopyProgress, Reported

NAME = "copy_blob"
PAUSE_FIRST, PAUSE_GROWTH = 5.0, 1.5
"""Seconds before the second look, and how the pause grows."""
LOOKS_PER_EXECUTION = 24


def copy_blob(context: Context) -> Flow[dict[str, Any] | None]:
    """The orchestrator. Returns a CopyEnd; never raises for an expected failure."""
    request = CopyRequest.model_validate(context.get_input())
    try:
        end = yield from _waited(context, request)
    except StepFailedError as failed:
        end = CopyEnd(state="failed", fault=failed.fault)
    return end.model_dump(mode="json") if end else None


def _waited(context: Context, request: CopyRequest) -> Flow[CopyEnd | None]:
    retries = Retries(request.retries)
    if not request.copy_id:
        started = yield from call(context, START_COPY, request.image, retries)
        request = request.model_copy(update={"copy_id": started.copy_id, "pause": PAUSE_FIRST})
    ref = CopyRef(image=request.image, copy_id=request.copy_id)
    # Its own pauses and no clock: another life of the same episode must give up at the same look.
    pause, waited = request.pause, timedelta(seconds=request.waited)
    for _ in range(LOOKS_PER_EXECUTION):
        seen = yield from call(context, CHECK_COPY, ref, retries)
        if seen.status == "success":
            return CopyEnd(state="success", copy_id=ref.copy_id, retries=retries.count)
        if seen.status == "aborted":
            # An earlier life of this instance may have ended it, because the run is to end.
            told = yield from _reported(context, request, seen, retries)
            if told.cancel:
                return CopyEnd(state="canceled", fault=told.fault)
        if seen.status != "pending":
            return CopyEnd(
                state="failed", fault=_fault(f"the service ended it as {seen.status}: {seen.why or 'no reason'}", seen)
            )
        told = yield from _reported(context, request, seen, retries)
        if told.cancel or waited > COPY_DEADLINE:
            yield from call(context, ABORT_COPY, ref, retries)
            why = f"it was not complete after {COPY_DEADLINE}; set FULL_COPY to 'pages'"
            if told.cancel:
                return CopyEnd(state="canceled", fault=told.fault)
            return CopyEnd(state="failed", fault=_fault(why, seen))
        yield context.create_timer(now(context) + timedelta(seconds=pause))
        waited += timedelta(seconds=pause)
        pause = min(pause * PAUSE_GROWTH, PAUSE_SECONDS_MAX)
    again = request.model_copy(update={"pause": pause, "waited": waited.total_seconds(), "retries": retries.count})
    context.continue_as_new(again.model_dump(mode="json"))
    return None


def _fault(why: str, seen: CopyProgress) -> Fault:
    message = f"Copy Blob of the whole disk: {why} ({seen.done} of {seen.total} bytes copied); the next run copies anew"
    return Fault(code="CopyFailed", message=message, retryable=False)


def _reported(context: Context, request: CopyRequest, seen: CopyProgress, retries: Retries) -> Flow[Reported]:
    """Progress of the run, which is its heartbeat too; whether it is to be canceled."""
    report = Report(
        by=request.image.by,
        phase="copying",
        done=seen.done,
        total=seen.total,
        kind=request.image.kind,
        reason=request.reason,
        beside=beside(request.image),
        bytes_total=seen.total,
        bytes_done=seen.done,
        retries=retries.count,
    )
    reported = yield from call(context, REPORT_PROGRESS, report, retries)
    show(context, {"bytesDone": seen.done, "bytesTotal": seen.total, **progress_shown(context, reported)})
    return reported
