"""Calls about disks: protect, show, list, stop protecting."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from backup_core.api.answers import DiskAnswer, DisksAnswer
from backup_core.api.bodies import EARLIEST, DiskBody
from backup_core.api.context import Api, log
from backup_core.api.http import Answer, Request, answer, disk_of, id_of, parsed, top_of
from backup_core.api.lists import each
from backup_core.api.runs import begun, new_run
from backup_core.domain import managed_source
from backup_core.domain.errors import (
    AccessDeniedError,
    BackupError,
    BlobMissingError,
    HostUnknownError,
    MachineMissingError,
    MachineRefusedError,
    RowChangedError,
    RowExistsError,
)
from backup_core.domain.metadata import is_marked
from backup_core.domain.naming import BlobAddress, is_disk_id, parse_source, registration_name
from backup_core.domain.ranges import DISK_BYTES_MAX, PAGE, ByteRange
from backup_core.domain.records import Registration, Retention
from backup_core.domain.redaction import redacted
from backup_core.domain.shown import shortened
from backup_core.domain.status import RUNS_LOOKED_AT, status_of
from backup_core.domain.vhd import FOOTER_BYTES, vhd_faults
from backup_core.domain.windows import next_window
from backup_core.operations.refusal import RefusedError
from backup_core.protocol.ownership import run_at_work
from backup_core.protocol.registrations import REGISTRATION

if TYPE_CHECKING:
    from collections.abc import Awaitable, Sequence

    from backup_core.domain.naming import DiskAddress, Source
    from backup_core.domain.records import Slot, Versioned
    from backup_core.ports import BlobProperties


async def put_disk(api: Api, request: Request) -> Answer:
    """Protect a disk, or change its registration; back it up for the first time if asked."""
    disk = disk_of(request)
    body = parsed(request, DiskBody)
    address = _source(api, body.source)
    machine = _machine(api, body)
    told = await (_looked_at(api, address) if isinstance(address, BlobAddress) else _disk_looked_at(api, address))
    existing = await api.catalogue.registration(disk)
    if not body.follows_on:
        await _check_succession(api, disk, existing.value if existing else None, address)
    now = api.now()
    created = existing.value.created if existing else now
    same = existing is not None and existing.value.source == str(address)
    since = existing.value.source_since if existing and same else now if existing else None
    retention = Retention(**body.retention.model_dump()) if body.retention else None
    registration = Registration(
        disk, str(address), body.description, created, now, body.verification, retention, machine=machine,
        source_since=since,
        unprotected=_still_unprotected(existing.value if existing else None, str(address)),
    )  # fmt: skip
    await _register(api, registration, existing)
    # The disk is registered: what fails from here on is told, and is no refusal.
    told += await _tried("housekeeping makes the copy of the registration beside the backups", _keep_copy(api, registration))
    if existing and existing.value.source != registration.source:
        released = api.catalogue.release_source(existing.value.source, disk)
        told += await _tried("housekeeping frees the former source for another disk", released)
    headers: dict[str, str] = {}
    if body.first_backup:
        first = _first_backup(api, request, registration, headers)
        told += await _tried(f"no first backup was started; POST /api/disks/{disk}/backups", first)
    shown = await _shown(api, request, registration, told)
    shown.running = shown.running or headers.get("Operation-Location")
    return answer(200 if existing else 201, shown, headers)


async def _register(api: Api, registration: Registration, existing: Versioned[Registration] | None) -> None:
    """Claim the source and write the row, or leave both as they were. Raises RefusedError for a source of another disk."""
    claimed = await api.catalogue.source_holder(registration.source)
    holder = await api.catalogue.claim_source(registration.source, registration.disk)
    if holder != registration.disk:
        message = f"source {registration.source} is already protected as disk {holder}; use that id, or another source"
        raise RefusedError(409, "SourceAlreadyProtected", message, "source")
    try:
        await api.catalogue.put_registration(registration, existing.etag if existing else None)
    except (RowChangedError, RowExistsError):
        # Certainly not written. Whoever was faster may have registered this very source: then the claim is theirs too.
        row = await api.catalogue.registration(registration.disk)
        if claimed is None and (row is None or row.value.source != registration.source):
            await api.catalogue.release_source(registration.source, registration.disk)
        raise


async def _tried(consequence: str, duty: Awaitable[object]) -> list[str]:
    """Do what follows a change of a registration; a warning when that fails."""
    try:
        await duty
    except Exception as error:  # noqa: BLE001  whatever it is, the registration has changed
        log.warning("after a registration: %s: %s", type(error).__name__, redacted(str(error)))
        code = error.code if isinstance(error, BackupError) else type(error).__name__
        return [f"{consequence} ({code}: {redacted(shortened(str(error)))})"]
    return []


async def _check_succession(api: Api, disk: str, existing: Registration | None, address: Source) -> None:
    """Refuse to give a disk that has restore points of one source another one, by mistake: they would be taken for its own."""
    newest = await api.catalogue.points(disk, 1)
    former = existing.source if existing else newest[0].value.source if newest else str(address)
    if not newest or former == str(address):
        return
    message = (
        f"disk {disk} has restore points of {former}, and {address} is another disk; nothing was changed; register it under an "
        'id of its own, or, when it takes the place of the former one, say so with "followsOn": true'
    )
    raise RefusedError(409, "SourceChanged", message, "source")


def _still_unprotected(existing: Registration | None, source: str) -> str:
    """Why the disk stays unprotected: its machine uses another disk. Another source, or stopping and resuming the protection,
    ends that; other changes of the registration do not.
    """
    same = existing is not None and existing.protected and existing.source == source
    return existing.unprotected if existing and same else ""


def _machine(api: Api, request: DiskBody) -> Slot | None:
    """The machine that uses the disk, of the allow-list. It is not looked at before a restore needs it."""
    if request.machine is None:
        return None
    slot = request.machine.slot
    try:
        return api.tools.slot(slot.vm, slot.lun)
    except MachineRefusedError as error:
        raise RefusedError(400, error.code, str(error), "machine.vm") from error


async def _keep_copy(api: Api, registration: Registration) -> None:
    """Store the registration beside the backups: the row decides, and its copy brings it back if it is ever lost."""
    await api.tools.documents.put(registration_name(registration.disk), REGISTRATION.dump_json(registration).decode())


async def _first_backup(api: Api, request: Request, registration: Registration, headers: dict[str, str]) -> None:
    """Start a backup unless the disk's source has a restore point or the disk a run already; `headers` then name it."""
    row = await api.catalogue.head(registration.disk)
    pending = [run for run in await api.catalogue.runs(registration.disk, 1) if not run.ended_for_good]
    if pending or (row and row.value.pair and row.value.source == registration.source):
        return
    accepted = await begun(api, request, new_run(api, registration.disk, full=False))
    headers["Operation-Location"] = accepted.headers["Operation-Location"]


async def get_disk(api: Api, request: Request) -> Answer:
    """Show a disk."""
    return answer(200, await _shown(api, request, (await api.registration(disk_of(request))).value))


async def get_disks(api: Api, request: Request) -> Answer:
    """List the protected disks by id, paged by `top` and `after`."""
    top, after = top_of(request), id_of(request, "after", is_disk_id, "disk id")
    later = [disk for disk in await api.catalogue.disks() if disk > after]

    async def shown(disk: str) -> DiskAnswer | None:
        row = await api.catalogue.registration(disk)
        return await _shown(api, request, row.value) if row else None

    found, unreadable = await each(later[:top], shown)
    last = later[top - 1] if len(later) > top else None
    value = [one for one in found if one]
    return answer(200, DisksAnswer(value=value, unreadable=unreadable, next_link=request.next_link("disks", last)))


async def delete_disk(api: Api, request: Request) -> Answer:
    """Stop protecting a disk. Its restore points stay; a run at work ends as it would, and is listed and watched until then."""
    disk = disk_of(request)
    row = await api.registration(disk)
    stopped = replace(row.value, protected=False, updated=api.now())
    told: list[str] = []
    if row.value.protected:
        await api.catalogue.put_registration(stopped, row.etag)
        told += await _tried("housekeeping makes the copy of the registration beside the backups", _keep_copy(api, stopped))
    runs = await api.catalogue.runs(disk, RUNS_LOOKED_AT)
    if all(run.ended_for_good for run in runs):
        await api.catalogue.release_source(row.value.source, disk)
    # Else the disk keeps its claim, by which lists and watch know it: the watch gives it up when the run has ended.
    return answer(200, await _shown(api, request, stopped, told))


async def _shown(api: Api, request: Request, registration: Registration, warnings: Sequence[str] = ()) -> DiskAnswer:
    row = await api.catalogue.head(registration.disk)
    head = row.value if row else None
    running = await run_at_work(api.tools, head)
    runs = await api.catalogue.runs(registration.disk, RUNS_LOOKED_AT)
    url = request.run_url(running) if running else None
    now = api.now()
    upcoming = next_window(api.schedule, now) if registration.protected else None
    return DiskAnswer.of(registration, head, status_of(registration, head, runs, api.schedule, now), url, upcoming, warnings)


def _source(api: Api, name: str) -> Source:
    try:
        return parse_source(name, api.tools.source_accounts, api.tools.disk_groups)
    except ValueError as error:
        message = f"source {redacted(name)[:200]!r} is refused: {error}"
        raise RefusedError(400, "InvalidSource", message, "source") from error


async def _looked_at(api: Api, address: BlobAddress) -> list[str]:
    """Warnings about the page blob. Raises RefusedError for one that cannot be backed up."""
    return await _warnings(api, address, await _check_source(api, address))


async def _disk_looked_at(api: Api, address: DiskAddress) -> list[str]:
    """Warnings about the managed disk. Raises RefusedError for one that cannot be backed up."""
    disk = await api.tools.machines.managed_disk(address.id)
    if disk is None:
        message = f"source {address} does not exist; expected a managed disk; correct its resource id"
        raise RefusedError(400, "SourceNotFound", message, "source")
    machine, told = None, []
    if disk.machine:
        try:
            machine = await api.tools.machines.machine(disk.machine)
        except AccessDeniedError as error:
            why = f"{error.code}: {shortened(str(error))}"
            told.append(f"VM {disk.machine}, which uses the disk, could not be looked at ({why})")
        except MachineMissingError:
            pass  # deleted in this moment: nobody uses the disk
    if found := managed_source.faults(disk, machine, api.tools.snapshot_group):
        message = f"source {address} cannot be protected: {'; '.join(found)}"
        raise RefusedError(400, "SourceUnfit", message, "source")
    return told + managed_source.warnings(disk, machine)


async def _check_source(api: Api, address: BlobAddress) -> BlobProperties:
    """The source. Raises RefusedError for what cannot be backed up."""
    try:
        found = await api.tools.blobs.properties(address)
    except BlobMissingError as error:
        message = f"source {address} does not exist; expected a page blob"
        raise RefusedError(400, "SourceNotFound", message, "source") from error
    except HostUnknownError as error:
        raise RefusedError(400, error.code, f"source {address} is refused: {error}", "source") from error
    faults = []
    if not found.page_blob:
        faults.append("it is not a page blob")
    elif not 0 < found.size <= DISK_BYTES_MAX or found.size % PAGE:
        faults.append(f"it has {found.size} bytes, not whole pages of {PAGE} up to {DISK_BYTES_MAX}")
    if found.created < EARLIEST:
        # Page-range diffs exist for blobs created since 2016 (Get Page Ranges).
        faults.append(
            f"it was created {found.created:%Y-%m-%d}: page-range diffs need a blob created since 2016-01-01; copy it to "
            "a new blob"
        )
    if faults:
        message = f"source {address} cannot be protected: {'; '.join(faults)}"
        raise RefusedError(400, "SourceUnfit", message, "source")
    return found


async def _warnings(api: Api, address: BlobAddress, found: BlobProperties) -> list[str]:
    """What a restore of this disk could not do, and what would be left of it: better known now than on the day it is needed."""
    told = []
    if is_marked(found.metadata):
        told.append(
            f"{address} carries metadata of this app: a snapshot or a backup was copied onto it, or a restore never completed "
            "it. Snapshots that others take of it inherit them, are kept, and are told every night; remove the names that "
            "begin with pagekeeper_ from the blob's metadata"
        )
    end = await api.tools.blobs.read(address, "", ByteRange(found.size - FOOTER_BYTES, found.size))
    if faults := vhd_faults(end, found.size):
        told.append(_no_managed_disk(address, faults))
    return told


def _no_managed_disk(address: BlobAddress, faults: Sequence[str]) -> str:
    return (
        f"{address} can be backed up, and restored to a page blob, but not to a managed disk, which is made of a fixed VHD of "
        f"whole mebibytes and a footer: {'; '.join(faults)}"
    )
