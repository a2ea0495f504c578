"""A restore point as a new blob or managed disk: planned, opened, copied in waves (a blob also by one Copy Blob), compared.

Both copies of a restore are made by it, side by side: the disk for the machine, and the head for the next backups.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, NoReturn

from backup_core.domain.naming import is_resource_id
from backup_core.domain.sampling import reads_expected
from backup_core.orchestrations import copy_blob
from backup_core.orchestrations.calls import Flow, Left, Retries, StepFailedError, call, sub_orchestration
from backup_core.orchestrations.kit import concluded, continue_as_new, in_parallel, report
from backup_core.orchestrations.shard_waves import apply_shards
from backup_core.steps.copying import (
    PLAN_TRANSFER,
    TAKE_OVER_COPY,
    ComparisonResult,
    CopyBlobRequest,
    CopyBlobResult,
    CopyProgress,
    CopyRef,
    PlanResult,
    ReportProgress,
    TransferCounts,
)
from backup_core.steps.messages import Fault
from backup_core.steps.restore import COMPARE_IMAGE, OPEN_IMAGE, CompareImage, CopyImageRequest, CopyImageResult

if TYPE_CHECKING:
    from backup_core.domain.records import Phase
    from backup_core.orchestrations.calls import Context

NAME = "copy_image"


def copy_image(context: Context) -> Flow[dict[str, Any] | None]:
    """The orchestrator. Returns an CopyImageResult; never raises for an expected failure."""
    copying = _Copying(context, CopyImageRequest.model_validate(context.get_input()))
    return (yield from concluded(copying.flow(), copying.left))


class _Copying:
    """One execution of the orchestrator."""

    def __init__(self, context: Context, request: CopyImageRequest) -> None:
        self.context, self.request, self.image = context, request, request.image
        self.retries = Retries(request.retries)

    def left(self, state: Literal["failed", "canceled"], fault: Fault | None) -> CopyImageResult:
        """The end of a copy that was not completed: a cancel with a fault is because another part of the run has failed."""
        return CopyImageResult(state="failed" if fault else state, fault=fault, retries=self.retries.count)

    def flow(self) -> Flow[CopyImageResult]:
        request = self.request
        if request.planned:
            planned, progress = request.planned, CopyProgress(**request.position())
        elif request.full_copy == "blob" and not is_resource_id(self.image.destination):
            planned = PlanResult(write_bytes=self.image.size, requests=1, whole=True, reads=self._reads())
            progress = CopyProgress(applied=(yield from self._whole()))
        else:
            # Planned first: a point that cannot be read leaves nothing behind.
            planned, progress = (yield from call(self.context, PLAN_TRANSFER, self.image, self.retries)), CopyProgress()
            planned = planned.model_copy(update={"reads": self._reads()})
            self.image = self.image.model_copy(update={"plan": planned.plan, "plan_digest": planned.digest})
            yield from call(self.context, OPEN_IMAGE, self.image, self.retries)
        applied = yield from apply_shards(
            self.context,
            self.image,
            planned,
            progress,
            request.wave,
            self.retries,
            report=lambda reached: self._report("copying", planned, reached, reached.puts, planned.requests),
            continue_as_new=lambda reached: self._continue_as_new(planned, reached),
        )
        compared = yield from self._compared(planned, applied)
        return CopyImageResult(
            state="success",
            etag=compared.etag,
            applied=applied,
            compared=compared.compared,
            page_map=compared.chain,
            retries=self.retries.count,
        )

    def _reads(self) -> int:
        return reads_expected(self.image.size, full=self.request.verification == "full")

    def _whole(self) -> Flow[TransferCounts]:
        """Have the service make the blob by one Copy Blob, and take it over."""
        end = yield from sub_orchestration(self.context, copy_blob.NAME, CopyBlobRequest(image=self.image), CopyBlobResult)
        self.retries.count += end.retries
        if end.state == "canceled":
            raise Left(state="canceled", fault=end.fault)
        if end.fault:
            raise StepFailedError(end.fault)
        yield from call(self.context, TAKE_OVER_COPY, CopyRef(image=self.image, copy_id=end.copy_id), self.retries)
        return TransferCounts(write_bytes=self.image.size, puts=1)

    def _compared(self, planned: PlanResult, applied: TransferCounts) -> Flow[ComparisonResult]:
        request = CompareImage(image=self.image, full=self.request.verification == "full")
        while True:
            yield from self._report("verifying", planned, applied, *request.progress(self.image.size), request.reads)
            verified = yield from call(self.context, COMPARE_IMAGE, request, self.retries)
            if verified.done:
                return verified
            request = request.reached(verified)

    def _report(
        self, phase: Phase, planned: PlanResult, applied: TransferCounts, done: int, total: int, verified: int = 0
    ) -> Flow[None]:
        """Report progress, which is the heartbeat; leaves when the run is to end."""
        progress = ReportProgress(
            actor=self.image.actor,
            phase=phase,
            done=done,
            total=total,
            requests_verified=verified,
            in_parallel=in_parallel(self.image),
        ).measured(planned, applied)
        amounts = {"bytesTotal": planned.write_bytes, "bytesDone": applied.write_bytes}
        reported = yield from report(self.context, progress, self.retries, **amounts)
        if reported.cancel:
            raise Left(state="canceled", fault=reported.fault)

    def _continue_as_new(self, planned: PlanResult, reached: CopyProgress) -> NoReturn:
        checkpoint = {
            "image": self.image,
            "planned": planned,
            **reached.position(),
            "retries": self.retries.count,
        }
        continue_as_new(self.context, self.request.model_copy(update=checkpoint))


def failed(message: str) -> CopyImageResult:
    """The end of a copy that crashed or was terminated."""
    return CopyImageResult(state="failed", fault=Fault(code="Unexpected", message=message, retryable=False))
