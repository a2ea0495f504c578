"""Small unchanged gaps that are copied along with the changes around them, where requests are what a transfer waits for.

A gap is copied within one put only, and that put alone decides whether it is: a shard that is restarted after any
put cuts the rest as before.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from backup_core.domain.pacing import BLOB_RATES
from backup_core.domain.ranges import KIB, PUT_BYTES_MAX, ByteRange, DiffRange, requests

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

GAP_CLASSES = tuple(KIB * size for size in (*range(4, 132, 4), 192, 256, 384, 512))
"""The limits for a gap that a plan chooses from, in bytes."""
GAP_RATIO = 2.0
"""By default, unchanged bytes for each changed one at most: they count as changed in every kept snapshot."""


@dataclass(frozen=True, slots=True)
class Request:
    """One request of a transfer: a put or a clear."""

    range: ByteRange
    cleared: bool
    unchanged_bytes: int = 0
    """Bytes of it that lie in gaps."""

    @property
    def changed_bytes(self) -> int:
        """Bytes of it that the diff names."""
        return self.range.size - self.unchanged_bytes


async def coalesced(
    changes: AsyncIterator[DiffRange], gap_bytes_max: int, held: Callable[[ByteRange], Awaitable[bool]]
) -> AsyncIterator[Request]:
    """The ascending changes as requests. Two written ranges become one put if it has room for both and for the gap between
    them, nothing in the gap is cleared, it has at most `gap_bytes_max` bytes, and both sides have all of it allocated: `held`
    is asked for ascending gaps.
    """
    last: Request | None = None
    async for change in changes:
        for piece in requests(change):
            one = Request(piece.range, piece.cleared)
            both = _joined(last, one, gap_bytes_max) if last else None
            # G56: only a gap that both sides have.
            if last and both and await held(ByteRange(last.range.end, one.range.start)):
                last = both
                continue
            if last:
                yield last
            last = one
    if last:
        yield last


def _joined(left: Request, right: Request, gap_bytes_max: int) -> Request | None:
    """Both puts and the gap between them as one put; None when it has no room for them."""
    gap = right.range.start - left.range.end
    if left.cleared or right.cleared or not 0 < gap <= gap_bytes_max:
        return None
    whole = ByteRange(left.range.start, right.range.end)
    return Request(whole, False, left.unchanged_bytes + gap) if whole.size <= PUT_BYTES_MAX else None


async def with_gaps(changes: AsyncIterator[DiffRange], gap_bytes_max: int) -> AsyncIterator[ByteRange]:
    """The changed ranges and every gap that may have been copied along with them, ascending; no copied gap is missing."""
    last: DiffRange | None = None
    async for one in changes:
        if last and not (last.cleared or one.cleared) and 0 < one.range.start - last.range.end <= gap_bytes_max:
            yield ByteRange(last.range.end, one.range.start)
        yield one.range
        last = one


@dataclass
class GapCount:
    """Counts the gaps of a diff by size while it is listed, to choose the largest one to copy along."""

    _counts: list[int] = field(default_factory=lambda: [0] * len(GAP_CLASSES))
    _bytes: list[int] = field(default_factory=lambda: [0] * len(GAP_CLASSES))
    _last: DiffRange | None = None

    def feed(self, change: DiffRange) -> None:
        """Add the next change."""
        last, self._last = self._last, change
        if last is None or last.cleared or change.cleared:
            return
        gap = change.range.start - last.range.end
        if gap <= GAP_CLASSES[-1]:
            index = bisect_left(GAP_CLASSES, gap)
            self._counts[index] += 1
            self._bytes[index] += gap

    def bytes_max(self, count: int, size: int, ratio: float, saved_min: int) -> int:
        """The largest gap to copy along, so that a page blob takes the diff soonest. Without any gap the diff has `count`
        requests and `size` bytes. Gaps add at most `ratio` times as many bytes. 0 where the bytes limit the copy, or where
        fewer than `saved_min` requests would be saved.
        """
        best, chosen = max(count / BLOB_RATES.requests, size / BLOB_RATES.bytes), 0
        saved = extra = 0
        for index, bytes_max in enumerate(GAP_CLASSES):
            saved, extra = saved + self._counts[index], extra + self._bytes[index]
            seconds = max((count - saved) / BLOB_RATES.requests, (size + extra) / BLOB_RATES.bytes)
            if saved >= saved_min and extra <= ratio * size and seconds < best:
                best, chosen = seconds, bytes_max
        return chosen
