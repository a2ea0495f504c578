# Long: the snapshots of one kind of source, from their name to the end of their access.
"""Managed disks as sources: incremental snapshots by Azure Resource Manager, their content by export URLs."""

from __future__ import annotations

import asyncio
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

from azure.core.exceptions import HttpResponseError
from azure.mgmt.compute.models import Snapshot

from backup_core.adapters.arm import WAIT_SECONDS, code_of, translated
from backup_core.adapters.authority import SIGNED_LIFETIME
from backup_core.adapters.machine_models import size_of
from backup_core.adapters.managed_access import DISK, SNAPSHOT, Access, Door, anew, done, lost
from backup_core.adapters.page_lists import Export
from backup_core.adapters.uploads import AzureUploads
from backup_core.domain.errors import (
    AccessDeniedError,
    BlobMissingError,
    CopySourceKindError,
    CopySourceRefusedError,
    CopySourceUnreachableError,
    DiffRefusedError,
    ServiceUnavailableError,
    SnapshotLimitError,
    SnapshotMissingError,
    SnapshotRateError,
    UnexpectedAnswerError,
)
from backup_core.domain.managed_snapshots import (
    DiskSnapshot,
    diff_refusal,
    footer,
    is_named,
    snapshot_id,
    snapshot_name,
    strangeness,
)
from backup_core.domain.metadata import Site, inherited_tags, own, run_of_source_snapshot
from backup_core.domain.naming import is_snapshot_id, parse_resource_id, snapshot_time
from backup_core.domain.ranges import PAGE, ByteRange, DiffRange
from backup_core.domain.redaction import redacted
from backup_core.domain.vhd import FOOTER_BYTES
from backup_core.ports import BlobProperties, FailedSnapshot, SnapshotInfo

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping

    from azure.mgmt.compute.aio import ComputeManagementClient

    from backup_core.adapters.managed_access import Exporting, Grant
    from backup_core.adapters.page_data import PageData
    from backup_core.adapters.page_lists import PageLists
    from backup_core.domain.identity import Deployment
    from backup_core.domain.naming import BlobAddress, DiskAddress
    from backup_core.ports import Fence

T = TypeVar("T")

_LIMIT = frozenset({"SnapshotsLimitReached", "SnapshotLimitReached"})


@contextmanager
def _taking(what: str) -> Iterator[None]:
    """Translate the errors that only a request for a snapshot gets. Azure documents the code of some of them, not of all."""
    try:
        yield
    except HttpResponseError as error:
        if code_of(error) in _LIMIT:
            message = f"{what}: a managed disk has 500 incremental snapshots at most; delete those nobody needs"
            raise SnapshotLimitError(message) from None
        words = redacted(str(getattr(error.error, "message", "") or "no reason given"))
        # A quota that is used up is refused with the same code, now and later.
        if error.status_code == 409 and code_of(error) == "OperationNotAllowed" and "quota" not in words.lower():
            message = (
                f"{what}: Azure answered 409 OperationNotAllowed ({words[:300]}); it takes seven snapshots of a disk in five "
                "minutes, and fills three at a time; temporary failure"
            )
            raise SnapshotRateError(message) from None
        raise


class AzureManagedDisks:
    """Managed disks, as the PageBlobs port needs them of a source."""

    def __init__(
        self,
        client: Callable[[str], ComputeManagementClient],
        data: PageData,
        lists: PageLists,
        deployment: Deployment,
        exporting: Exporting,
        monotonic: Callable[[], float],
    ) -> None:
        """`client` gives the client of a subscription; `data` and `lists` read what is exported."""
        self._client, self._data, self._lists = client, data, lists
        self._deployment, self._exporting = deployment, exporting
        self._known: dict[tuple[DiskAddress, str], DiskSnapshot] = {}
        """Snapshots by disk and id, as they were last seen: their names do not change, and once they are complete little else.
        """
        self._access = Access(client, exporting, monotonic)
        self.uploads = AzureUploads(client, data, self._access)

    # -- Azure Resource Manager ---------------------------------------------------------------------------------------

    def _group(self, disk: DiskAddress) -> str:
        """The name of the resource group that keeps the disk's snapshots."""
        return (self._exporting.snapshot_group or disk.group_id).rpartition("/")[2]

    async def _disk(self, disk: DiskAddress) -> dict[str, Any]:
        with translated(f"look at managed disk {disk}", DISK):
            return dict((await self._client(disk.subscription).disks.get(disk.group, disk.name)).as_dict())

    async def _listed(self, disk: DiskAddress) -> list[DiskSnapshot]:
        """Incremental snapshots of the disk in its group, failed ones and those of a former disk of its name included."""
        found = []
        with translated(f"list the snapshots of managed disk {disk}", DISK):
            async for one in self._client(disk.subscription).snapshots.list_by_resource_group(self._group(disk)):
                snapshot = _snapshot(one.as_dict())
                if snapshot.incremental and snapshot.disk == disk.id:
                    found.append(snapshot)
        return found

    async def _named(self, disk: DiskAddress, name: str) -> DiskSnapshot:
        with translated(f"look at snapshot {name} of managed disk {disk}", SNAPSHOT):
            return _snapshot((await self._client(disk.subscription).snapshots.get(self._group(disk), name)).as_dict())

    async def _found(self, disk: DiskAddress, snapshot: str) -> DiskSnapshot:
        """The snapshot with that id, as it is now. Raises SnapshotMissingError."""
        if known := self._known.get((disk, snapshot)):
            found = [await self._named(disk, known.name)]
        else:
            found = await self._listed(disk)
        # G62: of that very time and disk.
        fitting = [one for one in found if one.snapshot == snapshot and one.disk == disk.id and not one.failed]
        if len(fitting) != 1:
            self._known.pop((disk, snapshot), None)
            message = (
                f"snapshot {snapshot} of managed disk {disk}: expected one of that time in resource group {self._group(disk)}, "
                f"found {len(fitting)}; use another snapshot"
            )
            raise SnapshotMissingError(message)
        self._known[disk, snapshot] = fitting[0]
        return fitting[0]

    async def _facts(self, disk: DiskAddress, snapshot: str) -> DiskSnapshot:
        """The unchanging properties of the complete snapshot, read once."""
        known = self._known.get((disk, snapshot))
        return known if known and known.percent == 100 else await self._found(disk, snapshot)

    # -- access ---------------------------------------------------------------------------------------------------------

    async def _open(self, disk: DiskAddress, snapshot: str, refused: Grant | None = None, seconds: int = 0) -> Grant:
        """Access to the snapshot, or to the disk itself."""
        if not snapshot:
            return await self.uploads.open_to_read(disk, refused)
        facts = await self._facts(disk, snapshot)
        return await self._access.open(self._door(disk, facts), lambda: self._found(disk, snapshot), refused, seconds)

    def _door(self, disk: DiskAddress, snapshot: DiskSnapshot) -> Door:
        words = f"snapshot {snapshot.name} of managed disk {disk}"
        return Door(snapshot.id, words, disk.subscription, self._group(disk), snapshot.name)

    async def _act_on_export(self, disk: DiskAddress, snapshot: str, act: Callable[[str], Awaitable[T]], seconds: int = 0) -> T:
        """The result of `act` for the snapshot's export URL. A refused URL is opened once more: access may have expired,
        been ended, or been lost for a while when a sibling was deleted.
        """
        grant = await self._open(disk, snapshot, seconds=seconds)
        try:
            return await act(grant.url)
        except (CopySourceKindError, CopySourceUnreachableError):
            raise
        except (AccessDeniedError, CopySourceRefusedError):
            again = await self._open(disk, snapshot, grant, seconds)
        with anew():
            return await act(again.url)

    async def close_access(self, source: DiskAddress) -> None:
        """Snapshots, Revoke Access, of all open ones that carry this deployment's mark."""
        site = Site(self._deployment, source)
        try:
            listed = await self._listed(source)
        except BlobMissingError:
            return
        for one in listed:
            self._access.forget(one.id)
            if one.open and run_of_source_snapshot(one.tags, site):
                await self._close(source, one)

    async def _close(self, disk: DiskAddress, snapshot: DiskSnapshot) -> None:
        with suppress(SnapshotMissingError):
            await self._access.end(self._door(disk, snapshot))

    # -- snapshots --------------------------------------------------------------------------------------------------------

    async def properties(self, disk: DiskAddress, snapshot: str = "") -> BlobProperties:
        """Disks, Get, or Snapshots, Get: the size of the VHD that is exported, tags as metadata."""
        if snapshot:
            found = await self._found(disk, snapshot)
            described = _described(found.size, found.snapshot, found.tags)
            return replace(described, percent=found.percent, failure=found.failure)
        live = await self._disk(disk)
        inside = live.get("properties", {})
        return _described(_size(inside), snapshot_id(inside.get("timeCreated", "")), live.get("tags") or {})

    async def snapshot(self, disk: DiskAddress, metadata: Mapping[str, str]) -> str:
        """Snapshots, Create Or Update, incremental, under a name derived from the run; what is there then is looked at."""
        run = metadata.get("pagekeeper_run", "")
        live = await self._disk(disk)
        inside = live.get("properties", {})
        alike = [one for one in await self._listed(disk) if own(one.tags) == own(metadata)]
        # One that is being made still is asked for again, by its name.
        number = sum(one.failed or bool(one.snapshot) for one in alike)
        name = snapshot_name(disk, metadata, number)
        what = f"take snapshot {name} of managed disk {disk}"
        body = {
            "location": live.get("location", ""),
            "tags": inherited_tags(live.get("tags") or {}, metadata),
            "properties": {
                "creationData": {"createOption": "Copy", "sourceResourceId": disk.id},
                "incremental": True,
                # Whether a snapshot inherits from where it can be exported is not documented.
                **{
                    key: inside[key]
                    for key in ("networkAccessPolicy", "diskAccessId", "publicNetworkAccess")
                    if inside.get(key)
                },
            },
        }
        with translated(what, DISK), _taking(what):
            poller = await self._client(disk.subscription).snapshots.begin_create_or_update(
                self._group(disk), name, Snapshot(body)
            )
            # It may take longer: the object then shows its progress.
            with suppress(TimeoutError):
                await asyncio.wait_for(poller.result(), WAIT_SECONDS)
        taken = await self._named(disk, name)
        if taken.failed:
            message = f"{what}: Azure says that it failed ({taken.failure or 'no reason given'}); temporary failure"
            raise ServiceUnavailableError(message)
        if taken.unfinished:
            message = f"{what}: in progress, not done within {WAIT_SECONDS:g} s; temporary failure"
            raise ServiceUnavailableError(message)
        if strange := strangeness(taken, disk, inside.get("uniqueId", ""), metadata, run):
            message = f"{what}: there is another snapshot of that name: {'; '.join(strange)}; it was not used, look whose it is"
            raise UnexpectedAnswerError(message)
        self._known[disk, taken.snapshot] = taken
        return taken.snapshot

    async def snapshots(self, disk: DiskAddress) -> list[SnapshotInfo]:
        """Snapshots, List By Resource Group: those of the disk as it is now, and not of a former one of its name."""
        try:
            unique = (await self._disk(disk)).get("properties", {}).get("uniqueId", "")
        except BlobMissingError:
            return []
        listed = [one for one in await self._listed(disk) if one.disk_unique == unique and one.snapshot and not one.failed]
        return [
            SnapshotInfo(one.snapshot, one.tags, is_named(disk, one.name, one.tags))
            for one in sorted(listed, key=lambda one: one.snapshot)
        ]

    async def failed_snapshots(self, disk: DiskAddress) -> list[FailedSnapshot]:
        """Snapshots, List By Resource Group: the failed ones of this app, also those of a former disk of its name."""
        try:
            listed = await self._listed(disk)
        except BlobMissingError:
            return []
        return [FailedSnapshot(one.name, one.tags) for one in listed if one.failed and is_named(disk, one.name, one.tags)]

    async def delete_failed_snapshot(self, disk: DiskAddress, name: str) -> None:
        """Snapshots, Delete, once it was seen to have failed, and to be of the disk."""
        with suppress(SnapshotMissingError):
            found = await self._named(disk, name)
            if found.failed and found.disk == disk.id:
                await self._delete(disk, name)

    async def delete_snapshot(self, disk: DiskAddress, snapshot: str) -> None:
        """Snapshots, Delete, once access to it has ended: one that is open is not deleted."""
        if not is_snapshot_id(snapshot):
            message = f"managed disk {disk}: {snapshot!r} is not a snapshot id; nothing was deleted"
            raise UnexpectedAnswerError(message)
        try:
            found = await self._found(disk, snapshot)
            # G65: one that is open is not deleted.
            if found.open:
                await self._close(disk, found)
            await self._delete(disk, found.name)
        except (SnapshotMissingError, BlobMissingError):
            pass
        self._known.pop((disk, snapshot), None)

    async def _delete(self, disk: DiskAddress, name: str) -> None:
        what = f"delete snapshot {name} of managed disk {disk}"
        with translated(what, SNAPSHOT):
            await done(what, await self._client(disk.subscription).snapshots.begin_delete(self._group(disk), name))

    # -- content ------------------------------------------------------------------------------------------------------------

    async def allocated(self, disk: DiskAddress, snapshot: str, window: ByteRange) -> AsyncIterator[ByteRange]:
        """Get Page Ranges of the export, and the footer, whatever the service says of that; of a disk itself, what it has."""
        if not snapshot:
            async for one in self._ranges(disk, "", "", window):
                yield one.range
            return
        end = footer((await self._facts(disk, snapshot)).size)
        async for one in self._ranges(disk, snapshot, "", _before(window, end.start)):
            yield one.range
        if window.start < end.end and window.end > end.start:
            yield end

    async def diff(self, disk: DiskAddress, snapshot: str, previous: str, window: ByteRange) -> AsyncIterator[DiffRange]:
        """Get Page Ranges of the export, since another one. The former footer's place is read and compared, whatever the
        service says: where the disk has grown, it holds data now.
        """
        taken = await self._facts(disk, snapshot)
        try:
            base = await self._found(disk, previous)
        except SnapshotMissingError:
            base = None
        if why := diff_refusal(taken, base):
            message = f"diff of managed disk {disk} from {previous} to {snapshot}: {why}; a full backup is due"
            raise DiffRefusedError(message, why)
        assert base is not None
        former = footer(base.size)
        async for one in self._ranges(disk, snapshot, previous, _before(window, former.start)):
            yield one
        # G64: compared, whatever the service says.
        if window.start < former.end and window.end > former.start:
            before, now = await self.read(disk, previous, former), await self.read(disk, snapshot, former)
            if before != now:
                yield DiffRange(former, cleared=False)

    async def _ranges(
        self, disk: DiskAddress, snapshot: str, previous: str, window: ByteRange | None
    ) -> AsyncIterator[DiffRange]:
        """The listing of the window; from where it came to again, once, when access was refused."""
        if window is None:
            return
        position, again = window.start, False
        grant = await self._open(disk, snapshot)
        before = await self._open(disk, previous) if previous else None
        while True:
            export = Export(grant.url, before.url if before else "", self._exporting.whole_pages)
            try:
                async for one in self._lists.ranges(disk, snapshot, previous, ByteRange(position, window.end), export):
                    position = one.range.end
                    yield one
            except AccessDeniedError as error:
                if again:
                    raise lost(error) from None
                again = True
                grant = await self._open(disk, snapshot, refused=grant)
                before = await self._open(disk, previous, refused=before) if previous else None
                if position < window.end:
                    continue
            return

    async def read(self, disk: DiskAddress, snapshot: str, part: ByteRange) -> bytes:
        """Get Blob of the export, with a range."""
        return await self._act_on_export(disk, snapshot, lambda url: self._data.read(disk, snapshot, part, url))

    async def copy_streamed(
        self, source: DiskAddress, snapshot: str, part: ByteRange, head: BlobAddress, fence: Fence, *, keep_zeros: bool = False
    ) -> None:
        """Get Blob of the export, then Put Page, of zeros clear."""

        async def streamed(url: str) -> None:
            await self._data.stream(source, snapshot, part, head, fence, keep_zeros=keep_zeros, export=url)

        await self._act_on_export(source, snapshot, streamed)

    async def copy_from_url(self, source: DiskAddress, snapshot: str, part: ByteRange, head: BlobAddress, fence: Fence) -> None:
        """Put Page From URL, of the export."""
        await self._act_on_export(source, snapshot, lambda url: self._data.fetch(source, snapshot, part, head, fence, url))

    async def begin_whole_copy(
        self,
        source: DiskAddress,
        snapshot: str,
        look: Callable[[], Awaitable[None]],
        begin: Callable[[str], Awaitable[str]],
    ) -> str:
        """The id of the Copy Blob that `begin` begins from an export URL, which is good for as long as a copy may take. Before
        each grant `look` raises where there is a copy already: another grant may end the one that it is read by.
        """

        async def begun(url: str) -> str:
            try:
                return await begin(url)
            except CopySourceRefusedError:
                await look()
                raise

        # G66: only while there is none.
        await look()
        try:
            return await self._act_on_export(source, snapshot, begun, int(SIGNED_LIFETIME.total_seconds()))
        except (CopySourceKindError, CopySourceUnreachableError):
            raise
        except CopySourceRefusedError as error:
            raise lost(error) from None


def _before(window: ByteRange, end: int) -> ByteRange | None:
    """The part of the window before `end`; None for none."""
    return ByteRange(window.start, min(window.end, end)) if window.start < min(window.end, end) else None


def _described(size: int, created: str, tags: Mapping[str, str]) -> BlobProperties:
    """As a page blob: what is exported is one."""
    return BlobProperties(
        size=size, etag="", page_blob=True, created=snapshot_time(created), sequence_number=0, metadata=dict(tags)
    )


def _size(inside: dict[str, Any]) -> int:
    """Of the VHD that is exported: the disk's bytes, and the footer."""
    return size_of(inside) // PAGE * PAGE + FOOTER_BYTES


def _snapshot(found: Mapping[str, Any]) -> DiskSnapshot:
    inside = found.get("properties", {})
    creation = inside.get("creationData") or {}
    state = inside.get("provisioningState", "")
    failure = (inside.get("copyCompletionError") or {}).get("errorMessage", "")
    try:
        taken = snapshot_id(inside.get("timeCreated") or "")
    except ValueError:
        taken = ""
    try:
        at = parse_resource_id(creation.get("sourceResourceId", "").lower())
        disk = f"/subscriptions/{at.subscription}/resourceGroups/{at.group}/providers/Microsoft.Compute/disks/{at.name}"
    except ValueError:
        disk = ""
    return DiskSnapshot(
        id=found.get("id", "").lower(),
        name=found.get("name", ""),
        snapshot=taken,
        state=state,
        access=inside.get("diskState", ""),
        size=_size(inside),
        # A snapshot that is not filled in the background does not say.
        percent=int(inside.get("completionPercent", 100)) if state in ("Succeeded", "") else 0,
        failure=redacted(failure),
        disk=disk,
        disk_unique=creation.get("sourceUniqueId", ""),
        family=inside.get("incrementalSnapshotFamilyId", ""),
        incremental=bool(inside.get("incremental")),
        tags=dict(found.get("tags") or {}),
    )
