"""Ownership of a disk: taken, taken over from an abandoned run, and relinquished; and whether its owner is at work."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING

from backup_core.domain.ending import abandonment, dead
from backup_core.domain.errors import BackupError, RowChangedError
from backup_core.domain.records import Head, Owner
from backup_core.domain.shown import shortened
from backup_core.domain.status import RUNS_LOOKED_AT
from backup_core.protocol.run_rows import write_run
from backup_core.protocol.updates import update_row

if TYPE_CHECKING:
    from collections.abc import Sequence
    from collections.abc import Set as AbstractSet
    from datetime import datetime

    from backup_core.domain.naming import BlobAddress
    from backup_core.domain.records import Run, Versioned
    from backup_core.protocol.tools import Tools


RUN_MAX = timedelta(days=7)
"""Runs that are older are not looked for: the longest wait, that for a copy, is given up after two days."""


async def is_at_work(tools: Tools, disk: str, run: str) -> bool:
    """Whether the run has neither ended nor been abandoned."""
    row = await tools.catalogue.run(disk, run)
    return row is not None and not row.value.ended_for_good and not dead(row, await tools.catalogue.now())


async def run_at_work(tools: Tools, head: Head | None) -> str:
    """The run that owns the disk, if it is at work; else empty."""
    owner = head.owner if head else None
    return owner.run if head and owner and await is_at_work(tools, head.disk, owner.run) else ""


def has_older(runs: Sequence[Run], now: datetime) -> bool:
    """Whether the disk may have runs older than `runs`, the newest ones, that are at work or have ended just now."""
    return len(runs) >= RUNS_LOOKED_AT and now - runs[-1].created <= RUN_MAX


async def older_at_work(tools: Tools, head: Versioned[Head] | None, runs: Sequence[Run], now: datetime) -> Run | None:
    """A run that has not ended and is older than `runs`, the newest ones. With a window each quarter of an hour there may be a
    hundred backups since a restore began.
    """
    if not has_older(runs, now):
        return None
    owner = head.value.owner if head else None
    older = await older_runs(tools, runs[0].disk, runs, {owner.run} if owner else set())
    return next((run for run in older if not run.ended_for_good), None)


async def older_runs(tools: Tools, disk: str, runs: Sequence[Run], others: AbstractSet[str] = frozenset()) -> list[Run]:
    """The disk's runs besides `runs`, the newest ones, that have a pin, as each restore in progress has; and the `others`."""
    names = {pin.run for pin in await tools.catalogue.pins(disk)} | others
    rows = [await tools.catalogue.run(disk, name) for name in sorted(names - {run.run for run in runs})]
    return [row.value for row in rows if row]


async def end_if_dead(tools: Tools, disk: str, run: str, actor: str) -> bool:
    """Whether the run has ended; an abandoned one is ended here by `actor`, so that nothing stays Running for ever."""

    async def end() -> bool | None:
        row = await tools.catalogue.run(disk, run)
        if row is None or row.value.ended_for_good:
            return True
        now = await tools.catalogue.now()
        # G4: the abandoned run's row ends before its disk is taken over.
        if not dead(row, now):
            return False
        # A conflict is the run's heartbeat, or the same end written by another delivery: the row says which.
        await write_run(tools, row, abandonment(row.value, actor, now))
        return None

    try:
        return await update_row(end, f"run {run}: its row", f"run {actor} tried to end it")
    except RowChangedError:
        return False  # so many heartbeats


async def take_ownership(tools: Tools, disk: str, run: str, lease: str, *, supersedes: str = "") -> Versioned[Head] | Owner:
    """The disk's head row, once the run owns the disk; it has the next epoch, unless it owned the disk already. Else the owner
    that keeps it: another run that is at work, or another orchestration of this run, unless its lease is the one that is
    superseded.

    Raises RowChangedError.
    """

    async def take() -> Versioned[Head] | Owner | None:
        row = await tools.catalogue.head(disk)
        head = row.value if row else Head(disk)
        owner = head.owner
        if row and owner and (owner.run, owner.lease) == (run, lease):
            return row
        if owner and owner.run == run and owner.lease != supersedes:
            return owner
        if owner and owner.run != run and not await end_if_dead(tools, disk, owner.run, run):
            return owner
        await tools.catalogue.put_head(head.owned_by(Owner(run, lease, head.epoch + 1)), row.etag if row else None)
        return None  # what counts is read back

    return await update_row(take, f"disk {disk}: its head row", f"run {run} tried to own it")


async def relinquish_ownership(tools: Tools, disk: str, run: str, lease: str, heads: Sequence[str]) -> list[str]:
    """Release the heads' leases and the ownership, if the run still has it; the failures, in words. A lease that
    stays is broken by the next run. Raises RowChangedError.
    """

    async def relinquish() -> list[str]:
        row = await tools.catalogue.head(disk)
        owner = row.value.owner if row else None
        if row is None or owner is None or (owner.run, owner.lease) != (run, lease):
            return []
        # G65: before another run can have the disk: it would lose what it has opened.
        registration = await tools.catalogue.registration(disk)
        still_open = await try_close_access(tools, registration.value.source) if registration else []
        names = heads or ([row.value.head] if row.value.head else [])
        left = still_open + await release_leases(tools, [tools.head(name) for name in names], lease)
        await tools.catalogue.put_head(replace(row.value, owner=None), row.etag)
        return left

    return await update_row(relinquish, f"disk {disk}: its head row", f"run {run} gave it up")


async def try_close_access(tools: Tools, source: str) -> list[str]:
    """End all access to the snapshots of a source; the failures, in words. Raises a temporary failure."""
    try:
        await close_access(tools, source)
    except BackupError as error:
        if error.retryable:
            raise
        return [shortened(f"access to snapshots stays open until the night: {error.code}: {error}")]
    return []


async def close_access(tools: Tools, source: str) -> None:
    """End all access to the snapshots of a source, unless this app may not read it any more."""
    if tools.may_read(source):
        await tools.blobs.close_access(tools.source(source))


def imported_source(run: Run) -> str:
    """The managed disk that a restore was to make and adopt; empty for any other run."""
    return run.restore.managed_disk if run.restore and run.restore.adopt else ""


async def release_leases(tools: Tools, blobs: Sequence[BlobAddress], lease: str) -> list[str]:
    """Release each blob's lease; the failures, in words. Raises a temporary failure, after all were tried."""
    passing: BackupError | None = None
    left = []
    for blob in blobs:
        try:
            await tools.blobs.release_lease(blob, lease)
        except BackupError as error:
            passing = passing or (error if error.retryable else None)
            left.append(shortened(f"lease of {blob}: {error.code}: {error}"))
    if passing:
        raise passing
    return left
