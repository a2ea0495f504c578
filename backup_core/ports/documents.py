"""Small JSON documents beside the backups."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from datetime import datetime


@dataclass(frozen=True)
class ListedDocument:
    """A document of a listing."""

    name: str
    changed: datetime
    """Time at which it was last stored, by the service's clock."""


class Documents(Protocol):
    """Small JSON documents beside the backups, such as plans and cursors."""

    async def put_if_absent(self, name: str, text: str) -> bool:
        """Store the document unless one of that name exists. True when this call has certainly stored it: if an answer was
        lost and the request sent again, it may be False without another writer.
        """

    async def put(self, name: str, text: str) -> None:
        """Store the document; it replaces an existing one."""

    async def replace(self, name: str, text: str, former: str) -> bool:
        """Store the document in place of one that is `former`; nothing if it is another, or gone. True when this call has
        certainly stored it: if an answer was lost and the request sent again, it may be False without another writer.
        """

    async def get(self, name: str) -> str | None:
        """The document, or None."""

    def listed(self, prefix: str) -> AsyncIterator[ListedDocument]:
        """Documents whose names begin with `prefix`, by name."""

    async def delete(self, name: str) -> None:
        """Delete the document; a missing one is success."""
