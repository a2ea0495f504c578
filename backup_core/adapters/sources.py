"""One port for both kinds of source: page blobs by the Blob service, managed disks by their snapshots' exports."""

from __future__ import annotations

from typing import TYPE_CHECKING

from backup_core.adapters.page_blobs import AzurePageBlobs
from backup_core.domain.errors import BlobExistsError, BlobMissingError, UnexpectedAnswerError
from backup_core.domain.naming import BlobAddress, DiskAddress

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from azure.storage.blob.aio import BlobServiceClient

    from backup_core.adapters.managed_disks import AzureManagedDisks
    from backup_core.adapters.page_data import PageData
    from backup_core.adapters.page_lists import PageLists
    from backup_core.domain.naming import Source
    from backup_core.domain.ranges import ByteRange, DiffRange
    from backup_core.ports import BlobProperties, FailedSnapshot, Fence, Guard, SnapshotInfo


class AzureSources(AzurePageBlobs):
    """The PageBlobs port: what names a managed disk goes to `disks`, all else to the Blob service."""

    def __init__(
        self, accounts: Mapping[str, BlobServiceClient], data: PageData, lists: PageLists, disks: AzureManagedDisks
    ) -> None:
        """As AzurePageBlobs, and managed disks by `disks`."""
        super().__init__(accounts, data, lists)
        self.disks = disks

    async def properties(self, blob: Source, snapshot: str = "") -> BlobProperties:
        """Describe the blob, disk or snapshot."""
        found = self.disks.properties(blob, snapshot) if isinstance(blob, DiskAddress) else super().properties(blob, snapshot)
        return await found

    async def start_copy(
        self,
        source: Source,
        snapshot: str,
        destination: BlobAddress,
        metadata: Mapping[str, str],
        tier: str = "",
        over: str = "",
    ) -> str:
        """Copy Blob, of a blob or of an export that stays open for as long as it may take."""
        if isinstance(source, BlobAddress):
            return await super().start_copy(source, snapshot, destination, metadata, tier, over)
        what = f"copy {source} {snapshot} to {destination}"
        return await self.disks.begin_whole_copy(
            source,
            snapshot,
            lambda: self._require_at(destination, over),
            lambda url: self.start_copy_of(what, url, destination, metadata, tier, over),
        )

    async def _require_at(self, blob: BlobAddress, etag: str) -> None:
        """Raise BlobExistsError unless the blob has that version, or none and does not exist."""
        try:
            found = (await super().properties(blob)).etag
        except BlobMissingError:
            found = ""
        if found != etag:
            expected, found = f"version {etag}" if etag else "no blob", f"version {found}" if found else "no blob"
            message = f"{blob}: expected {expected}, found {found}; nothing was written; use another name"
            raise BlobExistsError(message)

    async def snapshot(self, blob: Source, metadata: Mapping[str, str], guard: Guard | None = None) -> str:
        """Take a snapshot; a disk has no lease or version to be guarded by."""
        if isinstance(blob, DiskAddress):
            return await self.disks.snapshot(blob, metadata)
        return await super().snapshot(blob, metadata, guard)

    async def snapshots(self, blob: Source) -> list[SnapshotInfo]:
        """List the snapshots."""
        return await (self.disks.snapshots(blob) if isinstance(blob, DiskAddress) else super().snapshots(blob))

    async def failed_snapshots(self, source: Source) -> list[FailedSnapshot]:
        """List the failed snapshots of a disk."""
        return await self.disks.failed_snapshots(source) if isinstance(source, DiskAddress) else []

    async def delete_failed_snapshot(self, source: Source, name: str) -> None:
        """Delete a failed snapshot of a disk."""
        if isinstance(source, DiskAddress):
            await self.disks.delete_failed_snapshot(source, name)

    async def close_access(self, source: Source) -> None:
        """End what was granted on a disk's snapshots."""
        if isinstance(source, DiskAddress):
            await self.disks.close_access(source)

    async def close_disk(self, disk: DiskAddress, *, ends: bool = False) -> None:
        """End what was granted on a disk itself."""
        await self.disks.uploads.close(disk, ends=ends)

    async def delete_snapshot(self, blob: Source, snapshot: str) -> None:
        """Delete one snapshot."""
        if isinstance(blob, DiskAddress):
            await self.disks.delete_snapshot(blob, snapshot)
        else:
            await super().delete_snapshot(blob, snapshot)

    def allocated(self, blob: Source, snapshot: str, window: ByteRange) -> AsyncIterator[ByteRange]:
        """List the allocated ranges."""
        if isinstance(blob, DiskAddress):
            return self.disks.allocated(blob, snapshot, window)
        return super().allocated(blob, snapshot, window)

    def diff(self, blob: Source, snapshot: str, previous: str, window: ByteRange) -> AsyncIterator[DiffRange]:
        """List what has changed."""
        if isinstance(blob, DiskAddress):
            return self.disks.diff(blob, snapshot, previous, window)
        return super().diff(blob, snapshot, previous, window)

    async def read(self, blob: Source, snapshot: str, part: ByteRange) -> bytes:
        """Read the range."""
        return await (
            self.disks.read(blob, snapshot, part) if isinstance(blob, DiskAddress) else super().read(blob, snapshot, part)
        )

    async def copy_streamed(
        self, source: Source, snapshot: str, part: ByteRange, head: Source, fence: Fence, *, keep_zeros: bool = False
    ) -> None:
        """Read, then put."""
        if isinstance(head, DiskAddress):
            await self.disks.uploads.copy_streamed(_blob(source), snapshot, part, head, keep_zeros=keep_zeros)
        elif isinstance(source, DiskAddress):
            await self.disks.copy_streamed(source, snapshot, part, head, fence, keep_zeros=keep_zeros)
        else:
            await super().copy_streamed(source, snapshot, part, head, fence, keep_zeros=keep_zeros)

    async def copy_from_url(self, source: Source, snapshot: str, part: ByteRange, head: Source, fence: Fence) -> None:
        """Have the range fetched by the head's account."""
        if isinstance(head, DiskAddress):
            await self.disks.uploads.copy_from_url(_blob(source), snapshot, part, head)
        elif isinstance(source, DiskAddress):
            await self.disks.copy_from_url(source, snapshot, part, head, fence)
        else:
            await super().copy_from_url(source, snapshot, part, head, fence)

    async def clear(self, blob: Source, part: ByteRange, fence: Fence) -> None:
        """Clear the range."""
        await (self.disks.uploads.clear(blob, part) if isinstance(blob, DiskAddress) else super().clear(blob, part, fence))


def _blob(source: Source) -> BlobAddress:
    """The page blob that an upload is made of: restore points are page blobs. Raises UnexpectedAnswerError for others."""
    if isinstance(source, BlobAddress):
        return source
    message = f"managed disk {source}: only a page blob is uploaded to a managed disk; nothing was written"
    raise UnexpectedAnswerError(message)
