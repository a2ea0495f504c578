"""How a window's disks are shared out: how many at the same time, and which of them one after another."""

from __future__ import annotations

from zlib import crc32

ACTIVE_DISKS_MAX = 16
"""Disks backed up side by side. Each has four activities under way as a rule, and a worker runs eight: a run's next sign of
life waits for the activities before it, 16 x 4 x 100 s / 8 = 13 minutes at most. It must not wait so long that the run is taken
for dead.
"""


def lane_of(disk: str, lanes: int) -> int:
    """The lane of a disk: spread evenly, and the same whatever other disks there are."""
    return crc32(disk.encode()) % lanes
