# Long: the rules of one service, which refer to each other.
"""Page blobs in memory, with the leases, sequence numbers, ETags, snapshots and diffs of the real ones; and managed disks, by
the real adapter over what Azure does in memory (azure_disks.py).
"""

from __future__ import annotations

import copy
import uuid
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal

from backup_core.adapters.managed_access import Exporting
from backup_core.adapters.managed_disks import AzureManagedDisks
from backup_core.domain.errors import (
    BlobChangedError,
    BlobExistsError,
    BlobMissingError,
    CopySourceRefusedError,
    DiffRefusedError,
    FencedError,
    HostUnknownError,
    LeaseTakenError,
    ServiceUnavailableError,
    SnapshotMissingError,
    SnapshotsPresentError,
    UnexpectedAnswerError,
)
from backup_core.domain.identity import Deployment
from backup_core.domain.naming import BlobAddress, DiskAddress, Source, is_snapshot_id
from backup_core.domain.ranges import PAGE, PUT_BYTES_MAX, ByteRange, DiffRange
from backup_core.domain.zeros import without_zeros
from backup_core.ports import BlobProperties, CopyState, FailedSnapshot, Fence, Guard, ListedBlob, SnapshotInfo
from tests.doubles.azure_disks import HOSTS, MemoryCloud
from tests.doubles.exports import MemoryExports, merged

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable, Mapping

    from backup_core.adapters.page_data import Upload
    from backup_core.domain.errors import BackupError
    from tests.doubles.world import InMemoryServices

DiffKind = Literal["writes", "content"]
BLANK = bytes(PAGE)
"""A page that was never written, or was cleared."""


@dataclass
class Blob:
    """A blob, or the frozen state of one in a snapshot."""

    size: int
    created: datetime
    etag: str
    sequence_number: int = 0
    page_blob: bool = True
    metadata: dict[str, str] = field(default_factory=dict)
    pages: dict[int, bytes] = field(default_factory=dict)
    """Allocated pages."""
    changed: dict[int, int] = field(default_factory=dict)
    """Page to the tick of its last write or clear."""
    lease: str = ""
    tier: str = ""
    copy: CopyState | None = None
    copied_from: str = ""
    """The export that a copy reads."""
    arriving: Blob | None = None
    """What a pending copy will have brought once it succeeds."""
    snapshots: dict[str, Blob] = field(default_factory=dict)
    frozen_at: int = 0
    percent: int = 100
    """How much of a snapshot of a managed disk can be read."""
    failure: str = ""
    create_option: str = "Empty"
    """What a managed disk was made by."""
    upload: str = ""
    """ReadyToUpload or ActiveUpload, of a managed disk whose upload has not ended."""

    def content(self) -> bytes:
        """All bytes, of whole pages."""
        return self._content(range(self.size // PAGE))

    def bytes_of(self, part: ByteRange) -> bytes:
        """The bytes of the range."""
        return self._content(range(part.start // PAGE, part.end // PAGE))

    def _content(self, wanted: range) -> bytes:
        data = bytearray(len(wanted) * PAGE)
        # A disk has few pages, or the part is small.
        for page in self.pages if len(self.pages) < len(wanted) else wanted:
            if page in wanted and page in self.pages:
                at = (page - wanted.start) * PAGE
                data[at : at + PAGE] = self.pages[page]
        return bytes(data)

    def holds(self, other: Blob) -> bool:
        """Whether both blobs have the same bytes."""
        return self.size == other.size and (self.pages == other.pages or self.content() == other.content())


class _Blobs(dict[BlobAddress, Blob]):
    """All blobs. A managed disk is found by its address as well, but is none of them."""

    def __init__(self, disks: dict[DiskAddress, Blob]) -> None:
        super().__init__()
        self._disks = disks

    if TYPE_CHECKING:

        def __getitem__(self, address: Source) -> Blob: ...

    def __missing__(self, address: Source) -> Blob:
        if isinstance(address, DiskAddress):
            return self._disks[address]
        raise KeyError(address)


class MemoryPageBlobs:
    """The PageBlobs port. Tests may look into `blobs` and act as a third party on it."""

    def __init__(
        self,
        world: InMemoryServices,
        *,
        diff: DiffKind = "writes",
        deployment: Deployment = Deployment("backup/pagekeeper"),  # noqa: B008  frozen
    ) -> None:
        """`diff` chooses what a diff reports: every write, or differing bytes only."""
        self._world, self.diff_kind, self._deployment = world, diff, deployment
        self.disks: dict[DiskAddress, Blob] = {}
        """Managed disks, as the VHDs that they are exported as: the last page is the footer."""
        self.blobs = _Blobs(self.disks)
        self.fill_percent = 100
        """What a look at an unfinished snapshot of a managed disk adds to it; with less than 100 they begin at none."""
        self.fill_failure = ""
        """Why such a snapshot will never be complete."""
        self.unreachable: set[str] = set()
        """Accounts whose blobs other accounts cannot read: Put Page From URL is refused."""
        self.closed: set[tuple[str, str]] = set()
        """Containers in which the app's own check finds no right to write."""
        self.undeletable: dict[str, type[BackupError]] = {}
        """Accounts in which nothing can be deleted, and what the service says: an immutability policy, a right taken away."""
        self.refused_deletions = 0
        self.gone: set[str] = set()
        """Accounts that name servers know no more."""
        self.copies_delayed = False
        """Copies stay pending until `end_copy`."""
        self.diffs_end = False
        """Diffs end where the previous snapshot ended: what a disk has grown by is not in them."""
        self.lies = 0
        """Diffs that are still to hide one page which is newly allocated: an under-reporting service."""
        self.cloud = MemoryCloud(world, self)
        self.process: Callable[[], str] = str
        """Names the process that a call is made in: what it keeps of managed disks is its own."""
        self.processes: dict[str, AzureManagedDisks] = {}
        self.exporting = Exporting(hosts=HOSTS)

    @property
    def managed(self) -> AzureManagedDisks:
        """The adapter of the present process."""
        process = self.process()
        if process not in self.processes:
            exports: Any = MemoryExports(self._world, self.cloud)
            client: Any = lambda _: self.cloud  # noqa: E731
            self.processes[process] = AzureManagedDisks(
                client, exports, exports, self._deployment, self.exporting, lambda: self.cloud.now
            )
        return self.processes[process]

    @property
    def open_disks(self) -> set[DiskAddress]:
        """Managed disks that access has been granted to themselves, not to a snapshot of theirs."""
        return self.cloud.uploads.open

    @property
    def open(self) -> set[tuple[DiskAddress, str]]:
        """Snapshots of managed disks that access has been granted to."""
        return {(one.disk, one.at) for one in self.cloud.all() if self.cloud.granted(one)}

    # -- what tests and third parties do ------------------------------------------------------------------------

    def put(self, blob: Source, size: int, *, page_blob: bool = True) -> Blob:
        """Make a blob, replacing what was there."""
        if isinstance(blob, DiskAddress):
            return self.put_disk(blob, size)
        self.blobs[blob] = Blob(size, self._world.now, self._etag(), page_blob=page_blob)
        return self.blobs[blob]

    def put_disk(self, disk: DiskAddress, size: int) -> Blob:
        """Make a managed disk of so many bytes, without its footer; one that was there under its name leaves its snapshots."""
        self._world.tick()
        former = self.disks.get(disk)
        made = self.disks[disk] = Blob(size + PAGE, self._world.now, self._etag())
        made.snapshots = former.snapshots if former else {}
        made.pages[size // PAGE] = b"conectix".ljust(PAGE, b".")
        return made

    def grow_disk(self, disk: DiskAddress, size: int) -> None:
        """The managed disk has so many bytes from now on. No diff reports that its footer has moved."""
        found = self.disks[disk]
        self.cloud.fail_unfinished(disk)
        end = found.pages.pop(found.size // PAGE - 1)
        found.size, found.pages[size // PAGE] = size + PAGE, end

    def poke(self, blob: Source, first: int, pages: Iterable[bytes | None]) -> None:
        """Write (or, with None, clear) pages past every fence."""
        # A guest writes also where this app reaches nobody.
        found = self.disks[blob] if isinstance(blob, DiskAddress) else self.blobs[blob]
        self.change(found, dict(enumerate(pages, first)))

    def copy_over(self, source: BlobAddress, snapshot: str, onto: BlobAddress, lease: str = "") -> None:
        """Somebody's Copy Blob onto a blob that exists: content, metadata and sequence number are taken over, its snapshots and
        lease stay. Raises FencedError for a leased blob without its `lease`, ServiceUnavailableError while a copy is pending.
        """
        brought, found = self._found(source, snapshot), self._settled(onto)
        if found.lease != lease:
            message = f"{onto}: lease {lease or 'none'} does not hold it"
            raise FencedError(message)
        found.pages, found.size, found.metadata = dict(brought.pages), brought.size, dict(brought.metadata)
        found.sequence_number = brought.sequence_number
        found.changed = dict.fromkeys(found.pages, self._world.tick())
        found.created, found.etag = self._world.now, self._etag()

    def end_copy(self, blob: BlobAddress, status: Literal["success", "failed", "aborted"]) -> None:
        """The service ends a pending copy: with the source's content and sequence number, or with nothing at all."""
        found = self.blobs[blob]
        assert found.copy
        size = found.copy.total_bytes
        brought = found.arriving if status == "success" else None
        found.pages = dict(brought.pages) if brought else {}
        found.changed = dict.fromkeys(found.pages, self._world.tick())
        found.size = size if brought else 0
        found.copy = CopyState(found.copy.copy_id, status, size if brought else 0, size)
        found.arriving, found.etag = None, self._etag()

    def can_arrive(self, blob: BlobAddress) -> bool:
        """Whether the source of a pending copy can still be read."""
        url = self.blobs[blob].copied_from
        return not url or any(one.url == url and self.cloud.granted(one) for one in self.cloud.all())

    # -- helpers --------------------------------------------------------------------------------------------------

    def _etag(self) -> str:
        return f'"0x{self._world.tick():x}"'

    def change(self, blob: Blob, pages: Mapping[int, bytes | None]) -> None:
        """Write pages or, with None, clear them."""
        for page, data in pages.items():
            if data is None:
                blob.pages.pop(page, None)
            else:
                blob.pages[page] = data
            blob.changed[page] = self._world.tick()
            blob.etag = self._etag()

    def _reach(self, account: str) -> None:
        if account in self.gone:
            message = f"{account}: no name server knows this host"
            raise HostUnknownError(message)

    def refuse_deletion(self, account: str) -> None:
        """Raise the account's error while nothing can be deleted in it."""
        self._reach(account)
        if account in self.undeletable:
            self.refused_deletions += 1
            message = f"{account}: nothing can be deleted here for now"
            raise self.undeletable[account](message)

    def _found(self, address: BlobAddress, snapshot: str = "") -> Blob:
        self._reach(address.account)
        blob = self.blobs.get(address)
        if snapshot:
            if blob is None or snapshot not in blob.snapshots:
                message = f"snapshot {snapshot} of {address} does not exist"
                raise SnapshotMissingError(message)
            return blob.snapshots[snapshot]
        if blob is None:
            message = f"{address} does not exist"
            raise BlobMissingError(message)
        return blob

    def _guarded(self, address: BlobAddress, guard: Guard) -> Blob:
        blob = self._leased(address, guard.lease)
        if blob.etag != guard.etag:
            message = f"{address} was changed in between"
            raise BlobChangedError(message)
        return blob

    def _leased(self, address: BlobAddress, lease: str) -> Blob:
        blob = self._settled(address)
        if blob.lease != lease or not lease:
            message = f"{address}: lease {lease} does not hold it"
            raise FencedError(message)
        return blob

    def _settled(self, address: BlobAddress) -> Blob:
        blob = self._found(address)
        if blob.arriving:
            message = f"{address}: a copy is pending"
            raise ServiceUnavailableError(message)
        return blob

    def _fenced(self, address: BlobAddress, fence: Fence) -> Blob:
        blob = self._leased(address, fence.lease)
        if blob.sequence_number != fence.epoch:
            message = f"{address}: sequence number {blob.sequence_number} is not epoch {fence.epoch}"
            raise FencedError(message)
        return blob

    # -- the port -------------------------------------------------------------------------------------------------

    async def properties(self, blob: Source, snapshot: str = "") -> BlobProperties:
        """Describe the blob or snapshot."""
        if isinstance(blob, DiskAddress):
            return await self.managed.properties(blob, snapshot)
        await self._world.before("properties")
        found = self._found(blob, snapshot)
        described = BlobProperties(
            found.size, found.etag, found.page_blob, found.created, found.sequence_number, dict(found.metadata), found.copy,
            found.tier,
        )  # fmt: skip
        await self._world.after("properties")
        return described

    async def create(
        self, blob: BlobAddress, size: int, sequence_number: int, metadata: Mapping[str, str], tier: str = ""
    ) -> None:
        """Create an empty page blob where nothing is."""
        await self._world.before("create")
        self._reach(blob.account)
        if blob in self.blobs:
            message = f"{blob} exists"
            raise BlobExistsError(message)
        created = self.put(blob, size)
        created.sequence_number, created.metadata, created.tier = sequence_number, dict(metadata), tier
        await self._world.after("create")

    async def delete_own(self, blob: BlobAddress, guard: Guard, *, bare: bool = False) -> None:
        """Delete the blob with its snapshots."""
        await self._world.before("delete_own")
        self.refuse_deletion(blob.account)
        if blob in self.blobs:
            self._guarded(blob, guard)
            if bare and self.blobs[blob].snapshots:
                message = f"{blob}: it has snapshots"
                raise SnapshotsPresentError(message)
            del self.blobs[blob]
            self._world.tick()
        await self._world.after("delete_own")

    async def may_write(self, account: str, container: str) -> bool:
        """Whether the test permits writes."""
        await self._world.before("may_write")
        return (account, container) not in self.closed

    async def acquire_lease(self, blob: BlobAddress, lease: str) -> None:
        """Acquire the lease."""
        await self._world.before("acquire_lease")
        found = self._settled(blob)
        if found.lease not in ("", lease):
            message = f"{blob}: another lease holds it"
            raise LeaseTakenError(message)
        found.lease = lease
        self._world.tick()
        await self._world.after("acquire_lease")

    async def break_lease(self, blob: BlobAddress) -> None:
        """End whatever lease there is."""
        await self._world.before("break_lease")
        self._found(blob).lease = ""
        self._world.tick()
        await self._world.after("break_lease")

    async def release_lease(self, blob: BlobAddress, lease: str) -> None:
        """Release the lease."""
        await self._world.before("release_lease")
        self._reach(blob.account)
        found = self.blobs.get(blob)
        if found and found.lease == lease:
            found.lease = ""
            self._world.tick()
        await self._world.after("release_lease")

    async def start_copy(
        self,
        source: Source,
        snapshot: str,
        destination: BlobAddress,
        metadata: Mapping[str, str],
        tier: str = "",
        over: str = "",
    ) -> str:
        """A pending copy; `end_copy` ends it, at once unless copies are `held`."""

        async def look() -> None:
            self._refuse_other(destination, over)

        async def begin(url: str = "") -> str:
            return await self._start_copy(source, snapshot, destination, metadata, tier, over, url)

        return await (
            self.managed.begin_whole_copy(source, snapshot, look, begin) if isinstance(source, DiskAddress) else begin()
        )

    async def _start_copy(
        self,
        source: Source,
        snapshot: str,
        destination: BlobAddress,
        metadata: Mapping[str, str],
        tier: str,
        over: str,
        url: str,
    ) -> str:
        await self._world.before("start_copy")
        self._reach(destination.account)
        self.refuse_as_source(source, destination)
        if isinstance(source, DiskAddress):
            brought = self.cloud.copied(url, source, snapshot, f"copy {source} {snapshot} to {destination}")
        else:
            brought = self._found(source, snapshot)
        self._refuse_other(destination, over)
        former = self.blobs.get(destination)
        if former and former.lease:
            message = f"{destination} is leased"
            raise FencedError(message)
        made = self.put(destination, brought.size)
        # The time of its creation stays, and its snapshots.
        made.created, made.snapshots = (former.created, former.snapshots) if former else (made.created, {})
        made.metadata, made.sequence_number, made.tier = dict(metadata), brought.sequence_number, tier
        copy_id = str(uuid.uuid5(uuid.NAMESPACE_URL, f"{destination} {self._world.ticks}"))
        made.copied_from = url
        made.copy, made.arriving = CopyState(copy_id, "pending", 0, brought.size), brought
        if not self.copies_delayed:
            self.end_copy(destination, "success")
        await self._world.after("start_copy")
        return copy_id

    def _refuse_other(self, destination: BlobAddress, etag: str) -> None:
        """Raise unless the blob has that version, or none and does not exist."""
        found = self.blobs.get(destination)
        if found and (found.arriving or not etag):
            message = f"{destination} exists{', and is being copied to' if found.arriving else ''}"
            raise BlobExistsError(message)
        if etag != (found.etag if found else ""):
            message = f"{destination} is not at {etag}"
            raise BlobChangedError(message)

    def refuse_as_source(self, source: Source, destination: Source) -> None:
        """Raise CopySourceRefusedError for an account whose blobs others cannot read."""
        if source.account in self.unreachable:
            message = f"{source} cannot be read by the account of {destination}"
            raise CopySourceRefusedError(message)

    async def abort_copy(self, blob: BlobAddress, copy_id: str) -> None:
        """End a pending copy."""
        await self._world.before("abort_copy")
        self._reach(blob.account)
        found = self.blobs.get(blob)
        if found and found.arriving and found.copy and found.copy.copy_id == copy_id:
            self.end_copy(blob, "aborted")
        await self._world.after("abort_copy")

    async def set_metadata(self, blob: BlobAddress, metadata: Mapping[str, str], guard: Guard) -> str:
        """Replace the metadata."""
        await self._world.before("set_metadata")
        etag = self._set(blob, guard, metadata=dict(metadata))
        await self._world.after("set_metadata")
        return etag

    async def set_sequence_number(self, blob: BlobAddress, number: int, guard: Guard) -> str:
        """Set the sequence number."""
        await self._world.before("set_sequence_number")
        etag = self._set(blob, guard, sequence_number=number)
        await self._world.after("set_sequence_number")
        return etag

    async def resize(self, blob: BlobAddress, size: int, guard: Guard) -> str:
        """Change the size."""
        await self._world.before("resize")
        etag = self._set(blob, guard, size=size)
        found = self.blobs[blob]
        for page in [page for page in found.pages if page * PAGE >= size]:
            del found.pages[page]
            found.changed[page] = self._world.tick()
        await self._world.after("resize")
        return etag

    def _set(self, address: BlobAddress, guard: Guard, **values: object) -> str:
        blob = self._leased(address, guard.lease)
        if blob.etag != guard.etag and all(getattr(blob, name) == value for name, value in values.items()):
            return blob.etag
        self._guarded(address, guard)
        for name, value in values.items():
            setattr(blob, name, value)
        if "metadata" not in values:
            blob.copy = None  # Set Blob Properties has the service forget a concluded copy
        blob.etag = self._etag()
        return blob.etag

    async def snapshot(self, blob: Source, metadata: Mapping[str, str], guard: Guard | None = None) -> str:
        """Take a snapshot."""
        if isinstance(blob, DiskAddress):
            return await self.managed.snapshot(blob, metadata)
        await self._world.before("snapshot")
        found = self._guarded(blob, guard) if guard else self._found(blob)
        name = self.freeze(found, metadata)
        await self._world.after("snapshot")
        return name

    def freeze(self, found: Blob, metadata: Mapping[str, str]) -> str:
        """A snapshot of the blob as it is, by anybody; without metadata it inherits the blob's."""
        self._world.tick()
        name = self._world.now.strftime("%Y-%m-%dT%H:%M:%S.%f") + "0Z"
        frozen = copy.copy(found)
        frozen.pages, frozen.changed = dict(found.pages), dict(found.changed)
        frozen.metadata, frozen.snapshots, frozen.lease = dict(metadata or found.metadata), {}, ""
        frozen.frozen_at = self._world.ticks
        found.snapshots[name] = frozen
        return name

    async def snapshots(self, blob: Source) -> list[SnapshotInfo]:
        """All snapshots, oldest first."""
        if isinstance(blob, DiskAddress):
            return await self.managed.snapshots(blob)
        await self._world.before("snapshots")
        self._reach(blob.account)
        found = self.blobs.get(blob)
        kept = sorted(found.snapshots.items()) if found else []
        listed = [SnapshotInfo(name, dict(one.metadata)) for name, one in kept]
        await self._world.after("snapshots")
        return listed

    async def failed_snapshots(self, source: Source) -> list[FailedSnapshot]:
        """Those of a managed disk."""
        return await self.managed.failed_snapshots(source) if isinstance(source, DiskAddress) else []

    async def delete_failed_snapshot(self, source: Source, name: str) -> None:
        """Delete one of them."""
        if isinstance(source, DiskAddress):
            await self.managed.delete_failed_snapshot(source, name)

    async def folders(self, account: str, container: str) -> AsyncIterator[str]:
        """First segments of names."""
        await self._world.before("folders")
        self._reach(account)
        inside = [one.name for one in self.blobs if (one.account, one.container) == (account, container)]
        for name in {name.partition("/")[0] for name in inside if "/" in name}:
            yield name

    async def listed(self, account: str, container: str, prefix: str) -> AsyncIterator[ListedBlob]:
        """Blobs and snapshots by name."""
        await self._world.before("listed")
        self._reach(account)
        found = []
        for address in sorted(self.blobs, key=lambda one: one.name):
            if (address.account, address.container) == (account, container) and address.name.startswith(prefix):
                blob = self.blobs[address]
                found += [ListedBlob(address.name, name, dict(one.metadata)) for name, one in sorted(blob.snapshots.items())]
                found.append(ListedBlob(address.name, "", dict(blob.metadata)))
        await self._world.after("listed")
        for item in found:
            yield item

    async def close_access(self, source: Source) -> None:
        """End all access to the disk's snapshots."""
        if isinstance(source, DiskAddress):
            await self.managed.close_access(source)

    async def close_disk(self, disk: DiskAddress, *, ends: bool = False) -> None:
        """End all access to the disk itself."""
        await self.managed.uploads.close(disk, ends=ends)

    async def delete_snapshot(self, blob: Source, snapshot: str) -> None:
        """Delete one snapshot."""
        if isinstance(blob, DiskAddress):
            await self.managed.delete_snapshot(blob, snapshot)
            return
        if not is_snapshot_id(snapshot):
            message = f"{blob}: {snapshot!r} is not a snapshot id; nothing was deleted"
            raise UnexpectedAnswerError(message)
        await self._world.before("delete_snapshot")
        self.refuse_deletion(blob.account)
        found = self.blobs.get(blob)
        if found:
            found.snapshots.pop(snapshot, None)
            self._world.tick()
        await self._world.after("delete_snapshot")

    async def allocated(self, blob: Source, snapshot: str, window: ByteRange) -> AsyncIterator[ByteRange]:
        """Allocated ranges inside the window."""
        if isinstance(blob, DiskAddress):
            async for part in self.managed.allocated(blob, snapshot, window):
                yield part
            return
        await self._world.before("allocated")
        found = self._found(blob, snapshot)
        ranges = merged(dict.fromkeys(found.pages, False), window, found.size)
        await self._world.after("allocated")
        for one in ranges:
            yield one.range

    async def diff(self, blob: Source, snapshot: str, previous: str, window: ByteRange) -> AsyncIterator[DiffRange]:
        """Ranges changed since the previous snapshot."""
        if isinstance(blob, DiskAddress):
            async for one in self.managed.diff(blob, snapshot, previous, window):
                yield one
            return
        await self._world.before("diff")
        found = self._found(blob, snapshot)
        before = self._found(blob).snapshots.get(previous)
        if before is None:
            message = f"{blob}: previous snapshot {previous} not found"
            raise DiffRefusedError(message, "PreviousSnapshotNotFound")
        if before.created != found.created:
            message = f"{blob}: overwritten since {previous}"
            raise DiffRefusedError(message, "BlobOverwritten")
        changes = self.reported_changes(before, found)
        ranges = merged(changes, window, min(before.size, found.size) if self.diffs_end else found.size)
        await self._world.after("diff")
        for one in ranges:
            yield one

    def reported_changes(self, before: Blob, now: Blob) -> dict[int, bool]:
        """The changes that a diff reports; now and then it hides one."""
        changes = self._changes(before, now)
        hidden = next((page for page, cleared in changes.items() if not cleared and page not in before.pages), None)
        if self.lies and hidden is not None:
            self.lies -= 1
            del changes[hidden]
        return changes

    def _changes(self, before: Blob, now: Blob) -> dict[int, bool]:
        if self.diff_kind == "writes":
            pages = [page for page, tick in now.changed.items() if tick > before.frozen_at]
        else:
            pages = [page for page in range(now.size // PAGE) if now.pages.get(page, BLANK) != before.pages.get(page, BLANK)]
        return {page: page not in now.pages for page in pages}

    async def read(self, blob: Source, snapshot: str, part: ByteRange) -> bytes:
        """The bytes of the range."""
        assert part.size <= PUT_BYTES_MAX
        if isinstance(blob, DiskAddress):
            return await self.managed.read(blob, snapshot, part)
        await self._world.before("read")
        data = self._found(blob, snapshot).bytes_of(part)
        await self._world.after("read")
        return data

    async def copy_streamed(
        self, source: Source, snapshot: str, part: ByteRange, head: Source, fence: Fence, *, keep_zeros: bool = False
    ) -> None:
        """Read, then put; long runs of zeros are cleared."""
        if isinstance(head, DiskAddress):
            assert isinstance(source, BlobAddress)
            await self.managed.uploads.copy_streamed(source, snapshot, part, head, keep_zeros=keep_zeros)
        elif isinstance(source, DiskAddress):
            await self.managed.copy_streamed(source, snapshot, part, head, fence, keep_zeros=keep_zeros)
        else:
            await self.put_streamed(await self.read(source, snapshot, part), part, head, fence, keep_zeros=keep_zeros)

    async def put_streamed(
        self, data: bytes, part: ByteRange, head: Source, fence: Fence | Upload, *, keep_zeros: bool
    ) -> None:
        """Put what was read, and clear long runs of zeros."""
        for piece in [DiffRange(part, cleared=False)] if keep_zeros else without_zeros(bytearray(data), part):
            start, end = piece.range.start - part.start, piece.range.end - part.start
            if piece.cleared:
                await self.put_pages("clear", head, piece.range, None, fence)
            else:
                await self.put_pages("write", head, piece.range, data[start:end], fence)

    async def put_pages(
        self, call: str, head: Source, part: ByteRange, data: bytes | Callable[[], bytes] | None, fence: Fence | Upload
    ) -> None:
        """Put pages, or with None clear them: of a blob under the fence, of a managed disk by what its upload gives."""

        async def put(url: str = "") -> None:
            await self._world.before(call)
            pages = data() if callable(data) else data
            if isinstance(fence, Fence):
                self.write(head, part, pages, fence)
            else:
                self.cloud.uploads.write(url, head, part, pages, f"{call} {part} of {head}")
            await self._world.after(call)

        await (put() if isinstance(fence, Fence) else fence(put))

    async def copy_from_url(self, source: Source, snapshot: str, part: ByteRange, head: Source, fence: Fence) -> None:
        """Put what the service reads itself."""
        if isinstance(head, DiskAddress):
            assert isinstance(source, BlobAddress)
            await self.managed.uploads.copy_from_url(source, snapshot, part, head)
        elif isinstance(source, DiskAddress):
            await self.managed.copy_from_url(source, snapshot, part, head, fence)
        else:
            await self.put_fetched(source, snapshot, part, head, fence)

    async def put_fetched(
        self, source: BlobAddress, snapshot: str, part: ByteRange, head: Source, fence: Fence | Upload
    ) -> None:
        """Put what the service reads itself of a page blob."""

        def fetched() -> bytes:
            self.refuse_as_source(source, head)
            return self._found(source, snapshot).bytes_of(part)

        await self.put_pages("copy_from_url", head, part, fetched, fence)

    def write(self, head: Source, part: ByteRange, data: bytes | None, fence: Fence) -> None:
        """Put pages of a blob, or with None clear them."""
        assert isinstance(head, BlobAddress)
        found = self._fenced(head, fence)
        assert part.size <= PUT_BYTES_MAX or data is None
        if part.end > found.size:
            message = f"{head}: a put past the end"
            raise UnexpectedAnswerError(message)
        first = part.start // PAGE
        pages = range(first, part.end // PAGE)
        self.change(found, {page: data and data[(page - first) * PAGE : (page - first + 1) * PAGE] for page in pages})

    async def clear(self, blob: Source, part: ByteRange, fence: Fence) -> None:
        """Clear the range."""
        if isinstance(blob, DiskAddress):
            await self.managed.uploads.clear(blob, part)
        else:
            await self.put_pages("clear", blob, part, None, fence)
