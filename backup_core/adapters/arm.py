"""Answers of Azure Resource Manager as the project's errors, by status and code."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from azure.core.exceptions import DecodeError, HttpResponseError, ServiceRequestError, ServiceResponseError
from azure.core.pipeline.policies import ContentDecodePolicy
from azure.core.polling.base_polling import BadStatus, OperationFailed

from backup_core.domain.ending import PAUSE_SECONDS_MAX
from backup_core.domain.errors import AccessDeniedError, BackupError, ServiceUnavailableError
from backup_core.domain.redaction import redacted

if TYPE_CHECKING:
    from collections.abc import Sequence

    from azure.core.rest import AsyncHttpResponse

WAIT_SECONDS = 90.0
"""The longest wait for a change within a call; an activity must end within minutes."""
_BUSY = frozenset(
    {"Conflict", "AnotherOperationInProgress", "OperationPreempted", "RetryableError", "AttachDiskWhileBeingDetached"}
)
"""Another operation is in progress: the same request succeeds later."""
_TEMPORARY = frozenset(
    {
        "InternalError",
        "InternalExecutionError",
        "InternalOperationError",
        "InternalServerError",
        "OperationTimedOut",
        "ServerTimeout",
    }
)
"""An accepted operation failed by Azure's own fault: it ends with the code that a refused request has beside status 500."""
_GONE = frozenset({"ResourceNotFound", "NotFound", "ResourceGroupNotFound"})
"""Codes of an accepted operation whose object was missing: no status says so."""
_LINKED = re.compile(
    r"not have permission to perform action(?:\(s\))? '(?P<action>[^']+)' on the linked scope\(s\) '(?P<resource>[^']+)'"
)


@dataclass(frozen=True)
class Kind:
    """A kind of resource: the errors that its answers become, and the operator's next move."""

    missing: type[BackupError]
    changed: type[BackupError]
    busy: type[BackupError]
    refused: type[BackupError]
    grant: str
    """The role to grant when access is denied."""
    again: str
    """The move after a correction, such as ", and restore again"."""
    advice: Sequence[tuple[str, str, str]]
    """Code, a part of the message in lower case (either may be empty: any), what to do."""

    def fitting(self, code: str, message: str) -> str:
        """The next move after a refusal."""
        text = message.lower()
        known = (advice for one, part, advice in self.advice if one in ("", code) and part in text)
        return next(known, f"correct what Azure names{self.again}")


@contextmanager
def translated(what: str, kind: Kind) -> Iterator[None]:
    """Turn the SDK's exceptions into the project's errors."""
    try:
        yield
    except HttpResponseError as error:
        raise _fault(error, what, kind) from None
    except (ServiceRequestError, ServiceResponseError) as error:
        # Also when name servers know no such host: Resource Manager's name is not misspelt for long, and a change of a machine
        # in progress must not be undone for their failure.
        message = f"{what}: no answer ({type(error).__name__}); temporary failure"
        raise ServiceUnavailableError(message) from None


def code_of(error: HttpResponseError) -> str:
    """The code of the answer; empty without one."""
    return str(getattr(error.error, "code", "") or "")


def _fault(error: HttpResponseError, what: str, kind: Kind) -> BackupError:
    """By status and code: a change that fails after it was accepted has the code alone, in an answer of a good status."""
    status, code = error.status_code or 0, code_of(error)
    status = status if status >= 300 else 0
    # The whole message decides which advice fits; a line of it is shown.
    # G67: nor may what it quotes hold a signature.
    message = redacted(str(getattr(error.error, "message", "") or error.reason or "no reason given"))
    how = f"answered {status}" if status else "did not do it, having accepted it:"
    said = f"{what}: Azure {how} {code or 'without a code'} ({message.strip().partition(chr(10))[0][:900]})"
    if status in (0, 403) and "deny assignment" in message.lower():
        # Of a managed application, a deployment stack or a cluster (Azure/OpenShift#186): it outranks every role.
        move = "no role helps; have the app's identity excluded from it, or use resource groups that it does not cover"
        return AccessDeniedError(f"{said}; a deny assignment forbids it: {move}{kind.again}")
    if code == "LinkedAuthorizationFailed":
        # Azure says first, and at length, what is permitted.
        missing = _LINKED.search(message)
        found = f"{missing['action']} on {missing['resource']}" if missing else f"what Azure names ({message[:300]})"
        return AccessDeniedError(f"{what}: Azure {how} {code}: grant the app's identity {found}{kind.again}")
    if code == "RequestDisallowedByPolicy":
        move = "have an exemption made, or where it requires a tag, give the disk that tag"
        return kind.refused(f"{said}; an Azure policy forbids it: {move}{kind.again}")
    if status == 404 and isinstance(error.__cause__, BadStatus):
        # Its object may be there: Azure answers so for an operation just accepted, too (hashicorp/go-azure-sdk#740).
        message = f"{said}; Azure does not know the operation that it had accepted; temporary failure"
        return _waiting(ServiceUnavailableError(message), error)
    if _is_canceled(error):
        return _waiting(kind.busy(f"{said}; Azure canceled it for another operation; temporary failure"), error)
    if status == 404 or (not status and code in _GONE):
        return kind.missing(f"{said}; correct the resource id, or its resource group was removed")
    if status == 412 or code == "PreconditionFailed":
        return kind.changed(f"{said}; it was changed by somebody else in between; it is read again")
    if status in (401, 403):
        return AccessDeniedError(f"{said}; grant the app's identity {kind.grant}")
    if not status and not code and not isinstance(error.__cause__, OperationFailed):
        return ServiceUnavailableError(f"{what}: no whole answer; temporary failure")
    if status in (408, 429) or status >= 500 or code in _TEMPORARY:
        return _waiting(ServiceUnavailableError(f"{said}; temporary failure"), error)
    if code in _BUSY:
        return _waiting(kind.busy(f"{said}; another operation is in progress; temporary failure"), error)
    return kind.refused(f"{said}; {kind.fitting(code, message)}")


def _is_canceled(error: HttpResponseError) -> bool:
    """Whether the accepted operation ended as canceled, for whatever reason."""
    if error.response is None or not isinstance(error.__cause__, OperationFailed):
        return False
    with suppress(DecodeError):
        body = ContentDecodePolicy.deserialize_from_http_generics(cast("AsyncHttpResponse", error.response))
        return isinstance(body, dict) and str(body.get("status", "")).lower() in ("canceled", "cancelled")
    return False


def _waiting(fault: BackupError, error: HttpResponseError) -> BackupError:
    """The failure with the service's Retry-After, as long as a run may wait without a heartbeat."""
    text = str(getattr(error.response, "headers", {}).get("Retry-After", ""))
    fault.wait_seconds = min(int(text[:9]), int(PAUSE_SECONDS_MAX)) if text.isascii() and text.isdigit() else 0
    return fault
