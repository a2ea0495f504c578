"""Azure Resource Manager under each identity's own roles: their actions are enough for its calls."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from backup_core.domain.errors import AccessDeniedError
from backup_core.domain.ranges import ByteRange
from devhost.machines import disk_id, machine_id
from devhost.platform import REPOSITORY
from tests.ports.test_managed_sources import MIB, PAGE, RUN, azure_disk
from tests.ports.test_uploads import DATA, FOOTER, azure_upload

ROLES = json.loads((REPOSITORY / "infra" / "roles.json").read_text())
PRIVATE = {
    "networkAccessPolicy": "AllowPrivate",
    "diskAccessId": disk_id("access").replace("/disks/", "/diskAccesses/"),
}
"""A disk that is exported by private endpoints only: its snapshots and its successor name its disk access."""
PART = ByteRange(0, PAGE)


@pytest.fixture
async def source(calm, machines, name):
    """A managed disk with private export, which a virtual machine has."""
    managed = await azure_disk(calm, machines, name, properties=PRIVATE)
    machines.make(name, data={0: managed.disk.id})
    yield managed
    machines.delete(name)
    managed.content.close()
    await managed.services.close()


async def test_a_backup_needs_the_role_disks_alone(source, machines, name):
    """It looks at disk and machine, takes a snapshot, reads it and its diff to another, and removes the older one."""
    machines.switch(actions=ROLES["disks"]["actions"])
    blobs, disk = source.blobs, source.disk
    assert (await source.services.api.tools.machines.managed_disk(disk.id)).disk_access == PRIVATE["diskAccessId"]
    await source.services.api.tools.machines.machine(machine_id(name))
    first = await source.take()
    source.write(0, 7)
    second = await source.take(f"{RUN[:-5]}0123abcd")

    assert (await blobs.read(disk, second, PART))[0] == 7
    assert [one.range async for one in blobs.diff(disk, second, first, ByteRange(0, MIB))] == [PART]
    await blobs.close_access(disk)
    await blobs.delete_snapshot(disk, first)
    assert [one.snapshot for one in await blobs.snapshots(disk)] == [second]


async def test_the_night_needs_the_roles_of_retention_alone(source, machines):
    """It ends access that a dead run has left open, and deletes the snapshot."""
    taken = await source.take()
    await source.blobs.read(source.disk, taken, PART)
    machines.switch(actions=[*ROLES["retentionDisks"]["actions"], *ROLES["retentionMachine"]["actions"]])
    await source.blobs.close_access(source.disk)
    await source.blobs.delete_snapshot(source.disk, taken)

    assert await source.blobs.snapshots(source.disk) == []
    with pytest.raises(AccessDeniedError, match="snapshots/write"):
        await source.take()


async def test_a_restore_and_the_night_after_it_need_their_roles_alone(calm, machines, name):
    """The restore makes a disk, uploads it and reads it back; the night ends access that was left open."""
    upload = await azure_upload(calm, machines, name)
    machines.switch(actions=ROLES["machine"]["actions"])
    upload.disk = replace(upload.disk, run=RUN)
    await upload.make(network_access="AllowPrivate", disk_access=PRIVATE["diskAccessId"])
    for part in (DATA, FOOTER):
        await upload.copy(part, "copy_streamed")
    await upload.blobs.close_disk(upload.disk, ends=True)
    assert await upload.blobs.read(upload.disk, "", DATA) == b"\3" * DATA.size
    machines.switch(actions=ROLES["retentionMachine"]["actions"])
    await upload.blobs.close_disk(upload.disk)

    assert await upload.state() == "Unattached"
    machines.delete(name)
    await upload.services.close()
