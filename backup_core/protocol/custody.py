"""Retention in an app with custody of the backups: by its own record, within its own limits."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from pydantic import TypeAdapter

from backup_core.domain.custody import CustodyRecord, followed, may_be_deleted
from backup_core.domain.errors import RecordAlteredError
from backup_core.domain.events import RunWarned
from backup_core.domain.naming import custody_name, custody_night_name
from backup_core.domain.shown import named, shortened
from backup_core.protocol.descriptions import require_described
from backup_core.protocol.documents import read_document
from backup_core.protocol.pruning import delete_points, expired_points
from backup_core.steps.backup import PruneResult

if TYPE_CHECKING:
    from backup_core.domain.records import Registration, RestorePoint, Retention, Versioned
    from backup_core.protocol.tools import Custody, Tools

RECORD, NIGHT = TypeAdapter(CustodyRecord), TypeAdapter(tuple[str, ...])


async def prune_in_custody(tools: Tools, registration: Registration, night: str) -> PruneResult:
    """Delete expired restore points by the retention that custody applies. It deletes none that is younger than custody's
    limits say, no more than they allow, and none whose row differs from its backup snapshot's own description. It reports what
    a shorter retention waits for.
    """
    custody, disk, now = tools.custody, registration.disk, await tools.catalogue.now()
    assert custody is not None  # the caller chooses by it
    known = await _stored(custody, disk)
    record = followed(known, registration.retention, now, custody.limits)
    if record.since and record.since != known.since:
        _warn(tools, disk, night, _words(record, custody))
    if record != known:
        await _store(custody, disk, record)
    if record.applied is None:
        return PruneResult(expired=[], more=False)
    expired = await expired_points(tools, replace(registration, retention=record.applied), night, trusts_deleting=False)
    old = [row for row in expired if may_be_deleted(row.value, now, custody.limits)]
    permitted = await _permitted(custody, old, night) if old else ()
    left = [row for row in old if row.value.point in permitted]
    gone = await delete_points(tools, await _described(tools, left[: tools.limits.prune_points_max], night))
    return PruneResult(expired=gone, more=bool(gone) and len(left) > len(gone))


async def _permitted(custody: Custody, old: list[Versioned[RestorePoint]], night: str) -> tuple[str, ...]:
    """The restore points that the night may delete. The first call decides them, once, so that calls that come twice or late
    delete no more.
    """
    disk = old[0].value.disk
    name = custody_night_name(disk, night)
    if await custody.documents.get(name) is None:
        nights = [one.name async for one in custody.documents.listed(f"{disk}/") if one.name != custody_name(disk)]
        if any(one > name for one in nights):
            return ()  # a late call of an earlier night
        chosen = tuple(row.value.point for row in old[: custody.limits.deletions_max])
        await custody.documents.put_if_absent(name, NIGHT.dump_json(chosen).decode())
        for former in nights:
            if former < name:
                await custody.documents.delete(former)
    return read_document(NIGHT, f"custody record {name}", await custody.documents.get(name) or "[]")


async def _described(tools: Tools, rows: list[Versioned[RestorePoint]], night: str) -> list[Versioned[RestorePoint]]:
    """The points whose backup snapshots agree with their rows; the others are kept, and reported."""
    same, altered = [], []
    for row in rows:
        try:
            await require_described(tools, row.value)
        except RecordAlteredError as error:
            altered.append(str(error))
        else:
            same.append(row)
    if altered:
        _warn(tools, rows[0].value.disk, night, f"kept: {named(altered)}")
    return same


async def _stored(custody: Custody, disk: str) -> CustodyRecord:
    stored = await custody.documents.get(custody_name(disk))
    return CustodyRecord() if stored is None else read_document(RECORD, f"custody record {custody_name(disk)}", stored)


async def _store(custody: Custody, disk: str, record: CustodyRecord) -> None:
    await custody.documents.put(custody_name(disk), RECORD.dump_json(record).decode())


def _words(record: CustodyRecord, custody: Custody) -> str:
    assert record.since is not None
    return (
        f"the registration keeps less than before: {_kept(record.shorter)}, instead of {_kept(record.applied)}; nothing is "
        f"deleted by it before {record.since + custody.limits.delay:%Y-%m-%d %H:%M} UTC; if nobody meant that, PUT the former "
        "retention, and find out who may write to the catalogue"
    )


def _kept(retention: Retention | None) -> str:
    if retention is None:
        return "everything"
    return f"the newest {retention.keep_last} and all of {retention.min_age_days} days"


def _warn(tools: Tools, disk: str, night: str, message: str) -> None:
    tools.journal.write(RunWarned(disk=disk, run=night, message=shortened(message)))
