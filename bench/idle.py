"""Count the requests to storage and tables of an increment without any change, each with its reason."""

from __future__ import annotations

import asyncio
import json
import secrets
import tempfile
import traceback
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

from aiohttp import ClientSession
from azure.storage.blob import BlobServiceClient

from backup_core import bootstrap
from backup_core.activities.runner import run_step
from backup_core.api import disks
from backup_core.api.context import respond
from backup_core.api.http import Request
from backup_core.domain.ranges import MIB
from backup_core.orchestrations.backup_disk import backup_disk
from backup_core.steps import STEPS
from backup_core.steps.backup import BackupRequest
from bench.page import Section, table, words
from bench.services import settings_for
from devhost.storage import Storage
from tests.doubles.driver import Driver

BY_NAME = {step.name: step for step in STEPS}
_OWNS = "that the run still owns the disk"
WHY = {
    ("begin_backup", "registration"): "the disk's source, and whether it is protected",
    ("begin_backup", "run"): "whether the run has begun already, or was canceled; then its row for the update",
    ("begin_backup", "now"): "the date by the service's clock",
    ("begin_backup", "put_run"): "the run's row, with its entry among the windows",
    ("begin_backup", "head"): "who owns the disk; then the row for the update",
    ("begin_backup", "put_head"): "the ownership, with the next epoch",
    (
        "begin_backup",
        "properties",
    ): "the backup blob as it is: whether it is as the last run left it; the base's snapshot; the number to raise",
    ("begin_backup", "acquire_lease"): "the lease, under the run's id",
    ("report_progress", "head"): _OWNS,
    ("report_progress", "run"): "whether the run is to end, and its row for the update",
    ("report_progress", "put_run"): "the sign of life: phase and numbers",
    ("take_source_snapshot", "head"): _OWNS,
    ("take_source_snapshot", "run"): "whether an earlier delivery has taken it; then the row for the update",
    ("take_source_snapshot", "snapshots"): "those of the source, before and after: two deliveries continue with the older one",
    ("take_source_snapshot", "snapshot"): "the snapshot",
    ("take_source_snapshot", "put_run"): "its time, before anything rests on it",
    ("take_source_snapshot", "properties"): "its size",
    ("plan_transfer", "head"): _OWNS,
    ("plan_transfer", "get"): "whether there is a plan already",
    ("plan_transfer", "properties"): "the base's size: whether the disk shrank, and where it has grown",
    ("plan_transfer", "ranges"): "the diff: one page list for each 64 GiB, and one for each 10,000 ranges",
    ("plan_transfer", "put_if_absent"): "the plan",
    ("open_head", "head"): _OWNS,
    ("open_head", "properties"): "mark, version and size; then the version after the intent",
    ("open_head", "set_metadata"): "the intent",
    ("verify_head", "head"): _OWNS,
    ("verify_head", "registration"): "how much is to be compared",
    (
        "verify_head",
        "properties",
    ): "number, mark and size of the blob, the snapshots' sizes, and the base's for each pass over the diff",
    ("verify_head", "set_sequence_number"): "requests of the copying that are still in flight are refused from here on",
    ("verify_head", "allocated"): "both page maps, once to count blocks and once to draw from them",
    ("verify_head", "get"): "the plan, for each pass: which gaps may have been copied along",
    (
        "verify_head",
        "ranges",
    ): "the diff, for each pass: which blocks it leaves alone; then beside it what the blob shows as written",
    (
        "verify_head",
        "read",
    ): "the samples, of both sides: here all 16 blocks of the disk; of a large one some 1,700 to 12,500",
    ("verify_head", "set_metadata"): "the mark that the blob is verified",
    ("take_backup_snapshot", "head"): _OWNS,
    ("take_backup_snapshot", "properties"): "that the blob is marked verified by this run",
    ("take_backup_snapshot", "now"): "the date, for the description",
    ("take_backup_snapshot", "put_if_absent"): "that this delivery takes it",
    ("take_backup_snapshot", "snapshot"): "the snapshot, with the whole restore point as its metadata",
    ("take_backup_snapshot", "get"): "whether another delivery has taken one meanwhile",
    ("commit_point", "head"): _OWNS + "; then the row for the update",
    ("commit_point", "properties"): "the snapshot's description; the blob's version",
    ("commit_point", "point"): "whether it was committed already",
    ("commit_point", "commit"): "restore point and head row, in one transaction",
    ("commit_point", "set_metadata"): "the mark that the blob is committed",
    ("commit_point", "put_head"): "the blob's version after that",
    ("drop_previous_snapshot", "head"): _OWNS,
    ("drop_previous_snapshot", "point"): "the new restore point and the former one",
    ("drop_previous_snapshot", "properties"): "that both halves of the new pair are there; whose the former snapshot is",
    ("drop_previous_snapshot", "delete_snapshot"): "the former snapshot of the source",
    ("prune_points", "head"): _OWNS + "; then the pair, which is kept",
    ("prune_points", "registration"): "how long points are kept",
    ("prune_points", "points"): "all restore points",
    ("prune_points", "pins"): "which of them are in use",
    ("prune_points", "now"): "the date",
    ("prune_points", "run"): "the run's row, for what has expired",
    ("finish_run", "run"): "the run's row, for its end",
    ("finish_run", "now"): "the date of its end",
    ("finish_run", "put_run"): "its end; then that it was logged",
    ("finish_run", "points"): "the last restore points: whether so much changed as usual",
    ("finish_run", "head"): "the row for the update",
    ("finish_run", "registration"): "whether the source is a managed disk, whose access would be ended",
    ("finish_run", "release_lease"): "the lease",
    ("finish_run", "put_head"): "the disk has no owner any more",
}
"""By step and call of a port."""


@dataclass(frozen=True)
class Asked:
    """Requests of one kind by one step."""

    step: str
    method: str
    service: str
    call: str
    """Of a port."""
    requests: int

    @property
    def row(self) -> tuple[str, ...]:
        """For the table. Raises KeyError for what is not explained."""
        return self.step, f"{self.requests}", f"{self.method} {self.service}", WHY[self.step, self.call]


@contextmanager
def watched(found: Counter[tuple[str, str, str]], tables: str) -> Iterator[None]:
    """Counts each request by method, service and the call of a port that it comes from."""
    sent = ClientSession._request  # noqa: SLF001  every request of the app goes through it

    async def request(self: ClientSession, method: str, url: Any, **options: Any) -> Any:  # noqa: ANN401  as what it replaces
        calls = [frame.name for frame in traceback.extract_stack() if "/backup_core/adapters/" in frame.filename]
        found[method, "table" if str(url).startswith(tables) else "blob", calls[0]] += 1
        return await sent(self, method, url, **options)

    with patch.object(ClientSession, "_request", request):
        yield


async def increment(storage: Storage, disk: str = "idle") -> list[Asked]:
    """The third backup of a disk of 1 MiB that nobody writes to."""
    with BlobServiceClient(storage.source.blobs, credential=storage.source.credential) as source:
        container = source.get_container_client(disk)
        container.create_container()
        blob = container.get_blob_client("disk.vhd")
        blob.create_page_blob(MIB)
        blob.upload_page(secrets.token_bytes(MIB), 0, MIB)
    names = {"CATALOGUE_TABLE": disk, "HEADS_CONTAINER": f"{disk}-heads", "PLANS_CONTAINER": f"{disk}-plans"}
    services = bootstrap.build(settings_for(storage, COPY_MODE="auto", **names))
    found: list[Asked] = []
    number = 0

    async def perform(name: str, step_input: dict[str, Any]) -> Any:  # noqa: ANN401  any JSON
        asked: Counter[tuple[str, str, str]] = Counter()
        with watched(asked, storage.state.tables):
            answer = await run_step(BY_NAME[name], services.tools_for, step_input)
        if number == 2:
            found.extend(Asked(name, *kind, count) for kind, count in asked.items())
        return answer

    try:
        await services.ready()
        registered = await respond(
            services.api, disks.put_disk, Request("", {"disk": disk}, {}, json.dumps({"source": blob.url}).encode())
        )
        if registered.status not in (200, 201):
            raise RuntimeError(registered.body)
        for number in range(3):
            run = f"{disk}.20260101T00000{number}Z.timer"
            request = BackupRequest(disk=disk, run=run, trigger="http").model_dump(mode="json")
            ended = await Driver({"backup_disk": backup_disk}, perform).run("backup_disk", request, run)
            if ended["state"] != "Succeeded":
                raise RuntimeError(ended)
    finally:
        await services.close()
    return found


def section(found: list[Asked]) -> Section:
    """Each request with its reason; what has none is an error."""
    steps = [
        step
        for step, following in zip(found, [*found[1:], None], strict=True)
        if following is None or following.step != step.step
    ]
    blobs = sum(one.requests for one in found if one.service == "blob")
    samples = sum(one.requests for one in found if one.call == "read")
    tables = sum(one.requests for one in found if one.service == "table")
    prose = words(
        f"A disk of 1 MiB that nobody has written to since its last backup: {len(steps)} steps, {blobs} requests to blobs, "
        f"{samples} of them samples of the content, and {tables} to tables. Each is listed with its reason. A step trusts "
        "nothing that an earlier one has read: it may be delivered twice, late, or after another run has taken the "
        "disk over; that "
        "is why every one of them asks who owns the disk."
    )
    return Section(
        "An increment without changes",
        f"{prose}\n\n{table(('step', 'requests', 'kind', 'for'), [one.row for one in found])}",
        met=True,
    )


def measure() -> Section:
    """On an emulator of its own."""
    with tempfile.TemporaryDirectory(prefix="pagekeeper-bench-") as folder, Storage(Path(folder)) as storage:
        return section(asyncio.run(increment(storage)))
