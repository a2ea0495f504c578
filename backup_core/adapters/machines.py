"""Virtual machines and managed disks, by Azure Resource Manager (azure-mgmt-compute)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from azure.core import MatchConditions
from azure.core.pipeline.policies import AsyncRetryPolicy
from azure.core.rest import HttpRequest
from azure.mgmt.compute.models import Disk, VirtualMachineUpdate

from backup_core.adapters.arm import WAIT_SECONDS, Kind, translated
from backup_core.adapters.machine_models import changed_storage, disk_body, grants, machine_of, managed_disk_of
from backup_core.domain.errors import (
    MachineBusyError,
    MachineChangedError,
    MachineMissingError,
    MachineRefusedError,
    UnexpectedAnswerError,
)
from backup_core.domain.managed import ManagedDisk
from backup_core.domain.naming import parse_resource_id
from backup_core.domain.repoint import Machine, MachineDisk

if TYPE_CHECKING:
    from collections.abc import Sequence

    from azure.core.pipeline import PipelineResponse
    from azure.core.polling import AsyncLROPoller
    from azure.mgmt.compute.aio import ComputeManagementClient


RETRY_AFTER_MAX = 10.0
"""Seconds of a Retry-After that are slept out within a call."""
_PERMISSIONS_VERSION = "2022-04-01"


class ShortRetries(AsyncRetryPolicy[Any, Any]):
    """The SDK's retries, without those after a long Retry-After: these are left to durable timers."""

    def is_retry(self, settings: dict[str, Any], response: PipelineResponse[Any, Any]) -> bool:
        """Whether to send the request again within this call."""
        pause = self.get_retry_after(response) or 0
        return pause <= RETRY_AFTER_MAX and bool(super().is_retry(settings, response))


_ADVICE = (
    # Code, a part of the message in lower case (either may be empty: any), what to do.
    ("AcquireDiskLeaseFailed", "", "somebody holds a lease on the disk blob; release it, and restore again"),
    ("PropertyChangeNotAllowed", "", "Azure does not allow that change of an existing machine or disk"),
    ("ScopeLocked", "", "a lock forbids it: remove the lock from the resource or its group, and restore again"),
    ("", "storageaccountid", "correct the account's id in SOURCE_ACCOUNT_IDS, and restore again"),
    ("", "same region", "an import is made within one region: restore to an account in the machine's region (target.account)"),
    ("", "availability zone", "kind of disk and zone do not go together: compare the disk's sku and zone with the machine's"),
    ("", "for createoption 'upload'", "such a disk can only be imported: name a blob for it (target.account)"),
    ("", "security type", "the OS disk needs the machine's own security type: look at securityProfile of machine and disk"),
    ("", "disk controller types", "compare supportedCapabilities of the new and the former OS disk, and set what is missing"),
    ("", "quota", "ask for more quota in that region, and restore again"),
    ("", "unmanaged", "VMs with unmanaged disks no longer start in public Azure since 2026-03-31: use a managed disk"),
    ("", "blob based disk", "a VM has managed disks or page blobs, not both: choose the other kind of target"),
)
KIND = Kind(
    missing=MachineMissingError,
    changed=MachineChangedError,
    busy=MachineBusyError,
    refused=MachineRefusedError,
    grant="the roles in docs/security.md on the machine's resource group",
    again=", and restore again",
    advice=_ADVICE,
)


class AzureMachines:
    """The Machines port on Azure Resource Manager."""

    def __init__(self, client: Callable[[str], ComputeManagementClient], wait_seconds: float = WAIT_SECONDS) -> None:
        """`client` gives the client of a subscription."""
        self._client, self._wait_seconds = client, wait_seconds

    async def machine(self, vm: str) -> Machine:
        """Virtual Machines, Get, with its instance view."""
        at = parse_resource_id(vm)
        with translated(f"look at VM {at.name}", KIND):
            found = await self._client(at.subscription).virtual_machines.get(at.group, at.name, expand="instanceView")
        return machine_of(vm, found.as_dict(), found.as_dict(exclude_readonly=True))

    async def put_disk(self, machine: Machine, lun: int | None, disk: MachineDisk | None) -> bool:
        """Virtual Machines, Update, of the OS disk or the list of data disks alone, with If-Match.

        A whole model (Create Or Update) would have Azure check rights on everything it names: identities, images, networks.
        """
        at = parse_resource_id(machine.vm)
        slot = "as OS disk" if lun is None else f"at LUN {lun}"
        what = f"give VM {at.name} {disk.source if disk else 'no disk'} {slot}"
        with translated(what, KIND):
            client = self._client(at.subscription)
            found = await client.virtual_machines.get(at.group, at.name)
            if not machine.etag:
                message = (
                    f"{what}: Azure returned no version of it, so that a conditional change is not possible; nothing was sent"
                )
                raise MachineRefusedError(message)
            if found.etag != machine.etag:
                message = f"{what}: it is at version {found.etag}, expected {machine.etag}; nothing was sent"
                raise MachineChangedError(message)
            storage = found.as_dict(exclude_readonly=True)["properties"]["storageProfile"]
            body = {"properties": {"storageProfile": changed_storage(storage, lun, disk)}}
            poller = await client.virtual_machines.begin_update(
                at.group, at.name, VirtualMachineUpdate(body), etag=machine.etag, match_condition=MatchConditions.IfNotModified
            )
            return await self._done(poller)

    async def deallocate(self, vm: str) -> bool:
        """Virtual Machines, Deallocate."""
        at = parse_resource_id(vm)
        with translated(f"deallocate VM {at.name}", KIND):
            return await self._done(await self._client(at.subscription).virtual_machines.begin_deallocate(at.group, at.name))

    async def start(self, vm: str) -> bool:
        """Virtual Machines, Start."""
        at = parse_resource_id(vm)
        with translated(f"start VM {at.name}", KIND):
            return await self._done(await self._client(at.subscription).virtual_machines.begin_start(at.group, at.name))

    async def managed_disk(self, disk: str) -> ManagedDisk | None:
        """Disks, Get."""
        at = parse_resource_id(disk)
        try:
            with translated(f"look at managed disk {at.name}", KIND):
                found = (await self._client(at.subscription).disks.get(at.group, at.name)).as_dict()
        except MachineMissingError:
            return None
        return managed_disk_of(disk, found)

    async def import_disk(self, wanted: ManagedDisk, account: str, location: str) -> bool:
        """Disks, Create Or Update, importing a VHD."""
        return await self._create(f"import managed disk {parse_resource_id(wanted.disk).name}", wanted, account, location)

    async def create_for_upload(self, wanted: ManagedDisk, location: str) -> bool:
        """Disks, Create Or Update, for an upload."""
        what = f"create managed disk {parse_resource_id(wanted.disk).name} for an upload"
        return await self._create(what, wanted, "", location)

    async def _create(self, what: str, wanted: ManagedDisk, account: str, location: str) -> bool:
        """Disks, Create Or Update. Azure may ignore the condition: who calls reads back."""
        at = parse_resource_id(wanted.disk)
        with translated(what, KIND):
            poller = await self._client(at.subscription).disks.begin_create_or_update(
                at.group, at.name, Disk(disk_body(wanted, account, location)), headers={"If-None-Match": "*"}
            )
            return await self._done(poller)

    async def permitted(self, resource: str, actions: Sequence[str]) -> dict[str, bool]:
        """Permissions, List For Resource (Microsoft.Authorization): the caller's rights there, read without using them."""
        at = parse_resource_id(resource)
        path = f"{resource}/providers/Microsoft.Authorization/permissions?api-version={_PERMISSIONS_VERSION}"
        with translated(f"list the permissions on {at.name}", KIND):
            answer = await self._client(at.subscription).send_request(HttpRequest("GET", path))
            answer.raise_for_status()
        try:
            entries = [dict(entry) for entry in answer.json()["value"]]
        except (ValueError, KeyError, TypeError) as error:
            message = f"the list of permissions on {at.name} cannot be read; nothing was assumed from it; look at ARM_ENDPOINT"
            raise UnexpectedAnswerError(message) from error
        return {action: any(grants(entry, action) for entry in entries) for action in actions}

    async def _done(self, poller: AsyncLROPoller[Any]) -> bool:
        """Whether the change ended within the wait; raises its failure."""
        try:
            await asyncio.wait_for(poller.result(), self._wait_seconds)
        except TimeoutError:
            return False
        return True
