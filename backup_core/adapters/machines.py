"""Virtual machines and managed disks, by Azure Resource Manager (azure-mgmt-compute)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from azure.core import MatchConditions
from azure.core.exceptions import HttpResponseError, ServiceRequestError, ServiceResponseError
from azure.core.rest import HttpRequest
from azure.mgmt.compute.models import Disk, VirtualMachine

from backup_core.domain.errors import (
    AccessDeniedError,
    BackupError,
    MachineBusyError,
    MachineChangedError,
    MachineMissingError,
    MachineRefusedError,
    ServiceUnavailableError,
    UnexpectedAnswerError,
)
from backup_core.domain.naming import parse_resource_id
from backup_core.domain.redaction import redacted
from backup_core.domain.repoint import Machine, MachineDisk, Power
from backup_core.ports import ManagedDisk

if TYPE_CHECKING:
    from collections.abc import Sequence

    from azure.core.polling import AsyncLROPoller
    from azure.mgmt.compute.aio import ComputeManagementClient

WAIT_SECONDS = 90.0
"""How long a change is waited for within a call; an activity is to end within minutes."""
RUN_TAG = "pagekeeper-run"
_BUSY = frozenset(
    {"Conflict", "AnotherOperationInProgress", "OperationPreempted", "RetryableError", "AttachDiskWhileBeingDetached"}
)
"""Another operation is under way: the same request succeeds later."""
_PERMISSIONS_VERSION = "2022-04-01"
_POWER: dict[str, Power] = {"running": "running", "stopped": "stopped", "deallocated": "deallocated"}


@contextmanager
def _translated(what: str) -> Iterator[None]:
    try:
        yield
    except HttpResponseError as error:
        raise _fault(error, what) from None
    except (ServiceRequestError, ServiceResponseError) as error:
        message = f"{what}: no answer ({type(error).__name__}); it may pass"
        raise ServiceUnavailableError(message) from None


def _fault(error: HttpResponseError, what: str) -> BackupError:
    """By status and code: a change that fails after it was accepted has the code alone."""
    status, code = error.status_code or 0, str(getattr(error.error, "code", "") or "")
    text = redacted(str(getattr(error.error, "message", "") or error.reason or "").splitlines()[0][:400])
    said = f"{what}: Azure answered {status} {code or 'without a code'} ({text})"
    if status == 404:
        return MachineMissingError(f"{said}; correct the resource id, or its resource group was removed")
    if status == 412 or code == "PreconditionFailed":
        return MachineChangedError(f"{said}; it was changed by somebody else in between; it is looked at again")
    if status in (401, 403):
        return AccessDeniedError(f"{said}; grant the app's identity the roles in the README on the machine's resource group")
    if status in (408, 429) or status >= 500:
        return ServiceUnavailableError(f"{said}; it may pass")
    if code in _BUSY:
        return MachineBusyError(f"{said}; another operation is under way; it may pass")
    advice = {
        "AcquireDiskLeaseFailed": "somebody holds a lease on the disk blob; release it, and restore again",
        "PropertyChangeNotAllowed": "Azure does not allow that change of an existing machine",
        "OperationNotAllowed": "VMs with unmanaged disks no longer start in public Azure since 2026-03-31: use a managed disk",
    }.get(code, "correct what Azure names, and restore again")
    return MachineRefusedError(f"{said}; {advice}")


class AzureMachines:
    """The Machines port on Azure Resource Manager."""

    def __init__(self, client: Callable[[str], ComputeManagementClient], wait_seconds: float = WAIT_SECONDS) -> None:
        """`client` gives the client of a subscription."""
        self._client, self._wait_seconds = client, wait_seconds

    async def machine(self, vm: str) -> Machine:
        """Virtual Machines, Get, with its instance view."""
        at = parse_resource_id(vm)
        with _translated(f"look at VM {at.name}"):
            found = await self._client(at.subscription).virtual_machines.get(at.group, at.name, expand="instanceView")
        return _machine(vm, found.as_dict(), found.as_dict(exclude_readonly=True))

    async def put_disk(self, machine: Machine, lun: int | None, disk: MachineDisk | None) -> bool:
        """Virtual Machines, Create Or Update, of the model as it is but for the slot, with If-Match."""
        at = parse_resource_id(machine.vm)
        slot = "as OS disk" if lun is None else f"at LUN {lun}"
        what = f"give VM {at.name} {disk.source if disk else 'no disk'} {slot}"
        with _translated(what):
            client = self._client(at.subscription)
            found = await client.virtual_machines.get(at.group, at.name)
            if not machine.etag:
                message = f"{what}: Azure tells no version of it, so that it cannot be changed on condition; nothing was sent"
                raise MachineRefusedError(message)
            if found.etag != machine.etag:
                message = f"{what}: it is at version {found.etag}, expected {machine.etag}; nothing was sent"
                raise MachineChangedError(message)
            body = found.as_dict(exclude_readonly=True)
            _replace(body["properties"]["storageProfile"], lun, disk)
            poller = await client.virtual_machines.begin_create_or_update(
                at.group, at.name, VirtualMachine(body), etag=machine.etag, match_condition=MatchConditions.IfNotModified
            )
            return await self._done(poller)

    async def deallocate(self, vm: str) -> bool:
        """Virtual Machines, Deallocate."""
        at = parse_resource_id(vm)
        with _translated(f"deallocate VM {at.name}"):
            return await self._done(await self._client(at.subscription).virtual_machines.begin_deallocate(at.group, at.name))

    async def start(self, vm: str) -> bool:
        """Virtual Machines, Start."""
        at = parse_resource_id(vm)
        with _translated(f"start VM {at.name}"):
            return await self._done(await self._client(at.subscription).virtual_machines.begin_start(at.group, at.name))

    async def managed_disk(self, disk: str) -> ManagedDisk | None:
        """Disks, Get."""
        at = parse_resource_id(disk)
        try:
            with _translated(f"look at managed disk {at.name}"):
                found = (await self._client(at.subscription).disks.get(at.group, at.name)).as_dict()
        except MachineMissingError:
            return None
        inside = found.get("properties", {})
        return ManagedDisk(
            disk=disk,
            state=inside.get("provisioningState", ""),
            run=(found.get("tags") or {}).get(RUN_TAG, ""),
            size_bytes=int(inside.get("diskSizeBytes", 0)),
            sku=(found.get("sku") or {}).get("name", ""),
            os_type=inside.get("osType", ""),
            generation=inside.get("hyperVGeneration", ""),
        )

    async def import_disk(self, wanted: ManagedDisk, source: str, location: str, zones: Sequence[str]) -> bool:
        """Disks, Create Or Update, importing a VHD."""
        at = parse_resource_id(wanted.disk)
        properties: dict[str, Any] = {"creationData": {"createOption": "Import", "sourceUri": source}}
        properties |= {"osType": wanted.os_type} if wanted.os_type else {}
        properties |= {"hyperVGeneration": wanted.generation} if wanted.generation else {}
        body: dict[str, Any] = {
            "location": location,
            "sku": {"name": wanted.sku},
            "tags": {RUN_TAG: wanted.run},
            "properties": properties,
        }
        body |= {"zones": list(zones)} if zones else {}
        with _translated(f"import managed disk {at.name}"):
            poller = await self._client(at.subscription).disks.begin_create_or_update(
                at.group, at.name, Disk(body), headers={"If-None-Match": "*"}
            )
            return await self._done(poller)

    async def permitted(self, resource: str, actions: Sequence[str]) -> dict[str, bool]:
        """Permissions, List For Resource (Microsoft.Authorization): what the caller may do there, without doing it."""
        at = parse_resource_id(resource)
        path = f"{resource}/providers/Microsoft.Authorization/permissions?api-version={_PERMISSIONS_VERSION}"
        with _translated(f"list the permissions on {at.name}"):
            answer = await self._client(at.subscription).send_request(HttpRequest("GET", path))
            answer.raise_for_status()
        entries = answer.json().get("value")
        if not isinstance(entries, list):
            message = f"the list of permissions on {at.name} cannot be read"
            raise UnexpectedAnswerError(message)
        return {action: any(_grants(entry, action) for entry in entries) for action in actions}

    async def _done(self, poller: AsyncLROPoller[Any]) -> bool:
        """Whether the change ended within the wait; raises what made it fail."""
        try:
            await asyncio.wait_for(poller.result(), self._wait_seconds)
        except TimeoutError:
            return False
        return True


def _grants(entry: dict[str, Any], action: str) -> bool:
    def matches(patterns: list[str]) -> bool:
        return any(fnmatchcase(action.lower(), pattern.lower()) for pattern in patterns)

    return matches(entry.get("actions", [])) and not matches(entry.get("notActions", []))


def _machine(vm: str, found: dict[str, Any], writable: dict[str, Any]) -> Machine:
    inside = found.get("properties", {})
    view, storage = inside.get("instanceView") or {}, writable.get("properties", {}).get("storageProfile") or {}
    codes = [str(status.get("code", "")) for status in view.get("statuses") or []]
    power = next((code.partition("/")[2] for code in codes if code.startswith("PowerState/")), "")
    disks = [_disk(disk, disk["lun"]) for disk in storage.get("dataDisks") or []]
    if storage.get("osDisk"):
        disks.insert(0, _disk(storage["osDisk"], None))
    return Machine(
        vm=vm,
        etag=found.get("etag", ""),
        state=inside.get("provisioningState", ""),
        power=_POWER.get(power, "changing"),
        location=found.get("location", ""),
        disks=tuple(disks),
        zones=tuple(found.get("zones") or ()),
        generation=view.get("hyperVGeneration", ""),
    )


_OWN = frozenset(
    {"lun", "name", "vhd", "managedDisk", "caching", "diskSizeGB", "createOption", "osType", "image", "toBeDetached"}
)
"""What a machine says of a disk that has a field of its own, or is not to be said again."""


def _disk(disk: dict[str, Any], lun: int | None) -> MachineDisk:
    managed = disk.get("managedDisk")
    return MachineDisk(
        name=disk.get("name", ""),
        source=managed["id"] if managed else (disk.get("vhd") or {}).get("uri", ""),
        managed=bool(managed),
        lun=lun,
        caching=disk.get("caching", "None"),
        size_gb=disk.get("diskSizeGB"),
        os_type=disk.get("osType", ""),
        model={name: value for name, value in disk.items() if name not in _OWN},
    )


def _replace(storage: dict[str, Any], lun: int | None, disk: MachineDisk | None) -> None:
    """Put the disk into the slot of a storage profile, keeping what is not the disk's own."""
    if lun is None:
        assert disk is not None  # no rule ever leaves a machine without its OS disk
        kept = {name: value for name, value in storage["osDisk"].items() if name not in ("vhd", "managedDisk", "diskSizeGB")}
        storage["osDisk"] = kept | {"name": disk.name} | _source(disk)
        return
    others = [one for one in storage.get("dataDisks") or [] if one["lun"] != lun]
    if disk is not None:
        own = {"lun": lun, "name": disk.name, "createOption": "Attach", "caching": disk.caching}
        others.append(disk.model | own | _source(disk))
    storage["dataDisks"] = others


def _source(disk: MachineDisk) -> dict[str, Any]:
    size = {"diskSizeGB": disk.size_gb} if disk.size_gb else {}
    return size | ({"managedDisk": {"id": disk.source}} if disk.managed else {"vhd": {"uri": disk.source}})
