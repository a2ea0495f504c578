"""Steps before a head is brought to a source snapshot: the plan, and the mark."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from backup_core.domain.coalescing import GapCount, coalesced
from backup_core.domain.digests import digest_of
from backup_core.domain.errors import BlobExistsError, DiffRefusedError, HeadAlteredError
from backup_core.domain.metadata import HeadMark, to_metadata
from backup_core.domain.naming import plan_name
from backup_core.domain.plan import Plan, Planner
from backup_core.domain.ranges import ByteRange
from backup_core.protocol.documents import PLAN, read_document, store_once
from backup_core.protocol.listings import HeldByBoth, changed_ranges
from backup_core.protocol.marks import intent, is_own
from backup_core.protocol.rights import guard_of, require_ownership, require_right_to_act
from backup_core.steps.backup import Transfer
from backup_core.steps.copying import ImageCopy, OpenResult, PlanResult

if TYPE_CHECKING:
    from backup_core.domain.naming import BlobAddress
    from backup_core.protocol.tools import Tools


# -- plan -------------------------------------------------------------------------------------------------------


async def plan_transfer(tools: Tools, request: ImageCopy) -> PlanResult:
    """Store the plan of the transfer as byte-interval shards. A refused diff, or a disk that shrank, gives `refused`."""
    await require_right_to_act(tools, request.actor)
    name = plan_name(request.actor.disk, request.actor.run, request.target, request.base, request.becomes)
    stored = await tools.documents.get(name)
    if stored is None:
        try:
            plan = await _plan(tools, request)
        except DiffRefusedError as error:
            return PlanResult(refused=f"the service refused the diff: {error.reason}")
        if plan is None:
            return PlanResult(refused="the disk shrank")
        stored = await store_once(tools.documents, name, PLAN.dump_json(plan).decode())
    plan = read_document(PLAN, name, stored)
    return PlanResult(
        plan=name,
        digest=digest_of(stored),
        shards=len(plan.shards),
        write_bytes=plan.write_bytes,
        clear_bytes=plan.clear_bytes,
        ranges=plan.ranges,
        requests=plan.requests,
    )


async def _plan(tools: Tools, request: ImageCopy) -> Plan | None:
    source = tools.image(request.source)
    if request.base and (await tools.blobs.properties(source, request.base)).size > request.size:
        return None
    limits, whole, gaps = tools.limits, ByteRange(0, request.size), GapCount()
    planner = Planner(limits.shard_bytes_max, limits.shard_requests_max)
    async for changed in changed_ranges(tools, request, whole):
        planner.feed(changed)
        gaps.feed(changed)
    plan = planner.finish()
    # Without a base the destination holds nothing, and no gap is held by both.
    gap_max = gaps.bytes_max(plan.requests, plan.write_bytes, limits.gap_ratio, limits.gaps_min) if request.base else 0
    if not gap_max:
        return plan
    planner = Planner(limits.shard_bytes_max, limits.shard_requests_max)
    held = HeldByBoth(tools, request, request.size)
    async for one in coalesced(changed_ranges(tools, request, whole), gap_max, held):
        planner.add(one)
    return replace(planner.finish(), ranges=plan.ranges, gap_bytes_max=gap_max)


# -- open -------------------------------------------------------------------------------------------------------


async def open_head(tools: Tools, transfer: Transfer) -> OpenResult:
    """Write the durable intent on the head before the first byte: on a new blob, or on the one the diff starts from."""
    await require_ownership(tools, transfer.actor)
    blob, mark = tools.head(transfer.head), intent(transfer)
    if transfer.kind == "full":
        # G12, G19: created with the intent, where nothing is.
        await _create(tools, blob, mark, transfer)
    else:
        # G12: the intent is written before the first byte.
        await _mark(tools, blob, mark, transfer)
    return OpenResult(etag=(await tools.blobs.properties(blob)).etag)


async def _create(tools: Tools, blob: BlobAddress, mark: HeadMark, transfer: Transfer) -> None:
    try:
        # The blob is created with the epoch as its sequence number: an older writer can never reach it.
        await tools.blobs.create(blob, transfer.size, transfer.actor.epoch, to_metadata(mark, tools.site(blob)))
    except BlobExistsError:
        if not is_own(tools, (await tools.blobs.properties(blob)).metadata, transfer):
            raise
    await tools.blobs.acquire_lease(blob, transfer.actor.lease)


async def _mark(tools: Tools, blob: BlobAddress, mark: HeadMark, transfer: Transfer) -> None:
    found = await tools.blobs.properties(blob)
    etag = found.etag
    if not is_own(tools, found.metadata, transfer):
        if etag != transfer.head_etag:
            message = (
                f"{blob}: changed by somebody else since run {transfer.actor.run} began (version {transfer.head_etag}, found "
                f"{etag}); nothing was written; the next run makes a full backup"
            )
            raise HeadAlteredError(message)
        etag = await tools.blobs.set_metadata(blob, to_metadata(mark, tools.site(blob)), guard_of(transfer.actor, etag))
    if found.size < transfer.size:
        await tools.blobs.resize(blob, transfer.size, guard_of(transfer.actor, etag))
