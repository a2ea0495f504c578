"""Authorise requests of the data path: by bearer token in the cloud, by a short-lived SAS locally."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Protocol

from azure.storage.blob import BlobSasPermissions, generate_blob_sas

from backup_core.domain.plan import COPY_DEADLINE

if TYPE_CHECKING:
    from azure.core.credentials_async import AsyncTokenCredential
    from azure.storage.blob.aio import BlobServiceClient

    from backup_core.domain.naming import BlobAddress

STORAGE_SCOPE = "https://storage.azure.com/.default"
SAS_LIFETIME = timedelta(hours=1)
CLOCK_SKEW = timedelta(minutes=5)
SIGNED_LIFETIME = COPY_DEADLINE + SAS_LIFETIME
"""For the source of a Copy Blob, and the time until one that takes too long has been ended. At most 7 days can be signed."""


class Authority(Protocol):
    """Signs requests to one account."""

    async def headers(self) -> dict[str, str]:
        """Headers that authorise a request."""

    def query(self, blob: BlobAddress, snapshot: str, *, write: bool) -> str:
        """Query parameters that authorise a request to the blob or snapshot, without a leading sign; may be empty."""

    async def as_source(self, blob: BlobAddress, snapshot: str) -> tuple[str, dict[str, str]]:
        """Query parameters of the source's URL and headers that let another account fetch the snapshot, and only read it."""

    async def signed(self, blob: BlobAddress, snapshot: str) -> str:
        """Query parameters of a URL that permit to read the snapshot for as long as a Copy Blob of it may take."""


class BearerAuthority:
    """A token of an Azure identity. The credential keeps it and renews it before it expires."""

    def __init__(self, credential: AsyncTokenCredential, account: BlobServiceClient) -> None:
        """Ask `credential` for tokens, and `account` for keys to sign with in its name."""
        self._credential, self._account = credential, account

    async def headers(self) -> dict[str, str]:
        """The Authorization header."""
        token = await self._credential.get_token(STORAGE_SCOPE)
        return {"Authorization": f"Bearer {token.token}"}

    def query(self, blob: BlobAddress, snapshot: str, *, write: bool) -> str:  # noqa: ARG002  the token is not per blob
        """Nothing."""
        return ""

    async def as_source(self, blob: BlobAddress, snapshot: str) -> tuple[str, dict[str, str]]:  # noqa: ARG002  see query
        """The token, for the destination to present (Put Page From URL, since 2020-10-02)."""
        token = await self._credential.get_token(STORAGE_SCOPE)
        return "", {"x-ms-copy-source-authorization": f"Bearer {token.token}"}

    async def signed(self, blob: BlobAddress, snapshot: str) -> str:
        """A user delegation SAS (Get User Delegation Key: the identity needs the right to ask for it)."""
        now = datetime.now(UTC)
        key = await self._account.get_user_delegation_key(now - CLOCK_SKEW, now + SIGNED_LIFETIME)
        return generate_blob_sas(
            str(self._account.account_name),
            blob.container,
            blob.name,
            snapshot=snapshot,
            user_delegation_key=key,
            permission=BlobSasPermissions(read=True),
            start=now - CLOCK_SKEW,
            expiry=now + SIGNED_LIFETIME,
        )


class SharedSasAuthority:
    """A SAS given by settings, for the development platform."""

    def __init__(self, sas: str) -> None:
        """Use the query string `sas`."""
        self._sas = sas.lstrip("?")

    async def headers(self) -> dict[str, str]:
        """Nothing."""
        return {}

    def query(self, blob: BlobAddress, snapshot: str, *, write: bool) -> str:  # noqa: ARG002  the SAS is not per blob
        """The SAS."""
        return self._sas

    async def as_source(self, blob: BlobAddress, snapshot: str) -> tuple[str, dict[str, str]]:  # noqa: ARG002  see query
        """The SAS: what it permits was decided by whoever made it."""
        return self._sas, {}

    async def signed(self, blob: BlobAddress, snapshot: str) -> str:  # noqa: ARG002  see query
        """The SAS."""
        return self._sas


class KeyAuthority:
    """An account key, for the development platform: each blob gets a SAS of its own for an hour, read or write."""

    def __init__(self, account: str, key: str, clock: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        """Mint for `account` with `key`."""
        self._account, self._key, self._clock = account, key, clock
        self._minted: dict[tuple[BlobAddress, str, bool], tuple[datetime, str]] = {}

    async def headers(self) -> dict[str, str]:
        """Nothing."""
        return {}

    def query(self, blob: BlobAddress, snapshot: str, *, write: bool) -> str:
        """A SAS for exactly this blob or snapshot, renewed when half its hour is over."""
        now, known = self._clock(), (blob, snapshot, write)
        minted = self._minted.get(known)
        if minted and minted[0] > now:
            return minted[1]
        sas = self._mint(blob, snapshot, BlobSasPermissions(read=not write, write=write), now + SAS_LIFETIME)
        self._minted[known] = (now + SAS_LIFETIME / 2, sas)
        return sas

    def _mint(self, blob: BlobAddress, snapshot: str, permission: BlobSasPermissions, expiry: datetime) -> str:
        return generate_blob_sas(
            self._account,
            blob.container,
            blob.name,
            snapshot=snapshot or None,
            account_key=self._key,
            permission=permission,
            expiry=expiry,
        )

    async def as_source(self, blob: BlobAddress, snapshot: str) -> tuple[str, dict[str, str]]:
        """A SAS to read exactly this snapshot."""
        return self.query(blob, snapshot, write=False), {}

    async def signed(self, blob: BlobAddress, snapshot: str) -> str:
        """The same, for longer."""
        return self._mint(blob, snapshot, BlobSasPermissions(read=True), self._clock() + SIGNED_LIFETIME)
