# Long: one run, read from top to bottom.
"""The backup of one disk: snapshot, plan, copy in waves, verify, snapshot the head, commit, and only then drop the old."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, NoReturn

from backup_core.domain.ending import CANCELED, canceled_words
from backup_core.domain.identity import lease_id
from backup_core.domain.records import EXPIRED_NAMED_MAX
from backup_core.domain.sampling import reads_expected
from backup_core.domain.shown import shortened
from backup_core.orchestrations import copy_blob, repoint_machine, wait_for_snapshot
from backup_core.orchestrations.calls import Flow, Left, Retries, StepFailedError, call, now, show, sub_orchestration
from backup_core.orchestrations.kit import continue_as_new, report
from backup_core.orchestrations.shard_waves import apply_shards
from backup_core.steps.backup import (
    BEGIN_BACKUP,
    BEGIN_NEW_GENERATION,
    COMMIT_POINT,
    DROP_PREVIOUS_SNAPSHOT,
    FINISH_RUN,
    OPEN_HEAD,
    PRUNE_POINTS,
    RAISE_EPOCH,
    TAKE_BACKUP_SNAPSHOT,
    TAKE_SOURCE_SNAPSHOT,
    VERIFY_HEAD,
    BackupCheckpoint,
    BackupRequest,
    BeginBackup,
    BeginBackupResult,
    BeginNewGeneration,
    CommitPoint,
    DropPreviousSnapshot,
    FinishRun,
    PrunePoints,
    RaiseEpoch,
    RaiseEpochResult,
    SnapshotWaitRequest,
    SnapshotWaitResult,
    SourceSnapshotResult,
    TakeBackupSnapshot,
    TakeSourceSnapshot,
    Transfer,
    VerifyHead,
)
from backup_core.steps.copying import (
    PLAN_TRANSFER,
    TAKE_OVER_COPY,
    ComparisonResult,
    CopyBlobRequest,
    CopyBlobResult,
    CopyProgress,
    CopyRef,
    ImageCopy,
    PlanResult,
    ReportProgress,
    TransferCounts,
    Verification,
)
from backup_core.steps.messages import Actor, Fault
from backup_core.steps.restore import RepointRequest, RepointResult

if TYPE_CHECKING:
    from backup_core.domain.records import Phase
    from backup_core.orchestrations.calls import Context

NAME = "backup_disk"
SNAPSHOT: Phase = "snapshot"
COPYING: Phase = "copying"


class BackupFailedError(Exception):
    """Ends the orchestration as Failed, so that the portal shows red; the run's row has the same code and message."""


def backup_disk(context: Context) -> Flow[dict[str, Any] | None]:
    """The orchestrator. Returns {run, state, points}; a failed run raises after its end was written, a canceled one does not,
    because its caller requested that.
    """
    request = BackupRequest.model_validate(context.get_input())
    backup = _Backup(context, request)
    try:
        return (yield from backup.flow())
    except Left as left:
        if left.state == "continued":
            return None
        yield from backup.finish("Canceled" if left.state == "canceled" else "Failed", left.fault)
        if left.state == "canceled":
            return backup.ended("Canceled")
        message = f"run {request.run}: {left}"
    raise BackupFailedError(message)


def _canceled(phase: str) -> Left:
    """Leaves the orchestrator when the run is to be canceled."""
    return Left("canceled", Fault(code=CANCELED, message=canceled_words(f"while {phase}"), retryable=False))


class _Backup:
    """The state of one execution of the orchestrator. Rebuilt by every replay."""

    def __init__(self, context: Context, request: BackupRequest) -> None:
        self.context, self.request = context, request
        checkpoint = request.checkpoint
        self.lease = checkpoint.transfer.actor.lease if checkpoint else lease_id(context.instance_id, "run", request.run)
        self.started = checkpoint.started if checkpoint else now(context).isoformat()
        self.points = list(checkpoint.points) if checkpoint else []
        self.expired: list[str] = []
        self.warnings = list(checkpoint.warnings) if checkpoint else []
        self.retries = Retries(checkpoint.retries if checkpoint else 0)
        self.heads = list(checkpoint.heads) if checkpoint else []
        self.fresh_after = checkpoint.fresh_after if checkpoint else False
        self.verification: Verification = checkpoint.verification if checkpoint else "sampled"

    # -- the flow -----------------------------------------------------------------------------------------------

    def flow(self) -> Flow[dict[str, Any]]:
        if self.request.checkpoint:
            checkpoint = self.request.checkpoint
            transfer = checkpoint.transfer
            yield from self._round(transfer, checkpoint.planned, checkpoint)
        else:
            begun = yield from self._begin()
            if begun.state == "unsettled":
                yield from self._settle(begun)
                begun = yield from self._begin()
            if begun.state != "go":
                show(self.context, self._shown("done") | {"state": begun.state, "why": begun.why})
                return {"run": self.request.run, "state": begun.state, "why": begun.why, "points": []}
            self._holds(begun.leased_head)
            self.points = list(begun.points)
            self.fresh_after = bool(begun.finish_target)
            self.verification = begun.verification
            transfer, planned, progress = yield from self._prepare(self._ref(begun), begun)
            yield from self._round(transfer, planned, progress)
        if self.fresh_after:
            # The interrupted run's target is a restore point now; success means a point of this window.
            self.fresh_after = False
            request = RaiseEpoch(actor=transfer.actor, head=transfer.head)
            raised = yield from call(self.context, RAISE_EPOCH, request, self.retries)
            actor = transfer.actor.model_copy(update={"epoch": raised.epoch})
            transfer, planned, progress = yield from self._prepare(actor, _after(transfer, raised))
            yield from self._round(transfer, planned, progress)
        if self.request.prune:
            yield from self._after_commit("retention", self._prune(transfer.actor))
        yield from self.finish("Succeeded", None)
        return self.ended("Succeeded")

    def _after_commit(self, what: str, duty: Flow[None]) -> Flow[None]:
        """A duty after the commit. The restore point stands: a failure is a warning, and the next duty is tried."""
        try:
            yield from duty
        # G51: the restore point stands.
        except StepFailedError as failed:
            self.warnings.append(shortened(f"{what}: {failed.fault.code}: {failed.fault.message}"))

    def _prune(self, actor: Actor) -> Flow[None]:
        """Delete expired restore points, a few at a time."""
        more = True
        while more:
            pruned = yield from call(self.context, PRUNE_POINTS, PrunePoints(actor=actor), self.retries)
            self.expired = [*self.expired, *pruned.expired][:EXPIRED_NAMED_MAX]
            more = pruned.more and bool(pruned.expired)

    def ended(self, state: str) -> dict[str, Any]:
        """The output of a run that succeeded or was canceled."""
        percent = {"percent": 100} if state == "Succeeded" else {}
        show(self.context, self._shown("done") | {"state": state, "points": self.points} | percent)
        return {"run": self.request.run, "state": state, "points": self.points}

    def _begin(self) -> Flow[BeginBackupResult]:
        show(self.context, self._shown("preparing") | {"percent": 0})
        request = BeginBackup(
            disk=self.request.disk,
            run=self.request.run,
            lease=self.lease,
            trigger=self.request.trigger,
            full=self.request.full,
            window=self.request.window,
        )
        return (yield from call(self.context, BEGIN_BACKUP, request, self.retries))

    def _settle(self, begun: BeginBackupResult) -> Flow[None]:
        """Settle the machine's change that an abandoned restore has left, forward or back."""
        request = RepointRequest(actor=self._ref(begun), change=begun.repoint, digest=begun.repoint_digest, goal="")
        ended = yield from sub_orchestration(self.context, repoint_machine.NAME, request, RepointResult)
        if ended.fault:
            raise StepFailedError(ended.fault)

    def _holds(self, head: str) -> None:
        if head and head not in self.heads:
            self.heads.append(head)

    def _ref(self, begun: BeginBackupResult) -> Actor:
        request = self.request
        return Actor(disk=request.disk, run=request.run, lease=self.lease, epoch=begun.epoch, source=begun.source)

    def _prepare(self, actor: Actor, begun: BeginBackupResult) -> Flow[tuple[Transfer, PlanResult, CopyProgress]]:
        """Source snapshot, plan, and a head to work on; a diff that cannot be trusted turns the run into a full copy."""
        target, size = begun.finish_target, begun.finish_size
        if not target:
            yield from self._report(actor, "snapshot", begun)
            taken = yield from call(self.context, TAKE_SOURCE_SNAPSHOT, TakeSourceSnapshot(actor=actor), self.retries)
            if taken.percent < 100:
                taken = yield from self._filled(actor, begun)
            target, size = taken.snapshot, taken.size
        yield from self._report(actor, "planning", begun)
        planned = yield from self._plan(actor, begun, target, size)
        if planned.refused:
            request = BeginNewGeneration(actor=actor, reason=planned.refused)
            begun = yield from call(self.context, BEGIN_NEW_GENERATION, request, self.retries)
            planned = yield from self._plan(actor, begun, target, size)
        self._holds(begun.head)
        transfer = Transfer(
            actor=actor,
            kind=begun.kind,
            reason=begun.reason,
            automatic=begun.automatic,
            generation=begun.generation,
            source=actor.source,
            destination=begun.head,
            head_etag=begun.head_etag,
            base=begun.base,
            target=target,
            size=size,
            plan=planned.plan,
            plan_digest=planned.digest,
        )
        if planned.whole:
            return transfer, planned, CopyProgress(applied=(yield from self._copy_whole(transfer)))
        yield from call(self.context, OPEN_HEAD, transfer, self.retries)
        return transfer, planned, CopyProgress()

    def _filled(self, actor: Actor, begun: BeginBackupResult) -> Flow[SourceSnapshotResult]:
        """Wait until the run's snapshot, which Azure fills in the background, can be read."""
        request = SnapshotWaitRequest(actor=actor, kind=begun.kind, reason=begun.reason)
        end = yield from sub_orchestration(self.context, wait_for_snapshot.NAME, request, SnapshotWaitResult)
        self.retries.count += end.retries
        if end.canceled:
            raise _canceled(SNAPSHOT)
        if end.fault or end.taken is None:
            raise StepFailedError(end.fault or Fault(code="Unexpected", message="no snapshot was brought", retryable=False))
        return end.taken

    def _copy_whole(self, transfer: Transfer) -> Flow[TransferCounts]:
        """Have the service make the new head by one Copy Blob, and take it over."""
        request = CopyBlobRequest(image=transfer.image, reason=transfer.reason)
        end = yield from sub_orchestration(self.context, copy_blob.NAME, request, CopyBlobResult)
        self.retries.count += end.retries
        if end.state == "canceled":
            raise _canceled(COPYING)
        if end.fault:
            raise StepFailedError(end.fault)
        taken = CopyRef(image=transfer.image, copy_id=end.copy_id)
        yield from call(self.context, TAKE_OVER_COPY, taken, self.retries)
        return TransferCounts(write_bytes=transfer.size, puts=1)

    def _plan(self, actor: Actor, begun: BeginBackupResult, target: str, size: int) -> Flow[PlanResult]:
        reads = reads_expected(size, full=self.verification == "full")
        if begun.kind == "full" and self.request.full_copy == "blob":
            return PlanResult(write_bytes=size, requests=1, whole=True, reads=reads)
        request = ImageCopy(
            actor=actor, source=actor.source, base=begun.base, target=target, destination=begun.head, kind=begun.kind,
            generation=begun.generation, size=size,
        )  # fmt: skip
        planned = yield from call(self.context, PLAN_TRANSFER, request, self.retries)
        return planned.model_copy(update={"reads": reads})

    def _round(self, transfer: Transfer, planned: PlanResult, progress: CopyProgress) -> Flow[None]:
        """Copy, verify, snapshot, commit, drop the old."""
        applied = yield from self._copy(transfer, planned, progress)
        verified = yield from self._verify(transfer, planned, applied)
        yield from self._progress(transfer, planned, applied, "committing", 0, 0, verified.reads)
        request = TakeBackupSnapshot(
            transfer=transfer,
            etag=verified.etag,
            applied=applied,
            compared=verified.compared,
        )
        backup = yield from call(self.context, TAKE_BACKUP_SNAPSHOT, request, self.retries)
        commit = CommitPoint(transfer=transfer, etag=verified.etag, backup_snapshot=backup.snapshot)
        committed = yield from call(self.context, COMMIT_POINT, commit, self.retries)
        self.points.append(committed.point)
        yield from self._after_commit("progress", self._progress(transfer, planned, applied, "cleaning", 0, 0))
        yield from self._after_commit("previous source snapshot", self._drop_previous(transfer))

    def _drop_previous(self, transfer: Transfer) -> Flow[None]:
        yield from call(self.context, DROP_PREVIOUS_SNAPSHOT, DropPreviousSnapshot(transfer=transfer), self.retries)

    def _copy(self, transfer: Transfer, planned: PlanResult, progress: CopyProgress) -> Flow[TransferCounts]:
        return (
            yield from apply_shards(
                self.context,
                transfer.image,
                planned,
                progress,
                self.request.wave,
                self.retries,
                report=lambda reached: self._copied(transfer, planned, reached),
                continue_as_new=lambda reached: self._continue_as_new(transfer, planned, reached),
            )
        )

    def _copied(self, transfer: Transfer, planned: PlanResult, applied: TransferCounts) -> Flow[None]:
        # Requests are the measure: they count small writes and clears, which bytes would hide.
        yield from self._progress(transfer, planned, applied, "copying", applied.puts + applied.clears, planned.requests)

    def _continue_as_new(self, transfer: Transfer, planned: PlanResult, reached: CopyProgress) -> NoReturn:
        checkpoint = BackupCheckpoint(
            transfer=transfer,
            planned=planned,
            **reached.position(),
            retries=self.retries.count,
            points=self.points,
            heads=self.heads,
            started=self.started,
            warnings=self.warnings,
            verification=self.verification,
            fresh_after=self.fresh_after,
        )
        continue_as_new(self.context, self.request.model_copy(update={"checkpoint": checkpoint}))

    def _verify(self, transfer: Transfer, planned: PlanResult, applied: TransferCounts) -> Flow[ComparisonResult]:
        request = VerifyHead(transfer=transfer)
        while True:
            yield from self._progress(transfer, planned, applied, "verifying", *request.progress(transfer.size), request.reads)
            verified = yield from call(self.context, VERIFY_HEAD, request, self.retries)
            if verified.done:
                return verified
            request = request.reached(verified)

    def finish(self, state: Literal["Succeeded", "Failed", "Canceled"], fault: Fault | None) -> Flow[None]:
        """Write the run's end and release the disk."""
        request = FinishRun(
            disk=self.request.disk,
            run=self.request.run,
            lease=self.lease,
            state=state,
            points=self.points,
            expired=self.expired,
            warnings=self.warnings,
            fault=fault,
            heads=self.heads,
            retries=self.retries.count,
        )
        yield from call(self.context, FINISH_RUN, request, self.retries)

    # -- progress ---------------------------------------------------------------------------------------------------

    def _report(self, actor: Actor, phase: Phase, begun: BeginBackupResult) -> Flow[None]:
        progress = ReportProgress(
            actor=actor, phase=phase, rounds_left=int(self.fresh_after), kind=begun.kind, reason=begun.reason
        )
        yield from self._send(progress, {"kind": begun.kind})

    def _progress(
        self,
        transfer: Transfer,
        planned: PlanResult,
        applied: TransferCounts,
        phase: Phase,
        done: int,
        total: int,
        verified: int = 0,
    ) -> Flow[None]:
        progress = ReportProgress(
            actor=transfer.actor,
            phase=phase,
            done=done,
            total=total,
            rounds_left=int(self.fresh_after),
            kind=transfer.kind,
            reason=transfer.reason,
            requests_verified=verified,
        ).measured(planned, applied)
        details = {"kind": transfer.kind, "bytesTotal": planned.write_bytes, "bytesDone": applied.write_bytes}
        yield from self._send(progress, {**details, "ranges": planned.ranges})

    def _send(self, progress: ReportProgress, details: dict[str, Any]) -> Flow[None]:
        """Report progress; leave when the run is to be canceled. Once the point is committed it is too late for that."""
        details = self._shown(progress.phase) | details
        reported = yield from report(self.context, progress, self.retries, **details)
        if reported.cancel and progress.phase != "cleaning":
            raise _canceled(progress.phase)

    def _shown(self, phase: str) -> dict[str, Any]:
        return {"disk": self.request.disk, "phase": phase, "started": self.started, "retries": self.retries.count}


def _after(transfer: Transfer, raised: RaiseEpochResult) -> BeginBackupResult:
    """The run's second transfer, after an interrupted target became a restore point: an increment on it, in the same
    generation.
    """
    return BeginBackupResult(
        state="go",
        epoch=raised.epoch,
        source=transfer.actor.source,
        kind="incremental",
        reason="changes since the last restore point",
        generation=transfer.generation,
        head=transfer.head,
        head_etag=raised.etag,
        base=transfer.target,
    )
