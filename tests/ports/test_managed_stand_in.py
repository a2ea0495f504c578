"""What the stand-in for Resource Manager does to managed disks and their snapshots, asked by the real SDK and over HTTP."""

from __future__ import annotations

import pytest
import requests
from azure.core.exceptions import HttpResponseError
from azure.core.pipeline.policies import SansIOHTTPPolicy
from azure.mgmt.compute.aio import ComputeManagementClient
from azure.mgmt.compute.models import CreationData, GrantAccessData, Snapshot
from azure.storage.blob import BlobClient

from devhost.machines import SUBSCRIPTION, disk_id

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


def answer(method, url, **headers):
    """(status, code, response) of a request to an export address."""
    version = {"x-ms-version": "2021-06-08"}
    response = requests.request(method, url, headers=version | {key.replace("_", "-"): str(value) for key, value in headers.items()},
                                timeout=9)  # fmt: skip
    return response.status_code, response.headers.get("x-ms-error-code", ""), response


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


async def test_revoked_access_ends_at_once(azure):
    await azure.take()
    url = await azure.grant()
    assert read(url)[0] == 206
    assert (await azure.get()).disk_state == "ActiveSAS"
    await azure.revoke()

    assert read(url)[:2] == (403, "AuthenticationFailed")
    assert (await azure.get()).disk_state == "Unattached"
