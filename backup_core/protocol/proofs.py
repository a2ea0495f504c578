"""The stored end of an image that a restore makes: proved equal to its restore point, or abandoned.

A proved disk is released and carries nothing of ours; a proved head gets another mark. A step that is delivered late, or by a
second life of its orchestration, must not take such a blob for unfinished, nor make an abandoned one anew.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import TypeAdapter

from backup_core.domain.errors import NotOwnerError
from backup_core.domain.naming import image_end_name
from backup_core.protocol.documents import read_document
from backup_core.steps.copying import ComparisonResult
from backup_core.steps.messages import Message

if TYPE_CHECKING:
    from backup_core.protocol.tools import Tools
    from backup_core.steps.copying import ImageCopy


class ImageEnd(Message):
    """The end of an image. Without a proof it was abandoned."""

    proof: ComparisonResult | None = None


END = TypeAdapter(ImageEnd)


async def proof(tools: Tools, image: ImageCopy) -> ComparisonResult | None:
    """The comparison's result when the image was proved; None while it is made, and for the head of a backup, whose mark
    says so. Raises NotOwnerError for an abandoned image.
    """
    if not image.actor.pin:
        return None
    name = _name(image)
    # G32: a proved disk carries no mark any more, so the proof is stored apart.
    stored = await tools.documents.get(name)
    if stored is None:
        return None
    end = read_document(END, name, stored)
    if end.proof is None:
        message = f"{image.destination}: restore {image.actor.run} has given it up already; nothing was done"
        raise NotOwnerError(message)
    return end.proof


async def store_proof(tools: Tools, image: ImageCopy, found: ComparisonResult) -> ComparisonResult:
    """Store that the image was proved; the proof that counts, when another delivery was faster. Raises NotOwnerError."""
    await tools.documents.put_if_absent(_name(image), ImageEnd(proof=found).model_dump_json())
    return await proof(tools, image) or found


async def give_up(tools: Tools, image: ImageCopy) -> None:
    """Store that the image is abandoned: no step of the run makes it any more, or continues it."""
    # G32: stored before it is answered.
    await tools.documents.put(_name(image), ImageEnd().model_dump_json())


async def is_given_up(tools: Tools, disk: str, run: str) -> bool:
    """Whether the restore has abandoned the head that backups were to continue from."""
    name = image_end_name(disk, run, "head")
    stored = await tools.documents.get(name)
    return stored is not None and read_document(END, name, stored).proof is None


def _name(image: ImageCopy) -> str:
    return image_end_name(image.actor.disk, image.actor.run, image.becomes)
