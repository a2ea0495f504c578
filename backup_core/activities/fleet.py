"""The disks a window of the schedule backs up."""

from __future__ import annotations

import asyncio
from datetime import datetime
from typing import TYPE_CHECKING

from backup_core.domain.errors import RecordUnreadableError
from backup_core.domain.fleet import lane_of
from backup_core.domain.naming import timer_run_id
from backup_core.steps.backup import FleetPage, FleetPageResult, FleetRun

if TYPE_CHECKING:
    from backup_core.protocol.tools import Tools


async def list_disks(tools: Tools, request: FleetPage) -> FleetPageResult:
    """The next slice of the lane's protected disks after `request.after`, each with the run it gets in the window."""
    window, size = datetime.fromisoformat(request.window), tools.limits.fleet_disks_max
    disks = await tools.catalogue.disks()
    later = [disk for disk in disks if disk > request.after and lane_of(disk, request.lanes) == request.lane]
    due: list[str] = []
    while later and len(due) <= size:
        part, later = later[:size], later[size:]
        stopped = await asyncio.gather(*(_is_stopped(tools, disk) for disk in part))
        due += [disk for disk, no_longer in zip(part, stopped, strict=True) if not no_longer]
    runs = [FleetRun(disk=disk, run=timer_run_id(disk, window)) for disk in due[:size]]
    return FleetPageResult(runs=runs, more=len(due) > size)


async def _is_stopped(tools: Tools, disk: str) -> bool:
    """Whether the disk is listed only for a run that is still at work. One that cannot be read gets its run: that says why."""
    try:
        row = await tools.catalogue.registration(disk)
    except RecordUnreadableError:
        # G53: the disk's run reports that its row cannot be read; the window continues.
        return False
    return row is not None and not row.value.protected
