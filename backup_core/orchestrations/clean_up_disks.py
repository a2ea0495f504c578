"""Housekeeping: every disk's leftovers, a few disks at a time, none of which stops another."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from backup_core.domain.identity import lease_id
from backup_core.domain.shown import NAMED_MAX, named
from backup_core.orchestrations.calls import Flow, Retries, attempt, call, show
from backup_core.orchestrations.kit import begin_anew
from backup_core.steps.housekeeping import (
    CLEAN_UP_DISK,
    CLEAN_UP_REBUILDS,
    LIST_BACKED_UP_DISKS,
    CleanUpDisk,
    CleanUpRebuilds,
    CleanupRequest,
    CleanupResult,
    DiskPage,
)

if TYPE_CHECKING:
    from backup_core.orchestrations.calls import Context

NAME = "clean_up_disks"
SIDE_BY_SIDE = 8
ROUNDS_MAX = 10
"""Calls for one disk in one night; the rest is removed in the next."""


class CleanupFailedError(Exception):
    """Leftovers of at least one disk could not be removed; the others were. The text names the failed disks."""


def clean_up_disks(context: Context) -> Flow[dict[str, Any] | None]:
    """The orchestrator. Returns counts of what was removed; raises when a disk failed, after all were tried."""
    request = CleanupRequest.model_validate(context.get_input())
    failed = list(request.failed)
    page = yield from call(context, LIST_BACKED_UP_DISKS, DiskPage(after=request.after), Retries())
    show(context, {"disks": len(page.disks), "after": request.after, "failed": len(failed)})
    gone = 0
    for first in range(0, len(page.disks), SIDE_BY_SIDE):
        removed, faults = yield from _cleaned_up(context, page.disks[first : first + SIDE_BY_SIDE], request.run_days)
        gone += removed
        failed += faults
    if page.more:
        begin_anew(context, request.model_copy(update={"after": page.disks[-1], "failed": failed[:NAMED_MAX]}))
        return None
    (outcome,) = yield from attempt(context, CLEAN_UP_REBUILDS, [CleanUpRebuilds(run_days=request.run_days)])
    if outcome.fault:
        failed.append(f"of rebuilds: {outcome.fault.code}: {outcome.fault.message}")
    if failed:
        message = f"leftovers of {len(failed)} disks could not be removed: {named(failed)}"
        raise CleanupFailedError(message)
    return {"removed": gone}


def _cleaned_up(context: Context, disks: list[str], run_days: int) -> Flow[tuple[int, list[str]]]:
    """Call the step for each disk until it has no leftovers; the counts, and the failures."""
    gone, faults = 0, []
    actor = context.instance_id
    open_ = {
        disk: CleanUpDisk(disk=disk, actor=actor, lease=lease_id(actor, "cleanup", disk), run_days=run_days) for disk in disks
    }
    for _ in range(ROUNDS_MAX):
        outcomes = yield from attempt(context, CLEAN_UP_DISK, list(open_.values()))
        again: dict[str, CleanUpDisk] = {}
        for (disk, request), outcome in zip(open_.items(), outcomes, strict=True):
            if outcome.fault:
                faults.append(f"{disk}: {outcome.fault.code}: {outcome.fault.message}")
                continue
            cleaned = CleanupResult.model_validate(outcome.value)
            gone += sum(cleaned.model_dump(exclude={"more"}).values())
            if cleaned.more:
                again[disk] = request
        open_ = again
        if not open_:
            break
    return gone, faults
