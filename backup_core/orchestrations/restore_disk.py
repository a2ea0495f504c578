"""The restore of one disk: pin the point; side by side the new disk (and its machine) and the new head; adopt; let go.

The disk's protection changes only in the adoption, after everything it rests on was proved and read back.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from backup_core.domain.ending import CANCELED
from backup_core.domain.identity import ChildPurpose, child_id, lease_id
from backup_core.domain.naming import restored_head_name
from backup_core.domain.outcome import Outcome as Ending
from backup_core.domain.outcome import end_words
from backup_core.orchestrations import copy_image, deliver_disk, wait_for_disk
from backup_core.orchestrations.calls import (
    Crashed,
    Flow,
    Retries,
    StepFailedError,
    answer_of,
    call,
    progress_shown,
    settled,
    show,
    sub_orchestration,
)
from backup_core.orchestrations.deliver_disk import disk_image, source_moved
from backup_core.orchestrations.wait_for_disk import owner
from backup_core.steps.backup import COMMIT_POINT, TAKE_BACKUP, Commit, TakeBackup, Transfer
from backup_core.steps.copying import REPORT_PROGRESS, ImageCopy, Report
from backup_core.steps.messages import Fault, RunRef
from backup_core.steps.restore import (
    ADOPT_HEAD,
    BEGIN_RESTORE,
    DISCARD_IMAGE,
    FINISH_RESTORE,
    NOTE_FAILURE,
    SEAL_IMAGE,
    SETTLE_CHANGE,
    AdoptHead,
    BeginRestore,
    CopyImage,
    DeliverDisk,
    Delivered,
    DiscardImage,
    FinishRestore,
    ImageCopied,
    NoteFailure,
    Owned,
    RestoreRequest,
    SealImage,
    SettleChange,
    Waited,
    WaitForDisk,
)

if TYPE_CHECKING:
    from backup_core.orchestrations.calls import Context
    from backup_core.steps.restore import RestoreBegun

NAME = "restore_disk"
State = Literal["Succeeded", "Failed", "Canceled"]
_Part = tuple[str, DeliverDisk | CopyImage, ChildPurpose, type[Delivered | ImageCopied]]
"""A sub-orchestration: name, input, what it is for, and what it answers."""


class RestoreFailedError(Exception):
    """Ends the orchestration as Failed, so that the portal shows red; the run's row has the same code and message."""


def restore_disk(context: Context) -> Flow[dict[str, Any]]:
    """The orchestrator. Returns {run, state, end}; a failed restore raises after its end was written."""
    request = RestoreRequest.model_validate(context.get_input())
    restore = _Restore(context, request)
    fault: Fault | None = None
    state: State = "Succeeded"
    try:
        begun = yield from restore.begin()
        if begun is None:
            return {"run": request.run, "state": "ended"}
        state, fault = yield from restore.flow(begun)
    except StepFailedError as failed:
        state, fault = "Failed", failed.fault
    words = yield from restore.finish(state, fault)
    if state == "Failed" and fault:
        message = f"run {request.run}: {fault.code}: {fault.message}; {words}"
        raise RestoreFailedError(message)
    return {"run": request.run, "state": state, "end": words}


class _Restore:
    """One execution of the orchestrator: what it has learned so far. Rebuilt by every replay."""

    def __init__(self, context: Context, request: RestoreRequest) -> None:
        self.context, self.request = context, request
        self.lease = lease_id(context.instance_id, "run", request.run)
        self.retries = Retries()
        self.points: list[str] = []
        self.leased: list[str] = []
        self.owner_lease = ""
        self.end = Ending()
        self.delivered = Delivered(state="failed")

    def begin(self) -> Flow[RestoreBegun | None]:
        self._show("preparing")
        asked = BeginRestore(disk=self.request.disk, run=self.request.run, lease=self.lease)
        begun = yield from call(self.context, BEGIN_RESTORE, asked, self.retries)
        if begun.state == "go":
            return begun
        self._show("done", why=begun.why)
        return None

    # -- the flow -------------------------------------------------------------------------------------------------------

    def flow(self, begun: RestoreBegun) -> Flow[tuple[State, Fault | None]]:
        by = RunRef(
            disk=self.request.disk, run=self.request.run, lease=self.lease, epoch=0, source=begun.source, pin=begun.point
        )
        self._show("copying", follow=self._child("delivery"))
        self.end = Ending(target=begun.target, managed_disk=begun.managed_disk, slot=_slot(begun), point=begun.point)
        head = self._head_image(by, begun)
        self.leased = [begun.target, *([head.destination] if begun.adopt else [])]
        self.delivered, promoted = yield from self._side_by_side(by, begun, head)
        delivered = self.delivered
        self.end.old_disk = delivered.old_disk
        if delivered.owned and delivered.owned.held:
            self.leased.append(delivered.owned.held)
        if delivered.machine:
            self.end.holds, self.end.power = delivered.machine.holds, delivered.machine.power
        state, fault = _ended(delivered.state, delivered.fault)
        if state == "Succeeded" and promoted is not None:
            state, fault = yield from self._taken_up(by, begun, head, promoted)
        if self.end.holds == "new" and not self.points:
            # The machine writes to the new disk from now on, so backups must be of that one, point or no point.
            yield from self._settle(by)
        self.end.complete = self.delivered.sealed
        if not self.delivered.sealed:
            self.end.left = yield from self._discard(disk_image(by, begun))
        if begun.adopt and not self.points:
            self.end.left_head = yield from self._discard(head)
        return state, fault

    def _side_by_side(self, by: RunRef, begun: RestoreBegun, head: ImageCopy) -> Flow[tuple[Delivered, ImageCopied | None]]:
        """The machine's disk, and the backups' head: neither waits for the other."""
        delivery = DeliverDisk(request=self.request, by=by, begun=begun)
        parts: list[_Part] = [(deliver_disk.NAME, delivery, "delivery", Delivered)]
        if begun.adopt:
            promotion = CopyImage(
                image=head,
                wave=self.request.wave,
                full_copy=self.request.full_copy,
                verification=self.request.verification,
            )
            parts.append((copy_image.NAME, promotion, "head", ImageCopied))
        ends = yield from settled(self.context, [self._begun(part) for part in parts])
        for position, part in enumerate(parts):
            if not isinstance(ends[position], Crashed) and answer_of(part[-1], ends[position]) is None:
                ends[position : position + 1] = yield from settled(self.context, [self._begun(part, 2)])
        if isinstance(ends[0], Crashed):
            delivered = yield from self._recovered(by, begun, ends[0].why)
        else:
            delivered = Delivered.model_validate(ends[0])
        if not begun.adopt:
            return delivered, None
        promoted = copy_image.failed(ends[1].why) if isinstance(ends[1], Crashed) else ImageCopied.model_validate(ends[1])
        self.retries.count += delivered.retries + promoted.retries
        return delivered, promoted

    def _begun(self, part: _Part, attempt: int = 1) -> Any:  # noqa: ANN401  a durable task
        name, asked, purpose, _ = part
        return self.context.call_sub_orchestrator(name, asked.model_dump(mode="json"), self._child(purpose, attempt))

    def _recovered(self, by: RunRef, begun: RestoreBegun, why: str) -> Flow[Delivered]:
        """The delivery broke, or was terminated in the portal: nobody says how far it was. A machine it may have been changing
        is settled before anything else.
        """
        fault = Fault(code="Unexpected", message=f"the delivery of the disk broke: {why}", retryable=False)
        # Its own parts may be alive: they leave at their next report.
        yield from call(self.context, NOTE_FAILURE, NoteFailure(by=by, fault=fault), self.retries)
        self.end.holds = "unknown" if begun.repoint else ""
        if not begun.repoint:
            return Delivered(state="failed", fault=fault)
        # Whatever part of the delivery is alive must not touch the machine any more: the disk is owned anew, without it.
        self.owner_lease = lease_id(self.context.instance_id, "recovery", self.request.run)
        owned = yield from self._own(by, self.owner_lease)
        return Delivered(state="failed", fault=fault, owned=owned)

    def _own(self, by: RunRef, lease: str = "") -> Flow[Owned | None]:
        """Become the disk's owner; None when the run is canceled meanwhile. What a dead change left is settled there."""
        asked = WaitForDisk(by=by, lease=lease)
        waited = yield from sub_orchestration(self.context, wait_for_disk.NAME, asked, Waited)
        if waited.fault:
            raise StepFailedError(waited.fault)
        return waited.owned

    # -- adoption ---------------------------------------------------------------------------------------------------------

    def _taken_up(
        self, by: RunRef, begun: RestoreBegun, head: ImageCopy, promoted: ImageCopied
    ) -> Flow[tuple[State, Fault | None]]:
        """Backups go on from the new disk as increments, when the promotion succeeded too."""
        state, fault = _ended(promoted.state, promoted.fault)
        if state != "Succeeded":
            return state, fault
        try:
            return (yield from self._adopt(by, begun, head, promoted)), None
        except StepFailedError as failed:
            return "Failed", failed.fault

    def _settle(self, by: RunRef) -> Flow[None]:
        assert self.delivered.owned is not None
        by = owner(by, self.delivered.owned)
        settle = SettleChange(by=by, change=self.delivered.change, goal="new")
        yield from call(self.context, SETTLE_CHANGE, settle, self.retries)
        self.end.follows = True

    def _adopt(self, by: RunRef, begun: RestoreBegun, head: ImageCopy, promoted: ImageCopied) -> Flow[State]:
        """Make the new disk's snapshot and the promoted head's the common pair of a new generation, in one commit."""
        owned = self.delivered.owned or (yield from self._own(by))
        if owned is None:
            return "Canceled"
        if not self.delivered.machine and (moved := source_moved(begun, owned)):
            raise StepFailedError(moved)
        if owned.held and owned.held not in self.leased:
            self.leased.append(owned.held)
        image, by = disk_image(by, begun), owner(by, owned)
        report = Report(by=by, phase="adopting", retries=self.retries.count)
        reported = yield from call(self.context, REPORT_PROGRESS, report, self.retries)
        self._show("adopting", **progress_shown(self.context, reported))
        if reported.cancel and not self.delivered.machine:
            return "Canceled"
        if not self.delivered.sealed:
            seal = SealImage(image=image, etag=self.delivered.etag, snapshots=True)
            sealed = yield from call(self.context, SEAL_IMAGE, seal, self.retries)
            self.delivered = self.delivered.model_copy(update={"sealed": True, "snapshot": sealed.snapshot})
        transfer = Transfer(
            by=by.model_copy(update={"source": begun.target}),
            source=begun.target,
            target=self.delivered.snapshot,
            destination=head.destination,
            kind="restored",
            generation=owned.epoch,
            reason=f"restored from {begun.point}",
            automatic=False,
            head_etag="",
            size=begun.size,
        )
        asked = AdoptHead(transfer=transfer, etag=promoted.etag, page_map=promoted.page_map)
        opened = yield from call(self.context, ADOPT_HEAD, asked, self.retries)
        take = TakeBackup(
            transfer=transfer,
            etag=opened.etag,
            applied=promoted.applied,
            compared=promoted.compared,
        )
        taken = yield from call(self.context, TAKE_BACKUP, take, self.retries)
        commit = Commit(transfer=transfer, etag=opened.etag, backup_snapshot=taken.snapshot, moves_from=owned.source)
        committed = yield from call(self.context, COMMIT_POINT, commit, self.retries)
        self.points.append(committed.point)
        self.end.adopted = committed.point
        return "Succeeded"

    def _child(self, purpose: ChildPurpose, attempt: int = 1) -> str:
        return child_id(self.context.instance_id, purpose, attempt)

    # -- the end ------------------------------------------------------------------------------------------------------------

    def _head_image(self, by: RunRef, begun: RestoreBegun) -> ImageCopy:
        return ImageCopy(
            by=by,
            source=begun.head,
            target=begun.snapshot,
            destination=restored_head_name(self.request.disk, self.request.run),
            kind="restored",
            generation=0,
            size=begun.size,
        )

    def _discard(self, image: ImageCopy) -> Flow[str]:
        """Remove an unfinished blob; its name when that cannot be done."""
        try:
            discarded = yield from call(self.context, DISCARD_IMAGE, DiscardImage(image=image), self.retries)
        except StepFailedError:
            return image.destination
        return discarded.left

    def finish(self, state: State, fault: Fault | None) -> Flow[str]:
        """Write the restore's end, in words, and let go of everything."""
        words = end_words(self.end)
        if state == "Canceled":
            fault = Fault(code=CANCELED, message=f"canceled on request; {words}", retryable=False)
        machine = self.delivered.machine
        asked = FinishRestore(
            disk=self.request.disk,
            run=self.request.run,
            lease=self.lease,
            state=state,
            end=words,
            points=self.points,
            fault=fault,
            old_disk=self.delivered.old_disk,
            downtime_seconds=machine.seconds if machine else None,
            leased=self.leased,
            owner_lease=self.owner_lease,
        )
        yield from call(self.context, FINISH_RESTORE, asked, self.retries)
        self._show("done", state=state, end=words, percent=100 if state == "Succeeded" else None)
        return words

    def _show(self, phase: str, **details: Any) -> None:  # noqa: ANN401  any JSON
        shown = {name: value for name, value in details.items() if value is not None}
        show(self.context, {"disk": self.request.disk, "phase": phase, "restore": True} | shown)


def _slot(begun: RestoreBegun) -> tuple[str, int | None] | None:
    return (begun.slot.vm, begun.slot.lun) if begun.slot and begun.repoint else None


def _ended(state: Literal["success", "failed", "canceled"], fault: Fault | None) -> tuple[State, Fault | None]:
    match state:
        case "success":
            return "Succeeded", None
        case "canceled":
            return "Canceled", None
    return "Failed", fault
