"""Leases of virtual machines on page blobs: an attached VHD holds an infinite lease on its blob; an import reads one."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from azure.core.exceptions import HttpResponseError
from azure.storage.blob import BlobSasPermissions, generate_blob_sas
from azure.storage.blob.aio import BlobClient, BlobLeaseClient, BlobServiceClient

from devhost.disks import FOOTER_BYTES

if TYPE_CHECKING:
    from collections.abc import Mapping

    from devhost.arm.exports import Contents

MIB = 1024 * 1024


class RefusedError(Exception):
    """An operation fails with a code of Azure's."""

    def __init__(self, message: str, *, code: str) -> None:
        """Keep both."""
        super().__init__(message)
        self.code = code


class Disks:
    """The blobs that are disks of machines."""

    def __init__(self, accounts: Mapping[str, tuple[str, str]]) -> None:
        """`accounts`: blob endpoint to (name, key)."""
        self._accounts = accounts
        self._clients = {
            endpoint: BlobServiceClient(endpoint, credential={"account_name": name, "account_key": key})
            for endpoint, (name, key) in accounts.items()
        }
        self.leases: dict[str, str] = {}
        """Lease id by URL of each attached VHD: what the guest writes with."""

    async def close(self) -> None:
        """Close the connections."""
        for client in self._clients.values():
            await client.close()

    def _blob(self, url: str) -> BlobClient:
        for endpoint, client in self._clients.items():
            if url.startswith(endpoint + "/"):
                container, _, name = url.removeprefix(endpoint + "/").partition("/")
                return client.get_blob_client(container, name)
        message = f"the storage account of {url} is not known"
        raise RefusedError(message, code="StorageAccountNotFound")

    def account(self, url: str) -> str:
        """The name of the account of a VHD; empty for one that is not known."""
        return next((name for endpoint, (name, _) in self._accounts.items() if url.startswith(endpoint + "/")), "")

    async def attach(self, url: str) -> None:
        """Take the blob's infinite lease; one that is held already, by a machine or anybody else, is refused."""
        lease = BlobLeaseClient(self._blob(url), lease_id=str(uuid.uuid4()))
        try:
            await lease.acquire(lease_duration=-1)
        except HttpResponseError as error:
            message = f"Failed to acquire the lease while using disk with blob {url}: {error.reason}"
            raise RefusedError(message, code="AcquireDiskLeaseFailed") from error
        self.leases[url] = lease.id

    async def detach(self, url: str) -> None:
        """Let go of the blob's lease."""
        held = self.leases.pop(url, None)
        if held:
            try:
                await BlobLeaseClient(self._blob(url), lease_id=held).release()
            except HttpResponseError:
                return  # somebody broke it, or the blob is gone

    async def import_vhd(self, url: str, disk: str, contents: Contents) -> int:
        """Copy a VHD as the content of the managed disk with this unique id; returns its bytes without the footer.

        Raises RefusedError for what is no fixed VHD.
        """
        source = self._blob(url)
        try:
            size = (await source.get_blob_properties()).size
            footer = await (await source.download_blob(size - FOOTER_BYTES, FOOTER_BYTES)).readall()
        except HttpResponseError as error:
            message = f"{url} cannot be read: {error.reason}"
            raise RefusedError(message, code="BlobNotFound") from error
        if not footer.startswith(b"conectix") or (size - FOOTER_BYTES) % MIB:
            message = f"The specified cookie value in VHD footer of {url} is not supported."
            raise RefusedError(message, code="InvalidParameter")
        endpoint = next(one for one in self._clients if url.startswith(one + "/"))
        account, key = self._accounts[endpoint]
        sas = generate_blob_sas(
            account, source.container_name, source.blob_name, account_key=key, permission=BlobSasPermissions(read=True),
            expiry=datetime.now(UTC) + timedelta(hours=1),
        )  # fmt: skip
        return await contents.copy(disk, f"{url}?{sas}")
