"""Steps of a rebuild: one rebuild at a time, followed and canceled by its documents; a repeat finds its work done."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING

from backup_core.domain.digests import digest_of
from backup_core.domain.errors import NotOwnerError, RowChangedError, RowExistsError
from backup_core.domain.naming import FLEETS, REBUILDS, rebuild_cancel_name, rebuilt_name, stamp_of_rebuild
from backup_core.domain.rebuild import Found, Rebuild
from backup_core.protocol.documents import read_document
from backup_core.protocol.rebuilds import FOUND, HASH_LENGTH, at_work, give_rebuild_sign_of_life, store_rebuild, stored_rebuild
from backup_core.protocol.survey import carry_out, disks_to_survey, survey
from backup_core.steps.housekeeping import RebuildCleanupResult
from backup_core.steps.messages import Nothing
from backup_core.steps.rebuild import RebuildDiskResult, RebuildPageResult, RebuildReportResult

if TYPE_CHECKING:
    from backup_core.protocol.survey import Survey
    from backup_core.protocol.tools import Tools
    from backup_core.steps.housekeeping import CleanUpRebuilds
    from backup_core.steps.rebuild import FinishRebuild, RebuildDisk, RebuildPage, RebuildReport


async def _owned(tools: Tools, rebuild: str) -> Rebuild:
    """The rebuild's stored state, while it may act. Raises NotOwnerError."""
    known = await stored_rebuild(tools, rebuild)
    if known is None or known.state != "Running" or await at_work(tools) != rebuild:
        message = f"{rebuild} has ended, or another rebuild has taken its place; nothing was done"
        raise NotOwnerError(message)
    return known


async def list_rebuild_disks(tools: Tools, request: RebuildPage) -> RebuildPageResult:
    """The next slice of disks after `request.after`: registered ones, and those of which only backups are left."""
    await _owned(tools, request.rebuild)
    later = await disks_to_survey(tools, request.after)
    slice_ = later[: tools.limits.cleanup_disks_max]
    return RebuildPageResult(disks=slice_, more=len(later) > len(slice_))


async def rebuild_disk(tools: Tools, request: RebuildDisk) -> RebuildDiskResult:
    """Compare a part of a disk, and unless it is a dry run restore its rows. It restores exactly the rows that the dry run has
    shown, or fewer where some are restored already. The findings are stored; a repeat answers them.
    """
    await _owned(tools, request.rebuild)
    if request.part > 1:
        # G4: a disk with years of restore points has many parts, and the rebuild reports between disks only.
        await give_rebuild_sign_of_life(tools, request.rebuild)
    name = rebuilt_name(request.rebuild, request.disk, request.part)
    if text := await tools.documents.get(name):
        return _answered(request, read_document(FOUND, name, text), text)
    found = await (_carry_out(tools, request) if request.plan else _found(tools, request))
    if found.state == "unchanged" and not found.floor:
        return RebuildDiskResult(disk=request.disk, part=request.part, state="unchanged", digest="", below="")
    await tools.documents.put_if_absent(name, FOUND.dump_json(found).decode())
    text = await tools.documents.get(name) or ""
    return _answered(request, read_document(FOUND, name, text), text)


def _answered(request: RebuildDisk, found: Found, text: str) -> RebuildDiskResult:
    return RebuildDiskResult(disk=request.disk, part=request.part, state=found.state, digest=digest_of(text), below=found.floor)


async def _found(tools: Tools, request: RebuildDisk) -> Found:
    return _shown(await survey(tools, request.disk, request.below), first=request.part == 1)


async def _carry_out(tools: Tools, request: RebuildDisk) -> Found:
    name = rebuilt_name(request.plan, request.disk, request.part)
    text = await tools.documents.get(name)
    planned = read_document(FOUND, name, text) if text else Found(request.disk, "unchanged")
    there = await survey(tools, request.disk, request.below, planned.floor)
    found = _shown(there, first=request.part == 1)
    if found.state in ("busy", "unreadable"):
        return replace(found, floor="")
    if not found.within(planned):
        why = "it differs from what the dry run has shown; nothing was written for it; make a new dry run"
        return Found(request.disk, "changed", why=why)
    try:
        await carry_out(tools, there)
    except RowExistsError as error:
        # Another delivery was faster: the repeat finds its work done.
        raise RowChangedError(str(error)) from error
    return planned if planned.state == "different" else found


def _shown(found: Survey, *, first: bool = True) -> Found:
    """The findings of a survey, by names; the head row counts with a disk's first part."""
    different = (
        found.adopted or found.changed or found.quarantined or (found.head and first) or found.registration or found.claim
    )
    return Found(
        disk=found.disk,
        state="unreadable" if found.unreadable else "busy" if found.busy else "different" if different else "unchanged",
        running=found.busy,
        why=found.unreadable,
        adopted=tuple(point.point for point in found.adopted),
        corrected=tuple(row.value.point for row in found.changed if row.value.state == "available"),
        lost=tuple(row.value.point for row in found.changed if row.value.state == "lost"),
        quarantined=tuple((head, snapshot, why) for (head, snapshot), why in found.quarantined),
        head_row=found.head_differs and first,
        registration=bool(found.registration or found.claim),
        floor=found.floor,
    )


async def report_rebuild(tools: Tools, request: RebuildReport) -> RebuildReportResult:
    """Store the progress, which is the heartbeat; whether the rebuild continues."""
    try:
        known = await _owned(tools, request.rebuild)
    except NotOwnerError:
        return RebuildReportResult(goes_on=False)
    if await tools.documents.get(rebuild_cancel_name(request.rebuild)):
        return RebuildReportResult(goes_on=False)
    await store_rebuild(tools, replace(known, tally=max(known.tally, request.tally, key=lambda one: one.examined)))
    return RebuildReportResult(goes_on=True)


async def finish_rebuild(tools: Tools, request: FinishRebuild) -> Nothing:
    """Store the rebuild's end. One that has ended stays as it is."""
    known = await stored_rebuild(tools, request.rebuild)
    if known and known.state == "Running":
        succeeded = request.state == "Succeeded" and not known.plan
        plan_hash = digest_of(request.chain)[:HASH_LENGTH] + stamp_of_rebuild(known.rebuild) if succeeded else ""
        now = await tools.catalogue.now()
        await store_rebuild(tools, replace(known, state=request.state, tally=request.tally, ended=now, plan_hash=plan_hash))
    return Nothing()


async def clean_up_rebuilds(tools: Tools, request: CleanUpRebuilds) -> RebuildCleanupResult:
    """Remove documents of rebuilds and windows of so many days ago, a bounded number per call: none is at work for so long."""
    oldest, gone = await tools.catalogue.now() - timedelta(days=request.run_days), 0
    for folder in (REBUILDS, FLEETS):
        async for one in tools.documents.listed(folder):
            if gone == tools.limits.sweeps_max:
                break
            if one.changed < oldest:
                await tools.documents.delete(one.name)
                gone += 1
    return RebuildCleanupResult(documents=gone)
