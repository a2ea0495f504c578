"""The new disk of a restore, and the machine that gets it: copied, proved, sealed, imported when it shall be a managed disk,
then given to the machine under the disk's ownership.
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

from backup_core.orchestrations import copy_image, repoint_machine, wait_for_disk
from backup_core.orchestrations.calls import Flow, Retries, StepFailedError, call, now, progress_shown, show, sub_orchestration
from backup_core.orchestrations.wait_for_disk import owner
from backup_core.steps.copying import REPORT_PROGRESS, ImageCopy, Report
from backup_core.steps.messages import Fault
from backup_core.steps.restore import (
    IMPORT_DISK,
    NOTE_FAILURE,
    REMEMBER_MACHINE,
    SEAL_IMAGE,
    CopyImage,
    DeliverDisk,
    Delivered,
    ImageCopied,
    ImportDisk,
    NoteFailure,
    Owned,
    RememberMachine,
    Repointed,
    RepointRequest,
    SealImage,
    Waited,
    WaitForDisk,
)

if TYPE_CHECKING:
    from backup_core.domain.records import Phase
    from backup_core.orchestrations.calls import Context
    from backup_core.steps.messages import RunRef
    from backup_core.steps.restore import RestoreBegun

NAME = "deliver_disk"
IMPORT_PAUSE = timedelta(seconds=30)
IMPORT_LOOKS_MAX = 60
"""Half an hour: Azure imports a VHD in minutes, since its pages are copied by reference."""


class _LeftError(Exception):
    """Leaves the generator with the run's end decided."""

    def __init__(self, fault: Fault | None) -> None:
        super().__init__("canceled" if fault is None else fault.code)
        self.fault = fault


def deliver_disk(context: Context) -> Flow[dict[str, Any]]:
    """The orchestrator. Returns a Delivered; never raises for an expected failure."""
    delivery = _Delivery(context, DeliverDisk.model_validate(context.get_input()))
    fault: Fault | None
    try:
        yield from delivery.flow()
    except StepFailedError as failed:
        fault = failed.fault
    except _LeftError as left:
        fault = left.fault
    else:
        return delivery.end.model_copy(update={"state": "success"}).model_dump(mode="json")
    if fault is None:
        return delivery.end.model_copy(update={"state": "canceled"}).model_dump(mode="json")
    yield from delivery.tell(fault)
    return delivery.end.model_copy(update={"state": "failed", "fault": fault}).model_dump(mode="json")


class _Delivery:
    """One execution of the orchestrator; `end` grows with what is reached."""

    def __init__(self, context: Context, asked: DeliverDisk) -> None:
        self.context, self.request, self.by, self.begun = context, asked.request, asked.by, asked.begun
        self.end = Delivered(state="failed")
        self.retries = Retries()

    def flow(self) -> Flow[None]:
        copied = yield from self._copied()
        self._reached(etag=copied.etag)
        if not self.begun.adopt:
            yield from self._sealed()
        if self.begun.managed_disk:
            yield from self._imported()
        if self.begun.repoint:
            owned = yield from self._owned()
            if self.begun.adopt:
                yield from self._sealed()
            yield from self._repointed(owner(self.by, owned), begun_before=bool(owned.repoint))

    def _sealed(self) -> Flow[None]:
        """The disk is complete. One that is adopted is snapshotted under the disk's ownership only: its snapshot is to be newer
        than that of every other restore point.
        """
        asked = SealImage(image=disk_image(self.by, self.begun), etag=self.end.etag, snapshots=self.begun.adopt)
        sealed = yield from call(self.context, SEAL_IMAGE, asked, self.retries)
        self._reached(sealed=True, snapshot=sealed.snapshot)

    def _reached(self, **fields: Any) -> None:  # noqa: ANN401  the fields of Delivered
        self.end = self.end.model_copy(update={**fields, "retries": self.retries.count})

    def _copied(self) -> Flow[ImageCopied]:
        asked = CopyImage(
            image=disk_image(self.by, self.begun),
            wave=self.request.wave,
            full_copy=self.request.full_copy,
            verification=self.request.verification,
        )
        copied = yield from sub_orchestration(self.context, copy_image.NAME, asked, ImageCopied)
        self.retries.count += copied.retries
        if copied.state != "success":
            raise _LeftError(copied.fault)
        return copied

    def _imported(self) -> Flow[None]:
        asked = ImportDisk(by=self.by, disk=self.begun.managed_disk, target=self.begun.target, slot=self.begun.slot)
        for _ in range(IMPORT_LOOKS_MAX):
            yield from self._report(self.by, "importing")
            imported = yield from call(self.context, IMPORT_DISK, asked, self.retries)
            if imported.done:
                return
            yield self.context.create_timer(now(self.context) + IMPORT_PAUSE)
        message = f"managed disk {self.begun.managed_disk} was not complete after half an hour; look at it in the portal"
        raise StepFailedError(Fault(code="ImportTimedOut", message=message, retryable=False))

    def _owned(self) -> Flow[Owned]:
        """From here on no backup runs: it would be of the disk that is just being replaced."""
        waited = yield from sub_orchestration(self.context, wait_for_disk.NAME, WaitForDisk(by=self.by), Waited)
        if waited.owned is None:
            raise _LeftError(None if waited.canceled else waited.fault)
        self._reached(owned=waited.owned)
        moved = source_moved(self.begun, waited.owned)
        if moved:
            raise StepFailedError(moved)
        return waited.owned

    def _repointed(self, by: RunRef, *, begun_before: bool) -> Flow[None]:
        assert self.begun.slot is not None
        # The last moment at which nothing of the machine is touched, unless an earlier life has come further.
        yield from self._report(by, "repointing", leaves=not begun_before)
        asked = RememberMachine(
            by=by,
            slot=self.begun.slot,
            expected=self.begun.old_disk,
            target=self.begun.target,
            managed_disk=self.begun.managed_disk,
            size=self.begun.size,
            stop_vm=self.begun.stop_vm,
        )
        remembered = yield from call(self.context, REMEMBER_MACHINE, asked, self.retries)
        self._reached(change=remembered.change, old_disk=remembered.old_disk)
        wanted = RepointRequest(by=by, change=remembered.change, goal="new")
        machine = yield from sub_orchestration(self.context, repoint_machine.NAME, wanted, Repointed)
        self._reached(machine=machine)
        if machine.fault:
            raise _LeftError(None if machine.fault.code == "Canceled" else machine.fault)
        if self.begun.adopt:
            yield from self._report(by, "promoting", leaves=False)

    def _report(self, by: RunRef, phase: Phase, *, leaves: bool = True) -> Flow[None]:
        report = Report(by=by, phase=phase, retries=self.retries.count)
        reported = yield from call(self.context, REPORT_PROGRESS, report, self.retries)
        show(self.context, {"disk": by.disk, "phase": phase, **progress_shown(self.context, reported)})
        if reported.cancel and leaves:
            raise _LeftError(reported.fault)

    def tell(self, fault: Fault) -> Flow[None]:
        """Have the work beside this end too. Not being able to is no reason to fail once more."""
        try:
            yield from call(self.context, NOTE_FAILURE, NoteFailure(by=self.by, fault=fault), self.retries)
        except StepFailedError:
            return


def source_moved(begun: RestoreBegun, owned: Owned) -> Fault | None:
    """A fault when the disk is registered with another source than when the restore began: another restore was faster."""
    if not begun.source or begun.source == owned.source:
        return None
    message = (
        f"the disk's source was {begun.source} when the restore began and is {owned.source or 'not registered'} now: it was "
        "restored or registered anew meanwhile; look at it, and restore again if that is still wanted"
    )
    return Fault(code="SourceMoved", message=message, retryable=False)


def disk_image(by: RunRef, begun: RestoreBegun) -> ImageCopy:
    """The copy of the restore point for the machine."""
    return ImageCopy(
        by=by,
        source=begun.head,
        target=begun.snapshot,
        destination=begun.target,
        becomes="disk",
        kind="restored",
        generation=0,
        size=begun.size,
    )
