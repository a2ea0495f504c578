"""A restore point as a new blob: planned, opened, copied in waves (or by one Copy Blob of the service), compared.

Both copies of a restore are made by it, side by side: the disk for the machine, and the head the backups go on from.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, NoReturn

from backup_core.domain.sampling import reads_expected
from backup_core.orchestrations import copy_blob
from backup_core.orchestrations.calls import Flow, Left, Retries, StepFailedError, call, sub_orchestration
from backup_core.orchestrations.kit import beside, concluded, continue_as_new, report
from backup_core.orchestrations.shard_waves import applied_shards
from backup_core.steps.copying import (
    PLAN_TRANSFER,
    TAKE_OVER_COPY,
    Applied,
    CopyEnd,
    CopyRef,
    CopyRequest,
    Planned,
    Report,
    Verified,
)
from backup_core.steps.messages import Fault
from backup_core.steps.restore import COMPARE_IMAGE, OPEN_IMAGE, CompareImage, CopyImage, ImageCopied

if TYPE_CHECKING:
    from backup_core.domain.records import Phase
    from backup_core.orchestrations.calls import Context

NAME = "copy_image"


def copy_image(context: Context) -> Flow[dict[str, Any] | None]:
    """The orchestrator. Returns an ImageCopied; never raises for an expected failure."""
    copying = _Copying(context, CopyImage.model_validate(context.get_input()))
    return (yield from concluded(copying.flow(), copying.left))


class _Copying:
    """One execution of the orchestrator."""

    def __init__(self, context: Context, request: CopyImage) -> None:
        self.context, self.request, self.image = context, request, request.image
        self.retries = Retries(request.retries)

    def left(self, state: Literal["failed", "canceled"], fault: Fault | None) -> ImageCopied:
        """The end of a copy that was not completed: a cancel with a fault is because another part of the run has failed."""
        return ImageCopied(state="failed" if fault else state, fault=fault, retries=self.retries.count)

    def flow(self) -> Flow[ImageCopied]:
        request = self.request
        if request.planned:
            planned, applied = request.planned, request.applied
        elif request.full_copy == "blob":
            planned = Planned(write_bytes=self.image.size, requests=1, whole=True, reads=self._reads())
            applied = yield from self._whole()
        else:
            # Planned first: a point that cannot be read leaves nothing behind.
            planned, applied = (yield from call(self.context, PLAN_TRANSFER, self.image, self.retries)), Applied()
            planned = planned.model_copy(update={"reads": self._reads()})
            self.image = self.image.model_copy(update={"plan": planned.plan, "plan_digest": planned.digest})
            yield from call(self.context, OPEN_IMAGE, self.image, self.retries)
        applied = yield from applied_shards(
            self.context,
            self.image,
            planned,
            (request.next_shard, applied),
            request.wave,
            self.retries,
            report=lambda reached: self._report("copying", planned, reached, reached.puts, planned.requests),
            continue_as_new=lambda shard, reached: self._continue_as_new(planned, shard, reached),
        )
        compared = yield from self._compared(planned, applied)
        return ImageCopied(
            state="success",
            etag=compared.etag,
            applied=applied,
            compared=compared.compared,
            page_map=compared.chain,
            retries=self.retries.count,
        )

    def _reads(self) -> int:
        return reads_expected(self.image.size, full=self.request.verification == "full")

    def _whole(self) -> Flow[Applied]:
        """Have the service make the blob by one Copy Blob, and take it over."""
        end = yield from sub_orchestration(self.context, copy_blob.NAME, CopyRequest(image=self.image), CopyEnd)
        self.retries.count += end.retries
        if end.state == "canceled":
            raise Left(state="canceled", fault=end.fault)
        if end.fault:
            raise StepFailedError(end.fault)
        yield from call(self.context, TAKE_OVER_COPY, CopyRef(image=self.image, copy_id=end.copy_id), self.retries)
        return Applied(write_bytes=self.image.size, puts=1)

    def _compared(self, planned: Planned, applied: Applied) -> Flow[Verified]:
        asked = CompareImage(image=self.image, full=self.request.verification == "full")
        while True:
            yield from self._report("verifying", planned, applied, *asked.progress(self.image.size), asked.reads)
            verified = yield from call(self.context, COMPARE_IMAGE, asked, self.retries)
            if verified.done:
                return verified
            asked = asked.reached(verified)

    def _report(self, phase: Phase, planned: Planned, applied: Applied, done: int, total: int, verified: int = 0) -> Flow[None]:
        """A sign of life, progress for people; leaves when the run is to end."""
        progress = Report(
            by=self.image.by, phase=phase, done=done, total=total, requests_verified=verified, beside=beside(self.image)
        ).measured(planned, applied)
        amounts = {"bytesTotal": planned.write_bytes, "bytesDone": applied.write_bytes}
        reported = yield from report(self.context, progress, self.retries, **amounts)
        if reported.cancel:
            raise Left(state="canceled", fault=reported.fault)

    def _continue_as_new(self, planned: Planned, shard: int, applied: Applied) -> NoReturn:
        going = {
            "image": self.image,
            "planned": planned,
            "next_shard": shard,
            "applied": applied,
            "retries": self.retries.count,
        }
        continue_as_new(self.context, self.request.model_copy(update=going))


def failed(message: str) -> ImageCopied:
    """The end of a copy that could not say itself why it ended."""
    return ImageCopied(state="failed", fault=Fault(code="Unexpected", message=message, retryable=False))
