"""The contents of managed disks: a container each in the storage emulator's md- account, with one page blob `abcd`.

A disk's snapshots are snapshots of that blob, which is a fixed VHD: data, then a footer of 512 bytes. Access is a stored access
policy of the container, so that taking it away ends every use of its SAS at once. devhost/emulator/exports.js serves the
addresses.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING
from urllib.parse import quote, urlencode

from azure.storage.blob import AccessPolicy, ContentSettings
from azure.storage.blob.aio import BlobServiceClient

from devhost.disks import FOOTER_BYTES, vhd_footer

if TYPE_CHECKING:
    from azure.core.pipeline import PipelineRequest
    from azure.storage.blob.aio import BlobClient, ContainerClient

BLOB = "abcd"
_PRIVATE_ACCOUNT = "md-impexp-local"
_VERSION = "2018-11-09"
_INTERNAL = "x-pagekeeper-internal"
"""Marks requests that the emulator neither counts nor disturbs."""
STALE_MD5 = bytearray(hashlib.md5(b"the content of long ago", usedforsecurity=False).digest())
"""The Content-MD5 of every disk and snapshot, whatever is in it: real ones inherit theirs."""


class Contents:
    """The md- account. A disk is named by its unique id."""

    def __init__(self, endpoint: str, account: str, key: str) -> None:
        """`endpoint` is the account's blob endpoint."""
        self._endpoint, self._account, self._key = endpoint, account, key
        credential = {"account_name": account, "account_key": key}
        self._client = BlobServiceClient(endpoint, credential=credential, raw_request_hook=_internal)
        self._policies: dict[str, dict[str, AccessPolicy]] = {}
        self._lock = asyncio.Lock()

    async def close(self) -> None:
        """Close the connections."""
        await self._client.close()

    def _container(self, disk: str) -> ContainerClient:
        return self._client.get_container_client(disk.replace("-", ""))

    def _blob(self, disk: str, at: str | None = None) -> BlobClient:
        return self._client.get_blob_client(disk.replace("-", ""), BLOB, at)

    def url(self, disk: str) -> str:
        """The URL of a disk's content, for its guest, which writes with the account's key."""
        return self._blob(disk).url

    # -- content ----------------------------------------------------------------------------------------------------------

    async def make(self, disk: str, data_bytes: int, *, signed: bool = True) -> None:
        """An empty disk of so many bytes, with its footer if `signed`."""
        await self._container(disk).create_container()
        blob = self._blob(disk)
        settings = ContentSettings(content_md5=STALE_MD5)
        await blob.create_page_blob(data_bytes + FOOTER_BYTES, content_settings=settings, sequence_number=2)
        if signed:
            await self.sign(disk)

    async def copy(self, disk: str, source: str) -> int:
        """A disk with the content of a fixed VHD at this SAS; its bytes of data."""
        await self._container(disk).create_container()
        blob = self._blob(disk)
        await blob.start_copy_from_url(source)
        await blob.set_http_headers(ContentSettings(content_md5=STALE_MD5))
        return await self.size(disk)

    async def size(self, disk: str) -> int:
        """Bytes of data, without the footer."""
        return int((await self._blob(disk).get_blob_properties()).size) - FOOTER_BYTES

    async def sign(self, disk: str) -> None:
        """Write a footer with another id than before."""
        size = await self.size(disk)
        await self._blob(disk).upload_page(vhd_footer(size), size, FOOTER_BYTES)

    async def grow(self, disk: str, data_bytes: int) -> None:
        """Give a disk more bytes: where its footer was, there is data, and a new footer at the end."""
        before = await self.size(disk)
        await self._blob(disk).resize_blob(data_bytes + FOOTER_BYTES)
        await self._blob(disk).clear_page(before, FOOTER_BYTES)
        await self.sign(disk)

    async def snapshot(self, disk: str) -> str:
        """Take a blob snapshot; its id."""
        return str((await self._blob(disk).create_snapshot())["snapshot"])

    async def drop(self, disk: str, at: str) -> None:
        """Delete a blob snapshot."""
        await self._blob(disk, at).delete_blob()

    async def is_vhd(self, disk: str) -> bool:
        """Whether a disk's content ends in the footer of a fixed VHD of its size."""
        size = await self.size(disk)
        footer = await (await self._blob(disk).download_blob(size, FOOTER_BYTES)).readall()
        return footer[:8] == b"conectix" and int.from_bytes(footer[48:56]) == size

    # -- access -----------------------------------------------------------------------------------------------------------

    async def allow(self, disk: str, policy: str, seconds: int, *, write: bool = False) -> None:
        """Let a policy's SAS read (and write) for so long from now on."""
        now = datetime.now(UTC)
        end, allowed = now + timedelta(seconds=seconds), "rw" if write else "r"
        self._policies.setdefault(disk, {})[policy] = AccessPolicy(allowed, end, now)
        await self._send(disk)

    async def deny(self, disk: str, policy: str) -> None:
        """End every use of a policy's SAS."""
        if self._policies.get(disk, {}).pop(policy, None):
            await self._send(disk)

    async def _send(self, disk: str) -> None:
        async with self._lock:
            await self._container(disk).set_container_access_policy(self._policies[disk])

    def sas(self, disk: str, policy: str, at: str = "", *, private: bool = False) -> str:
        """The address of a disk, or of its snapshot `at`, with its SAS: expiry and permissions are the policy's alone."""
        container = disk.replace("-", "")
        signed = "" if private else at
        kind = "bs" if signed else "b"
        text = "\n".join(
            ["", "", "", f"/blob/{self._account}/{container}/{BLOB}", policy, "", "", _VERSION, kind, signed, *[""] * 5]
        )
        digest = hmac.new(base64.b64decode(self._key), text.encode(), hashlib.sha256).digest()
        query = {"snapshot": signed} if signed else {}
        query |= {"sv": _VERSION, "sr": kind, "si": policy, "sig": base64.b64encode(digest).decode()}
        endpoint = self._endpoint
        if private:
            endpoint = f"{endpoint.removesuffix(self._account)}{_PRIVATE_ACCOUNT}"
            container += "-" + "".join(filter(str.isdigit, at)) if at else ""
        return f"{endpoint}/{container}/{BLOB}?{urlencode(query, quote_via=quote)}"


def _internal(request: PipelineRequest[object]) -> None:
    request.http_request.headers[_INTERNAL] = "1"  # type: ignore[attr-defined]
