"""The service's errors as the project's own: decided by status and code together, because one code covers several cases."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Any

from azure.core.exceptions import DecodeError
from azure.core.pipeline.policies import ContentDecodePolicy

from backup_core.domain.errors import (
    AccessDeniedError,
    BackupError,
    BlobChangedError,
    BlobExistsError,
    BlobMissingError,
    ContainerMissingError,
    CopySourceKindError,
    CopySourceRefusedError,
    CopySourceUnreachableError,
    DiffRefusedError,
    FencedError,
    HostUnknownError,
    LeaseTakenError,
    ServiceTimedOutError,
    ServiceUnavailableError,
    SnapshotLimitError,
    SnapshotMissingError,
    SnapshotRateError,
    SnapshotsPresentError,
    SnapshotUnreadableError,
    TableMissingError,
    TransferDamagedError,
    UnexpectedAnswerError,
)
from backup_core.domain.redaction import redacted

if TYPE_CHECKING:
    from collections.abc import Mapping

DIFF_REFUSALS = frozenset(
    {
        "BlobOverwritten",
        "BlobGenerationMismatch",
        "PreviousSnapshotNotFound",
        "PreviousSnapshotCannotBeNewer",
        "PreviousSnapshotOperationNotSupported",
    }
)
"""The diff has no answer, now or later (Blob service error codes): a full backup is due."""

COPY_SOURCE_CODE = "x-ms-copy-source-error-code"
"""The header with the code that the source of a copy answered; newer versions of the service send it."""
_BUSY = frozenset(
    {
        "ServerBusy",
        "OperationTimedOut",
        "InternalError",
        "SystemInUse",
        "PendingCopyOperation",
        "ContainerBeingDeleted",
        "TableBeingDeleted",
        "AccountBeingCreated",
    }
)
_RATE = frozenset({"SnapshotOperationRateExceeded", "SnaphotOperationRateExceeded"})
"""The service's documents and its SDK spell this code differently."""
_FENCED = frozenset(
    {
        "LeaseIdMissing",
        "LeaseIdMismatchWithBlobOperation",
        "LeaseLost",
        "LeaseNotPresentWithBlobOperation",
        "SequenceNumberConditionNotMet",
    }
)
_MISSING = frozenset({"BlobNotFound"})
"""The service names what is missing, also to a HEAD (recorded). A 404 without a code is another server's, such as a proxy's."""
_UNKNOWN_CODE = "look the code up in Azure Storage's list of error codes; the roles that the app needs are in docs/security.md"
_NO_SUCH_HOST = frozenset({socket.EAI_NONAME, getattr(socket, "EAI_NODATA", socket.EAI_NONAME)})
_FIREWALL = (
    "the account's firewall does not admit the app, or the signature does not cover the request: admit the app's network in "
    "the account's networking settings (docs/deploy.md has a private network), then look at the roles"
)
_ROLE = "grant the app's identity the role in docs/security.md on that account; a new assignment takes some minutes to work"
_KEY = (
    "the key, signature or token is wrong or has expired: correct it, or the app's clock; the app needs neither key nor "
    "signature where it has a managed identity"
)
_UNREACHED = (500, "CannotVerifyCopySource")
"""The documented answer where the source's network keeps the service away; it may also be a source that is slow."""
_CUSTOMER_KEY = (
    "the blob is encrypted with a key that comes with each request, which this app does not have: copy the disk to a blob that "
    "is encrypted with the account's own"
)
_UNSIGNED = "the request carried no authorisation: give the app a managed identity with the roles in docs/security.md"
_REFUSED: Mapping[str, str] = {
    "AuthorizationFailure": _FIREWALL,
    "AuthorizationSourceIPMismatch": _FIREWALL,
    "NetworkSecurityPerimeterDenied": _FIREWALL,
    "PublicAccessNotPermitted": _UNSIGNED,
    "NoAuthenticationInformation": _UNSIGNED,
    # With status 404: whether a private blob exists is not told to a stranger (azure-storage-cpp#397).
    "ResourceNotFound": _UNSIGNED,
    "AuthorizationPermissionMismatch": _ROLE,
    "InsufficientAccountPermissions": _ROLE,
    "UnauthorizedBlobOverwrite": _ROLE,
    "AuthorizationServiceMismatch": _KEY,
    "AuthorizationResourceTypeMismatch": _KEY,
    "AuthorizationProtocolMismatch": _KEY,
    "AuthenticationFailed": _KEY,
    "InvalidAuthenticationInfo": _KEY,
    "KeyBasedAuthenticationNotPermitted": "the account takes no keys: use the app's managed identity, with its roles",
    "AccountIsDisabled": "the account is disabled: see the state of its subscription, and have the account enabled again",
    "AccountRequiresHttps": "the account takes https only: correct its endpoint in the settings",
    "BlobUsesCustomerSpecifiedEncryption": _CUSTOMER_KEY,
}
"""The next move after a refusal, by the service's code: they share the status 403, and nothing else."""


def code_of(error: object) -> str:
    """The service's error code in an exception of the SDK; empty when the answer had none.

    The SDK's Create Entity raises without it, and takes every 409 for an existing row: then the answer itself is read.
    """
    code = getattr(error, "error_code", None)
    response = getattr(error, "response", None)
    if not code and response is not None:
        code = response.headers.get("x-ms-error-code") or _code_in(response)
    return str(getattr(code, "value", code) or "")


def _code_in(response: Any) -> str:  # noqa: ANN401  one of azure-core's several response classes
    """The code in the JSON of a table service's error (OData)."""
    try:
        body = ContentDecodePolicy.deserialize_from_http_generics(response)
    except DecodeError:
        return ""
    fault = body.get("odata.error") if isinstance(body, dict) else None
    return str(fault.get("code", "")) if isinstance(fault, dict) else ""


_PASSES = "temporary failure"

_NAMED: dict[tuple[int, str], tuple[type[BackupError], str]] = {
    (500, "OperationTimedOut"): (ServiceTimedOutError, _PASSES),
    (408, ""): (ServiceTimedOutError, _PASSES),
    (409, "SnapshotCountExceeded"): (
        SnapshotLimitError,
        "a premium page blob holds 100 snapshots; delete those nobody needs",
    ),
    (409, "BlobAlreadyExists"): (BlobExistsError, "nothing was written; use another name"),
    (409, "SnapshotsPresent"): (SnapshotsPresentError, "it was kept; look whose snapshots they are"),
    **{
        (409, code): (LeaseTakenError, "another lease holds it; look who uses the blob, and release that lease")
        for code in ("LeaseAlreadyPresent", "LeaseIsBreakingAndCannotBeAcquired")
    },
    (412, "ConditionNotMet"): (BlobChangedError, "it was changed in between, nothing was done; look at it again"),
    (409, "CopySourceCannotBeIncrementalCopyBlob"): (
        CopySourceKindError,
        "an export of that kind cannot be the source of a copy: set COPY_MODE to 'auto' or 'stream', and FULL_COPY to 'pages'",
    ),
    **{
        (412, code): (FencedError, "another run holds the blob now, or its lease was broken; follow the run that is at work")
        for code in _FENCED
    },
    **{(409, code): (SnapshotRateError, f"a premium page blob takes one snapshot in ten minutes; {_PASSES}") for code in _RATE},
    **{(409, code): (ServiceUnavailableError, _PASSES) for code in _BUSY},
    (409, "BlobImmutableDueToPolicy"): (
        UnexpectedAnswerError,
        "an immutability policy or a legal hold keeps the blob as it is; look when it ends: nothing is deleted before",
    ),
    (409, "BlobArchived"): (
        UnexpectedAnswerError,
        "the blob is in the archive tier; look which rule of the account has moved it there, and give it an online tier again",
    ),
    (400, "Md5Mismatch"): (TransferDamagedError, f"the bytes were altered on their way, nothing was written; {_PASSES}"),
    (404, "ContainerNotFound"): (
        ContainerMissingError,
        "the container does not exist; correct its name, create it, or have it back from its soft delete",
    ),
    (404, "TableNotFound"): (
        TableMissingError,
        "the table does not exist; correct CATALOGUE_TABLE, or POST /api/catalogue/rebuild if it was deleted",
    ),
}
"""Answers with one meaning for every request."""


def fault_of(
    status: int,
    code: str,
    text: str,
    what: str,
    *,
    snapshot: bool = False,
    copies: bool = False,
    source_code: str = "",
) -> BackupError:
    """The error for an answer. `what` names, in words, the refused request and its object. `copies` says that the request has
    the account read another blob; `source_code` is the code with which that source answered it, where that is known.
    """
    # G67: an endpoint's words may hold the address that it refused.
    said = f"{what}: the service answered {status} {code or 'without a code'}"
    detail = f"{said} ({redacted(text.splitlines()[0])})" if text else said
    if (status, code) in _NAMED:
        kind, advice = _NAMED[status, code]
        return kind(f"{detail}; {advice}")
    if status < 300 and not code:
        # No status, or a good one before the answer broke off: that is no answer.
        return ServiceUnavailableError(f"{what}: no whole answer; {_PASSES}")
    if code == "CannotVerifyCopySource" and source_code in _BUSY:
        return ServiceUnavailableError(f"{detail}; its source answered {source_code}; {_PASSES}")
    if status in (429, 500, 502, 503, 504) and (status, code) != _UNREACHED:
        return ServiceUnavailableError(f"{detail}; {_PASSES}")
    if code == "CannotVerifyCopySource":
        # One code for six situations: missing, unauthorised, firewalled, conditions. None is a fault of the destination.
        message = (
            f"{detail}; the backup account cannot read the source: check the source account's firewall and the app's roles "
            "(docs/security.md), or set COPY_MODE to 'stream' and FULL_COPY to 'pages'"
        )
        return (CopySourceUnreachableError if (status, code) == _UNREACHED else CopySourceRefusedError)(message)
    if status in (400, 409) and code in DIFF_REFUSALS:
        return DiffRefusedError(f"{detail}; a full backup is due", code)
    advice = _REFUSED.get(code) or _refused(code)
    if copies and status == 403 and advice in (_FIREWALL, _UNKNOWN_CODE):
        # AllowedCopyScope is answered like the firewall. The bytes are streamed then: a firewall refuses that, too.
        return CopySourceRefusedError(
            f"{detail}; either its permitted scope for copy operations (allowedCopyScope) leaves out the source's account, or "
            "its firewall does not admit the app: correct that in the account's settings, or set COPY_MODE to 'stream' and "
            "FULL_COPY to 'pages'"
        )
    if code in _REFUSED or status in (401, 403):
        denied = AccessDeniedError(f"{detail}; {advice}")
        denied.by_signature = code == "AuthenticationFailed"
        return denied
    if status == 404 and code in _MISSING:
        if snapshot:
            return SnapshotMissingError(
                f"{detail}; it does not exist; use another snapshot, or have it back from its soft delete"
            )
        return BlobMissingError(f"{detail}; it does not exist; correct the name, or have it back from its soft delete")
    if status == 400 and code == "InvalidOperation" and snapshot:
        message = f"{detail}; its account type does not serve reads of snapshots; copy the disk to a blob of another type"
        return SnapshotUnreadableError(message)
    return UnexpectedAnswerError(
        f"{detail}; nothing was assumed from it; look the code up in Azure Storage's list of error codes"
    )


def _refused(code: str) -> str:
    """The next move after a refusal whose code has no text of its own."""
    if code.startswith("KeyVault"):
        return (
            "the account's own encryption key cannot be used: give the account access to its key vault again, and see that the "
            "key is there and enabled"
        )
    return _UNKNOWN_CODE


def no_answer(error: BaseException, what: str) -> BackupError:
    """The error for a request without an answer. Of the library's text only the kind is kept: it may hold a signature."""
    if _is_unknown_host(error):
        return HostUnknownError(
            f"{what}: no host has that name; correct the account in the settings or the URL, or see that the account still "
            "exists and the app's name servers know it (private DNS zone)"
        )
    return ServiceUnavailableError(f"{what}: no answer ({type(error).__name__}); {_PASSES}")


def _is_unknown_host(error: BaseException | None) -> bool:
    """Whether name servers said that there is no such host; an unreachable name server is a temporary failure."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if isinstance(error, socket.gaierror) and error.errno in _NO_SUCH_HOST:
            return True
        inner = getattr(error, "inner_exception", None) or getattr(error, "os_error", None)
        error = inner if isinstance(inner, BaseException) else error.__cause__ or error.__context__
    return False
