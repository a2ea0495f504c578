"""The PageBlobs contract, for both implementations."""

from __future__ import annotations

import uuid
from datetime import timedelta

import pytest
from azure.core.exceptions import HttpResponseError
from azure.storage.blob.aio import BlobLeaseClient

from backup_core.domain.errors import (
    BlobChangedError,
    BlobExistsError,
    BlobMissingError,
    CopySourceRefusedError,
    DiffRefusedError,
    FencedError,
    LeaseTakenError,
    ServiceUnavailableError,
    SnapshotMissingError,
    SnapshotsPresentError,
    UnexpectedAnswerError,
)
from backup_core.domain.ranges import ByteRange
from backup_core.ports import Fence, Guard

PAGE = 512
WHOLE = ByteRange(0, 16 * PAGE)


def page(number):
    return bytes([number]) * PAGE


@pytest.fixture
async def head(ports):
    """A leased blob of 16 pages at epoch 3."""
    address, lease = ports.address("head"), str(uuid.uuid4())
    await ports.blobs.create(address, WHOLE.end, 3, {})
    await ports.blobs.acquire_lease(address, lease)
    return address, Fence(lease, 3)


async def listed(ranges):
    return [one async for one in ranges]


async def spans(ranges):
    return [(one.range.start // PAGE, one.range.end // PAGE, one.cleared) async for one in ranges]


async def test_create_describes_and_refuses_a_second(ports):
    address = ports.address("new")
    await ports.blobs.create(address, 4096, 7, {"mine": "yes"})

    found = await ports.blobs.properties(address)
    assert (found.size, found.sequence_number, found.page_blob, dict(found.metadata)) == (4096, 7, True, {"mine": "yes"})
    with pytest.raises(BlobExistsError):
        await ports.blobs.create(address, 512, 0, {})
    assert await ports.blobs.properties(address) == found


async def test_a_missing_blob_or_snapshot_has_its_own_error(ports):
    address = await ports.make("there")
    with pytest.raises(BlobMissingError):
        await ports.blobs.properties(ports.address("nowhere"))
    with pytest.raises(SnapshotMissingError):
        await ports.blobs.properties(address, "2020-01-01T00:00:00.0000000Z")
    with pytest.raises(BlobMissingError):
        await ports.blobs.acquire_lease(ports.address("nowhere"), str(uuid.uuid4()))
    assert await ports.blobs.snapshots(ports.address("nowhere")) == []


async def test_a_lease_is_exclusive_until_it_is_broken_and_released(ports):
    """Acquiring one's own lease again is success; another's is refused; broken and released, it is free."""
    address, mine, other = await ports.make("leased"), str(uuid.uuid4()), str(uuid.uuid4())
    await ports.blobs.break_lease(address)
    await ports.blobs.acquire_lease(address, mine)
    await ports.blobs.acquire_lease(address, mine)
    with pytest.raises(LeaseTakenError):
        await ports.blobs.acquire_lease(address, other)
    await ports.blobs.release_lease(address, other)
    with pytest.raises(LeaseTakenError):
        await ports.blobs.acquire_lease(address, other)
    await ports.blobs.break_lease(address)
    await ports.blobs.acquire_lease(address, other)
    await ports.blobs.release_lease(address, other)
    await ports.blobs.release_lease(address, other)
    await ports.blobs.release_lease(ports.address("nowhere"), other)
    await ports.blobs.acquire_lease(address, mine)


@pytest.mark.parametrize("ports", ["azure"], indirect=True)
async def test_a_lease_that_somebody_breaks_slowly_is_another_ones(ports):
    """For up to a minute nobody acquires it, also not its own holder; broken at once, it is free."""
    address, mine = await ports.make("leased"), str(uuid.uuid4())
    await ports.blobs.acquire_lease(address, mine)
    await BlobLeaseClient(ports.blobs._client(address)).break_lease(lease_break_period=60)
    with pytest.raises(LeaseTakenError):
        await ports.blobs.acquire_lease(address, mine)
    with pytest.raises(LeaseTakenError):
        await ports.blobs.acquire_lease(address, str(uuid.uuid4()))
    await ports.blobs.break_lease(address)
    await ports.blobs.acquire_lease(address, mine)


async def test_a_leased_blob_is_not_created_again(ports, head):
    """It exists, as one without a lease does: a repeated step finds its own. The service looks at the lease before If-None-Match."""
    address, _ = head
    source, snapshot = await ports.make_source(page(7) * 16)
    before = await ports.blobs.properties(address)
    with pytest.raises(BlobExistsError):
        await ports.blobs.create(address, 16 * PAGE, 1, {})
    with pytest.raises(BlobExistsError):
        await ports.blobs.start_copy(source, snapshot, address, {})

    assert await ports.blobs.properties(address) == before


async def test_writes_and_clears_within_the_fence(ports, head):
    address, fence = head
    await ports.write(address, 2 * PAGE, page(1) + page(2), fence)
    await ports.blobs.clear(address, ByteRange(3 * PAGE, 4 * PAGE), fence)

    assert await ports.blobs.read(address, "", WHOLE) == bytes(2 * PAGE) + page(1) + bytes(13 * PAGE)
    assert await listed(ports.blobs.allocated(address, "", WHOLE)) == [ByteRange(2 * PAGE, 3 * PAGE)]


@pytest.mark.parametrize("way", ["copy_streamed", "copy_from_url"])
async def test_pages_are_copied_to_the_same_place(ports, head, way):
    """Both ways copy the snapshot's bytes, not the source's present ones."""
    address, fence = head
    source, snapshot = await ports.make_source(b"".join(page(number) for number in range(16)))
    await ports.overwrite(source, page(99) * 16)
    await getattr(ports.blobs, way)(source, snapshot, ByteRange(3 * PAGE, 7 * PAGE), address, fence)
    await getattr(ports.blobs, way)(source, snapshot, ByteRange(3 * PAGE, 7 * PAGE), address, fence)

    expected = bytes(3 * PAGE) + b"".join(page(number) for number in range(3, 7)) + bytes(9 * PAGE)
    assert await ports.blobs.read(address, "", WHOLE) == expected


@pytest.mark.parametrize("keep_zeros", [False, True])
async def test_long_runs_of_zeros_are_cleared_where_bytes_pass(ports, keep_zeros):
    """At both ends and inside, over what was there before; a shorter run is written."""
    kib = 1024
    shape = [(0, 256), (1, 300), (0, 257), (1, 100), (0, 255), (2, 1), (0, 512)]
    content = b"".join(bytes([value]) * size * kib for value, size in shape)
    address, lease = ports.address("zeros"), str(uuid.uuid4())
    await ports.blobs.create(address, len(content), 3, {})
    await ports.blobs.acquire_lease(address, lease)
    fence, whole = Fence(lease, 3), ByteRange(0, len(content))
    await ports.write(address, 0, b"x" * len(content), fence)
    source, snapshot = await ports.make_source(content)
    for _ in range(2):
        await ports.blobs.copy_streamed(source, snapshot, whole, address, fence, keep_zeros=keep_zeros)

        assert await ports.blobs.read(address, "", whole) == content
        kept = [(0, len(content) // kib)] if keep_zeros else [(256, 556), (813, 1169)]
        expected = [ByteRange(start * kib, end * kib) for start, end in kept]
        assert await listed(ports.blobs.allocated(address, "", whole)) == expected


@pytest.mark.parametrize("way", ["copy_streamed", "copy_from_url"])
async def test_a_source_that_is_gone_writes_nothing(ports, head, way):
    address, fence = head
    source, snapshot = await ports.make_source(page(1) * 16)
    await ports.blobs.delete_snapshot(source, snapshot)
    with pytest.raises(SnapshotMissingError if way == "copy_streamed" else (CopySourceRefusedError, SnapshotMissingError)):
        await getattr(ports.blobs, way)(source, snapshot, ByteRange(0, PAGE), address, fence)

    assert await listed(ports.blobs.allocated(address, "", WHOLE)) == []


@pytest.mark.parametrize("wrong", ["lease", "older epoch", "newer epoch", "released"])
async def test_a_write_outside_the_fence_changes_nothing(ports, head, wrong):
    address, fence = head
    bad = {
        "lease": Fence(str(uuid.uuid4()), 3),
        "older epoch": Fence(fence.lease, 2),
        "newer epoch": Fence(fence.lease, 4),
        "released": fence,
    }[wrong]
    if wrong == "released":
        await ports.blobs.release_lease(address, fence.lease)
    source, snapshot = await ports.make_source(page(9) * 16)
    before = await ports.blobs.properties(address)
    for copy in (ports.blobs.copy_streamed, ports.blobs.copy_from_url):
        with pytest.raises(FencedError):
            await copy(source, snapshot, ByteRange(0, PAGE), address, bad)
    with pytest.raises(FencedError):
        await ports.blobs.clear(address, ByteRange(0, PAGE), bad)

    assert await ports.blobs.properties(address) == before


async def test_guarded_changes(ports, head):
    """Metadata, size, sequence number and snapshots need the lease and the version; what is refused has changed nothing."""
    address, fence = head
    first = (await ports.blobs.properties(address)).etag
    second = await ports.blobs.set_metadata(address, {"a": "1"}, Guard(fence.lease, first))
    third = await ports.blobs.resize(address, 32 * PAGE, Guard(fence.lease, second))
    for number in (9, 4):
        third = await ports.blobs.set_sequence_number(address, number, Guard(fence.lease, third))
        assert (await ports.blobs.properties(address)).sequence_number == number
    taken = await ports.blobs.snapshot(address, {"b": "2"}, Guard(fence.lease, third))

    assert len({first, second, third}) == 3
    assert (await ports.blobs.properties(address)).etag == third
    assert [(one.snapshot, dict(one.metadata)) for one in await ports.blobs.snapshots(address)] == [(taken, {"b": "2"})]
    for guard, error in ((Guard(fence.lease, first), BlobChangedError), (Guard(str(uuid.uuid4()), third), FencedError)):
        for change in (
            ports.blobs.set_metadata(address, {}, guard),
            ports.blobs.resize(address, PAGE, guard),
            ports.blobs.set_sequence_number(address, 5, guard),
            ports.blobs.snapshot(address, {}, guard),
        ):
            with pytest.raises(error):
                await change
    assert (await ports.blobs.properties(address)).etag == third
    assert len(await ports.blobs.snapshots(address)) == 1


@pytest.mark.parametrize(
    ("change", "value", "other"),
    [("set_metadata", {"a": "1"}, {"a": "2"}), ("resize", 32 * PAGE, 64 * PAGE), ("set_sequence_number", 9, 10)],
)
async def test_a_guarded_change_that_was_made_already(ports, head, change, value, other):
    """A repeated request whose first answer was lost succeeds at the old version, and changes nothing any more."""
    address, fence = head
    guard = Guard(fence.lease, (await ports.blobs.properties(address)).etag)
    make = getattr(ports.blobs, change)
    made = await make(address, value, guard)
    before = await ports.blobs.properties(address)

    assert await make(address, value, guard) == made
    with pytest.raises(BlobChangedError):
        await make(address, other, guard)
    assert await ports.blobs.properties(address) == before


@pytest.mark.parametrize("ports", ["azure"], indirect=True)
async def test_a_guarded_change_whose_answer_is_lost(ports, head, calm):
    """The SDK sends it again, and the service refuses that for the version the first one made."""
    address, fence = head
    for verb, change, value in (
        ("PUT metadata", "set_metadata", {"a": "1"}), ("PUT properties", "resize", 32 * PAGE),
        ("PUT properties", "set_sequence_number", 9),
    ):  # fmt: skip
        guard = Guard(fence.lease, (await ports.blobs.properties(address)).etag)
        calm.faults({"verb": verb, "loseReply": True})
        etag = await getattr(ports.blobs, change)(address, value, guard)

        assert calm.control("GET")["counts"][verb]["requests"] >= 2
        assert etag == (await ports.blobs.properties(address)).etag != guard.etag


async def test_snapshots_are_frozen_and_ordered(ports, head):
    address, fence = head
    taken = []
    for number in range(1, 5):
        await ports.write(address, 0, page(number), fence)
        taken.append(await ports.blobs.snapshot(address, {"n": str(number)}))

    assert [one.snapshot for one in await ports.blobs.snapshots(address)] == taken == sorted(taken)
    assert [await ports.blobs.read(address, one, ByteRange(0, PAGE)) for one in taken] == [page(n) for n in range(1, 5)]
    await ports.blobs.delete_snapshot(address, taken[1])
    await ports.blobs.delete_snapshot(address, taken[1])
    assert [one.snapshot for one in await ports.blobs.snapshots(address)] == [taken[0], *taken[2:]]


@pytest.mark.parametrize("snapshot", ["", "2026-01-01", "latest"])
async def test_only_a_snapshot_id_is_deleted(ports, snapshot):
    """An empty id would delete the base blob."""
    address = await ports.make("kept")
    with pytest.raises(UnexpectedAnswerError):
        await ports.blobs.delete_snapshot(address, snapshot)

    assert (await ports.blobs.properties(address)).size == 16 * PAGE


async def test_a_diff_lists_the_written_and_cleared_ranges(ports, head):
    """Written and cleared ranges between two snapshots, to the base, and inside a window."""
    address, fence = head
    await ports.write(address, 0, page(1) * 8, fence)
    first = await ports.blobs.snapshot(address, {})
    assert await spans(ports.blobs.diff(address, "", first, WHOLE)) == []
    await ports.write(address, 10 * PAGE, page(2) * 2, fence)
    await ports.blobs.clear(address, ByteRange(2 * PAGE, 4 * PAGE), fence)
    second = await ports.blobs.snapshot(address, {})
    await ports.write(address, 15 * PAGE, page(3), fence)

    assert await spans(ports.blobs.diff(address, second, first, WHOLE)) == [(2, 4, True), (10, 12, False)]
    assert await spans(ports.blobs.diff(address, "", first, WHOLE)) == [(2, 4, True), (10, 12, False), (15, 16, False)]
    assert await spans(ports.blobs.diff(address, second, first, ByteRange(3 * PAGE, 11 * PAGE))) == [
        (3, 4, True),
        (10, 11, False),
    ]


async def test_a_diff_without_its_previous_snapshot_is_refused(ports, head):
    address, _ = head
    taken = await ports.blobs.snapshot(address, {})
    await ports.blobs.delete_snapshot(address, taken)
    with pytest.raises(DiffRefusedError) as refused:
        await spans(ports.blobs.diff(address, "", taken, WHOLE))

    assert refused.value.reason == "PreviousSnapshotNotFound"


async def test_documents(ports):
    """The first one of a name stays, unless it is to be replaced."""
    assert await ports.documents.put_if_absent("a/b.json", "1") is True
    assert await ports.documents.put_if_absent("a/b.json", "2") is False

    assert await ports.documents.get("a/b.json") == "1"
    await ports.documents.put("a/b.json", "3")
    assert await ports.documents.get("a/b.json") == "3"
    assert await ports.documents.get("a/c.json") is None


async def test_documents_are_listed_and_deleted(ports):
    """By the beginning of their names; deleting what is not there is success."""
    for name in ("d/1/a.json", "d/1/b.json", "d/10/a.json", "e/1/a.json"):
        await ports.documents.put(name, "1")

    listed = [one async for one in ports.documents.listed("d/1/")]
    assert [one.name for one in listed] == ["d/1/a.json", "d/1/b.json"]
    now = await ports.catalogue.now()
    assert all(abs(one.changed - now) < timedelta(minutes=1) for one in listed)
    await ports.documents.delete("d/1/a.json")
    await ports.documents.delete("d/1/a.json")
    assert [one.name async for one in ports.documents.listed("d/")] == ["d/1/b.json", "d/10/a.json"]


async def test_a_copy_blob_to_a_new_blob(ports):
    """The snapshot's content and the metadata given; the number is the source's until it is set; a second is refused."""
    source, snapshot = await ports.make_source(page(7) * 16)
    await ports.overwrite(source, page(99) * 16)
    address, lease = ports.address("copied"), str(uuid.uuid4())
    copy_id = await ports.blobs.start_copy(source, snapshot, address, {"mine": "yes"})

    found = await ports.blobs.properties(address)
    assert (found.copy.copy_id, found.copy.status, found.size, dict(found.metadata)) == (
        copy_id, "success", 16 * PAGE, {"mine": "yes"},
    )  # fmt: skip
    assert await ports.blobs.read(address, "", WHOLE) == page(7) * 16
    with pytest.raises(BlobExistsError):
        await ports.blobs.start_copy(source, snapshot, address, {})
    await ports.blobs.abort_copy(address, copy_id)
    assert (await ports.blobs.properties(address)).copy.status == "success"
    await ports.blobs.acquire_lease(address, lease)
    await ports.blobs.set_sequence_number(address, 4, Guard(lease, (await ports.blobs.properties(address)).etag))
    found = await ports.blobs.properties(address)
    # A changed property of the blob, and the service says nothing of a concluded copy any more (Get Blob Properties, x-ms-copy-id).
    assert (found.sequence_number, found.copy) == (4, None)


async def test_somebodys_copy_over_a_blob(ports, head):
    """Content, metadata and sequence number are the source's afterwards; snapshots and lease stay.

    A leased blob requires its lease, any other blob none: a refusal has changed nothing.
    """
    address, fence = head
    source = ports.address("disk")
    await ports.blobs.create(source, WHOLE.end, 9, {"theirs": "yes"})
    await ports.overwrite(source, page(7) * 16)
    taken, kept = await ports.blobs.snapshot(source, {}), await ports.blobs.snapshot(address, {})
    before, unleased = await ports.blobs.properties(address), await ports.blobs.properties(source)
    for onto, lease in ((address, ""), (address, str(uuid.uuid4())), (source, fence.lease)):
        with pytest.raises((FencedError, HttpResponseError)) as refused:
            await ports.copy_over(source, taken, onto, lease)
        assert getattr(refused.value, "status_code", 412) == 412
    assert (await ports.blobs.properties(address), await ports.blobs.properties(source)) == (before, unleased)

    await ports.copy_over(source, taken, address, fence.lease)
    found = await ports.blobs.properties(address)
    assert (found.sequence_number, dict(found.metadata)) == (9, {"theirs": "yes"})
    assert await ports.blobs.read(address, "", WHOLE) == page(7) * 16
    assert [one.snapshot for one in await ports.blobs.snapshots(address)] == [kept]
    with pytest.raises(FencedError):
        await ports.write(address, 0, page(1), fence)
    await ports.write(address, 0, page(1), Fence(fence.lease, 9))


async def test_a_pending_copy_is_ended(ports, request):
    """While it is pending the blob exists, and nothing can be done to it; aborted, it is there without content."""
    if ports.kind == "memory":
        ports.blobs.copies_delayed = True
    else:
        request.getfixturevalue("calm").switch(copies={"mode": "hold"})
    source, snapshot = await ports.make_source(page(7) * 16)
    address = ports.address("pending")
    copy_id = await ports.blobs.start_copy(source, snapshot, address, {"mine": "yes"})
    state = (await ports.blobs.properties(address)).copy
    assert (state.status, state.done_bytes, state.total_bytes) == ("pending", 0, 16 * PAGE)
    with pytest.raises(BlobExistsError, match="copied"):
        await ports.blobs.start_copy(source, snapshot, address, {"mine": "yes"})
    with pytest.raises(ServiceUnavailableError):
        await ports.blobs.acquire_lease(address, str(uuid.uuid4()))
    await ports.blobs.abort_copy(address, copy_id)
    await ports.blobs.abort_copy(address, copy_id)
    await ports.blobs.abort_copy(ports.address("nowhere"), copy_id)

    found = await ports.blobs.properties(address)
    assert (found.copy.status, found.size, dict(found.metadata)) == ("aborted", 0, {"mine": "yes"})


async def test_a_copy_is_begun_over_a_failed_one(ports, request):
    """At its version alone: none replaces a copy in progress, a complete one, or what has been made there since."""
    held = ports.kind == "memory" or request.getfixturevalue("calm")
    source, snapshot = await ports.make_source(page(7) * 16)
    address, started = ports.address("failing"), []

    async def begin(over=""):
        started.append(await ports.blobs.start_copy(source, snapshot, address, {"mine": str(len(started))}, over=over))
        return await ports.blobs.properties(address)

    def end(status):
        if ports.kind == "memory":
            ports.blobs.end_copy(address, status)
        else:
            where = {"account": address.account.rpartition("/")[2], "container": address.container, "blob": address.name}
            held.control("POST", "copies", {**where, "end": status})

    if ports.kind == "memory":
        ports.blobs.copies_delayed = True
    else:
        held.switch(copies={"mode": "hold"})
    with pytest.raises(BlobChangedError):
        await begin('"0x1"')
    pending = await begin()
    with pytest.raises(BlobExistsError):
        await begin(pending.etag)
    end("failed")
    failed = await ports.blobs.properties(address)
    assert (failed.copy.copy_id, failed.copy.status, failed.size, dict(failed.metadata)) == (
        started[0],
        "failed",
        0,
        {"mine": "0"},
    )
    with pytest.raises(BlobExistsError):
        await begin()
    with pytest.raises(BlobChangedError):
        await begin(pending.etag)
    again = await begin(failed.etag)
    assert (again.copy.copy_id, again.copy.status, again.created) == (started[1], "pending", pending.created)
    with pytest.raises(BlobExistsError):
        await begin(failed.etag)
    end("success")
    with pytest.raises(BlobChangedError):
        await begin(failed.etag)

    found = await ports.blobs.properties(address)
    assert (found.copy.copy_id, found.copy.status, dict(found.metadata)) == (started[1], "success", {"mine": "1"})
    assert await ports.blobs.read(address, "", WHOLE) == page(7) * 16
    lease = str(uuid.uuid4())
    await ports.blobs.acquire_lease(address, lease)
    with pytest.raises(FencedError):
        await begin(found.etag)


async def test_each_folder_is_listed_once(ports):
    """Names that sort between a folder's name and its slash do not matter."""
    for name in ("vm/1/disk.vhd", "vm/2/disk.vhd", "vm-2/1/disk.vhd", "vm2/disk.vhd", "loose.vhd"):
        await ports.make(name)

    assert sorted([name async for name in ports.blobs.folders(ports.account, ports.container)]) == ["vm", "vm-2", "vm2"]
    listed = [one.name async for one in ports.blobs.listed(ports.account, ports.container, "vm/")]
    assert listed == ["vm/1/disk.vhd", "vm/2/disk.vhd"]


async def test_listings_of_blobs_and_snapshots(ports, head):
    """By prefix, with metadata; the blob itself has no snapshot id."""
    address, _ = head
    taken = await ports.blobs.snapshot(address, {"n": "1"})
    await ports.make("head2")
    await ports.make("other")
    found = [one async for one in ports.blobs.listed(address.account, address.container, "head")]

    assert {(one.name, one.snapshot, tuple(one.metadata.items())) for one in found} == {
        ("head", taken, (("n", "1"),)), ("head", "", ()), ("head2", "", ()),
    }  # fmt: skip
    assert [one.name for one in found] == sorted(one.name for one in found)
    assert [one async for one in ports.blobs.listed(address.account, address.container, "none")] == []


# -- blobs of one's own --------------------------------------------------------------------------------------------


async def test_only_ones_own_blob_is_deleted(ports, head):
    """Only a blob under the caller's lease and version is deleted, with its snapshots; a blob under another lease stays."""
    address, fence = head
    await ports.blobs.snapshot(address, {"a": "b"})
    etag = (await ports.blobs.properties(address)).etag
    with pytest.raises(FencedError):
        await ports.blobs.delete_own(address, Guard(str(uuid.uuid4()), etag))
    with pytest.raises(BlobChangedError):
        await ports.blobs.delete_own(address, Guard(fence.lease, '"0x123"'))
    assert len(await ports.blobs.snapshots(address)) == 1
    await ports.blobs.delete_own(address, Guard(fence.lease, etag))

    with pytest.raises(BlobMissingError):
        await ports.blobs.properties(address)
    await ports.blobs.delete_own(address, Guard(fence.lease, etag))


async def test_a_bare_blob_is_deleted_only_without_snapshots(ports, head):
    address, fence = head
    snapshot = await ports.blobs.snapshot(address, {"a": "b"})
    etag = (await ports.blobs.properties(address)).etag
    with pytest.raises(SnapshotsPresentError):
        await ports.blobs.delete_own(address, Guard(fence.lease, etag), bare=True)
    assert [one.snapshot for one in await ports.blobs.snapshots(address)] == [snapshot]

    await ports.blobs.delete_snapshot(address, snapshot)
    await ports.blobs.delete_own(address, Guard(fence.lease, etag), bare=True)
    with pytest.raises(BlobMissingError):
        await ports.blobs.properties(address)


async def test_an_unleased_blob_is_not_deleted(ports):
    address = await ports.make("free")
    found = await ports.blobs.properties(address)
    with pytest.raises(FencedError):
        await ports.blobs.delete_own(address, Guard(str(uuid.uuid4()), found.etag))

    assert await ports.blobs.properties(address) == found


async def test_the_check_for_the_right_to_write_changes_nothing(ports):
    address = await ports.make("here")
    before = [one async for one in ports.blobs.listed(ports.account, ports.container, "")]

    assert await ports.blobs.may_write(ports.account, ports.container) is True
    assert [one async for one in ports.blobs.listed(ports.account, ports.container, "")] == before
    assert (await ports.blobs.properties(address)).tier == ""
