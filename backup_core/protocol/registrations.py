"""Registrations: moved to another source, and copied beside the backups."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from pydantic import TypeAdapter

from backup_core.domain.errors import DiskUnknownError, SourceUnfitError
from backup_core.domain.naming import registration_name
from backup_core.domain.records import Registration

if TYPE_CHECKING:
    from backup_core.domain.records import Versioned
    from backup_core.protocol.tools import Tools


REGISTRATION = TypeAdapter(Registration)


async def prepare_move(tools: Tools, disk: str, source: str) -> Versioned[Registration]:
    """The disk's registration with its new source, to be written; the source is claimed for the disk first.

    Raises SourceUnfitError when another disk has claimed it.
    """
    row = await tools.catalogue.registration(disk)
    if row is None:
        message = f"disk {disk}: its registration is gone; PUT /api/disks/{disk} with the new disk as its source"
        raise DiskUnknownError(message)
    # G40: claimed before the registration moves.
    holder = await tools.catalogue.claim_source(source, disk)
    if holder != disk:
        message = f"disk {disk}: the new disk {source} is registered as disk {holder} already; DELETE one of the two"
        raise SourceUnfitError(message)
    now = await tools.catalogue.now()
    since = row.value.source_since if row.value.source == source else now
    return replace(row, value=replace(row.value, source=source, source_since=since, updated=now, unprotected=""))


async def complete_move(tools: Tools, disk: str, former: str) -> None:
    """Complete the move of a registration: release the former source, and renew the copy beside the backups."""
    row = await tools.catalogue.registration(disk)
    if row is None:
        return
    # G40: the former source is released after the move.
    if row.value.source != former:
        await tools.catalogue.release_source(former, disk)
    await store_copy(tools, row.value)


async def store_copy(tools: Tools, registration: Registration) -> None:
    """Store the registration beside the backups. The row decides; the copy brings it back if it is ever lost."""
    await tools.documents.put(registration_name(registration.disk), REGISTRATION.dump_json(registration).decode())
