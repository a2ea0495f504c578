"""Managed disks: made, grown, shown, uploaded to."""

from __future__ import annotations

import copy
import uuid
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from devhost.arm.leases import RefusedError
from devhost.arm.refusals import LOCATION, ConflictError, Resource, refuse_disk, refuse_tier
from devhost.disks import FOOTER_BYTES

if TYPE_CHECKING:
    from devhost.arm.state import Cloud, Fault, Operation

MIB, GIB = 1024**2, 1024**3
UPLOAD_BYTES_MAX = 32 * 1024 * GIB
UPLOADING = ("ReadyToUpload", "ActiveUpload")
_OWN = ("uniqueId", "timeCreated", "diskSizeBytes", "diskState", "shareInfo")
"""Properties that a disk keeps when it is changed."""
_OWNERS = ("managedBy", "managedByExtended")


class ManagedDisks:
    """The resources at /disks/."""

    def __init__(self, cloud: Cloud) -> None:
        """Those of `cloud.managed`."""
        self._cloud = cloud

    def get(self, disk: str) -> Resource:
        """A disk as it is shown. Raises ConflictError 404."""
        found = self._cloud.managed.get(disk.lower())
        if found is None:
            message = f"The Resource '{disk}' was not found."
            raise ConflictError(message, status=404, code="ResourceNotFound")
        return self.shown(found)

    def shown(self, found: Resource) -> Resource:
        """With what depends on the moment."""
        inside = found["properties"]
        owner = self._cloud.vms.get(found.get("managedBy", "").lower())
        state = inside.get("diskState", "Unattached")
        if state == "Unattached" and owner:
            state = "Reserved" if owner["power"] == "deallocated" else "Attached"
        if state in ("Unattached", "Reserved") and self._cloud.snapshots.access.granted(found["id"]):
            state = "ActiveSAS"
        expires = self._cloud.switches.upload_expiry == "ready"
        if state == "ActiveUpload" and expires and not self._cloud.snapshots.access.granted(found["id"]):
            state = "ReadyToUpload"
        shown = {**inside, "diskState": state}
        if state in UPLOADING:
            # Until its upload has ended, a disk has no size of its own (azure-cli's recording test_vm_disk_upload).
            shown.pop("diskSizeBytes", None)
        return {**found, "properties": shown}

    def put(self, disk: str, body: Resource, if_none_match: str, fault: Fault | None) -> tuple[Resource, Operation]:
        """Create a disk; one that is there is changed, where the condition allows it and it stays the same disk."""
        existing = self._cloud.managed.get(disk.lower())
        if existing and if_none_match == "*" and not self._cloud.switches.ignores_if_none_match:
            message = f"{disk} exists."
            raise ConflictError(message, status=412, code="PreconditionFailed")
        if existing and existing["properties"].get("creationData") != body.get("properties", {}).get("creationData"):
            message = "Changing property 'creationData' is not allowed."
            raise ConflictError(message, status=409, code="PropertyChangeNotAllowed")
        refuse_disk(body, self._cloud.disks.account)
        self._refuse_upload(body)
        wanted = _complete(disk, {**body, "tags": self._cloud.tags(disk, body)})
        if existing:
            wanted["properties"] |= {name: existing["properties"][name] for name in _OWN if name in existing["properties"]}
            wanted |= {name: existing[name] for name in _OWNERS if name in existing}
        inside = wanted["properties"]
        inside["provisioningState"] = "Updating"
        self._cloud.managed[disk.lower()] = wanted

        async def work() -> None:
            if not existing:
                await self._fill(inside)
            refuse_tier(wanted)

        def ended(state: str) -> None:
            inside["provisioningState"] = state

        return self.shown(wanted), self._cloud.begin(work, ended, fault)

    async def _fill(self, inside: Resource) -> None:
        """The content that a new disk is made with."""
        creation, unique = inside.get("creationData") or {}, inside["uniqueId"]
        contents = self._cloud.contents
        if creation.get("sourceUri"):
            inside["diskSizeBytes"] = await self._cloud.disks.import_vhd(creation["sourceUri"], unique, contents)
            if self._cloud.switches.import_signs:
                await contents.sign(unique)
        elif creation.get("createOption") == "Upload":
            inside["diskSizeBytes"] = creation["uploadSizeBytes"] - FOOTER_BYTES
            await contents.make(unique, inside["diskSizeBytes"], signed=False)
            inside["diskState"] = "ReadyToUpload"
        elif inside.get("diskSizeBytes") or inside.get("diskSizeGB"):
            inside["diskSizeBytes"] = inside.get("diskSizeBytes") or inside["diskSizeGB"] * GIB
            await contents.make(unique, inside["diskSizeBytes"])

    def _refuse_upload(self, body: Resource) -> None:
        inside = body.get("properties", {})
        creation, least = inside.get("creationData") or {}, self._cloud.switches.upload_bytes_min
        if creation.get("createOption") != "Upload":
            return
        size = creation.get("uploadSizeBytes", 0) - FOOTER_BYTES
        if not least <= size <= UPLOAD_BYTES_MAX or size % MIB:
            message = (
                f"uploadSizeBytes {size + FOOTER_BYTES} is no whole number of MiB from {least} bytes on, and a footer of 512."
            )
            raise ConflictError(message, status=400, code="InvalidParameter")
        if inside.get("diskAccessId") and (inside.get("encryption") or {}).get("diskEncryptionSetId"):
            message = "An upload to a disk with both a diskAccessId and a diskEncryptionSetId is not supported."
            raise ConflictError(message, status=400, code="BadRequest")

    def begin_upload(self, disk: str) -> None:
        """Somebody may write the disk. Raises RefusedError when its upload has ended meanwhile."""
        inside = self._cloud.managed[disk.lower()]["properties"]
        if inside.get("diskState") not in UPLOADING:
            message = f"Disk {disk} is {inside.get('diskState', 'Unattached')}: its upload has ended."
            raise RefusedError(message, code="OperationNotAllowed")
        inside["diskState"] = "ActiveUpload"

    async def refuse_end(self, disk: Resource) -> None:
        """Raise ConflictError for an upload that is no VHD: it is not ended."""
        inside = disk["properties"]
        if inside["diskState"] == "ActiveUpload" and not await self._cloud.contents.is_vhd(inside["uniqueId"]):
            message = (
                f"The content of {disk['id']} is no fixed VHD of its size: the footer's cookie value 'conectix' is missing."
            )
            raise ConflictError(message, status=400, code="InvalidVhd")

    async def end_upload(self, resource: str) -> None:
        """The disk is one like another from now on; what is not being uploaded to stays as it is."""
        inside = self._cloud.managed.get(resource.lower(), {}).get("properties", {})
        if inside.get("diskState") == "ActiveUpload":
            inside["diskState"] = "Unattached"
            if self._cloud.switches.upload_signs:
                await self._cloud.contents.sign(inside["uniqueId"])

    def delete(self, disk: str) -> None:
        """Delete a disk; snapshots of it stay. Raises ConflictError for one that is used."""
        found = self.get(disk)
        if found["properties"]["diskState"] not in ("Unattached", "ReadyToUpload"):
            message = f"Disk {disk} cannot be deleted: it is {found['properties']['diskState']}."
            raise ConflictError(message, status=409, code="OperationNotAllowed")
        del self._cloud.managed[disk.lower()]

    # -- what tests ask ---------------------------------------------------------------------------------------------------

    async def make(self, wanted: dict[str, Any]) -> None:
        """A disk for tests: `bytes` of zeros, or the content of the VHD `from`, which is a page blob's URL.

        One that is there by this id is replaced: another disk by the same name.
        """
        body = {"location": LOCATION, "sku": {"name": "Premium_LRS"}, **wanted.get("more", {})}
        body["properties"] = {"creationData": {"createOption": "Empty"}, **wanted.get("properties", {})}
        made = _complete(wanted["id"], body)
        inside = made["properties"]
        if "from" in wanted:
            inside["diskSizeBytes"] = await self._cloud.disks.import_vhd(
                wanted["from"], inside["uniqueId"], self._cloud.contents
            )
        else:
            inside["diskSizeBytes"] = wanted["bytes"]
            await self._cloud.contents.make(inside["uniqueId"], wanted["bytes"])
        inside["provisioningState"] = "Succeeded"
        former = self._cloud.managed.get(wanted["id"].lower(), {})
        made |= {name: former[name] for name in _OWNERS if name in former}
        self._cloud.managed[wanted["id"].lower()] = made

    async def grow(self, disk: str, size: int) -> None:
        """Resize a disk, whether or not a machine runs with it. Raises RefusedError."""
        found = self._cloud.managed[disk.lower()]
        inside = found["properties"]
        if size <= inside["diskSizeBytes"]:
            message = f"Disk {disk} has {inside['diskSizeBytes']} bytes and cannot shrink to {size}."
            raise RefusedError(message, code="ResizeDiskError")
        await self._cloud.contents.grow(inside["uniqueId"], size)
        inside.update(diskSizeBytes=size, diskSizeGB=-(-size // GIB))
        self._cloud.snapshots.fail_unfinished(found)

    def described(self) -> list[Resource]:
        """All, each with where its content is."""
        contents = self._cloud.contents
        return [
            {**self.shown(one), "content": contents.url(one["properties"]["uniqueId"])} for one in self._cloud.managed.values()
        ]


def _complete(disk: str, body: Resource) -> Resource:
    """The resource of a body, with what Azure adds."""
    wanted = copy.deepcopy(body)
    wanted |= {"id": disk, "name": disk.rpartition("/")[2], "type": "Microsoft.Compute/disks"}
    wanted.setdefault("sku", {"name": "Standard_LRS"})
    inside = wanted.setdefault("properties", {})
    inside["uniqueId"] = str(uuid.uuid4())
    inside["timeCreated"] = f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%S.%f}7+00:00"
    for name, value in (
        ("networkAccessPolicy", "AllowAll"),
        ("publicNetworkAccess", "Enabled"),
        ("encryption", {"type": "EncryptionAtRestWithPlatformKey"}),
    ):
        inside.setdefault(name, value)
    return wanted
