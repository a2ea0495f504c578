"""Verdicts on restore points, kept or expired, each with its reason. Deletion is decided here and nowhere else."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from backup_core.domain.naming import snapshot_time

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from backup_core.domain.records import CommonPair, RestorePoint, Retention


FORMER_SOURCE_APART = timedelta(days=90)
"""For this long after a disk got another source, the points of each source are counted apart: new points make
none of the former source expire, and a source that was changed by mistake can be changed back.
"""
CLOCK_RESOLUTION = timedelta(seconds=1)
"""The service's time is the Date of an answer, in whole seconds: a point of the second that has begun is not of the future."""


@dataclass(frozen=True)
class Verdict:
    """The decision about a restore point, and its reason."""

    point: RestorePoint
    expires: bool
    reason: str
    counts: bool = False
    """Whether older points may expire because of it: it is one of the newest, which are kept."""


def verdicts(
    points: Sequence[RestorePoint],
    retention: Retention | None,
    pair: CommonPair | None,
    pinned: Collection[str],
    now: datetime,
    source_since: datetime | None = None,
    *,
    trusts_deleting: bool = True,
) -> list[Verdict]:
    """A verdict for each point of a disk, newest first. `pinned` are ids of points in use; `now` is the service's time,
    `source_since` when the disk got its present source.

    Without a retention everything is kept. What is in doubt is kept: a point in use, of the common pair, the newest that can be
    restored, one dated in the future (some clock is wrong), one in quarantine (a person has to look at it).

    A row that says that its deletion has begun is judged anew unless that is trusted: somebody else may have written it.
    """
    # G41: the one rule for expiry.
    ordered = sorted(points, key=lambda one: one.source_snapshot, reverse=True)
    apart = source_since is not None and now - source_since < FORMER_SOURCE_APART
    counted: dict[str, list[str]] = {}
    for point in ordered:
        if point.state == "available":
            counted.setdefault(point.source if apart else "", []).append(point.point)
    decided = []
    for point in ordered:
        available = counted.get(point.source if apart else "", [])
        if point.state == "deleting" and not trusts_deleting:
            expires, reason = _verdict(
                replace(point, state="available"), sorted([*available, point.point], reverse=True), retention, pair, pinned, now
            )
        else:
            expires, reason = _verdict(point, available, retention, pair, pinned, now)
        counts = retention is not None and point.point in available[: retention.keep_last]
        decided.append(Verdict(point, expires, reason, counts))
    return decided


def _verdict(
    point: RestorePoint,
    available: list[str],
    retention: Retention | None,
    pair: CommonPair | None,
    pinned: Collection[str],
    now: datetime,
) -> tuple[bool, str]:
    taken = snapshot_time(point.source_snapshot)
    age = max(timedelta(), now - taken)
    if point.state == "deleting":
        return True, "its deletion has begun"
    if point.state != "available":
        return False, f"it is {point.state}"
    if retention is None:
        return False, "the disk has no retention"
    if point.point == available[0]:
        return False, "it is the newest"
    if pair and point.point == pair.point:
        return False, "the next backup starts from it"
    if point.point in pinned:
        return False, "it is in use"
    if taken >= now + CLOCK_RESOLUTION:
        return False, "it is dated in the future"
    if point.point in available[: retention.keep_last]:
        return False, f"it is one of the newest {retention.keep_last}"
    if age < timedelta(days=retention.min_age_days):
        return False, f"it is younger than {retention.min_age_days} days"
    return True, f"it is older than {retention.min_age_days} days and not one of the newest {retention.keep_last}"
