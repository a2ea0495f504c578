"""Managed disks that are made by an upload: the contract of both ports, in memory and by the stand-ins."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
from azure.storage.blob import BlobClient
from azure.storage.blob.aio import BlobServiceClient

from backup_core import bootstrap
from backup_core.adapters.machine_models import RUN_TAG
from backup_core.domain.errors import (
    BackupError,
    BlobMissingError,
    FencedError,
    MachineChangedError,
    MachineRefusedError,
    ManagedDiskRefusedError,
)
from backup_core.domain.managed import ManagedDisk
from backup_core.domain.naming import BlobAddress, parse_source
from backup_core.domain.ranges import ByteRange
from backup_core.domain.repoint import MachineDisk
from backup_core.ports import Fence
from bench.services import settings_for
from devhost.disks import vhd_footer
from devhost.machines import GROUP, disk_id, machine_id
from tests.doubles.machines import MemoryMachines
from tests.doubles.page_blobs import MemoryPageBlobs
from tests.doubles.world import InMemoryServices

PAGE, MIB = 512, 1024 * 1024
SIZE = MIB + PAGE
RUN = "vm.20260101T000000Z.timer"
FENCE = Fence("11111111-2222-3333-4444-555555555555", 1)
"""Nobody asks for it."""
FOOTER, DATA = ByteRange(MIB, SIZE), ByteRange(4 * PAGE, 6 * PAGE)
CONTENT = bytes(4 * PAGE) + b"\3" * 2 * PAGE + bytes(MIB - 6 * PAGE) + vhd_footer(MIB)


@dataclass
class Upload:
    """A restore point of a MiB, and a managed disk to be made of it."""

    kind: str
    blobs: object
    port: object
    point: object
    snapshot: str
    vm: str
    disk: object
    stand_in: object = None

    @property
    def wanted(self):
        return ManagedDisk(self.disk.id, "", RUN, MIB, sku="Standard_LRS")

    async def make(self, **fields):
        return await self.port.create_for_upload(replace(self.wanted, **fields), "local")

    async def copy(self, part, way="copy_streamed"):
        await getattr(self.blobs, way)(self.point, self.snapshot, part, self.disk, FENCE)

    async def uploaded(self):
        """The disk, complete and closed."""
        await self.make()
        await self.copy(DATA)
        await self.copy(FOOTER)
        await self.blobs.close_disk(self.disk)

    async def state(self):
        return (await self.port.managed_disk(self.disk.id)).disk_state

    def content(self):
        """The disk's content, whoever has the disk."""
        if self.kind == "memory":
            return self.blobs.disks[self.disk].content()
        with BlobClient.from_blob_url(self.stand_in.content(self.disk.id), credential=self.key) as blob:
            return blob.download_blob().readall()

    async def attach(self):
        """A machine gets the disk."""
        machine = await self.port.machine(self.vm)
        disk = MachineDisk("data", self.disk.id, managed=True, lun=0)
        assert await self.port.put_disk(machine, 0, disk)


@pytest.fixture(params=["memory", "azure"])
async def upload(request, name):
    if request.param == "memory":
        world = InMemoryServices()
        blobs = MemoryPageBlobs(world)
        blobs.cloud.uploads.unit = MIB
        port, point = MemoryMachines(world, blobs), BlobAddress("https://backup.test", "heads", "vm/disk.vhd")
        blobs.put(point, SIZE)
        blobs.poke(point, 4, [b"\3" * PAGE] * 2)
        blobs.poke(point, MIB // PAGE, [CONTENT[MIB:]])
        port.add(machine_id(name))
        disk = parse_source(disk_id(f"{name}-new"), (), (GROUP.lower(),))
        yield Upload("memory", blobs, port, point, await blobs.snapshot(point, {}), machine_id(name), disk)
        return
    storage, machines = request.getfixturevalue("calm"), request.getfixturevalue("machines")
    made = await azure_upload(storage, machines, name)
    yield made
    machines.delete(name)
    await made.services.close()


async def azure_upload(storage, machines, name, **settings):
    """The same by the adapters, over the stand-in; its machine has no disks."""
    machines.switch(upload_bytes_min=MIB)
    machines.make(name)
    own = {"HEADS_CONTAINER": name, "PLANS_CONTAINER": f"{name}p", "CATALOGUE_TABLE": name}
    clouds = {"ARM_ENDPOINT": machines.endpoint, "DISK_GROUPS": GROUP, "EXPORT_HOSTS": "127.0.0.1"}
    services = bootstrap.build(settings_for(storage, **{**own, **clouds, **settings}))
    await services.ready()
    tools, point = services.api.tools, BlobAddress(storage.backup.blobs, name, "vm/disk.vhd")
    async with BlobServiceClient(storage.backup.blobs, credential=storage.backup.credential) as client:
        blob = client.get_blob_client(name, point.name)
        await blob.create_page_blob(SIZE)
        await blob.upload_page(CONTENT[DATA.start : DATA.end], DATA.start, DATA.size)
        await blob.upload_page(CONTENT[MIB:], MIB, PAGE)
    snapshot = await tools.blobs.snapshot(point, {})
    made = Upload("azure", tools.blobs, tools.machines, point, snapshot, machine_id(name), None, machines)
    made.key = storage.exports.credential
    made.disk, made.services = tools.source(disk_id(f"{name}-new")), services
    return made


async def allocated(upload, window=None):
    return [one async for one in upload.blobs.allocated(upload.disk, "", window or ByteRange(0, SIZE))]


@pytest.mark.parametrize("way", ["copy_streamed", "copy_from_url"])
async def test_an_uploaded_disk_becomes_ready_and_reads_as_the_restore_point(upload, way):
    """Ready, active, then a disk like another, which reads as the restore point."""
    assert await upload.make() is True
    found = await upload.port.managed_disk(upload.disk.id)
    assert (found.state, found.run, found.size_bytes, found.source) == ("Succeeded", RUN, MIB, "")
    assert (found.disk_state, found.create_option) == ("ReadyToUpload", "Upload")
    await upload.copy(DATA, way)
    assert await upload.state() == "ActiveUpload"
    await upload.copy(FOOTER, way)
    await upload.copy(DATA, way)
    await upload.blobs.close_disk(upload.disk)
    assert await upload.state() == "Unattached"

    assert await upload.blobs.read(upload.disk, "", ByteRange(0, SIZE)) == CONTENT
    assert await allocated(upload) == [DATA, FOOTER]
    assert await allocated(upload, ByteRange(5 * PAGE, 8 * PAGE)) == [ByteRange(5 * PAGE, 6 * PAGE)]
    assert await upload.state() == "ActiveSAS"
    await upload.blobs.close_disk(upload.disk)
    assert await upload.state() == "Unattached"


TRAITS = {
    "sku": "Premium_LRS",
    "os_type": "Linux",
    "generation": "V2",
    "zones": ("2",),
    "tier": "P30",
    "network_access": "AllowPrivate",
    "disk_access": f"{GROUP}/providers/Microsoft.Compute/diskAccesses/access",
    "public_access": "Disabled",
    "capabilities": (("acceleratedNetwork", True), ("architecture", "Arm64"), ("diskControllerTypes", "SCSI, NVMe")),
}


async def test_an_uploaded_disk_has_every_requested_trait(upload):
    await upload.make(**TRAITS)
    found = await upload.port.managed_disk(upload.disk.id)
    added = {"state": "Succeeded", "disk_state": "ReadyToUpload", "create_option": "Upload", "encryption": found.encryption}
    assert found.unique
    added |= {"unique": found.unique}

    assert found == replace(upload.wanted, **{**TRAITS, **added})


async def test_a_disk_is_described_as_the_vhd_it_is(upload):
    await upload.make()
    found = await upload.blobs.properties(upload.disk)

    assert (found.size, found.page_blob, found.metadata) == (SIZE, True, {RUN_TAG: RUN})


async def test_zeros_and_clears(upload):
    """Former content is cleared, and a put of only zeros is never sent."""
    await upload.make()
    await upload.copy(DATA)
    await upload.blobs.clear(upload.disk, ByteRange(5 * PAGE, 6 * PAGE), FENCE)
    await upload.copy(ByteRange(64 * PAGE, 192 * PAGE))
    await upload.copy(FOOTER)
    await upload.blobs.close_disk(upload.disk)

    assert await upload.blobs.read(upload.disk, "", DATA) == b"\3" * PAGE + bytes(PAGE)
    assert await allocated(upload) == [ByteRange(4 * PAGE, 5 * PAGE), FOOTER]


async def test_a_closed_upload_is_never_written_again(upload):
    """No way and no caller can write it; its content stays, whoever has the disk by then."""
    await upload.uploaded()
    for owned in (False, True):
        if owned:
            await upload.attach()
        for way in ("copy_streamed", "copy_from_url"):
            with pytest.raises(FencedError, match="its upload has ended"):
                await upload.copy(DATA, way)
        with pytest.raises(FencedError, match=r"expected one made by Upload, in state ReadyToUpload.*found one made by Upload"):
            await upload.blobs.clear(upload.disk, DATA, FENCE)
    assert upload.content() == CONTENT


async def test_a_disk_is_read_after_its_upload_and_while_no_machine_has_it(upload):
    """Else nothing is opened."""
    await upload.make()
    for _ in range(2):
        with pytest.raises(ManagedDiskRefusedError, match="nothing was opened"):
            await upload.blobs.read(upload.disk, "", DATA)
        with pytest.raises(ManagedDiskRefusedError, match="nothing was opened"):
            await allocated(upload)
        await upload.copy(FOOTER)
    await upload.blobs.close_disk(upload.disk)
    await upload.attach()
    for _ in range(2):
        with pytest.raises(ManagedDiskRefusedError, match=f"of machine {upload.vm}"):
            await upload.blobs.read(upload.disk, "", DATA)
        await upload.port.deallocate(upload.vm)
        assert await upload.state() in ("Attached", "Reserved")


async def test_a_disk_that_another_run_has_made_is_neither_opened_nor_closed(upload):
    """Not by what this process has opened for that run either."""
    mine, others = replace(upload.disk, run=RUN), replace(upload.disk, run="vm.20260101T000000Z.0000abcd")
    await upload.make()
    upload.disk = mine
    await upload.copy(DATA)
    upload.disk = others
    for act in (upload.copy(FOOTER), upload.copy(FOOTER, "copy_from_url"), upload.blobs.clear(others, DATA, FENCE)):
        with pytest.raises(FencedError, match=f"expected one made by run {others.run}, found one made by {RUN}; no byte was"):
            await act
    await upload.blobs.close_disk(others)
    assert await upload.state() == "ActiveUpload"
    upload.disk = mine
    await upload.copy(FOOTER)
    await upload.blobs.close_disk(mine)
    assert await upload.blobs.read(mine, "", DATA) == b"\3" * 2 * PAGE
    for act in (upload.blobs.read(others, "", DATA), allocated(replace(upload, disk=others))):
        with pytest.raises(ManagedDiskRefusedError, match="expected one made by run"):
            await act
    await upload.blobs.close_disk(others)
    assert await upload.state() == "ActiveSAS"


async def test_nothing_is_done_with_a_disk_that_is_open(upload):
    """Neither is it attached, nor is a snapshot of it taken, while it is uploaded to; attached it is not while it is read."""
    await upload.make()
    for _ in range(2):
        with pytest.raises(MachineRefusedError):
            await upload.attach()
        with pytest.raises(BackupError):
            await upload.blobs.snapshot(upload.disk, {"pagekeeper_run": RUN})
        await upload.copy(FOOTER)
    await upload.blobs.close_disk(upload.disk)
    await upload.blobs.read(upload.disk, "", DATA)
    with pytest.raises(MachineRefusedError):
        await upload.attach()
    await upload.blobs.close_disk(upload.disk)
    await upload.attach()

    assert await upload.state() == "Attached"


async def test_closing_a_disk_without_an_open_upload_changes_nothing(upload):
    """A disk that is not there, one that was never written, one that is closed."""
    await upload.blobs.close_disk(upload.disk)
    await upload.make()
    await upload.blobs.close_disk(upload.disk)
    assert await upload.state() == "ReadyToUpload"
    await upload.copy(FOOTER)
    for _ in range(2):
        await upload.blobs.close_disk(upload.disk)

    assert await upload.state() == "Unattached"


async def test_a_content_that_is_no_vhd_is_refused_when_it_is_closed(upload):
    """Until it is one: the upload has not ended."""
    await upload.make()
    await upload.copy(DATA)
    for _ in range(2):
        with pytest.raises(ManagedDiskRefusedError, match=r"InvalidVhd.*delete the disk, and restore again"):
            await upload.blobs.close_disk(upload.disk)
        assert await upload.state() == "ActiveUpload"
    await upload.copy(FOOTER)
    await upload.blobs.close_disk(upload.disk)

    assert await upload.state() == "Unattached"


async def test_an_upload_that_has_to_end_is_refused_where_nothing_was_written(upload):
    """Without a footer it is no VHD; what has ended has ended."""
    await upload.make()
    with pytest.raises(ManagedDiskRefusedError, match="InvalidVhd"):
        await upload.blobs.close_disk(upload.disk, ends=True)
    await upload.copy(FOOTER)
    for _ in range(2):
        await upload.blobs.close_disk(upload.disk, ends=True)

    assert await upload.state() == "Unattached"


async def test_a_write_to_a_missing_disk_is_an_error(upload):
    for way in ("copy_streamed", "copy_from_url"):
        with pytest.raises(BlobMissingError):
            await upload.copy(DATA, way)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"size_bytes": MIB + PAGE}, "uploadSizeBytes"),
        ({"size_bytes": 0}, "uploadSizeBytes"),
        (
            {"security_type": "TrustedLaunch", "os_type": "Linux", "generation": "V2"},
            "is not supported for CreateOption 'Upload'",
        ),
        ({"sku": "Premium_ZRS", "zones": ("1",)}, "availability zone"),
        (
            {
                "encryption": "EncryptionAtRestWithCustomerKey",
                "encryption_set": f"{GROUP}/providers/Microsoft.Compute/diskEncryptionSets/keys",
                "network_access": "AllowPrivate",
                "disk_access": f"{GROUP}/providers/Microsoft.Compute/diskAccesses/access",
            },
            "both a diskAccessId and a diskEncryptionSetId",
        ),
    ],
)
async def test_a_disk_that_azure_refuses_to_make_for_an_upload_is_an_error(upload, fields, words):
    """Nothing is made."""
    with pytest.raises(MachineRefusedError, match=words):
        await upload.make(**fields)

    assert await upload.port.managed_disk(upload.disk.id) is None


async def test_a_disk_that_is_there_is_not_made_again(upload):
    await upload.make()
    await upload.copy(DATA)
    with pytest.raises((MachineRefusedError, MachineChangedError)):
        await upload.make()

    assert await upload.state() == "ActiveUpload"
