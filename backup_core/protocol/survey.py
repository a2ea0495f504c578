"""The rebuild of the catalogue from the blobs: lost rows are restored as they were, rows without a blob are marked lost."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from backup_core.domain.errors import BlobMissingError, DiffRefusedError, RecordUnreadableError, SnapshotMissingError
from backup_core.domain.metadata import PageMapDigest, from_metadata, from_point_metadata
from backup_core.domain.naming import is_disk_id, registration_name
from backup_core.domain.ranges import ByteRange, windows
from backup_core.domain.rebuild import DIRTY, Compared, compare, head_of, newest
from backup_core.domain.records import Head, Registration, RestorePoint
from backup_core.ports import ROWS_PER_COMMIT
from backup_core.protocol.documents import read_document
from backup_core.protocol.listings import changes_between, side_by_side
from backup_core.protocol.ownership import run_at_work
from backup_core.protocol.points import all_points
from backup_core.protocol.registrations import REGISTRATION

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from datetime import datetime

    from backup_core.domain.rebuild import Place
    from backup_core.domain.records import Versioned
    from backup_core.protocol.tools import Tools


@dataclass(frozen=True)
class Survey:
    """The corrections for one disk; none when all its parts are empty."""

    disk: str
    busy: str = ""
    """The run at work on the disk, whose rows are not changed."""
    unreadable: str = ""
    """Reason why the disk's rows or documents cannot be read, and are not changed."""
    adopted: tuple[RestorePoint, ...] = ()
    changed: tuple[Versioned[RestorePoint], ...] = ()
    quarantined: tuple[tuple[Place, str], ...] = ()
    """Backup snapshots that are not adopted, and why."""
    head: Head | None = None
    """The head row to write: every transaction writes it, so that its version guards all rows."""
    head_differs: bool = False
    head_etag: str | None = None
    registration: Registration | None = None
    """The registration to restore, or to mark as unprotected."""
    registration_etag: str | None = None
    claim: str = ""
    """The source whose claim is to be restored."""
    floor: str = ""
    """The oldest source snapshot of this part's points, when older ones are left for another part."""


@dataclass
class _Listed:
    found: dict[Place, RestorePoint | None] = field(default_factory=dict)
    epochs: list[int] = field(default_factory=list)


async def disks_to_survey(tools: Tools, after: str) -> list[str]:
    """Every disk with a blob or a claim, ascending, after the id `after`."""
    found = set(await tools.catalogue.disks())
    found |= {name async for name in tools.blobs.folders(tools.backup_account, tools.heads_container) if is_disk_id(name)}
    return sorted(disk for disk in found if disk > after)


async def survey(tools: Tools, disk: str, below: str = "", down_to: str = "") -> Survey:
    """Compare a disk's rows with its blobs, the newest points first, a bounded number of them. Changes nothing.

    A part after the first looks at points without a row whose source snapshots are older than `below`, and at nothing else.
    `down_to` is the oldest one of a part that was cut before; empty cuts it here.
    """
    try:
        # G50: only whole descriptions are adopted; disks at work are left alone.
        return await _survey(tools, disk, below, down_to)
    # G53: one unreadable disk stops no other.
    except RecordUnreadableError as error:
        return Survey(disk, unreadable=str(error))


async def _survey(tools: Tools, disk: str, below: str, down_to: str) -> Survey:
    row = await tools.catalogue.head(disk)
    busy = await run_at_work(tools, row.value if row else None)
    if busy:
        return Survey(disk, busy=busy)
    listed = await _listed(tools, disk)
    stored = await all_points(tools, disk)
    compared, floor = compare(stored, listed.found).part(below, down_to, tools.limits.rebuilt_points_max)
    adopted, quarantined = await _checked(tools, compared)
    rows = {one.value.point: one.value for one in stored}
    rows |= {one.value.point: one.value for one in compared.changed} | {one.point: one for one in adopted}
    head = await _rebuilt_head(tools, disk, row, list(rows.values()), listed)
    if head.repoint and await tools.documents.get(head.repoint) is None:
        # Nobody can complete a change of a machine that is not stored any more: each backup failed for it.
        head = head.settled()
    registration = await tools.catalogue.registration(disk)
    lost_policy = await _registration(tools, disk, list(rows.values())) if registration is None else None
    known = registration.value if registration else lost_policy
    claim = known.source if known and known.protected and not await tools.catalogue.source_holder(known.source) else ""
    if registration and (words := _other_source(registration.value, adopted, newest(rows.values()))):
        lost_policy = replace(registration.value, unprotected=words)
    differs = head != (row.value if row else Head(disk))
    return Survey(
        disk,
        adopted=adopted,
        changed=compared.changed,
        quarantined=quarantined,
        head=head if differs or adopted or compared.changed else None,
        head_differs=differs,
        floor=floor,
        head_etag=row.etag if row else None,
        registration=lost_policy,
        registration_etag=registration.etag if registration else None,
        claim=claim,
    )


async def carry_out(tools: Tools, found: Survey) -> None:
    """Write what the survey found, in transactions guarded by the head row's version. Raises RowChangedError when a run or
    another rebuild was faster; what was written until then is right, and the next survey finds the rest.
    """
    if found.registration:
        await tools.catalogue.put_registration(found.registration, found.registration_etag)
    if found.claim:
        await tools.catalogue.claim_source(found.claim, found.disk)
    if found.head is None:
        return
    # The newest first: the head row, written each time, must not name a point that does not exist yet.
    adopted, changed, etag = list(reversed(found.adopted)), list(found.changed), found.head_etag
    while True:
        insert, adopted = adopted[:ROWS_PER_COMMIT], adopted[ROWS_PER_COMMIT:]
        room = ROWS_PER_COMMIT - len(insert)
        update, changed = changed[:room], changed[room:]
        # G50: the head row's version guards all rows.
        etag = await tools.catalogue.commit(insert, found.head, etag, update)
        if not adopted and not changed:
            return


async def _listed(tools: Tools, disk: str) -> _Listed:
    listed = _Listed()
    async for blob in tools.blobs.listed(tools.backup_account, tools.heads_container, f"{disk}/"):
        site = tools.site(tools.head(blob.name))
        if blob.snapshot:
            point = from_point_metadata(blob.metadata, site, blob.snapshot)
            ours = point is not None and point.disk == disk
            listed.found[blob.name, blob.snapshot] = point if ours else None
            listed.epochs += [point.epoch] if point else []
        else:
            mark = from_metadata(blob.metadata, site)
            listed.epochs += [mark.epoch] if mark else []
    return listed


async def _checked(tools: Tools, compared: Compared) -> tuple[tuple[RestorePoint, ...], tuple[tuple[Place, str], ...]]:
    """The missing points whose blobs are what their descriptions say, and everything that is not adopted, with the reason."""

    async def missing() -> AsyncIterator[RestorePoint]:
        for point in compared.missing:
            yield point

    checks = side_by_side(missing(), lambda point: _fault(tools, point), tools.limits.in_flight)
    faults = dict([checked async for checked in checks])
    adopted = tuple(point for point in compared.missing if not faults[point.point])
    quarantined = [(place, "its description is missing or damaged") for place in compared.damaged]
    quarantined += [
        ((point.head, point.backup_snapshot), faults[point.point]) for point in compared.missing if faults[point.point]
    ]
    return adopted, tuple(quarantined)


async def _fault(tools: Tools, point: RestorePoint) -> tuple[str, str]:
    """The point's id, and in which way its blob is not the one described; empty when it is."""
    size = (await tools.blobs.properties(tools.head(point.head), point.backup_snapshot)).size
    if size != point.size:
        return point.point, f"it has {size} bytes, its description says {point.size}"
    if await _page_map(tools, point) != point.page_map:
        return point.point, "its page map is not the one described"
    return point.point, ""


async def _page_map(tools: Tools, point: RestorePoint) -> str:
    chain = PageMapDigest.START
    for window in windows(point.size, tools.limits.window_bytes):
        digest = PageMapDigest(chain)
        async for allocated in tools.blobs.allocated(tools.head(point.head), point.backup_snapshot, window):
            digest.add(allocated.start, allocated.end)
        chain = digest.finish()
    return chain


async def _rebuilt_head(
    tools: Tools, disk: str, row: Versioned[Head] | None, points: list[RestorePoint], listed: _Listed
) -> Head:
    point = newest(points)
    existing = row.value if row else None
    if point is None:
        return head_of(existing, disk, points, epoch=max(listed.epochs, default=0), head_etag="", doubt="")
    etag, sequence, doubt = "", 0, ""
    try:
        at = tools.head(point.head)
        found = await tools.blobs.properties(at)
    except BlobMissingError:
        pass  # the next run finds that it is gone
    else:
        mark = from_metadata(found.metadata, tools.site(at))
        etag, sequence = found.etag, found.sequence_number
        clean = mark is not None and mark.state == "committed" and mark.target == point.source_snapshot
        if not clean:
            doubt = DIRTY
        elif not await _equal(tools, point):
            doubt = "the backup blob was changed by somebody else"
    # A head that was compared shows the epoch after its own, which no run had yet: one that had put its mark on the head first.
    epoch = max([*listed.epochs, sequence - 1], default=0)
    return head_of(existing, disk, points, epoch=epoch, head_etag=etag, doubt=doubt)


async def _equal(tools: Tools, point: RestorePoint) -> bool:
    """Whether nothing was written to the head since the point's backup snapshot."""
    changes = changes_between(tools, tools.head(point.head), "", point.backup_snapshot, ByteRange(0, point.size))
    try:
        async for _ in changes:
            return False
    except (DiffRefusedError, SnapshotMissingError):
        return False
    finally:
        await changes.aclose()
    return True


def _other_source(registration: Registration, adopted: Sequence[RestorePoint], point: RestorePoint | None) -> str:
    """Why the registration is in doubt, in words; empty when it is not. The newest point was found without a row, and a restore
    made it, whose commit moved the registration to another source as well. A person decides which of the two the machine uses.
    """
    if point is None or point not in adopted or point.kind != "restored" or point.source == registration.source:
        return ""
    if not registration.protected or registration.unprotected or registration.updated >= point.committed:
        return ""
    return (
        f"the catalogue had lost restore point {point.point}, by which a restore gave the disk the source {point.source}; its "
        f"registration still says {registration.source}; see which of the two is used: PUT /api/disks/{registration.disk} with "
        f'the new one and "followsOn": true, or, for the old one, DELETE /api/disks/{registration.disk} and PUT it again'
    )


async def _registration(tools: Tools, disk: str, points: list[RestorePoint]) -> Registration | None:
    """The lost registration, from its document; else one that shows the points and protects nothing."""
    stored = await tools.documents.get(registration_name(disk))
    point = newest(points)
    if stored:
        registration = read_document(REGISTRATION, registration_name(disk), stored)
        if registration.disk != disk:
            message = (
                f"document {registration_name(disk)} is the registration of disk {registration.disk}; delete it, and PUT the "
                "disk anew"
            )
            raise RecordUnreadableError(message)
        # Somebody else may have written it: a source that no call could register is restored for a person to see, unprotected.
        holder = await tools.catalogue.source_holder(registration.source)
        return (
            registration
            if holder in (None, disk) and tools.may_read(registration.source)
            else replace(registration, protected=False)
        )
    if point is None:
        return None
    moment: datetime = min(one.committed for one in points)
    return Registration(disk, point.source, "brought back from its backups", moment, moment, protected=False)
