"""Both implementations of the ports: in memory, and the Azure adapters on the emulator."""

from __future__ import annotations

import json
from dataclasses import dataclass

import pytest

from backup_core import bootstrap, settings
from backup_core.domain.naming import BlobAddress
from devhost.memory.catalogue import MemoryCatalogue, MemoryDocuments
from devhost.memory.page_blobs import MemoryPageBlobs
from devhost.memory.world import World


@dataclass
class Ports:
    kind: str
    blobs: object
    catalogue: object
    documents: object
    container: str
    account: str

    def address(self, name):
        return BlobAddress(self.account, self.container, name)

    async def make(self, name, size=16 * 512):
        address = self.address(name)
        await self.blobs.create(address, size, 0, {})
        return address


def local_settings(storage, **overrides):
    accounts = (storage.source, storage.backup, storage.state)
    return settings.load(
        {
            "BACKUP_SCHEDULE": "0 0 */12 * * *",
            "SOURCE_ACCOUNTS": storage.source.blobs,
            "BACKUP_ACCOUNT": storage.backup.blobs,
            "CATALOGUE_ACCOUNT": storage.state.tables,
            "DEVELOPMENT": "true",
            "DEVELOPMENT_KEYS": json.dumps({one.name: one.key for one in accounts}),
            **overrides,
        }
    )


@pytest.fixture(params=["memory", "azure"])
async def ports(request, name):
    if request.param == "memory":
        world = World()
        yield Ports(
            "memory", MemoryPageBlobs(world), MemoryCatalogue(world), MemoryDocuments(world), "heads", "https://backup.test"
        )
        return
    storage = request.getfixturevalue("calm")
    services = bootstrap.build(local_settings(storage, HEADS_CONTAINER=name, PLANS_CONTAINER=f"{name}p", CATALOGUE_TABLE=name))
    await services.ready()
    tools = services.tools
    yield Ports("azure", tools.blobs, tools.catalogue, tools.documents, name, storage.backup.blobs)
    await services.close()
