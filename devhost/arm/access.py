"""Access to the contents of managed disks and snapshots: what beginGetAccess and endGetAccess do, and refuse."""

from __future__ import annotations

import itertools
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from devhost.arm.refusals import ConflictError, Resource

if TYPE_CHECKING:
    from collections.abc import Iterable

    from devhost.arm.exports import Contents

SECONDS_MAX = 60 * 24 * 3600
GRANTS_MAX = 5
"""Snapshots of one disk that may be open at one time."""
FILLS_ALONE = ("PremiumV2_LRS", "UltraSSD_LRS")
"""Kinds of disks whose snapshots are filled in the background."""


@dataclass
class Grant:
    """An open access: to a disk (`at` is empty), or to its snapshot by the id of its blob snapshot."""

    disk: str
    """The disk's unique id."""
    at: str
    policy: str
    private: bool
    write: bool
    until: float

    @property
    def active(self) -> bool:
        """Whether it has not expired."""
        return time.monotonic() < self.until


class Access:
    """All open accesses, by resource id."""

    def __init__(self, contents: Contents) -> None:
        """None."""
        self._contents = contents
        self.grants: dict[str, Grant] = {}
        self._numbers = itertools.count(1)

    def granted(self, resource: str) -> bool:
        """Whether a disk or snapshot is open."""
        found = self.grants.get(resource.lower())
        return found is not None and found.active

    def siblings(self, disk: str) -> list[Grant]:
        """The open accesses of snapshots of the disk with this unique id."""
        return [one for one in self.grants.values() if one.disk == disk and one.at and one.active]

    async def open(self, resource: str, wanted: Grant, seconds: int, *, extends: bool) -> str:
        """Open access from now on; its SAS. A second one extends the first, or replaces it unless `extends`."""
        former = self.grants.get(resource.lower())
        if former and extends:
            wanted.policy = former.policy
        elif former:
            await self._contents.deny(former.disk, former.policy)
        wanted.policy = wanted.policy or f"{'upload' if wanted.write else 'policy'}-{next(self._numbers)}"
        self.grants[resource.lower()] = wanted
        await self._contents.allow(wanted.disk, wanted.policy, seconds, write=wanted.write)
        return self._contents.sas(wanted.disk, wanted.policy, wanted.at, private=wanted.private)

    async def close(self, resource: str) -> None:
        """End access, for every user of it; nothing open is success."""
        found = self.grants.pop(resource.lower(), None)
        if found:
            await self._contents.deny(found.disk, found.policy)

    async def interrupt(self, disk: str) -> None:
        """Have every SAS of the disk's snapshots refused until it is granted again; the snapshots are still open."""
        for one in self.siblings(disk):
            await self._contents.deny(one.disk, one.policy)


def refuse_grant(resource: Resource, body: Resource, open_already: Iterable[Grant]) -> None:
    """Raise ConflictError for a grant that Azure does not make. `open_already`: of the same disk's other snapshots."""
    inside, creation = resource["properties"], resource["properties"].get("creationData") or {}
    seconds = body.get("durationInSeconds", 0)
    if body.get("access") not in ("Read", "Write") or not 0 < seconds <= SECONDS_MAX:
        message = (
            f"Access {body.get('access')} for {seconds} seconds: Read or Write, for 1 to {SECONDS_MAX} seconds, is possible."
        )
        raise ConflictError(message, status=400, code="InvalidParameter")
    if creation.get("logicalSectorSize") == 4096 and body.get("fileFormat") != "VHDX":
        message = (
            f"{resource['id']} has logical sectors of 4096 bytes: getting access requires specifying the file format VHDX."
        )
        raise ConflictError(message, status=400, code="BadRequest")
    uploads = inside.get("diskState") in ("ReadyToUpload", "ActiveUpload")
    faults: dict[str, Any] = {
        "is not in provisioningState Succeeded": inside.get("provisioningState") != "Succeeded",
        "is still being copied in the background": inside.get("completionPercent", 100) < 100,
        "has networkAccessPolicy DenyAll: it cannot be exported": inside.get("networkAccessPolicy") == "DenyAll",
        "is attached to a running VM": inside.get("diskState") == "Attached",
        "is to be written for an upload, and nothing else is": uploads != (body.get("access") == "Write"),
        f"belongs to a disk that has {GRANTS_MAX} snapshots open": len(list(open_already)) >= GRANTS_MAX,
    }
    for words, wrong in faults.items():
        if wrong:
            message = f"Access to {resource['id']} cannot be granted: it {words}."
            raise ConflictError(message, status=409, code="OperationNotAllowed")
