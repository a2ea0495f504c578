"""Marks of blobs in the making, by which a run knows its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

from backup_core.domain.metadata import HeadMark, from_metadata, restoring_metadata, restoring_run, to_metadata
from backup_core.steps.copying import ImageCopy

if TYPE_CHECKING:
    from collections.abc import Mapping

    from backup_core.protocol.tools import Tools


def metadata_of(tools: Tools, image: ImageCopy) -> dict[str, str]:
    """Metadata of a destination in the making: a head's intent, of a disk its run alone. A disk that carried a
    mark of ours for good could be taken for a backup one day.
    """
    site = tools.site(tools.destination(image.destination, image.actor.run))
    if image.becomes == "disk":
        return restoring_metadata(site, image.actor.disk, image.actor.run)
    return to_metadata(intent(image), site)


def is_own(tools: Tools, metadata: Mapping[str, str], image: ImageCopy) -> bool:
    """Whether a destination that carries these is being made by this very run, or was, as the image that is asked for."""
    site = tools.site(tools.destination(image.destination, image.actor.run))
    if image.becomes == "disk":
        return restoring_run(metadata, site) == image.actor.run
    found, mark = from_metadata(metadata, site), intent(image)
    return found is not None and _begun(found) == _begun(mark)


def intent(image: ImageCopy) -> HeadMark:
    """The mark of a head that is being brought to the image's target."""
    return HeadMark(
        disk=image.actor.disk,
        generation=image.generation,
        epoch=image.actor.epoch,
        run=image.actor.run,
        state="applying",
        source=image.source,
        target=image.target,
        base=image.base,
        size=image.size,
        kind=image.kind,
    )


def _begun(mark: HeadMark) -> tuple[str, int, str, str]:
    """The fields of a mark that stay the same while its head is copied, verified and committed."""
    return mark.run, mark.epoch, mark.target, mark.base
