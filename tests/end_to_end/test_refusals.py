"""Refused diffs and snapshots: each answer of the service has its own consequence, and nothing else changes."""

from __future__ import annotations

import pytest

from devhost.platform import RunFailedError
from tests.disk import PAGE

REFUSALS = [
    (409, "BlobOverwritten"),
    (409, "PreviousSnapshotNotFound"),
    (400, "PreviousSnapshotCannotBeNewer"),
    (409, "PreviousSnapshotOperationNotSupported"),
    (409, "BlobGenerationMismatch"),
]


@pytest.fixture
def backed_up(disk):
    """A disk with one restore point and a change."""
    disk.write(0, b"\1" * PAGE * 4)
    disk.back_up()
    disk.write(PAGE, b"\2" * PAGE)
    return disk


@pytest.mark.parametrize(("status", "code"), REFUSALS)
def test_a_refused_diff_is_a_full_backup(backed_up, calm, status, code):
    """The full backup begins a new generation and records the reason; it is never taken for "nothing changed"."""
    calm.faults({"verb": "GET pagelist", "url": "prevsnapshot", "status": status, "code": code})
    run = backed_up.back_up()

    assert (run["kind"], run["reason"]) == ("full", f"the service refused the diff: {code}")
    newest, first = backed_up.points()
    assert newest["generation"] > first["generation"]
    backed_up.check_every_point()


@pytest.mark.parametrize(("status", "code"), [(409, "SystemInUse"), (500, "OperationTimedOut"), (503, "ServerBusy")])
def test_a_request_to_a_busy_service_is_retried(backed_up, calm, status, code):
    calm.faults({"verb": "GET pagelist", "url": "prevsnapshot", "status": status, "code": code, "times": 2})

    assert backed_up.back_up()["kind"] == "incremental"
    backed_up.check_every_point()


@pytest.mark.parametrize(
    ("status", "code"), [(409, "SomethingNew"), (400, "InvalidHeaderValue"), (403, "AuthorizationFailure")]
)
def test_an_unknown_answer_is_a_visible_failure(backed_up, calm, status, code):
    """There is no full backup and no empty diff: the run fails and reports the answer; points and head are as they were."""
    before = backed_up.points()
    calm.faults({"verb": "GET pagelist", "url": "prevsnapshot", "status": status, "code": code, "times": 9})
    with pytest.raises(RunFailedError, match=f"{status} {code}"):
        backed_up.back_up()
    assert backed_up.points() == before
    calm.reset()

    assert backed_up.back_up()["kind"] == "incremental"
    backed_up.check_every_point()


def test_a_premium_blob_with_a_hundred_snapshots_fails_visibly(backed_up, calm):
    """The error says what to do; points are as they were."""
    before = backed_up.points()
    calm.faults({"verb": "PUT snapshot", "url": backed_up.name, "status": 409, "code": "SnapshotCountExceeded"})
    with pytest.raises(RunFailedError, match=r"SnapshotLimit.*delete those nobody needs"):
        backed_up.back_up()

    assert backed_up.points() == before
    assert backed_up.back_up()["kind"] == "incremental"


def test_a_premium_snapshot_that_cannot_be_read_is_reported_as_such(calm, streaming, name):
    """The error is not that of a broken transfer."""
    from tests.disk import Disk  # noqa: PLC0415

    disk = Disk(streaming, name, 1024 * 1024).protect()
    disk.write(0, b"\1" * PAGE)
    calm.faults({"verb": "GET blob", "url": f"{name}.vhd", "status": 400, "code": "InvalidOperation", "times": 9})
    with pytest.raises(RunFailedError, match=r"SnapshotUnreadable.*does not serve reads of snapshots"):
        disk.back_up()

    assert disk.points() == []
    disk.service.close()
