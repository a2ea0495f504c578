"""Registrations, written and ended: the source is claimed first, and its claim released after the row says so."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeVar

from backup_core.domain.errors import BackupError, RowChangedError, RowExistsError
from backup_core.domain.records import Registration
from backup_core.domain.redaction import redacted
from backup_core.domain.shown import shortened
from backup_core.domain.status import RUNS_LOOKED_AT
from backup_core.operations.refusal import RefusedError
from backup_core.operations.sources import source_warnings
from backup_core.protocol.ownership import older_at_work
from backup_core.protocol.registrations import store_copy

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from backup_core.domain.naming import Source
    from backup_core.domain.records import Retention, Slot, Versioned
    from backup_core.protocol.tools import Tools
    from backup_core.steps.copying import Verification

log = logging.getLogger("pagekeeper")
Result = TypeVar("Result")
COPY_LATER = "housekeeping makes the copy of the registration beside the backups"


@dataclass(frozen=True)
class RegistrationWish:
    """A caller's request for a disk's registration."""

    source: Source
    description: str
    verification: Verification
    retention: Retention | None
    machine: Slot | None
    follows_on: bool
    """Whether the source may take the place of another one, of which the disk has restore points."""


@dataclass(frozen=True)
class Registered:
    """A registration as it is stored now."""

    registration: Registration
    created: bool
    warnings: list[str]


async def known_registration(tools: Tools, disk: str) -> Versioned[Registration]:
    """The disk's registration. Raises RefusedError for an unknown disk."""
    row = await tools.catalogue.registration(disk)
    if row is None:
        message = f"no disk {disk} is registered; PUT /api/disks/{disk} protects one"
        raise RefusedError(404, "DiskNotFound", message, "disk")
    return row


async def register(tools: Tools, disk: str, wish: RegistrationWish) -> Registered:
    """Store the disk's registration after its source was checked. Raises RefusedError, RowChangedError, RowExistsError."""
    source = str(wish.source)
    warnings = await source_warnings(tools, wish.source)
    row = await tools.catalogue.registration(disk)
    former, now = row.value if row else None, await tools.catalogue.now()
    if not wish.follows_on:
        await _check_succession(tools, disk, former, source)
    registration = Registration(
        disk,
        source,
        wish.description,
        former.created if former else now,
        now,
        wish.verification,
        wish.retention,
        machine=wish.machine,
        source_since=former.source_since if former and former.source == source else now,
        unprotected=_still_unprotected(former, source),
    )
    await _write(tools, registration, row)
    # The disk is registered. From here on a failure is a warning: a refusal would say that nothing was changed.
    await attempt(warnings, COPY_LATER, store_copy(tools, registration))
    if former and former.source != source:
        released = tools.catalogue.release_source(former.source, disk)
        await attempt(warnings, "housekeeping frees the former source for another disk", released)
    return Registered(registration, former is None, warnings)


async def _write(tools: Tools, registration: Registration, row: Versioned[Registration] | None) -> None:
    """Claim the source and write the row, or leave both as they were. Raises RefusedError for a source of another disk."""
    claimed = await tools.catalogue.source_holder(registration.source)
    holder = await tools.catalogue.claim_source(registration.source, registration.disk)
    if holder != registration.disk:
        message = f"source {registration.source} is already protected as disk {holder}; use that id, or another source"
        raise RefusedError(409, "SourceAlreadyProtected", message, "source")
    try:
        await tools.catalogue.put_registration(registration, row.etag if row else None)
    except (RowChangedError, RowExistsError):
        # Not written. The faster caller may have registered this very source: then the claim is theirs too.
        faster = await tools.catalogue.registration(registration.disk)
        if claimed is None and (faster is None or faster.value.source != registration.source):
            await tools.catalogue.release_source(registration.source, registration.disk)
        raise


async def _check_succession(tools: Tools, disk: str, registration: Registration | None, source: str) -> None:
    """Refuse another source for a disk that has restore points: they would be taken for points of the new source."""
    newest = await tools.catalogue.points(disk, 1)
    former = registration.source if registration else newest[0].value.source if newest else source
    if not newest or former == source:
        return
    message = (
        f"disk {disk} has restore points of {former}, and {source} is another disk; nothing was changed; register it under an "
        'id of its own, or, when it takes the place of the former one, say so with "followsOn": true'
    )
    raise RefusedError(409, "SourceChanged", message, "source")


def _still_unprotected(former: Registration | None, source: str) -> str:
    """Why the disk stays unprotected: its machine uses another disk. Empty after another source was registered, and after the
    protection was stopped and resumed.
    """
    return former.unprotected if former and former.protected and former.source == source else ""


async def stop_protecting(tools: Tools, disk: str) -> Registered:
    """Store that the disk is not protected any more, and release its source. Raises RefusedError for an unknown disk.

    While a run is in progress the disk keeps its claim, so that lists and watch still find it. The watch then releases it.
    """
    row, now = await known_registration(tools, disk), await tools.catalogue.now()
    stopped, warnings = replace(row.value, protected=False, updated=now), list[str]()
    if row.value.protected:
        await tools.catalogue.put_registration(stopped, row.etag)
        await attempt(warnings, COPY_LATER, store_copy(tools, stopped))
    runs = await tools.catalogue.runs(disk, RUNS_LOOKED_AT)
    older = await older_at_work(tools, await tools.catalogue.head(disk), runs, now)
    if older is None and all(run.ended_for_good for run in runs):
        await tools.catalogue.release_source(row.value.source, disk)
    return Registered(stopped, created=False, warnings=warnings)


async def attempt(warnings: list[str], consequence: str, duty: Awaitable[Result]) -> Result | None:
    """The answer of a duty that follows a change of a registration. A failure adds a warning that says the consequence."""
    try:
        return await duty
    except Exception as error:  # noqa: BLE001  whatever it is, the registration has changed
        log.warning("after a registration: %s: %s", type(error).__name__, redacted(str(error)))
        code = error.code if isinstance(error, BackupError) else type(error).__name__
        warnings.append(f"{consequence} ({code}: {redacted(shortened(str(error)))})")
        return None
