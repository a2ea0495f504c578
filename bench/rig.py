"""The real steps that plan and copy, over HTTP to a server without content; what is no page is kept in memory."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, cast

from backup_core.activities.runner import run_step
from backup_core.adapters.authority import SharedSasAuthority
from backup_core.adapters.pacing import Pacers
from backup_core.adapters.page_data import PageData
from backup_core.adapters.transport import Transport
from backup_core.domain.identity import Deployment
from backup_core.domain.ranges import ByteRange, DiffRange
from backup_core.domain.records import Head, Owner
from backup_core.ports.blobs import BlobProperties
from backup_core.protocol.copy_route import Copying
from backup_core.protocol.tools import Tools
from backup_core.steps import STEPS
from backup_core.steps.copying import ApplyShard, ImageCopy
from backup_core.steps.messages import Actor
from tests.doubles.catalogue import MemoryCatalogue
from tests.doubles.documents import MemoryDocuments
from tests.doubles.journal import MemoryJournal
from tests.doubles.world import InMemoryServices

if TYPE_CHECKING:
    from backup_core.domain.naming import BlobAddress
    from backup_core.ports.blobs import Fence
    from backup_core.protocol.copy_route import CopyMode
    from backup_core.protocol.tools import Limits
    from backup_core.steps.messages import Message

BY_NAME = {step.name: step for step in STEPS}


class _Blobs:
    """The source's lists from memory; pages over HTTP."""

    def __init__(self, data: PageData, changes: list[DiffRange]) -> None:
        self._data, self._changes = data, changes

    async def diff(self, _: BlobAddress, __: str, ___: str, window: ByteRange) -> AsyncIterator[DiffRange]:
        for one in self._changes:
            start, end = max(one.range.start, window.start), min(one.range.end, window.end)
            if start < end:
                yield DiffRange(ByteRange(start, end), one.cleared)

    async def properties(self, _: BlobAddress, __: str = "") -> BlobProperties:
        return BlobProperties(self._changes[-1].range.end, "", True, datetime(2026, 1, 1, tzinfo=UTC), 1, {})

    async def copy_from_url(self, source: BlobAddress, snapshot: str, part: ByteRange, head: BlobAddress, fence: Fence) -> None:
        await self._data.from_url(source, snapshot, part, head, fence)

    async def copy_streamed(
        self, source: BlobAddress, snapshot: str, part: ByteRange, head: BlobAddress, fence: Fence, *, keep_zeros: bool
    ) -> None:
        await self._data.stream(source, snapshot, part, head, fence, keep_zeros=keep_zeros)


@dataclass
class Disk:
    """One disk and its copy."""

    tools: Tools
    image: ImageCopy

    @property
    def url(self) -> str:
        """Of the copy."""
        return self.tools.head(self.image.destination).url

    async def _step(self, name: str, message: Message) -> Any:  # noqa: ANN401  any JSON
        outcome = await run_step(BY_NAME[name], lambda _: self.tools, message.model_dump(mode="json"))
        if outcome["fault"]:
            raise RuntimeError(outcome["fault"])
        return outcome["value"]

    async def plan(self) -> int:
        """Plan the copy; the number of its shards."""
        planned = await self._step("plan_transfer", self.image)
        self.image = self.image.model_copy(update={"plan": planned["plan"], "plan_digest": planned["digest"]})
        return int(planned["shards"])

    async def copy(self, shard: int) -> None:
        """Copy the shard."""
        while not (await self._step("apply_shard", ApplyShard(image=self.image, shard=shard)))["done"]:
            pass


@dataclass
class Rig:
    """Disks of a process."""

    blobs: _Blobs
    server: str
    mode: CopyMode
    limits: Limits
    size: int

    def disk(self, name: str) -> Disk:
        """A disk of that name, owned by a run."""
        source, backup, world = f"{self.server}/source", f"{self.server}/backup", InMemoryServices()
        catalogue, blobs = MemoryCatalogue(world), cast("Any", self.blobs)
        actor = Actor(
            disk=name, run=f"{name}.20260101T000000Z.timer", lease="lease", epoch=1, source=f"{source}/vhds/{name}.vhd"
        )
        catalogue._store(Head(name, 1, Owner(actor.run, actor.lease, actor.epoch)), "head")  # noqa: SLF001  past every gate
        tools = Tools(
            blobs, catalogue, MemoryDocuments(world), (source,), backup, "heads", time.monotonic,
            Copying(blobs, self.mode, time.monotonic), cast("Any", None), MemoryJournal(), Deployment("backup/pagekeeper"),
            self.limits,
        )  # fmt: skip
        image = ImageCopy(
            actor=actor, source=actor.source, base="2026-01-01T00:00:00.0000000Z", target="2026-01-02T00:00:00.0000000Z",
            destination=f"{name}/disk.vhd", kind="incremental", generation=1, size=self.size,
        )  # fmt: skip
        return Disk(tools, image)


@asynccontextmanager
async def rig(server: str, changes: list[DiffRange], limits: Limits, mode: CopyMode) -> AsyncIterator[Rig]:
    """Disks with that diff, on the server."""
    accounts = [f"{server}/{one}" for one in ("source", "backup")]
    transport = Transport({one: SharedSasAuthority("sig=x") for one in accounts}, pacers=Pacers())
    try:
        yield Rig(_Blobs(PageData(transport), changes), server, mode, limits, changes[-1].range.end)
    finally:
        await transport.close()
