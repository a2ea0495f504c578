"""Divide the hub's work among its workers, and renew the work that a worker has taken while it lives.

The instances, and the activities, are divided among the living workers by their ids. When a worker joins or dies the division
changes, and for a moment two may run the same instance: the conditional commit lets one of them win.
"""

from __future__ import annotations

import contextlib
import os
import time
import uuid
import zlib
from typing import TYPE_CHECKING

from devhost.functions.index import Taken

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from devhost.functions.hub import Hub

LEASE_SECONDS_MAX = 30.0
"""How long a worker counts as living after its last heartbeat: the lease on partitions of the real extension."""


class Partitions:
    """One worker's share of the hub."""

    def __init__(self, hub: Hub, invisible_seconds: Mapping[Taken, float]) -> None:
        """Taken work stays invisible for `invisible_seconds`, and is renewed while this process lives."""
        self._hub, self._invisible = hub, invisible_seconds
        self._lease = min(LEASE_SECONDS_MAX, *invisible_seconds.values())
        self._held: dict[Taken, set[int]] = {"messages": set(), "work": set()}
        self._workers: list[str] = []
        self._renewed = 0.0
        self.worker = f"{os.getpid()}-{uuid.uuid4().hex[:8]}"
        """This worker's name."""

    def until(self, kind: Taken) -> float:
        """The moment (POSIX seconds) until which something taken now is invisible."""
        return time.time() + self._invisible[kind]

    @property
    def shared(self) -> bool:
        """Whether there are other workers."""
        return len(self._workers) > 1

    def has(self, key: str) -> bool:
        """Whether the instance, or activity, of that id is this worker's."""
        return not self.shared or self._workers[zlib.crc32(key.encode()) % len(self._workers)] == self.worker

    @contextlib.contextmanager
    def holding(self, kind: Taken, numbers: Iterable[int]) -> Iterator[None]:
        """Renew these rows, which this worker has taken, until the block ends."""
        numbers = set(numbers)
        self._held[kind] |= numbers
        try:
            yield
        finally:
            self._held[kind] -= numbers

    def renew_in_time(self) -> bool:
        """Renew after a third of the time. Returns whether the workers have changed."""
        now = time.time()
        return now - self._renewed > self._lease / 3 and self.renew(now)

    def renew(self, now: float) -> bool:
        """Prolong this worker's life and what it holds. Returns whether the workers are others than before."""
        before = self._workers
        with self._hub as hub:
            self._workers = hub.beat(self.worker, now, now + self._lease)
            hub.hide_messages(self._held["messages"], now + self._invisible["messages"])
            hub.hold_work(self._held["work"], self.worker, now + self._invisible["work"])
        self._renewed = now
        return before != self._workers

    def leave(self) -> None:
        """Give up this worker's share. What it holds stays invisible for its time, as after a crash."""
        with self._hub as hub:
            hub.leave(self.worker)
