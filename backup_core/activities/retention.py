"""The deletion of expired restore points."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from backup_core.domain.records import EXPIRED_NAMED_MAX
from backup_core.protocol.pruning import prune
from backup_core.protocol.rights import registration_of, require_ownership
from backup_core.protocol.run_rows import in_one
from backup_core.protocol.updates import update_row
from backup_core.steps.backup import PrunePoints, PruneResult

if TYPE_CHECKING:
    from backup_core.protocol.tools import Tools


async def prune_points(tools: Tools, request: PrunePoints) -> PruneResult:
    """Delete the disk's expired restore points, at most a few per call; `more` when some are left.

    A point that a run begins to use at the same moment is kept: use and deletion compete for its row's version.
    """
    await require_ownership(tools, request.actor)
    registration = await registration_of(tools, request.actor.disk)

    async def still() -> None:
        await require_ownership(tools, request.actor)

    pruned = await prune(tools, registration, request.actor.run, still)
    await _record_expired(tools, request, pruned.expired)
    return pruned


async def _record_expired(tools: Tools, request: PrunePoints, gone: list[str]) -> None:
    """Add the deleted points to the run's row: of two deliveries each deletes a part, and only one's answer is used."""

    async def record() -> bool:
        row = await tools.catalogue.run(request.actor.disk, request.actor.run)
        if gone and row and not row.value.ended_for_good:
            expired = in_one(row.value.expired, gone)[:EXPIRED_NAMED_MAX]
            await tools.catalogue.put_run(replace(row.value, expired=expired), row.etag)
        return True

    await update_row(record, f"run {request.actor.run}: its row", "deleted restore points were added to it")
