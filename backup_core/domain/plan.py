"""From a diff to shards: byte intervals, each a bounded amount of work for one activity."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import timedelta

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
    clear_bytes: int
    requests: int


@dataclass(frozen=True, slots=True)
class Plan:
    """All shards of one transfer, ascending and disjoint, with their sums."""

    shards: tuple[Shard, ...]
    write_bytes: int
    clear_bytes: int
    ranges: int
    requests: int


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

    def feed(self, changed: DiffRange) -> None:
        """Add the next range."""
        self._ranges += 1
        for piece in (one.range for one in requests(changed)):
            written = 0 if changed.cleared else piece.size
            full = self._requests + 1 > self.requests_max or self._write + written > self.bytes_max
            if self._start is not None and full:
                self._cut()
            if self._start is None:
                self._start = piece.start
            self._end = piece.end
            self._requests += 1
            self._write += written
            self._clear += piece.size - written

    def _cut(self) -> None:
        assert self._start is not None
        self._shards.append(Shard(self._start, self._end, self._write, self._clear, self._requests))
        self._start, self._write, self._clear, self._requests = None, 0, 0, 0

    def finish(self) -> Plan:
        """The plan of everything fed."""
        if self._start is not None:
            self._cut()
        return Plan(
            shards=tuple(self._shards),
            write_bytes=sum(shard.write_bytes for shard in self._shards),
            clear_bytes=sum(shard.clear_bytes for shard in self._shards),
            ranges=self._ranges,
            requests=sum(shard.requests for shard in self._shards),
        )
