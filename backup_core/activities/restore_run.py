"""The begin and the end of a restore: the pin of its point, the ownership of the disk, the head that it adopts."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING

from backup_core.domain.digests import digest_of_request
from backup_core.domain.errors import (
    BackupError,
    BlobChangedError,
    FencedError,
    HeadAlteredError,
    NotOwnerError,
    PointUnavailableError,
    RecordAlteredError,
    SnapshotMissingError,
    VerificationError,
)
from backup_core.domain.managed_snapshots import footer
from backup_core.domain.metadata import from_metadata, to_metadata
from backup_core.domain.naming import is_resource_id, noted_name, repoint_name
from backup_core.domain.records import Head, Owner, Pin
from backup_core.domain.repoint import same_disk
from backup_core.domain.shown import shortened
from backup_core.ports import Fence
from backup_core.protocol.descriptions import require_described
from backup_core.protocol.fencing import fence_off, hold_lease
from backup_core.protocol.managed_disks import close_upload
from backup_core.protocol.marks import intent
from backup_core.protocol.ownership import (
    imported_source,
    release_leases,
    relinquish_ownership,
    take_ownership,
    try_close_access,
)
from backup_core.protocol.proofs import is_given_up
from backup_core.protocol.rights import guard_of, require_ownership, require_right_to_act
from backup_core.protocol.run_rows import emit_warnings, end_row, run_error, write_run
from backup_core.protocol.updates import update_row
from backup_core.steps.copying import OpenResult, SlotRef
from backup_core.steps.messages import Nothing
from backup_core.steps.restore import BeginRestoreResult, OwnDiskResult

if TYPE_CHECKING:
    from backup_core.domain.metadata import HeadMark
    from backup_core.domain.records import RestorePoint, Restoring, Run, Versioned
    from backup_core.ports import BlobProperties
    from backup_core.protocol.tools import Tools
    from backup_core.steps.backup import Transfer
    from backup_core.steps.restore import AdoptHead, BeginRestore, FinishRestore, OwnDisk, RecordFailure


async def begin_restore(tools: Tools, request: BeginRestore) -> BeginRestoreResult:
    """Set the run's row to Running and pin its point: no retention deletes it while the run lives.

    Repeated with the same lease it answers the same. Raises PointUnavailableError when the point cannot be restored any more.
    """

    async def begin() -> BeginRestoreResult:
        row = await tools.catalogue.run(request.disk, request.run)
        # G3: a run that has ended does not begin again.
        if row is None or row.value.ended_for_good or row.value.restore is None:
            return BeginRestoreResult(state="ended", why=f"run {request.run} has ended, or is not known")
        wanted = row.value.restore
        if request.wanted and digest_of_request(wanted) != request.wanted:
            message = (
                f"row of restore {request.run}: somebody else wrote it: it asks for point {wanted.point} on "
                f"{wanted.target}, and differs from what the call asked for (SHA-256 {request.wanted}, found "
                f"{digest_of_request(wanted)}); nothing was done; find out who may write to the catalogue, and restore again"
            )
            raise RecordAlteredError(message)
        mine = Pin(request.disk, wanted.point, request.run, request.lease)
        others = [pin for pin in await tools.catalogue.pins(request.disk) if pin.run == request.run and pin != mine]
        if others:
            return BeginRestoreResult(state="ended", why=f"another orchestration of run {request.run} is at work")
        if row.value.state == "NotStarted":
            running = replace(row.value, state="Running", started=await tools.catalogue.now(), phase="preparing")
            await write_run(tools, row, running)
        # G31: pinned before it is read.
        return await _pin(tools, row.value, wanted, mine)

    # A retention, a cancel or another delivery may be faster.
    return await update_row(begin, f"disk {request.disk}: its rows", f"restore {request.run} began")


async def _pin(tools: Tools, run: Run, wanted: Restoring, pin: Pin) -> BeginRestoreResult:
    found = await _available(tools, run, wanted)
    try:
        await require_described(tools, found.value)
    except SnapshotMissingError:
        # Retention may have been faster: then the point's state is the reason.
        await _available(tools, run, wanted)
        raise
    await tools.catalogue.pin(pin, found)
    point, slot = found.value, wanted.slot
    registration = await tools.catalogue.registration(run.disk)
    source = registration.value.source if registration else point.source
    return BeginRestoreResult(
        state="go",
        point=point.point,
        head=point.head,
        snapshot=point.backup_snapshot,
        size=point.size,
        source=source if tools.may_read(source) else "",
        target=wanted.target,
        managed_disk=wanted.managed_disk,
        slot=SlotRef(vm=slot.vm, lun=slot.lun) if slot else None,
        repoint=wanted.repoint,
        stop_vm=wanted.stop_vm,
        old_disk=wanted.old_disk,
        adopt=wanted.adopt,
        new_source=str(tools.source(wanted.managed_disk)) if wanted.adopt and wanted.managed_disk else "",
    )


async def _available(tools: Tools, run: Run, wanted: Restoring) -> Versioned[RestorePoint]:
    """The restore point's row. Raises PointUnavailableError unless the point can be restored."""
    found = await tools.catalogue.point(run.disk, wanted.point)
    if found is None or found.value.state != "available":
        state = found.value.state if found else "gone"
        message = (
            f"disk {run.disk}: restore point {wanted.point} is {state}; nothing was done; "
            "choose another of the disk's restore points"
        )
        raise PointUnavailableError(message)
    return found


async def own_disk(tools: Tools, request: OwnDisk) -> OwnDiskResult:
    """Make the restore the disk's owner; or the id of the run that is at work on it. Repeated it answers the same.

    The present head is leased and fenced against older writers, as by every run that owns the disk.
    """
    run = await tools.catalogue.run(request.disk, request.run)
    if run is None or run.value.ended_for_good:
        message = f"disk {request.disk}: restore {request.run} has ended; nothing was done"
        raise PointUnavailableError(message)
    if await is_given_up(tools, request.disk, request.run):
        message = f"disk {request.disk}: restore {request.run} has relinquished its head and the disk already; nothing was done"
        raise NotOwnerError(message)
    # G1: the ownership is written before anything else.
    taken = await take_ownership(tools, request.disk, request.run, request.lease, supersedes=request.supersedes)
    if not isinstance(taken, Owner):
        return await _owned(tools, request, taken)
    if taken.run == request.run:
        message = f"disk {request.disk}: another orchestration of restore {request.run} is at work; nothing was done"
        raise PointUnavailableError(message)
    return OwnDiskResult(state="waiting", busy=taken.run)


async def _owned(tools: Tools, request: OwnDisk, row: Versioned[Head]) -> OwnDiskResult:
    """The state of the disk that the restore owns: its head, leased and fenced, or the change of a machine to be completed."""
    head = row.value
    epoch, leased_head = head.epoch, ""
    registration = await tools.catalogue.registration(request.disk)
    source = registration.value.source if registration else ""
    # The change in progress is the restore's own, unless it owns the disk anew because its delivery died.
    if head.repoint and (request.supersedes or head.repoint != repoint_name(request.disk, request.run)):
        return OwnDiskResult(
            state="unsettled", epoch=epoch, source=source, repoint=head.repoint, repoint_digest=head.repoint_digest
        )
    if head.head:
        before = await hold_lease(tools, request.disk, Owner(request.run, request.lease, epoch), tools.head(head.head))
        leased_head = head.head if before else ""
        # A number above the epoch was set by a stranger: the head is no base for any run.
        if before and before.sequence_number <= epoch:
            await fence_off(tools, tools.head(head.head), epoch, request.lease)
    mine = repoint_name(request.disk, request.run)
    begun = mine if await tools.documents.get(noted_name(mine)) else ""
    return OwnDiskResult(state="owned", epoch=epoch, source=source, leased_head=leased_head, repoint=begun)


async def record_failure(tools: Tools, request: RecordFailure) -> Nothing:
    """Write the fault to the run's row: the other part of the run ends at its next report."""
    await require_right_to_act(tools, request.actor)

    async def record() -> Nothing:
        row = await tools.catalogue.run(request.actor.disk, request.actor.run)
        if row and not row.value.ended_for_good and not row.value.error:
            await write_run(tools, row, replace(row.value, error=run_error(request.fault)))
        return Nothing()

    return await update_row(record, f"run {request.actor.run}: its row", "its failure was written")


async def adopt_head(tools: Tools, request: AdoptHead) -> OpenResult:
    """Give the promoted blob the mark of a verified head at the run's epoch, whose source snapshot is that of the new disk.

    Both were proved equal to the restore point, but for the footer of an imported disk, which is taken over. Raises
    HeadAlteredError unless it is still the version that was proved.
    """
    transfer = request.transfer
    await require_ownership(tools, transfer.actor)
    blob = tools.head(transfer.head)
    wanted = intent(transfer)
    verified = wanted.verified(request.page_map)
    found, mark = await _promoted(tools, request)
    if mark.target != transfer.target:
        first = wanted if is_resource_id(transfer.source) else verified
        with suppress(BlobChangedError):  # another delivery was faster, and has marked it
            await tools.blobs.set_metadata(blob, to_metadata(first, tools.site(blob)), guard_of(transfer.actor, found.etag))
        found, mark = await _promoted(tools, request)
    if mark.state == "applying":
        # Since the mark was set, only the holder of the lease can have written here.
        # G59: no later diff would bring the footer that Azure gives a new disk.
        await _take_over_footer(tools, transfer, Fence(transfer.actor.lease, found.sequence_number))
        await fence_off(tools, blob, transfer.actor.epoch, transfer.actor.lease)
        # Read once more: marked again, it would be another version than the faster delivery has answered.
        found, mark = await _promoted(tools, request)
    if mark.state == "applying":
        await tools.blobs.set_metadata(blob, to_metadata(verified, tools.site(blob)), guard_of(transfer.actor, found.etag))
    return OpenResult(etag=await fence_off(tools, blob, transfer.actor.epoch, transfer.actor.lease))


async def _promoted(tools: Tools, request: AdoptHead) -> tuple[BlobProperties, HeadMark]:
    """The promoted blob and its mark. Raises HeadAlteredError unless it is the version that was proved, or adopted already."""
    transfer = request.transfer
    blob = tools.head(transfer.head)
    found = await tools.blobs.properties(blob)
    mark = from_metadata(found.metadata, tools.site(blob))
    # G25: only the version that was compared is adopted.
    proved = mark is not None and (mark.target == transfer.target or found.etag == request.etag)
    if mark is None or mark.run != transfer.actor.run or not proved:
        message = (
            f"{blob}: changed by somebody else since it was proved (version {request.etag}, found {found.etag}); "
            "it is not adopted; the next backup is a full one"
        )
        raise HeadAlteredError(message)
    return found, mark


async def _take_over_footer(tools: Tools, transfer: Transfer, fence: Fence) -> None:
    """Have the head end as the new disk's snapshot does. No diff between two of its snapshots would tell that the footer that
    Azure gave the disk is another one than it was made with. Raises VerificationError.
    """
    disk, blob, end = tools.image(transfer.source), tools.head(transfer.head), footer(transfer.size)
    wanted = await tools.blobs.read(disk, transfer.target, end)
    if wanted == await tools.blobs.read(blob, "", end):
        return
    with suppress(FencedError):  # another delivery was faster, and has written it
        await tools.blobs.copy_streamed(disk, transfer.target, end, blob, fence)
    if wanted != await tools.blobs.read(blob, "", end):
        message = (
            f"{blob}: its last {end.size} bytes differ from snapshot {transfer.target} of {disk}, of which they were copied"
        )
        raise VerificationError(message)


async def finish_restore(tools: Tools, request: FinishRestore) -> Nothing:
    """End the run's row, then release its leases, its pin and the disk. Repeats change nothing."""
    await end_row(tools, request)
    row = await tools.catalogue.run(request.disk, request.run)
    # What is outside the allow-list was never leased: the restore failed for it.
    places = [place for place in request.leased if "://" not in place or tools.may_read(place)]
    left = [*await _close_upload(tools, row.value), *await _close_access(tools, row.value)] if row else []
    left += await release_leases(tools, [tools.made_blob(place) for place in places], request.lease)
    heads = [place for place in request.leased if "://" not in place]
    left += await relinquish_ownership(tools, request.disk, request.run, request.owner_lease or request.lease, heads)
    if row and row.value.restore:
        await tools.catalogue.unpin(Pin(request.disk, row.value.restore.point, request.run, request.lease))
    emit_warnings(tools, request.disk, request.run, list(dict.fromkeys(left)))
    return Nothing()


async def _close_upload(tools: Tools, run: Run) -> list[str]:
    """End the access to the managed disk that the run has uploaded, or not completed; what stays open, in words."""
    if not run.restore or not run.restore.uploads:
        return []
    try:
        # G72: whatever became of the restore.
        await close_upload(tools, run.restore.managed_disk, run.run)
    except BackupError as error:
        if error.retryable:
            raise
        return [shortened(f"access to managed disk {run.restore.managed_disk} stays open: {error.code}: {error}")]
    return []


async def _close_access(tools: Tools, run: Run) -> list[str]:
    """End what the run has opened of an imported disk that is not the disk's source: its ownership has that closed. What stays
    open, in words.
    """
    imported = imported_source(run)
    registration = await tools.catalogue.registration(run.disk)
    if not imported or (registration and same_disk(registration.value.source, imported)):
        return []
    return await try_close_access(tools, imported)
