"""Which of the project's errors an answer of the service becomes: by status and code together."""

from __future__ import annotations

import pytest

from backup_core.adapters.answers import fault_of
from backup_core.domain.errors import (
    AccessDeniedError,
    BlobChangedError,
    BlobExistsError,
    BlobMissingError,
    ContainerMissingError,
    DiffRefusedError,
    FencedError,
    LeaseTakenError,
    ServiceUnavailableError,
    SnapshotLimitError,
    SnapshotMissingError,
    SnapshotRateError,
    SnapshotUnreadableError,
    TableMissingError,
    TransferDamagedError,
    UnexpectedAnswerError,
)

CASES = [
    (500, "InternalError", ServiceUnavailableError),
    (503, "ServerBusy", ServiceUnavailableError),
    (429, "", ServiceUnavailableError),
    (409, "SystemInUse", ServiceUnavailableError),
    (409, "PendingCopyOperation", ServiceUnavailableError),
    (409, "BlobOverwritten", DiffRefusedError),
    (409, "BlobGenerationMismatch", DiffRefusedError),
    (409, "PreviousSnapshotNotFound", DiffRefusedError),
    (400, "PreviousSnapshotCannotBeNewer", DiffRefusedError),
    (409, "PreviousSnapshotOperationNotSupported", DiffRefusedError),
    (409, "SomethingNew", UnexpectedAnswerError),
    (400, "InvalidHeaderValue", UnexpectedAnswerError),
    (401, "NoAuthenticationInformation", AccessDeniedError),
    (403, "AuthorizationPermissionMismatch", AccessDeniedError),
    (404, "BlobNotFound", BlobMissingError),
    (404, "ContainerNotFound", ContainerMissingError),
    (404, "TableNotFound", TableMissingError),
    (400, "Md5Mismatch", TransferDamagedError),
    (409, "ContainerBeingDeleted", ServiceUnavailableError),
    (409, "TableBeingDeleted", ServiceUnavailableError),
    (409, "", UnexpectedAnswerError),
    (404, "SomethingElse", UnexpectedAnswerError),
    (409, "BlobAlreadyExists", BlobExistsError),
    (409, "LeaseAlreadyPresent", LeaseTakenError),
    (412, "LeaseIdMissing", FencedError),
    (412, "LeaseIdMismatchWithBlobOperation", FencedError),
    (412, "LeaseLost", FencedError),
    (412, "LeaseNotPresentWithBlobOperation", FencedError),
    (412, "SequenceNumberConditionNotMet", FencedError),
    (412, "ConditionNotMet", BlobChangedError),
    (412, "", UnexpectedAnswerError),
    (409, "SnapshotOperationRateExceeded", SnapshotRateError),
    (409, "SnaphotOperationRateExceeded", SnapshotRateError),
    (409, "SnapshotCountExceeded", SnapshotLimitError),
    (400, "InvalidOperation", UnexpectedAnswerError),
    (304, "ConditionNotMet", UnexpectedAnswerError),
]


@pytest.mark.parametrize(("status", "code", "kind"), CASES)
def test_answers(status, code, kind):
    fault = fault_of(status, code, "a reason with sig=abcdefghijklm", "read bytes of https://a.test/c/b")

    assert type(fault) is kind
    assert str(fault).startswith(f"read bytes of https://a.test/c/b: the service answered {status} {code or 'without a code'}")
    assert "abcdefghijklm" not in str(fault)


@pytest.mark.parametrize("status", [0, 200, 206])
def test_no_status_means_no_answer(status):
    """Nor does the status of an answer that broke off: it may pass."""
    fault = fault_of(status, "", "", "read a row")

    assert type(fault) is ServiceUnavailableError
    assert "no whole answer" in str(fault)


def test_snapshots_have_their_own():
    """Missing, or of an account type that does not serve them."""
    assert type(fault_of(404, "BlobNotFound", "", "x", snapshot=True)) is SnapshotMissingError
    assert type(fault_of(400, "InvalidOperation", "", "x", snapshot=True)) is SnapshotUnreadableError


def test_a_refused_diff_keeps_the_services_reason():
    assert fault_of(409, "BlobOverwritten", "", "x").reason == "BlobOverwritten"
