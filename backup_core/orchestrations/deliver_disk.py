"""Deliver the new disk of a restore, and give it to the machine. The disk is copied, proved and sealed, and imported when it
shall be a managed disk. Then the machine gets it, under the disk's ownership.
"""

from __future__ import annotations

from contextlib import suppress
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from backup_core.domain.disk_delivery import State, after, next_step, wrong_disk
from backup_core.domain.ending import CANCELED
from backup_core.domain.errors import HeadAlteredError
from backup_core.orchestrations import copy_image, repoint_machine, snapshot_disk, wait_for_disk
from backup_core.orchestrations.calls import Flow, Retries, StepFailedError, call, now, sub_orchestration
from backup_core.orchestrations.kit import report
from backup_core.orchestrations.wait_for_disk import owner
from backup_core.steps.copying import ImageCopy, ReportProgress
from backup_core.steps.messages import Fault
from backup_core.steps.restore import (
    IMPORT_DISK,
    RECORD_FAILURE,
    SEAL_IMAGE,
    STORE_CHANGE,
    CopyImageRequest,
    CopyImageResult,
    DeliverRequest,
    DeliverResult,
    ImportDisk,
    OwnDiskResult,
    RecordFailure,
    RepointRequest,
    RepointResult,
    SealImage,
    SnapshotDiskRequest,
    SnapshotDiskResult,
    StoreChange,
    WaitRequest,
    WaitResult,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from backup_core.domain.disk_delivery import Result, Step
    from backup_core.domain.records import Phase
    from backup_core.orchestrations.calls import Context
    from backup_core.steps.messages import Actor
    from backup_core.steps.restore import BeginRestoreResult

NAME = "deliver_disk"
IMPORT_PAUSE = timedelta(seconds=30)


def deliver_disk(context: Context) -> Flow[dict[str, Any]]:
    """The orchestrator. Returns a Delivered; never raises for an expected failure."""
    return (yield from _Delivery(context, DeliverRequest.model_validate(context.get_input())).flow())


class _Delivery:
    """One execution of the orchestrator: the state of the rule, and what was reached."""

    def __init__(self, context: Context, request: DeliverRequest) -> None:
        self.context, self.request, self.actor, self.begun = context, request.request, request.actor, request.begun
        begun = request.begun
        self.state = State(
            adopts=begun.adopt,
            imports=bool(begun.managed_disk) and not begun.uploads,
            repoints=begun.repoint,
            uploads=begun.uploads,
        )
        self.reached = DeliverResult(state="failed")
        self.fault: Fault | None = None
        self.retries = Retries()
        self.steps: dict[Step, Callable[[], Flow[Result]]] = {
            "copy": self._copy,
            "seal": self._seal,
            "report_importing": lambda: self._report("importing"),
            "import_disk": self._import,
            "pause": self._pause,
            "own": self._own,
            "snapshot_disk": self._snapshot,
            "report_repointing": lambda: self._report("repointing"),
            "store_change": self._store_change,
            "repoint": self._repoint,
            "report_promoting": lambda: self._report("promoting"),
            "record_failure": self._record_failure,
        }

    def flow(self) -> Flow[dict[str, Any]]:
        while (step := next_step(self.state)) != "end":
            self.state = after(self.state, step, (yield from self._result(step)))
        end: dict[str, Any] = {"state": self.state.end, "retries": self.retries.count}
        if self.state.end in ("failed", "timed_out"):
            end |= {"state": "failed", "fault": self.fault}
        return self.reached.model_copy(update=end).model_dump(mode="json")

    def _result(self, step: Step) -> Flow[Result]:
        try:
            return (yield from self.steps[step]())
        except StepFailedError as failed:
            self.fault = failed.fault
            return "failed"

    def _keep(self, **fields: Any) -> None:  # noqa: ANN401  the fields of Delivered
        self.reached = self.reached.model_copy(update=fields)

    def _copy(self) -> Flow[Result]:
        request = CopyImageRequest(
            image=disk_image(self.actor, self.begun),
            wave=self.request.wave,
            full_copy=self.request.full_copy,
            verification=self.request.verification,
        )
        copied = yield from sub_orchestration(self.context, copy_image.NAME, request, CopyImageResult)
        self.retries.count += copied.retries
        if copied.state != "success":
            return self._left(copied.fault)
        self._keep(etag=copied.etag)
        return "done"

    def _left(self, fault: Fault | None) -> Result:
        self.fault = fault
        return "failed" if fault else "canceled"

    def _seal(self) -> Flow[Result]:
        request = SealImage(
            image=disk_image(self.actor, self.begun),
            etag=self.reached.etag,
            snapshots=self.begun.adopt and not self.begun.new_source,
        )
        sealed = yield from call(self.context, SEAL_IMAGE, request, self.retries)
        self._keep(sealed=True, snapshot=sealed.snapshot)
        return "done"

    def _import(self) -> Flow[Result]:
        request = ImportDisk(actor=self.actor, disk=self.begun.managed_disk, target=self.begun.target, slot=self.begun.slot)
        imported = yield from call(self.context, IMPORT_DISK, request, self.retries)
        return "done" if imported.done else "pending"

    def _pause(self) -> Flow[Result]:
        yield self.context.create_timer(now(self.context) + IMPORT_PAUSE)
        return "done"

    def _own(self) -> Flow[Result]:
        waited = yield from sub_orchestration(self.context, wait_for_disk.NAME, WaitRequest(actor=self.actor), WaitResult)
        if waited.ownership is None:
            return self._left(None if waited.canceled else waited.fault)
        self._keep(ownership=waited.ownership)
        if moved := source_moved(self.begun, waited.ownership):
            return self._left(moved)
        return "resumed" if waited.ownership.repoint else "done"

    def _snapshot(self) -> Flow[Result]:
        request = SnapshotDiskRequest(
            image=imported_disk(self._owner, self.begun),
            verification=self.request.verification,
            resumed=self.state.resumed,
        )
        taken = yield from sub_orchestration(self.context, snapshot_disk.NAME, request, SnapshotDiskResult)
        self.retries.count += taken.retries
        if taken.canceled or taken.fault:
            return self._left(taken.fault)
        self._keep(snapshot=taken.snapshot)
        return "done"

    @property
    def _owner(self) -> Actor:
        return owner(self.actor, self.reached.ownership) if self.reached.ownership else self.actor

    def _store_change(self) -> Flow[Result]:
        assert self.begun.slot is not None
        request = StoreChange(
            actor=self._owner,
            slot=self.begun.slot,
            expected=self.begun.old_disk,
            target=self.begun.target,
            managed_disk=self.begun.managed_disk,
            size=self.begun.size,
            stop_vm=self.begun.stop_vm,
            new_source=self.begun.new_source,
        )
        remembered = yield from call(self.context, STORE_CHANGE, request, self.retries)
        self._keep(change=remembered.change, known=remembered.known, old_disk=remembered.old_disk)
        return "done"

    def _repoint(self) -> Flow[Result]:
        wanted = RepointRequest(actor=self._owner, change=self.reached.change, known=self.reached.known, goal="new")
        try:
            machine = yield from sub_orchestration(self.context, repoint_machine.NAME, wanted, RepointResult)
        except StepFailedError as failed:
            # The machine's disk is not known.
            machine = RepointResult(holds="unknown", power="", fault=failed.fault)
        target = self.begun.managed_disk or self.begun.target
        if not machine.fault and (message := wrong_disk(machine.source, target)):
            fault = Fault(code="SlotTaken", message=message, retryable=False)
            machine = machine.model_copy(update={"holds": "other", "fault": fault})
        # An uploaded disk that is not as it was proved any more is not said to be complete.
        self._keep(machine=machine, sealed=not machine.fault or machine.fault.code != HeadAlteredError.code)
        if machine.fault:
            return self._left(None if machine.fault.code == CANCELED else machine.fault)
        return "done"

    def _report(self, phase: Phase) -> Flow[Result]:
        reported = yield from report(self.context, ReportProgress(actor=self._owner, phase=phase), self.retries)
        if not reported.cancel:
            return "done"
        self.fault = reported.fault
        return "stopped" if reported.fault else "canceled"

    def _record_failure(self) -> Flow[Result]:
        """Record the failure, so that the work beside this ends too. If that fails, it is ignored: the run fails already."""
        if self.fault is None:
            message = f"managed disk {self.begun.managed_disk} was not complete after half an hour; look at it in the portal"
            self.fault = Fault(code="ImportTimedOut", message=message, retryable=False)
        with suppress(StepFailedError):
            yield from call(self.context, RECORD_FAILURE, RecordFailure(actor=self.actor, fault=self.fault), self.retries)
        return "done"


def source_moved(begun: BeginRestoreResult, ownership: OwnDiskResult) -> Fault | None:
    """A fault when the disk is registered with another source than when the restore began: another restore was faster."""
    if not begun.source or begun.source == ownership.source:
        return None
    message = (
        f"the disk's source was {begun.source} when the restore began and is {ownership.source or 'not registered'} now: "
        "it was restored or registered anew meanwhile; look at it, and restore again if that is still wanted"
    )
    return Fault(code="SourceMoved", message=message, retryable=False)


def disk_image(actor: Actor, begun: BeginRestoreResult) -> ImageCopy:
    """The copy of the restore point for the machine."""
    return ImageCopy(
        actor=actor,
        source=begun.head,
        target=begun.snapshot,
        destination=begun.target,
        becomes="disk",
        kind="restored",
        generation=0,
        size=begun.size,
        slot=begun.slot if begun.uploads else None,
    )


def imported_disk(actor: Actor, begun: BeginRestoreResult) -> ImageCopy:
    """The image that an adopted imported disk must equal: the restore point. `actor` owns the protected disk."""
    return disk_image(actor, begun).model_copy(update={"destination": begun.new_source})
