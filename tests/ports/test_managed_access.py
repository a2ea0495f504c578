"""Managed disks by Azure Resource Manager: names, requests for a name that exists, and access to exports."""

from __future__ import annotations

import asyncio
import contextlib
import sys

import pytest

from backup_core.domain.errors import (
    AccessDeniedError,
    BackupError,
    BlobExistsError,
    CopySourceKindError,
    CopySourceRefusedError,
    ManagedDiskRefusedError,
    ServiceUnavailableError,
    SnapshotLimitError,
    SnapshotMissingError,
    SnapshotRateError,
    TransferDamagedError,
    UnexpectedAnswerError,
)
from backup_core.domain.naming import BlobAddress
from backup_core.domain.ranges import ByteRange
from devhost.machines import GROUP
from tests.ports.test_managed_sources import FENCE, LAST, PAGE, azure_disk, changed, listed

PART = ByteRange(0, PAGE)
PRIVATE = {"networkAccessPolicy": "AllowPrivate"}


@pytest.fixture
async def made(calm, machines, name):
    """Makes a disk with properties, and the adapters with settings, over the stand-in; counts what is granted."""
    async with contextlib.AsyncExitStack() as stack:

        async def make(properties=None, more=None, **settings):
            managed = await azure_disk(calm, machines, name, properties=properties, more=more, **settings)
            stack.push_async_callback(managed.services.close)
            stack.callback(managed.content.close)
            disks, managed.granted = managed.blobs.disks, []
            granted = disks._access._grant_access

            async def counted(door, seconds):
                managed.granted += [(at, seconds) for (_, at), one in disks._known.items() if one.id == door.id]
                return await granted(door, seconds)

            disks._access._grant_access = counted
            return managed

        yield make


async def lose_access(managed):
    """A third party ends all access to the disk's snapshots: another process, whose run is at its end."""
    grants = dict(managed.blobs.disks._access._grants)
    await managed.blobs.close_access(managed.disk)
    managed.blobs.disks._access._grants.update(grants)


@contextlib.contextmanager
def another_process(managed):
    """In it nothing is known of what this one was granted, and nothing of it afterwards."""
    grants = managed.blobs.disks._access._grants
    own = dict(grants)
    grants.clear()
    yield
    grants.clear()
    grants.update(own)


# -- snapshots ----------------------------------------------------------------------------------------------------------


async def test_the_name_is_the_runs_and_short(made, machines, name):
    managed = await made()
    await managed.take()
    (found,) = [one for one in machines.snapshots() if name in str(one)]

    assert found["name"].startswith("pk-vm-")
    assert len(found["name"]) <= 80
    assert found["tags"] == managed.marks()
    assert found["properties"]["incremental"] is True


async def test_tags_that_a_policy_adds_do_not_make_a_snapshot_a_strangers(made, machines):
    managed = await made()
    machines.switch(policy_tags={"costCenter": "42"})
    taken = [await managed.take(), await managed.take()]
    listed_ = await managed.blobs.snapshots(managed.disk)

    assert [(one.snapshot, one.named) for one in listed_] == [(one, True) for one in taken]


async def test_a_snapshot_has_its_disks_tags_beside_the_apps_own(made, machines, name):
    """Azure policies refuse what has no tag of theirs; a disk that exists has it. What Azure would refuse is left out."""
    theirs = {"costCenter": "42", "pagekeeper_run": "another", "pagekeeper-run": "a restore", "azureThing": "reserved"}
    many = {f"t{number:02}": "x" for number in range(50)}
    managed = await made(more={"tags": {**theirs, **many}})
    machines.switch(required_tags=["CostCenter"])
    await managed.take()
    (found,) = [one for one in machines.snapshots() if name in str(one)]

    assert managed.marks().items() <= found["tags"].items()
    assert found["tags"]["costCenter"] == "42"
    assert not {"pagekeeper-run", "azureThing"} & found["tags"].keys()
    assert len(found["tags"]) == 50


async def test_a_policy_that_requires_a_tag_which_the_disk_lacks(made, machines, name):
    managed = await made()
    machines.switch(required_tags=["costCenter"])
    with pytest.raises(ManagedDiskRefusedError, match=r'Tag "costCenter" is missing.*exemption made, .*give the disk that tag'):
        await managed.take()

    assert not [one for one in machines.snapshots() if name in str(one)]


async def test_two_deliveries_that_saw_none_take_one(made):
    """Both deliveries request the same name: the second takes nothing, and finds the first's snapshot."""
    managed = await made()
    listed_, seen = managed.blobs.disks._listed, asyncio.Barrier(2)

    async def together(disk):
        found = await listed_(disk)
        await seen.wait()
        return found

    managed.blobs.disks._listed = together
    first, second = await asyncio.gather(managed.take(), managed.take())

    assert first == second


async def test_a_snapshot_of_another_time_under_the_name_is_not_taken_for_the_runs(made):
    """A request for a name that exists succeeds and takes nothing: the snapshot's time shows it."""
    managed = await made()
    with pytest.raises(UnexpectedAnswerError, match="timeCreated: expected none before 2199"):
        await managed.take("vm.21990101T000000Z.timer")


async def test_a_snapshot_made_anew_under_its_name_is_not_read_for_the_former(made):
    """A late request for it was made after its deletion: access is granted by name, and would be to that one."""
    managed = await made()
    managed.write(0, 3)
    taken = await managed.take()
    known = dict(managed.blobs.disks._known)
    await managed.blobs.delete_snapshot(managed.disk, taken)
    managed.write(0, 4)
    later = await managed.take()
    managed.blobs.disks._known.update(known)

    with pytest.raises(SnapshotMissingError):
        await managed.blobs.read(managed.disk, taken, PART)
    assert await managed.blobs.read(managed.disk, later, PART) == b"\4" * PAGE


async def test_a_failed_snapshots_name_is_not_used_again(made, machines):
    """The limit of snapshots leaves a failed one behind, which is never listed or read."""
    managed = await made()
    machines.switch(snapshots_max=0)
    with pytest.raises(SnapshotLimitError, match="500 incremental snapshots"):
        await managed.take()
    assert await managed.blobs.snapshots(managed.disk) == []
    machines.switch(snapshots_max=500)
    taken = await managed.take()

    assert [one.snapshot for one in await managed.blobs.snapshots(managed.disk)] == [taken]
    names = {one["name"] for one in machines.snapshots() if managed.disk.name in str(one)}
    assert len(names) == 2
    (failed,) = await managed.blobs.failed_snapshots(managed.disk)
    for name in names:
        await managed.blobs.delete_failed_snapshot(managed.disk, name)
    await managed.blobs.delete_failed_snapshot(managed.disk, failed.name)
    assert {one["name"] for one in machines.snapshots() if managed.disk.name in str(one)} == names - {failed.name}


async def test_a_locked_snapshot_is_kept_and_the_setting_against_it_named(made, machines):
    """A lock on the disk's group (CanNotDelete) keeps all its snapshots: another group for them has none."""
    managed = await made()
    taken = await managed.take()
    machines.faults({"method": "DELETE", "path": "/snapshots/", "status": 409, "code": "ScopeLocked"})
    with pytest.raises(ManagedDiskRefusedError, match=r"a lock forbids it.*SNAPSHOT_GROUP"):
        await managed.blobs.delete_snapshot(managed.disk, taken)

    assert [one.snapshot for one in await managed.blobs.snapshots(managed.disk)] == [taken]


async def test_a_slow_snapshot_is_requested_again(made, machines, monkeypatch):
    """The request has the same name: no other snapshot is taken, and none without a moment is used."""
    managed = await made()
    monkeypatch.setattr(sys.modules[type(managed.blobs.disks).__module__], "WAIT_SECONDS", 0.2)
    held = {"method": "PUT", "path": "/snapshots/", "operation": True, "held": True, "times": 1}
    machines.faults(held)
    for _ in range(2):
        with pytest.raises(ServiceUnavailableError, match="in progress") as caught:
            await managed.take()
        assert caught.value.retryable
        assert await managed.blobs.snapshots(managed.disk) == []
    machines.faults()
    async with asyncio.timeout(30):
        while not (taken := await managed.blobs.snapshots(managed.disk)):  # noqa: ASYNC110  nobody tells
            await asyncio.sleep(0.01)

    assert [one.metadata for one in taken] == [managed.marks()]
    assert len([one for one in machines.snapshots() if managed.disk.name in str(one)]) == 1


async def test_too_many_in_five_minutes_are_waited_for(made, machines):
    managed = await made()
    machines.switch(snapshots_per_five_minutes=1)
    await managed.take()
    with pytest.raises(SnapshotRateError) as caught:
        await managed.take()

    assert caught.value.retryable
    assert caught.value.wait_seconds
    assert "were taken within 5 minutes: try again later" in str(caught.value), "what Azure says of it"


async def test_a_quota_that_is_used_up_is_not_waited_for(made, machines):
    """Azure refuses it with the code of the rate; an operator has to ask for more."""
    managed = await made()
    words = "Operation could not be completed as it results in exceeding approved Snapshots Quota."
    machines.faults({"method": "PUT", "path": "/snapshots/", "status": 409, "code": "OperationNotAllowed", "message": words})
    with pytest.raises(ManagedDiskRefusedError, match="ask for more quota in that region"):
        await managed.take()


@pytest.mark.parametrize(
    ("status", "code", "error"),
    [
        (403, "RequestDisallowedByPolicy", ManagedDiskRefusedError),
        (403, "AuthorizationFailed", AccessDeniedError),
        (400, "InvalidParameter", ManagedDiskRefusedError),
        (429, "TooManyRequests", ServiceUnavailableError),
        (404, "ResourceGroupNotFound", BackupError),
    ],
)
async def test_a_refused_snapshot_is_reported_with_its_reason(made, machines, status, code, error):
    managed = await made()
    fault = {"method": "PUT", "path": "/snapshots/", "status": status, "code": code, "times": 9, "retry_after": "60"}
    machines.faults(fault)
    with pytest.raises(error) as caught:
        await managed.take()

    assert code in str(caught.value)
    assert managed.disk.name in str(caught.value)


async def test_snapshots_are_exported_from_where_their_disk_is(made, machines, name):
    managed = await made({**PRIVATE, "diskAccessId": f"{GROUP}/providers/Microsoft.Compute/diskAccesses/a"})
    await managed.take()
    (found,) = [one["properties"] for one in machines.snapshots() if name in str(one)]

    assert (found["networkAccessPolicy"], found["diskAccessId"].rpartition("/")[2]) == ("AllowPrivate", "a")


async def test_a_disk_access_of_another_group_takes_a_right_there(made, machines):
    """The refusal names the action and the resource, and nothing was taken."""
    far = f"{GROUP}-hub/providers/Microsoft.Compute/diskAccesses/a"
    managed = await made({**PRIVATE, "diskAccessId": far})
    with pytest.raises(AccessDeniedError, match=f"grant the app's identity Microsoft.Compute/diskAccesses/read on {far}"):
        await managed.take()

    assert not [one for one in machines.snapshots() if managed.disk.name in str(one)]


async def test_the_snapshot_group_keeps_them(made, machines, name):
    group = "/subscriptions/11111111-2222-3333-4444-555555555555/resourceGroups/snaps"
    machines.switch(elsewhere=["snaps"])
    managed = await made(SNAPSHOT_GROUP=group)
    taken = await managed.take()
    (found,) = [one for one in machines.snapshots() if name in str(one)]

    assert "/resourcegroups/snaps/" in found["id"].lower()
    assert [one.snapshot for one in await managed.blobs.snapshots(managed.disk)] == [taken]


async def test_a_snapshot_that_is_filled_in_the_background(made, machines):
    managed = await made(more={"sku": {"name": "PremiumV2_LRS"}})
    machines.switch(fill_step=0)
    taken = await managed.take()
    assert (await managed.blobs.properties(managed.disk, taken)).percent == 0
    machines.switch(fill_step=60)
    looks = [(await managed.blobs.properties(managed.disk, taken)).percent for _ in range(2)]

    assert looks == [60, 100]
    assert len(await managed.blobs.read(managed.disk, taken, PART)) == PAGE


async def test_a_snapshot_that_azure_gives_up_filling(made, machines):
    managed = await made(more={"sku": {"name": "UltraSSD_LRS"}})
    taken = await managed.take()
    (found,) = [one["id"] for one in machines.snapshots() if managed.disk.name in str(one)]
    machines.fill(found, 30, "the source disk was resized")
    seen = await managed.blobs.properties(managed.disk, taken)

    assert (seen.percent, seen.failure) == (30, "the source disk was resized")


# -- access --------------------------------------------------------------------------------------------------------------


async def test_access_is_granted_once_for_many_readers(made):
    managed = await made()
    taken = await managed.take()
    await asyncio.gather(*(managed.blobs.read(managed.disk, taken, PART) for _ in range(8)))

    assert managed.granted == [(taken, 7200)]


async def test_access_is_granted_anew_at_half_of_its_time(made):
    managed = await made(SNAPSHOT_ACCESS_SECONDS="1000")
    seconds = [100.0]
    managed.blobs.disks._access._monotonic = lambda: seconds[0]
    taken = await managed.take()
    for now, grants in ((100.0, 1), (599.0, 1), (600.0, 2), (1099.0, 2), (1100.0, 3)):
        seconds[0] = now
        await managed.blobs.read(managed.disk, taken, PART)

        assert managed.granted == [(taken, 1000)] * grants


@pytest.mark.parametrize("extends", [True, False])
async def test_access_that_somebody_ended_is_opened_once_more(made, machines, extends):
    """Every kind of read continues."""
    machines.switch(grant_extends=extends)
    managed = await made()
    managed.write(0, 1)
    base = await managed.take()
    managed.write(0, 2)
    taken, head = await managed.take(), await managed.head()
    readings = [
        lambda: managed.blobs.read(managed.disk, taken, PART),
        lambda: listed(managed.blobs, managed.disk, taken),
        lambda: changed(managed.blobs, managed.disk, taken, base),
        lambda: managed.blobs.copy_streamed(managed.disk, taken, PART, head, FENCE),
        lambda: managed.blobs.copy_from_url(managed.disk, taken, PART, head, FENCE),
    ]
    for reading in readings:
        before = await reading()
        await lose_access(managed)

        assert await reading() == before


async def test_a_copy_that_is_begun_again_opens_nothing(made):
    """Another grant may end the access by which the pending copy reads."""
    managed = await made()
    taken, destination = await managed.take(), BlobAddress(managed.backup, managed.container, "vm/whole.vhd")
    await managed.blobs.start_copy(managed.disk, taken, destination, {})
    before = list(managed.granted)
    with another_process(managed), pytest.raises(BlobExistsError):
        await managed.blobs.start_copy(managed.disk, taken, destination, {})

    assert len(before) == 1
    assert managed.granted == before


async def test_a_copy_whose_access_another_process_ended_fails_and_is_begun_over_itself(made, machines, calm):
    """The second process opens the snapshot while the first one's copy reads by its own access. What it then finds is a copy in
    progress, and no other is begun; the failed one is replaced at its version, by access that is opened anew.
    """
    machines.switch(grant_extends=False)
    calm.switch(copies={"mode": "hold"})
    managed = await made()
    managed.write(0, 8)
    taken, at = await managed.take(), BlobAddress(managed.backup, managed.container, "vm/whole.vhd")
    where = {"account": at.account.rpartition("/")[2], "container": at.container, "blob": at.name}
    first = await managed.blobs.start_copy(managed.disk, taken, at, {"mine": "yes"})
    with another_process(managed):
        await managed.blobs.read(managed.disk, taken, PART)
        with pytest.raises(BlobExistsError):
            await managed.blobs.start_copy(managed.disk, taken, at, {"mine": "yes"})
    calm.control("POST", "copies", {**where, "end": "success"})
    failed = await managed.blobs.properties(at)
    assert (failed.copy.copy_id, failed.copy.status, failed.size) == (first, "failed", 0)

    second = await managed.blobs.start_copy(managed.disk, taken, at, {"mine": "yes"}, over=failed.etag)
    with another_process(managed), pytest.raises(BlobExistsError):
        await managed.blobs.start_copy(managed.disk, taken, at, {"mine": "yes"}, over=failed.etag)
    calm.control("POST", "copies", {**where, "end": "success"})
    found = await managed.blobs.properties(at)
    assert (found.copy.copy_id, found.copy.status, dict(found.metadata)) == (second, "success", {"mine": "yes"})
    assert await managed.blobs.read(at, "", PART) == b"\x08" * PAGE


async def test_a_process_opens_a_snapshot_once_for_all_its_copies(made):
    """Two deliveries that both find no copy yet: the second must not end what the first has just opened."""
    managed = await made()
    taken = await managed.take()
    for name in ("vm/one.vhd", "vm/two.vhd"):
        await managed.blobs.start_copy(managed.disk, taken, BlobAddress(managed.backup, managed.container, name), {})
    await managed.blobs.read(managed.disk, taken, PART)

    assert len(managed.granted) == 1


async def test_many_readers_of_a_lost_access_open_it_once(made):
    managed = await made()
    taken = await managed.take()
    await managed.blobs.read(managed.disk, taken, PART)
    await lose_access(managed)
    await asyncio.gather(*(managed.blobs.read(managed.disk, taken, PART) for _ in range(8)))

    assert len(managed.granted) == 2


@pytest.mark.parametrize("code", ["AuthenticationFailed", "AuthorizationFailure"])
async def test_a_reader_that_is_refused_twice_fails_visibly(made, calm, code):
    """For good, unless it is its signature that is refused: another process may have been granted access meanwhile."""
    managed = await made()
    taken = await managed.take()
    calm.faults({"verb": "GET blob", "url": "/md-local/", "status": 403, "code": code, "times": 9})
    with pytest.raises(AccessDeniedError) as caught:
        await managed.blobs.read(managed.disk, taken, PART)

    assert len(managed.granted) == 2
    assert "sig=" not in str(caught.value)
    assert str(managed.disk) in str(caught.value)
    assert caught.value.retryable == (code == "AuthenticationFailed")


async def test_a_snapshot_that_is_gone_is_not_opened_again(made):
    managed = await made()
    taken = await managed.take()
    await managed.blobs.read(managed.disk, taken, PART)
    grants, known = dict(managed.blobs.disks._access._grants), dict(managed.blobs.disks._known)
    await managed.blobs.delete_snapshot(managed.disk, taken)
    managed.blobs.disks._access._grants.update(grants)
    managed.blobs.disks._known.update(known)
    with pytest.raises(SnapshotMissingError):
        await managed.blobs.read(managed.disk, taken, PART)


async def test_reads_continue_after_a_siblings_deletion_ended_their_access(made, machines):
    managed = await made()
    former, taken = await managed.take(), await managed.take()
    await managed.blobs.read(managed.disk, taken, PART)
    machines.switch(siblings_denied=True)
    await managed.blobs.delete_snapshot(managed.disk, former)

    assert len(await managed.blobs.read(managed.disk, taken, PART)) == PAGE
    assert len(managed.granted) == 2


async def test_nothing_is_sent_to_a_host_that_is_not_azures(made, calm):
    """The error names no more of the address than the host."""
    managed = await made(EXPORT_HOSTS="md-*.blob.storage.azure.net")
    taken = await managed.take()
    calm.reset()
    with pytest.raises(UnexpectedAnswerError, match="is not one of the setting EXPORT_HOSTS") as caught:
        await managed.blobs.read(managed.disk, taken, PART)

    assert "sig=" not in str(caught.value)
    assert calm.counts() == {}


async def test_only_this_deployments_access_is_ended(made):
    """Access that another deployment, or another tool, has opened is left open."""
    managed = await made()
    taken = await managed.take()
    stranger = await managed.blobs.snapshot(managed.disk, {"made": "by hand"})
    for one in (taken, stranger):
        await managed.blobs.read(managed.disk, one, PART)
    await managed.blobs.close_access(managed.disk)

    assert managed.open == 1


@pytest.mark.parametrize("code", ["AuthorizationFailed", "TooManyRequests"])
async def test_access_that_cannot_be_ended_is_an_error(made, machines, code):
    managed = await made()
    taken = await managed.take()
    await managed.blobs.read(managed.disk, taken, PART)
    status = 403 if code == "AuthorizationFailed" else 429
    machines.faults({"method": "POST", "path": "endGetAccess", "status": status, "code": code, "times": 9, "retry_after": "60"})
    with pytest.raises(AccessDeniedError if status == 403 else ServiceUnavailableError):
        await managed.blobs.close_access(managed.disk)


@pytest.mark.parametrize("method", ["POST", "DELETE"])
async def test_a_request_whose_operation_azure_does_not_know_is_not_taken_for_done(made, machines, method):
    """Azure answers so for an operation that it has just accepted. The snapshot is there, and perhaps open."""
    managed = await made()
    taken = await managed.take()
    if method == "POST":
        await managed.blobs.read(managed.disk, taken, PART)
    machines.faults(
        {"method": method, "path": "/snapshots/", "code": "InternalError", "operation": True},
        {"method": "GET", "path": "/DiskOperations/", "status": 404, "code": "ResourceNotFound"},
    )
    act = managed.blobs.close_access(managed.disk) if method == "POST" else managed.blobs.delete_snapshot(managed.disk, taken)
    with pytest.raises(ServiceUnavailableError, match="temporary failure"):
        await act

    assert await managed.blobs.snapshots(managed.disk)
    await managed.blobs.delete_snapshot(managed.disk, taken)
    assert (await managed.blobs.snapshots(managed.disk), managed.open) == ([], 0)


async def test_an_open_snapshot_that_is_gone_once_its_end_was_accepted_is_closed(made, machines):
    managed = await made()
    taken = await managed.take()
    await managed.blobs.read(managed.disk, taken, PART)
    machines.faults({"method": "POST", "path": "endGetAccess", "code": "ResourceNotFound", "operation": True, "after": True})
    await managed.blobs.close_access(managed.disk)

    assert managed.open == 0


async def test_a_private_export_is_streamed(made):
    """The service copies nothing from a private export, whoever requests it: the request is not repeated."""
    managed = await made(PRIVATE)
    managed.write(0, 3)
    taken, head = await managed.take(), await managed.head()
    with pytest.raises(CopySourceKindError) as caught:
        await managed.blobs.copy_from_url(managed.disk, taken, PART, head, FENCE)
    await managed.blobs.copy_streamed(managed.disk, taken, PART, head, FENCE)

    assert isinstance(caught.value, CopySourceRefusedError)
    assert len(managed.granted) == 1
    assert await managed.blobs.read(head, "", PART) == b"\3" * PAGE


# -- what the service may do in either way ------------------------------------------------------------------------------


@pytest.mark.parametrize("page_size", ["true", "false"])
async def test_listings_that_refuse_a_page_size(made, calm, page_size):
    calm.switch(exports={"maxresults": "refused"})
    managed = await made(EXPORT_MAXRESULTS=page_size)
    base, taken = await managed.take(), await managed.take()
    if page_size == "true":
        with pytest.raises(BackupError):
            await changed(managed.blobs, managed.disk, taken, base)
    else:
        assert await changed(managed.blobs, managed.disk, taken, base) == []


@pytest.mark.parametrize("reported", [True, False])
async def test_a_footer_is_reported_once_whether_or_not_the_service_reports_it(made, machines, calm, reported):
    calm.switch(exports={"footerInDiff": reported})
    machines.switch(footer="differs")
    managed = await made()
    base, taken = await managed.take(), await managed.take()

    assert [(one.range.start // PAGE, one.cleared) for one in await changed(managed.blobs, managed.disk, taken, base)] == [
        (LAST, False)
    ]


async def test_an_inherited_checksum_is_not_believed_and_the_ranges_own_is(made, calm, monkeypatch):
    managed = await made()
    managed.write(0, 3)
    taken = await managed.take()
    assert await managed.blobs.read(managed.disk, taken, PART) == b"\3" * PAGE
    calm.reset()
    managed.blobs._data._transport._monotonic = iter(range(0, 100_000, 100)).__next__
    page_data = sys.modules[type(managed.blobs._data).__module__]
    monkeypatch.setattr(page_data, "_md5", lambda _: b"another")
    with pytest.raises(TransferDamagedError):
        await managed.blobs.read(managed.disk, taken, PART)


@pytest.mark.parametrize("given", [True, False])
async def test_a_ranges_checksum_is_left_out_where_it_is_refused(made, calm, given):
    """The checksum is requested once; the content read is the same."""
    managed = await made()
    managed.write(0, 3)
    taken = await managed.take()
    calm.reset()
    calm.switch(exports={"rangeMd5": given})
    for number in range(1, 4):
        assert await managed.blobs.read(managed.disk, taken, PART) == b"\3" * PAGE
        assert calm.counts()["GET blob"]["requests"] == number + (not given)
