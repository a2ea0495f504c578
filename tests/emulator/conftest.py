"""Containers on the emulator, and raw requests, to check what the SDK hides."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
import requests
from azure.storage.blob import BlobServiceClient, ContainerSasPermissions, generate_container_sas


class Container:
    """One container of one account, with SDK clients and raw signed requests."""

    def __init__(self, account, name):
        self.account, self.name = account, name
        self.service = BlobServiceClient(account.blobs, credential=account.credential)
        self.client = self.service.create_container(name)
        self.session = requests.Session()
        self.sas = generate_container_sas(
            account.name,
            name,
            account_key=account.key,
            permission=ContainerSasPermissions(read=True, write=True, delete=True, list=True),
            expiry=datetime.now(UTC) + timedelta(hours=2),
        )

    def page_blob(self, name, pages):
        blob = self.client.get_blob_client(name)
        blob.create_page_blob(pages * 512)
        return blob

    def url(self, blob, **query):
        pairs = "".join(f"&{key}={value}" for key, value in query.items())
        return f"{self.account.blobs}/{self.name}/{blob}?{self.sas}{pairs}"

    def send(self, method, blob, headers=None, body=b"", **query):
        """A raw request, signed by SAS; answers (status, code, response)."""
        response = self.session.request(
            method,
            self.url(blob, **query),
            headers={"x-ms-version": "2021-12-02", "Content-Length": str(len(body)), **(headers or {})},
            data=body,
            timeout=30,
        )
        return response.status_code, response.headers.get("x-ms-error-code", ""), response


@pytest.fixture
def source(calm, name):
    container = Container(calm.source, name)
    yield container
    container.service.close()


@pytest.fixture
def backup(calm, name):
    container = Container(calm.backup, name)
    yield container
    container.service.close()
