# Long: one run, read from top to bottom.
"""The restore of one disk: the steps that `domain/disk_restore.py` names, one after another.

The disk's protection changes only in the adoption, after the new disk and its head were proved and read back.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from backup_core.domain.disk_restore import Copied, RestoreGoals, State, after, next_step
from backup_core.domain.ending import CANCELED
from backup_core.domain.identity import child_id, lease_id
from backup_core.domain.naming import restored_head_name
from backup_core.domain.outcome import RestoreEnd, end_words
from backup_core.orchestrations import copy_image, deliver_disk, snapshot_disk, wait_for_disk
from backup_core.orchestrations.calls import (
    Child,
    Crashed,
    Flow,
    Retries,
    StepFailedError,
    call,
    children,
    show,
    sub_orchestration,
)
from backup_core.orchestrations.deliver_disk import disk_image, imported_disk, source_moved
from backup_core.orchestrations.kit import report
from backup_core.orchestrations.wait_for_disk import owner
from backup_core.steps.backup import COMMIT_POINT, TAKE_BACKUP_SNAPSHOT, CommitPoint, TakeBackupSnapshot, Transfer
from backup_core.steps.copying import ImageCopy, ReportProgress
from backup_core.steps.messages import Actor, Fault
from backup_core.steps.restore import (
    ADOPT_HEAD,
    BEGIN_RESTORE,
    CLOSE_CHANGE,
    DISCARD_IMAGE,
    DISCARD_SNAPSHOT,
    FINISH_RESTORE,
    RECORD_FAILURE,
    SEAL_IMAGE,
    AdoptHead,
    BeginRestore,
    BeginRestoreResult,
    CloseChange,
    CopyImageRequest,
    CopyImageResult,
    DeliverRequest,
    DeliverResult,
    DiscardImage,
    DiscardSnapshot,
    FinishRestore,
    OwnDiskResult,
    RecordFailure,
    RestoreRequest,
    SealImage,
    SnapshotDiskRequest,
    SnapshotDiskResult,
    WaitRequest,
    WaitResult,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from backup_core.domain.disk_restore import MachineHas, Result, Step
    from backup_core.domain.identity import ChildPurpose
    from backup_core.orchestrations.calls import Context

NAME = "restore_disk"
_NOT_BEGUN = BeginRestoreResult(state="ended")


class RestoreFailedError(Exception):
    """Ends the orchestration as Failed, so that the portal shows red; the run's row has the same code and message."""


def restore_disk(context: Context) -> Flow[dict[str, Any]]:
    """The orchestrator. Returns {run, state, end}; a failed restore raises after its end was written."""
    return (yield from _Restore(context, RestoreRequest.model_validate(context.get_input())).flow())


class _Restore:
    """One execution of the orchestrator: the state of the rule, and what the steps answered. Rebuilt by every replay."""

    def __init__(self, context: Context, request: RestoreRequest) -> None:
        self.context, self.request = context, request
        self.lease = lease_id(context.instance_id, "run", request.run)
        self.retries = Retries()
        self.state = State()
        self.fault: Fault | None = None
        self.why = self.words = self.owner_lease = self.point = self.left = self.left_head = self.left_snapshot = ""
        self.begun, self.delivered, self.promoted = _NOT_BEGUN, DeliverResult(state="failed"), CopyImageResult(state="failed")
        self.ownership: OwnDiskResult | None = None
        self.head_etag = self.backup_snapshot = ""
        self.steps: dict[Step, Callable[[], Flow[Result]]] = {
            "begin": self._begin,
            "copy": self._copy,
            "record_failure": self._record_failure,
            "recover": self._recover,
            "own": self._own,
            "snapshot_disk": self._snapshot,
            "report": self._report,
            "seal": self._seal,
            "adopt_head": self._adopt_head,
            "take_backup": self._take_backup,
            "commit": self._commit,
            "close_change": self._close_change,
            "discard_disk": self._discard_disk,
            "discard_head": self._discard_head,
            "discard_snapshot": self._discard_snapshot,
            "finish": self._finish,
        }

    def flow(self) -> Flow[dict[str, Any]]:
        while (step := next_step(self.state)) != "end":
            self.state = after(self.state, step, (yield from self._result(step)))
        end = self.state.end
        if end == "ended":
            self._show("done", why=self.why)
            return {"run": self.request.run, "state": end}
        self._show("done", state=end, end=self.words, percent=100 if end == "Succeeded" else None)
        if end == "Failed" and self.fault:
            message = f"run {self.request.run}: {self.fault.code}: {self.fault.message}; {self.words}"
            raise RestoreFailedError(message)
        return {"run": self.request.run, "state": end, "end": self.words}

    def _result(self, step: Step) -> Flow[Result]:
        try:
            return (yield from self.steps[step]())
        except StepFailedError as failed:
            if step == "finish":
                raise
            self.fault = failed.fault
            return "failed"

    def _begin(self) -> Flow[Result]:
        self._show("preparing")
        request = BeginRestore(disk=self.request.disk, run=self.request.run, lease=self.lease, wanted=self.request.wanted)
        begun = yield from call(self.context, BEGIN_RESTORE, request, self.retries)
        if begun.state == "ended":
            self.why = begun.why
            return "ended"
        self.begun = begun
        return RestoreGoals(repoints=begun.repoint, adopts=begun.adopt, imports=bool(begun.managed_disk))

    # -- the two copies -------------------------------------------------------------------------------------------------

    def _copy(self) -> Flow[Result]:
        """The machine's disk, and the backups' head: neither waits for the other."""
        self._show("copying", follow=self._child("delivery"))
        request, begun = self.request, self.begun
        delivery = DeliverRequest(request=request, actor=self._by, begun=begun)
        parts: list[Child[Any]] = [Child(deliver_disk.NAME, delivery, DeliverResult, self._ids("delivery"))]
        if begun.adopt:
            promotion = CopyImageRequest(
                image=self._head, wave=request.wave, full_copy=request.full_copy, verification=request.verification
            )
            parts.append(Child(copy_image.NAME, promotion, CopyImageResult, self._ids("head")))
        delivered, *promoted = yield from children(self.context, parts)
        for one in promoted:
            self.promoted = copy_image.failed(one.why) if isinstance(one, Crashed) else one
        if isinstance(delivered, Crashed):
            # Its progress is not known.
            message = f"the delivery of the disk broke: {delivered.why}"
            self.fault = Fault(code="Unexpected", message=message, retryable=False)
        else:
            self.delivered, self.ownership = delivered, delivered.ownership
            self.retries.count += delivered.retries + self.promoted.retries
            self.fault = delivered.fault if delivered.state != "success" else self.promoted.fault
        return Copied(
            delivered="crashed" if isinstance(delivered, Crashed) else delivered.state,
            promoted=self.promoted.state if promoted else None,
            owned=self.ownership is not None,
            sealed=self.delivered.sealed,
            snapshotted=bool(self.begun.new_source and self.delivered.snapshot),
            holds=self._holds(crashed=isinstance(delivered, Crashed)),
        )

    def _record_failure(self) -> Flow[Result]:
        """Record the failure: the rest of the delivery ends at its next report."""
        assert self.fault is not None
        yield from call(self.context, RECORD_FAILURE, RecordFailure(actor=self._by, fault=self.fault), self.retries)
        return "done"

    def _recover(self) -> Flow[Result]:
        self.owner_lease = lease_id(self.context.instance_id, "recovery", self.request.run)
        return (yield from self._wait(self.owner_lease))

    def _wait(self, lease: str = "") -> Flow[Result]:
        """Become the disk's owner, which resolves an abandoned change of a machine, too."""
        request = WaitRequest(actor=self._by, lease=lease)
        waited = yield from sub_orchestration(self.context, wait_for_disk.NAME, request, WaitResult)
        if waited.fault:
            raise StepFailedError(waited.fault)
        self.ownership = waited.ownership
        return "done" if waited.ownership else "canceled"

    # -- adoption -------------------------------------------------------------------------------------------------------

    def _own(self) -> Flow[Result]:
        result = yield from self._wait()
        if self.ownership and (moved := source_moved(self.begun, self.ownership)):
            raise StepFailedError(moved)
        return result

    def _snapshot(self) -> Flow[Result]:
        """Of a managed disk that no machine gets; of another it was taken before that."""
        request = SnapshotDiskRequest(
            image=imported_disk(self._owner, self.begun), verification=self.request.verification, resumed=False
        )
        taken = yield from sub_orchestration(self.context, snapshot_disk.NAME, request, SnapshotDiskResult)
        self.retries.count += taken.retries
        if taken.fault:
            raise StepFailedError(taken.fault)
        self.delivered = self.delivered.model_copy(update={"snapshot": taken.snapshot})
        return "canceled" if taken.canceled else "done"

    def _report(self) -> Flow[Result]:
        progress = ReportProgress(actor=self._owner, phase="adopting")
        reported = yield from report(self.context, progress, self.retries, restore=True)
        return "canceled" if reported.cancel else "done"

    def _seal(self) -> Flow[Result]:
        seal = SealImage(image=self._image, etag=self.delivered.etag, snapshots=True)
        sealed = yield from call(self.context, SEAL_IMAGE, seal, self.retries)
        self.delivered = self.delivered.model_copy(update={"snapshot": sealed.snapshot})
        return "done"

    @property
    def _transfer(self) -> Transfer:
        """The new disk's snapshot and the promoted head, as the common pair of a new generation."""
        begun, actor = self.begun, self._owner
        source = begun.new_source or begun.target
        return Transfer(
            actor=actor.model_copy(update={"source": source}),
            source=source,
            target=self.delivered.snapshot,
            destination=self._head.destination,
            kind="restored",
            generation=actor.epoch,
            reason=f"restored from {begun.point}",
            automatic=False,
            head_etag="",
            size=begun.size,
        )

    def _adopt_head(self) -> Flow[Result]:
        request = AdoptHead(transfer=self._transfer, etag=self.promoted.etag, page_map=self.promoted.page_map)
        opened = yield from call(self.context, ADOPT_HEAD, request, self.retries)
        self.head_etag = opened.etag
        return "done"

    def _take_backup(self) -> Flow[Result]:
        promoted = self.promoted
        take = TakeBackupSnapshot(
            transfer=self._transfer, etag=self.head_etag, applied=promoted.applied, compared=promoted.compared
        )
        taken = yield from call(self.context, TAKE_BACKUP_SNAPSHOT, take, self.retries)
        self.backup_snapshot = taken.snapshot
        return "done"

    def _commit(self) -> Flow[Result]:
        commit = CommitPoint(
            transfer=self._transfer,
            etag=self.head_etag,
            backup_snapshot=self.backup_snapshot,
            moves_from=self.ownership.source if self.ownership else "",
        )
        committed = yield from call(self.context, COMMIT_POINT, commit, self.retries)
        self.point = committed.point
        return "done"

    def _close_change(self) -> Flow[Result]:
        delivered = self.delivered
        settle = CloseChange(actor=self._owner, change=delivered.change, known=delivered.known, goal="new")
        yield from call(self.context, CLOSE_CHANGE, settle, self.retries)
        return "done"

    # -- the end --------------------------------------------------------------------------------------------------------

    def _discard_disk(self) -> Flow[Result]:
        self.left = yield from self._discard(self._image)
        return "done"

    def _discard_head(self) -> Flow[Result]:
        self.left_head = yield from self._discard(self._head)
        return "done"

    def _discard_snapshot(self) -> Flow[Result]:
        request = DiscardSnapshot(actor=self._by, disk=self.begun.new_source)
        try:
            self.left_snapshot = (yield from call(self.context, DISCARD_SNAPSHOT, request, self.retries)).left
        except StepFailedError:
            self.left_snapshot = self.begun.new_source
        return "done"

    def _discard(self, image: ImageCopy) -> Flow[str]:
        """Remove an unfinished blob; its name when that cannot be done."""
        try:
            discarded = yield from call(self.context, DISCARD_IMAGE, DiscardImage(image=image), self.retries)
        except StepFailedError:
            return image.destination
        return discarded.left

    def _finish(self) -> Flow[Result]:
        """Write the restore's end, in words, and release everything."""
        state, machine = self.state.end, self.delivered.machine
        assert state != "ended"
        self.words = end_words(self._ending())
        if state == "Canceled":
            self.fault = Fault(code=CANCELED, message=f"canceled on request; {self.words}", retryable=False)
        request = FinishRestore(
            disk=self.request.disk,
            run=self.request.run,
            lease=self.lease,
            state=state,
            end=self.words,
            points=[self.point] if self.point else [],
            fault=None if state == "Succeeded" else self.fault,
            old_disk=self.delivered.old_disk,
            downtime_seconds=machine.seconds if machine else None,
            leased=self._leased(),
            owner_lease=self.owner_lease,
            retries=self.retries.count,
        )
        yield from call(self.context, FINISH_RESTORE, request, self.retries)
        return "done"

    def _ending(self) -> RestoreEnd:
        """The facts of the end."""
        if not self.state.copied:
            return RestoreEnd()
        begun, machine = self.begun, self.delivered.machine
        return RestoreEnd(
            point=begun.point,
            target=begun.target,
            managed_disk=begun.managed_disk,
            slot=(begun.slot.vm, begun.slot.lun) if begun.slot and begun.repoint else None,
            complete=self.state.sealed,
            removed="discard_disk" in self.state.done,
            left=self.left,
            left_head=self.left_head,
            left_snapshot=self.left_snapshot,
            imported=self._imported,
            unprotected=bool(begun.managed_disk) and not begun.new_source,
            old_disk=self.delivered.old_disk,
            holds=self.state.copied.holds,
            power=machine.power if machine else "",
            adopted=self.point,
            follows="close_change" in self.state.done,
        )

    def _leased(self) -> list[str]:
        """The blobs that the run may have leased."""
        if not self.state.copied:
            return []
        leased_head = self.ownership.leased_head if self.ownership else ""
        return [
            *([] if self.begun.uploads else [self.begun.target]),
            *([self._head.destination] if self.begun.adopt else []),
            *([leased_head] if leased_head else []),
        ]

    # -- actors and images ----------------------------------------------------------------------------------------------

    def _ids(self, purpose: ChildPurpose) -> tuple[str, ...]:
        return tuple(self._child(purpose, attempt) for attempt in (1, 2))

    def _child(self, purpose: ChildPurpose, attempt: int = 1) -> str:
        return child_id(self.context.instance_id, purpose, attempt)

    @property
    def _by(self) -> Actor:
        request, begun = self.request, self.begun
        return Actor(disk=request.disk, run=request.run, lease=self.lease, epoch=0, source=begun.source, pin=begun.point)

    @property
    def _owner(self) -> Actor:
        return owner(self._by, self.ownership) if self.ownership else self._by

    @property
    def _image(self) -> ImageCopy:
        return disk_image(self._by, self.begun)

    @property
    def _head(self) -> ImageCopy:
        return ImageCopy(
            actor=self._by,
            source=self.begun.head,
            target=self.begun.snapshot,
            destination=restored_head_name(self.request.disk, self.request.run),
            kind="restored",
            generation=0,
            size=self.begun.size,
        )

    @property
    def _imported(self) -> bool:
        """Whether the managed disk is known to be complete, and equal where it is compared."""
        delivered = self.delivered
        if self.begun.new_source:
            return bool(delivered.snapshot)
        return self.state.sealed if self.begun.uploads else delivered.state == "success" or bool(delivered.change)

    def _holds(self, *, crashed: bool) -> MachineHas:
        machine = self.delivered.machine
        if machine:
            return machine.holds
        return "unknown" if crashed and self.begun.repoint else ""

    def _show(self, phase: str, **details: Any) -> None:  # noqa: ANN401  any JSON
        shown = {name: value for name, value in details.items() if value is not None}
        show(self.context, {"disk": self.request.disk, "phase": phase, "restore": True} | shown)
