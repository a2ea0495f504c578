"""The disks a window of the schedule backs up."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING

from backup_core.domain.naming import timer_run_id
from backup_core.steps.backup import FleetDisks, FleetPage, FleetRun

if TYPE_CHECKING:
    from backup_core.activities.tools import Tools


async def list_disks(tools: Tools, asked: FleetPage) -> FleetDisks:
    """The next slice of registered disks after `asked.after`, each with the run it gets in the window."""
    window = datetime.fromisoformat(asked.window)
    later = [disk for disk in await tools.catalogue.disks() if disk > asked.after]
    slice_ = later[: tools.limits.fleet_disks_max]
    runs = [FleetRun(disk=disk, run=timer_run_id(disk, window)) for disk in slice_]
    return FleetDisks(runs=runs, more=len(later) > len(slice_))
