"""The stored id of a Copy Blob that was seen complete.

The service itself says nothing of a concluded copy any more once a property of the blob is set, as its sequence number is when
the copy is taken over (Get Blob Properties, x-ms-copy-id).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import TypeAdapter

from backup_core.domain.naming import image_copy_name
from backup_core.ports import CopyState
from backup_core.protocol.documents import read_document
from backup_core.steps.messages import Message

if TYPE_CHECKING:
    from backup_core.ports import BlobProperties
    from backup_core.protocol.tools import Tools
    from backup_core.steps.copying import ImageCopy


class CompleteCopy(Message):
    """The copy that an image was completed by."""

    copy_id: str


COMPLETE = TypeAdapter(CompleteCopy)


async def store_complete(tools: Tools, image: ImageCopy, copy_id: str) -> None:
    """Store that the image's blob is the complete copy; the first one that was stored stays."""
    await tools.documents.put_if_absent(_name(image), CompleteCopy(copy_id=copy_id).model_dump_json())


async def copy_of(tools: Tools, image: ImageCopy, found: BlobProperties) -> CopyState | None:
    """The copy that the image's blob was made by, as the service describes it, or as stored before the service forgot it."""
    if found.copy:
        return found.copy
    name = _name(image)
    stored = await tools.documents.get(name)
    if stored is None:
        return None
    return CopyState(read_document(COMPLETE, name, stored).copy_id, "success", found.size, found.size)


def _name(image: ImageCopy) -> str:
    return image_copy_name(image.actor.disk, image.actor.run, image.becomes)
