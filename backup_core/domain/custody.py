"""The retention that an app with custody of the backups applies, from a record that only that app can write.

A registration is a row that the app which backs up can write. A retention in it that keeps more is applied at once; one that
keeps less is applied after a delay, in which somebody can see the alert and undo it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from backup_core.domain.naming import snapshot_time
from backup_core.domain.records import Retention

if TYPE_CHECKING:
    from backup_core.domain.records import RestorePoint


@dataclass(frozen=True)
class CustodyLimits:
    """Limits of what custody deletes, whatever the catalogue says."""

    delay: timedelta = timedelta(days=7)
    """From the night that first sees a shorter retention until it is applied."""
    age_min: timedelta = timedelta(days=7)
    """A restore point is kept at least this long after its backup snapshot was taken, by the storage service's own time."""
    deletions_max: int = 24
    """Restore points of one disk that one night may delete."""


@dataclass(frozen=True)
class CustodyRecord:
    """The stored record of a disk in custody. `applied` None keeps everything."""

    applied: Retention | None = None
    shorter: Retention | None = None
    """A retention of the registration that keeps less, and is not applied yet."""
    since: datetime | None = None
    """Time at which it was first seen; None when there is none."""


def keeps_more(one: Retention | None, other: Retention | None) -> Retention | None:
    """A retention that keeps each restore point that one of the two keeps."""
    if one is None or other is None:
        return None
    return Retention(max(one.keep_last, other.keep_last), max(one.min_age_days, other.min_age_days))


def followed(record: CustodyRecord, registered: Retention | None, now: datetime, limits: CustodyLimits) -> CustodyRecord:
    """The record once the registration's retention was seen at `now`. Without a record a disk keeps all for the delay."""
    applied = keeps_more(record.applied, registered)
    if applied == registered:
        return replace(record, applied=registered, shorter=None, since=None)
    if record.since is None or record.shorter != registered:
        return replace(record, applied=applied, shorter=registered, since=now)
    if now - record.since >= limits.delay:
        return replace(record, applied=registered, shorter=None, since=None)
    return replace(record, applied=applied)


def may_be_deleted(point: RestorePoint, now: datetime, limits: CustodyLimits) -> bool:
    """Whether the backup snapshot is old enough. Who writes rows or blobs cannot choose the snapshot's time."""
    return now - snapshot_time(point.backup_snapshot) >= limits.age_min
