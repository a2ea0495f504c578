"""The stored order of a window's disks, and the row that says whose turn it is."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import TypeAdapter

from backup_core.domain.digests import digest_of
from backup_core.domain.fleet import Turns
from backup_core.domain.naming import fleet_order_name
from backup_core.protocol.documents import held_document, read_document
from backup_core.protocol.updates import update_row

if TYPE_CHECKING:
    from backup_core.protocol.tools import Tools

ORDER = TypeAdapter(list[str])


async def begin_turns(tools: Tools, window: str, order: list[str], lanes: int) -> Turns:
    """The row of turns, begun with the window's stored order: that ends those of former windows. What is there already stays,
    the row of a later window too.
    """
    name = fleet_order_name(window)
    await tools.documents.put_if_absent(name, ORDER.dump_json(order).decode())
    text = await tools.documents.get(name) or ""
    disks = len(read_document(ORDER, name, text))

    async def begin() -> Turns:
        row = await tools.catalogue.turns()
        # G69: a window that is listed late takes no turns back from a later one.
        if row and row.value.window >= window:
            return row.value
        turns = Turns.first(window, digest_of(text), disks, lanes, await tools.catalogue.now())
        await tools.catalogue.put_turns(turns, row.etag if row else None)
        return turns

    return await update_row(begin, f"window {window}: its turns", "they were begun")


async def order_of(tools: Tools, turns: Turns) -> list[str]:
    """The stored order of the window. Raises UnexpectedAnswerError, RecordAlteredError."""
    name = fleet_order_name(turns.window)
    return await held_document(tools, ORDER, name, turns.digest, "the window's other disks are left to the next window")
