# Long: a method for each request that the port makes of a page blob.
"""Page blobs of the Blob service: control calls by the SDK, bytes and page lists by the data path."""

from __future__ import annotations

from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, cast

from azure.core import MatchConditions
from azure.core.exceptions import HttpResponseError, ServiceRequestError, ServiceResponseError
from azure.storage.blob import BlobType, CopyProperties, SequenceNumberAction
from azure.storage.blob.aio import BlobClient, BlobLeaseClient, BlobPrefix, BlobServiceClient

from backup_core.adapters.answers import COPY_SOURCE_CODE, code_of, fault_of, no_answer
from backup_core.domain.errors import (
    AccessDeniedError,
    BlobChangedError,
    BlobExistsError,
    BlobMissingError,
    UnexpectedAnswerError,
)
from backup_core.domain.naming import BlobAddress, is_snapshot_id
from backup_core.domain.redaction import redacted
from backup_core.ports import BlobProperties, CopyState, Guard, ListedBlob, SnapshotInfo

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping

    from backup_core.adapters.page_data import PageData
    from backup_core.adapters.page_lists import PageLists
    from backup_core.domain.ranges import ByteRange, DiffRange
    from backup_core.ports import CopyStatus, Fence


_NOT_HELD = frozenset({"LeaseIdMismatchWithLeaseOperation", "LeaseNotPresentWithLeaseOperation"})
"""Release Lease: the lease is another's, or there is none."""
_THERE = {"ConditionNotMet": "does not meet the condition that nothing is there"}
"""An answer to If-None-Match: * instead of BlobAlreadyExists; the SDK's own uploads take one for the other, too."""
_LEASED = {"LeaseIdMissing": "is leased"}
"""A blob that exists and is leased: the service looks at its lease before If-None-Match (Azurite#2637)."""
_COPYING = {"PendingCopyOperation": "is being copied to"}
"""The answer to a copy until the blob is complete, and not that it exists. A retry would not help: a copy takes hours."""
_NO_BLOB = frozenset({"BlobNotFound", "ContainerNotFound"})


@contextmanager
def translated(what: str, *, snapshot: bool = False, copies: bool = False) -> Iterator[None]:
    """Turn the SDK's exceptions into the project's errors; `copies` is a request that has the account read another blob."""
    try:
        yield
    except HttpResponseError as error:
        headers: Mapping[str, str] = getattr(error.response, "headers", {})
        source_code = headers.get(COPY_SOURCE_CODE, "")
        raise fault_of(
            error.status_code or 0,
            code_of(error),
            error.reason or "",
            what,
            snapshot=snapshot,
            copies=copies,
            source_code=source_code,
        ) from None
    except (ServiceRequestError, ServiceResponseError) as error:
        raise no_answer(error, what) from None


@contextmanager
def accepted(*codes: str) -> Iterator[None]:
    """End without an error when the service refuses with one of the codes: then there is nothing to do."""
    try:
        yield
    except HttpResponseError as error:
        if code_of(error) not in codes:
            raise


@contextmanager
def _where_nothing_is(blob: BlobAddress, codes: Mapping[str, str]) -> Iterator[None]:
    """Raise BlobExistsError when the service refuses with one of the codes to make a blob where nothing is."""
    try:
        yield
    except HttpResponseError as error:
        if (code := code_of(error)) in codes:
            message = f"{blob} exists, and {codes[code]}; nothing was written; use another name"
            raise BlobExistsError(message) from error
        raise


class AzurePageBlobs:
    """The PageBlobs port on Azure Storage."""

    def __init__(self, accounts: Mapping[str, BlobServiceClient], data: PageData, lists: PageLists) -> None:
        """`accounts` by blob endpoint; `data` moves the bytes, `lists` reads the page lists."""
        self._accounts, self._data, self._lists = accounts, data, lists

    def _client(self, blob: BlobAddress, snapshot: str = "") -> BlobClient:
        return self._accounts[blob.account].get_blob_client(blob.container, blob.name, snapshot=snapshot or None)

    async def properties(self, blob: BlobAddress, snapshot: str = "") -> BlobProperties:
        """Get Blob Properties."""
        with translated(f"look at {blob} {snapshot}".rstrip(), snapshot=bool(snapshot)):
            found = await self._client(blob, snapshot).get_blob_properties()
        return BlobProperties(
            size=found.size,
            etag=found.etag,
            page_blob=found.blob_type == BlobType.PAGEBLOB,
            created=found.creation_time,
            sequence_number=found.page_blob_sequence_number or 0,
            metadata=dict(found.metadata),
            copy=_copy_of(found.copy),
            tier=str(found.blob_tier) if found.blob_tier and not found.blob_tier_inferred else "",
        )

    async def create(
        self, blob: BlobAddress, size: int, sequence_number: int, metadata: Mapping[str, str], tier: str = ""
    ) -> None:
        """Put Blob with If-None-Match: *."""
        with translated(f"create {blob}"), _where_nothing_is(blob, _THERE | _LEASED):
            await self._client(blob).create_page_blob(
                size,
                metadata=dict(metadata),
                sequence_number=sequence_number,
                match_condition=MatchConditions.IfMissing,
                **_tiered(tier),
            )

    async def delete_own(self, blob: BlobAddress, guard: Guard, *, bare: bool = False) -> None:
        """Delete Blob under lease and If-Match. Whether a condition on a missing blob is answered by 404 or by 412 is not
        documented: after a refusal the blob is read.
        """
        included: dict[str, Any] = {} if bare else {"delete_snapshots": "include"}
        try:
            with translated(f"delete {blob}"):
                await self._client(blob).delete_blob(**included, **_guarded(guard))
        except BlobMissingError:
            return
        except BlobChangedError:
            with suppress(BlobMissingError):
                await self.properties(blob)
                raise

    async def may_write(self, account: str, container: str) -> bool:
        """Set Blob Metadata on a blob that is not there, at a version that no blob has: authorisation is checked first."""
        probe = self._accounts[account].get_blob_client(container, "pagekeeper-permission-probe")
        try:
            with translated(f"ask whether {account}/{container} may be written"):
                await probe.set_blob_metadata({}, etag='"0x0"', match_condition=MatchConditions.IfNotModified)
        except (BlobMissingError, BlobChangedError):
            return True
        except AccessDeniedError:
            return False
        message = f"{account}/{container}: a write at a version that cannot exist was accepted"
        raise UnexpectedAnswerError(message)

    async def acquire_lease(self, blob: BlobAddress, lease: str) -> None:
        """Lease Blob, acquire, infinite. Acquiring again under the same id is a success of the service itself."""
        with translated(f"lease {blob}"):
            await BlobLeaseClient(self._client(blob), lease_id=lease).acquire(lease_duration=-1)

    async def break_lease(self, blob: BlobAddress) -> None:
        """Lease Blob, break, at once."""
        with translated(f"break the lease of {blob}"), accepted("LeaseNotPresentWithLeaseOperation"):
            await BlobLeaseClient(self._client(blob)).break_lease(lease_break_period=0)

    async def release_lease(self, blob: BlobAddress, lease: str) -> None:
        """Lease Blob, release; not holding it is success."""
        # No blob, no lease, or another's: there is nothing of ours to release.
        with translated(f"release the lease of {blob}"), accepted(*_NOT_HELD, *_NO_BLOB):
            await BlobLeaseClient(self._client(blob), lease_id=lease).release()

    async def start_copy(
        self,
        source: BlobAddress,
        snapshot: str,
        destination: BlobAddress,
        metadata: Mapping[str, str],
        tier: str = "",
        over: str = "",
    ) -> str:
        """Copy Blob with If-None-Match: *, or If-Match. The source is signed: between accounts a token is not taken."""
        what = f"copy {source} {snapshot} to {destination}"
        with translated(what):
            url = await self._data.signed_source(source, snapshot)
        return await self.start_copy_of(what, url, destination, metadata, tier, over)

    async def start_copy_of(
        self, what: str, url: str, destination: BlobAddress, metadata: Mapping[str, str], tier: str, over: str
    ) -> str:
        """The same from a whole URL with a signature."""
        condition: dict[str, Any] = {"match_condition": MatchConditions.IfMissing}
        if over:
            condition = {"match_condition": MatchConditions.IfNotModified, "etag": over}
        exists = _COPYING if over else _COPYING | _THERE | _LEASED
        with translated(what, copies=True), _where_nothing_is(destination, exists):
            answer: dict[str, Any] = await self._client(destination).start_copy_from_url(
                url, metadata=dict(metadata), **condition, **_tiered(tier)
            )
        return str(answer["copy_id"])

    async def abort_copy(self, blob: BlobAddress, copy_id: str) -> None:
        """Abort Copy Blob."""
        with translated(f"abort the copy onto {blob}"), accepted("NoPendingCopyOperation", *_NO_BLOB):
            await self._client(blob).abort_copy(copy_id)

    async def set_metadata(self, blob: BlobAddress, metadata: Mapping[str, str], guard: Guard) -> str:
        """Set Blob Metadata under lease and If-Match."""
        change = self._client(blob).set_blob_metadata(dict(metadata), **_guarded(guard))
        return await self._change(blob, f"mark {blob}", change, lambda found: found.metadata == metadata)

    async def set_sequence_number(self, blob: BlobAddress, number: int, guard: Guard) -> str:
        """Set Blob Properties with action update, under lease and If-Match."""
        change = self._client(blob).set_sequence_number(SequenceNumberAction.UPDATE, str(number), **_guarded(guard))
        what = f"set the sequence number of {blob} to {number}"
        return await self._change(blob, what, change, lambda found: found.sequence_number == number)

    async def resize(self, blob: BlobAddress, size: int, guard: Guard) -> str:
        """Set Blob Properties with a content length, under lease and If-Match."""
        change = self._client(blob).resize_blob(size, **_guarded(guard))
        return await self._change(blob, f"resize {blob} to {size}", change, lambda found: found.size == size)

    async def _change(
        self, blob: BlobAddress, what: str, change: Awaitable[Mapping[str, Any]], so: Callable[[BlobProperties], bool]
    ) -> str:
        """The ETag after a change under If-Match. The SDK sends a request again whose answer was lost; the second is refused
        for the version that the first one made: a refusal is looked into.
        """
        try:
            with translated(what):
                return str((await change)["etag"])
        except BlobChangedError:
            found = await self.properties(blob)
            # G11: a refused change is read back; the requested state is success.
            if not so(found):
                raise
            return found.etag

    async def snapshot(self, blob: BlobAddress, metadata: Mapping[str, str], guard: Guard | None = None) -> str:
        """Snapshot Blob with metadata of its own."""
        with translated(f"snapshot {blob}"):
            guarded = _guarded(guard) if guard else {}
            # Sent once: a repeat after a lost answer would take another one.
            answer = await self._client(blob).create_snapshot(dict(metadata), retry_total=0, **guarded)
        return str(answer["snapshot"])

    async def snapshots(self, blob: BlobAddress) -> list[SnapshotInfo]:
        """List Blobs with snapshots and metadata; sorted here, because the order is not part of the contract."""
        found = [
            SnapshotInfo(item.snapshot, item.metadata)
            async for item in self.listed(blob.account, blob.container, blob.name)
            if item.name == blob.name and item.snapshot
        ]
        return sorted(found, key=lambda one: one.snapshot)

    async def folders(self, account: str, container: str) -> AsyncIterator[str]:
        """List Blobs with a delimiter."""
        with translated(f"list the folders of {account}/{container}"):
            async for item in self._accounts[account].get_container_client(container).walk_blobs(delimiter="/"):
                if isinstance(item, BlobPrefix):
                    yield item.name.removesuffix("/")

    async def listed(self, account: str, container: str, prefix: str) -> AsyncIterator[ListedBlob]:
        """List Blobs with snapshots and metadata."""
        pages = (
            self._accounts[account]
            .get_container_client(container)
            .list_blobs(name_starts_with=prefix, include=["snapshots", "metadata"])
        )
        with translated(f"list {account}/{container}/{prefix}"):
            async for item in pages:
                yield ListedBlob(item.name, item.snapshot or "", dict(item.metadata or {}))

    async def delete_snapshot(self, blob: BlobAddress, snapshot: str) -> None:
        """Delete Blob with a snapshot id, checked here: an empty one would delete the base."""
        if not is_snapshot_id(snapshot):
            message = f"{blob}: {snapshot!r} is not a snapshot id; nothing was deleted"
            raise UnexpectedAnswerError(message)
        with translated(f"delete snapshot {snapshot} of {blob}"), accepted("BlobNotFound"):
            await self._client(blob, snapshot).delete_blob()

    async def allocated(self, blob: BlobAddress, snapshot: str, window: ByteRange) -> AsyncIterator[ByteRange]:
        """Get Page Ranges over the window."""
        async for found in self._lists.ranges(blob, snapshot, "", window):
            yield found.range

    def diff(self, blob: BlobAddress, snapshot: str, previous: str, window: ByteRange) -> AsyncIterator[DiffRange]:
        """Get Page Ranges with prevsnapshot over the window."""
        return self._lists.ranges(blob, snapshot, previous, window)

    async def read(self, blob: BlobAddress, snapshot: str, part: ByteRange) -> bytes:
        """Get Blob with a range."""
        return await self._data.read(blob, snapshot, part)

    async def copy_streamed(
        self, source: BlobAddress, snapshot: str, part: ByteRange, head: BlobAddress, fence: Fence, *, keep_zeros: bool = False
    ) -> None:
        """Get Blob with a range, then Put Page, of zeros clear."""
        await self._data.stream(source, snapshot, part, head, fence, keep_zeros=keep_zeros)

    async def copy_from_url(self, source: BlobAddress, snapshot: str, part: ByteRange, head: BlobAddress, fence: Fence) -> None:
        """Put Page From URL."""
        await self._data.from_url(source, snapshot, part, head, fence)

    async def clear(self, blob: BlobAddress, part: ByteRange, fence: Fence) -> None:
        """Put Page, clear."""
        await self._data.clear(blob, part, fence)


def _copy_of(found: CopyProperties) -> CopyState | None:
    if not found.id:
        return None
    done, _, total = (found.progress or "0/0").partition("/")
    status = cast("CopyStatus", found.status)
    return CopyState(found.id, status, int(done), int(total), redacted(found.status_description or ""))


def _tiered(tier: str) -> dict[str, Any]:
    return {"premium_page_blob_tier": tier} if tier else {}


def _guarded(guard: Guard) -> dict[str, Any]:
    return {"lease": guard.lease, "etag": guard.etag, "match_condition": MatchConditions.IfNotModified}
