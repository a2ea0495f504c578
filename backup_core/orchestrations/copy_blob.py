"""Wait for a Copy Blob of the service, polled by durable timers. A copy that the service ends as failed is begun again. One
that takes too long, or is canceled, is aborted.

It costs no worker time, and its history stays small: after so many polls it continues as new.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from backup_core.domain.plan import COPY_DEADLINE
from backup_core.orchestrations.calls import Flow, Left, Retries, StepFailedError, call
from backup_core.orchestrations.kit import LOOKS_PER_EXECUTION, Pauses, concluded, continue_as_new, in_parallel, report
from backup_core.steps.copying import (
    ABORT_COPY,
    CHECK_COPY,
    START_COPY,
    CopyBlobRequest,
    CopyBlobResult,
    CopyRef,
    ReportProgress,
    StartCopy,
)
from backup_core.steps.messages import Fault

if TYPE_CHECKING:
    from backup_core.orchestrations.calls import Context
    from backup_core.steps.copying import CheckCopyResult, ReportResult

NAME = "copy_blob"

REPLACED_MAX = 2
"""Failed copies of one image that are begun over."""


def copy_blob(context: Context) -> Flow[dict[str, Any] | None]:
    """The orchestrator. Returns a CopyBlobResult; never raises for an expected failure."""
    request = CopyBlobRequest.model_validate(context.get_input())
    return (yield from concluded(_waited(context, request), lambda state, fault: CopyBlobResult(state=state, fault=fault)))


def _waited(context: Context, request: CopyBlobRequest) -> Flow[CopyBlobResult]:
    retries, pauses = Retries(request.retries), Pauses(context, request.pause)
    if not request.copy_id:
        request = yield from _begun(context, request, retries)
    # Its own pauses and no clock: another life of the same episode must abort at the same poll.
    waited = request.waited
    for _ in range(LOOKS_PER_EXECUTION):
        ref = CopyRef(image=request.image, copy_id=request.copy_id)
        seen = yield from call(context, CHECK_COPY, ref, retries)
        if seen.status == "success":
            return CopyBlobResult(state="success", copy_id=ref.copy_id, retries=retries.count)
        if seen.status == "failed":
            if request.replaced == REPLACED_MAX:
                raise StepFailedError(_fault(f"the service ended it as failed: {seen.why or 'no reason'}", seen))
            # Of two deliveries that begin it at once, one may have ended the access by which the other's copy was read.
            retries.count += 1
            request = yield from _begun(context, request.model_copy(update={"replaced": request.replaced + 1}), retries)
            continue
        reported = yield from _reported(context, request, seen, retries)
        if seen.status == "pending" and (reported.cancel or waited > COPY_DEADLINE.total_seconds()):
            yield from call(context, ABORT_COPY, ref, retries)
        if reported.cancel:
            # Of a copy that is aborted, too: an earlier life of this instance may have aborted it.
            raise Left(state="canceled", fault=reported.fault)
        if seen.status == "aborted":
            raise StepFailedError(_fault(f"the service ended it as aborted: {seen.why or 'no reason'}", seen))
        if waited > COPY_DEADLINE.total_seconds():
            raise StepFailedError(_fault(f"it was not complete after {COPY_DEADLINE}; set FULL_COPY to 'pages'", seen))
        waited += yield from pauses.pause()
    again = {"pause": pauses.seconds, "waited": waited, "retries": retries.count}
    continue_as_new(context, request.model_copy(update=again))


def _begun(context: Context, request: CopyBlobRequest, retries: Retries) -> Flow[CopyBlobRequest]:
    """The request with the copy that is begun now, over the failed one if it has any."""
    started = yield from call(context, START_COPY, StartCopy(**dict(request.image), replaces=request.copy_id), retries)
    return request.model_copy(update={"copy_id": started.copy_id})


def _fault(why: str, seen: CheckCopyResult) -> Fault:
    message = f"Copy Blob of the whole disk: {why} ({seen.done} of {seen.total} bytes copied); the next run copies anew"
    return Fault(code="CopyFailed", message=message, retryable=False)


def _reported(context: Context, request: CopyBlobRequest, seen: CheckCopyResult, retries: Retries) -> Flow[ReportResult]:
    """Report the run's progress, which is its heartbeat too; whether it is to be canceled."""
    progress = ReportProgress(
        actor=request.image.actor,
        phase="copying",
        done=seen.done,
        total=seen.total,
        kind=request.image.kind,
        reason=request.reason,
        in_parallel=in_parallel(request.image),
        bytes_total=seen.total,
        bytes_done=seen.done,
    )
    return (yield from report(context, progress, retries, bytesDone=seen.done, bytesTotal=seen.total))
