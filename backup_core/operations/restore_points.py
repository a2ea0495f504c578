"""The restore point that is restored: chosen, and looked up on the service."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

from backup_core.domain.errors import BlobMissingError, SnapshotMissingError
from backup_core.domain.naming import is_point_id
from backup_core.operations.refusal import RefusedError

if TYPE_CHECKING:
    from backup_core.domain.records import Registration, RestorePoint
    from backup_core.operations.restores import RestoreWish
    from backup_core.protocol.tools import Tools

PER_PAGE = 1000


async def point_of(tools: Tools, disk: str, wish: RestoreWish, registration: Registration | None) -> RestorePoint:
    """The requested point, of those that can be restored. Raises RefusedError."""
    if wish.time:
        rows = await tools.catalogue.points(disk, 1, "", "available", None, wish.time + timedelta(microseconds=1))
        if not rows:
            oldest = await _oldest(tools, disk)
            others = f"the oldest is {oldest.point}, taken {oldest.source_snapshot}" if oldest else "it has none at all"
            message = f"disk {disk} has no restore point from {wish.time.isoformat()} or before; {others}"
            raise RefusedError(404, "RestorePointNotFound", message, "time")
        return rows[0].value
    if wish.restore_point == "latest":
        return await _latest(tools, disk, registration)
    if not is_point_id(wish.restore_point):
        message = (
            f"{wish.restore_point[:80]!r} is not a restore point id; expected one of the disk's restore points, or 'latest'"
        )
        raise RefusedError(400, "InvalidRestorePointId", message, "restorePoint")
    row = await tools.catalogue.point(disk, wish.restore_point)
    if row is None:
        message = f"disk {disk} has no restore point {wish.restore_point}"
        raise RefusedError(404, "RestorePointNotFound", message, "restorePoint")
    if row.value.state != "available":
        message = f"restore point {wish.restore_point} of disk {disk} is {row.value.state}; only available ones can be restored"
        raise RefusedError(409, "RestorePointUnavailable", message, "restorePoint")
    return row.value


async def _latest(tools: Tools, disk: str, registration: Registration | None) -> RestorePoint:
    """The newest point of the disk's present source, or of the disk where none is registered."""
    newest, after = None, ""
    while page := await tools.catalogue.points(disk, PER_PAGE if after else 1, after, "available"):
        newest = newest or page[0].value
        for row in page:
            if registration is None or row.value.source == registration.source:
                return row.value
        after = page[-1].value.point
    if newest and registration:
        message = (
            f"disk {disk} has no restore point of its present source {registration.source} yet; the newest of all is "
            f"{newest.point}, of {newest.source}: back the disk up, or name that restore point"
        )
    elif registration:
        message = f"disk {disk} has no restore point that can be restored; POST /api/disks/{disk}/backups makes one"
    else:
        message = f"no disk {disk} is known, and it has no restore points; POST /api/catalogue/rebuild if rows were lost"
        raise RefusedError(404, "DiskNotFound", message, "disk")
    raise RefusedError(404, "RestorePointNotFound", message, "restorePoint")


async def _oldest(tools: Tools, disk: str) -> RestorePoint | None:
    oldest, after = None, ""
    while page := await tools.catalogue.points(disk, PER_PAGE, after, "available"):
        oldest = page[-1].value
        after = oldest.point
    return oldest


async def check_backup(tools: Tools, point: RestorePoint) -> None:
    """Check that the backup snapshot exists, in full length. Raises RefusedError."""
    blob = tools.head(point.head)
    try:
        found = await tools.blobs.properties(blob, point.backup_snapshot)
    except (BlobMissingError, SnapshotMissingError) as error:
        message = f"restore point {point.point}: its backup snapshot is gone ({error}); POST /api/catalogue/rebuild lists them"
        raise RefusedError(409, "RestorePointUnavailable", message, "restorePoint") from error
    if found.size != point.size:
        message = (
            f"restore point {point.point}: its backup snapshot has {found.size} bytes, expected {point.size}; it is not used"
        )
        raise RefusedError(409, "RestorePointUnavailable", message, "restorePoint")
