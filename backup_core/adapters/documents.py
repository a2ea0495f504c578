"""Documents as block blobs of the plans container."""

from __future__ import annotations

from typing import TYPE_CHECKING

from azure.core import MatchConditions
from azure.storage.blob.aio import BlobServiceClient

from backup_core.adapters.page_blobs import accepted, translated
from backup_core.domain.errors import BlobMissingError
from backup_core.ports import ListedDocument

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


class AzureDocuments:
    """The Documents port: block blobs in one container."""

    def __init__(self, account: BlobServiceClient, container: str) -> None:
        """Keep documents in `container` of `account`."""
        self._container = account.get_container_client(container)

    async def put_if_absent(self, name: str, text: str) -> bool:
        """Put Blob with If-None-Match: *."""
        with translated(f"store document {name}"), accepted("BlobAlreadyExists", "ConditionNotMet"):
            await self._container.upload_blob(name, text.encode(), match_condition=MatchConditions.IfMissing)
            return True
        return False

    async def put(self, name: str, text: str) -> None:
        """Put Blob."""
        with translated(f"store document {name}"):
            await self._container.upload_blob(name, text.encode(), overwrite=True)

    async def replace(self, name: str, text: str, former: str) -> bool:
        """Get Blob, then Put Blob with If-Match."""
        with translated(f"replace document {name}"), accepted("BlobNotFound", "ConditionNotMet"):
            stream = await self._container.download_blob(name)
            if (await stream.readall()).decode() != former:
                return False
            version = stream.properties.etag
            # G18: of two that replace the same version the service refuses one.
            await self._container.upload_blob(
                name, text.encode(), overwrite=True, etag=version, match_condition=MatchConditions.IfNotModified
            )
            return True
        return False

    async def get(self, name: str) -> str | None:
        """Get Blob."""
        with translated(f"read document {name}"), accepted("BlobNotFound"):
            stream = await self._container.download_blob(name)
            content: bytes = await stream.readall()
            return content.decode()
        return None

    async def listed(self, prefix: str) -> AsyncIterator[ListedDocument]:
        """List Blobs."""
        with translated(f"list documents {prefix}"):
            async for blob in self._container.list_blobs(name_starts_with=prefix):
                yield ListedDocument(blob.name, blob.last_modified)

    async def delete(self, name: str) -> None:
        """Delete Blob."""
        try:
            with translated(f"delete document {name}"):
                await self._container.delete_blob(name)
        except BlobMissingError:
            return
