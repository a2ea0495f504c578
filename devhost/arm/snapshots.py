"""Incremental snapshots of managed disks, and access to them."""

from __future__ import annotations

import copy
import re
import time
import uuid
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from devhost.arm.access import FILLS_ALONE, Access, Grant, refuse_grant
from devhost.arm.leases import RefusedError
from devhost.arm.refusals import ConflictError, Resource, group_of

if TYPE_CHECKING:
    from devhost.arm.state import Cloud, Fault, Operation

UNFINISHED_MAX, UNFINISHED_OF_ALL_MAX = 3, 50
"""Snapshots that fill in the background: of one disk, of a subscription."""
RATE_SECONDS = 300.0
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,80}")
_CHANGEABLE = ("networkAccessPolicy", "publicNetworkAccess", "diskAccessId")
_INHERITED = (
    "encryption",
    "encryptionSettingsCollection",
    "hyperVGeneration",
    "osType",
    "securityProfile",
    "supportsHibernation",
)


class Snapshots:
    """The resources at /snapshots/, and beginGetAccess and endGetAccess of disks as well."""

    def __init__(self, cloud: Cloud) -> None:
        """None."""
        self._cloud = cloud
        self.access = Access(cloud.contents)
        self.all: dict[str, Resource] = {}
        self._blobs: dict[str, str] = {}
        """The id of the blob snapshot, by resource id."""
        self._taken: dict[str, list[float]] = {}
        """When, by the disk's unique id."""
        self._last = 0
        self._deleted: set[str] = set()
        self._hidden: dict[str, int] = {}
        """How many times a remade snapshot is still said to be missing."""

    # -- the resource -----------------------------------------------------------------------------------------------------

    def get(self, snapshot: str) -> Resource:
        """A snapshot as it is shown. Raises ConflictError 404."""
        found, key = self.all.get(snapshot.lower()), snapshot.lower()
        if self._hidden.get(key, 0) > 0:
            self._hidden[key] -= 1
            found = None
        if found is None:
            message = f"The Resource '{snapshot}' was not found."
            raise ConflictError(message, status=404, code="ResourceNotFound")
        return self._advance(found)

    def _advance(self, found: Resource) -> Resource:
        """Take one more step of the background copy; the snapshot then."""
        inside = found["properties"]
        if "copyCompletionError" not in inside:
            inside["completionPercent"] = min(100.0, inside["completionPercent"] + self._cloud.switches.fill_step)
        return self.shown(found)

    def shown(self, found: Resource) -> Resource:
        """With what depends on the moment."""
        state = "ActiveSAS" if self.access.granted(found["id"]) else "Unattached"
        return {**found, "properties": {**found["properties"], "diskState": state}}

    def listed(self, group: str) -> list[Resource]:
        """The snapshots of a resource group, by name."""
        return [self._advance(one) for key, one in sorted(self.all.items()) if group_of(key) == group.lower()]

    def put(self, snapshot: str, body: Resource, fault: Fault | None) -> tuple[Resource, Operation]:
        """Take a snapshot. One that is there by this name is given the tags, and nothing is taken."""
        key, existing = snapshot.lower(), self.all.get(snapshot.lower())
        tags = self._cloud.tags(snapshot, body)
        source = str((body.get("properties", {}).get("creationData") or {}).get("sourceResourceId", ""))
        if existing:
            if existing["properties"]["creationData"]["sourceResourceId"].lower() != source.lower():
                message = "Changing property 'sourceUri' is not allowed."
                raise ConflictError(message, status=400, code="PropertyChangeNotAllowed")
            existing["tags"] = tags
            existing["properties"] |= {name: body["properties"][name] for name in _CHANGEABLE if name in body["properties"]}
            return self.shown(existing), self._cloud.begin(_nothing, lambda _: None, fault)
        disk = self._source(snapshot, body, source)
        made = self._made(snapshot, {**body, "tags": tags}, disk)
        self.all[key] = made
        if key in self._deleted:
            self._hidden[key] = self._cloud.switches.hidden_looks
        inside = made["properties"]

        async def work() -> None:
            unique = inside["creationData"]["sourceUniqueId"]
            if len(self._of(unique)) > self._cloud.switches.snapshots_max:
                message = f"Disk {disk['id']} has {self._cloud.switches.snapshots_max} snapshots: no more can be taken."
                raise RefusedError(message, code="SnapshotsLimitReached")
            if self._cloud.switches.footer == "differs":
                await self._cloud.contents.sign(unique)
            self._blobs[key] = await self._cloud.contents.snapshot(unique)
            size = await self._cloud.contents.size(unique)
            inside.update(timeCreated=self._time(), diskSizeBytes=size, diskSizeGB=-(-size // 1024**3))

        def ended(state: str) -> None:
            inside["provisioningState"] = state

        return self.shown(made), self._cloud.begin(work, ended, fault)

    def _source(self, snapshot: str, body: Resource, source: str) -> Resource:
        """The disk. Raises ConflictError for a snapshot that Azure does not take."""
        inside, name = body.get("properties", {}), snapshot.rpartition("/")[2]
        if not _NAME.fullmatch(name):
            message = f"Resource name {name} is invalid: expected at most 80 of A-Z, a-z, 0-9, _, . and -."
            raise ConflictError(message, status=400, code="InvalidResourceName")
        if (inside.get("creationData") or {}).get("createOption") != "Copy" or not inside.get("incremental"):
            message = f"{snapshot}: only incremental snapshots of disks (createOption Copy) are served by the stand-in."
            raise ConflictError(message, status=400, code="InvalidParameter")
        disk = self._cloud.managed.get(source.lower())
        if disk is None:
            message = f"The Resource '{source}' was not found."
            raise ConflictError(message, status=404, code="ResourceNotFound")
        if source.lower().split("/")[2] != snapshot.lower().split("/")[2]:
            message = f"Snapshot {snapshot} and disk {source} are in different subscriptions."
            raise ConflictError(message, status=400, code="InvalidParameter")
        if disk["location"] != body.get("location"):
            message = (
                f"Snapshot {snapshot} is to be in location {body.get('location')}; disk {source} is in {disk['location']}."
            )
            raise ConflictError(message, status=400, code="BadRequest")
        self._cloud.refuse_without_content(disk)
        self._refuse_pace(disk)
        return disk

    def _refuse_pace(self, disk: Resource) -> None:
        unique, rate = disk["properties"]["uniqueId"], self._cloud.switches.snapshots_per_five_minutes
        recent = self._taken.setdefault(unique, [])
        recent[:] = [at for at in recent if at > time.monotonic() - RATE_SECONDS]
        if rate and len(recent) >= rate:
            message = f"{rate} snapshots of disk {disk['id']} were taken within 5 minutes: try again later."
            raise ConflictError(message, status=409, code="OperationNotAllowed")
        unfinished = [one for one in self.all.values() if one["properties"].get("completionPercent", 100) < 100]
        own = [one for one in unfinished if one["properties"]["creationData"]["sourceUniqueId"] == unique]
        if len(own) >= UNFINISHED_MAX or len(unfinished) >= UNFINISHED_OF_ALL_MAX:
            message = f"Disk {disk['id']} or its subscription has too many snapshots that are being copied in the background."
            raise ConflictError(message, status=409, code="OperationNotAllowed")
        recent.append(time.monotonic())

    def _made(self, snapshot: str, body: Resource, disk: Resource) -> Resource:
        given, origin = body["properties"], disk["properties"]
        inside = {name: copy.deepcopy(origin[name]) for name in _INHERITED if name in origin}
        sector = (origin.get("creationData") or {}).get("logicalSectorSize")
        inside |= {
            "creationData": {
                "createOption": "Copy",
                "sourceResourceId": disk["id"],
                "sourceUniqueId": origin["uniqueId"],
                **({"logicalSectorSize": sector} if sector else {}),
            },
            "incremental": True,
            "incrementalSnapshotFamilyId": str(uuid.uuid5(uuid.NAMESPACE_OID, origin["uniqueId"])),
            "completionPercent": 0.0 if disk["sku"]["name"] in FILLS_ALONE else 100.0,
            "networkAccessPolicy": given.get("networkAccessPolicy", "AllowAll"),
            "publicNetworkAccess": given.get("publicNetworkAccess", "Enabled"),
            "provisioningState": "Creating",
            "uniqueId": str(uuid.uuid4()),
        }
        if given.get("diskAccessId"):
            inside["diskAccessId"] = given["diskAccessId"]
        return {
            "id": snapshot,
            "name": snapshot.rpartition("/")[2],
            "type": "Microsoft.Compute/snapshots",
            "location": body["location"],
            "tags": body["tags"],
            "sku": body.get("sku") or {"name": "Standard_ZRS"},
            "properties": inside,
        }

    def _of(self, unique: str) -> list[Resource]:
        return [one for one in self.all.values() if one["properties"]["creationData"]["sourceUniqueId"] == unique]

    def _time(self) -> str:
        """Now, in the service's form; later than every other, and no blob snapshot's id."""
        self._last = max(self._last + 1, time.time_ns() // 1000)
        at = datetime.fromtimestamp(self._last // 1_000_000, UTC)
        return f"{at:%Y-%m-%dT%H:%M:%S}.{self._last % 1_000_000:06d}3+00:00"

    def delete(self, snapshot: str, fault: Fault | None) -> Operation | None:
        """Delete a snapshot; None when there is none. Raises ConflictError for one that is open."""
        found, key = self.all.get(snapshot.lower()), snapshot.lower()
        if found is None:
            return None
        if self.access.granted(key):
            message = f"Snapshot {snapshot} cannot be deleted while access to it is granted: revoke it first."
            raise ConflictError(message, status=409, code="OperationNotAllowed")

        async def work() -> None:
            unique = found["properties"]["creationData"]["sourceUniqueId"]
            if key in self._blobs:
                await self._cloud.contents.drop(unique, self._blobs.pop(key))
            self.all.pop(key, None)
            self._deleted.add(key)
            if self._cloud.switches.siblings_denied:
                await self.access.interrupt(unique)

        return self._cloud.begin(work, lambda _: None, fault)

    def fill(self, snapshot: str, percent: float, error: str) -> None:
        """Set how far a snapshot is filled; with an `error`, it never will be."""
        inside = self.all[snapshot.lower()]["properties"]
        inside["completionPercent"] = percent
        if error:
            inside["copyCompletionError"] = {"errorCode": "CopySourceNotFound", "errorMessage": error}

    def fail_unfinished(self, disk: Resource) -> None:
        """A resize fails what is still being copied."""
        for one in self._of(disk["properties"]["uniqueId"]):
            if one["properties"]["completionPercent"] < 100 and "copyCompletionError" not in one["properties"]:
                self.fill(one["id"], one["properties"]["completionPercent"], "the source disk was resized")

    # -- access -----------------------------------------------------------------------------------------------------------

    def grant(self, resource: Resource, body: Resource, fault: Fault | None) -> Operation:
        """Open access to a snapshot or a disk; the operation's result holds the SAS."""
        inside, key = resource["properties"], resource["id"].lower()
        unique = str(inside["creationData"].get("sourceUniqueId") or inside["uniqueId"])
        of_snapshot = key in self.all
        others = self.access.siblings(unique) if of_snapshot and not self.access.granted(key) else []
        refuse_grant(resource, body, others)
        seconds, write = int(body["durationInSeconds"]), body["access"] == "Write"
        private = write or inside.get("networkAccessPolicy") == "AllowPrivate"
        at = self._blobs[key] if of_snapshot else ""
        wanted = Grant(unique, at, "", private, write, time.monotonic() + seconds)

        async def work() -> None:
            extends = self._cloud.switches.grant_extends
            if write:
                self._cloud.managed_disks.begin_upload(key)
            operation.result = {"accessSAS": await self.access.open(key, wanted, seconds, extends=extends)}
            if self._cloud.switches.unnamed_grants:
                self._cloud.switches.unnamed_grants -= 1
                operation.result = None

        operation = self._cloud.begin(work, lambda _: None, fault)
        return operation

    def revoke(self, resource: Resource, fault: Fault | None) -> Operation:
        """End access; of a disk that is being uploaded to, its upload as well."""
        uploads = resource["properties"].get("diskState") == "ActiveUpload"

        async def work() -> None:
            await self.access.close(resource["id"])
            if uploads:
                await self._cloud.managed_disks.end_upload(resource["id"])

        return self._cloud.begin(work, lambda _: None, fault)


async def _nothing() -> None:
    """A snapshot that is there already."""


def described(snapshots: Snapshots) -> list[dict[str, Any]]:
    """All, as the control address shows them."""
    return [snapshots.shown(one) for one in snapshots.all.values()]
