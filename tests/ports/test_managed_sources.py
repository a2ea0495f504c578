"""Managed disks as sources: the PageBlobs contract, in memory and by snapshots and exports of the stand-ins."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from azure.storage.blob import BlobClient

from backup_core import bootstrap
from backup_core.domain.errors import (
    BlobMissingError,
    DiffRefusedError,
    FencedError,
    ManagedDiskRefusedError,
    SnapshotMissingError,
    UnexpectedAnswerError,
)
from backup_core.domain.identity import Deployment
from backup_core.domain.metadata import Site, source_snapshot_metadata
from backup_core.domain.naming import BlobAddress, parse_source
from backup_core.domain.ranges import ByteRange, DiffRange
from backup_core.ports import Fence
from bench.services import settings_for
from devhost.machines import GROUP, disk_id
from tests.doubles.page_blobs import MemoryPageBlobs
from tests.doubles.world import InMemoryServices

PAGE, MIB = 512, 1024 * 1024
RUN = "vm.20260101T000000Z.timer"


@dataclass
class Managed:
    """A managed disk of a MiB, and its guest."""

    kind: str
    blobs: object
    disk: object
    machines: object
    content: object
    """The page blob that a guest of the stand-in writes to."""
    backup: str
    container: str
    deployment: Deployment

    def marks(self, run=RUN):
        return source_snapshot_metadata(Site(self.deployment, self.disk), "vm", run)

    async def take(self, run=RUN):
        return await self.blobs.snapshot(self.disk, self.marks(run))

    def write(self, page, *pages):
        """Write pages given as a byte value, or None to clear."""
        if self.kind == "memory":
            self.blobs.poke(self.disk, page, [None if one is None else bytes([one]) * PAGE for one in pages])
            return
        for at, one in enumerate(pages, page):
            if one is None:
                self.content.clear_page(at * PAGE, PAGE)
            else:
                self.content.upload_page(bytes([one]) * PAGE, at * PAGE, PAGE)

    def grow(self, size):
        if self.kind == "memory":
            self.blobs.grow_disk(self.disk, size)
        else:
            self.machines.grow_disk(self.disk.id, size)

    def remake(self):
        """Another disk by the same name."""
        if self.kind == "memory":
            self.blobs._world.tick()
            self.blobs.put_disk(self.disk, MIB)
        else:
            self.machines.make_disk(self.disk.name, data_bytes=MIB)

    @property
    def open(self):
        """The number of open snapshots of the disk."""
        if self.kind == "memory":
            return len(self.blobs.open)
        of_disk = {one["id"].lower() for one in self.machines.snapshots() if self.disk.name in str(one).lower()}
        return len(of_disk & set(self.machines.open()))

    async def head(self, size=MIB + PAGE):
        made = BlobAddress(self.backup, self.container, "vm/disk.vhd")
        await self.blobs.create(made, size, 1, {})
        await self.blobs.acquire_lease(made, FENCE.lease)
        return made


FENCE = Fence("11111111-2222-3333-4444-555555555555", 1)


@pytest.fixture(params=["memory", "azure"])
async def managed(request, name):
    if request.param == "memory":
        blobs = MemoryPageBlobs(InMemoryServices())
        disk = parse_source(disk_id(name), (), (GROUP.lower(),))
        blobs.put_disk(disk, MIB)
        yield Managed("memory", blobs, disk, None, None, "https://backup.test", "heads", Deployment("backup/pagekeeper"))
        return
    storage, machines = request.getfixturevalue("calm"), request.getfixturevalue("machines")
    made = await azure_disk(storage, machines, name)
    yield made
    made.content.close()
    await made.services.close()


async def azure_disk(storage, machines, name, size=MIB, properties=None, more=None, **settings):
    """A disk of the stand-in, and the adapters over it."""
    own = {"HEADS_CONTAINER": name, "PLANS_CONTAINER": f"{name}p", "CATALOGUE_TABLE": name}
    clouds = {"ARM_ENDPOINT": machines.endpoint, "DISK_GROUPS": GROUP, "EXPORT_HOSTS": "127.0.0.1"}
    services = bootstrap.build(settings_for(storage, **{**own, **clouds, **settings}))
    await services.ready()
    disk = services.api.tools.source(machines.make_disk(name, data_bytes=size, properties=properties, **(more or {})))
    content = BlobClient.from_blob_url(machines.content(disk.id), credential=storage.exports.credential)
    tools = services.api.tools
    made = Managed("azure", tools.blobs, disk, machines, content, storage.backup.blobs, name, tools.deployment)
    made.services = services
    return made


async def listed(blobs, disk, snapshot, window=None):
    return [one async for one in blobs.allocated(disk, snapshot, window or ByteRange(0, MIB + PAGE))]


async def changed(blobs, disk, snapshot, previous, window=None):
    return [one async for one in blobs.diff(disk, snapshot, previous, window or ByteRange(0, MIB + PAGE))]


def pages(first, last, *, cleared=False):
    return DiffRange(ByteRange(first * PAGE, last * PAGE), cleared)


LAST = MIB // PAGE


async def test_a_disk_and_its_snapshot_as_they_are(managed):
    """Both as the VHD that is exported: the disk's bytes, and a footer."""
    taken = await managed.take()
    live, frozen = await managed.blobs.properties(managed.disk), await managed.blobs.properties(managed.disk, taken)

    assert (live.size, live.page_blob) == (frozen.size, frozen.page_blob) == (MIB + PAGE, True)
    assert frozen.metadata == managed.marks()
    assert (frozen.percent, frozen.failure) == (100, "")
    assert managed.open == 0, "who only looks opens nothing"


async def test_a_missing_disk_or_snapshot_has_its_own_error(managed, name):
    gone = parse_source(disk_id(f"{name}-gone"), (), (GROUP.lower(),))
    with pytest.raises(BlobMissingError):
        await managed.blobs.properties(gone)
    with pytest.raises(BlobMissingError):
        await managed.blobs.snapshot(gone, managed.marks())
    with pytest.raises(SnapshotMissingError):
        await managed.blobs.properties(managed.disk, "2026-01-01T00:00:00.0000000Z")
    with pytest.raises(SnapshotMissingError):
        await managed.blobs.read(managed.disk, "2026-01-01T00:00:00.0000000Z", ByteRange(0, PAGE))
    assert await managed.blobs.snapshots(gone) == []


async def test_snapshots_are_frozen_ordered_and_another_each(managed):
    managed.write(0, 1)
    first = await managed.take()
    managed.write(0, 2)
    second = await managed.take()

    assert [(one.snapshot, one.metadata) for one in await managed.blobs.snapshots(managed.disk)] == [
        (first, managed.marks()),
        (second, managed.marks()),
    ]
    assert first < second
    assert await managed.blobs.read(managed.disk, first, ByteRange(0, PAGE)) == b"\1" * PAGE
    assert await managed.blobs.read(managed.disk, second, ByteRange(0, PAGE)) == b"\2" * PAGE


async def test_a_disk_that_was_not_uploaded_is_never_opened_itself(managed):
    """Neither to be read nor to be written: it may be a machine's tomorrow."""
    with pytest.raises(ManagedDiskRefusedError, match="expected one made by Upload"):
        await managed.blobs.read(managed.disk, "", ByteRange(0, PAGE))
    with pytest.raises(ManagedDiskRefusedError):
        await listed(managed.blobs, managed.disk, "")
    with pytest.raises(FencedError):
        await managed.blobs.clear(managed.disk, ByteRange(0, PAGE), FENCE)
    assert managed.open == 0


async def test_the_footer_is_listed_as_allocated(managed):
    managed.write(3, 7, 7)
    taken = await managed.take()

    assert await listed(managed.blobs, managed.disk, taken) == [
        ByteRange(3 * PAGE, 5 * PAGE),
        ByteRange(LAST * PAGE, (LAST + 1) * PAGE),
    ]
    assert await listed(managed.blobs, managed.disk, taken, ByteRange(0, 4 * PAGE)) == [ByteRange(3 * PAGE, 4 * PAGE)]
    assert await listed(managed.blobs, managed.disk, taken, ByteRange(MIB, MIB + PAGE)) == [ByteRange(MIB, MIB + PAGE)]
    assert (await managed.blobs.read(managed.disk, taken, ByteRange(MIB, MIB + PAGE))).startswith(b"conectix")


async def test_a_diff_lists_the_written_and_cleared_ranges(managed):
    """Written and cleared ranges interleaved, cut at the window, and nothing of a footer that is the same."""
    managed.write(0, 1, 1, 1, 1)
    base = await managed.take()
    managed.write(1, 2, None, 2)
    taken = await managed.take()

    found = await changed(managed.blobs, managed.disk, taken, base)
    assert found == [pages(1, 2), pages(2, 3, cleared=True), pages(3, 4)]
    assert await changed(managed.blobs, managed.disk, taken, base, ByteRange(2 * PAGE, MIB)) == found[1:]
    assert await changed(managed.blobs, managed.disk, taken, base, ByteRange(8 * PAGE, MIB + PAGE)) == []
    with pytest.raises(DiffRefusedError):
        await changed(managed.blobs, managed.disk, taken, "2026-01-01T00:00:00.0000000Z")


async def test_a_footer_that_differs_is_in_the_diff_whatever_the_service_says(managed):
    base = await managed.take()
    if managed.kind == "memory":
        managed.blobs.disks[managed.disk].pages[LAST] = b"conectix".ljust(PAGE, b"-")
    else:
        managed.machines.switch(footer="differs")
    taken = await managed.take()

    assert await changed(managed.blobs, managed.disk, taken, base) == [pages(LAST, LAST + 1)]
    assert await changed(managed.blobs, managed.disk, taken, base, ByteRange(0, MIB)) == []


async def test_a_disk_that_has_grown(managed):
    """The former footer's place has data now, whatever the service says; the pages after it are allocated or zero."""
    managed.write(1, 5)
    base = await managed.take()
    managed.grow(2 * MIB)
    managed.write(LAST + 8, 9)
    taken = await managed.take()

    assert await changed(managed.blobs, managed.disk, taken, base) == [pages(LAST, LAST + 1)]
    assert await managed.blobs.read(managed.disk, taken, ByteRange(MIB, MIB + PAGE)) == bytes(PAGE)
    assert await listed(managed.blobs, managed.disk, taken, ByteRange(MIB + PAGE, 2 * MIB + PAGE)) == [
        ByteRange((LAST + 8) * PAGE, (LAST + 9) * PAGE),
        ByteRange(2 * MIB, 2 * MIB + PAGE),
    ]


async def test_a_disk_made_anew_under_its_name(managed):
    """Its former snapshots are none of it, are not compared with its own, and can be deleted."""
    former = await managed.take()
    managed.remake()
    assert await managed.blobs.snapshots(managed.disk) == []
    taken = await managed.take("vm.20260101T000100Z.timer")

    assert [one.snapshot for one in await managed.blobs.snapshots(managed.disk)] == [taken]
    with pytest.raises(DiffRefusedError):
        await changed(managed.blobs, managed.disk, taken, former)
    assert (await managed.blobs.properties(managed.disk, former)).metadata == managed.marks()
    await managed.blobs.close_access(managed.disk)
    await managed.blobs.delete_snapshot(managed.disk, former)
    with pytest.raises(SnapshotMissingError):
        await managed.blobs.properties(managed.disk, former)


@pytest.mark.parametrize("snapshot", ["", "base", "2026-01-01"])
async def test_only_a_snapshot_id_is_deleted(managed, snapshot):
    taken = await managed.take()
    with pytest.raises(UnexpectedAnswerError):
        await managed.blobs.delete_snapshot(managed.disk, snapshot)

    assert [one.snapshot for one in await managed.blobs.snapshots(managed.disk)] == [taken]


async def test_an_open_snapshot_is_closed_and_deleted(managed):
    taken = await managed.take()
    await managed.blobs.read(managed.disk, taken, ByteRange(0, PAGE))
    assert managed.open == 1
    await managed.blobs.delete_snapshot(managed.disk, taken)
    await managed.blobs.delete_snapshot(managed.disk, taken)

    assert managed.open == 0
    assert await managed.blobs.snapshots(managed.disk) == []


async def test_access_ends_for_every_reader_and_begins_anew(managed):
    base, taken = await managed.take(), await managed.take()
    await changed(managed.blobs, managed.disk, taken, base)
    assert managed.open == 2
    await managed.blobs.close_access(managed.disk)
    assert managed.open == 0
    await managed.blobs.close_access(managed.disk)

    assert len(await managed.blobs.read(managed.disk, taken, ByteRange(0, PAGE))) == PAGE
    assert managed.open == 1
    await managed.blobs.close_access(managed.disk)


@pytest.mark.parametrize("way", ["copy_streamed", "copy_from_url"])
async def test_pages_are_copied_to_the_same_place(managed, way):
    managed.write(4, 8, 9)
    taken, head = await managed.take(), await managed.head()
    for part in (ByteRange(4 * PAGE, 6 * PAGE), ByteRange(MIB, MIB + PAGE)):
        await getattr(managed.blobs, way)(managed.disk, taken, part, head, FENCE)

        assert await managed.blobs.read(head, "", part) == await managed.blobs.read(managed.disk, taken, part)


async def test_a_copy_blob_of_a_snapshot(managed):
    managed.write(4, 8)
    taken = await managed.take()
    head = BlobAddress(managed.backup, managed.container, "vm/whole.vhd")
    await managed.blobs.start_copy(managed.disk, taken, head, {})

    assert await managed.blobs.read(head, "", ByteRange(4 * PAGE, 5 * PAGE)) == b"\x08" * PAGE
    assert (await managed.blobs.properties(head)).size == MIB + PAGE
