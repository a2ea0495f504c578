"""The service's errors as the project's own: decided by status and code together, because one code covers several cases."""

from __future__ import annotations

from typing import Any

from azure.core.exceptions import DecodeError
from azure.core.pipeline.policies import ContentDecodePolicy

from backup_core.domain.errors import (
    AccessDeniedError,
    BackupError,
    BlobChangedError,
    BlobExistsError,
    BlobMissingError,
    ContainerMissingError,
    CopySourceRefusedError,
    DiffRefusedError,
    FencedError,
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
_MISSING = frozenset({"BlobNotFound", "ResourceNotFound", ""})


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
    told = body.get("odata.error") if isinstance(body, dict) else None
    return str(told.get("code", "")) if isinstance(told, dict) else ""


_NAMED: dict[tuple[int, str], tuple[type[BackupError], str]] = {
    (500, "OperationTimedOut"): (ServiceTimedOutError, "; it may pass"),
    (408, ""): (ServiceTimedOutError, "; it may pass"),
    (409, "SnapshotCountExceeded"): (
        SnapshotLimitError,
        "; a premium page blob holds 100 snapshots; delete those nobody needs",
    ),
    (409, "BlobAlreadyExists"): (BlobExistsError, ""),
    (409, "SnapshotsPresent"): (SnapshotsPresentError, "; it was kept"),
    (409, "LeaseAlreadyPresent"): (LeaseTakenError, "; another lease holds it"),
    (412, "ConditionNotMet"): (BlobChangedError, "; it was changed in between"),
    **{(412, code): (FencedError, "") for code in _FENCED},
    **{
        (409, code): (SnapshotRateError, "; a premium page blob takes one snapshot in ten minutes; it may pass")
        for code in _RATE
    },
    **{(409, code): (ServiceUnavailableError, "; it may pass") for code in _BUSY},
    (400, "Md5Mismatch"): (TransferDamagedError, "; the bytes were altered on their way, nothing was written from them"),
    (404, "ContainerNotFound"): (ContainerMissingError, "; the container does not exist"),
    (404, "TableNotFound"): (TableMissingError, "; the table does not exist"),
}
"""Answers that mean one thing whatever was asked for."""


def fault_of(status: int, code: str, text: str, what: str, *, snapshot: bool = False) -> BackupError:
    """The error for an answer. `what` says in words which request on which object was refused."""
    said = f"{what}: the service answered {status} {code or 'without a code'}"
    detail = f"{said} ({redacted(text.splitlines()[0])})" if text else said
    if (status, code) in _NAMED:
        kind, advice = _NAMED[status, code]
        return kind(detail + advice)
    if status < 300 and not code:
        # No status, or a good one before the answer broke off: that is no answer.
        return ServiceUnavailableError(f"{what}: no whole answer; it may pass")
    if status in (429, 500, 502, 503, 504):
        return ServiceUnavailableError(f"{detail}; it may pass")
    if code == "CannotVerifyCopySource":
        # One code for six situations: missing, unauthorised, firewalled, conditions. None is a fault of the destination.
        message = (
            f"{detail}; the backup account cannot read the source: check the source account's firewall and the app's roles in "
            "the README, or set COPY_MODE to 'stream' and FULL_COPY to 'pages'"
        )
        return CopySourceRefusedError(message)
    if status in (400, 409) and code in DIFF_REFUSALS:
        return DiffRefusedError(detail, code)
    if status in (401, 403):
        return AccessDeniedError(f"{detail}; grant the app's identity the roles in the README, or correct the key")
    if status == 404 and code in _MISSING:
        missing = SnapshotMissingError if snapshot else BlobMissingError
        return missing(f"{detail}; it does not exist")
    if status == 400 and code == "InvalidOperation" and snapshot:
        message = f"{detail}; its account type does not serve reads of snapshots; copy the disk to a blob of another type"
        return SnapshotUnreadableError(message)
    return UnexpectedAnswerError(f"{detail}; nothing was assumed from it")
