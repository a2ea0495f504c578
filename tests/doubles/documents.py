"""Documents in memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

from backup_core.ports import ListedDocument

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from datetime import datetime

    from tests.doubles.world import InMemoryServices


class MemoryDocuments:
    """The Documents port."""

    def __init__(self, world: InMemoryServices) -> None:
        """No documents in `world`."""
        self._world = world
        self.texts: dict[str, str] = {}
        self.changed: dict[str, datetime] = {}

    async def put_if_absent(self, name: str, text: str) -> bool:
        """Store unless one exists."""
        await self._world.before("put_document")
        absent = name not in self.texts
        if absent:
            self._store(name, text)
        await self._world.after("put_document")
        return absent

    async def put(self, name: str, text: str) -> None:
        """Store in place of what was there."""
        await self._world.before("put_document")
        self._store(name, text)
        await self._world.after("put_document")

    async def replace(self, name: str, text: str, former: str) -> bool:
        """Store in place of `former`."""
        await self._world.before("put_document")
        same = self.texts.get(name) == former
        if same:
            self._store(name, text)
        await self._world.after("put_document")
        return same

    def _store(self, name: str, text: str) -> None:
        self.texts[name], self.changed[name] = text, self._world.now

    async def get(self, name: str) -> str | None:
        """The document, or None."""
        await self._world.before("get_document")
        text = self.texts.get(name)
        await self._world.after("get_document")
        return text

    async def listed(self, prefix: str) -> AsyncIterator[ListedDocument]:
        """By name."""
        await self._world.before("list_documents")
        for name in sorted(self.texts):
            if name.startswith(prefix):
                yield ListedDocument(name, self.changed[name])

    async def delete(self, name: str) -> None:
        """Forget the document."""
        await self._world.before("delete_document")
        self.texts.pop(name, None)
        await self._world.after("delete_document")
