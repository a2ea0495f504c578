"""The service's errors as the project's own: decided by status and code together, because one code covers several cases."""

from __future__ import annotations

from backup_core.domain.errors import (
    AccessDeniedError,
    BackupError,
    BlobChangedError,
    BlobExistsError,
    BlobMissingError,
    DiffRefusedError,
    FencedError,
    LeaseTakenError,
    ServiceUnavailableError,
    SnapshotLimitError,
    SnapshotMissingError,
    SnapshotRateError,
    SnapshotUnreadableError,
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

_BUSY = frozenset({"ServerBusy", "OperationTimedOut", "InternalError", "SystemInUse", "PendingCopyOperation"})
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
_MISSING = frozenset({"BlobNotFound", "ContainerNotFound", "ResourceNotFound", ""})


def code_of(error: object) -> str:
    """The service's error code in an exception of the SDK; empty when it carries none."""
    code = getattr(error, "error_code", None)
    return str(getattr(code, "value", code) or "")


def fault_of(status: int, code: str, text: str, what: str, *, snapshot: bool = False) -> BackupError:
    """The error for an answer. `what` says in words which request on which object was refused."""
    said = f"{what}: the service answered {status} {code or 'without a code'}"
    detail = f"{said} ({redacted(text.splitlines()[0])})" if text else said
    if status in (408, 429, 500, 502, 503, 504) or (status == 409 and code in _BUSY):
        return ServiceUnavailableError(f"{detail}; it is tried again")
    if status in (400, 409) and code in DIFF_REFUSALS:
        return DiffRefusedError(detail, code)
    if status in (401, 403):
        return AccessDeniedError(f"{detail}; grant the app's identity the roles in the README, or correct the key")
    if status == 404 and code in _MISSING:
        kind = SnapshotMissingError if snapshot else BlobMissingError
        return kind(f"{detail}; it does not exist")
    if status == 409 and code in _RATE:
        return SnapshotRateError(f"{detail}; a premium page blob takes one snapshot in ten minutes; it is tried again")
    if status == 409 and code == "SnapshotCountExceeded":
        return SnapshotLimitError(f"{detail}; a premium page blob holds 100 snapshots; delete those nobody needs")
    if status == 400 and code == "InvalidOperation" and snapshot:
        message = f"{detail}; its account type does not serve reads of snapshots; copy the disk to a blob of another type"
        return SnapshotUnreadableError(message)
    if status == 409 and code == "BlobAlreadyExists":
        return BlobExistsError(detail)
    if status == 409 and code == "LeaseAlreadyPresent":
        return LeaseTakenError(f"{detail}; another lease holds it")
    if status == 412 and code in _FENCED:
        return FencedError(detail)
    if status == 412 and code == "ConditionNotMet":
        return BlobChangedError(f"{detail}; it was changed in between")
    return UnexpectedAnswerError(f"{detail}; nothing was assumed from it")
