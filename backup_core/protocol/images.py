"""A blob that a run has made: its lease, and its tier."""

from __future__ import annotations

from typing import TYPE_CHECKING

from backup_core.domain.errors import BlobExistsError, BlobMissingError
from backup_core.domain.metadata import from_metadata, restoring_run
from backup_core.domain.tiers import fitting_tier

if TYPE_CHECKING:
    from backup_core.domain.naming import BlobAddress
    from backup_core.ports import BlobProperties
    from backup_core.protocol.tools import Tools
    from backup_core.steps.copying import ImageCopy
    from backup_core.steps.messages import Actor


async def hold_own(tools: Tools, blob: BlobAddress, actor: Actor) -> BlobProperties:
    """Lease the blob that the run has made. Raises BlobExistsError for one without its mark: completed and released while
    this delivery was late, it may be about to be attached, and is not leased or released again.
    """
    _require_mark(tools, blob, await tools.blobs.properties(blob), actor.run)
    # G7: every write to the image carries this lease.
    await tools.blobs.acquire_lease(blob, actor.lease)
    found = await tools.blobs.properties(blob)
    try:
        _require_mark(tools, blob, found, actor.run)
    except BlobExistsError:
        await tools.blobs.release_lease(blob, actor.lease)
        raise
    return found


def _require_mark(tools: Tools, blob: BlobAddress, found: BlobProperties, run: str) -> None:
    site = tools.site(blob)
    mark = from_metadata(found.metadata, site)
    if restoring_run(found.metadata, site) != run and (mark is None or mark.run != run):
        message = f"{blob}: it does not carry the mark of run {run}, which may have completed it already; nothing was done"
        raise BlobExistsError(message)


async def kept_tier(tools: Tools, image: ImageCopy) -> str:
    """The tier for the new disk, when somebody chose one for the disk that is restored: that, or the smallest that fits. Empty
    for a head, and when the disk is gone or in another account.
    """
    if image.becomes == "head" or not image.actor.source:
        return ""
    live = tools.source(image.actor.source)
    if live.account != tools.made_blob(image.destination).account:
        return ""
    try:
        return fitting_tier((await tools.blobs.properties(live)).tier, image.size)
    except BlobMissingError:
        return ""
