# Long: the figures of one table, measured one after another.
"""`make bench`: what a backup and a restore cost in requests and bytes, and their copying beside the SDK's own ways.

Counts are the emulator's. Seconds are of this machine and this emulator, which takes most of them: only ratios within one run
mean anything.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import os
import secrets
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from azure.storage.blob import BlobSasPermissions, BlobServiceClient, generate_blob_sas
from azure.storage.blob.aio import BlobServiceClient as AsyncBlobServiceClient
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from backup_core import bootstrap
from backup_core.activities.runner import run_step
from backup_core.api import disks
from backup_core.api.context import respond
from backup_core.api.http import Request
from backup_core.domain.ranges import GIB, MIB, PUT_BYTES_MAX, ByteRange, DiffRange, requests
from backup_core.domain.records import Restoring, Run
from backup_core.domain.redaction import redacted
from backup_core.orchestrations.backup_disk import backup_disk
from backup_core.orchestrations.registry import ORCHESTRATORS
from backup_core.steps import STEPS
from backup_core.steps.backup import BackupRequest
from backup_core.steps.restore import RestoreRequest
from bench.page import Section, table, verdict, words
from bench.services import settings_for
from devhost.storage import Storage
from tests.doubles.documents import MemoryDocuments
from tests.doubles.driver import Driver
from tests.doubles.world import InMemoryServices
from tools.cloud import AZCOPY

if TYPE_CHECKING:
    from azure.storage.blob import BlobClient

    from backup_core.bootstrap import Services
    from backup_core.protocol.copy_route import CopyMode

KIB = 1024
SIZE = 2 * GIB
CONTAINER = "vhds"
BY_NAME = {step.name: step for step in STEPS}
COPYING = ("apply_shard",)
PUTS = ("PUT page", "PUT page-from-url", "PUT clear")
PARALLEL = 32
ROUNDS = 3
AZCOPY_OPTIONS = ("--from-to", "BlobBlob", "--blob-type", "PageBlob", "--overwrite", "false")


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


FULL, SHORT = Shape(300, 16, 32), Shape(60, 4, 8)


@dataclass
class Cost:
    """The cost of copying the diff."""

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
        self.compared: list[str] = []
        self.costs: list[Cost] = []
        self.restores: list[Cost] = []
        self.round = 0
        self.source = BlobServiceClient(storage.source.blobs, credential=storage.source.credential)
        self.backup = BlobServiceClient(storage.backup.blobs, credential=storage.backup.credential)

    async def run(self, rounds: int) -> bool:
        """Everything, so many times in turn; whether every count is at its goal."""
        self.source.create_container(CONTAINER)
        every_cost: list[list[Cost]] = []
        every_restore: list[list[Cost]] = []
        for number in range(rounds):
            self.round = number
            restores: list[Cost] = []
            costs = [await self._product("server", restores), await self._product("stream", restores)]
            blob = self.source.get_blob_client(CONTAINER, f"stream{number}.vhd")
            snapshot = str(blob.create_snapshot()["snapshot"])
            costs.append(await self._measured("SDK, one after the other", partial(self._sdk_loop, snapshot)))
            costs.append(await self._measured(f"SDK aio, {PARALLEL} at a time", partial(self._sdk_aio, snapshot)))
            restores.append(await self._measured("SDK, one after the other", self._sdk_restore))
            if AZCOPY.exists():
                restores.append(await self._measured("AzCopy, blob to blob", self._azcopy))
            restores.append(await self._measured("one Copy Blob", self._copy_blob))
            every_cost.append(costs)
            every_restore.append(restores)
        self.costs, self.restores = medians(every_cost), medians(every_restore)
        self._show(self.costs, self.restores)
        return all(met for *_, met in self.goals)

    # -- the product ------------------------------------------------------------------------------------------------

    async def _product(self, mode: CopyMode, restores: list[Cost]) -> Cost:
        """A full backup of the disk before the diff, then the increment that is measured, then a restore of it."""
        disk = f"{mode}{self.round}"
        blob = self.source.get_blob_client(CONTAINER, f"{disk}.vhd")
        blob.create_page_blob(SIZE)
        for change in self.shape.changes:
            if change.cleared:
                blob.upload_page(secrets.token_bytes(change.range.size), change.range.start, change.range.size)
        services = bootstrap.build(settings_for(self.storage, COPY_MODE=mode))
        # Plans are kept aside, so that every byte counted is content of the disk.
        aside = MemoryDocuments(InMemoryServices())
        toolboxes = {duty: replace(tools, documents=aside) for duty, tools in services.toolboxes.items()}
        services = replace(services, toolboxes=toolboxes)
        try:
            await services.ready()
            request = Request("", {"disk": disk}, {}, json.dumps({"source": blob.url}).encode())
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
            cost = await self._back_up(services, mode, 1)
            restores.append(await self._restore(services, mode))
            return cost
        finally:
            await services.close()

    async def _back_up(self, services: Services, mode: str, number: int) -> Cost:
        """One backup by the real orchestrator and activities in this process; the cost of its copying steps."""
        disk = f"{mode}{self.round}"
        cost = Cost(f"Pagekeeper, {mode} mode", 0.0, 0.0, 0, 0)
        listings = 0

        async def perform(name: str, step_input: dict[str, Any]) -> Any:  # noqa: ANN401  any JSON
            nonlocal cost, listings
            if name not in COPYING:
                return await run_step(BY_NAME[name], services.tools_for, step_input)
            answer: list[Any] = []

            async def copy() -> None:
                answer.append(await run_step(BY_NAME[name], services.tools_for, step_input))

            step = await self._measured(cost.name, copy)
            listings += self.storage.counts().get("GET pagelist", {}).get("requests", 0)
            cost = Cost(
                cost.name, cost.seconds + step.seconds, cost.cpu_seconds + step.cpu_seconds, cost.requests + step.requests,
                cost.through + step.through,
            )  # fmt: skip
            return answer[0]

        run = f"{disk}.20260101T00000{number}Z.timer"
        request = BackupRequest(disk=disk, run=run, trigger="http")
        output = await Driver({"backup_disk": backup_disk}, perform).run("backup_disk", request.model_dump(mode="json"), run)
        if output["state"] != "Succeeded":
            raise RuntimeError(output)
        if number and not self.round:
            self._judge(mode, cost, listings)
        return cost

    async def _restore(self, services: Services, mode: str) -> Cost:
        """A restore that is adopted: two copies of the newest point. What is compared is counted apart."""
        disk = f"{mode}{self.round}"
        cost, read, put = Cost(f"Pagekeeper, {mode} mode, two copies", 0.0, 0.0, 0, 0), 0, 0
        copied: dict[str, int] = {}

        async def perform(name: str, step_input: dict[str, Any]) -> Any:  # noqa: ANN401  any JSON
            nonlocal cost, read, put
            answer: list[Any] = []

            async def step() -> None:
                answer.append(await run_step(BY_NAME[name], services.tools_for, step_input))

            one = await self._measured(cost.name, step)
            counts = self.storage.counts()
            if name == "compare_image":
                read += counts.get("GET blob", {}).get("bytesOut", 0)
            if name in COPYING:
                put += sum(counts.get(verb, {}).get("requests", 0) for verb in PUTS)
                copied[f"{step_input['image']['destination']}:{step_input['shard']}"] = answer[0]["value"]["applied"][
                    "write_bytes"
                ]
                cost = replace(
                    cost, seconds=cost.seconds + one.seconds, cpu_seconds=cost.cpu_seconds + one.cpu_seconds,
                    requests=cost.requests + one.requests, through=cost.through + one.through,
                )  # fmt: skip
            return answer[0]

        (row,) = await services.api.tools.catalogue.points(disk, 1)
        run = f"{disk}.20260102T000000Z.0000abcd"
        target = f"{self.storage.source.blobs}/{CONTAINER}/{disk}-restored.vhd"
        wanted = Restoring(row.value.point, target, adopt=True)
        restore_row = Run(
            disk, run, "NotStarted", "http", full=False, created=datetime.now(UTC), operation="restore", restore=wanted
        )
        await services.api.tools.catalogue.put_run(restore_row, None)
        request = RestoreRequest(disk=disk, run=run).model_dump(mode="json")
        output = await Driver(dict(ORCHESTRATORS), perform).run("restore_disk", request, run)
        if output["state"] != "Succeeded":
            raise RuntimeError(output)
        point = self.backup.get_blob_client("heads", row.value.head, snapshot=row.value.backup_snapshot)
        ranges = [int(one.end or 0) + 1 - int(one.start or 0) for one in point.list_page_ranges()]
        allocated, least = sum(ranges), 2 * sum(-(-size // PUT_BYTES_MAX) for size in ranges)
        if self.round:
            return cost
        meaning = "allocated, once per copy"
        self._goal(f"restore, {mode}: bytes copied", sum(copied.values()), 2 * allocated, meaning)
        self._goal(f"restore, {mode}: put requests", put, least, "within 2 % of the least", slack=least // 50)
        self.compared.append(
            f"restore, {mode}: {read / MIB:.1f} MiB read to compare {allocated / MIB:.1f} MiB twice, both sides"
        )
        return cost

    def _judge(self, mode: str, cost: Cost, listings: int) -> None:
        changes = self.shape.changes
        pieces = sum(1 for change in changes for _ in requests(change))
        changed = sum(change.range.size for change in changes if not change.cleared)
        counts = self.storage.counts()
        puts = sum(counts.get(verb, {}).get("requests", 0) for verb in PUTS)
        wanted = {"server": 0, "stream": 2 * changed}[mode]
        self._goal(f"{mode}: put and clear requests", puts, pieces, "⌈range ÷ 4 MiB⌉ per range, one per clear")
        self._goal(
            f"{mode}: bytes through the worker", cost.through, wanted, "none" if not wanted else "changed, down and up once"
        )
        self._goal(f"{mode}: listings by chunk", listings - 1, 0, "one by window, none by chunk")

    def _goal(self, what: str, found: int, wanted: int, meaning: str, slack: int = 0) -> None:
        self.goals.append((what, f"{found:,}", f"{wanted:,} ({meaning})", wanted <= found <= wanted + slack))

    # -- the SDK's own ways -----------------------------------------------------------------------------------------

    async def _sdk_loop(self, snapshot: str) -> None:
        source = self.source.get_blob_client(CONTAINER, f"stream{self.round}.vhd", snapshot=snapshot)
        head = self.backup.get_blob_client("heads", f"sdk-loop{self.round}.vhd")
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
            source = sources.get_blob_client(CONTAINER, f"stream{self.round}.vhd", snapshot=snapshot)
            head = backups.get_blob_client("heads", f"sdk-aio{self.round}.vhd")
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

    def _newest(self) -> BlobClient:
        """The newest backup snapshot of the round's streamed disk."""
        blobs = self.backup.get_container_client("heads").list_blobs(
            name_starts_with=f"stream{self.round}/", include=["snapshots"]
        )
        found = max((blob for blob in blobs if blob.snapshot), key=lambda blob: str(blob.snapshot))
        return self.backup.get_blob_client("heads", found.name, snapshot=found.snapshot)

    async def _sdk_restore(self) -> None:
        source = self._newest()
        disk = self.source.get_blob_client(CONTAINER, f"sdk-restored{self.round}.vhd")
        disk.create_page_blob(SIZE)
        for allocated in source.list_page_ranges():
            first, end = int(allocated.start or 0), int(allocated.end or 0) + 1
            for start in range(first, end, PUT_BYTES_MAX):
                size = min(PUT_BYTES_MAX, end - start)
                disk.upload_page(source.download_blob(offset=start, length=size).readall(), start, size)

    def _signed(self) -> str:
        """The URL of the newest backup snapshot, signed for reading."""
        source, account = self._newest(), self.storage.backup
        sas = generate_blob_sas(
            account.name, "heads", str(source.blob_name), snapshot=str(source.snapshot), account_key=account.key,
            permission=BlobSasPermissions(read=True), expiry=datetime.now(UTC) + timedelta(hours=1),
        )  # fmt: skip
        return f"{source.url}&{sas}"

    async def _azcopy(self) -> None:
        account, name = self.storage.source, f"azcopied{self.round}.vhd"
        sas = generate_blob_sas(
            account.name, CONTAINER, name, account_key=account.key, expiry=datetime.now(UTC) + timedelta(hours=1),
            permission=BlobSasPermissions(read=True, create=True, write=True),
        )  # fmt: skip
        with tempfile.TemporaryDirectory(prefix="pagekeeper-azcopy-") as folder:
            own = dict.fromkeys(("AZCOPY_LOG_LOCATION", "AZCOPY_JOB_PLAN_LOCATION", "HOME"), folder)
            command = [str(AZCOPY), "copy", self._signed(), f"{account.blobs}/{CONTAINER}/{name}?{sas}", *AZCOPY_OPTIONS]
            process = await asyncio.create_subprocess_exec(
                *command, env=os.environ | own, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
            )
            output, _ = await process.communicate()
        if process.returncode:
            raise RuntimeError(redacted(output.decode()))

    async def _copy_blob(self) -> None:
        disk = self.source.get_blob_client(CONTAINER, f"copied{self.round}.vhd")
        disk.start_copy_from_url(self._signed())
        while disk.get_blob_properties().copy.status == "pending":  # noqa: ASYNC110  the service does not call back
            await asyncio.sleep(0.05)

    def _pieces(self) -> list[DiffRange]:
        return list(itertools.chain.from_iterable(requests(change) for change in self.shape.changes))

    # -- measuring and showing ----------------------------------------------------------------------------------------

    async def _measured(self, name: str, work: Callable[[], Awaitable[None]]) -> Cost:
        self.storage.reset()
        began, cpu = time.perf_counter(), _cpu()
        await work()
        seconds, cpu_seconds = time.perf_counter() - began, _cpu() - cpu
        counts = self.storage.counts()
        blob = {verb: count for verb, count in counts.items() if not verb.endswith("table")}
        through = counts.get("GET blob", {}).get("bytesOut", 0) + counts.get("PUT page", {}).get("bytesIn", 0)
        requested = sum(count["requests"] for count in blob.values())
        return Cost(name, seconds, cpu_seconds, requested, through)

    def _show(self, costs: list[Cost], restores: list[Cost]) -> None:
        table = Table(title="Counts of one increment and one restore", title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
        for name in ("measure", "found", "goal", ""):
            table.add_column(name, no_wrap=True, justify="right" if name == "found" else "left")
        for what, found, wanted, met in self.goals:
            table.add_row(what, found, wanted, "[green]met[/]" if met else "[red]missed[/]")
        self.console.print(table)
        for line in self.compared:
            self.console.print(line)
        shape = self.shape
        self._compare(f"Copying {shape.small:,} of 8 KiB, {shape.large} of 4 MiB, one of 9 MiB, {shape.clears} clears", costs)
        self._compare("Restoring them to a new disk", restores)
        self.console.print(
            "ratios are to the first line; CPU is this process's, without the emulator's; wall is mostly the emulator's, which "
            "fetches in server mode what the other ways bring, and ends a large Copy Blob after two seconds"
        )

    def _compare(self, title: str, costs: list[Cost]) -> None:
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


def _cpu() -> float:
    """Seconds of processor time of this process and of the commands that it has run."""
    used = os.times()
    return used.user + used.system + used.children_user + used.children_system


def medians(rounds: list[list[Cost]]) -> list[Cost]:
    """Each way's median."""
    return [
        replace(
            ways[0],
            seconds=statistics.median(one.seconds for one in ways),
            cpu_seconds=statistics.median(one.cpu_seconds for one in ways),
        )
        for ways in zip(*rounds, strict=True)
    ]


def section(bench: Bench, rounds: int, *, met: bool) -> Section:
    """Counts with their goals, and all ways beside each other."""
    shape = bench.shape
    what = f"{shape.small:,} ranges of 8 KiB, {shape.large} of 4 MiB, one of 9 MiB, {shape.clears} clears"
    prose = words(
        f"One diff of {what}, then a restore of the whole, on the emulator, every way in turn, {rounds} times; "
        f"seconds are medians, and "
        "mostly the emulator's, which fetches in server mode what the other ways bring, and ends a large Copy Blob "
        "after two seconds. "
        "Ratios are to the first line. CPU is that of the process, or of the command, without the emulator's. The "
        "app's restore makes "
        "two copies: the disk, and the backup blob that backups continue from. AzCopy and Copy Blob know no diff: they copy "
        "the whole, and stand in the table of restores alone."
    )
    ways = "\n".join(
        [
            "```",
            "SDK, one after the other    head.upload_page(snapshot.download_blob(offset=at, length=size).readall(), at, size)",
            f"SDK aio                     the same by azure.storage.blob.aio, {PARALLEL} at a time",
            f"AzCopy 10.32                azcopy copy SNAPSHOT_URL DISK_URL {' '.join(AZCOPY_OPTIONS)}",
            "one Copy Blob               disk.start_copy_from_url(snapshot_url)",
            "```",
        ]
    )
    absent = "" if AZCOPY.exists() else "\n\nAzCopy was not there: `make cloud` installs it."
    counts = table(("count", "found", "goal", ""), [(*one[:3], verdict(met=one[3])) for one in bench.goals])
    beside = [_beside(title, costs) for title, costs in (("copying the diff", bench.costs), ("restoring", bench.restores))]
    return Section("Beside other ways", "\n\n".join([prose, ways + absent, counts, *beside]), met)


def _beside(title: str, costs: list[Cost]) -> str:
    base = costs[0]
    rows = [
        (
            one.name, f"{one.requests:,}", f"{one.through / MIB:.1f}",
            f"{one.seconds:.2f}", f"{one.seconds / base.seconds:.1f}",
            f"{one.cpu_seconds:.2f}", f"{one.cpu_seconds / base.cpu_seconds:.1f}",
        )
        for one in costs
    ]  # fmt: skip
    return table((title, "requests", "MiB through the process", "s", "ratio", "CPU s", "ratio"), rows)


def measure(*, short: bool) -> Section:
    """Measure and show."""
    logging.disable(logging.WARNING)
    console = Console(highlight=False, soft_wrap=True)
    if not console.is_terminal:
        console.width = 110
    with tempfile.TemporaryDirectory(prefix="pagekeeper-bench-") as folder, Storage(Path(folder)) as storage:
        bench, rounds = Bench(console, storage, SHORT if short else FULL), 1 if short else ROUNDS
        met = asyncio.run(bench.run(rounds))
    console.print("[green]every count is at its goal[/]" if met else "[red]a count misses its goal[/]")
    return section(bench, rounds, met=met)
