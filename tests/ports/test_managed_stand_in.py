"""What the stand-in for Resource Manager does to managed disks and their snapshots, asked by the real SDK and over HTTP."""

from __future__ import annotations

import contextlib
import re
from datetime import UTC, datetime, timedelta
from urllib.parse import parse_qs, urlsplit

import pytest
import requests
from azure.core.exceptions import HttpResponseError
from azure.core.pipeline.policies import SansIOHTTPPolicy
from azure.mgmt.compute import models
from azure.mgmt.compute.aio import ComputeManagementClient
from azure.mgmt.compute.models import CreationData, Encryption, GrantAccessData, Snapshot
from azure.storage.blob import BlobClient, BlobServiceClient

from devhost.disks import vhd_footer
from devhost.machines import GROUP, SUBSCRIPTION, disk_id
from devhost.platform import awaited
from tests.disk import Disk

MIB = 1024 * 1024
PAGE = 512
RESOURCES = "demo"


class Azure:
    """The SDK's client, and a guest that writes into disks."""

    def __init__(self, storage, machines, name):
        self.machines, self.name = machines, name
        self.key = storage.exports.credential
        self.client = ComputeManagementClient(
            _Nobody(), SUBSCRIPTION, base_url=machines.endpoint, credential_scopes=["local"], polling_interval=0.05,
            authentication_policy=SansIOHTTPPolicy(), retry_total=0,
        )  # fmt: skip
        self.disk = machines.make_disk(name, data_bytes=MIB)

    def write(self, data, offset, disk=""):
        """What a running machine does."""
        blob = BlobClient.from_blob_url(self.machines.content(disk or self.disk), self.key)
        blob.upload_page(data, offset, len(data))
        blob.close()

    def body(self, disk="", **fields):
        creation = CreationData(create_option="Copy", source_resource_id=disk or self.disk)
        return Snapshot(location="local", incremental=True, creation_data=creation, **fields)

    async def take(self, number=1, disk="", **fields):
        name = f"{self.name}-{number}"
        poller = await self.client.snapshots.begin_create_or_update(RESOURCES, name, self.body(disk, **fields))
        return await poller.result()

    async def grant(self, number=1, seconds=600, **fields):
        data = GrantAccessData(access="Read", duration_in_seconds=seconds, **fields)
        poller = await self.client.snapshots.begin_grant_access(RESOURCES, f"{self.name}-{number}", data)
        return (await poller.result()).access_sas

    async def make_upload(self, size, **fields):
        creation = CreationData(create_option="Upload", upload_size_bytes=size)
        disk = models.Disk(location="local", creation_data=creation, **fields)
        await (await self.client.disks.begin_create_or_update(RESOURCES, self.name, disk)).result()

    async def revoke_disk(self):
        await (await self.client.disks.begin_revoke_access(RESOURCES, self.name)).result()

    async def grant_disk(self, access="Read"):
        data = GrantAccessData(access=access, duration_in_seconds=600)
        return (await (await self.client.disks.begin_grant_access(RESOURCES, self.name, data)).result()).access_sas

    async def revoke(self, number=1):
        await (await self.client.snapshots.begin_revoke_access(RESOURCES, f"{self.name}-{number}")).result()

    async def delete(self, number=1):
        await (await self.client.snapshots.begin_delete(RESOURCES, f"{self.name}-{number}")).result()

    async def get(self, number=1):
        return await self.client.snapshots.get(RESOURCES, f"{self.name}-{number}")


class _Nobody:
    async def get_token(self, *_, **__):
        raise AssertionError


@pytest.fixture
async def azure(calm, machines, name):
    made = Azure(calm, machines, name)
    yield made
    await made.client.close()


def answer(method, url, data=b"", **headers):
    """(status, code, response) of a request to an export address."""
    given = {key.replace("_", "-"): value for key, value in headers.items()} | {"x-ms-version": "2021-06-08"}
    response = requests.request(method, url, headers=given, data=data, timeout=9)
    return response.status_code, response.headers.get("x-ms-error-code", ""), response


def plain(method, url, body=None):
    return requests.request(method, url, json=body, timeout=9)


def read(url, first=0, length=PAGE):
    return answer("GET", url, x_ms_range=f"bytes={first}-{first + length - 1}")


def listed(url, previous, query=""):
    """A diff to the snapshot at `previous`."""
    return answer("GET", f"{url}&comp=pagelist{query}", x_ms_previous_snapshot_url=previous)


async def refused(work, status, code, words=""):
    with pytest.raises(HttpResponseError) as caught:
        await work
    assert (caught.value.status_code, caught.value.error.code) == (status, code)
    assert words in caught.value.message
    return caught.value


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


async def test_what_no_snapshot_is_taken_of(azure, machines):
    elsewhere = ComputeManagementClient(_Nobody(), "another", base_url=machines.endpoint, credential_scopes=["local"],
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
    ],
)
async def test_rights(azure, machines, action, work):
    await azure.take()
    machines.switch(not_actions=[f"Microsoft.Compute/{action}"])

    await refused(work(azure), 403, "AuthorizationFailed", action)


async def test_faults(azure, machines):
    """What a test asks for comes before an effect, or after it."""
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

    assert [one.rpartition("-")[2] for one in machines.open() if azure.name in one] == ["2"]


def test_a_misspelt_switch_is_refused(machines):
    with pytest.raises(ValueError, match="fill_steps"):
        machines.switch(fill_steps=3)


# -- access -------------------------------------------------------------------------------------------------------------


async def test_revoked_access_ends_at_once(azure):
    await azure.take()
    url = await azure.grant()
    assert read(url)[0] == 206
    assert (await azure.get()).disk_state == "ActiveSAS"
    await azure.revoke()
    await azure.revoke()

    assert read(url)[:2] == (403, "AuthenticationFailed")
    assert (await azure.get()).disk_state == "Unattached"


async def test_access_expires(azure, machines):
    await azure.take()
    url = await azure.grant(seconds=1)
    awaited(lambda: read(url)[:2] == (403, "AuthenticationFailed"), "the end of the SAS")
    awaited(lambda: (azure.disk + "-1").replace("/disks/", "/snapshots/").lower() not in machines.open(), "the grant's end")
    await azure.delete()


async def test_a_second_grant_extends_the_first(azure):
    """Its SAS is the same, and lives as long as the second one says."""
    await azure.take()
    first = await azure.grant(seconds=1)
    second = await azure.grant(seconds=600)

    assert second == first
    ended = datetime.now(UTC) + timedelta(seconds=1.1)
    while datetime.now(UTC) < ended:
        assert read(first)[0] == 206


async def test_a_second_grant_replaces_the_first(azure, machines):
    machines.switch(grant_extends=False)
    await azure.take()
    first, second = await azure.grant(), await azure.grant()

    assert second != first
    assert read(first)[:2] == (403, "AuthenticationFailed")
    assert read(second)[0] == 206


async def test_both_ways_of_following_a_grant(azure, machines):
    """By the operation, whose output has the SAS, and by its result."""
    taken = await azure.take()
    machines.faults({"method": "POST", "path": "beginGetAccess", "operation": True, "held": True})
    body = {"access": "Read", "durationInSeconds": 60}
    begun = plain("POST", f"{machines.endpoint}{taken.id}/beginGetAccess", body)
    operation, result = begun.headers["Azure-AsyncOperation"], begun.headers["Location"]
    assert begun.status_code == 202
    assert plain("GET", operation).json()["status"] == "InProgress"
    assert plain("GET", result).status_code == 202
    machines.faults()
    awaited(lambda: plain("GET", operation).json()["status"] != "InProgress", "the end of the grant")
    shown = plain("GET", operation).json()

    assert shown["status"] == "Succeeded"
    assert plain("GET", result).json() == shown["properties"]["output"]
    assert read(shown["properties"]["output"]["accessSAS"])[0] == 206


async def test_five_snapshots_of_a_disk_are_open_at_once(azure, machines):
    for number in range(6):
        await azure.take(number)
    for number in range(5):
        await azure.grant(number)
    await refused(azure.grant(5), 409, "OperationNotAllowed", "5 snapshots open")
    await azure.grant(4)
    other = machines.make_disk(f"{azure.name}-other", data_bytes=MIB)
    await azure.take(7, other)
    await azure.grant(7)
    await azure.revoke(0)

    assert read(await azure.grant(5))[0] == 206


@pytest.mark.parametrize("seconds", [0, 60 * 24 * 3600 + 1])
async def test_no_access_for_so_long(azure, seconds):
    await azure.take()
    await refused(azure.grant(seconds=seconds), 400, "InvalidParameter")


async def test_an_export_that_is_denied(azure):
    """The policy is what the request for the snapshot says, not the disk's."""
    await azure.take(network_access_policy="DenyAll")
    await refused(azure.grant(), 409, "OperationNotAllowed", "DenyAll")
    await azure.take(network_access_policy="AllowAll")

    assert read(await azure.grant())[0] == 206


async def test_sectors_of_4096_bytes(azure, machines):
    disk = machines.make_disk(azure.name, data_bytes=MIB, properties={"creationData": {"logicalSectorSize": 4096}})
    assert (await azure.client.disks.get(RESOURCES, azure.name)).creation_data.logical_sector_size == 4096
    await azure.take(disk=disk)
    await refused(azure.grant(), 400, "BadRequest", "file format")


async def test_a_disk_that_a_machine_uses(azure, machines):
    """Attached, it cannot be opened; open, its machine cannot start."""
    machines.make(azure.name, data={0: azure.disk})
    assert (await azure.client.disks.get(RESOURCES, azure.name)).disk_state == "Attached"
    await refused(azure.grant_disk(), 409, "OperationNotAllowed", "running VM")
    await azure.take()
    assert read(await azure.grant())[0] == 206
    poller = await azure.client.virtual_machines.begin_deallocate(RESOURCES, azure.name)
    await poller.result()
    assert (await azure.client.disks.get(RESOURCES, azure.name)).disk_state == "Reserved"
    url = await azure.grant_disk()
    assert read(url)[0] == 206
    await refused(azure.client.virtual_machines.begin_start(RESOURCES, azure.name), 409, "OperationNotAllowed", "cannot start")
    await azure.revoke_disk()
    await (await azure.client.virtual_machines.begin_start(RESOURCES, azure.name)).result()

    assert read(url)[:2] == (403, "AuthenticationFailed")
    machines.delete(azure.name)


async def test_siblings_of_a_deleted_snapshot(azure, machines):
    """Refused until they are granted again, where the switch says so; the same SAS is good again then."""
    for number in (1, 2, 3):
        await azure.take(number)
    url = await azure.grant(2)
    await azure.delete(1)
    assert read(url)[0] == 206
    machines.switch(siblings_denied=True)
    await azure.delete(3)
    assert read(url)[:2] == (403, "AuthenticationFailed")

    assert await azure.grant(2) == url
    assert read(url)[0] == 206


# -- the export addresses -----------------------------------------------------------------------------------------------


async def test_the_form_of_an_export_address(azure):
    """One blob for all snapshots of a disk; the time, the policy and the signature tell them apart, and no expiry is told."""
    await azure.take(1)
    await azure.take(2)
    first, second = urlsplit(await azure.grant(1)), urlsplit(await azure.grant(2))
    queries = [parse_qs(one.query) for one in (first, second)]

    assert first.path == second.path
    assert re.fullmatch(r"/md-local/[0-9a-f]{32}/abcd", first.path)
    assert [list(query) for query in queries] == [["snapshot", "sv", "sr", "si", "sig"]] * 2
    assert [(query["sv"], query["sr"]) for query in queries] == [(["2018-11-09"], ["bs"])] * 2
    assert all(queries[0][name] != queries[1][name] for name in ("snapshot", "si", "sig"))


async def test_a_sas_reads_its_own_snapshot_alone(azure):
    """Not another, not the disk, not without its time."""
    await azure.take(1)
    await azure.take(2)
    first, second = await azure.grant(1), await azure.grant(2)
    times = [parse_qs(urlsplit(one).query)["snapshot"][0].replace(":", "%3A") for one in (first, second)]

    assert read(first.replace(*times))[:2] == (403, "AuthenticationFailed")
    assert read(first.replace(f"snapshot={times[0]}&", ""))[:2] == (403, "AuthenticationFailed")
    assert read(first.partition("?")[0])[:2] == (404, "ResourceNotFound"), "nobody's request"
    assert read(first)[0] == 206


async def test_nothing_is_written_through_a_sas(azure):
    azure.write(b"\1" * PAGE, 0)
    await azure.take()
    url = await azure.grant()
    put = {"x_ms_page_write": "update", "x_ms_range": f"bytes=0-{PAGE - 1}"}

    assert answer("PUT", f"{url}&comp=page", b"\2" * PAGE, **put)[0] == 403
    assert answer("PUT", f"{url}&comp=snapshot")[0] == 403
    assert answer("DELETE", url)[0] == 403
    assert read(url)[2].content == b"\1" * PAGE


async def test_what_is_told_of_a_snapshots_blob(azure):
    """An incremental copy by its headers, with one Content-MD5 for all snapshots: it says nothing of the content."""
    await azure.take(1)
    azure.write(b"\1" * PAGE, 0)
    await azure.take(2)
    told = [answer("HEAD", await azure.grant(number))[2].headers for number in (1, 2)]

    assert told[0]["content-md5"] == told[1]["content-md5"]
    assert [(one["x-ms-incremental-copy"], one["x-ms-copy-status"], one["x-ms-blob-sequence-number"]) for one in told] == [
        ("true", "success", "2")
    ] * 2
    assert read(await azure.grant(1), MIB + PAGE)[:2] == (416, "InvalidRange")


async def test_both_snapshots_of_a_diff_have_to_be_open(azure):
    await azure.take(1)
    await azure.take(2)
    base, new = await azure.grant(1), await azure.grant(2)
    assert listed(new, base)[2].text.endswith("<PageList />")
    assert listed(new, base.partition("&sv")[0])[:2] == (403, "AuthenticationFailed")
    await azure.revoke(1)
    assert listed(new, base)[:2] == (403, "AuthenticationFailed")
    await azure.delete(1)

    assert listed(new, base)[:2] == (403, "AuthenticationFailed")


async def test_what_is_no_diff_of_a_managed_disk(azure, machines):
    """The previous snapshot by the parameter of page blobs; another disk's; a newer one."""
    await azure.take(1)
    await azure.take(2)
    other = machines.make_disk(f"{azure.name}-other", data_bytes=MIB)
    await azure.take(3, other)
    base, new, foreign = await azure.grant(1), await azure.grant(2), await azure.grant(3)
    time = parse_qs(urlsplit(base).query)["snapshot"][0]

    assert answer("GET", f"{new}&comp=pagelist&prevsnapshot={time}")[:2] == (400, "InvalidQueryParameterValue")
    assert listed(new, foreign)[:2] == (403, "AuthenticationFailed")
    assert listed(base, new)[:2] == (400, "PreviousSnapshotCannotBeNewer")


async def test_pages_of_a_diff(azure, calm):
    """By `maxresults` and a marker; by a switch refused, or ignored."""
    await azure.take(1)
    for page in (8, 16, 24):
        azure.write(b"\1" * PAGE, page * PAGE)
    await azure.take(2)
    base, new = await azure.grant(1), await azure.grant(2)
    first = listed(new, base, "&maxresults=2")[2].text
    marker = first.partition("<NextMarker>")[2].partition("</")[0]
    assert first.count("<PageRange>") == 2
    assert listed(new, base, f"&maxresults=2&marker={marker}")[2].text.count("<PageRange>") == 1
    calm.switch(exports={"maxresults": "refused"})
    assert listed(new, base, "&maxresults=2")[:2] == (400, "UnsupportedQueryParameter")
    assert listed(new, base, f"&marker={marker}")[:2] == (400, "UnsupportedQueryParameter")
    assert listed(new, base)[2].text.count("<PageRange>") == 3
    calm.switch(exports={"maxresults": "ignored"})
    found = listed(new, base, f"&maxresults=2&marker={marker}")[2].text

    assert found.count("<PageRange>") == 3
    assert "NextMarker" not in found


@pytest.mark.parametrize("in_diff", [True, False])
async def test_footers_that_differ(azure, machines, calm, in_diff):
    """Between two snapshots of a disk, and whether or not the diff tells of it; they are the same otherwise."""
    await azure.take(1)
    await azure.take(2)
    machines.switch(footer="differs")
    calm.switch(exports={"footerInDiff": in_diff})
    azure.write(b"\1" * PAGE, MIB - PAGE)
    await azure.take(3)
    urls = [await azure.grant(number) for number in (1, 2, 3)]
    footers = [read(url, MIB)[2].content for url in urls]
    end = MIB + PAGE if in_diff else MIB

    assert footers[0] == footers[1] != footers[2]
    assert f"<Start>{MIB - PAGE}</Start><End>{end - 1}</End></PageRange></PageList>" in listed(urls[2], urls[1])[2].text


@pytest.mark.parametrize("ends", [False, True])
async def test_a_disk_that_has_grown(azure, machines, calm, ends):
    """Where its footer was there is data now; a switch has the diff end where the smaller disk ended."""
    calm.switch(diffEnds=ends)
    await azure.take(1)
    machines.grow_disk(azure.disk, 2 * MIB)
    azure.write(b"\1" * PAGE, 2 * MIB - PAGE)
    taken = await azure.take(2)
    base, new = await azure.grant(1), await azure.grant(2)
    found = listed(new, base)[2].text

    assert taken.disk_size_bytes == 2 * MIB
    assert read(new, MIB)[2].content == bytes(PAGE)
    assert read(new, 2 * MIB)[2].content.startswith(b"conectix")
    assert read(base, MIB)[2].content.startswith(b"conectix")
    assert f"<ClearRange><Start>{MIB}</Start><End>{MIB + PAGE - 1}</End></ClearRange>" in found
    assert (f"<Start>{2 * MIB - PAGE}</Start>" in found) is not ends
    with pytest.raises(ValueError, match="cannot shrink"):
        machines.grow_disk(azure.disk, MIB)


async def test_no_diff_across_four_tebibytes(azure, machines):
    disk = machines.make_disk(azure.name, data_bytes=4 * 1024**4 - MIB)
    await azure.take(1, disk)
    machines.grow_disk(disk, 4 * 1024**4)
    await azure.take(2, disk)
    machines.grow_disk(disk, 4 * 1024**4 + MIB)
    await azure.take(3, disk)
    first, second, third = [await azure.grant(number) for number in (1, 2, 3)]

    assert listed(second, first)[0] == 200
    assert listed(third, second)[:2] == (409, "PreviousSnapshotOperationNotSupported")


@pytest.mark.parametrize("policy", ["AllowAll", "AllowPrivate"])
async def test_what_is_copied_out(azure, calm, policy):
    """Put Page From URL reads an export address; one for private access it refuses, and only to be read it is good."""
    azure.write(b"\1" * PAGE, 0)
    await azure.take(1, network_access_policy=policy)
    azure.write(b"\2" * PAGE, 0)
    await azure.take(2, network_access_policy=policy)
    base, new = await azure.grant(1), await azure.grant(2)
    with BlobServiceClient(calm.backup.blobs, credential=calm.backup.credential) as client:
        blob = client.create_container(azure.name).get_blob_client("copy")
        blob.create_page_blob(PAGE)
        if policy == "AllowAll":
            blob.upload_pages_from_url(new, 0, PAGE, 0)
            assert blob.download_blob().readall() == b"\2" * PAGE
            return
        with pytest.raises(HttpResponseError) as refusal:
            blob.upload_pages_from_url(new, 0, PAGE, 0)
    assert (refusal.value.status_code, refusal.value.error_code) == (409, "CopySourceCannotBeIncrementalCopyBlob")
    assert re.fullmatch(r"/md-impexp-local/[0-9a-f]{32}-\d{21}/abcd", urlsplit(new).path)
    assert list(parse_qs(urlsplit(new).query)) == ["sv", "sr", "si", "sig"]
    assert [read(url)[2].content for url in (base, new)] == [b"\1" * PAGE, b"\2" * PAGE]
    assert listed(new, base)[2].text.count("<PageRange>") == 1
    await azure.revoke(1)
    assert read(base)[:2] == (403, "AuthenticationFailed")
    assert listed(new, base)[:2] == (403, "AuthenticationFailed")


# -- uploads ------------------------------------------------------------------------------------------------------------


@pytest.fixture
async def upload(azure, machines):
    """A disk of 1 MiB to be uploaded to."""
    machines.switch(upload_bytes_min=MIB)
    azure.name += "-up"
    azure.disk += "-up"
    await azure.make_upload(MIB + PAGE)
    return azure


def put(url, offset, data):
    """A page written through a SAS."""
    written = {"x_ms_page_write": "update", "x_ms_range": f"bytes={offset}-{offset + len(data) - 1}"}
    return answer("PUT", f"{url}&comp=page", data, **written)


async def test_an_upload(upload, machines):
    """Ready, active, then a disk like another; until then nothing can be done with it."""
    shown = await upload.client.disks.get(RESOURCES, upload.name)
    assert (shown.disk_state, shown.disk_size_bytes) == ("ReadyToUpload", MIB)
    url = await upload.grant_disk("Write")
    assert (await upload.client.disks.get(RESOURCES, upload.name)).disk_state == "ActiveUpload"
    with pytest.raises(ValueError, match="ActiveUpload"):
        machines.make(upload.name, data={0: upload.disk})
    await refused(upload.take(), 409, "OperationNotAllowed", "ActiveUpload")
    await refused(upload.client.disks.begin_delete(RESOURCES, upload.name), 409, "OperationNotAllowed", "ActiveUpload")
    assert put(url, 0, b"\1" * PAGE)[0] == 201
    assert put(url, MIB, vhd_footer(MIB))[0] == 201
    assert answer("HEAD", url)[2].headers["content-length"] == str(MIB + PAGE)
    assert answer("GET", f"{url}&comp=pagelist")[2].text.count("<PageRange>") == 2
    await upload.revoke_disk()

    assert put(url, 0, b"\2" * PAGE)[0] == 403
    assert (await upload.client.disks.get(RESOURCES, upload.name)).disk_state == "Unattached"
    machines.make(upload.name, data={0: upload.disk})
    await upload.take()
    assert read(await upload.grant())[2].content == b"\1" * PAGE
    machines.delete(upload.name)


async def test_an_upload_that_is_no_vhd(upload):
    """Found when access is ended; what is there is found by the next writer."""
    url = await upload.grant_disk("Write")
    put(url, 0, b"\1" * PAGE)
    for footer in (bytes(PAGE), vhd_footer(MIB - PAGE), b"x" + vhd_footer(MIB)[1:]):
        assert put(url, MIB, footer)[0] == 201
        await refused(upload.revoke_disk(), 400, "InvalidVhd", "conectix")
        assert (await upload.client.disks.get(RESOURCES, upload.name)).disk_state == "ActiveUpload"
    again = await upload.grant_disk("Write")
    assert read(again)[2].content == b"\1" * PAGE
    put(again, MIB, vhd_footer(MIB))
    await upload.revoke_disk()


async def test_what_is_not_done_to_an_upload(upload):
    """Read only, made, deleted, labelled, leased."""
    await refused(upload.grant_disk("Read"), 409, "OperationNotAllowed", "upload")
    url = await upload.grant_disk("Write")
    made = {"x_ms_blob_type": "PageBlob", "x_ms_blob_content_length": str(MIB)}

    assert urlsplit(url).path.startswith("/md-impexp-local/")
    for method, query, headers in (
        ("PUT", "", made),
        ("DELETE", "", {}),
        ("PUT", "&comp=metadata", {"x_ms_meta_a": "b"}),
        ("PUT", "&comp=properties", {"x_ms_sequence_number_action": "increment"}),
        ("PUT", "&comp=lease", {"x_ms_lease_action": "acquire", "x_ms_lease_duration": "-1"}),
        ("PUT", "&comp=snapshot", {}),
    ):
        assert answer(method, url + query, **headers)[:2] == (403, "AuthorizationPermissionMismatch"), query


@pytest.mark.parametrize("size", [0, 20 * MIB, 20 * MIB + PAGE + 1, 19 * MIB + PAGE, 32 * 1024**4 + MIB + PAGE])
async def test_sizes_of_an_upload(azure, size):
    """Whole MiB and a footer, from 20 MiB to 32 TiB."""
    azure.name += "-up"
    await refused(azure.make_upload(size), 400, "InvalidParameter", "uploadSizeBytes")
    await refused(azure.client.disks.get(RESOURCES, azure.name), 404, "ResourceNotFound")


async def test_no_upload_with_both_disk_access_and_a_key(azure):
    azure.name += "-up"
    access, key = (
        f"{GROUP}/providers/Microsoft.Compute/diskAccesses/a",
        f"{GROUP}/providers/Microsoft.Compute/diskEncryptionSets/e",
    )
    encryption = Encryption(type="EncryptionAtRestWithCustomerKey", disk_encryption_set_id=key)
    fields = {"network_access_policy": "AllowPrivate", "disk_access_id": access}
    await refused(azure.make_upload(20 * MIB + PAGE, encryption=encryption, **fields), 400, "BadRequest", "diskAccessId")
    await azure.make_upload(20 * MIB + PAGE, **fields)
