"""Managed disks themselves in memory: who may write or read them and by which URL, until their upload has ended."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from backup_core.adapters.answers import fault_of
from backup_core.domain.managed import UPLOAD, WRITABLE_STATES
from backup_core.domain.ranges import PAGE
from tests.doubles.refusals import SIGNATURE, refuse

if TYPE_CHECKING:
    from collections.abc import Callable

    from backup_core.domain.naming import DiskAddress, Source
    from backup_core.domain.ranges import ByteRange
    from tests.doubles.azure_disks import MemoryCloud
    from tests.doubles.page_blobs import Blob

Holder = tuple[str, str]
"""A machine's resource id and its power."""


@dataclass
class Opened:
    """Access to a disk itself."""

    disk: Blob
    write: bool
    url: str = field(repr=False)
    until: float


class MemoryUploads:
    """Access to disks themselves, and their states."""

    def __init__(self, cloud: MemoryCloud) -> None:
        """Of the disks of `cloud`; none is open."""
        self._cloud = cloud
        self._opened: dict[DiskAddress, Opened] = {}
        self._numbers = itertools.count(1)
        self.holder: Callable[[DiskAddress], Holder | None] = lambda _: None
        """The machine that has a disk."""
        self.unit = PAGE
        """What the size of an upload is a multiple of: Azure's is a MiB, most tests' disks are smaller."""

        self.signs = False
        """Whether the end of an upload gives the disk a footer of its own."""

        self.ready_when_expired = False
        """Whether an upload whose access has expired is ready once more; else it is active still."""

    def make(self, address: DiskAddress, size: int, tags: dict[str, str]) -> None:
        """A disk of zeros, without a footer, that waits for its upload."""
        made = self._cloud.blobs.put_disk(address, size)
        made.pages, made.upload, made.create_option, made.metadata = {}, "ReadyToUpload", UPLOAD, tags

    def state(self, address: DiskAddress) -> str:
        """The disk's state, in Azure's word."""
        disk, user = self._cloud.blobs.disks[address], self.holder(address)
        if disk.upload == "ActiveUpload" and self.ready_when_expired and not self.granted(address):
            return "ReadyToUpload"
        if disk.upload:
            return disk.upload
        if self.granted(address):
            return "ActiveSAS"
        if user:
            return "Reserved" if user[1] == "deallocated" else "Attached"
        return "Unattached"

    def granted(self, address: DiskAddress) -> bool:
        """Whether the disk itself is open."""
        found = self._opened.get(address)
        return found is not None and found.disk is self._cloud.blobs.disks.get(address) and self._cloud.now < found.until

    @property
    def open(self) -> set[DiskAddress]:
        """Disks that are open themselves."""
        return {address for address in self._opened if self.granted(address)}

    def grant(self, address: DiskAddress, *, write: bool, seconds: int) -> str:
        """Open the disk; its URL. Raises 409 for a read of what is being uploaded, and for a write of anything else."""
        disk, state = self._cloud.blobs.disks[address], self.state(address)
        if write != (state in WRITABLE_STATES) or state == "Attached":
            message = f"Access to disk {address} for {'writing' if write else 'reading'} cannot be granted: it is {state}."
            refuse(409, "OperationNotAllowed", message)
        former = self._opened.get(address) if self.granted(address) else None
        if former and self._cloud.grant_extends:
            former.until = self._cloud.now + seconds
            return former.url
        self._cloud.counts["grants that ended another"] += former is not None
        number = next(self._numbers)
        place = f"https://md-impexp-sim.blob.storage.azure.net/{address.name}/abcd"
        url = f"{place}?sv=2018-11-09&sr=b&si=disk-policy-{number}&sig={SIGNATURE}{number:04d}%3D"
        self._opened[address] = Opened(disk, write, url, self._cloud.now + seconds)
        disk.upload = "ActiveUpload" if write else ""
        return url

    def revoke(self, address: DiskAddress) -> None:
        """End the access, and with it an upload. Raises 400 for one whose content is no VHD: it is not ended."""
        disk = self._cloud.blobs.disks[address]
        if self.state(address) == "ActiveUpload":
            last = disk.size // PAGE - 1
            if not disk.pages.get(last, b"").startswith(b"conectix"):
                refuse(400, "InvalidVhd", f"The content of disk {address} has no footer with the cookie value 'conectix'.")
            disk.upload = ""
            if self.signs:
                disk.pages = {**disk.pages, last: disk.pages[last][:-1] + b"\1"}
        self._opened.pop(address, None)

    def behind(self, url: str, what: str, *, write: bool) -> tuple[DiskAddress, Blob] | None:
        """The disk behind a URL; None for another's. Raises AccessDeniedError for one that is good for something else."""
        for address, one in self._opened.items():
            if one.url == url and self.granted(address):
                if one.write != write:
                    raise fault_of(403, "AuthorizationPermissionMismatch", "", what)
                return address, one.disk
        return None

    def write(self, url: str, disk: Source, part: ByteRange, data: bytes | None, what: str) -> None:
        """Put pages, or with None clear them. Raises AccessDeniedError for a URL that is not, or no longer, good for it."""
        found = self.behind(url, what, write=True)
        if found is None:
            self._cloud.counts["writes to a closed disk refused"] += 1
            raise fault_of(403, "AuthenticationFailed", f"Signature did not match: {url}", what)
        if found[0] != disk:
            self._cloud.misread = self._cloud.misread or f"{found[0]} was written for {disk}"
        if part.end > found[1].size:
            raise fault_of(416, "InvalidPageRange", "", what)
        pages = range(part.start // PAGE, part.end // PAGE)
        self._cloud.blobs.change(
            found[1], {page: data and data[(page - pages[0]) * PAGE : (page - pages[0] + 1) * PAGE] for page in pages}
        )
