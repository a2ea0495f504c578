"""All restore points of a disk."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from backup_core.domain.records import RestorePoint, Versioned
    from backup_core.protocol.tools import Tools


ROWS_PER_LISTING = 1000


async def all_points(tools: Tools, disk: str, state: str = "") -> list[Versioned[RestorePoint]]:
    """All restore points of the disk, newest first, in `state` when given."""
    rows: list[Versioned[RestorePoint]] = []
    while True:
        page = await tools.catalogue.points(disk, ROWS_PER_LISTING, rows[-1].value.point if rows else "", state)
        rows += page
        if len(page) < ROWS_PER_LISTING:
            return rows
