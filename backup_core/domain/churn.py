"""The share of a disk that an increment changed, against the usual one: a disk that is being encrypted changes all at once."""

from __future__ import annotations

from statistics import median
from typing import TYPE_CHECKING

from backup_core.domain.ranges import MIB

if TYPE_CHECKING:
    from collections.abc import Sequence

    from backup_core.domain.records import RestorePoint

POINTS_LOOKED_AT = 25
INCREMENTS_MIN = 3
"""With fewer there is no "usual"."""
USUAL_MIN = 64 * MIB
"""A disk that hardly ever changes is not unusual when it changes a little."""


def churn_ratio(newest_first: Sequence[RestorePoint]) -> float | None:
    """Changed bytes of the newest point as a multiple of the median of the increments before it; None when it is no increment
    or there are too few.
    """
    if not newest_first or newest_first[0].kind != "incremental":
        return None
    changed = [point.write_bytes + point.clear_bytes for point in newest_first if point.kind == "incremental"]
    if len(changed) <= INCREMENTS_MIN:
        return None
    return round(changed[0] / max(median(changed[1:]), USUAL_MIN), 2)
