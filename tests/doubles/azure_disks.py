# Long: the rules of one service, which refer to each other.
"""Managed disks in memory below the real adapter: Azure Resource Manager's snapshots, and access to them.

What Azure refuses is refused here, and what it takes without doing anything is taken: the adapter's own rules are tried as they
are. A snapshot's content and tags are those of the `Blob` under its time in its disk's `snapshots`: who deletes it there has
deleted it. Everything else about it is a `Taken`.
"""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from backup_core.adapters.answers import fault_of
from backup_core.domain.errors import AccessDeniedError
from backup_core.domain.managed import WRITABLE_STATES
from backup_core.domain.managed_snapshots import DIFF_BOUNDARY
from backup_core.domain.naming import DiskAddress, parse_resource_id
from backup_core.domain.ranges import PAGE
from tests.doubles.refusals import SIGNATURE, refuse
from tests.doubles.uploads import MemoryUploads

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from azure.mgmt.compute.models import GrantAccessData, Snapshot

    from backup_core.domain.naming import Source
    from tests.doubles.page_blobs import Blob, MemoryPageBlobs
    from tests.doubles.world import InMemoryServices

GRANTS_MAX, UNFINISHED_MAX = 5, 3
HOSTS = ("md-*.blob.storage.azure.net",)
LOCATION = "local"


@dataclass(eq=False)
class Taken:
    """A snapshot as a resource, besides its content and tags."""

    id: str
    name: str
    disk: DiskAddress
    at: str
    """When it was taken, as the id of a blob snapshot; empty for one that failed, or is being made."""
    tags: dict[str, str] = field(default_factory=dict)
    """Of such a one."""
    state: str = "Succeeded"
    url: str = field(default="", repr=False)
    until: float = 0.0
    looked_at: bool = False
    interrupted: bool = False
    """Its URL is refused until access is granted again: a sibling was deleted."""


class Described:
    """A resource as the SDK gives it."""

    def __init__(self, resource: dict[str, Any]) -> None:
        """Of these properties."""
        self._resource = resource
        self.access_sas: str = resource.get("accessSAS", "")

    def as_dict(self) -> dict[str, Any]:
        """The properties, as they are sent."""
        return self._resource


@dataclass
class Operation:
    """A long-running operation of the SDK."""

    outcome: Described | None = None
    ended: bool = True

    async def result(self) -> Described | None:
        """The operation's result. Raises TimeoutError for one that takes longer than anybody waits."""
        if not self.ended:
            raise TimeoutError
        return self.outcome


class MemoryCloud:
    """The clients of all subscriptions. Tests may set what it does, and act as a third party on it."""

    def __init__(self, world: InMemoryServices, blobs: MemoryPageBlobs) -> None:
        """Over the disks of `blobs`, none of which has a snapshot."""
        self.world, self.blobs = world, blobs
        self._taken: dict[str, Taken] = {}
        self._numbers = itertools.count(1)
        self.private = False
        """Disks are exported privately: no service copies from such an export."""
        self.limit_reached = 0
        """How many requests for a snapshot still find as many of the disk as Azure takes."""
        self.grant_extends = True
        """Whether a second grant gives the same URL, for longer; else a new one, and the former is refused."""
        self.siblings_denied = False
        """Whether the exports of a family are refused after one of it was deleted, until they are granted again."""
        self.policy_tags: dict[str, str] = {}
        """Tags that an Azure policy gives each snapshot, whatever the request says."""
        self.lasting = 0
        """How many snapshots are still to take long to be made."""
        self.footer_in_diff = False
        self.footers_differ = False
        """Whether a disk is given another footer for each snapshot."""
        self.boundary = DIFF_BOUNDARY
        self.counts: Counter[str] = Counter()
        """How often something worth a test has happened."""
        self.misread = ""
        """The first read of a snapshot for another one, in words."""
        self.uploads = MemoryUploads(self)
        self.disks, self.snapshots = Disks(self), Snapshots(self)

    @property
    def now(self) -> float:
        """Seconds since the world began."""
        return self.world.ticks / 1e6

    def disk(self, group: str, name: str) -> tuple[DiskAddress, Blob]:
        """The disk. Raises 404."""
        wanted = (group.lower(), name.lower())
        found = next((one for one in self.blobs.disks.items() if (one[0].group, one[0].name) == wanted), None)
        return found or refuse(404, "ResourceNotFound", f"The Resource 'Microsoft.Compute/disks/{name}' was not found.")

    # -- snapshots as resources ---------------------------------------------------------------------------------------------

    def all(self) -> list[Taken]:
        """Every snapshot that exists, whoever took it."""
        for address, blob in self.blobs.disks.items():
            known = {one.at for one in self._taken.values() if one.disk == address}
            for at in blob.snapshots.keys() - known:
                self._keep(Taken("", "by-hand-" + "".join(filter(str.isdigit, at)), address, at), address.group)
        return [one for one in self._taken.values() if not one.at or self._content(one)]

    def _keep(self, taken: Taken, group: str) -> Taken:
        taken.id = f"{taken.disk.group_id.rpartition('/')[0]}/{group}/providers/Microsoft.Compute/snapshots/{taken.name}"
        self._taken[taken.id.lower()] = taken
        return taken

    def _content(self, taken: Taken) -> Blob | None:
        disk = self.blobs.disks.get(taken.disk)
        return disk.snapshots.get(taken.at) if disk else None

    def content(self, taken: Taken) -> Blob:
        """The snapshot's content."""
        found = self._content(taken)
        assert found
        return found

    def in_group(self, group: str) -> list[Taken]:
        """Those of a resource group."""
        return [one for one in self.all() if parse_resource_id(one.id).group.lower() == group.lower()]

    def named(self, group: str, name: str) -> Taken:
        """The snapshot with this name. Raises 404."""
        found = next((one for one in self.in_group(group) if one.name == name), None)
        return found or refuse(404, "ResourceNotFound", f"The Resource 'Microsoft.Compute/snapshots/{name}' was not found.")

    def described(self, taken: Taken) -> Described:
        """As Resource Manager shows it."""
        source = {"createOption": "Copy", "sourceResourceId": taken.disk.id}
        if not taken.at:
            inside: dict[str, Any] = {"creationData": source, "incremental": True, "provisioningState": taken.state}
            return Described({"id": taken.id, "name": taken.name, "tags": dict(taken.tags), "properties": inside})
        found = self.content(taken)
        inside = {
            "creationData": {**source, "sourceUniqueId": unique(found)},
            "timeCreated": taken.at[:-2] + "+00:00",
            "incremental": True,
            "incrementalSnapshotFamilyId": f"family-of-{unique(found)}",
            "diskSizeBytes": found.size - PAGE,
            "completionPercent": float(found.percent),
            "provisioningState": "Succeeded",
            "diskState": "ActiveSAS" if self.granted(taken) else "Unattached",
        }
        if found.failure:
            inside["copyCompletionError"] = {"errorCode": "CopySourceNotFound", "errorMessage": found.failure}
        return Described({"id": taken.id, "name": taken.name, "tags": dict(found.metadata), "properties": inside})

    def take(self, group: str, name: str, disk: DiskAddress, tags: Mapping[str, str]) -> Taken:
        """A snapshot of that name: one that is there is given the tags, and nothing is taken."""
        tags = {**tags, **self.policy_tags}
        existing = next((one for one in self.in_group(group) if one.name == name), None)
        if existing and existing.disk != disk:
            refuse(400, "PropertyChangeNotAllowed", "Changing property 'sourceUri' is not allowed.")
        if existing and existing.at:
            self.content(existing).metadata = dict(tags)
        if existing:
            self.counts["requests for a name that exists"] += 1
            return existing
        _, blob = self.disk(disk.group, disk.name)
        if blob.upload in WRITABLE_STATES:
            refuse(409, "OperationNotAllowed", f"Disk {disk} is in state {blob.upload} and has no content yet.")
        self.fill(self.blobs.fill_percent)
        own = [one for one in self.all() if one.disk == disk and one.at]
        if sum(self.content(one).percent < 100 and not self.content(one).failure for one in own) >= UNFINISHED_MAX:
            refuse(409, "OperationNotAllowed", f"Disk {disk} has too many snapshots that are being copied in the background.")
        if self.limit_reached:
            self.limit_reached -= 1
            self._keep(Taken("", name, disk, "", dict(tags), "Failed"), group)
            refuse(409, "SnapshotsLimitReached", f"Disk {disk} has 500 snapshots: no more can be taken.")
        made = self._keep(Taken("", name, disk, "", dict(tags), "Creating"), group)
        if self.lasting:
            self.lasting -= 1
            self.counts["snapshots that take long"] += 1
        else:
            self._make(made, blob)
        return made

    def make_the_rest(self) -> None:
        """Complete the slow operations."""
        for one in self.all():
            if one.state == "Creating":
                self._make(one, self.blobs.disks[one.disk])

    def _make(self, made: Taken, blob: Blob) -> None:
        if self.footers_differ:
            blob.pages[blob.size // PAGE - 1] = f"conectix {self.world.ticks}".encode().ljust(PAGE, b".")
        made.at, made.state = self.blobs.freeze(blob, {}), "Succeeded"
        frozen = blob.snapshots[made.at]
        frozen.metadata = dict(made.tags)
        if self.blobs.fill_percent < 100:
            self.counts["snapshots filled later"] += 1
            frozen.percent, frozen.failure = 0, self.blobs.fill_failure

    def fill(self, percent: int) -> None:
        """Copy so much more of each unfinished snapshot in the background."""
        for one in self.all():
            found = self._content(one)
            if found and found.percent < 100 and not found.failure:
                found.percent = min(found.percent + percent, 100)

    def fail_unfinished(self, disk: DiskAddress) -> None:
        """The disk was resized: what is still being copied will never be complete."""
        for one in self.all():
            found = self._content(one)
            if found and found.percent < 100 and one.disk == disk:
                found.failure = found.failure or "the source disk was resized"

    def drop(self, taken: Taken) -> None:
        """Delete it. Raises 409 for one that is open."""
        if self.granted(taken):
            refuse(409, "OperationNotAllowed", f"Snapshot {taken.name} cannot be deleted while access to it is granted.")
        del self._taken[taken.id.lower()]
        if not taken.at:
            return
        family = unique(self.content(taken))
        self.blobs.disks[taken.disk].snapshots.pop(taken.at)
        for one in self.all():
            if self.siblings_denied and one.at and one.disk == taken.disk and unique(self.content(one)) == family:
                one.interrupted = True

    # -- access -------------------------------------------------------------------------------------------------------------

    def granted(self, taken: Taken) -> bool:
        """Whether the snapshot is open."""
        return bool(taken.url) and self.now < taken.until

    def grant(self, taken: Taken, seconds: int) -> str:
        """Open the snapshot; return its export's URL."""
        found = self.content(taken) if taken.at else None
        if found is None or found.percent < 100:
            refuse(409, "OperationNotAllowed", f"Access to {taken.name} cannot be granted: it is not complete.")
        if not self.granted(taken):
            others = [one for one in self.all() if one.disk == taken.disk and one is not taken and self.granted(one)]
            if len(others) >= GRANTS_MAX:
                refuse(409, "OperationNotAllowed", f"Access to {taken.name} cannot be granted: {GRANTS_MAX} others are open.")
        if not (self.grant_extends and self.granted(taken)):
            number = next(self._numbers)
            place = f"https://md-{'impexp-' if self.private else ''}sim.blob.storage.azure.net/{taken.name}/abcd"
            taken.url = (
                f"{place}?snapshot={quote(taken.at)}&sv=2018-11-09&sr=bs&si=policy-{number}&sig={SIGNATURE}{number:04d}%3D"
            )
        taken.until, taken.interrupted = self.now + seconds, False
        return taken.url

    def revoke(self, taken: Taken) -> None:
        """End the access, for every reader."""
        taken.url = ""

    def exported(self, url: str, disk: Source, snapshot: str, what: str) -> Blob:
        """The snapshot behind an export's URL. Raises AccessDeniedError for a URL that has expired, or was ended or
        interrupted.
        """
        if itself := self.uploads.behind(url, what, write=False):
            if (itself[0], "") != (disk, snapshot):
                self.misread = self.misread or f"disk {itself[0]} was read as {snapshot} of {disk}"
            return itself[1]
        found = next((one for one in self.all() if one.url == url and self.granted(one) and not one.interrupted), None)
        if found is None:
            self.counts["exports expired"] += any(one.url == url and self.now >= one.until for one in self.all())
            self.counts["exports refused"] += 1
            raise fault_of(403, "AuthenticationFailed", f"Signature did not match: {url}", what, snapshot=bool(snapshot))
        if (found.disk, found.at) != (disk, snapshot):
            self.misread = self.misread or f"{found.name} of {found.at} was read as {snapshot} of {disk}"
        return self.content(found)

    def copied(self, url: str, disk: Source, snapshot: str, what: str) -> Blob:
        """The snapshot behind a URL, for another service that is to copy it. Raises CopySourceRefusedError."""
        try:
            return self.exported(url, disk, snapshot, what)
        except AccessDeniedError:
            raise fault_of(403, "CannotVerifyCopySource", f"Server failed to authenticate {url}", what) from None


def unique(blob: Blob) -> str:
    """The unique id of a disk, or of the one that a snapshot was taken of."""
    return f"disk-of-{blob.created:%Y%m%dT%H%M%S.%f}"


class Disks:
    """`disks` of the SDK's client."""

    def __init__(self, cloud: MemoryCloud) -> None:
        """Of `cloud`."""
        self._cloud = cloud

    async def get(self, group: str, name: str) -> Described:
        """Disks, Get."""
        cloud = self._cloud
        await cloud.world.before("arm_disk")
        address, blob = cloud.disk(group, name)
        held = cloud.uploads.holder(address)
        creation: dict[str, Any] = {"createOption": blob.create_option}
        inside = {
            "uniqueId": unique(blob),
            "timeCreated": blob.created.isoformat(),
            # A disk has no size of its own until its upload has ended.
            **({} if blob.upload else {"diskSizeBytes": blob.size - PAGE}),
            "diskState": cloud.uploads.state(address),
            "creationData": {**creation, **({"uploadSizeBytes": blob.size} if blob.upload else {})},
            "networkAccessPolicy": "AllowPrivate" if cloud.private else "AllowAll",
        }
        described = {"id": address.id, "name": name, "location": LOCATION, "tags": dict(blob.metadata), "properties": inside}
        await cloud.world.after("arm_disk")
        return Described({**described, **({"managedBy": held[0]} if held else {})})

    async def begin_grant_access(self, group: str, name: str, body: GrantAccessData) -> Operation:
        """Disks, Grant Access."""
        await self._cloud.world.before("grant")
        address, _ = self._cloud.disk(group, name)
        url = self._cloud.uploads.grant(address, write=body.access == "Write", seconds=int(body.duration_in_seconds))
        self._cloud.world.tick()
        await self._cloud.world.after("grant")
        return Operation(Described({"accessSAS": url}))

    async def begin_revoke_access(self, group: str, name: str) -> Operation:
        """Disks, Revoke Access."""
        await self._cloud.world.before("revoke")
        self._cloud.uploads.revoke(self._cloud.disk(group, name)[0])
        self._cloud.world.tick()
        await self._cloud.world.after("revoke")
        return Operation()


class Snapshots:
    """`snapshots` of the SDK's client."""

    def __init__(self, cloud: MemoryCloud) -> None:
        """Of `cloud`."""
        self._cloud, self._world = cloud, cloud.world

    async def list_by_resource_group(self, group: str) -> AsyncIterator[Described]:
        """Snapshots, List By Resource Group."""
        await self._world.before("arm_snapshots")
        found = [self._cloud.described(one) for one in self._cloud.in_group(group)]
        await self._world.after("arm_snapshots")
        for one in found:
            yield one

    async def get(self, group: str, name: str) -> Described:
        """Snapshots, Get: each look finds it further filled."""
        await self._world.before("arm_snapshot")
        taken = self._cloud.named(group, name)
        found = self._cloud.content(taken) if taken.at else None
        if found and found.percent < 100 and not found.failure and taken.looked_at:
            found.percent = min(found.percent + self._cloud.blobs.fill_percent, 100)
        taken.looked_at = True
        described = self._cloud.described(taken)
        await self._world.after("arm_snapshot")
        return described

    async def begin_create_or_update(self, group: str, name: str, body: Snapshot) -> Operation:
        """Snapshots, Create Or Update."""
        await self._world.before("snapshot")
        given = body.as_dict()
        creation = given["properties"]["creationData"]
        assert given["properties"]["incremental"] is True
        assert given["location"] == LOCATION
        at = parse_resource_id(creation["sourceResourceId"].lower())
        taken = self._cloud.take(group, name, DiskAddress(at.subscription, at.group, at.name), given["tags"])
        self._world.tick()
        await self._world.after("snapshot")
        return Operation(ended=taken.state != "Creating")

    async def begin_grant_access(self, group: str, name: str, body: GrantAccessData) -> Operation:
        """Snapshots, Grant Access."""
        await self._world.before("grant")
        url = self._cloud.grant(self._cloud.named(group, name), int(body.duration_in_seconds))
        self._world.tick()
        await self._world.after("grant")
        return Operation(Described({"accessSAS": url}))

    async def begin_revoke_access(self, group: str, name: str) -> Operation:
        """Snapshots, Revoke Access."""
        await self._world.before("revoke")
        self._cloud.revoke(self._cloud.named(group, name))
        self._world.tick()
        await self._world.after("revoke")
        return Operation()

    async def begin_delete(self, group: str, name: str) -> Operation:
        """Snapshots, Delete; none is success."""
        await self._world.before("delete_snapshot")
        found = next((one for one in self._cloud.in_group(group) if one.name == name), None)
        if found:
            self._cloud.blobs.refuse_deletion(found.disk.account)
            self._cloud.drop(found)
            self._world.tick()
        await self._world.after("delete_snapshot")
        return Operation()
