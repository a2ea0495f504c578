"""The project's error for each answer of the service, by status and code together."""

from __future__ import annotations

import socket
from types import SimpleNamespace

import pytest
from aiohttp import ClientConnectorDNSError
from azure.core.exceptions import ServiceRequestError

from backup_core.adapters.answers import fault_of, no_answer
from backup_core.domain.errors import (
    AccessDeniedError,
    BlobChangedError,
    BlobExistsError,
    BlobMissingError,
    ContainerMissingError,
    CopySourceRefusedError,
    DiffRefusedError,
    FencedError,
    HostUnknownError,
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

KEY = SimpleNamespace(host="a.test", port=443, ssl=True)
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
    (404, "ResourceNotFound", AccessDeniedError),
    (404, "ContainerNotFound", ContainerMissingError),
    (404, "TableNotFound", TableMissingError),
    (400, "Md5Mismatch", TransferDamagedError),
    (409, "ContainerBeingDeleted", ServiceUnavailableError),
    (409, "TableBeingDeleted", ServiceUnavailableError),
    (409, "", UnexpectedAnswerError),
    (404, "SomethingElse", UnexpectedAnswerError),
    (404, "", UnexpectedAnswerError),
    (409, "BlobAlreadyExists", BlobExistsError),
    (409, "LeaseAlreadyPresent", LeaseTakenError),
    (409, "LeaseIsBreakingAndCannotBeAcquired", LeaseTakenError),
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
    (409, "BlobImmutableDueToPolicy", UnexpectedAnswerError),
    (409, "BlobArchived", UnexpectedAnswerError),
]


@pytest.mark.parametrize(("status", "code", "kind"), CASES)
def test_answers(status, code, kind):
    fault = fault_of(status, code, "a reason with sig=abcdefghijklm", "read bytes of https://a.test/c/b")

    assert type(fault) is kind
    assert str(fault).startswith(f"read bytes of https://a.test/c/b: the service answered {status} {code or 'without a code'}")
    assert "abcdefghijklm" not in str(fault)


@pytest.mark.parametrize("status", [0, 200, 206])
def test_no_status_means_no_answer(status):
    """Nor does the status of an answer that broke off: it is a temporary failure."""
    fault = fault_of(status, "", "", "read a row")

    assert type(fault) is ServiceUnavailableError
    assert "no whole answer" in str(fault)


def test_snapshots_have_their_own():
    """Missing, or of an account type that does not serve them."""
    assert type(fault_of(404, "BlobNotFound", "", "x", snapshot=True)) is SnapshotMissingError
    assert type(fault_of(400, "InvalidOperation", "", "x", snapshot=True)) is SnapshotUnreadableError


def test_a_refused_diff_keeps_the_services_reason():
    assert fault_of(409, "BlobOverwritten", "", "x").reason == "BlobOverwritten"


REFUSALS = {
    "AuthorizationFailure": "firewall",
    "AuthorizationSourceIPMismatch": "firewall",
    "AccountIsDisabled": "enabled again",
    "AuthorizationPermissionMismatch": "grant the app's identity the role",
    "AuthenticationFailed": "the key, signature or token is wrong",
    "InvalidAuthenticationInfo": "the key, signature or token is wrong",
    "KeyBasedAuthenticationNotPermitted": "takes no keys",
    "BlobUsesCustomerSpecifiedEncryption": "encrypted with a key that comes with each request",
    "KeyVaultEncryptionKeyNotFound": "key vault",
    "KeyVaultAccessTokenCannotBeAcquired": "key vault",
    "SomethingNew": "list of error codes",
    "": "list of error codes",
}


@pytest.mark.parametrize("code", REFUSALS)
def test_a_refusal_says_what_to_do_about_its_own_code(code):
    """Firewall, disabled account, missing role, wrong key, customer's key: one status, and nothing else in common."""
    fault = fault_of(403, code, "Forbidden", "read the disk")

    assert type(fault) is AccessDeniedError
    assert REFUSALS[code] in str(fault)
    others = set(REFUSALS.values()) - {REFUSALS[code]}
    assert not [words for words in others if words in str(fault).partition("(Forbidden)")[2]]


@pytest.mark.parametrize(("code", "advice"), [("BlobImmutableDueToPolicy", "legal hold"), ("BlobArchived", "archive tier")])
def test_what_an_accounts_rules_have_done_to_a_blob_is_said(code, advice):
    said = str(fault_of(409, code, "", "delete snapshot"))

    assert advice in said
    assert "list of error codes" not in said


@pytest.mark.parametrize("code", ["AuthorizationFailure", "SomethingNew", ""])
def test_a_copy_that_an_account_does_not_permit_is_no_matter_of_the_firewall_alone(code):
    """The account may permit copies from some accounts alone (allowedCopyScope): then the bytes are streamed."""
    fault = fault_of(403, code, "This request is not authorized to perform this operation.", "fetch", copies=True)

    assert type(fault) is CopySourceRefusedError
    assert "allowedCopyScope" in str(fault)
    assert "firewall" in str(fault)
    assert "COPY_MODE" in str(fault)


@pytest.mark.parametrize("code", ["AuthorizationPermissionMismatch", "AuthenticationFailed", "KeyVaultEncryptionKeyNotFound"])
def test_a_copy_without_the_right_to_write_is_denied(code):
    assert type(fault_of(403, code, "", "fetch", copies=True)) is AccessDeniedError


def test_a_stranger_is_not_told_whether_a_blob_exists():
    """The service answers 404 ResourceNotFound to a request whose authorisation was lost: the blob may well be there."""
    assert "no authorisation" in str(fault_of(404, "ResourceNotFound", "", "read"))
    assert type(fault_of(404, "ResourceNotFound", "", "read", snapshot=True)) is AccessDeniedError


def test_a_blob_under_a_customers_key_is_a_refusal_whatever_its_status():
    assert type(fault_of(409, "BlobUsesCustomerSpecifiedEncryption", "", "x")) is AccessDeniedError


@pytest.mark.parametrize(("status", "code", "kind"), CASES)
def test_every_answer_names_the_next_move(status, code, kind):
    """Something to do, or that waiting is enough."""
    said = str(fault_of(status, code, "", "read"))
    moves = (
        "temporary failure",
        "use ",
        "look ",
        "correct ",
        "delete ",
        "grant ",
        "follow ",
        "a full backup is due",
        "give ",
        "copy ",
    )

    assert any(f"; {move}" in said or f", {move}" in said or f": {move}" in said or f"and {move}" in said for move in moves), (
        said
    )


# -- no answer at all ---------------------------------------------------------------------------------------------------------


def gone(errno):
    return socket.gaierror(errno, "sig=abcdefghijklm")


def by_the_sdk(error):
    return ServiceRequestError("https://a.test/?sig=abcdefghijklm", error=error)


@pytest.mark.parametrize(
    "wrapped", [lambda error: error, by_the_sdk, lambda error: by_the_sdk(ClientConnectorDNSError(KEY, error))]
)
def test_a_host_name_that_does_not_exist_is_not_retried(wrapped):
    fault = no_answer(wrapped(gone(socket.EAI_NONAME)), "look at https://a.test/c/b")

    assert type(fault) is HostUnknownError
    assert not fault.retryable
    assert "temporary failure" not in str(fault)
    assert "no host has that name; correct" in str(fault)


@pytest.mark.parametrize("error", [gone(socket.EAI_AGAIN), ConnectionResetError("sig=abcdefghijklm"), by_the_sdk(None)])
def test_any_other_missing_answer_is_temporary(error):
    fault = no_answer(error, "look at https://a.test/c/b")

    assert type(fault) is ServiceUnavailableError
    assert "temporary failure" in str(fault)
    assert "abcdefghijklm" not in str(fault)
