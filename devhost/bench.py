"""`make bench`: what one backup costs in requests and bytes, and what its copying costs beside the SDK's own loops.

Counts are the emulator's. Seconds are of this machine and this emulator, which takes most of them: only ratios within one run
mean anything.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import secrets
import tempfile
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from azure.storage.blob import BlobServiceClient
from azure.storage.blob.aio import BlobServiceClient as AsyncBlobServiceClient
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from backup_core import bootstrap, settings
from backup_core.activities.runner import run_step
from backup_core.api import disks
from backup_core.api.context import respond
from backup_core.api.http import Request
from backup_core.domain.ranges import GIB, MIB, PUT_BYTES_MAX, ByteRange, DiffRange, requests
from backup_core.orchestrations.backup_disk import backup_disk
from backup_core.steps import STEPS
from backup_core.steps.backup import BackupRequest
from devhost.memory.catalogue import MemoryDocuments
from devhost.memory.driver import Driver
from devhost.memory.world import World
from devhost.storage import Storage

if TYPE_CHECKING:
    from backup_core.activities.copying import CopyMode
    from backup_core.bootstrap import Services

KIB = 1024
SIZE = 2 * GIB
CONTAINER = "vhds"
BY_NAME = {step.name: step for step in STEPS}
COPYING = ("apply_shard",)
PARALLEL = 32


@dataclass(frozen=True)
class Shape:
    """The fixed diff: many small writes, some large ones, one that is not a multiple of a put, and clears."""

    small: int
    large: int
    clears: int

    @property
    def changes(self) -> list[DiffRange]:
        """Merged ranges, ascending."""
        written = [ByteRange(number * MIB, number * MIB + 8 * KIB) for number in range(self.small)]
        # Gaps keep the large ranges apart: touching ones would be one range.
        written += [ByteRange(GIB + number * 5 * MIB, GIB + number * 5 * MIB + 4 * MIB) for number in range(self.large)]
        written.append(ByteRange(GIB + 512 * MIB, GIB + 521 * MIB))
        cleared = [
            ByteRange(GIB + (768 + number) * MIB, GIB + (768 + number) * MIB + 64 * KIB) for number in range(self.clears)
        ]
        return [DiffRange(one, cleared=False) for one in written] + [DiffRange(one, cleared=True) for one in cleared]


FULL, SHORT = Shape(1000, 32, 64), Shape(60, 4, 8)


@dataclass
class Cost:
    """What copying the diff took."""

    name: str
    seconds: float
    cpu_seconds: float
    requests: int
    through: int
    """Bytes of content that passed this process, both ways together."""


class Bench:
    """One storage, one disk, one diff, copied in every way."""

    def __init__(self, console: Console, storage: Storage, shape: Shape) -> None:
        """Print to `console`."""
        self.console, self.storage, self.shape = console, storage, shape
        self.goals: list[tuple[str, str, str, bool]] = []
        self.source = BlobServiceClient(storage.source.blobs, credential=storage.source.credential)
        self.backup = BlobServiceClient(storage.backup.blobs, credential=storage.backup.credential)

    async def run(self) -> bool:
        """Everything; whether every count is at its goal."""
        self.source.create_container(CONTAINER)
        costs = [await self._product("server"), await self._product("stream")]
        blob = self.source.get_blob_client(CONTAINER, "stream.vhd")
        snapshot = str(blob.create_snapshot()["snapshot"])
        costs.append(await self._measured("SDK, one after the other", lambda: self._sdk_loop(snapshot)))
        costs.append(await self._measured(f"SDK aio, {PARALLEL} at a time", lambda: self._sdk_aio(snapshot)))
        self._show(costs)
        return all(met for *_, met in self.goals)

    # -- the product ------------------------------------------------------------------------------------------------

    async def _product(self, mode: CopyMode) -> Cost:
        """A full backup of the disk before the diff, then the increment that is measured."""
        blob = self.source.get_blob_client(CONTAINER, f"{mode}.vhd")
        blob.create_page_blob(SIZE)
        for change in self.shape.changes:
            if change.cleared:
                blob.upload_page(secrets.token_bytes(change.range.size), change.range.start, change.range.size)
        services = bootstrap.build(self._settings(mode))
        # Plans are kept aside, so that every byte counted is content of the disk.
        services = replace(services, tools=replace(services.tools, documents=MemoryDocuments(World())))
        try:
            await services.ready()
            request = Request("", {"disk": mode}, {}, json.dumps({"source": blob.url}).encode())
            registered = await respond(services.api, disks.put_disk, request)
            if registered.status not in (200, 201):
                raise RuntimeError(registered.body)
            await self._back_up(services, mode, 0)
            for change in self.shape.changes:
                piece = change.range
                if change.cleared:
                    blob.clear_page(piece.start, piece.size)
                    continue
                for start in range(piece.start, piece.end, PUT_BYTES_MAX):
                    length = min(PUT_BYTES_MAX, piece.end - start)
                    blob.upload_page(secrets.token_bytes(length), start, length)
            return await self._back_up(services, mode, 1)
        finally:
            await services.close()

    def _settings(self, mode: str) -> settings.Settings:
        accounts = (self.storage.source, self.storage.backup, self.storage.state)
        return settings.load(
            {
                "BACKUP_SCHEDULE": "0 0 */12 * * *",
                "SOURCE_ACCOUNTS": self.storage.source.blobs,
                "BACKUP_ACCOUNT": self.storage.backup.blobs,
                "CATALOGUE_ACCOUNT": self.storage.state.tables,
                "COPY_MODE": mode,
                "DEVELOPMENT": "true",
                "DEVELOPMENT_KEYS": json.dumps({one.name: one.key for one in accounts}),
            }
        )

    async def _back_up(self, services: Services, mode: str, number: int) -> Cost:
        """One backup by the real orchestrator and activities in this process; the cost of its copying steps."""
        cost = Cost(f"Pagekeeper, {mode} mode", 0.0, 0.0, 0, 0)
        listings = 0

        async def perform(name: str, asked: dict[str, Any]) -> Any:  # noqa: ANN401  any JSON
            nonlocal cost, listings
            if name not in COPYING:
                return await run_step(BY_NAME[name], services.tools, asked)
            answer: list[Any] = []

            async def copy() -> None:
                answer.append(await run_step(BY_NAME[name], services.tools, asked))

            step = await self._measured(cost.name, copy)
            listings += self.storage.counts().get("GET pagelist", {}).get("requests", 0)
            cost = Cost(
                cost.name, cost.seconds + step.seconds, cost.cpu_seconds + step.cpu_seconds, cost.requests + step.requests,
                cost.through + step.through,
            )  # fmt: skip
            return answer[0]

        run = f"{mode}.20260101T00000{number}Z.timer"
        request = BackupRequest(disk=mode, run=run, trigger="http")
        output = await Driver({"backup_disk": backup_disk}, perform).run("backup_disk", request.model_dump(mode="json"), run)
        if output["state"] != "Succeeded":
            raise RuntimeError(output)
        if number:
            self._judge(mode, cost, listings)
        return cost

    def _judge(self, mode: str, cost: Cost, listings: int) -> None:
        changes = self.shape.changes
        pieces = sum(1 for change in changes for _ in requests(change))
        changed = sum(change.range.size for change in changes if not change.cleared)
        counts = self.storage.counts()
        puts = sum(counts.get(verb, {}).get("requests", 0) for verb in ("PUT page", "PUT page-from-url", "PUT clear"))
        wanted = {"server": 0, "stream": 2 * changed}[mode]
        self._goal(f"{mode}: put and clear requests", puts, pieces, "⌈range ÷ 4 MiB⌉ per range, one per clear")
        self._goal(
            f"{mode}: bytes through the worker", cost.through, wanted, "none" if not wanted else "changed, down and up once"
        )
        self._goal(f"{mode}: listings by chunk", listings - 1, 0, "one by window, none by chunk")

    def _goal(self, what: str, found: int, wanted: int, meaning: str) -> None:
        self.goals.append((what, f"{found:,}", f"{wanted:,} ({meaning})", found == wanted))

    # -- the SDK's own ways -----------------------------------------------------------------------------------------

    async def _sdk_loop(self, snapshot: str) -> None:
        source = self.source.get_blob_client(CONTAINER, "stream.vhd", snapshot=snapshot)
        head = self.backup.get_blob_client("heads", "sdk-loop.vhd")
        head.create_page_blob(SIZE)
        for piece in self._pieces():
            start, size = piece.range.start, piece.range.size
            if piece.cleared:
                head.clear_page(start, size)
            else:
                head.upload_page(source.download_blob(offset=start, length=size).readall(), start, size)

    async def _sdk_aio(self, snapshot: str) -> None:
        async with (
            AsyncBlobServiceClient(self.storage.source.blobs, credential=self.storage.source.credential) as sources,
            AsyncBlobServiceClient(self.storage.backup.blobs, credential=self.storage.backup.credential) as backups,
        ):
            source = sources.get_blob_client(CONTAINER, "stream.vhd", snapshot=snapshot)
            head = backups.get_blob_client("heads", "sdk-aio.vhd")
            await head.create_page_blob(SIZE)
            pieces = iter(self._pieces())

            async def work() -> None:
                for piece in pieces:
                    start, size = piece.range.start, piece.range.size
                    if piece.cleared:
                        await head.clear_page(start, size)
                    else:
                        stream = await source.download_blob(offset=start, length=size)
                        await head.upload_page(await stream.readall(), start, size)

            await asyncio.gather(*(work() for _ in range(PARALLEL)))

    def _pieces(self) -> list[DiffRange]:
        return list(itertools.chain.from_iterable(requests(change) for change in self.shape.changes))

    # -- measuring and showing ----------------------------------------------------------------------------------------

    async def _measured(self, name: str, work: Callable[[], Awaitable[None]]) -> Cost:
        self.storage.reset()
        began, cpu = time.perf_counter(), time.process_time()
        await work()
        seconds, cpu_seconds = time.perf_counter() - began, time.process_time() - cpu
        counts = self.storage.counts()
        blob = {verb: count for verb, count in counts.items() if not verb.endswith("table")}
        through = counts.get("GET blob", {}).get("bytesOut", 0) + counts.get("PUT page", {}).get("bytesIn", 0)
        requested = sum(count["requests"] for count in blob.values())
        return Cost(name, seconds, cpu_seconds, requested, through)

    def _show(self, costs: list[Cost]) -> None:
        table = Table(title="Counts of one increment", title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
        for name in ("measure", "found", "goal", ""):
            table.add_column(name, no_wrap=True, justify="right" if name == "found" else "left")
        for what, found, wanted, met in self.goals:
            table.add_row(what, found, wanted, "[green]met[/]" if met else "[red]missed[/]")
        self.console.print(table)
        shape = self.shape
        title = f"Copying {shape.small:,} of 8 KiB, {shape.large} of 4 MiB, one of 9 MiB, {shape.clears} clears"
        table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
        for name in ("way", "requests", "through the worker", "wall s", "ratio", "CPU s", "ratio"):
            table.add_column(name, no_wrap=True, justify="left" if name == "way" else "right")
        base = costs[0]
        for cost in costs:
            table.add_row(
                cost.name, f"{cost.requests:,}", f"{cost.through / MIB:.1f} MiB",
                f"{cost.seconds:.2f}", f"{cost.seconds / base.seconds:.1f}",
                f"{cost.cpu_seconds:.2f}", f"{cost.cpu_seconds / base.cpu_seconds:.1f}",
            )  # fmt: skip
        self.console.print(table)
        self.console.print(
            "ratios are to the first line; CPU is this process's, without the emulator's; wall is mostly the emulator's, which "
            "fetches in server mode what the other ways bring"
        )


def main(*, short: bool) -> int:
    """Measure; 0 when every count is at its goal."""
    logging.disable(logging.WARNING)
    console = Console(highlight=False, soft_wrap=True)
    if not console.is_terminal:
        console.width = 110
    with tempfile.TemporaryDirectory(prefix="pagekeeper-bench-") as folder, Storage(Path(folder)) as storage:
        met = asyncio.run(Bench(console, storage, SHORT if short else FULL).run())
    console.print("[green]every count is at its goal[/]" if met else "[red]a count misses its goal[/]")
    return 0 if met else 1
