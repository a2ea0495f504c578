"""The stand-in's managed disks and snapshots, as the real SDK sees them."""

from __future__ import annotations

import contextlib

import pytest
from azure.core.exceptions import HttpResponseError
from azure.core.pipeline.policies import SansIOHTTPPolicy
from azure.mgmt.compute.aio import ComputeManagementClient

from devhost.disks import vhd_footer
from devhost.machines import disk_id
from tests.disk import Disk
from tests.ports.arm_client import MIB, PAGE, RESOURCES, Nobody, answer, listed, plain, read, refused


async def test_a_disk_as_azure_shows_it(azure):
    found = await azure.client.disks.get(RESOURCES, azure.name)

    assert (found.id, found.disk_size_bytes, found.disk_state) == (disk_id(azure.name), MIB, "Unattached")
    assert (found.network_access_policy, found.sku.name, found.provisioning_state) == ("AllowAll", "Premium_LRS", "Succeeded")
    assert found.unique_id
    assert found.time_created


async def test_a_snapshot_is_the_disk_of_its_moment(azure):
    """Read through the export address: the data, then a footer of 512 bytes."""
    azure.write(b"\1" * PAGE, 0)
    taken = await azure.take(tags={"run": "1"})
    azure.write(b"\2" * PAGE, 0)
    disk = await azure.client.disks.get(RESOURCES, azure.name)
    url = await azure.grant()

    assert (taken.disk_size_bytes, taken.incremental, taken.completion_percent) == (MIB, True, 100)
    assert (taken.creation_data.source_resource_id, taken.creation_data.source_unique_id) == (disk.id, disk.unique_id)
    assert taken.tags == {"run": "1"}
    assert read(url)[2].content == b"\1" * PAGE
    assert answer("HEAD", url)[2].headers["content-length"] == str(MIB + PAGE)
    assert read(url, MIB)[2].content.startswith(b"conectix")


async def test_a_diff_between_two_snapshots(azure):
    """By the previous snapshot's URL, with its SAS."""
    await azure.take(1)
    azure.write(b"\1" * PAGE, 8 * PAGE)
    await azure.take(2)
    base, new = await azure.grant(1), await azure.grant(2)
    status, _, found = listed(new, base)

    assert status == 200
    assert "<PageRange><Start>4096</Start><End>4607</End></PageRange>" in found.text
    assert found.text.count("Range>") == 2


def test_the_platforms_managed_disk(platform, calm, machines, name):
    """Made of a VHD and put into a machine by one call; its guest writes while the machine runs, the VHD stays as it is."""
    vhd = Disk(platform, name, MIB + PAGE)
    vhd.write(MIB, vhd_footer(MIB))
    vhd.write(0, b"\1" * PAGE)
    disk = platform.managed_disk(name, vhd=f"{name}.vhd", machine=name, lun=3, sku={"name": "StandardSSD_LRS"})
    with platform.managed_content(disk) as blob:
        assert blob.download_blob().readall() == bytes(vhd.content)
        blob.upload_page(b"\2" * PAGE, 0, PAGE)
        assert blob.download_blob(0, PAGE).readall() == b"\2" * PAGE

    assert (machines.source(name, 3), machines.power(name)) == (disk, "running")
    assert plain("GET", machines.endpoint + disk).json()["sku"] == {"name": "StandardSSD_LRS"}
    assert vhd.read() == bytes(vhd.content)
    vhd.service.close()
    machines.delete(name)


# -- snapshots ----------------------------------------------------------------------------------------------------------


async def test_a_name_that_is_taken_takes_nothing(azure):
    """The request succeeds, with the tags it gives: the snapshot is of its own time."""
    azure.write(b"\1" * PAGE, 0)
    first = await azure.take(tags={"run": "1"})
    azure.write(b"\2" * PAGE, 0)
    again = await azure.take(tags={"run": "2"})

    assert (again.time_created, again.unique_id, again.tags) == (first.time_created, first.unique_id, {"run": "2"})
    assert read(await azure.grant())[2].content == b"\1" * PAGE


async def test_a_name_of_another_disks_snapshot(azure, machines):
    first = await azure.take()
    other = machines.make_disk(f"{azure.name}-other", data_bytes=MIB)
    await refused(azure.take(disk=other), 400, "PropertyChangeNotAllowed", "'sourceUri'")

    assert (await azure.get()).unique_id == first.unique_id


async def test_snapshots_of_a_disk_in_their_order(azure):
    """Times rise, to seven decimals; the family is the disk's."""
    first, second = await azure.take(1), await azure.take(2)

    assert first.time_created < second.time_created
    assert first.incremental_snapshot_family_id == second.incremental_snapshot_family_id
    assert len(azure.machines.snapshots()[-1]["properties"]["timeCreated"]) == len("2026-11-28T15:00:00.1234567+00:00")


async def test_a_disk_made_again_by_its_name(azure, machines):
    """Another unique id, another family; the former disk's snapshots stay, and no diff leads from them."""
    first = await azure.take(1)
    machines.make_disk(azure.name, data_bytes=MIB)
    second = await azure.take(2)

    assert first.creation_data.source_resource_id == second.creation_data.source_resource_id
    assert first.creation_data.source_unique_id != second.creation_data.source_unique_id
    assert first.incremental_snapshot_family_id != second.incremental_snapshot_family_id
    base, new = await azure.grant(1), await azure.grant(2)
    assert read(base)[0] == 206
    assert listed(new, base)[:2] == (403, "AuthenticationFailed")


async def test_a_snapshot_of_an_invalid_source_is_refused(azure, machines):
    elsewhere = ComputeManagementClient(Nobody(), "another", base_url=machines.endpoint, credential_scopes=["local"],
                                        authentication_policy=SansIOHTTPPolicy(), retry_total=0)  # fmt: skip
    async with elsewhere:
        take = elsewhere.snapshots.begin_create_or_update(RESOURCES, azure.name, azure.body())
        await refused(take, 400, "InvalidParameter", "subscription")
    await refused(azure.take(disk=disk_id("none")), 404, "ResourceNotFound")
    body = azure.body()
    body.location = "elsewhere"
    await refused(azure.client.snapshots.begin_create_or_update(RESOURCES, azure.name, body), 400, "BadRequest", "elsewhere")
    name = f"{azure.name:-<81}"
    await refused(azure.client.snapshots.begin_create_or_update(RESOURCES, name, azure.body()), 400, "InvalidResourceName")
    body = azure.body()
    body.incremental = False
    await refused(azure.client.snapshots.begin_create_or_update(RESOURCES, azure.name, body), 400, "InvalidParameter")

    assert not [one for one in machines.snapshots() if one["name"].startswith(azure.name)]


async def test_too_many_snapshots(azure, machines):
    """The one too many is left in the state Failed, and stays so by its name."""
    machines.switch(snapshots_max=2)
    await azure.take(1)
    await azure.take(2)
    for _ in range(2):
        with contextlib.suppress(HttpResponseError):
            await azure.take(3)
        failed = await azure.get(3)
        assert (failed.provisioning_state, failed.time_created) == ("Failed", None)
    with pytest.raises(HttpResponseError, match="SnapshotsLimitReached"):
        await azure.take(4)
    await refused(azure.grant(3), 409, "OperationNotAllowed", "Succeeded")
    for number in (1, 3, 4):
        await azure.delete(number)
    await azure.take(5)

    assert (await azure.get(5)).provisioning_state == "Succeeded"


async def test_too_many_snapshots_within_five_minutes(azure, machines):
    machines.switch(snapshots_per_five_minutes=2)
    await azure.take(1)
    await azure.take(2)
    await refused(azure.take(3), 409, "OperationNotAllowed", "5 minutes")
    other = machines.make_disk(f"{azure.name}-other", data_bytes=MIB)

    assert (await azure.take(3, other)).provisioning_state == "Succeeded"


async def test_a_snapshot_that_fills_in_the_background(azure, machines):
    """Each look finds it further; it cannot be opened before."""
    disk = machines.make_disk(azure.name, data_bytes=MIB, sku={"name": "PremiumV2_LRS"})
    machines.switch(fill_step=0)
    taken = await azure.take(disk=disk)
    assert (taken.provisioning_state, taken.completion_percent) == ("Succeeded", 0)
    await refused(azure.grant(), 409, "OperationNotAllowed", "background")
    machines.switch(fill_step=40)
    seen = [(await azure.get()).completion_percent for _ in range(3)]

    assert seen == [40, 80, 100]
    assert read(await azure.grant())[0] == 206


async def test_a_snapshot_that_is_never_filled(azure, machines):
    """Said so, or by a resize of its disk."""
    disk = machines.make_disk(azure.name, data_bytes=MIB, sku={"name": "UltraSSD_LRS"})
    machines.switch(fill_step=0)
    for number in (1, 2, 3):
        await azure.take(number, disk)
    await refused(azure.take(4, disk), 409, "OperationNotAllowed", "background")
    machines.fill((await azure.get(1)).id, 30, "no reason")
    machines.fill((await azure.get(2)).id, 100)
    machines.grow_disk(disk, 2 * MIB)
    machines.switch(fill_step=40)

    found = [await azure.get(number) for number in (1, 2, 3)]
    assert [one.completion_percent for one in found] == [30, 100, 0]
    assert [one.copy_completion_error and one.copy_completion_error.error_message for one in found] == [
        "no reason", None, "the source disk was resized",
    ]  # fmt: skip


async def test_the_snapshots_of_a_resource_group(azure):
    """All of them, over several pages; another group has its own."""
    for number in range(5):
        await azure.take(number)
    poller = await azure.client.snapshots.begin_create_or_update("others", f"{azure.name}-x", azure.body())
    await poller.result()
    names = [one.name async for one in azure.client.snapshots.list_by_resource_group(RESOURCES)]
    other = [one.name async for one in azure.client.snapshots.list_by_resource_group("Others")]

    assert [name for name in names if name.startswith(azure.name)] == [f"{azure.name}-{number}" for number in range(5)]
    assert other == [f"{azure.name}-x"]


async def test_a_deleted_snapshot(azure, machines):
    """Gone, also when it was not there; open, it stays."""
    await azure.take()
    url = await azure.grant()
    await refused(azure.delete(), 409, "OperationNotAllowed", "revoke it first")
    assert read(url)[0] == 206
    await azure.revoke()
    await azure.delete()
    await azure.delete()

    await refused(azure.get(), 404, "ResourceNotFound")


async def test_a_name_made_anew_is_missing_for_a_while(azure, machines):
    await azure.take()
    await azure.delete()
    machines.switch(hidden_looks=2)
    await azure.client.snapshots.begin_create_or_update(RESOURCES, f"{azure.name}-1", azure.body(), polling=False)
    for _ in range(2):
        await refused(azure.get(), 404, "ResourceNotFound")

    assert (await azure.get()).name == f"{azure.name}-1"


@pytest.mark.parametrize(
    ("action", "work"),
    [
        ("snapshots/read", lambda azure: azure.get()),
        ("snapshots/write", lambda azure: azure.take(2)),
        ("disks/beginGetAccess/action", lambda azure: azure.take(2)),
        ("snapshots/delete", lambda azure: azure.delete()),
        ("snapshots/beginGetAccess/action", lambda azure: azure.grant()),
        ("snapshots/endGetAccess/action", lambda azure: azure.revoke()),
        ("disks/beginGetAccess/action", lambda azure: azure.grant_disk()),
        ("locations/diskOperations/read", lambda azure: azure.take(2)),
        ("locations/diskOperations/read", lambda azure: azure.revoke()),
    ],
)
async def test_rights(azure, machines, action, work):
    await azure.take()
    machines.switch(not_actions=[f"Microsoft.Compute/{action}"])

    await refused(work(azure), 403, "AuthorizationFailed", action)


async def test_faults(azure, machines):
    """A fault that a test requests occurs before an effect, or after it."""
    machines.faults({"method": "PUT", "path": "/snapshots/", "status": 403, "code": "RequestDisallowedByPolicy"})
    await refused(azure.take(), 403, "RequestDisallowedByPolicy")
    await refused(azure.get(), 404, "ResourceNotFound")
    machines.faults({"method": "PUT", "path": "/snapshots/", "code": "InternalError", "operation": True, "after": True})
    with pytest.raises(HttpResponseError, match="InternalError"):
        await azure.take(1)
    assert (await azure.get(1)).provisioning_state == "Failed"
    await azure.take(2)
    machines.faults({"method": "DELETE", "path": "/snapshots/", "status": 409, "code": "ScopeLocked"})
    await refused(azure.delete(2), 409, "ScopeLocked")
    machines.faults({"method": "POST", "path": "/beginGetAccess", "status": 429, "code": "TooManyRequests", "retry_after": "3"})
    limited = await refused(azure.grant(2), 429, "TooManyRequests")
    assert limited.response.headers["Retry-After"] == "3"
    machines.faults({"method": "POST", "path": "/beginGetAccess", "code": "InternalError", "operation": True, "after": True})
    with pytest.raises(HttpResponseError, match="InternalError"):
        await azure.grant(2)

    assert [one.rpartition("-")[2] for one in machines.open(azure.name)] == ["2"]


def test_a_misspelt_switch_is_refused(machines):
    with pytest.raises(ValueError, match="fill_steps"):
        machines.switch(fill_steps=3)
