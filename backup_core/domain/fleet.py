"""The distribution of a window's disks: how many are backed up at the same time, and which one after another."""

from __future__ import annotations

from typing import TYPE_CHECKING
from zlib import crc32

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime, timedelta

ACTIVE_DISKS_MAX = 16
"""Disks backed up side by side. Each has four activities in progress as a rule, and a worker runs eight: a run's next heartbeat
waits for the activities before it, 16 x 4 x 100 s / 8 = 13 minutes at most. It must not wait so long that the run is taken for
dead.
"""


def lane_of(disk: str, lanes: int) -> int:
    """The lane of a disk: spread evenly, and the same whatever other disks there are."""
    return crc32(disk.encode()) % lanes


def waiting_for_their_turn(signs: Mapping[str, datetime | None], now: datetime, gap: timedelta) -> set[str]:
    """The disks of a window whose run has not begun, because their lane is at work on another one.

    `signs` has each disk of the fleet, and when its run of the window was last alive; None where there is none. A lane
    without a heartbeat within `gap` is stalled: its disks wait for nothing.
    """
    if len(signs) <= ACTIVE_DISKS_MAX:
        return set()
    going_on = {lane_of(disk, ACTIVE_DISKS_MAX) for disk, sign in signs.items() if sign and now - sign <= gap}
    return {disk for disk, sign in signs.items() if not sign and lane_of(disk, ACTIVE_DISKS_MAX) in going_on}
