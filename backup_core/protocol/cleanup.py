# Long: the duties of a night, beside each other.
"""Removal of leftovers of runs: snapshots, incomplete blobs, documents, pins, old rows. A day after nothing can need them.

A leftover names its run itself, and that run has ended. That proves nothing alone, since copies and snapshots inherit metadata:
a snapshot of a source must be recorded besides, a blob's mark must name the blob. Doubtful ones are kept and reported.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from backup_core.domain.ending import abandonment, dead
from backup_core.domain.errors import (
    BackupError,
    BlobMissingError,
    CleanupError,
    LeaseTakenError,
    RowChangedError,
    SnapshotMissingError,
    SnapshotsPresentError,
)
from backup_core.domain.metadata import from_metadata, from_point_metadata, is_marked, run_of_source_snapshot
from backup_core.domain.naming import disk_of_run, point_id, registration_name, snapshot_time
from backup_core.domain.repoint import same_disk
from backup_core.domain.shown import named
from backup_core.ports import Guard
from backup_core.protocol.custody import prune_in_custody
from backup_core.protocol.losses import mark_losses
from backup_core.protocol.managed_disks import close_upload
from backup_core.protocol.ownership import close_access, imported_source
from backup_core.protocol.points import all_points
from backup_core.protocol.pruning import prune, release_dead_pin
from backup_core.protocol.registrations import REGISTRATION
from backup_core.protocol.run_rows import write_run
from backup_core.protocol.source_snapshots import delete_recorded, drop_replaced
from backup_core.steps.housekeeping import CleanupResult

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping
    from collections.abc import Set as AbstractSet

    from backup_core.domain.rebuild import Place
    from backup_core.domain.records import RestorePoint, Run, Versioned
    from backup_core.protocol.tools import Tools
    from backup_core.steps.housekeeping import CleanUpDisk


RUNS_LOOKED_AT = 50
"""The newest restores of a disk in each of these states: they may have left something at a disk that they made, however many
backups there were since.
"""
UNSUCCESSFUL = ("Running", "Failed", "Canceled")


@dataclass
class Cleanup:
    """The state of one call: how much it may still remove, and what it has read of runs."""

    tools: Tools
    request: CleanUpDisk
    now: datetime
    gone: dict[str, int] = field(default_factory=dict)
    kept: list[str] = field(default_factory=list)
    """Objects with a mark of ours that proves nothing, and why each was kept."""
    more: bool = False
    _ended: dict[str, bool] = field(default_factory=dict)
    _points: list[Versioned[RestorePoint]] | None = None
    _listed: tuple[dict[str, Mapping[str, str]], dict[Place, str]] | None = None

    @property
    def duties(self) -> tuple[Callable[[], Awaitable[None]], ...]:
        """The duties of a night, in order; each is tried whether those before it failed or not."""
        return (
            self.pins,
            self.access,
            self.uploads,
            self.source_snapshots,
            self.failed_snapshots,
            self.former_sources,
            self.imported_snapshots,
            self.blobs,
            self.documents,
            self.rows,
            self.registration,
            self.losses,
            self.points,
        )

    def done(self) -> CleanupResult:
        """The number of removed leftovers; a repeat of the call finds fewer."""
        return CleanupResult(more=self.more, **self.gone)

    def _stop_at_bound(self) -> bool:
        """Stop the duty when the call has removed as much as it may: then true, and `more` says that something is left."""
        if sum(self.gone.values()) < self.tools.limits.sweeps_max:
            return False
        self.more = True
        return True

    def _count(self, what: str, number: int = 1) -> None:
        if number:
            self.gone[what] = self.gone.get(what, 0) + number

    def _old(self, moment: datetime) -> bool:
        return self.now - moment > timedelta(seconds=self.tools.limits.sweep_age_seconds)

    async def _end_if_long_silent(self, run: str) -> bool:
        """Whether the run, of this disk, ended long ago. One that has been silent for as long is ended here."""
        if disk_of_run(run) != self.request.disk:
            return False
        # G44: ended, or silent, for a day.
        if run not in self._ended:
            self._ended[run] = await self._end_row_if_long_silent(run)
        return self._ended[run]

    async def _end_row_if_long_silent(self, run: str) -> bool:
        row = await self.tools.catalogue.run(self.request.disk, run)
        if row is None:
            return True
        if not self._old(row.changed):
            return False
        if not row.value.ended_for_good:
            try:
                await write_run(self.tools, row, abandonment(row.value, self.request.actor, self.now))
            except RowChangedError:
                return False  # its row has changed in this moment: it is alive
        return True

    # -- each kind of leftover ------------------------------------------------------------------------------------------

    async def pins(self) -> None:
        """Remove the pins of runs that have ended or are abandoned."""
        for pin in await self.tools.catalogue.pins(self.request.disk):
            if self._stop_at_bound():
                return
            if await release_dead_pin(self.tools, pin, self.request.actor):
                self._count("pins")

    async def access(self) -> None:
        """End access to snapshots of a managed disk that an abandoned run has opened."""
        row = await self.tools.catalogue.head(self.request.disk)
        owner = row.value.owner if row else None
        run = await self.tools.catalogue.run(self.request.disk, owner.run) if owner else None
        # G65: what an abandoned run has opened, nobody else closes.
        if run is None or run.value.ended_for_good or dead(run, self.now):
            registration = await self.tools.catalogue.registration(self.request.disk)
            sources = {registration.value.source} if registration else set()
            for source in sources | {source for source, _ in await self._imported()}:
                await close_access(self.tools, source)

    async def uploads(self) -> None:
        """End access to managed disks themselves that restores have not completed. Raises CleanupError, which names those that
        stay open, after all were tried: Azure does not end an upload that is no VHD.
        """
        open_ = []
        for disk, made_by in await self._unused_uploads():
            try:
                # G72: what a dead restore has left open.
                await close_upload(self.tools, disk, made_by)
            except BackupError as error:
                open_.append(f"{error.code}: {error}")
        if open_:
            raise CleanupError(named(open_))

    async def _unused_uploads(self) -> list[tuple[str, str]]:
        """The managed disks of recent restores that have not succeeded and are not at work, each with its run: they may be open
        themselves.
        """
        found = []
        for run in await self._unsuccessful() if self.tools.machine_groups else []:
            wanted = run.restore
            if not wanted or not wanted.uploads or not self.tools.may_make(wanted.managed_disk):
                continue
            row = await self.tools.catalogue.run(self.request.disk, run.run)
            if row and (row.value.ended_for_good or dead(row, self.now)):
                found.append((wanted.managed_disk, run.run))
        return found

    async def _unsuccessful(self) -> list[Run]:
        """Recent restores of the disk that have not succeeded, or not yet."""
        found: list[Run] = []
        for state in UNSUCCESSFUL:
            found += await self.tools.catalogue.runs(self.request.disk, RUNS_LOOKED_AT, state=state, operation="restore")
        return found

    async def _imported(self) -> list[tuple[str, Run]]:
        """The managed disks that recent restores were to make and adopt, and did not: none of them is the disk's source."""
        if not self.tools.disk_groups:
            return []  # no managed disk may be read
        registration = await self.tools.catalogue.registration(self.request.disk)
        named = [(imported_source(run), run) for run in await self._unsuccessful() if run.source_snapshots]
        present = registration.value.source if registration else ""
        return [
            (str(self.tools.source(source)), run)
            for source, run in named
            if source and self.tools.may_read(source) and not same_disk(source, present)
        ]

    async def _source(self) -> str:
        """The registered source, as it is stored; empty where there is none, or this app may not read it any more."""
        row = await self.tools.catalogue.registration(self.request.disk)
        return row.value.source if row and self.tools.may_read(row.value.source) else ""

    async def source_snapshots(self) -> None:
        """Remove the snapshots that runs have taken of the disk, except those that an increment or an interrupted run needs."""
        if not (registered := await self._source()):
            return
        source = self.tools.source(registered)
        # G68: the service keeps few, and bills them.
        for one in await self.tools.blobs.snapshots(source):
            if self._stop_at_bound():
                return
            run = run_of_source_snapshot(one.metadata, self.tools.site(source))
            if not run or not self._old(snapshot_time(one.snapshot)) or not await self._end_if_long_silent(run):
                continue
            if not one.named and not await self._is_recorded(registered, one.snapshot, run):
                self.kept.append(
                    f"{source} snapshot {one.snapshot}: it names run {run}, and nothing says that this run took it"
                )
            elif not await self._may_be_needed(registered, one.snapshot, run):
                await self.tools.blobs.delete_snapshot(source, one.snapshot)
                self._count("snapshots")

    async def failed_snapshots(self) -> None:
        """Remove the snapshots of the disk that Azure failed to make for runs that have ended. No run reads them, and each
        attempt at the disk's limit of snapshots has left one.
        """
        if not (registered := await self._source()):
            return
        source = self.tools.source(registered)
        for one in await self.tools.blobs.failed_snapshots(source):
            if self._stop_at_bound():
                return
            run = run_of_source_snapshot(one.metadata, self.tools.site(source))
            # A name that is made again soon after its deletion is said to be missing: that of a run at work is left alone.
            if run and await self._end_if_long_silent(run):
                await self.tools.blobs.delete_failed_snapshot(source, one.name)
                self._count("snapshots")

    async def imported_snapshots(self) -> None:
        """Snapshots of managed disks that restores took, and then did not adopt. One that is a restore point's stays: the last
        snapshot of a disk that was the source once.
        """
        for disk, run in await self._imported():
            if not await self._end_if_long_silent(run.run):
                continue
            row = await self.tools.catalogue.head(self.request.disk)
            if row and row.value.owner and row.value.owner.run == run.run:
                continue  # it may wake up and commit; the next run takes the disk over
            for snapshot in run.source_snapshots:
                if self._stop_at_bound():
                    return
                point = await self.tools.catalogue.point(self.request.disk, point_id(snapshot))
                # G60: never one that the catalogue names.
                if point is None and await delete_recorded(self.tools, self.tools.source(disk), snapshot, run.run):
                    self._count("snapshots")

    async def _is_recorded(self, source: str, snapshot: str, run: str) -> bool:
        """Whether the catalogue knows the snapshot by its exact time: as one that the run took, or that of a restore point."""
        # G45: metadata are inherited, so the catalogue must know the snapshot.
        row = await self.tools.catalogue.run(self.request.disk, run)
        if row and snapshot in row.value.source_snapshots:
            return True
        point = await self.tools.catalogue.point(self.request.disk, point_id(snapshot))
        return point is not None and (point.value.source, point.value.source_snapshot) == (source, snapshot)

    async def _may_be_needed(self, source: str, snapshot: str, run: str) -> bool:
        """Whether an increment or an interrupted run may start from the snapshot of that run, which has ended; also when nobody
        can say so for certain. To be called after the run's end was read, for each snapshot anew.
        """
        # G46: kept while any row or mark is missing or in doubt.
        row = await self.tools.catalogue.head(self.request.disk)
        if row is None or row.value.pair is None or row.value.source != source:
            return True
        if row.value.owner and row.value.owner.run == run:
            # While it owns the disk it may resume and make the snapshot its target; the next run takes that over.
            return True
        # Read after the owner: a run without the disk can mark nothing any more, and one that finishes a target has marked it.
        head = self.tools.head(row.value.head)
        try:
            found = await self.tools.blobs.properties(head)
        except BlobMissingError:
            return True
        mark = from_metadata(found.metadata, self.tools.site(head))
        return mark is None or snapshot in (row.value.pair.source_snapshot, mark.target, mark.base)

    async def former_sources(self) -> None:
        """Remove the last source snapshot of each former source, if the backup that replaced it could not delete it.

        The snapshot a restore has replaced stays on its old disk (ADR 0014).
        """
        head = await self.tools.catalogue.head(self.request.disk)
        if head is None or head.value.pair is None:
            return
        points = {row.value.source_snapshot: row.value for row in await self._restore_points()}
        for point in points.values():
            former = points.get(point.previous_source_snapshot)
            if former is None or former.source in (point.source, head.value.source) or point.kind == "restored":
                continue
            if self._stop_at_bound():
                return
            if not self.tools.may_read(former.source) or not self._old(snapshot_time(point.source_snapshot)):
                continue
            if await self._end_if_long_silent(point.run):
                self._count("snapshots", await drop_replaced(self.tools, former, head.value))

    async def blobs(self) -> None:
        """Remove backup blobs without any snapshot that are not the disk's head: incomplete ones, and expired generations.

        One that a restore point names stays, even if its snapshots are gone.
        """
        named_by_points = {row.value.head for row in await self._restore_points()}
        try:
            bare, snapshots = await self._listing()
        except BlobMissingError:
            return
        # G47: never the blob of a point, or one with snapshots.
        kept = named_by_points | {name for name, _ in snapshots}
        for name, metadata in bare.items():
            if self._stop_at_bound():
                return
            if name not in kept and await self._end_run_behind(name, metadata):
                await self._delete(name)

    async def _restore_points(self) -> list[Versioned[RestorePoint]]:
        """All of the disk, as listed once in this call: before its blobs, so that what is committed meanwhile is seen there."""
        if self._points is None:
            self._points = await all_points(self.tools, self.request.disk)
        return self._points

    async def _listing(self) -> tuple[dict[str, Mapping[str, str]], dict[Place, str]]:
        """The disk's backup blobs with their metadata, and their snapshots with the restore points that they describe, as
        listed once in this call.
        """
        if self._listed is None:
            bare: dict[str, Mapping[str, str]] = {}
            snapshots: dict[Place, str] = {}
            tools = self.tools
            async for one in tools.blobs.listed(tools.backup_account, tools.heads_container, f"{self.request.disk}/"):
                if one.snapshot:
                    described = from_point_metadata(one.metadata, tools.site(tools.head(one.name)), one.snapshot)
                    snapshots[one.name, one.snapshot] = described.point if described else ""
                else:
                    bare[one.name] = one.metadata
            self._listed = bare, snapshots
        return self._listed

    async def _end_run_behind(self, name: str, metadata: Mapping[str, str]) -> bool:
        """Whether the blob was abandoned by the run that its mark names; one that has been silent for long is ended here."""
        mark = from_metadata(metadata, self.tools.site(self.tools.head(name)))
        if mark is None and is_marked(metadata):
            self.kept.append(f"backup blob {name}: its mark was not written on it by this deployment")
        if mark is None or mark.disk != self.request.disk or not await self._end_if_long_silent(mark.run):
            return False
        row = await self.tools.catalogue.head(self.request.disk)
        if row is None:
            return mark.state != "committed"
        return row.value.head != name

    async def _delete(self, name: str) -> None:
        blob, blobs = self.tools.head(name), self.tools.blobs
        try:
            found = await blobs.properties(blob)
            if not self._old(found.created):
                return
            if found.copy and found.copy.status == "pending":
                await blobs.abort_copy(blob, found.copy.copy_id)
            try:
                await blobs.acquire_lease(blob, self.request.lease)
            except LeaseTakenError:
                # Its run has ended, so that lease protects nothing any more.
                await blobs.break_lease(blob)
                await blobs.acquire_lease(blob, self.request.lease)
            etag = (await blobs.properties(blob)).etag
            # G47: a blob's snapshots are restore points, and must not be deleted with it.
            await blobs.delete_own(blob, Guard(self.request.lease, etag), bare=True)
        except BlobMissingError:
            return
        except SnapshotsPresentError:
            await blobs.release_lease(blob, self.request.lease)
            return
        self._count("blobs")

    async def documents(self) -> None:
        """Remove plans and cursors of runs that have ended, except the stored change of a machine that is not settled yet."""
        row = await self.tools.catalogue.head(self.request.disk)
        async for one in self.tools.documents.listed(f"{self.request.disk}/"):
            if self._stop_at_bound():
                return
            run = one.name.split("/")[1]
            kept = one.name.endswith("/machine.json") and (row is None or row.value.repoint == one.name)
            if kept or not self._old(one.changed):
                continue
            if await self._end_if_long_silent(run):
                await self.tools.documents.delete(one.name)
                self._count("documents")

    async def rows(self) -> None:
        """Remove rows of runs and requests after the time that they are kept."""
        limit = self.tools.limits.sweeps_max
        gone = await self.tools.catalogue.forget_runs(
            self.request.disk, self.now - timedelta(days=self.request.run_days), limit
        )
        self._count("runs", gone)
        self.more = self.more or gone >= limit

    async def registration(self) -> None:
        """Release claims of sources that the disk does not have any more, and renew an old copy of its registration. Both are
        left when a run dies while it moves the registration. A claim is made, or made again, just before the registration
        follows it: an old one has been followed or not.
        """
        claims = await self.tools.catalogue.claims(self.request.disk)
        row = await self.tools.catalogue.registration(self.request.disk)
        if row is None or not self._old(row.changed):
            return
        for claim in claims:
            # G40: a registration that moved half way is completed.
            if self._old(claim.changed) and not (row.value.protected and row.value.source == claim.value):
                await self.tools.catalogue.release_source(claim.value, self.request.disk, claim.etag)
                self._count("registrations")
        name, text = registration_name(self.request.disk), REGISTRATION.dump_json(row.value).decode()
        if await self.tools.documents.get(name) != text:
            await self.tools.documents.put(name, text)
            self._count("registrations")

    async def losses(self) -> None:
        """Mark restore points as lost whose backup snapshots are gone, and report backup snapshots without a row. Raises when
        the backup blobs cannot be listed.
        """
        rows = await all_points(self.tools, self.request.disk)
        try:
            _, snapshots = await self._listing()
        except BlobMissingError:
            if rows:
                raise
            return
        more = await mark_losses(self.tools, self.request.disk, self.request.actor, rows, snapshots)
        self.more = self.more or more
        await self._report_without_row({row.value.point for row in rows}, snapshots)

    async def _report_without_row(self, known: AbstractSet[str], snapshots: Mapping[Place, str]) -> None:
        """Report the newest of the backup snapshots, a day old, whose restore points have no row. A catalogue that came back
        from an earlier moment lacks them.
        """
        suspects = [(point, place) for place, point in snapshots.items() if point and point not in known]
        for point, (name, snapshot) in sorted(suspects, reverse=True):
            # A prune deletes the snapshot before the row, so the row is read first.
            if not self._old(snapshot_time(snapshot)) or await self.tools.catalogue.point(self.request.disk, point):
                continue
            with suppress(SnapshotMissingError):
                await self.tools.blobs.properties(self.tools.head(name), snapshot)
                self.kept.append(
                    f"backup snapshot {snapshot} of {name}: its restore point {point} is not in the catalogue; "
                    "POST /api/catalogue/rebuild restores its row, and those of others"
                )
                return

    async def points(self) -> None:
        """Delete restore points whose retention has ended, and that the backups' own prune did not reach."""
        registration = await self.tools.catalogue.registration(self.request.disk)
        if registration is None or not registration.value.protected or registration.value.retention is None:
            return
        pruning = prune_in_custody if self.tools.custody else prune
        pruned = await pruning(self.tools, registration.value, self.request.actor)
        self._count("points", len(pruned.expired))
        self.more = self.more or pruned.more
