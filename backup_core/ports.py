"""What the activities need of the world, as Protocols. The semantics in these docstrings are the contract: one port suite in
the tests holds the Azure adapters and the in-memory ports to it.

All methods may raise ServiceUnavailableError, AccessDeniedError and UnexpectedAnswerError besides what they name.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence
    from datetime import datetime

    from backup_core.domain.events import Event
    from backup_core.domain.managed import ManagedDisk
    from backup_core.domain.naming import BlobAddress
    from backup_core.domain.ranges import ByteRange, DiffRange
    from backup_core.domain.records import Head, Pin, Registration, RequestKey, RestorePoint, Run, Versioned
    from backup_core.domain.repoint import Machine, MachineDisk


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


@dataclass(frozen=True)
class ListedBlob:
    """A blob or a snapshot of one, as a listing tells it."""

    name: str
    snapshot: str
    """Empty for the blob itself."""
    metadata: Mapping[str, str]


@dataclass(frozen=True)
class ListedDocument:
    """A document as a listing tells it."""

    name: str
    changed: datetime
    """When it was last stored, by the service's clock."""


ROWS_PER_COMMIT = 99
"""A transaction of the table service takes 100 rows; one of them is the head row."""


@dataclass(frozen=True)
class Fence:
    """What every write to a head's pages carries: refused once the lease or the epoch is another's."""

    lease: str
    epoch: int


@dataclass(frozen=True)
class Guard:
    """What every other write to a head carries: the lease, and the version it was decided on."""

    lease: str
    etag: str


class PageBlobs(Protocol):
    """Page blobs of all accounts this app may use."""

    async def properties(self, blob: BlobAddress, snapshot: str = "") -> BlobProperties:
        """Describe the blob or snapshot. Raises BlobMissingError, SnapshotMissingError."""

    async def create(
        self, blob: BlobAddress, size: int, sequence_number: int, metadata: Mapping[str, str], tier: str = ""
    ) -> None:
        """Create an empty page blob where nothing is; a `tier` is for premium accounts only. Raises BlobExistsError and changes
        nothing where something is.
        """

    async def delete_own(self, blob: BlobAddress, guard: Guard, *, bare: bool = False) -> None:
        """Delete the blob with its snapshots while `guard.lease` holds it at that version; a missing one is success. A `bare`
        one must have none: raises SnapshotsPresentError. Raises FencedError, BlobChangedError, and deletes nothing that anybody
        else holds.
        """

    async def may_write(self, account: str, container: str) -> bool:
        """Whether this app may write blobs there, learned from a request that cannot change anything."""

    async def acquire_lease(self, blob: BlobAddress, lease: str) -> None:
        """Hold the infinite lease `lease`; holding it already is success. Raises LeaseTakenError, BlobMissingError."""

    async def break_lease(self, blob: BlobAddress) -> None:
        """End whatever lease there is, at once; none is success."""

    async def release_lease(self, blob: BlobAddress, lease: str) -> None:
        """Let go of `lease`; not holding it, or no blob, is success."""

    async def start_copy(
        self, source: BlobAddress, snapshot: str, destination: BlobAddress, metadata: Mapping[str, str], tier: str = ""
    ) -> str:
        """Have the service copy the snapshot to a blob that does not exist, with this metadata; returns the copy's id. While it
        is pending the destination takes no lease, write or snapshot. Raises BlobExistsError, CopySourceRefusedError.
        """

    async def abort_copy(self, blob: BlobAddress, copy_id: str) -> None:
        """End the pending copy; the blob stays, without content. None pending, or no blob, is success."""

    # The next three change the blob under a guard and return the new ETag. One that is as asked already, at another version, is
    # success and stays as it is: a request whose answer was lost, or one of a delivery that died, has done it.

    async def set_metadata(self, blob: BlobAddress, metadata: Mapping[str, str], guard: Guard) -> str:
        """Replace the metadata. Raises FencedError, BlobChangedError."""

    async def set_sequence_number(self, blob: BlobAddress, number: int, guard: Guard) -> str:
        """Set the sequence number, up or down. Raises FencedError, BlobChangedError."""

    async def resize(self, blob: BlobAddress, size: int, guard: Guard) -> str:
        """Change the size. Raises FencedError, BlobChangedError."""

    async def snapshot(self, blob: BlobAddress, metadata: Mapping[str, str], guard: Guard | None = None) -> str:
        """Take a snapshot with its own metadata; returns its id. The ETag does not change. Not idempotent, and never
        sent twice: after an error there may be one, so look in `snapshots` before it is called again. Raises BlobMissingError
        and, with a guard, FencedError, BlobChangedError.
        """

    async def snapshots(self, blob: BlobAddress) -> list[SnapshotInfo]:
        """All snapshots of exactly this blob, oldest first; none, or no blob, is the empty list."""

    def folders(self, account: str, container: str) -> AsyncIterator[str]:
        """The first segments of all blob names in the container, once each, in any order: of "a/b.vhd" it is "a"."""

    def listed(self, account: str, container: str, prefix: str) -> AsyncIterator[ListedBlob]:
        """Blobs whose names begin with `prefix`, and their snapshots, by name. Raises BlobMissingError without container."""

    async def delete_snapshot(self, blob: BlobAddress, snapshot: str) -> None:
        """Delete one snapshot; a missing one is success. Refuses an id that is not a snapshot's: that call would hit the
        base blob.
        """

    def allocated(self, blob: BlobAddress, snapshot: str, window: ByteRange) -> AsyncIterator[ByteRange]:
        """Allocated ranges inside the window, ascending, through every continuation. An empty `snapshot` is the base."""

    def diff(self, blob: BlobAddress, snapshot: str, previous: str, window: ByteRange) -> AsyncIterator[DiffRange]:
        """Ranges written or cleared between two snapshots (or up to the base, for an empty `snapshot`), inside the window,
        ascending, through every continuation. Raises DiffRefusedError where the service gives no answer.
        """

    async def read(self, blob: BlobAddress, snapshot: str, part: ByteRange) -> bytes:
        """Exactly the bytes of the range (at most 4 MiB). Raises TransferDamagedError, SnapshotMissingError."""

    async def copy_streamed(self, source: BlobAddress, snapshot: str, part: ByteRange, head: BlobAddress, fence: Fence) -> None:
        """Put the snapshot's bytes of the range (at most 4 MiB) at the same place of the head, read and written by this
        process. A repeat is harmless. Raises FencedError, TransferDamagedError, SnapshotMissingError.
        """

    async def copy_from_url(self, source: BlobAddress, snapshot: str, part: ByteRange, head: BlobAddress, fence: Fence) -> None:
        """The same, fetched by the head's account itself: no byte passes this process. A repeat is harmless.
        Raises FencedError, and CopySourceRefusedError where that account cannot read the source.
        """

    async def clear(self, blob: BlobAddress, part: ByteRange, fence: Fence) -> None:
        """Clear the range to zeros, freeing it. A repeat is harmless. Raises FencedError."""


class Documents(Protocol):
    """Small JSON documents beside the backups: plans, and how far they are carried out."""

    async def put_if_absent(self, name: str, text: str) -> bool:
        """Store the document unless one of that name exists. True when this call has certainly stored it: where an answer was
        lost and the request sent again, it may be False although nobody else was there.
        """

    async def put(self, name: str, text: str) -> None:
        """Store the document in place of what was there."""

    async def get(self, name: str) -> str | None:
        """The document, or None."""

    def listed(self, prefix: str) -> AsyncIterator[ListedDocument]:
        """Documents whose names begin with `prefix`, by name."""

    async def delete(self, name: str) -> None:
        """Delete the document; a missing one is success."""


class Journal(Protocol):
    """Where the app tells what happened. Telling never fails and never waits."""

    def write(self, event: Event) -> None:
        """Tell the event."""


class Catalogue(Protocol):
    """The table of disks, restore points and runs. Every update names the version it was decided on.

    Reading raises RecordUnreadableError for a row that holds what this version cannot read; it names disk and row.
    """

    async def claim_source(self, source: str, disk: str) -> str:
        """Claim the source blob for the disk unless another has claimed it; returns the disk that holds it. A claim the disk
        holds already is renewed. Raises RowChangedError.
        """

    async def claims(self, disk: str) -> list[Versioned[str]]:
        """The sources the disk has claimed: one, or more where somebody died while its registration moved."""

    async def source_holder(self, source: str) -> str | None:
        """The disk that has claimed the source blob, if any."""

    async def release_source(self, source: str, disk: str, etag: str | None = None) -> None:
        """Give the claim up if the disk holds it, and with an `etag` only at that version; otherwise nothing. An empty `etag`
        is no claim's version.
        """

    async def disks(self) -> list[str]:
        """Ids of all registered disks, ascending."""

    async def request(self, disk: str, key: str) -> RequestKey | None:
        """The request that was made under the key."""

    async def begin_request(self, run: Run, request: RequestKey) -> None:
        """Insert the run's row and its request's row together. Raises RowExistsError and inserts neither."""

    async def registration(self, disk: str) -> Versioned[Registration] | None:
        """The disk's registration."""

    async def put_registration(self, registration: Registration, etag: str | None) -> str:
        """Insert (no etag) or update the registration. Raises RowExistsError, RowChangedError."""

    async def head(self, disk: str) -> Versioned[Head] | None:
        """The disk's head row."""

    async def put_head(self, head: Head, etag: str | None) -> str:
        """Insert (no etag) or update the head row; returns its ETag. Raises RowExistsError, RowChangedError."""

    async def run(self, disk: str, run: str) -> Versioned[Run] | None:
        """The run's row; `changed` is its heartbeat, by the service's clock."""

    async def put_run(self, run: Run, etag: str | None) -> str:
        """Insert (no etag) or update a run's row. Raises RowExistsError, RowChangedError."""

    async def begin_window(self, run: Run) -> None:
        """Insert the run's row and its window's row together. Raises RowExistsError and inserts neither."""

    async def commit(
        self,
        points: Sequence[RestorePoint],
        head: Head,
        head_etag: str | None,
        changed: Sequence[Versioned[RestorePoint]] = (),
        registration: Versioned[Registration] | None = None,
    ) -> str:
        """Insert the points, replace the `changed` ones and the `registration` (values with the versions they were decided
        on), and insert or update the head row, in one transaction of at most ROWS_PER_COMMIT other rows; returns the head row's
        ETag.
        Raises RowExistsError, RowChangedError.
        """

    async def point(self, disk: str, point: str) -> Versioned[RestorePoint] | None:
        """One restore point."""

    async def points(
        self,
        disk: str,
        limit: int,
        after: str = "",
        state: str = "",
        since: datetime | None = None,
        until: datetime | None = None,
    ) -> list[Versioned[RestorePoint]]:
        """Restore points newest first, at most `limit`, older than the point `after`, in `state` when given, taken in
        [since, until).
        """

    async def mark_deleting(self, row: Versioned[RestorePoint]) -> Versioned[RestorePoint]:
        """Set the point's state to `deleting` under the version it was read at. Raises RowChangedError."""

    async def mark_lost(self, row: Versioned[RestorePoint]) -> Versioned[RestorePoint]:
        """Set the point's state to `lost` under the version it was read at. Raises RowChangedError."""

    async def delete_point(self, row: Versioned[RestorePoint]) -> None:
        """Delete the point's row; one that is gone is success. Raises RowChangedError."""

    async def pin(self, pin: Pin, row: Versioned[RestorePoint]) -> None:
        """Insert the pin and touch the point's row under the version it was read at, in one transaction; the same pin twice is
        success. Raises RowChangedError.
        """

    async def unpin(self, pin: Pin) -> None:
        """Delete the pin; none is success."""

    async def pins(self, disk: str) -> list[Pin]:
        """All pins of the disk's points."""

    async def runs(
        self,
        disk: str,
        limit: int,
        after: str = "",
        state: str = "",
        since: datetime | None = None,
        until: datetime | None = None,
    ) -> list[Run]:
        """Runs newest first, at most `limit`, that come after the run `after` (of any disk) in the order of all runs, in
        `state` when given, asked for in [since, until) to the second.
        """

    async def forget_runs(self, disk: str, before: datetime, limit: int) -> int:
        """Delete rows of runs that have ended and were asked for before then, with the rows of their windows, and requests last
        changed before then, at most `limit` in all; returns how many. The disk's newest run is kept.
        """

    async def now(self) -> datetime:
        """The present time by the clock that dates `changed`, to the second."""


class Machines(Protocol):
    """Virtual machines and managed disks. A change may outlast its call: then it answers False, and reading tells the rest.

    All methods raise MachineMissingError where the object or its group is missing, MachineBusyError while another operation is
    under way, and MachineRefusedError with Azure's code where a change is refused for good.
    """

    async def machine(self, vm: str) -> Machine:
        """The machine with its disks, and whether it runs."""

    async def put_disk(self, machine: Machine, lun: int | None, disk: MachineDisk | None) -> bool:
        """Give the slot this disk, or none, and leave everything else of the machine as it was read; True once it is done.
        Raises MachineChangedError when the machine is not at the version `machine` was read at.
        """

    async def deallocate(self, vm: str) -> bool:
        """Stop the machine and release its hardware. A repeat is harmless."""

    async def start(self, vm: str) -> bool:
        """Start the machine. A repeat is harmless."""

    async def managed_disk(self, disk: str) -> ManagedDisk | None:
        """The managed disk, or None."""

    async def import_disk(self, wanted: ManagedDisk, account: str, location: str) -> bool:
        """Make a managed disk as described of the VHD that it names as its source, marked as the run's own; True once Azure
        says that it is complete. `account` is the resource id of the storage account of the VHD. Whether a disk that is there
        already is refused is not certain: look first, and read back.
        """

    async def permitted(self, resource: str, actions: Sequence[str]) -> dict[str, bool]:
        """Whether this app may do each of the actions on the resource, as Azure's own list of permissions says."""
