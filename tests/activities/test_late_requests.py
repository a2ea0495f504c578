"""A worker dies while a request is on its way. Its step is delivered again, and the request arrives in the middle of that: the run
succeeds all the same. The same happens when only the answer is lost, and the SDK sends the request again.
"""

from __future__ import annotations

import inspect
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta

import pytest

from backup_core.activities.copying import Copying
from backup_core.domain.errors import BackupError
from backup_core.domain.naming import managed_disk_id
from backup_core.domain.repoint import MachineDisk
from backup_core.ports import ManagedDisk
from tests.activities.acts import TARGET, contents_of, everything_kept, held, into, keep, sane, stop_before, stopped_before
from tests.scene import PAGE, VM, Scene

READS = {
    "properties", "snapshots", "read", "may_write", "get", "policy", "head", "run", "runs", "point", "points", "pins", "request",
    "source_holder", "claims", "disks", "now", "machine", "managed_disk",
}  # fmt: skip
UNCONDITIONAL = {"break_lease"}
"""Has to win against an owner that is still writing, so no version can be named. One that arrives late costs the run that broke it
before, as whatever else takes its lease away does.
"""
LATER = 12
"""A request arrives before one of so many others: what a step asks for from its beginning, and the beginning of the next one."""


class DiedError(Exception):
    """The worker is gone."""


class Wire:
    """The way from the app to the services. The `lost` request leaves and kills the worker; it arrives `after` others."""

    def __init__(self, scene, lost=None, after=0):
        self.asked, self._lost, self._after, self._on_its_way = [], lost, after, None
        tools = scene.tools
        ports = {name: _Port(getattr(tools, name), self) for name in ("blobs", "catalogue", "documents", "machines")}
        scene.tools = replace(tools, copying=Copying(ports["blobs"], "auto", lambda: 0.0), **ports)
        perform = scene.perform

        async def delivered_again(name, asked):
            try:
                return await perform(name, asked)
            except Exception as error:
                if DiedError.__name__ not in str(error):
                    raise
            return await perform(name, asked)

        scene.perform = delivered_again

    async def send(self, name, request):
        number = len(self.asked)
        self.asked.append(name)
        if number == self._lost:
            self._on_its_way = request
            raise DiedError
        if self._on_its_way and number == self._lost + 1 + self._after:
            arrived, self._on_its_way = self._on_its_way, None
            with suppress(BackupError):  # nobody waits for its answer
                await arrived()
        return await request()


class _Port:
    """A port behind the wire."""

    def __init__(self, port, wire):
        self._port, self._wire = port, wire

    def __getattr__(self, name):
        method = getattr(self._port, name)
        if not inspect.iscoroutinefunction(method):
            return method

        async def sent(*args, **fields):
            return await self._wire.send(name, lambda: method(*args, **fields))

        return sent


async def fresh():
    stage = Scene()
    stage.protect()
    stage.write(0, 1, 2, 3, None, 5)
    stage.write(20, 9, 9)
    return stage


async def backed_up():
    stage = await fresh()
    stage.machine()
    await stage.back_up()
    stage.write(2, 30, None)
    await stage.back_up()
    stage.write(6, 60)
    return stage


async def grown():
    stage = await backed_up()
    stage.blobs.blobs[stage.source()].size += 8 * PAGE
    stage.write(34, 34)
    return stage


async def interrupted():
    """A run died in the middle: the next finishes its target, then goes on with one of its own."""
    stage = await backed_up()
    await stop_before(stage, "verify_head")
    stage.world.pass_time(timedelta(minutes=16))
    stage.write(9, 90)
    return stage


async def back_up(stage):
    await stage.back_up()
    assert stage.content(stage.points()[-1]) == stage.blobs.blobs[stage.source()].content()


async def back_up_by_copy(stage):
    await stage.back_up(full=True, full_copy="blob")
    assert stage.points()[-1].kind == "full"
    assert stage.content(stage.points()[-1]) == stage.blobs.blobs[stage.source()].content()


async def restore(stage):
    point = stage.points()[0]
    await stage.restore(point)
    restored = stage.blob(stage.rows("run!")[0].restore.target)
    assert (restored.content(), restored.lease, restored.metadata) == (stage.content(point), "", {})


async def restore_into_the_machine(stage):
    before = held(stage)
    await stage.restore(stage.points()[0], **into())
    assert held(stage) != before
    sane(stage)


async def pruned():
    stage = await backed_up()
    keep(stage, 1)
    return stage


async def back_up_and_prune(stage):
    """A point whose row had changed is left to the next prune."""
    await stage.back_up()
    assert [point.state for point in stage.points()].count("available") == 1


async def between_two_disks():
    """A restore died after it took the machine's disk away."""
    stage = await backed_up()
    await stopped_before(stage, "move_machine", 2)
    stage.world.pass_time(timedelta(minutes=16))
    return stage


async def back_up_and_settle(stage):
    await stage.back_up()
    sane(stage)


async def off_and_on():
    stage = await fresh()
    stage.machine(lun=None)
    await stage.back_up()
    return stage


async def restore_the_os_disk(stage):
    await stage.restore(stage.points()[0], **into(None, stop_vm=True))
    assert held(stage, None) == TARGET
    assert stage.machines.machines[VM].power == "running"


OLD, NEW = managed_disk_id(VM, "old"), managed_disk_id(VM, "new")


async def managed():
    stage = await fresh()
    await stage.back_up()
    stage.machines.disks[OLD] = ManagedDisk(OLD, "Succeeded", "", PAGE, sku="Premium_LRS")
    stage.machines.add(VM, MachineDisk("old", OLD, managed=True, lun=0))
    return stage


async def restore_to_a_managed_disk(stage):
    await stage.restore(stage.points()[0], **into(managed_disk=NEW, adopt=False, old_disk=OLD))
    assert held(stage) == NEW


WAYS = {  # what is there before, what is done, and how many restore points there are after it, if that is certain
    "a backup that prunes": (pruned, back_up_and_prune, None),
    "a backup that settles a machine": (between_two_disks, back_up_and_settle, 3),
    "a restore of the OS disk": (off_and_on, restore_the_os_disk, 2),
    "a restore to a managed disk": (managed, restore_to_a_managed_disk, 1),
    "a full backup": (fresh, back_up, 1),
    "an increment": (backed_up, back_up, 3),
    "an increment of a disk that grew": (grown, back_up, 3),
    "a backup that finishes another": (interrupted, back_up, 4),
    "a full backup by Copy Blob": (backed_up, back_up_by_copy, 3),
    "a restore": (backed_up, restore, 2),
    "a restore into the machine": (backed_up, restore_into_the_machine, 3),
}


@pytest.mark.parametrize("way", WAYS)
async def test_a_request_that_arrives_late(way):
    """Every request that changes something, before each of the next that are made: one way or the other the run does its work."""
    begin, act, points = WAYS[way]
    stage = await begin()
    wire = Wire(stage)
    await act(stage)

    for number, name in enumerate(wire.asked):
        for after in range(LATER if name not in READS | UNCONDITIONAL else 0):
            stage = await begin()
            contents = contents_of(stage)
            Wire(stage, number, after)
            try:
                await act(stage)
                assert stage.rows("pin!") == []
                if points:
                    assert len(stage.points()) == points
                    everything_kept(stage, contents)
            except Exception as error:
                message = f"{way}: request {number}, {name}, arriving {after} requests late: {error}"
                raise AssertionError(message) from error
