"""Tokens of the app's identities, and what it means when there is none."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Self

from azure.core.exceptions import HttpResponseError, ServiceRequestError, ServiceResponseError
from azure.identity import CredentialUnavailableError

from backup_core.domain.errors import AccessDeniedError, BackupError, ServiceUnavailableError
from backup_core.domain.redaction import redacted

if TYPE_CHECKING:
    from collections.abc import Iterator

    from azure.core.credentials import AccessToken, AccessTokenInfo
    from azure.identity.aio import DefaultAzureCredential, ManagedIdentityCredential

_ASSIGN = (
    "assign the identity to the app, and give its client id in MANAGED_IDENTITY_CLIENT_ID, or in the setting of its duty "
    "(docs/security.md)"
)


class Credential:
    """An identity's credential for the SDK's clients and the data path, whose failures are the project's errors.

    The SDK's own say nothing of a storage account or of Resource Manager, but would be read as an answer of theirs.
    """

    def __init__(self, credential: ManagedIdentityCredential | DefaultAzureCredential, client: str) -> None:
        """Tokens come from `credential`; `client` is the identity's client id, empty for the app's default."""
        self._credential, self._client = credential, client

    async def get_token(self, *scopes: str, **options: Any) -> AccessToken:  # noqa: ANN401  the SDK's own options
        """A token for the scopes. Raises ServiceUnavailableError and AccessDeniedError."""
        with self._translated(scopes):
            return await self._credential.get_token(*scopes, **options)

    async def get_token_info(self, *scopes: str, **options: Any) -> AccessTokenInfo:  # noqa: ANN401  the SDK's own options
        """A token, and when it is to be renewed. Raises as `get_token`."""
        with self._translated(scopes):
            return await self._credential.get_token_info(*scopes, **options)

    async def close(self) -> None:
        """Close the credential's connections."""
        await self._credential.close()

    async def __aenter__(self) -> Self:
        """Open nothing."""
        return self

    async def __aexit__(self, *_: object) -> None:
        """Close the credential's connections."""
        await self.close()

    @contextmanager
    def _translated(self, scopes: tuple[str, ...]) -> Iterator[None]:
        what = f"get a token for {' '.join(scopes)} as {f'client {self._client}' if self._client else 'the app'}"
        try:
            yield
        except HttpResponseError as error:
            raise _fault(error, what) from None
        except (ServiceRequestError, ServiceResponseError) as error:
            message = (
                f"{what}: the identity endpoint did not answer ({type(error).__name__}); temporary failure; if it stays, look "
                "at the app's page Identity, and restart the app"
            )
            raise ServiceUnavailableError(message) from None


def _fault(error: HttpResponseError, what: str) -> BackupError:
    """By the answer's status. Without one a retry may help: one retry too many costs less than a run."""
    if isinstance(error, CredentialUnavailableError):
        return AccessDeniedError(f"{what}: the app has no identity ({_line(error)}); {_ASSIGN}")
    status = error.status_code or 0
    said = f"{what}: the identity endpoint gave {f'answer {status}' if status else 'no token'} ({_line(error)})"
    # An answer of 200 without a token is none.
    if status < 300 or status in (408, 410, 429) or status >= 500:
        return ServiceUnavailableError(f"{said}; temporary failure; if it stays, {_ASSIGN}")
    return AccessDeniedError(f"{said}; {_ASSIGN}")


def _line(error: HttpResponseError) -> str:
    return redacted(error.message.strip().partition("\n")[0][:300]) or "no reason given"
