"""The rights of each identity's role in infra/roles.json, and no more: as signatures, which the emulator enforces."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

import pytest
from azure.storage.blob import AccountSasPermissions, ResourceTypes, generate_account_sas

from backup_core import bootstrap
from backup_core.domain.errors import AccessDeniedError
from backup_core.domain.naming import BlobAddress
from backup_core.domain.ranges import ByteRange
from backup_core.ports import Fence, Guard
from bench.services import settings_for
from devhost.platform import REPOSITORY, Platform, awaited
from tests.disk import PAGE, Disk

MIB = 1024 * 1024
ROLES = json.loads((REPOSITORY / "infra" / "roles.json").read_text())


RIGHTS = {
    "read": {"read": True, "list": True},
    "write": {"write": True},
    "add/action": {"add": True, "create": True},
    "delete": {"delete": True},
}
"""What a data action permits, as permissions of a signature."""
ROLE_OF_KEY = {
    "source@source": "source",
    "writer@backup": "writer",
    "retention@backup": "retention",
    "retention@source": "retentionSource",
    "restore@source": "restore",
    "restore@backup": "restore",
}


@pytest.fixture
def keys(calm):
    """A signature per identity and account; no key of an account of blobs."""

    def signed(account, role):
        rights = {}
        for action in ROLES[role]["dataActions"]:
            rights |= RIGHTS[action.partition("/containers/blobs/")[2]]
        every = ResourceTypes(service=True, container=True, object=True)
        return generate_account_sas(
            account.name, account.key, every, AccountSasPermissions(**rights), datetime.now(UTC) + timedelta(hours=1)
        )

    accounts = {"source": calm.source, "backup": calm.backup}
    return {key: signed(accounts[key.partition("@")[2]], role) for key, role in ROLE_OF_KEY.items()} | {"state": calm.state.key}


@pytest.fixture
def platform(calm, machines, tmp_path, keys):
    settings = {"CATALOGUE_TABLE": "duties", "DEVELOPMENT_KEYS": json.dumps(keys)}
    with Platform(tmp_path, storage=calm, machines=machines, settings=settings) as running:
        yield running


def test_backups_prune_and_restore_each_with_their_own_rights(platform, name):
    """The whole cycle works: full, increments, a retention that deletes, a restore into the machine, an increment after it."""
    disk = Disk(platform, name, MIB)
    vm = platform.machines.make(name, data={0: platform.disk_url(f"{name}.vhd")})
    platform.protect(name, f"{name}.vhd", retention={"keepLast": 2}, machine={"vm": vm, "lun": 0})
    disk.lease = platform.machines.lease(platform.disk_url(f"{name}.vhd"))
    for value in range(4):
        disk.write(0, bytes([value + 1]) * PAGE)
        disk.back_up()
    assert len(disk.points()) == 2
    first = disk.points()[-1]["id"]

    plan = platform.api("POST", f"/disks/{name}/restores", {"restorePoint": first, "repoint": True, "dryRun": True}).json()
    assert {one["state"] for one in plan["permissions"]} == {"granted"}
    restored = platform.restore(name, {"restorePoint": first, "repoint": True})
    assert restored["state"] == "Succeeded", restored
    with platform.blobs(platform.storage.source) as client:
        copied = client.get_blob_client("vhds", restored["restore"]["target"].rpartition("/")[2])
        assert copied.download_blob().readall() == disk.moments[first]
    assert platform.back_up(name)["kind"] == "incremental"
    platform.machines.delete(name)
    disk.service.close()


async def test_no_identity_can_do_more(calm, keys, name):
    """Backups cannot delete a backup or write to a source; retention cannot write to a source; each refusal changes nothing."""
    services = bootstrap.build(
        settings_for(
            calm, HEADS_CONTAINER=name, PLANS_CONTAINER=f"{name}p", CATALOGUE_TABLE=name, DEVELOPMENT_KEYS=json.dumps(keys)
        )
    )
    open_ = bootstrap.build(settings_for(calm, HEADS_CONTAINER=name, PLANS_CONTAINER=f"{name}p", CATALOGUE_TABLE=name))
    await open_.ready()
    await open_.toolboxes["restore"].blobs._accounts[calm.source.blobs].create_container(name)
    source, head = BlobAddress(calm.source.blobs, name, "disk.vhd"), BlobAddress(calm.backup.blobs, name, "d/1/disk.vhd")
    blobs = open_.toolboxes["restore"].blobs
    for blob in (source, head):
        await blobs.create(blob, MIB, 0, {})
    taken = {blob: await blobs.snapshot(blob, {"a": "b"}) for blob in (source, head)}
    lease = "00000000-0000-0000-0000-000000000001"

    backup, retention = services.tools_for("backup").blobs, services.tools_for("retention").blobs
    forbidden = [
        lambda: backup.delete_snapshot(head, taken[head]),
        lambda: backup.delete_own(head, Guard(lease, '"0x1"')),
        lambda: backup.clear(source, ByteRange(0, PAGE), Fence(lease, 0)),
        lambda: backup.acquire_lease(source, lease),
        lambda: retention.clear(source, ByteRange(0, PAGE), Fence(lease, 0)),
        lambda: retention.snapshot(source, {}),
    ]
    before = [await blobs.properties(blob) for blob in taken]
    for call in forbidden:
        with pytest.raises(AccessDeniedError):
            await call()

    assert [await blobs.properties(blob) for blob in taken] == before
    assert [[one.snapshot for one in await blobs.snapshots(blob)] for blob in taken] == [[one] for one in taken.values()]
    await retention.delete_snapshot(head, taken[head])
    await backup.delete_snapshot(source, taken[source])
    await services.close()
    await open_.close()


# -- two apps -------------------------------------------------------------------------------------------------------


def test_retention_and_restore_in_an_app_of_their_own(calm, machines, tmp_path, keys, name):
    """Two apps from the same package have half of the functions and identities each: one makes backups, the other restores."""
    off = json.loads((REPOSITORY / "infra" / "switches.json").read_text())
    common = {"CATALOGUE_TABLE": "twoapps", "PRUNE_AFTER_BACKUP": "false"}
    backup_keys = {who: keys[who] for who in ("source@source", "writer@backup", "state")}
    # What custody does as the backups' owner, it does under its restore identity.
    others = {who: keys[who] for who in ("restore@source", "restore@backup", "retention@source", "retention@backup", "state")}
    others |= {"source@source": keys["restore@source"], "writer@backup": keys["restore@backup"]}

    def app(which, signed):
        switched = {f"AzureWebJobs_{function}_Disabled": "true" for function in off[which]}
        settings = {**common, **switched, "DEVELOPMENT_KEYS": json.dumps(signed)}
        return Platform(tmp_path / which, storage=calm, machines=machines, settings=settings)

    with app("backup", backup_keys) as platform, app("custody", others) as custody:
        disk = Disk(platform, name, MIB)
        vm = machines.make(name, data={0: platform.disk_url(f"{name}.vhd")})
        platform.protect(name, f"{name}.vhd", retention={"keepLast": 2}, machine={"vm": vm, "lun": 0})
        disk.lease = machines.lease(platform.disk_url(f"{name}.vhd"))
        for value in range(4):
            disk.write(0, bytes([value + 1]) * PAGE)
            disk.back_up()
        assert len(disk.points()) == 4
        assert platform.api("POST", f"/disks/{name}/restores", {}).status_code == 404
        assert custody.api("POST", f"/disks/{name}/backups").status_code == 404

        custody.host.fire("housekeeping")
        awaited(lambda: len(disk.points()) == 2, "two restore points are left")
        first = disk.points()[-1]["id"]
        restored = custody.restore(name, {"restorePoint": first, "repoint": True})
        assert restored["state"] == "Succeeded", restored
        with platform.blobs(calm.source) as client:
            copied = client.get_blob_client("vhds", restored["restore"]["target"].rpartition("/")[2])
            assert copied.download_blob().readall() == disk.moments[first]
        assert platform.back_up(name)["kind"] == "incremental"
        disk.service.close()
    machines.delete(name)
