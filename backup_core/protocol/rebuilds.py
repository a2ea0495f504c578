"""Stored states of rebuilds, and the one that may act."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import TypeAdapter

from backup_core.domain.naming import REBUILD_AT_WORK, rebuild_name
from backup_core.domain.rebuild import Found, Rebuild
from backup_core.protocol.documents import read_document

if TYPE_CHECKING:
    from backup_core.protocol.tools import Tools


REBUILD, FOUND, AT_WORK = TypeAdapter(Rebuild), TypeAdapter(Found), TypeAdapter(str)
HASH_LENGTH = 40


async def stored_rebuild(tools: Tools, rebuild: str) -> Rebuild | None:
    """The stored state of a rebuild. Raises RecordUnreadableError."""
    text = await tools.documents.get(rebuild_name(rebuild))
    return read_document(REBUILD, rebuild_name(rebuild), text) if text else None


async def store_rebuild(tools: Tools, value: Rebuild) -> None:
    """Store the rebuild's state."""
    await tools.documents.put(rebuild_name(value.rebuild), REBUILD.dump_json(value).decode())


async def give_rebuild_sign_of_life(tools: Tools, rebuild: str) -> None:
    """Store the state of a rebuild in progress as it is, so that its silence begins anew. A state that another stores meanwhile
    stays.
    """
    name = rebuild_name(rebuild)
    text = await tools.documents.get(name)
    if text and read_document(REBUILD, name, text).state == "Running":
        await tools.documents.replace(name, text, former=text)


async def at_work(tools: Tools) -> str:
    """The rebuild that may act; empty before the first one."""
    text = await tools.documents.get(REBUILD_AT_WORK)
    return read_document(AT_WORK, REBUILD_AT_WORK, text) if text else ""
