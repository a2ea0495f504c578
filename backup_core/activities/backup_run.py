"""The begin and the end of a backup: the ownership, its epoch, and the kind of backup."""

from __future__ import annotations

from contextlib import aclosing
from dataclasses import replace
from datetime import datetime
from typing import TYPE_CHECKING

from backup_core.domain.decision import Decision, HeadFindings, automatic_full, decide
from backup_core.domain.errors import (
    BlobMissingError,
    DiffRefusedError,
    NotOwnerError,
    NotProtectedError,
    RowExistsError,
    SnapshotMissingError,
)
from backup_core.domain.metadata import from_metadata
from backup_core.domain.naming import head_blob_name, point_id, window_id
from backup_core.domain.ranges import ByteRange, DiffRange, one_sided
from backup_core.domain.records import Head, Owner, Run
from backup_core.protocol.fencing import fence_off, hold_lease
from backup_core.protocol.listings import changes_between
from backup_core.protocol.ownership import relinquish_ownership, take_ownership
from backup_core.protocol.rights import registration_of, require_ownership
from backup_core.protocol.run_rows import emit_phase, emit_warnings, end_row, write_run
from backup_core.steps.backup import BeginBackup, BeginBackupResult, BeginNewGeneration, FinishRun, RaiseEpoch, RaiseEpochResult
from backup_core.steps.messages import Nothing

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from backup_core.domain.metadata import HeadMark
    from backup_core.domain.naming import Source
    from backup_core.domain.records import CommonPair, Registration
    from backup_core.ports import BlobProperties
    from backup_core.protocol.tools import Tools


# -- begin ------------------------------------------------------------------------------------------------------


async def begin_backup(tools: Tools, request: BeginBackup) -> BeginBackupResult:
    """Make the run the disk's owner; the kind of backup to make.

    Repeated with the same lease it answers the same. It refuses a run that has ended, and a second instance of a running
    one, and changes nothing for them.
    """
    registration = await registration_of(tools, request.disk)
    if not registration.protected:
        message = f"disk {request.disk}: protection was stopped; PUT /api/disks/{request.disk} resumes it"
        raise NotProtectedError(message)
    # G3: a run that has ended does not begin again.
    if not await _own_row(tools, request):
        return BeginBackupResult(state="ended", why=f"run {request.run} has ended or was begun by another orchestration")
    if registration.unprotected:
        # After its row was written: each window must be seen as failed, not only in the portal.
        message = f"disk {request.disk}: {registration.unprotected}"
        raise NotProtectedError(message)
    # G1: the ownership is written before anything else.
    taken = await take_ownership(tools, request.disk, request.run, request.lease)
    if not isinstance(taken, Owner):
        return await _decide(tools, request, registration, taken.value)
    if taken.run == request.run:
        return BeginBackupResult(state="ended", why=f"another orchestration of run {request.run} is at work")
    return await _skip(tools, request, taken)


async def _own_row(tools: Tools, request: BeginBackup) -> bool:
    """Set the run's row to Running; False when the run has ended already, or its window is another run's."""
    row = await tools.catalogue.run(request.disk, request.run)
    if row is None:
        now = await tools.catalogue.now()
        fresh = Run(
            disk=request.disk,
            run=request.run,
            state="Running",
            trigger=request.trigger,
            full=request.full,
            created=now,
            started=now,
            phase="preparing",
            window=window_id(datetime.fromisoformat(request.window)) if request.window else "",
        )
        try:
            if fresh.window:
                await tools.catalogue.begin_window(fresh)
                emit_phase(tools, None, fresh)
            else:
                await write_run(tools, None, fresh)
        except RowExistsError:
            pass  # another delivery of this step was faster: its row is the run's row
        row = await tools.catalogue.run(request.disk, request.run)
        if row is None:
            return False
    if row.value.ended_for_good:
        return False
    if row.value.state == "NotStarted":
        started = await tools.catalogue.now()
        await write_run(tools, row, replace(row.value, state="Running", started=started, phase="preparing"))
    return True


async def _skip(tools: Tools, request: BeginBackup, owner: Owner) -> BeginBackupResult:
    row = await tools.catalogue.run(request.disk, request.run)
    if row is None or row.value.ended_for_good:
        return BeginBackupResult(state="ended", why=f"run {request.run} has ended")
    why = f"run {owner.run} was at work on the disk"
    ended = replace(row.value, state="Skipped", reason=why, ended=await tools.catalogue.now(), phase="done")
    await write_run(tools, row, ended)
    return BeginBackupResult(state="skipped", why=why)


# -- owned: fence, look, decide -----------------------------------------------------------------------------------


async def _decide(tools: Tools, request: BeginBackup, registration: Registration, head: Head) -> BeginBackupResult:
    epoch, pair, owner = head.epoch, head.pair, Owner(request.run, request.lease, head.epoch)
    if head.repoint:
        return BeginBackupResult(
            state="unsettled", epoch=epoch, source=registration.source, repoint=head.repoint, repoint_digest=head.repoint_digest
        )
    found, etag, mark, leased_head = None, "", None, ""
    if pair is not None:
        blob = tools.head(head.head)
        before = await hold_lease(tools, request.disk, owner, blob)
        found = await _look(tools, request.run, head, pair, registration, before)
        mark, leased_head = found.mark, head.head if before else ""
        # A head that a stranger has raised cannot be fenced, and is no base. One that is being compared stays closed.
        if before is not None:
            etag = await fence_off(tools, blob, epoch, request.lease) if before.sequence_number <= epoch else before.etag
    decision = decide(head, registration.source, found, full_requested=request.full)
    if pair is None or decision.kind == "full":
        begun = _full(request.disk, request.run, epoch, registration.source, decision)
        return begun.model_copy(update={"leased_head": leased_head, "verification": registration.verification})
    begun = BeginBackupResult(
        state="go",
        epoch=epoch,
        source=registration.source,
        kind="incremental",
        reason=decision.reason,
        generation=head.generation,
        head=head.head,
        head_etag=etag,
        leased_head=leased_head,
        base=pair.source_snapshot,
        finish_target=decision.finish_target,
        finish_size=mark.size if mark and decision.finish_target else 0,
        verification=registration.verification,
    )
    if mark is None or mark.run != request.run:
        return begun
    return await _repeat_decision(tools, request, begun, mark if _is_own(mark, request.run, epoch) else None)


def _is_own(mark: HeadMark | None, run: str, epoch: int) -> bool:
    """Whether this very run has begun to bring the head to a target, in its present epoch: in an earlier life."""
    return mark is not None and (mark.run, mark.epoch) == (run, epoch)


async def _repeat_decision(
    tools: Tools, request: BeginBackup, begun: BeginBackupResult, mark: HeadMark | None
) -> BeginBackupResult:
    """The decision of the run's earlier life once more: each step finds its own work done. `mark` is the work in progress
    on the head in its present epoch, if any; the target that it finished before is a restore point of its own.
    """
    if mark is not None:
        row = await tools.catalogue.run(request.disk, request.run)
        fresh = row is not None and mark.target in row.value.source_snapshots
        way = {"kind": mark.kind, "base": mark.base, "reason": row.value.reason if row else begun.reason}
        finish = {"finish_target": "", "finish_size": 0} if fresh else {"finish_target": mark.target, "finish_size": mark.size}
        begun = begun.model_copy(update=way | finish)
    before = await tools.catalogue.point(request.disk, point_id(begun.base)) if begun.base else None
    return begun.model_copy(update={"points": [before.value.point] if before and before.value.run == request.run else []})


def _full(disk: str, run: str, epoch: int, source: str, decision: Decision) -> BeginBackupResult:
    # A generation is numbered by the epoch of the run that began it: unique and growing, with nothing more to keep.
    return BeginBackupResult(
        state="go",
        epoch=epoch,
        source=source,
        kind="full",
        reason=decision.reason,
        automatic=decision.automatic,
        generation=epoch,
        head=head_blob_name(disk, epoch, run),
    )


async def _look(
    tools: Tools, run: str, head: Head, pair: CommonPair, registration: Registration, before: BlobProperties | None
) -> HeadFindings:
    mark = from_metadata(before.metadata, tools.site(tools.head(head.head))) if before else None
    source = tools.source(registration.source) if head.source == registration.source else None
    base_exists = source is not None and await _exists(tools, source, pair.source_snapshot)
    dirty = mark is not None and mark.state != "committed"
    target_exists = source is not None and dirty and mark is not None and await _exists(tools, source, mark.target)
    return HeadFindings(
        head_exists=before is not None,
        head_unchanged=before is not None and await _unchanged(tools, run, head, pair, mark, before),
        mark=mark,
        base_exists=base_exists,
        target_exists=target_exists,
    )


async def _exists(tools: Tools, blob: Source, snapshot: str) -> bool:
    try:
        await tools.blobs.properties(blob, snapshot)
    except (BlobMissingError, SnapshotMissingError):
        return False
    return True


async def _unchanged(
    tools: Tools, run: str, head: Head, pair: CommonPair, mark: HeadMark | None, before: BlobProperties
) -> bool:
    """Whether only this app's runs have changed the head since the last restore point.

    Same version as recorded; or, for a dirty head and after a crash between a write and its record: every page changed since
    the backup snapshot is one that the recorded target changes. Those are written again; any other would be kept.
    """
    # The comparison of the run's own earlier life has raised it by one.
    # G14: a head that differs in any other page is no base.
    if before.sequence_number > head.epoch + int(_is_own(mark, run, head.epoch)):
        return False
    if before.etag == head.head_etag:
        return True
    if mark is None or before.size < pair.size:
        return False
    whole = ByteRange(0, pair.size)
    dirty = mark.target != pair.source_snapshot
    try:
        async with aclosing(changes_between(tools, tools.head(head.head), "", pair.backup_snapshot, whole)) as changed:
            if not dirty:
                return await anext(changed, None) is None
            async with aclosing(changes_between(tools, tools.source(mark.source), mark.target, mark.base, whole)) as intended:
                async for lone in one_sided(_ranges(changed), _ranges(intended)):
                    if lone.side == "left":
                        return False
    except (DiffRefusedError, BlobMissingError, SnapshotMissingError):
        return False
    return True


async def _ranges(changes: AsyncIterator[DiffRange]) -> AsyncIterator[ByteRange]:
    async for one in changes:
        yield one.range


async def begin_new_generation(tools: Tools, request: BeginNewGeneration) -> BeginBackupResult:
    """Turn the run's increment into a full copy, because the diff cannot be trusted. Raises TooManyFullsError."""
    row = await require_ownership(tools, request.actor)
    decision = automatic_full(row.value, request.reason)
    return _full(request.actor.disk, request.actor.run, request.actor.epoch, request.actor.source, decision)


async def raise_epoch(tools: Tools, request: RaiseEpoch) -> RaiseEpochResult:
    """Give the run its next epoch, in the head row and on the head; requests under the former epoch are refused from now on.

    A run that finished an interrupted target continues with a fresh one on the same head. A put of the first transfer that is
    still in flight would write old bytes into the second. Repeated, it answers the same.
    """
    following = Owner(request.actor.run, request.actor.lease, request.actor.epoch + 1)
    try:
        row = await require_ownership(tools, request.actor)
        await tools.catalogue.put_head(row.value.owned_by(following), row.etag)
    except NotOwnerError:
        present = await tools.catalogue.head(request.actor.disk)
        if present is None or present.value.owner != following:
            raise
    # G10: the service then refuses puts of the first target that are in flight.
    etag = await fence_off(tools, tools.head(request.head), following.epoch, following.lease)
    return RaiseEpochResult(epoch=following.epoch, etag=etag)


async def finish_run(tools: Tools, request: FinishRun) -> Nothing:
    """End the run's row and, if the run still owns the disk, release the leases and the ownership. Repeats change nothing."""
    await end_row(tools, request)
    # G51: the end is written; failures from here on are warnings.
    left = await relinquish_ownership(tools, request.disk, request.run, request.lease, request.heads)
    emit_warnings(tools, request.disk, request.run, [*request.warnings, *left])
    return Nothing()
