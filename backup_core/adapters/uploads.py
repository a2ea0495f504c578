"""Managed disks that are made by an upload: written as VHDs by export URLs, closed for good, then read back.

The service has no lease and no sequence number for them. What protects a disk from a late writer is that its write access is
ended, and is never granted again: each grant comes after a look at the disk, and Azure refuses it as well.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Literal

from backup_core.adapters.arm import translated
from backup_core.adapters.machine_models import managed_disk_of
from backup_core.adapters.managed_access import UPLOADED, Door, lost
from backup_core.domain.errors import (
    AccessDeniedError,
    BlobMissingError,
    ContainerMissingError,
    FencedError,
    ManagedDiskRefusedError,
)
from backup_core.domain.managed import OPEN_STATES, READY, reading_fault, writing_fault

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from azure.mgmt.compute.aio import ComputeManagementClient

    from backup_core.adapters.managed_access import Access, Grant
    from backup_core.adapters.page_data import PageData, Upload
    from backup_core.domain.managed import ManagedDisk
    from backup_core.domain.naming import BlobAddress, DiskAddress
    from backup_core.domain.ranges import ByteRange


REFUSALS = (AccessDeniedError, BlobMissingError, ContainerMissingError)
"""Answers of the address of an upload whose access has ended: they leave open whether its SAS is gone, or all of it."""


class AzureUploads:
    """Managed disks themselves, as the PageBlobs port needs them of a destination."""

    def __init__(self, client: Callable[[str], ComputeManagementClient], data: PageData, access: Access) -> None:
        """`client` gives the client of a subscription; `data` writes; `access` is this process's."""
        self._client, self._data, self._access = client, data, access

    async def _disk(self, disk: DiskAddress) -> ManagedDisk:
        with translated(f"look at managed disk {disk}", UPLOADED):
            return managed_disk_of(disk.id, (await self._client(disk.subscription).disks.get(disk.group, disk.name)).as_dict())

    # -- access ---------------------------------------------------------------------------------------------------------

    async def open_to_read(self, disk: DiskAddress, refused: Grant | None = None) -> Grant:
        """Read access to the disk itself. Raises ManagedDiskRefusedError."""

        async def look() -> None:
            # G70: the run's own, closed before it is read, and no machine's.
            if fault := reading_fault(await self._disk(disk), disk.run):
                message = f"managed disk {disk}: {fault}; nothing was opened; look who uses it, and restore again"
                raise ManagedDiskRefusedError(message)

        return await self._access.open(_door(disk), look, refused, looks_first=True)

    async def _open_to_write(self, disk: DiskAddress, refused: Grant | None = None) -> Grant:
        door = _door(disk, writes=True)
        try:
            return await self._access.open(door, lambda: self._require_upload(disk), refused, looks_first=True)
        except ManagedDiskRefusedError:
            # The upload may have ended after the look.
            await self._require_upload(disk)
            raise

    async def _require_upload(self, disk: DiskAddress) -> None:
        # G70: what has been closed, or is not the run's own, is not written.
        if fault := writing_fault(await self._disk(disk), disk.run):
            message = f"managed disk {disk}: its upload has ended: {fault}; no byte was written; follow the run that is at work"
            raise FencedError(message)

    def _onto(self, disk: DiskAddress) -> Upload:
        """Has an act done with the URL by which the disk is written; a refused one is opened once more."""

        async def onto(act: Callable[[str], Awaitable[None]]) -> None:
            grant = await self._open_to_write(disk)
            try:
                return await act(grant.url)
            except REFUSALS:
                again = await self._open_to_write(disk, refused=grant)
            try:
                return await act(again.url)
            except REFUSALS as error:
                await self._require_upload(disk)
                raise lost(error) from None

        return onto

    async def close(self, disk: DiskAddress, *, ends: bool = False) -> None:
        """Disks, Revoke Access, where any is granted; after a write access that completes the upload. Access to one that `ends`
        is granted once more where there is none: it has expired.
        """
        self._access.forget(disk.id)
        with suppress(BlobMissingError):
            if ends and (await self._disk(disk)).disk_state == READY:
                # Ended by somebody else by then, or another's, it has ended.
                with suppress(FencedError):
                    await self._open_to_write(disk)
            async with self._access.lock(disk.id):
                self._access.forget(disk.id)
                found = await self._disk(disk)
                # G72: nobody else's access is ended.
                if disk.run in ("", found.run) and found.disk_state in OPEN_STATES:
                    await self._access.end(_door(disk))

    # -- content ----------------------------------------------------------------------------------------------------------

    async def copy_streamed(
        self, source: BlobAddress, snapshot: str, part: ByteRange, disk: DiskAddress, *, keep_zeros: bool
    ) -> None:
        """Get Blob, then Put Page, of zeros clear."""
        await self._data.stream(source, snapshot, part, disk, self._onto(disk), keep_zeros=keep_zeros)

    async def copy_from_url(self, source: BlobAddress, snapshot: str, part: ByteRange, disk: DiskAddress) -> None:
        """Put Page From URL."""
        await self._data.from_url(source, snapshot, part, disk, self._onto(disk))

    async def clear(self, disk: DiskAddress, part: ByteRange) -> None:
        """Put Page, clear."""
        await self._data.clear(disk, part, self._onto(disk))


def _door(disk: DiskAddress, *, writes: bool = False) -> Door:
    access: Literal["Read", "Write"] = "Write" if writes else "Read"
    words = f"managed disk {disk}"
    return Door(disk.id, words, disk.subscription, disk.group, disk.name, access, of_disk=True, run=disk.run)
