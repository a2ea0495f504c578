# Long: all inputs of a restore, read in one order.
"""The inputs of a restore: everything is read and validated, nothing is changed."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from typing import TYPE_CHECKING

from backup_core.domain import managed_source
from backup_core.domain.digests import digest_of
from backup_core.domain.errors import (
    AccountIdMissingError,
    BlobMissingError,
    MachineMissingError,
    MachineRefusedError,
    SlotTakenError,
)
from backup_core.domain.managed import CONFIDENTIAL, exchange_fault, replacement, upload_fault
from backup_core.domain.naming import (
    DISK_NAME,
    BlobAddress,
    managed_disk_id,
    parse_blob_url,
    parse_resource_id,
    restored_blob_name,
    restored_disk_name,
    stamp_of,
)
from backup_core.domain.ranges import ByteRange
from backup_core.domain.records import Restoring, Slot
from backup_core.domain.vhd import FOOTER_BYTES, vhd_faults
from backup_core.operations.refusal import RefusedError
from backup_core.operations.restore_points import check_backup, point_of
from backup_core.protocol.machines import former_disk, present_disk

if TYPE_CHECKING:
    from backup_core.domain.managed import ManagedDisk
    from backup_core.domain.records import Registration, RestorePoint, Run, Versioned
    from backup_core.domain.repoint import Machine, MachineDisk
    from backup_core.protocol.tools import Tools

DIGEST_LENGTH = 40
"""Of a plan's digest, in hexadecimal digits."""
PAST_RUNS_MAX = 50
"""Newest runs of the disk that are read: for another restore in progress, and for the estimate."""


@dataclass(frozen=True)
class RestoreWish:
    """The caller's request; empty fields and None are derived."""

    restore_point: str
    """A restore point's id, or `latest`."""
    time: datetime | None
    """Instead: the newest restore point that was not taken later."""
    managed: bool
    """Whether a managed disk is made."""
    account: str
    """Blob endpoint, of a page blob or of what a managed disk is imported from, as the next two."""
    container: str
    blob: str
    disk: str
    """Name of the managed disk."""
    slot: Slot | None
    repoint: bool
    stop_vm: bool
    adopt: bool | None


@dataclass(frozen=True)
class RestoreInputs:
    """The facts that a restore is decided on."""

    registration: Versioned[Registration] | None
    point: RestorePoint
    restoring: Restoring
    named_by: str
    """The run that the new disk's name is derived from: this one, or the one that a dry run stood for. Empty when the caller
    named it.
    """
    machine: Machine | None
    present: MachineDisk | None
    """The disk that the machine has now."""
    past: tuple[Run, ...]
    """Runs of the disk, newest first."""
    former: ManagedDisk | None = None
    """The managed disk that the machine has now, if a managed disk is to be made."""
    made: ManagedDisk | None = None
    """The managed disk to be made."""
    unfit: tuple[str, ...] = ()
    """Reasons why backups cannot continue from it although they would by default, in words."""
    why_imported: str = ""
    """Reason why it is imported although it would be uploaded by default, in words."""

    @property
    def hash(self) -> str:
        """Digest of everything that makes it this restore, and the stamp of its derived names. So the call that presents the
        hash derives the same names. At most 64 characters, the limit of `planHash`.
        """
        seen = {
            "point": self.point.point,
            "digest": self.point.digest,
            "snapshot": self.point.backup_snapshot,
            "registration": self.registration.etag if self.registration else None,
            "machine": self.machine.etag if self.machine else None,
            "wanted": asdict(self.restoring),
        }
        return digest_of(json.dumps(seen, sort_keys=True))[:DIGEST_LENGTH] + stamp_of(self.named_by)


async def restore_inputs(tools: Tools, disk: str, wish: RestoreWish, run: str, named_by: str) -> RestoreInputs:
    """The validated inputs of a restore; names that are not given are derived from the run `named_by`. Raises
    RefusedError; changes nothing.
    """
    registration = await tools.catalogue.registration(disk)
    adopts, unfit = _adopts(wish, registration.value if registration else None), []
    point = await point_of(tools, disk, wish, registration.value if registration else None)
    await check_backup(tools, point)
    source = registration.value.source if registration else point.source
    target = None if wish.managed and not _imports(tools, wish) else await _free_target(tools, wish, source, named_by)
    slot = wish.slot or (registration.value.machine if registration else None)
    place = await _place(tools, wish, slot, source)
    managed, former, disk_made, why_imported = "", None, None, ""
    if wish.managed and place:
        managed = await _managed(tools, disk, wish, place.machine, point, named_by)
        former = await former_disk(tools, place.machine, place.slot.lun)
        if wish.repoint and former:
            _must_be_exchangeable(former, place.slot.vm)
        disk_made = replacement(managed, run, "", point.size, place.machine, place.slot.lun, former)
        if target is None and (why_imported := upload_fault(disk_made)):
            target = await _free_target(tools, wish, source, named_by, why_imported)
        if target is not None:
            disk_made = _imported(tools, disk_made, target)
        unfit = _unfit(tools, disk_made, place.machine) if adopts else []
        if unfit and wish.adopt:
            message = f"adopt is true, but the new disk could not be backed up: {'; '.join(unfit)}; nothing was done"
            raise RefusedError(409, "NotAdoptable", message, "adopt")
    restoring = Restoring(
        point=point.point,
        target=target.url if target else managed,
        managed_disk=managed,
        slot=place.slot if place else slot,
        repoint=wish.repoint,
        stop_vm=wish.stop_vm,
        adopt=adopts and not unfit,
        old_disk=place.present.source if place and place.present else "",
    )
    named = bool(wish.blob or target is None) and bool(wish.disk or not managed)
    past = tuple(await tools.catalogue.runs(disk, PAST_RUNS_MAX))
    return RestoreInputs(
        registration,
        point,
        restoring,
        "" if named else named_by,
        place.machine if place else None,
        place.present if place else None,
        past,
        former,
        disk_made,
        tuple(unfit),
        why_imported,
    )


# -- the new disk ---------------------------------------------------------------------------------------------------------


def _imports(tools: Tools, wish: RestoreWish) -> bool:
    """Whether the managed disk is to be imported: the caller names the blob that it is made of, or the setting says so."""
    return bool(wish.account or wish.container or wish.blob) or tools.disk_restore == "import"


async def _free_target(tools: Tools, wish: RestoreWish, source: str, run: str, why: str = "") -> BlobAddress:
    """The new blob, where nothing is. `why` one is needed. Raises RefusedError."""
    target = _target(tools, wish, source, run, why)
    await _must_be_free(tools, target)
    return target


def _target(tools: Tools, wish: RestoreWish, source: str, run: str, why: str) -> BlobAddress:
    accounts = tools.source_accounts
    try:
        former = parse_blob_url(source, accounts)
    except ValueError:
        former = None
    account = wish.account.rstrip("/") or (former.account if former else "")
    container = wish.container or (former.container if former else "")
    if not account or not container:
        needed = f"{why}, of a page blob; " if why else ""
        own = f"the disk's own account is not one this app may write ({source})"
        otherwise = ", or set DISK_RESTORE to upload" if wish.managed and not why else ""
        message = f"{needed}{own}; name target.account and target.container{otherwise}"
        raise RefusedError(400, "TargetNeeded", message, "target")
    if account not in accounts:
        message = f"target.account {account[:200]!r} is not one of the setting SOURCE_ACCOUNTS"
        raise RefusedError(400, "InvalidTarget", message, "target.account")
    name = wish.blob or restored_blob_name(former.name if former else source.rpartition("/")[2], run)
    try:
        return parse_blob_url(BlobAddress(account, container, name).url, accounts)
    except ValueError as error:
        message = f"target {account}/{container}/{name[:200]!r} is refused: {error}"
        raise RefusedError(400, "InvalidTarget", message, "target.blob") from error


async def _must_be_free(tools: Tools, target: BlobAddress) -> None:
    """Check that nothing has the new disk's name. Its creation has that condition too. Raises RefusedError."""
    try:
        async for one in tools.blobs.listed(target.account, target.container, target.name):
            if one.name == target.name:
                message = f"target {target} exists; a restore never writes onto anything that exists: name another one"
                raise RefusedError(409, "TargetExists", message, "target.blob")
    except BlobMissingError as error:
        message = f"container {target.account}/{target.container} does not exist; create it, or name another one"
        raise RefusedError(400, "InvalidTarget", message, "target.container") from error


async def _managed(tools: Tools, disk: str, wish: RestoreWish, machine: Machine, point: RestorePoint, run: str) -> str:
    """The id of the managed disk to be made: free, and of an image that Azure can import."""
    name = wish.disk or restored_disk_name(disk, run)
    if not DISK_NAME.fullmatch(name):
        message = f"target.disk {name[:100]!r} is not a name of a managed disk: 1 to 80 letters, digits, '_', '-' and '.'"
        raise RefusedError(400, "InvalidTarget", message, "target.disk")
    managed = managed_disk_id(machine.vm, name)
    if await tools.machines.managed_disk(managed):
        message = f"managed disk {managed} exists; a restore never replaces one: name another"
        raise RefusedError(409, "TargetExists", message, "target.disk")
    if machine.security_type == CONFIDENTIAL:
        message = (
            f"VM {machine.vm} is a confidential VM: its disks need a guest state that no page blob has; nothing was done; "
            "restore as a page blob, and make another VM of it"
        )
        raise RefusedError(409, "ConfidentialMachine", message, "machine.vm")
    footer = ByteRange(point.size - FOOTER_BYTES, point.size)
    faults = vhd_faults(await tools.blobs.read(tools.head(point.head), point.backup_snapshot, footer), point.size)
    if faults:
        message = (
            f"restore point {point.point} cannot become a managed disk: {'; '.join(faults)}; expected a fixed VHD of whole "
            "mebibytes and a footer; restore it as a page blob"
        )
        raise RefusedError(409, "NotVhd", message, "target.kind")
    return managed


def _must_be_exchangeable(former: ManagedDisk, vm: str) -> None:
    """Raise RefusedError where the machine must not be given another disk in place of its present one."""
    if fault := exchange_fault(former, vm):
        code, words = fault
        raise RefusedError(409, code, f"{words}; nothing was done", "repoint")


def _imported(tools: Tools, made: ManagedDisk, target: BlobAddress) -> ManagedDisk:
    """The managed disk to be made, as imported from the target. Raises RefusedError where no import could name its account."""
    try:
        tools.account_id(target)
    except AccountIdMissingError as error:
        raise RefusedError(409, error.code, str(error), "target.account") from error
    return replace(made, source=target.url)


def _unfit(tools: Tools, made: ManagedDisk, machine: Machine | None) -> list[str]:
    """Why the managed disk to be made could not be protected."""
    if not tools.may_read(made.disk):
        group = parse_resource_id(made.disk).group
        return [f"its resource group {group} is not one of the setting DISK_GROUPS; add it there, and restore again"]
    return managed_source.faults(made, machine, tools.snapshot_group)


# -- the machine ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Place:
    """The slot of a machine, as it is now."""

    slot: Slot
    machine: Machine
    present: MachineDisk | None


async def _place(tools: Tools, wish: RestoreWish, named: Slot | None, source: str) -> _Place | None:
    """The machine and its present disk; None if the restore needs no machine. Raises RefusedError."""
    if not wish.repoint and not wish.managed:
        return None
    if named is None:
        message = (
            'machine is missing, and the disk\'s registration names none; expected {"vm": "/subscriptions/…", "lun": 0} '
            "(a managed disk is made beside its machine)"
        )
        raise RefusedError(400, "MachineNeeded", message, "machine")
    try:
        slot = tools.slot(named.vm, named.lun)
        machine = await tools.machines.machine(slot.vm)
        present = present_disk(machine, slot, source, managed=wish.managed) if wish.repoint else machine.at(slot.lun)
    except (MachineRefusedError, MachineMissingError) as error:
        raise RefusedError(400, error.code, str(error), "machine.vm") from error
    except SlotTakenError as error:
        raise RefusedError(409, error.code, str(error), "machine.lun") from error
    return _Place(slot, machine, present)


def _adopts(wish: RestoreWish, registration: Registration | None) -> bool:
    """Whether backups continue from the new disk: by default when the machine gets it."""
    protected = registration is not None and registration.protected
    if wish.adopt is False and wish.repoint and protected and not wish.managed:
        message = "adopt is false, but the machine is to use the new disk: backups of the old one would protect nothing"
        raise RefusedError(400, "InvalidRequest", message, "adopt")
    if wish.adopt and not protected:
        message = "adopt is true, but the disk is not protected; PUT it with the new disk as its source afterwards"
        raise RefusedError(409, "NotProtected", message, "adopt")
    return bool(wish.adopt) or (wish.adopt is None and wish.repoint and protected)
