"""The first snapshot of a disk that a restore has imported: the base of the next increment.

It is taken before anybody writes to the disk, and compared with the restore point.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from backup_core.orchestrations import wait_for_snapshot
from backup_core.orchestrations.calls import Flow, Left, Retries, StepFailedError, call, sub_orchestration
from backup_core.orchestrations.kit import concluded, report
from backup_core.steps.backup import (
    TAKE_SOURCE_SNAPSHOT,
    SnapshotWaitRequest,
    SnapshotWaitResult,
    SourceSnapshotResult,
    TakeSourceSnapshot,
)
from backup_core.steps.copying import ComparisonProgress, ReportProgress
from backup_core.steps.restore import COMPARE_SNAPSHOT, CompareSnapshot, NewDisk, SnapshotDiskRequest, SnapshotDiskResult

if TYPE_CHECKING:
    from backup_core.orchestrations.calls import Context

NAME = "snapshot_disk"


def snapshot_disk(context: Context) -> Flow[dict[str, Any] | None]:
    """The orchestrator. Returns a SnapshotDiskResult; never raises for an expected failure."""
    snapshotting = _Snapshotting(context, SnapshotDiskRequest.model_validate(context.get_input()))
    flow = snapshotting.flow()
    return (yield from concluded(flow, lambda state, fault: SnapshotDiskResult(canceled=state == "canceled", fault=fault)))


class _Snapshotting:
    """One execution of the orchestrator."""

    def __init__(self, context: Context, request: SnapshotDiskRequest) -> None:
        self.context, self.request, self.retries = context, request, Retries()
        self.actor = request.image.actor.model_copy(update={"source": request.image.destination})

    def flow(self) -> Flow[SnapshotDiskResult]:
        yield from self._report(ComparisonProgress())
        taken = yield from call(self.context, TAKE_SOURCE_SNAPSHOT, TakeSourceSnapshot(actor=self.actor), self.retries)
        if taken.percent < 100:
            taken = yield from self._filled()
        image = NewDisk(**self.request.image.model_dump(), snapshot=taken.snapshot)
        compare = CompareSnapshot(image=image, full=self.request.verification == "full")
        while True:
            compared = yield from call(self.context, COMPARE_SNAPSHOT, compare, self.retries)
            if compared.done:
                return SnapshotDiskResult(snapshot=taken.snapshot, retries=self.retries.count)
            compare = compare.reached(compared)
            yield from self._report(compare)

    def _filled(self) -> Flow[SourceSnapshotResult]:
        """The snapshot, once Azure has filled it."""
        request = SnapshotWaitRequest(actor=self.actor, reason="", kind="restored", retries=self.retries.count)
        waited = yield from sub_orchestration(self.context, wait_for_snapshot.NAME, request, SnapshotWaitResult)
        self.retries.count = max(self.retries.count, waited.retries)
        if waited.fault:
            raise StepFailedError(waited.fault)
        if waited.taken is None:
            raise Left(state="canceled")
        return waited.taken

    def _report(self, compared: ComparisonProgress) -> Flow[None]:
        """A sign of life; leaves when the run is to end, unless the machine may have the disk already."""
        done, total = compared.progress(self.request.image.size)
        progress = ReportProgress(actor=self.request.image.actor, phase="comparing", done=done, total=total)
        reported = yield from report(self.context, progress, self.retries)
        if reported.cancel and not self.request.resumed:
            raise Left(state="canceled", fault=reported.fault)
