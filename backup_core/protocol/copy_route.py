"""The route of changed pages: fetched by the backup account itself, or through this process where that is refused."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from backup_core.domain.errors import CopySourceRefusedError

if TYPE_CHECKING:
    from collections.abc import Callable

    from backup_core.domain.naming import Source
    from backup_core.domain.ranges import ByteRange
    from backup_core.ports import Fence, PageBlobs

CopyMode = Literal["auto", "server", "stream"]
REMEMBERED_SECONDS = 3600.0
"""A refusal is remembered for this long; then the network may have been changed, and the account is tried once more."""


class Copying:
    """Copies pages in the configured mode. `auto` remembers which accounts cannot read which others."""

    def __init__(self, blobs: PageBlobs, mode: CopyMode, monotonic: Callable[[], float]) -> None:
        """Copy by `blobs`; `monotonic` gives seconds."""
        self._blobs, self._mode, self._monotonic = blobs, mode, monotonic
        self._refused: dict[tuple[str, str], float] = {}
        """Until when which account counts as unable to read which other one."""

    async def copy(
        self, source: Source, snapshot: str, part: ByteRange, head: Source, fence: Fence, *, keep_zeros: bool
    ) -> int:
        """Copy the range; returns the bytes that passed through this process: there, long runs of zeros are cleared, unless
        `keep_zeros`. Raises CopySourceRefusedError in mode `server` only.
        """
        if self._mode == "stream" or self._remembered(source, head):
            return await self._stream(source, snapshot, part, head, fence, keep_zeros=keep_zeros)
        try:
            await self._blobs.copy_from_url(source, snapshot, part, head, fence)
        except CopySourceRefusedError as error:
            if self._mode == "server":
                message = f"{error}; COPY_MODE is 'server', so nothing was streamed instead"
                raise type(error)(message) from error
            self._refused[source.account, head.account] = self._monotonic() + REMEMBERED_SECONDS
            return await self._stream(source, snapshot, part, head, fence, keep_zeros=keep_zeros)
        return 0

    def _remembered(self, source: Source, head: Source) -> bool:
        return self._refused.get((source.account, head.account), 0.0) > self._monotonic()

    async def _stream(
        self, source: Source, snapshot: str, part: ByteRange, head: Source, fence: Fence, *, keep_zeros: bool
    ) -> int:
        await self._blobs.copy_streamed(source, snapshot, part, head, fence, keep_zeros=keep_zeros)
        return part.size
