"""Managed disks and their snapshots by the real SDK, and export addresses over HTTP: the stand-in's client."""

from __future__ import annotations

import pytest
import requests
from azure.core.exceptions import HttpResponseError
from azure.core.pipeline.policies import SansIOHTTPPolicy
from azure.mgmt.compute import models
from azure.mgmt.compute.aio import ComputeManagementClient
from azure.mgmt.compute.models import CreationData, GrantAccessData, Snapshot
from azure.storage.blob import BlobClient

from devhost.machines import SUBSCRIPTION

MIB = 1024 * 1024
PAGE = 512
RESOURCES = "demo"


class Azure:
    """The SDK's client, and a guest that writes into disks."""

    def __init__(self, storage, machines, name):
        self.machines, self.name = machines, name
        self.key = storage.exports.credential
        self.client = ComputeManagementClient(
            Nobody(), SUBSCRIPTION, base_url=machines.endpoint, credential_scopes=["local"], polling_interval=0.05,
            authentication_policy=SansIOHTTPPolicy(), retry_total=0,
        )  # fmt: skip
        self.disk = machines.make_disk(name, data_bytes=MIB)

    def write(self, data, offset, disk=""):
        """Write as a running machine does."""
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


class Nobody:
    async def get_token(self, *_, **__):
        raise AssertionError


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
