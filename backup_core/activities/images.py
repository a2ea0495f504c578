"""The blob of a restored point: a new disk for a machine, or a new head for the next backups.

It is this run's alone until it is complete: created where nothing is, leased, marked, and closed to all requests
of the copying that are still in flight, before it is compared.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from backup_core.domain.errors import (
    BlobChangedError,
    BlobExistsError,
    BlobMissingError,
    FencedError,
    LeaseTakenError,
    MachineRefusedError,
    ServiceUnavailableError,
    UnexpectedAnswerError,
)
from backup_core.domain.managed import READY
from backup_core.domain.metadata import from_metadata, restoring_run
from backup_core.domain.naming import DiskAddress, point_id
from backup_core.ports import Guard
from backup_core.protocol.images import hold_own, kept_tier
from backup_core.protocol.managed_disks import made_by, make_disk_once, seal_upload, wanted_disk
from backup_core.protocol.marks import is_own, metadata_of
from backup_core.protocol.proofs import give_up, proof
from backup_core.protocol.rights import require_right_to_act
from backup_core.protocol.source_snapshots import delete_recorded, recorded, take_once
from backup_core.steps.copying import OpenResult
from backup_core.steps.restore import DiscardResult, SealResult

if TYPE_CHECKING:
    from collections.abc import Mapping

    from backup_core.domain.metadata import Site
    from backup_core.domain.naming import BlobAddress
    from backup_core.domain.records import Head, Versioned
    from backup_core.protocol.tools import Tools
    from backup_core.steps.copying import ImageCopy
    from backup_core.steps.restore import DiscardImage, DiscardSnapshot, SealImage


async def open_image(tools: Tools, image: ImageCopy) -> OpenResult:
    """Create the blob or managed disk where nothing is; one that is proved already is not touched. Raises BlobExistsError or
    MachineRefusedError, and changes nothing, where something else is.
    """
    await require_right_to_act(tools, image.actor)
    if known := await proof(tools, image):
        return OpenResult(etag=known.etag)
    blob = tools.destination(image.destination, image.actor.run)
    if isinstance(blob, DiskAddress):
        return await _open_upload(tools, image)
    metadata, tier = metadata_of(tools, image), await kept_tier(tools, image)
    try:
        # G19: created only where nothing is.
        await tools.blobs.create(blob, image.size, image.actor.epoch, metadata, tier)
    except BlobExistsError as error:
        if not is_own(tools, (await tools.blobs.properties(blob)).metadata, image):
            message = f"{error}; a restore never writes onto anything that exists: name another target"
            raise BlobExistsError(message) from error
    return OpenResult(etag=(await hold_own(tools, blob, image.actor)).etag)


async def _open_upload(tools: Tools, image: ImageCopy) -> OpenResult:
    """Make the managed disk; its upload has no version. Azure takes some seconds: until then a temporary failure."""
    disk, run, requested = image.destination, image.actor.run, False

    async def make() -> None:
        nonlocal requested
        await tools.machines.create_for_upload(*await wanted_disk(tools, disk, run, "", image.size, image.slot))
        requested = True

    # G19: created only where nothing is.
    found = await make_disk_once(tools, disk, run, "", make)
    if found is None or found.state != "Succeeded":
        state = f"is {found.state}" if found else "is not there"
        message = f"managed disk {disk} {state} after it was asked for, expected Succeeded; temporary failure"
        raise ServiceUnavailableError(message)
    # G19: Azure may take a request for a disk that another run has just made under this name, and give it this run's tag. That
    # run looks again before it writes: it has opened the disk already, or never will.
    if requested and found.disk_state != READY:
        message = (
            f"managed disk {disk} is {found.disk_state} just after it was asked for, expected {READY}: somebody else "
            "has made it, and uses it; nothing was written; name another one"
        )
        raise MachineRefusedError(message)
    return OpenResult(etag="")


async def seal_image(tools: Tools, request: SealImage) -> SealResult:
    """Snapshot the proved disk, remove the run's mark, and release the lease, so that a machine can take its own. Of a managed
    disk the access is ended.

    Each part is found done on a repeat. Raises BlobChangedError when it is not the version that was proved.
    """
    image = request.image
    await require_right_to_act(tools, image.actor)
    blob = tools.destination(image.destination, image.actor.run)
    if isinstance(blob, DiskAddress):
        await seal_upload(tools, image.destination, image.actor.run, request.etag)
        return SealResult(snapshot="")
    if await _is_marked(tools, blob, image.actor.run):
        try:
            # G25: of the version that was compared.
            await _snapshot_and_unmark(tools, request, blob)
        except (BlobChangedError, FencedError):
            if await _is_marked(tools, blob, image.actor.run):
                raise
            # Another delivery was faster, and has released it.
    taken = await recorded(tools, image.actor) if request.snapshots else ()
    if request.snapshots and not taken:
        message = f"{blob}: it does not carry the mark of restore {image.actor.run}, nor a snapshot of its; it is left alone"
        raise UnexpectedAnswerError(message)
    await tools.blobs.release_lease(blob, image.actor.lease)
    return SealResult(snapshot=min(taken, default=""))


async def _is_marked(tools: Tools, blob: BlobAddress, run: str) -> bool:
    return restoring_run((await tools.blobs.properties(blob)).metadata, tools.site(blob)) == run


async def _snapshot_and_unmark(tools: Tools, request: SealImage, blob: BlobAddress) -> None:
    actor = request.image.actor
    guard = Guard(actor.lease, request.etag)
    if request.snapshots:
        await take_once(tools, actor, blob, guard)
    await tools.blobs.set_metadata(blob, {}, guard)


async def discard_image(tools: Tools, request: DiscardImage) -> DiscardResult:
    """Remove the unfinished blob, if it is certainly this run's own and not leased by others; otherwise the reason. With
    an adopted head the run's ownership of the disk goes. A managed disk stays, and is named.
    """
    image = request.image
    await require_right_to_act(tools, image.actor)
    blob = tools.destination(image.destination, image.actor.run)
    row = await tools.catalogue.head(image.actor.disk)
    if row and image.destination == row.value.head:
        return DiscardResult(left=str(blob))
    await give_up(tools, image)
    if isinstance(blob, DiskAddress):
        # G72: nothing but a tag says whose it is, and no condition would protect a deletion. The run's end closes it.
        return DiscardResult(left=image.destination if await made_by(tools, image.destination, image.actor.run) else "")
    try:
        found = await tools.blobs.properties(blob)
        # G39: only this run's own unfinished blob is removed.
        if not _is_made_by(found.metadata, tools.site(blob), image.actor.run):
            return DiscardResult(left=str(blob))
        adopted = _is_adopted(found.metadata, tools.site(blob), image)
        if adopted and not await _relinquish_ownership(tools, row, image.actor.run):
            return DiscardResult(left=str(blob))
        if found.copy and found.copy.status == "pending":
            await tools.blobs.abort_copy(blob, found.copy.copy_id)
        await tools.blobs.acquire_lease(blob, image.actor.lease)
        etag = (await tools.blobs.properties(blob)).etag
        await tools.blobs.delete_own(blob, Guard(image.actor.lease, etag))
    except BlobMissingError:
        return DiscardResult(left="")
    except (LeaseTakenError, FencedError, BlobChangedError, ServiceUnavailableError):
        return DiscardResult(left=str(blob))
    return DiscardResult(left="")


async def discard_snapshot(tools: Tools, request: DiscardSnapshot) -> DiscardResult:
    """Delete what the run has taken of an imported disk that was not adopted, as its row names it; otherwise say what is left.
    It stays while the catalogue names it, or the run may still commit a restore point that would.
    """
    actor, disk = request.actor, tools.source(request.disk)
    await require_right_to_act(tools, actor)
    row = await tools.catalogue.head(actor.disk)
    owner = row.value.owner if row else None
    may_commit = row is not None and owner is not None and owner.run == actor.run and bool(row.value.repoint)
    for snapshot in await recorded(tools, actor):
        # G60: kept while the catalogue names it, or a commit may.
        if may_commit or await tools.catalogue.point(actor.disk, point_id(snapshot)):
            return DiscardResult(left=f"{disk} snapshot {snapshot}")
        await delete_recorded(tools, disk, snapshot, actor.run)
    return DiscardResult(left="")


def _is_adopted(metadata: Mapping[str, str], site: Site, image: ImageCopy) -> bool:
    """Whether the head is to be equal to the new disk's snapshot, and no longer only to the restore point it was made of."""
    mark = from_metadata(metadata, site)
    return mark is not None and mark.target != image.target


async def _relinquish_ownership(tools: Tools, row: Versioned[Head] | None, run: str) -> bool:
    """Give up the run's ownership, so that a delayed delivery can no longer commit its head. False, and nothing is changed,
    while the change of a machine is pending: the run that owns the disk completes it.
    """
    if row is None or row.value.owner is None or row.value.owner.run != run:
        return True
    if row.value.repoint:
        return False
    await tools.catalogue.put_head(replace(row.value, owner=None), row.etag)
    return True


def _is_made_by(metadata: Mapping[str, str], site: Site, run: str) -> bool:
    mark = from_metadata(metadata, site)
    return restoring_run(metadata, site) == run or (mark is not None and mark.run == run and mark.state != "committed")
