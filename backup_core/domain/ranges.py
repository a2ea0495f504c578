"""Byte ranges of a disk: half-open, in whole pages of 512 bytes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

PAGE = 512
KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB
PUT_BYTES_MAX = 4 * MIB
"""Limit of one Put Page, and of one Put Page From URL (Put Page, Put Page From URL reference)."""
DISK_BYTES_MAX = 8 * 1024 * GIB
"""Largest page blob."""


@dataclass(frozen=True, slots=True, order=True)
class ByteRange:
    """[start, end) in bytes; never empty, whole pages."""

    start: int
    end: int

    def __post_init__(self) -> None:
        """Refuse bounds that are no page range: an off-by-one here would be a wrong byte on a disk."""
        if not 0 <= self.start < self.end or self.start % PAGE or self.end % PAGE:
            message = f"[{self.start}, {self.end}) is not a non-empty range of whole {PAGE}-byte pages"
            raise ValueError(message)

    @property
    def size(self) -> int:
        """Bytes covered."""
        return self.end - self.start


@dataclass(frozen=True, slots=True)
class DiffRange:
    """A changed range: written, or cleared to zeros."""

    range: ByteRange
    cleared: bool


def chunks(whole: ByteRange, bytes_max: int = PUT_BYTES_MAX) -> Iterator[ByteRange]:
    """Cut `whole` into consecutive ranges of at most `bytes_max` bytes (whole pages); they cover it exactly, in order."""
    for start in range(whole.start, whole.end, bytes_max):
        yield ByteRange(start, min(start + bytes_max, whole.end))


def requests(changed: DiffRange) -> Iterator[DiffRange]:
    """The change as single requests: a clear may span any length, a write is cut into puts (Put Page)."""
    # Most changes are one request: a diff may have a million, and no new objects are needed for those.
    if changed.cleared or changed.range.size <= PUT_BYTES_MAX:
        yield changed
    else:
        for piece in chunks(changed.range):
            yield DiffRange(piece, cleared=False)


def windows(size: int, bytes_max: int, start: int = 0) -> Iterator[ByteRange]:
    """Consecutive windows of at most `bytes_max` bytes over [start, size)."""
    if start < size:
        yield from chunks(ByteRange(start, size), bytes_max)


async def joined(changes: AsyncIterator[DiffRange]) -> AsyncIterator[DiffRange]:
    """The same ascending changes with touching ranges of one kind as one: however a listing was cut into windows."""
    last: DiffRange | None = None
    async for one in changes:
        if last is None:
            last = one
        elif last.range.end == one.range.start and last.cleared == one.cleared:
            last = DiffRange(ByteRange(last.range.start, one.range.end), last.cleared)
        else:
            yield last
            last = one
    if last is not None:
        yield last


@dataclass(frozen=True, slots=True)
class Mapped:
    """A range that one of two page maps has, or both."""

    range: ByteRange
    side: Literal["left", "right", "both"]


async def one_sided(left: AsyncIterator[ByteRange], right: AsyncIterator[ByteRange]) -> AsyncIterator[Mapped]:
    """The ranges exactly one of two ascending page maps covers, ascending."""
    async for part in mapped(left, right):
        if part.side != "both":
            yield part


async def mapped(left: AsyncIterator[ByteRange], right: AsyncIterator[ByteRange]) -> AsyncIterator[Mapped]:
    """The ranges two ascending page maps cover, ascending, each with whose it is; streams both, keeps one range of each."""
    a, b = await _next(left), await _next(right)
    while a and b:
        if a.end <= b.start:
            yield Mapped(a, "left")
            a = await _next(left)
        elif b.end <= a.start:
            yield Mapped(b, "right")
            b = await _next(right)
        else:
            if a.start != b.start:
                first = min(a.start, b.start)
                yield Mapped(ByteRange(first, max(a.start, b.start)), "left" if first == a.start else "right")
            end = min(a.end, b.end)
            yield Mapped(ByteRange(max(a.start, b.start), end), "both")
            a = ByteRange(end, a.end) if a.end > end else await _next(left)
            b = ByteRange(end, b.end) if b.end > end else await _next(right)
    while a:
        yield Mapped(a, "left")
        a = await _next(left)
    while b:
        yield Mapped(b, "right")
        b = await _next(right)


async def _next(ranges: AsyncIterator[ByteRange]) -> ByteRange | None:
    return await anext(ranges, None)
