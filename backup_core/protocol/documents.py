"""Stored documents as values."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from pydantic import TypeAdapter, ValidationError

from backup_core.domain.digests import digest_of
from backup_core.domain.errors import RecordAlteredError, RecordUnreadableError, UnexpectedAnswerError
from backup_core.domain.plan import Plan

if TYPE_CHECKING:
    from backup_core.ports import Documents
    from backup_core.protocol.tools import Tools

T = TypeVar("T")


def read_document(adapter: TypeAdapter[T], name: str, text: str) -> T:
    """The value in a document. Raises RecordUnreadableError, which names it, for anything else."""
    try:
        return adapter.validate_json(text)
    except ValidationError as error:
        why = "; ".join(
            f"{'.'.join(map(str, one['loc'])) or 'text'}: {one['msg']}" for one in error.errors(include_url=False)[:5]
        )
        message = (
            f"document {name} cannot be read: {why}; it is damaged, or a newer version of this app wrote it; use that version, "
            "or delete the document"
        )
        raise RecordUnreadableError(message) from None


async def store_once(documents: Documents, name: str, text: str) -> str:
    """The document's text: this one, unless another delivery has stored its own before. Raises UnexpectedAnswerError."""
    if await documents.put_if_absent(name, text):
        return text
    stored = await documents.get(name)
    if stored is None:
        message = f"document {name}: it was deleted just after it was stored; find out who may write to the plans container"
        raise UnexpectedAnswerError(message)
    return stored


async def held_document(tools: Tools, adapter: TypeAdapter[T], name: str, digest: str, gone: str) -> T:
    """The value in the document whose digest the orchestration has; `gone` says the next move without it. An empty
    digest is of a version that stored none.

    Raises UnexpectedAnswerError when there is none, RecordAlteredError for any other.
    """
    stored = await tools.documents.get(name)
    if stored is None:
        message = f"document {name} is gone; {gone}"
        raise UnexpectedAnswerError(message)
    if digest and digest_of(stored) != digest:
        message = (
            f"document {name}: somebody else wrote it: expected SHA-256 {digest}, as the run has stored it, found "
            f"{digest_of(stored)}; nothing was done by it; find out who may write to the plans container; {gone}"
        )
        raise RecordAlteredError(message)
    return read_document(adapter, name, stored)


PLAN = TypeAdapter(Plan)
