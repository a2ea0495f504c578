"""Every kind of run, with what is there before it; and the wire between the app and its services, on which requests can be delayed."""

from __future__ import annotations

import inspect
from dataclasses import replace
from datetime import timedelta

from backup_core.domain.ending import HEARTBEAT_MAX
from backup_core.domain.managed import ManagedDisk
from backup_core.domain.naming import managed_disk_id
from backup_core.domain.repoint import MachineDisk
from backup_core.protocol.copy_route import Copying
from devhost.disks import vhd_footer
from tests.activities.acts import (
    TARGET,
    attached_disk,
    contents_of,
    everything_kept,
    into,
    keep,
    sane,
    stop_before,
    stopped_before,
)
from tests.scene import PAGE, VM, Scene


class Wire:
    """The way from the app to the services: `requests` lists those sent, by name. Subclasses decide the fate of each."""

    def __init__(self, scene):
        self.requests = []
        ports = {name: _Port(getattr(scene.tools, name), self) for name in ("blobs", "catalogue", "documents", "machines")}
        scene.tools = replace(scene.tools, copying=Copying(ports["blobs"], "auto", lambda: 0.0), **ports)
        self._perform, scene.perform = scene.perform, self.perform

    async def perform(self, name, request):
        """One delivery of a step."""
        return await self._perform(name, request)

    async def send(self, name, request):
        """One request, by the name of the port's method."""
        self.requests.append(name)
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


# -- what is there before ------------------------------------------------------------------------------------------------

OLD, NEW = managed_disk_id(VM, "old"), managed_disk_id(VM, "new")
FOOTER = vhd_footer(31 * PAGE)
"""One for all, since each has an id of its own."""


async def never_backed_up():
    stage = Scene()
    stage.protect()
    stage.write(0, 1, 2, 3, None, 5)
    stage.write(20, 9, 9)
    return stage


async def backed_up():
    stage = await never_backed_up()
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
    """A run died in the middle: the next finishes its target, then continues with one of its own."""
    stage = await backed_up()
    await stop_before(stage, "verify_head")
    stage.world.pass_time(HEARTBEAT_MAX + timedelta(minutes=1))
    stage.write(9, 90)
    return stage


async def keeping_one():
    stage = await backed_up()
    keep(stage, 1)
    return stage


async def between_two_disks():
    """A restore died after it took the machine's disk away."""
    stage = await backed_up()
    await stopped_before(stage, "move_machine", 2)
    stage.world.pass_time(HEARTBEAT_MAX + timedelta(minutes=1))
    return stage


async def with_an_os_disk():
    stage = await never_backed_up()
    stage.machine(lun=None)
    await stage.back_up()
    return stage


async def with_a_managed_disk():
    return await _with_a_managed_disk(await never_backed_up())


async def with_a_vhd():
    """A disk that can be uploaded: Azure checks the footer when the upload ends."""
    stage = await never_backed_up()
    stage.blobs.poke(stage.source(), 31, [FOOTER])
    return await _with_a_managed_disk(stage)


async def _with_a_managed_disk(stage):
    await stage.back_up()
    stage.machines.disks[OLD] = ManagedDisk(OLD, "Succeeded", "", PAGE, sku="Premium_LRS")
    stage.machines.add(VM, MachineDisk("old", OLD, managed=True, lun=0))
    return stage


# -- what is done --------------------------------------------------------------------------------------------------------


async def back_up(stage):
    await stage.back_up()
    assert stage.content(stage.points()[-1]) == stage.blobs.blobs[stage.source()].content()


async def back_up_by_copy(stage):
    await stage.back_up(full=True, full_copy="blob")
    assert stage.points()[-1].kind == "full"
    assert stage.content(stage.points()[-1]) == stage.blobs.blobs[stage.source()].content()


async def back_up_and_prune(stage):
    """A point whose row had changed is left to the next prune."""
    await stage.back_up()
    assert [point.state for point in stage.points()].count("available") == 1


async def back_up_and_settle_the_change(stage):
    await stage.back_up()
    sane(stage)


async def restore(stage):
    point = stage.points()[0]
    await stage.restore(point)
    restored = stage.blob(stage.rows("run!")[0].restore.target)
    assert (restored.content(), restored.lease, restored.metadata) == (stage.content(point), "", {})


async def restore_into_the_machine(stage):
    before = attached_disk(stage)
    await stage.restore(stage.points()[0], **into())
    assert attached_disk(stage) != before
    sane(stage)


async def restore_the_os_disk(stage):
    await stage.restore(stage.points()[0], **into(None, stop_vm=True))
    assert attached_disk(stage, None) == TARGET
    assert stage.machines.machines[VM].power == "running"


async def adopt_a_managed_disk(stage):
    """Imported, compared, given to the machine: backups continue from it, incrementally."""
    stage.machines.signs = True
    await stage.restore(stage.points()[0], **into(managed_disk=NEW, old_disk=OLD))
    assert attached_disk(stage) == NEW
    sane(stage)


async def restore_to_a_managed_disk(stage):
    await stage.restore(stage.points()[0], **into(managed_disk=NEW, adopt=False, old_disk=OLD))
    assert attached_disk(stage) == NEW


async def upload_a_managed_disk(stage):
    await stage.restore(stage.points()[0], **into(target=NEW, managed_disk=NEW, adopt=False, old_disk=OLD))
    assert attached_disk(stage) == NEW
    assert stage.bytes_of(NEW) == stage.content(stage.points()[0])


async def adopt_an_upload(stage):
    """Written, closed, compared, given to the machine."""
    await stage.restore(stage.points()[0], **into(target=NEW, managed_disk=NEW, old_disk=OLD))
    assert attached_disk(stage) == NEW
    sane(stage)


WAYS = {
    "a backup that prunes": (keeping_one, back_up_and_prune, None),
    "a backup that settles a machine": (between_two_disks, back_up_and_settle_the_change, 3),
    "a restore of the OS disk": (with_an_os_disk, restore_the_os_disk, 2),
    "a restore to a managed disk": (with_a_managed_disk, restore_to_a_managed_disk, 1),
    "a restore to a managed disk that is adopted": (with_a_managed_disk, adopt_a_managed_disk, 2),
    "an upload to a managed disk": (with_a_vhd, upload_a_managed_disk, 1),
    "an upload to a managed disk that is adopted": (with_a_vhd, adopt_an_upload, 2),
    "a full backup": (never_backed_up, back_up, 1),
    "an increment": (backed_up, back_up, 3),
    "an increment of a disk that grew": (grown, back_up, 3),
    "a backup that finishes another": (interrupted, back_up, 4),
    "a full backup by Copy Blob": (backed_up, back_up_by_copy, 3),
    "a restore": (backed_up, restore, 2),
    "a restore into the machine": (backed_up, restore_into_the_machine, 3),
}
"""What is there before, what is done, and how many restore points there are after it, if that is certain."""


async def requests_of(way):
    """The names of the requests of an undisturbed run."""
    begin, act, _ = WAYS[way]
    stage = await begin()
    wire = Wire(stage)
    await act(stage)
    return wire.requests


async def run_over(way, wired):
    """Do it over the wire that `wired` makes, and check what must be so after it; the wire."""
    begin, act, points = WAYS[way]
    stage = await begin()
    contents, wire = contents_of(stage), wired(stage)
    await act(stage)
    assert stage.rows("pin!") == []
    if points:
        assert len(stage.points()) == points
        everything_kept(stage, contents)
    return wire
