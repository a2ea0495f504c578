"""Calls that start restores: everything is looked at first, nothing is touched; a dry run ends there, with a plan."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from hashlib import sha256
from typing import TYPE_CHECKING

from backup_core.api.allocation import allocation_of
from backup_core.api.http import (
    Answer,
    RefusedError,
    Request,
    answer,
    disk_of,
    parsed,
    repeatability_key,
)
from backup_core.api.models import RestoreBody, RestorePlanAnswer
from backup_core.api.plans import Probe, shown_plan
from backup_core.api.runs import begun, new_run, repeated
from backup_core.domain.ending import dead
from backup_core.domain.errors import (
    AccountIdMissingError,
    BackupError,
    BlobMissingError,
    MachineMissingError,
    MachineRefusedError,
    SlotTakenError,
    SnapshotMissingError,
)
from backup_core.domain.managed import CONFIDENTIAL, differences, replacement
from backup_core.domain.naming import (
    DISK_NAME,
    BlobAddress,
    is_point_id,
    managed_disk_id,
    parse_blob_url,
    parse_resource_id,
    restored_blob_name,
    restored_disk_name,
    run_of_stamp,
    stamp_of,
)
from backup_core.domain.ranges import ByteRange
from backup_core.domain.records import Restoring, Slot
from backup_core.domain.vhd import FOOTER_BYTES, vhd_faults
from backup_core.protocol.machines import former_disk, present_disk

if TYPE_CHECKING:
    from backup_core.api.context import Api
    from backup_core.domain.managed import ManagedDisk
    from backup_core.domain.records import Registration, RestorePoint, Run, Versioned
    from backup_core.domain.repoint import Machine, MachineDisk

PER_PAGE = 1000
DIGEST_LENGTH = 40
"""Of a plan's digest, in hexadecimal digits."""
PAST_RUNS_MAX = 50
"""Runs of the disk among which another restore is looked for, and past ones to learn from."""


@dataclass(frozen=True)
class RestoreInputs:
    """What a restore was decided on."""

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

    @property
    def hash(self) -> str:
        """Digest of everything that, changed, makes it another restore; and what derived names were made of, so that the call
        that presents it makes the same ones. 64 characters at most, as `planHash` may have.
        """
        seen = {
            "point": self.point.point,
            "digest": self.point.digest,
            "snapshot": self.point.backup_snapshot,
            "registration": self.registration.etag if self.registration else None,
            "machine": self.machine.etag if self.machine else None,
            "wanted": asdict(self.restoring),
        }
        return sha256(json.dumps(seen, sort_keys=True).encode()).hexdigest()[:DIGEST_LENGTH] + stamp_of(self.named_by)


async def post_restore(api: Api, request: Request) -> Answer:
    """Restore a disk to a restore point, or show what that would do. Repeated under the same key it is the same restore."""
    disk = disk_of(request)
    body = parsed(request, RestoreBody)
    key = repeatability_key(request)
    digest = sha256(f"restore {disk} {body.model_dump_json()}".encode()).hexdigest()
    if key and not body.dry_run and (known := await api.catalogue.request(disk, key)):
        return await repeated(api, request, known, digest)
    run = replace(new_run(api, disk, full=False), operation="restore")
    planned = run_of_stamp(disk, (body.plan_hash or "")[DIGEST_LENGTH:]) or run.run
    inputs = await looked_at(api, disk, body, run.run, planned)
    probes = await _probes(api, inputs)
    if body.dry_run:
        return answer(200, await _plan(api, inputs, probes))
    if body.plan_hash and body.plan_hash != inputs.hash:
        message = (
            f"disk {disk}: the plan is of another restore than this one to restore point {inputs.point.point}: this request "
            "differs from its dry run, or the restore point, the registration or the machine has changed since; nothing was "
            "done; make the dry run again with this very body"
        )
        raise RefusedError(412, "PlanChanged", message, "planHash")
    denied = [probe.action for probe in probes if probe.state == "denied"]
    if denied:
        may_not = f"the app's identity may not {', '.join(denied)}"
        message = f"{may_not}; grant it the role Pagekeeper machine there (docs/security.md); nothing was done"
        raise RefusedError(403, "PermissionMissing", message)
    await _no_other(api, request, inputs)
    return await begun(api, request, replace(run, restore=inputs.restoring), key, digest)


async def looked_at(api: Api, disk: str, request: RestoreBody, run: str, named_by: str) -> RestoreInputs:
    """Everything a restore rests on, validated; names that are not given are derived from the run `named_by`. Raises
    RefusedError; changes nothing.
    """
    registration = await api.catalogue.registration(disk)
    adopts = _adopts(request, registration.value if registration else None)
    point = await _point(api, disk, request, registration.value if registration else None)
    await _check_backup(api, point)
    target = _target(api, request, registration.value.source if registration else point.source, named_by)
    await _must_be_free(api, target)
    slot, machine, present = await _machine(api, request, registration.value if registration else None, point)
    managed, former, disk_made = "", None, None
    if request.target.kind == "managedDisk":
        managed = await _managed(api, disk, request, machine, point, named_by)
        former, disk_made = await _made_of(api, managed, run, target, point, machine, slot)
    restoring = Restoring(
        point=point.point,
        target=target.url,
        managed_disk=managed,
        slot=slot,
        repoint=request.repoint,
        stop_vm=request.stop_vm,
        adopt=adopts,
        old_disk=present.source if present else "",
    )
    named = bool(request.target.blob) and bool(request.target.disk or not managed)
    past = tuple(await api.catalogue.runs(disk, PAST_RUNS_MAX))
    return RestoreInputs(registration, point, restoring, "" if named else named_by, machine, present, past, former, disk_made)


# -- the point --------------------------------------------------------------------------------------------------------


async def _point(api: Api, disk: str, request: RestoreBody, registration: Registration | None) -> RestorePoint:
    if request.time:
        rows = await api.catalogue.points(disk, 1, "", "available", None, request.time + timedelta(microseconds=1))
        if not rows:
            oldest = await _oldest(api, disk)
            told = f"the oldest is {oldest.point}, taken {oldest.source_snapshot}" if oldest else "it has none at all"
            message = f"disk {disk} has no restore point from {request.time.isoformat()} or before; {told}"
            raise RefusedError(404, "RestorePointNotFound", message, "time")
        return rows[0].value
    if request.restore_point == "latest":
        return await _latest(api, disk, registration)
    if not is_point_id(request.restore_point):
        message = (
            f"{request.restore_point[:80]!r} is not a restore point id; expected one of the disk's restore points, or 'latest'"
        )
        raise RefusedError(400, "InvalidRestorePointId", message, "restorePoint")
    row = await api.catalogue.point(disk, request.restore_point)
    if row is None:
        message = f"disk {disk} has no restore point {request.restore_point}"
        raise RefusedError(404, "RestorePointNotFound", message, "restorePoint")
    if row.value.state != "available":
        message = (
            f"restore point {request.restore_point} of disk {disk} is {row.value.state}; only available ones can be restored"
        )
        raise RefusedError(409, "RestorePointUnavailable", message, "restorePoint")
    return row.value


async def _latest(api: Api, disk: str, registration: Registration | None) -> RestorePoint:
    """The newest point of the disk's present source, or of the disk where none is registered."""
    newest, after = None, ""
    while page := await api.catalogue.points(disk, PER_PAGE if after else 1, after, "available"):
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


async def _oldest(api: Api, disk: str) -> RestorePoint | None:
    oldest, after = None, ""
    while page := await api.catalogue.points(disk, PER_PAGE, after, "available"):
        oldest = page[-1].value
        after = oldest.point
    return oldest


async def _check_backup(api: Api, point: RestorePoint) -> None:
    """The backup snapshot is there, in full length."""
    blob = api.restore_tools.head(point.head)
    try:
        found = await api.restore_tools.blobs.properties(blob, point.backup_snapshot)
    except (BlobMissingError, SnapshotMissingError) as error:
        message = (
            f"restore point {point.point}: its backup snapshot is gone ({error}); POST /api/catalogue/rebuild tells which are"
        )
        raise RefusedError(409, "RestorePointUnavailable", message, "restorePoint") from error
    if found.size != point.size:
        message = (
            f"restore point {point.point}: its backup snapshot has {found.size} bytes, expected {point.size}; it is not used"
        )
        raise RefusedError(409, "RestorePointUnavailable", message, "restorePoint")


# -- the new disk ---------------------------------------------------------------------------------------------------------


def _target(api: Api, request: RestoreBody, source: str, run: str) -> BlobAddress:
    accounts = api.restore_tools.source_accounts
    try:
        former = parse_blob_url(source, accounts)
    except ValueError:
        former = None
    account = (request.target.account or "").rstrip("/") or (former.account if former else "")
    container = request.target.container or (former.container if former else "")
    if not account or not container:
        message = f"the disk's own account is not one this app may write ({source}); name target.account and target.container"
        raise RefusedError(400, "TargetNeeded", message, "target")
    if account not in accounts:
        message = f"target.account {account[:200]!r} is not one of the setting SOURCE_ACCOUNTS"
        raise RefusedError(400, "InvalidTarget", message, "target.account")
    name = request.target.blob or restored_blob_name(former.name if former else source.rpartition("/")[2], run)
    try:
        return parse_blob_url(BlobAddress(account, container, name).url, accounts)
    except ValueError as error:
        message = f"target {account}/{container}/{name[:200]!r} is refused: {error}"
        raise RefusedError(400, "InvalidTarget", message, "target.blob") from error


async def _must_be_free(api: Api, target: BlobAddress) -> None:
    """Nothing has the new disk's name. What is created there later is created only if that is still so."""
    try:
        async for one in api.restore_tools.blobs.listed(target.account, target.container, target.name):
            if one.name == target.name:
                message = f"target {target} exists; a restore never writes onto anything that exists: name another one"
                raise RefusedError(409, "TargetExists", message, "target.blob")
    except BlobMissingError as error:
        message = f"container {target.account}/{target.container} does not exist; create it, or name another one"
        raise RefusedError(400, "InvalidTarget", message, "target.container") from error


async def _managed(api: Api, disk: str, request: RestoreBody, machine: Machine | None, point: RestorePoint, run: str) -> str:
    """The id of the managed disk to be made: free, and of an image that Azure can import."""
    assert machine is not None  # _machine has seen to it
    name = request.target.disk or restored_disk_name(disk, run)
    if not DISK_NAME.fullmatch(name):
        message = f"target.disk {name[:100]!r} is not a name of a managed disk: 1 to 80 letters, digits, '_', '-' and '.'"
        raise RefusedError(400, "InvalidTarget", message, "target.disk")
    managed = managed_disk_id(machine.vm, name)
    if await api.restore_tools.machines.managed_disk(managed):
        message = f"managed disk {managed} exists; a restore never replaces one: name another"
        raise RefusedError(409, "TargetExists", message, "target.disk")
    if machine.security_type == CONFIDENTIAL:
        message = (
            f"VM {machine.vm} is a confidential VM: its disks need a guest state that no page blob has; nothing was done; "
            "restore as a page blob, and make another VM of it"
        )
        raise RefusedError(409, "ConfidentialMachine", message, "machine.vm")
    footer = ByteRange(point.size - FOOTER_BYTES, point.size)
    faults = vhd_faults(
        await api.restore_tools.blobs.read(api.restore_tools.head(point.head), point.backup_snapshot, footer), point.size
    )
    if faults:
        message = (
            f"restore point {point.point} cannot become a managed disk: {'; '.join(faults)}; expected a fixed VHD of whole "
            "mebibytes and a footer; restore it as a page blob"
        )
        raise RefusedError(409, "NotVhd", message, "target.kind")
    return managed


async def _made_of(
    api: Api, managed: str, run: str, target: BlobAddress, point: RestorePoint, machine: Machine | None, slot: Slot | None
) -> tuple[ManagedDisk | None, ManagedDisk]:
    """The managed disk in the machine's slot, and the one to be made. Raises RefusedError where no import could name its
    account.
    """
    assert machine is not None  # _machine has seen to both
    assert slot is not None
    try:
        api.restore_tools.account_id(target)
    except AccountIdMissingError as error:
        raise RefusedError(409, error.code, str(error), "target.account") from error
    former = await former_disk(api.restore_tools, machine, slot.lun)
    return former, replacement(managed, run, target.url, point.size, machine, slot.lun, former)


# -- the machine ------------------------------------------------------------------------------------------------------------


async def _machine(
    api: Api, request: RestoreBody, registration: Registration | None, point: RestorePoint
) -> tuple[Slot | None, Machine | None, MachineDisk | None]:
    """The machine that is concerned, and the disk it has there; nothing of it is looked at when none is."""
    named = request.machine.slot if request.machine else registration.machine if registration else None
    if not request.repoint and request.target.kind == "pageBlob":
        return named, None, None
    if named is None:
        message = (
            'machine is missing, and the disk\'s registration names none; expected {"vm": "/subscriptions/…", "lun": 0} '
            "(a managed disk is made beside its machine)"
        )
        raise RefusedError(400, "MachineNeeded", message, "machine")
    managed = request.target.kind == "managedDisk"
    try:
        slot = api.restore_tools.slot(named.vm, named.lun)
        machine = await api.restore_tools.machines.machine(slot.vm)
        source = registration.source if registration else point.source
        present = present_disk(machine, slot, source, managed=managed) if request.repoint else machine.at(slot.lun)
    except (MachineRefusedError, MachineMissingError) as error:
        raise RefusedError(400, error.code, str(error), "machine.vm") from error
    except SlotTakenError as error:
        raise RefusedError(409, error.code, str(error), "machine.lun") from error
    return slot, machine, present


def _adopts(request: RestoreBody, registration: Registration | None) -> bool:
    """Whether backups go on from the new disk: with a page blob in the machine they do, else only when asked for."""
    protected = registration is not None and registration.protected
    managed = request.target.kind == "managedDisk"
    if request.adopt is False and request.repoint and protected and not managed:
        message = "adopt is false, but the machine is to use the new disk: backups of the old one would protect nothing"
        raise RefusedError(400, "InvalidRequest", message, "adopt")
    if request.adopt and managed:
        message = "adopt is true, but managed disks are not backed up; leave adopt out"
        raise RefusedError(400, "InvalidRequest", message, "adopt")
    if request.adopt and not protected:
        message = "adopt is true, but the disk is not protected; PUT it with the new disk as its source afterwards"
        raise RefusedError(409, "NotProtected", message, "adopt")
    return bool(request.adopt) or (request.repoint and protected and not managed)


async def _no_other(api: Api, request: Request, inputs: RestoreInputs) -> None:
    """No other restore of the disk is about to give it another source. Racing ones are told apart by the disk's ownership."""
    mine = inputs.restoring
    if not (mine.repoint or mine.adopt):
        return
    now = await api.catalogue.now()
    for run in inputs.past:
        if run.restore is None or run.ended_for_good or not (run.restore.repoint or run.restore.adopt):
            continue
        row = await api.catalogue.run(run.disk, run.run)
        if row and not row.value.ended_for_good and not dead(row, now):
            url = request.run_url(run.run)
            message = f"restore {run.run} of disk {run.disk} is at work and will change its source; follow it at {url}"
            raise RefusedError(409, "RestoreRunning", message, url, headers={"Location": url})


# -- what is shown before anything happens ----------------------------------------------------------------------------------


async def _probes(api: Api, inputs: RestoreInputs) -> list[Probe]:
    """What harmless requests say of each permission; what cannot be asked is unknown."""
    target = api.restore_tools.source(inputs.restoring.target)
    probes = [Probe("read the backup snapshot", "granted")]
    try:
        writes = "granted" if await api.restore_tools.blobs.may_write(target.account, target.container) else "denied"
    except BackupError:
        writes = "unknown"
    probes.append(Probe(f"write blobs in {target.account}/{target.container}", writes))  # type: ignore[arg-type]
    if inputs.machine is None:
        return probes
    actions = ["Microsoft.Compute/virtualMachines/write"] if inputs.restoring.repoint else []
    if inputs.restoring.repoint and (inputs.restoring.stop_vm or (inputs.restoring.slot and inputs.restoring.slot.lun is None)):
        actions += ["Microsoft.Compute/virtualMachines/deallocate/action", "Microsoft.Compute/virtualMachines/start/action"]
    actions += ["Microsoft.Compute/disks/write"] if inputs.restoring.managed_disk else []
    probes.append(Probe("Microsoft.Compute/virtualMachines/read", "granted"))
    try:
        permitted = await api.restore_tools.machines.permitted(inputs.machine.vm, actions)
    except BackupError:
        return probes + [Probe(action, "unknown") for action in actions]
    probes += [Probe(action, "granted" if permitted[action] else "denied") for action in actions]
    return probes + [await _linked(api, *one) for one in _links(inputs)]


def _links(inputs: RestoreInputs) -> list[tuple[str, str]]:
    """What Azure asks for on other resources: those that the new disk names, and the machine's data disks of other groups, for
    the list of data disks is sent whole. Actions, each with a resource's id.
    """
    made, slot, machine = inputs.made, inputs.restoring.slot, inputs.machine
    named = [
        ("Microsoft.Compute/diskEncryptionSets/read", made.encryption_set if made else ""),
        ("Microsoft.Compute/diskAccesses/read", made.disk_access if made else ""),
    ]
    if inputs.restoring.repoint and machine and slot and slot.lun is not None:
        group = parse_resource_id(machine.vm).group_id
        others = [one.source for one in machine.disks if one.managed and one.lun not in (None, slot.lun)]
        named += [("Microsoft.Compute/disks/write", one) for one in others if parse_resource_id(one).group_id != group]
    return [(action, resource) for action, resource in named if resource]


async def _linked(api: Api, action: str, resource: str) -> Probe:
    name = f"{action} on {resource}"
    try:
        permitted = await api.restore_tools.machines.permitted(resource, [action])
    except BackupError:
        return Probe(name, "unknown")
    return Probe(name, "granted" if permitted[action] else "denied")


async def _plan(api: Api, inputs: RestoreInputs, probes: list[Probe]) -> RestorePlanAnswer:
    """The plan of a dry run."""
    point = inputs.point
    plan = shown_plan(
        inputs.restoring,
        point,
        await allocation_of(api.restore_tools, point),
        inputs.past,
        probes,
        inputs.hash,
        full=api.restore_verification == "full",
        source=inputs.registration.value.source if inputs.registration else point.source,
    )
    told = differences(inputs.former, inputs.made) if inputs.made else []
    return plan.model_copy(update={"warnings": [*plan.warnings, *told]})
