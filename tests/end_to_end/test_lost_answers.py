"""Requests are carried out and their answers lost: of blobs every answer once, of tables many.

The SDK, the data path or the orchestrator sends the request again and finds its work done: backups and a restore end as usual.
All runs in this process, so that the orchestrators' pauses cost no time; adapters, SDKs and emulator are the real ones.
"""

from __future__ import annotations

from collections import Counter
from contextlib import suppress
from datetime import UTC, datetime

import pytest
from azure.storage.blob.aio import ExponentialRetry

from backup_core import bootstrap
from backup_core.activities.runner import run_step
from backup_core.domain.errors import ServiceUnavailableError
from backup_core.domain.naming import parse_blob_url
from backup_core.domain.ranges import ByteRange
from backup_core.domain.records import Registration, Restoring, Run, Slot
from backup_core.orchestrations.registry import ORCHESTRATORS
from backup_core.steps import STEPS
from backup_core.steps.backup import BackupRequest
from backup_core.steps.restore import RestoreRequest
from bench.services import settings_for
from devhost.machines import GROUP, machine_id
from devhost.platform import DISKS_CONTAINER
from tests.disk import PAGE
from tests.doubles.driver import Driver

MIB = 1024 * 1024
WHOLE = ByteRange(0, MIB)
BY_NAME = {step.name: step for step in STEPS}
BLOBS = [
    "PUT blob",
    "PUT metadata",
    "PUT properties",
    "PUT snapshot",
    "PUT lease",
    "PUT page-from-url",
    "PUT clear",
    "DELETE blob",
]
TABLES = ["PUT table", "POST table"]


def losing(verb, passing):
    """Rules that lose an answer to the verb after so many kept ones; one of several rules counts at a time."""
    return [{"verb": verb, "loseReply": True, "skip": passing()} for _ in range(100)]


@pytest.fixture
async def services(calm, machines, name, monkeypatch):
    """The app's ports on the emulator; the SDK repeats at once."""
    monkeypatch.setattr(bootstrap, "ExponentialRetry", lambda **_: ExponentialRetry(0, 0, 4, random_jitter_range=0))
    settings = {"HEADS_CONTAINER": name, "PLANS_CONTAINER": f"{name}p", "CATALOGUE_TABLE": name, "MACHINE_GROUPS": GROUP}
    services = bootstrap.build(settings_for(calm, **settings, ARM_ENDPOINT=machines.endpoint))
    await services.ready()
    yield services
    await services.close()


class App:
    """One disk, its runs, and its content at each restore point."""

    def __init__(self, services, source, name):
        self.services, self.tools = services, services.api.tools
        self.source, self.name, self.content = source, name, bytearray(MIB)
        self.moments, self.runs = {}, 0

    def write(self, offset, data, lease=None):
        self.source.upload_page(data, offset, len(data), lease=lease)
        self.content[offset : offset + len(data)] = data

    async def perform(self, step, request):
        return await run_step(BY_NAME[step], self.services.toolboxes.__getitem__, request)

    async def run(self, orchestrator, request):
        output = await Driver(ORCHESTRATORS, self.perform).run(orchestrator, request.model_dump(mode="json"), request.run)
        assert output["state"] == "Succeeded", output
        (point,) = {point.point for point in await self.points()} - set(self.moments)
        self.moments[point] = bytes(self.content)

    def new_run(self):
        self.runs += 1
        return f"{self.name}.20260101T0000{self.runs:02d}Z.0000abcd"

    async def back_up(self):
        await self.run("backup_disk", BackupRequest(disk=self.name, run=self.new_run(), trigger="http", full=False))

    async def restore(self, point, target):
        """Restore the point into the machine."""
        slot, run = Slot(machine_id(self.name), 0), self.new_run()
        wanted = Restoring(point.point, target, slot=slot, repoint=True, adopt=True, old_disk=self.source.url)
        row = Run(
            self.name, run, "NotStarted", "http", full=False, created=datetime.now(UTC), operation="restore", restore=wanted
        )
        with suppress(ServiceUnavailableError):  # its own answer may be lost
            await self.tools.catalogue.put_run(row, None)
        self.content = bytearray(self.moments[point.point])
        await self.run("restore_disk", RestoreRequest(disk=self.name, run=run))

    async def points(self):
        """Restore points, newest first."""
        return [row.value for row in await self.tools.catalogue.points(self.name, 100)]

    async def check_every_point(self):
        points = {point.point: point for point in await self.points()}
        assert set(points) == set(self.moments)
        for name, point in points.items():
            assert await self.tools.blobs.read(self.tools.head(point.head), point.backup_snapshot, WHOLE) == self.moments[name]


async def test_lost_answers(services, platform, calm, machines, name, rng):
    """A full backup, two increments, a restore into the machine, and an increment of its new disk end as usual."""
    with platform.blobs(calm.source) as client:
        disks = client.get_container_client(DISKS_CONTAINER)
        app = App(services, disks.get_blob_client(f"{name}.vhd"), name)
        app.source.create_page_blob(MIB)
        app.write(0, b"\1" * 8 * PAGE)
        former, target = app.source.url, f"{disks.url}/{name}-again.vhd"
        machines.make(name, data={0: former})
        now, catalogue = datetime.now(UTC), app.tools.catalogue
        await catalogue.claim_source(former, name)
        await catalogue.put_registration(Registration(name, former, "", now, now), None)
        rules = [rule for verb in BLOBS for rule in losing(verb, lambda: 1)]
        # A step is tried five times, and may write as many rows: not every answer of the table can be lost.
        rules += [rule for verb in TABLES for rule in losing(verb, lambda: rng.randrange(3, 8))]
        calm.faults(*rules)
        await app.back_up()
        for value in (2, 3):
            app.write(value * PAGE, bytes([value]) * PAGE, machines.lease(former))
            await app.back_up()
        await app.restore((await app.points())[-1], target)
        app.source = disks.get_blob_client(f"{name}-again.vhd")
        app.write(5 * PAGE, bytes([5]) * PAGE, machines.lease(target))
        await app.back_up()

        lost = Counter(fault["verb"] for fault in calm.control("GET")["faults"] if not fault["times"])
        assert set(lost) == set(BLOBS + TABLES) - {"PUT clear"}, lost
        calm.faults()
        await app.check_every_point()
        assert machines.source(name, 0) == target
        assert await app.tools.blobs.read(parse_blob_url(target, [calm.source.blobs]), "", WHOLE) == bytes(app.content)
        assert [point.kind for point in await app.points()] == ["incremental", "restored", "incremental", "incremental", "full"]
        machines.delete(name)
