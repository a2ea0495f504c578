"""Both implementations of the ports: in memory, and the Azure adapters on the emulator."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

import pytest
from azure.core.exceptions import ResourceExistsError

from backup_core import bootstrap
from backup_core.domain.naming import BlobAddress
from backup_core.domain.ranges import ByteRange
from bench.services import settings_for
from tests.doubles.catalogue import MemoryCatalogue
from tests.doubles.documents import MemoryDocuments
from tests.doubles.page_blobs import MemoryPageBlobs
from tests.doubles.world import InMemoryServices
from tests.ports.arm_client import Azure


@dataclass
class Ports:
    kind: str
    blobs: object
    catalogue: object
    documents: object
    container: str
    account: str
    source_account: str
    data: object
    """What writes pages: a thing of tests only."""

    def address(self, name):
        return BlobAddress(self.account, self.container, name)

    async def make(self, name, size=16 * 512):
        address = self.address(name)
        await self.blobs.create(address, size, 0, {})
        return address

    async def write(self, address, offset, data, fence):
        """Put pages on a head."""
        if self.kind == "memory":
            self.blobs.write(address, ByteRange(offset, offset + len(data)), data, fence)
        else:
            await self.data.write(address, offset, data, fence)

    async def make_source(self, content):
        """A blob in the source account and a snapshot of it."""
        address = BlobAddress(self.source_account, self.container, "source")
        if self.kind == "memory":
            self.blobs.put(address, len(content))
        await self.overwrite(address, content)
        return address, await self.blobs.snapshot(address, {})

    async def copy_over(self, source, snapshot, onto, lease=""):
        """Somebody's Copy Blob onto a blob of the same account that exists."""
        if self.kind == "memory":
            self.blobs.copy_over(source, snapshot, onto, lease)
            return
        account = self.blobs._accounts[source.account]
        taken = account.get_blob_client(source.container, source.name, snapshot or None)
        await account.get_blob_client(onto.container, onto.name).start_copy_from_url(taken.url, destination_lease=lease or None)

    async def overwrite(self, address, content):
        """Write over a source, as its guest does."""
        if self.kind == "memory":
            self.blobs.poke(address, 0, [content[at : at + 512] for at in range(0, len(content), 512)])
            return
        account = self.blobs._accounts[address.account]
        with contextlib.suppress(ResourceExistsError):
            await account.create_container(self.container)
            await account.get_blob_client(address.container, address.name).create_page_blob(len(content))
        await account.get_blob_client(address.container, address.name).upload_page(content, 0, len(content))


@pytest.fixture(params=["memory", "azure"])
async def ports(request, name):
    if request.param == "memory":
        world = InMemoryServices()
        yield Ports(
            "memory", MemoryPageBlobs(world), MemoryCatalogue(world), MemoryDocuments(world), "heads", "https://backup.test",
            "https://source.test", None,
        )  # fmt: skip
        return
    storage = request.getfixturevalue("calm")
    services = bootstrap.build(settings_for(storage, HEADS_CONTAINER=name, PLANS_CONTAINER=f"{name}p", CATALOGUE_TABLE=name))
    await services.ready()
    tools = services.api.tools
    yield Ports(
        "azure", tools.blobs, tools.catalogue, tools.documents, name, storage.backup.blobs, storage.source.blobs,
        tools.blobs._data,
    )  # fmt: skip
    await services.close()


@pytest.fixture
async def azure(calm, machines, name):
    made = Azure(calm, machines, name)
    yield made
    await made.client.close()
