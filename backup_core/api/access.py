"""Admission of calls: transport, and the caller's roles where Entra ID sign-in is on. The platform checks function keys.

App Service's sign-in names the caller in X-MS-CLIENT-PRINCIPAL, and strips that header from incoming requests.
Where the sign-in is off anybody can send it: then it is ignored.
"""

from __future__ import annotations

import base64
import binascii
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from backup_core.operations.refusal import RefusedError

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

Role = Literal["Reader", "Backup.Operator", "Restore.Operator"]
READER: tuple[Role, ...] = ("Reader", "Backup.Operator", "Restore.Operator")
"""Every role may read."""
BACKUP: tuple[Role, ...] = ("Backup.Operator",)
RESTORE: tuple[Role, ...] = ("Restore.Operator",)
OPERATORS: tuple[Role, ...] = ("Backup.Operator", "Restore.Operator")
PRINCIPAL = "x-ms-client-principal"


@dataclass(frozen=True)
class Access:
    """The rules by which callers are authenticated."""

    by_roles: bool = False
    """Whether callers need a role, besides a key."""
    platform_signs_in: bool = False
    """Whether App Service says that its sign-in is on (WEBSITE_AUTH_ENABLED)."""
    https_only: bool = False

    def admit(self, url: str, headers: Mapping[str, str], roles: Collection[Role]) -> frozenset[str] | None:
        """The caller's roles, or None where only keys are asked for; `roles` are those that may make the call, none for a call
        that anybody may make. Raises RefusedError.
        """
        if self.https_only and not _secure(url, headers):
            message = "the request came by http; expected https"
            raise RefusedError(403, "HttpsRequired", message)
        if not self.by_roles or not roles:
            return None
        if not self.platform_signs_in:
            message = (
                "SIGN_IN is 'entra', but the platform's own sign-in is off, so that no caller is known; turn on the function "
                "app's authentication (infra does), or set SIGN_IN to 'keys'"
            )
            raise RefusedError(401, "SignInOff", message)
        own = _roles(headers.get(PRINCIPAL, ""))
        if not own & set(roles):
            has = ", ".join(sorted(own)) or "none of the app's roles"
            needed = " or ".join(roles)
            message = f"the call needs role {needed}; the caller has {has}; an administrator assigns roles in Entra ID"
            raise RefusedError(403, "RoleMissing", message)
        return own


def _secure(url: str, headers: Mapping[str, str]) -> bool:
    """Whether the client's side of the connection was encrypted: the platform's front end ends TLS and says so in
    X-Forwarded-Proto, which it sets itself. It may have been passed through others: then all of them have to say so. X-ARR-SSL
    proves nothing: anybody may send it.
    """
    schemes = [one.strip() for one in headers.get("x-forwarded-proto", "").split(",")]
    return url.startswith("https:") or set(schemes) == {"https"}


def _roles(principal: str) -> frozenset[str]:
    try:
        claimed = json.loads(base64.b64decode(principal, validate=True))
        kinds = {"roles", claimed.get("role_typ") or "roles"}
        named = {claim["val"] for claim in claimed["claims"] if claim["typ"] in kinds}
    except (binascii.Error, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        message = "nobody is signed in; send a token of Entra ID for this app as Authorization: Bearer"
        raise RefusedError(401, "SignInRequired", message, headers={"WWW-Authenticate": "Bearer"}) from error
    return frozenset(role for role in READER if role in named)
