"""From a diff to shards: byte intervals, each a bounded amount of work for one activity."""

from __future__ import annotations

import itertools
from bisect import bisect_right
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING

from backup_core.domain.coalescing import Request
from backup_core.domain.ranges import DiffRange, requests

if TYPE_CHECKING:
    from collections.abc import Sequence

COPY_DEADLINE = timedelta(hours=48)
"""The longest wait for a Copy Blob of the service, counted in pauses between polls; the service itself fails it after two
weeks. Its source's signature is valid for as long: whether a copy outlives its signature is not documented.
"""

SHARDS_PER_CALL = 16
"""Shards that one call is given at most: more than a page blob takes in its time."""

PARTS = 16
"""A shard consists of about this many parts, so that shards can be made equal."""

HALVINGS = 10
"""Tries by which the fill of equal shards is found, to a thousandth."""


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
    """All shards of one transfer, ascending and disjoint, and their sums."""

    shards: tuple[Shard, ...]
    write_bytes: int
    clear_bytes: int
    ranges: int
    requests: int
    gap_bytes_max: int = 0
    """The largest gap that is copied along; 0 for none."""


@dataclass
class Planner:
    """Builds a plan from diff ranges fed in ascending order; holds parts of shards, never the ranges.

    A shard has at most `bytes_max` bytes to write and `requests_max` requests, so that an activity ends within minutes. Shards
    cost about the same, as far as their requests can be cut: those side by side end together.
    """

    bytes_max: int
    requests_max: int
    _parts: list[Shard] = field(default_factory=list)
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
        too_large = self._write + self._unchanged + written > self.bytes_max // PARTS
        full = self._requests + 1 > self.requests_max // PARTS or too_large
        if self._start is not None and full:
            self._cut(self._start)
        if self._start is None:
            self._start = one.range.start
        self._end = one.range.end
        self._requests += 1
        self._write += written - one.unchanged_bytes
        self._unchanged += one.unchanged_bytes
        self._clear += one.range.size - written

    def _cut(self, start: int) -> None:
        self._parts.append(Shard(start, self._end, self._write, self._clear, self._requests, self._unchanged))
        self._start, self._write, self._clear, self._requests, self._unchanged = None, 0, 0, 0, 0

    def finish(self) -> Plan:
        """The plan of everything that was added."""
        if self._start is not None:
            self._cut(self._start)
        shards = self._balanced()
        return Plan(
            shards=tuple(shards),
            write_bytes=sum(shard.write_bytes for shard in shards),
            clear_bytes=sum(shard.clear_bytes for shard in shards),
            ranges=self._ranges,
            requests=sum(shard.requests for shard in shards),
        )

    def _balanced(self) -> list[Shard]:
        """The parts as the fewest shards that keep the bounds, the most costly of them as small as may be."""
        written = [0, *itertools.accumulate(part.write_bytes + part.unchanged_bytes for part in self._parts)]
        requested = [0, *itertools.accumulate(part.requests for part in self._parts)]

        def filled(fill: float) -> list[int]:
            """The ends of the shards when each takes as many parts as `fill` of the bounds allows."""
            ends = [0]
            while (at := ends[-1]) < len(self._parts):
                by_bytes = bisect_right(written, written[at] + fill * self.bytes_max, at)
                by_requests = bisect_right(requested, requested[at] + fill * self.requests_max, at)
                ends.append(max(min(by_bytes, by_requests) - 1, at + 1))
            return ends

        ends, low, high = filled(1.0), 0.0, 1.0
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            tried = filled(middle)
            if len(tried) == len(ends):
                ends, high = tried, middle
            else:
                low = middle
        return [_merged(self._parts[a:b]) for a, b in itertools.pairwise(ends)]


def dealt(open_: Sequence[int], untouched: int, shards: int, calls: int) -> list[list[int]]:
    """The shards of each of the next calls: the `open_` ones, then those from `untouched` on, at most SHARDS_PER_CALL for each.

    Numbers of shards differ by one at most, and there are as many calls as may be, while there are shards.
    """
    ahead = [*open_, *range(untouched, shards)][: calls * SHARDS_PER_CALL]
    return [hand for call in range(calls) if (hand := ahead[call::calls])]


def _merged(parts: list[Shard]) -> Shard:
    """Consecutive parts as one."""
    return Shard(
        parts[0].start,
        parts[-1].end,
        sum(part.write_bytes for part in parts),
        sum(part.clear_bytes for part in parts),
        sum(part.requests for part in parts),
        sum(part.unchanged_bytes for part in parts),
    )
