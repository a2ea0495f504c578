"""The night's steps: the disks to be cleaned up, and the cleaning of one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from backup_core.domain.errors import BackupError, CleanupError
from backup_core.domain.events import DiskCleaned, RunWarned
from backup_core.domain.naming import is_disk_id
from backup_core.domain.shown import named, shortened
from backup_core.protocol.cleanup import Cleanup
from backup_core.steps.housekeeping import CleanupResult, DiskPageResult

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from backup_core.protocol.tools import Tools
    from backup_core.steps.housekeeping import CleanUpDisk, DiskPage


async def list_backed_up_disks(tools: Tools, request: DiskPage) -> DiskPageResult:
    """The next slice of disks after `request.after`: registered ones, and those of which only backups are left."""
    found = {disk for disk in await tools.catalogue.disks() if disk > request.after}
    async for folder in tools.blobs.folders(tools.backup_account, tools.heads_container):
        if is_disk_id(folder) and folder > request.after:
            found.add(folder)
    later = sorted(found)
    slice_ = later[: tools.limits.cleanup_disks_max]
    return DiskPageResult(disks=slice_, more=len(later) > len(slice_))


async def clean_up_disk(tools: Tools, request: CleanUpDisk) -> CleanupResult:
    """Remove the disk's leftovers, a bounded number per call. A repeat finds fewer, and at last none.

    Each duty stands alone. Raises CleanupError, which names those that failed, after all were tried.
    """
    cleanup = Cleanup(tools, request, await tools.catalogue.now())
    failed = [fault for duty in cleanup.duties if (fault := await _try(duty))]
    done = cleanup.done()
    if any(done.model_dump(exclude={"more"}).values()):
        tools.journal.write(DiskCleaned(disk=request.disk, **done.model_dump(exclude={"more"})))
    kept = [f"kept: {named(cleanup.kept)}"] if cleanup.kept else []
    for words in failed + kept:
        tools.journal.write(RunWarned(disk=request.disk, run=request.actor, message=shortened(words)))
    if failed:
        message = f"disk {request.disk}: {named(failed)}; the other duties were done; the rest is tried again tomorrow"
        raise CleanupError(message)
    return done


async def _try(duty: Callable[[], Awaitable[None]]) -> str:
    """Why the duty failed; empty when it is done."""
    try:
        await duty()
    # G54: the other duties are tried too.
    except BackupError as error:
        return f"{duty.__name__}: {error.code}: {error}"
    return ""
