"""Ownership of a disk: taken over from the dead, and given up."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING

from backup_core.domain.ending import abandonment, dead
from backup_core.domain.errors import (
    BackupError,
    RowChangedError,
)
from backup_core.domain.records import Owner
from backup_core.domain.shown import shortened
from backup_core.protocol.run_rows import CONFLICTS_MAX, write_run
from backup_core.steps.backup import BeginBackup

if TYPE_CHECKING:
    from collections.abc import Sequence

    from backup_core.domain.naming import BlobAddress
    from backup_core.protocol.tools import Tools
    from backup_core.steps.restore import OwnDisk


async def end_if_dead(tools: Tools, request: BeginBackup | OwnDisk, owner: Owner) -> bool:
    """Whether the owning run has ended, or is dead and is ended here: nothing may stay Running for ever."""
    for _ in range(CONFLICTS_MAX):
        row = await tools.catalogue.run(request.disk, owner.run)
        if row is None or row.value.ended_for_good:
            return True
        now = await tools.catalogue.now()
        if not dead(row, now):
            return False
        # A conflict is a sign of life, or the same end written by another delivery: the row says which.
        with suppress(RowChangedError):
            await write_run(tools, row, abandonment(row.value, request.run, now))
    return False


async def relinquish_ownership(tools: Tools, disk: str, run: str, lease: str, heads: Sequence[str]) -> list[str]:
    """Release the heads' leases and the ownership, if the run still has it; what could not be released, in words. A lease that
    stays is broken by the next run.
    """
    left: list[str] = []
    for _ in range(CONFLICTS_MAX):
        row = await tools.catalogue.head(disk)
        owner = row.value.owner if row else None
        if row is None or owner is None or (owner.run, owner.lease) != (run, lease):
            break
        names = heads or ([row.value.head] if row.value.head else [])
        left = await release_leases(tools, [tools.head(name) for name in names], lease)
        with suppress(RowChangedError):
            await tools.catalogue.put_head(replace(row.value, owner=None), row.etag)
    return left


async def release_leases(tools: Tools, blobs: Sequence[BlobAddress], lease: str) -> list[str]:
    """Release each blob's lease; what could not be released, in words. Raises a fault that may pass, after all were tried."""
    passing: BackupError | None = None
    left = []
    for blob in blobs:
        try:
            await tools.blobs.release_lease(blob, lease)
        except BackupError as error:
            passing = passing or (error if error.retryable else None)
            left.append(shortened(f"lease of {blob}: {error.code}: {error}"))
    if passing:
        raise passing
    return left
