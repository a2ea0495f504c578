"""From a diff to shards: byte intervals, each a bounded amount of work for one activity."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import timedelta

from backup_core.domain.coalescing import Request
from backup_core.domain.ranges import DiffRange, requests

COPY_DEADLINE = timedelta(hours=48)
"""How long a Copy Blob of the service is waited for, pauses between looks alone; the service itself gives up after two weeks.
What it reads with is signed for as long: nobody says whether a copy outlives the signature it began with.
"""


@dataclass(frozen=True, slots=True)
class Shard:
    """An interval of the disk and the work inside it. The ranges themselves are listed again by the activity."""

    start: int
    end: int
    write_bytes: int
    """To write, of those that the diff names."""
    clear_bytes: int
    requests: int
    unchanged_bytes: int = 0
    """To write besides: in gaps that are copied along."""


@dataclass(frozen=True, slots=True)
class Plan:
    """All shards of one transfer, ascending and disjoint, with their sums."""

    shards: tuple[Shard, ...]
    write_bytes: int
    clear_bytes: int
    ranges: int
    requests: int
    gap_bytes_max: int = 0
    """The largest gap that is copied along; 0 for none."""


@dataclass
class Planner:
    """Builds a plan from diff ranges fed in ascending order; holds shards, never the ranges.

    A shard has at most `bytes_max` bytes to write and `requests_max` requests, so that an activity ends within minutes.
    """

    bytes_max: int
    requests_max: int
    _shards: list[Shard] = field(default_factory=list)
    _ranges: int = 0
    _start: int | None = None
    _end: int = 0
    _write: int = 0
    _clear: int = 0
    _requests: int = 0
    _unchanged: int = 0

    def feed(self, changed: DiffRange) -> None:
        """Add the next range, without any gap."""
        self._ranges += 1
        for piece in requests(changed):
            self.add(Request(piece.range, piece.cleared))

    def add(self, one: Request) -> None:
        """Add the next request."""
        written = 0 if one.cleared else one.range.size
        full = self._requests + 1 > self.requests_max or self._write + self._unchanged + written > self.bytes_max
        if self._start is not None and full:
            self._cut()
        if self._start is None:
            self._start = one.range.start
        self._end = one.range.end
        self._requests += 1
        self._write += written - one.unchanged_bytes
        self._unchanged += one.unchanged_bytes
        self._clear += one.range.size - written

    def _cut(self) -> None:
        assert self._start is not None
        self._shards.append(Shard(self._start, self._end, self._write, self._clear, self._requests, self._unchanged))
        self._start, self._write, self._clear, self._requests, self._unchanged = None, 0, 0, 0, 0

    def finish(self) -> Plan:
        """The plan of everything that was added."""
        if self._start is not None:
            self._cut()
        return Plan(
            shards=tuple(self._shards),
            write_bytes=sum(shard.write_bytes for shard in self._shards),
            clear_bytes=sum(shard.clear_bytes for shard in self._shards),
            ranges=self._ranges,
            requests=sum(shard.requests for shard in self._shards),
        )
