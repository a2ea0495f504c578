"""A restore point's row against what its backup snapshot says of itself, which cannot be changed once it is taken."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from backup_core.domain.errors import RecordAlteredError
from backup_core.domain.metadata import from_point_metadata

if TYPE_CHECKING:
    from backup_core.domain.records import RestorePoint
    from backup_core.protocol.tools import Tools


async def require_described(tools: Tools, point: RestorePoint) -> None:
    """Raise RecordAlteredError unless the point's row is what its backup snapshot says of itself."""
    blob = tools.head(point.head)
    carried = (await tools.blobs.properties(blob, point.backup_snapshot)).metadata
    said = from_point_metadata(carried, tools.site(blob), point.backup_snapshot)
    if said is None or replace(said, state=point.state) != point:
        message = (
            f"disk {point.disk}: the row of restore point {point.point} differs from what {blob} snapshot "
            f"{point.backup_snapshot} says of itself; nothing was done; POST /api/catalogue/rebuild corrects the row, or "
            "quarantines the point"
        )
        raise RecordAlteredError(message)
