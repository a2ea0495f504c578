"""Page blobs of every account that the app may use, and their properties."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping
    from datetime import datetime

    from backup_core.domain.naming import BlobAddress, DiskAddress, Source
    from backup_core.domain.ranges import ByteRange, DiffRange


CopyStatus = Literal["pending", "success", "failed", "aborted"]


@dataclass(frozen=True)
class BlobProperties:
    """A blob or snapshot as the service describes it."""

    size: int
    etag: str
    page_blob: bool
    created: datetime
    sequence_number: int
    metadata: Mapping[str, str]
    copy: CopyState | None = None
    """The last copy onto the blob, if any."""
    tier: str = ""
    """The performance tier somebody set on a premium page blob; empty where the service chose it by size."""
    percent: int = 100
    """Percent of a snapshot that can be read: Azure fills those of some managed disks in the background."""
    failure: str = ""
    """Reason why such a snapshot will never be complete."""


@dataclass(frozen=True)
class CopyState:
    """A Copy Blob of the service."""

    copy_id: str
    status: CopyStatus
    done_bytes: int
    total_bytes: int
    description: str = ""


@dataclass(frozen=True)
class SnapshotInfo:
    """One snapshot of a blob."""

    snapshot: str
    metadata: Mapping[str, str]
    named: bool = False
    """Whether it has a name that only this app gives to a snapshot with that metadata: then nobody has inherited them."""


@dataclass(frozen=True)
class FailedSnapshot:
    """A snapshot of a managed disk that Azure failed to make. It has no moment and no content, and stays until deleted."""

    name: str
    metadata: Mapping[str, str]


@dataclass(frozen=True)
class ListedBlob:
    """A blob, or a snapshot of one, of a listing."""

    name: str
    snapshot: str
    """Empty for the blob itself."""
    metadata: Mapping[str, str]


@dataclass(frozen=True)
class Fence:
    """The condition of every write to a head's pages: refused once the lease or the epoch is another's."""

    lease: str
    epoch: int


@dataclass(frozen=True)
class Guard:
    """The condition of every other write to a head: the lease, and the version that the write was decided on."""

    lease: str
    etag: str


class PageBlobs(Protocol):
    """Page blobs of all accounts this app may use, and managed disks. Snapshots of managed disks are read as fixed VHDs, and so
    is what a new disk is made of.

    Methods with a `Source` take both. A managed disk itself is opened only when it was made for an upload, by the run that its
    address names: to be written, until `close_disk` has ended the upload for good, then to be read, while no machine has it.
    """

    async def properties(self, blob: Source, snapshot: str = "") -> BlobProperties:
        """Describe the blob or snapshot. Raises BlobMissingError, SnapshotMissingError."""

    async def create(
        self, blob: BlobAddress, size: int, sequence_number: int, metadata: Mapping[str, str], tier: str = ""
    ) -> None:
        """Create an empty page blob where nothing is; a `tier` is for premium accounts only. Raises BlobExistsError and changes
        nothing where something is.
        """

    async def delete_own(self, blob: BlobAddress, guard: Guard, *, bare: bool = False) -> None:
        """Delete the blob with its snapshots under `guard.lease` and at that version; a missing one is success. A `bare`
        one must have none: raises SnapshotsPresentError. Raises FencedError, BlobChangedError, and deletes nothing that another
        lease protects.
        """

    async def may_write(self, account: str, container: str) -> bool:
        """Whether this app may write blobs there, learned from a request that cannot change anything."""

    async def acquire_lease(self, blob: BlobAddress, lease: str) -> None:
        """Take the infinite lease `lease`; having it already is success. Raises LeaseTakenError, BlobMissingError."""

    async def break_lease(self, blob: BlobAddress) -> None:
        """End any lease at once; none is success."""

    async def release_lease(self, blob: BlobAddress, lease: str) -> None:
        """Release `lease`; another lease, or no blob, is success."""

    async def start_copy(
        self,
        source: Source,
        snapshot: str,
        destination: BlobAddress,
        metadata: Mapping[str, str],
        tier: str = "",
        over: str = "",
    ) -> str:
        """Have the service copy the snapshot to a blob that does not exist, or over the one whose ETag is `over`, with this
        metadata; returns the copy's id. While it is pending the destination takes no lease, write, snapshot or other copy.
        Raises BlobExistsError, BlobChangedError where it is not at `over`, CopySourceRefusedError.
        """

    async def abort_copy(self, blob: BlobAddress, copy_id: str) -> None:
        """End the pending copy; the blob stays, without content. None pending, or no blob, is success."""

    # The next three change the blob under a guard and return the new ETag. A blob that has the value already, at another
    # version, is success and stays as it is: a request whose answer was lost, or one of a delivery that died, has done it.

    async def set_metadata(self, blob: BlobAddress, metadata: Mapping[str, str], guard: Guard) -> str:
        """Replace the metadata. Raises FencedError, BlobChangedError."""

    async def set_sequence_number(self, blob: BlobAddress, number: int, guard: Guard) -> str:
        """Set the sequence number, up or down. Raises FencedError, BlobChangedError."""

    async def resize(self, blob: BlobAddress, size: int, guard: Guard) -> str:
        """Change the size. Raises FencedError, BlobChangedError."""

    async def snapshot(self, blob: Source, metadata: Mapping[str, str], guard: Guard | None = None) -> str:
        """Take a snapshot with its own metadata; returns its id. The ETag does not change. Not idempotent, and never
        sent twice: after an error there may be one, so look in `snapshots` before it is called again. Of a managed disk two
        calls at the same time with the same metadata take one. Raises BlobMissingError, SnapshotLimitError and, with a guard,
        FencedError, BlobChangedError.
        """

    async def snapshots(self, blob: Source) -> list[SnapshotInfo]:
        """All snapshots of exactly this blob, oldest first; none, or no blob, is the empty list."""

    async def failed_snapshots(self, source: Source) -> list[FailedSnapshot]:
        """Failed snapshots of a managed disk under names that only this app gives to those with that metadata. `snapshots` has
        none of them. A page blob has none.
        """

    async def delete_failed_snapshot(self, source: Source, name: str) -> None:
        """Delete a failed snapshot of the disk. A missing one, and one that has not failed, is left alone."""

    def folders(self, account: str, container: str) -> AsyncIterator[str]:
        """The first segments of all blob names in the container, once each, in any order: of "a/b.vhd" it is "a"."""

    def listed(self, account: str, container: str, prefix: str) -> AsyncIterator[ListedBlob]:
        """Blobs whose names begin with `prefix`, and their snapshots, by name. Raises BlobMissingError without container."""

    async def close_access(self, source: Source) -> None:
        """End all access to the snapshots that this deployment took of a managed disk: every reader has to open them anew.
        Nothing open is success; a page blob has nothing to be closed.
        """

    async def close_disk(self, disk: DiskAddress, *, ends: bool = False) -> None:
        """End all access to the disk itself; where it was written, that ends its upload for good. Nothing open, no disk, or one
        that another run has made, is success; a disk that is ready to be written stays so, unless its upload `ends`: what was
        written may be ready once more after its access has expired. Raises ManagedDiskRefusedError when Azure does not take
        what was written: it is no VHD of the disk's size.
        """

    async def delete_snapshot(self, blob: Source, snapshot: str) -> None:
        """Delete one snapshot; a missing one is success, a missing container is not: it may be had back, with all its
        snapshots. Raises ContainerMissingError. Refuses an id that is not a snapshot's: that call would hit the base blob.
        """

    def allocated(self, blob: Source, snapshot: str, window: ByteRange) -> AsyncIterator[ByteRange]:
        """Allocated ranges inside the window, ascending, through every continuation. An empty `snapshot` is the base, or the
        disk itself: raises ManagedDiskRefusedError as `read` does.
        """

    def diff(self, blob: Source, snapshot: str, previous: str, window: ByteRange) -> AsyncIterator[DiffRange]:
        """Ranges written or cleared between two snapshots (or up to the base, for an empty `snapshot`), inside the window,
        ascending, through every continuation. Raises DiffRefusedError where the service gives no answer.
        """

    async def read(self, blob: Source, snapshot: str, part: ByteRange) -> bytes:
        """Exactly the bytes of the range (at most 4 MiB). Raises TransferDamagedError, SnapshotMissingError; of a disk itself
        (empty `snapshot`) ManagedDiskRefusedError unless it was uploaded, that has ended, and no machine has it.
        """

    # The next three write. A managed disk has no fence: `fence` is not sent, and FencedError says that its upload has ended.

    async def copy_streamed(
        self, source: Source, snapshot: str, part: ByteRange, head: Source, fence: Fence, *, keep_zeros: bool = False
    ) -> None:
        """Put the snapshot's bytes of the range (at most 4 MiB) at the same place of the head, read and written by this
        process. Long runs of zeros are cleared, unless `keep_zeros`. A repeat is harmless. Raises
        FencedError, TransferDamagedError, SnapshotMissingError.
        """

    async def copy_from_url(self, source: Source, snapshot: str, part: ByteRange, head: Source, fence: Fence) -> None:
        """The same, fetched by the head's account itself: no byte passes this process. A repeat is harmless.
        Raises FencedError, and CopySourceRefusedError where that account cannot read the source.
        """

    async def clear(self, blob: Source, part: ByteRange, fence: Fence) -> None:
        """Clear the range to zeros, freeing it. A repeat is harmless. Raises FencedError."""
