"""Decide which disks of a window are backed up side by side, in what order, and by which lane.

A few lanes work side by side. Each takes the next disk of one order when it is done with its last. With the longest first the
window takes at most 4/3 of the shortest time possible (list scheduling), and errors of the estimates even out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from statistics import median
from typing import TYPE_CHECKING, ClassVar

from backup_core.domain.pacing import ACCOUNT_RATES, BLOB_RATES

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from backup_core.domain.records import Run

ACTIVE_SHARDS_MAX = 64
"""Shards of all disks of a window copied side by side. A worker runs eight activities, so a run's next heartbeat waits
for those before it, 64 x 100 s / 8 = 13 minutes at most. It must not wait so long that the run is taken for abandoned.
"""
ACTIVE_DISKS = math.ceil(max(ACCOUNT_RATES.bytes / BLOB_RATES.bytes, ACCOUNT_RATES.requests / BLOB_RATES.requests))
"""Disks backed up side by side into one account: as many page blobs as fill it by bytes, 50; by requests 40 do. Fewer leave
some of it unused; more slow each other, also the one that takes longest, and all are ready later.
"""
NEW_DISKS_MIN = 0.25
"""The part of the lanes that a window has at least, however many disks are still at work from the windows before."""
PAST_RUNS = 5
"""Newest runs of a disk that its next one is estimated by."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A disk that is to be backed up in a window, and what its place follows from."""

    disk: str
    seconds: float = math.inf
    """How long its backup is expected to take; infinity when nobody knows."""
    waited: bool = False
    """It had no turn in the window before."""
    at_work: bool = False
    """A backup of it, of a window before or by a call, is still at work."""


def expected_seconds(past: Sequence[Run], size: int | None = None) -> float:
    """Seconds that a disk's next backup is expected to take. This is the median of the increments among its newest runs, else
    of its other backups. Without any it is the time of a full copy of `size` bytes at a page blob's limit. Infinity when
    nothing is known.
    """
    took = [
        (run.kind, (run.ended - run.started).total_seconds())
        for run in past
        if run.operation == "backup" and run.state == "Succeeded" and run.started and run.ended
    ]
    usual = [seconds for kind, seconds in took if kind == "incremental"] or [seconds for _, seconds in took]
    if usual:
        return median(usual)
    return math.inf if size is None else size / BLOB_RATES.bytes


def in_order(candidates: Iterable[Candidate]) -> list[str]:
    """The disks in the order of their turns: longest first, so that no long one is begun when all others are done.

    Those that had no turn in the window before come before all others: else the shortest would never have one where windows are
    too short. Those still at work come last: begun now, they would be skipped. What cannot be estimated is taken for long.
    """
    return [one.disk for one in sorted(candidates, key=lambda one: (one.at_work, not one.waited, -one.seconds, one.disk))]


def lanes_for(disks: int, at_work: int, active: int) -> int:
    """Number of lanes that a window gets, one at most for each of its `disks`. It leaves no more than `active` disks at work,
    those of former windows included, but is NEW_DISKS_MIN of `active` at least. So disks that take longer than a window keep no
    other from its turn.
    """
    return min(disks, max(active - at_work, math.ceil(active * NEW_DISKS_MIN)))


def shards_beside(shards: int, active: int) -> int:
    """Number of shards of each disk that are copied side by side. At most `shards`, and at most ACTIVE_SHARDS_MAX of all active
    disks together; at least 1.
    """
    return max(1, min(shards, ACTIVE_SHARDS_MAX // max(active, 1)))


@dataclass(frozen=True, slots=True)
class Turn:
    """The latest disk that a lane was given."""

    number: int
    """Counts the lane's turns."""
    place: int
    """The disk's, in the order."""
    given: datetime


@dataclass(frozen=True)
class Turns:
    """The turns of a window: the disks of its order that its lanes have been given. All lanes share this row. Each place is
    given once.
    """

    disk: ClassVar[str] = "!turns"
    """In place of a disk, where the row is kept: there is one, that of the newest window. What a former window has not begun by
    then is left to the newest.
    """

    window: str
    digest: str
    """Of the stored order."""
    disks: int
    """Number of its disks."""
    begun: int
    """Number of disks that were given to a lane: the first."""
    lanes: tuple[Turn, ...]
    """By lane."""

    @classmethod
    def first(cls, window: str, digest: str, disks: int, lanes: int, now: datetime) -> Turns:
        """Each lane has its first disk, so that they need not vie for them."""
        return cls(window, digest, disks, lanes, tuple(Turn(0, lane, now) for lane in range(lanes)))

    def given(self, lane: int, number: int, now: datetime) -> tuple[Turns, Turn | None]:
        """The lane's turn of that number, and the row with it; None when every disk has had one.

        A lane asks for a turn when it is done with the one before. Asked again, it has the same. One that begins anew, by a
        message that came twice, first has its latest: of that alone nobody knows whether it was begun.
        """
        latest = self.lanes[lane]
        # G69: answered as before, else the disk that it was given would be nobody's.
        if number <= latest.number:
            return self, latest
        if self.begun == self.disks:
            return self, None
        turn = Turn(number, self.begun, now)
        return replace(self, begun=self.begun + 1, lanes=(*self.lanes[:lane], turn, *self.lanes[lane + 1 :])), turn

    def waiting(self, order: Sequence[str], now: datetime, gap: timedelta) -> set[str]:
        """The disks that have had no turn yet, and those that were given to a lane within `gap`."""
        fresh = {order[one.place] for one in self.lanes if now - one.given <= gap}
        return {*order[self.begun :], *fresh}
