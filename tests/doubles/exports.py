"""The endpoint of managed disks' exports in memory: what the adapter's data path and listings do with their URLs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from backup_core.adapters.answers import fault_of
from backup_core.domain.ranges import PAGE, ByteRange, DiffRange
from tests.doubles.azure_disks import unique

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from backup_core.adapters.page_data import Upload
    from backup_core.adapters.page_lists import Export
    from backup_core.domain.naming import BlobAddress, Source
    from backup_core.ports import Fence
    from tests.doubles.azure_disks import MemoryCloud
    from tests.doubles.world import InMemoryServices


class MemoryExports:
    """The data path of exports: what the adapter's PageData and PageLists do with their URLs."""

    def __init__(self, world: InMemoryServices, cloud: MemoryCloud) -> None:
        """The exports of `cloud`."""
        self._world, self._cloud, self._blobs = world, cloud, cloud.blobs

    async def read(self, blob: Source, snapshot: str, part: ByteRange, export: str = "") -> bytes:
        """Get Blob, with a range."""
        await self._world.before("read")
        found = self._cloud.exported(export, blob, snapshot, f"read {part} of {blob} {snapshot}")
        data = found.bytes_of(part)
        await self._world.after("read")
        return data

    async def stream(
        self,
        source: Source,
        snapshot: str,
        part: ByteRange,
        head: Source,
        fence: Fence | Upload,
        *,
        keep_zeros: bool = False,
        export: str = "",
    ) -> None:
        """Get Blob, then Put Page, of zeros clear."""
        data = await (self.read(source, snapshot, part, export) if export else self._blobs.read(source, snapshot, part))
        await self._blobs.put_streamed(data, part, head, fence, keep_zeros=keep_zeros)

    async def from_url(self, source: BlobAddress, snapshot: str, part: ByteRange, head: Source, fence: Fence | Upload) -> None:
        """Put Page From URL, of a page blob."""
        await self._blobs.put_fetched(source, snapshot, part, head, fence)

    async def clear(self, blob: Source, part: ByteRange, fence: Fence | Upload) -> None:
        """Put Page, clear."""
        await self._blobs.put_pages("clear", blob, part, None, fence)

    async def fetch(self, source: Source, snapshot: str, part: ByteRange, head: BlobAddress, fence: Fence, url: str) -> None:
        """Put Page From URL."""
        await self._world.before("copy_from_url")
        what = f"have fetched {part} of {source} {snapshot} for {head}"
        if self._cloud.private:
            raise fault_of(409, "CopySourceCannotBeIncrementalCopyBlob", "", what)
        self._blobs.refuse_as_source(source, head)
        found = self._cloud.copied(url, source, snapshot, what)
        self._blobs.write(head, part, found.bytes_of(part), fence)
        await self._world.after("copy_from_url")

    async def ranges(
        self, blob: Source, snapshot: str, previous: str, window: ByteRange, export: Export
    ) -> AsyncIterator[DiffRange]:
        """Get Page Ranges, since a previous snapshot whose export is open as well, of the same family."""
        name = "diff" if previous else "allocated"
        await self._world.before(name)
        what = f"list {window} of {blob} {snapshot} since {previous}"
        now = self._cloud.exported(export.url, blob, snapshot, what)
        changes = dict.fromkeys(now.pages, False)
        if previous:
            before = self._cloud.exported(export.previous_url, blob, previous, what)
            if unique(before) != unique(now):
                raise fault_of(403, "AuthenticationFailed", f"of another family: {export.previous_url}", what, snapshot=True)
            if before.size - PAGE <= self._cloud.boundary < now.size - PAGE:
                raise fault_of(409, "SnapshotsAcrossFourTebibytes", "", what, snapshot=True)
            changes = self._blobs.reported_changes(before, now)
            if not self._cloud.footer_in_diff:
                changes = {page: how for page, how in changes.items() if (page + 1) * PAGE not in (before.size, now.size)}
        ranges = merged(changes, window, now.size)
        await self._world.after(name)
        for one in ranges:
            yield one


def merged(pages: dict[int, bool], window: ByteRange, size: int) -> list[DiffRange]:
    """{page: cleared} as merged ranges inside the window and the size."""
    out: list[tuple[int, int, bool]] = []
    first, last = window.start // PAGE, min(window.end, size) // PAGE
    for page in sorted(pages):
        if not first <= page < last:
            continue
        if out and out[-1][1] == page and out[-1][2] == pages[page]:
            out[-1] = (out[-1][0], page + 1, pages[page])
        else:
            out.append((page, page + 1, pages[page]))
    return [DiffRange(ByteRange(start * PAGE, end * PAGE), cleared) for start, end, cleared in out]
