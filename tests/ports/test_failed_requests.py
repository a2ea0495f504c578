"""Every request of the storage adapters to a service that is not there, breaks the connection, or refuses.

The data path (`copy_streamed`, `read`, listings) retries by itself: tests/ports/test_transport.py has its broken connections.
"""

from __future__ import annotations

import inspect
from contextlib import asynccontextmanager

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer, unused_port
from azure.core.credentials import AzureSasCredential
from azure.storage.blob.aio import BlobServiceClient

from backup_core.adapters.documents import AzureDocuments
from backup_core.adapters.page_blobs import AzurePageBlobs
from backup_core.domain.errors import (
    AccessDeniedError,
    BlobChangedError,
    BlobExistsError,
    ContainerMissingError,
    CopySourceRefusedError,
    HostUnknownError,
    ServiceUnavailableError,
    UnexpectedAnswerError,
)
from backup_core.domain.naming import BlobAddress
from backup_core.ports import Guard

SNAPSHOT = "2026-11-29T00:00:00.0000000Z"
GUARD = Guard("11111111-2222-3333-4444-555555555555", '"0x1"')
DATA_PATH = {"allocated", "diff", "read", "copy_streamed", "copy_from_url", "clear", "start_copy"}
"""Of these, `start_copy` signs its source by the data path, and sends as `start_copy_of`."""

BLOBS = {
    "properties": lambda blobs, blob: blobs.properties(blob, SNAPSHOT),
    "create": lambda blobs, blob: blobs.create(blob, 512, 0, {}),
    "delete_own": lambda blobs, blob: blobs.delete_own(blob, GUARD),
    "may_write": lambda blobs, blob: blobs.may_write(blob.account, blob.container),
    "acquire_lease": lambda blobs, blob: blobs.acquire_lease(blob, GUARD.lease),
    "break_lease": lambda blobs, blob: blobs.break_lease(blob),
    "release_lease": lambda blobs, blob: blobs.release_lease(blob, GUARD.lease),
    "start_copy_of": lambda blobs, blob: blobs.start_copy_of("copy", "https://x/y?sig=z", blob, {}, "", ""),
    "abort_copy": lambda blobs, blob: blobs.abort_copy(blob, GUARD.lease),
    "set_metadata": lambda blobs, blob: blobs.set_metadata(blob, {}, GUARD),
    "set_sequence_number": lambda blobs, blob: blobs.set_sequence_number(blob, 1, GUARD),
    "resize": lambda blobs, blob: blobs.resize(blob, 512, GUARD),
    "snapshot": lambda blobs, blob: blobs.snapshot(blob, {}),
    "snapshots": lambda blobs, blob: blobs.snapshots(blob),
    "folders": lambda blobs, blob: blobs.folders(blob.account, blob.container),
    "listed": lambda blobs, blob: blobs.listed(blob.account, blob.container, ""),
    "delete_snapshot": lambda blobs, blob: blobs.delete_snapshot(blob, SNAPSHOT),
}
DOCUMENTS = {
    "put_if_absent": lambda documents: documents.put_if_absent("plan.json", "{}"),
    "put": lambda documents: documents.put("plan.json", "{}"),
    "replace": lambda documents: documents.replace("plan.json", "{}", "former"),
    "get": lambda documents: documents.get("plan.json"),
    "listed": lambda documents: documents.listed("plan"),
    "delete": lambda documents: documents.delete("plan.json"),
}


@pytest.fixture(params=["nobody listens", "the connection breaks"])
async def account(request):
    """A client of an account whose requests get no answer, without the SDK's own retries."""

    async def broken(received):
        received.transport.abort()
        return web.Response()

    server = TestServer(web.Application())
    server.app.router.add_route("*", "/{path:.*}", broken)
    async with server:
        port = unused_port() if request.param == "nobody listens" else server.port
        url = f"http://127.0.0.1:{port}/account"
        async with BlobServiceClient(url, credential=AzureSasCredential("sig=secret"), retry_total=0) as client:
            yield client


@asynccontextmanager
async def answering(status, headers):
    """A client of an account that answers each request so."""

    async def refuse(_):
        return web.Response(status=status, headers=headers)

    server = TestServer(web.Application())
    server.app.router.add_route("*", "/{path:.*}", refuse)
    async with server:
        url = f"http://127.0.0.1:{server.port}/account"
        async with BlobServiceClient(url, credential=AzureSasCredential("sig=secret"), retry_total=0) as client:
            yield client


@pytest.fixture
async def refusing():
    """A client of an account that refuses each request."""
    async with answering(403, {"x-ms-error-code": "AuthorizationPermissionMismatch"}) as client:
        yield client


@pytest.fixture
async def elsewhere():
    """A client of a server that is no storage account, and knows none of its addresses: a proxy, or another service."""
    async with answering(404, {}) as client:
        yield client


def public(adapter):
    return {name for name, _ in inspect.getmembers(adapter, inspect.isfunction) if not name.startswith("_")}


async def ended(call):
    """The call's end; a listing's first entry."""
    await (anext(call) if inspect.isasyncgen(call) else call)


def test_every_request_is_tried():
    assert set(BLOBS) | DATA_PATH == public(AzurePageBlobs)
    assert set(DOCUMENTS) == public(AzureDocuments)


@pytest.mark.parametrize("name", BLOBS)
async def test_a_request_of_a_blob_without_an_answer_is_a_temporary_failure(account, name):
    blob = BlobAddress(account.url.rstrip("/"), "vhds", "disk.vhd")
    blobs = AzurePageBlobs({blob.account: account}, None, None)

    with pytest.raises(ServiceUnavailableError, match=r"no answer .*; temporary failure") as failed:
        await ended(BLOBS[name](blobs, blob))

    assert not isinstance(failed.value, HostUnknownError)


@pytest.mark.parametrize("name", DOCUMENTS)
async def test_a_request_of_a_document_without_an_answer_is_a_temporary_failure(account, name):
    with pytest.raises(ServiceUnavailableError, match=r"no answer .*; temporary failure"):
        await ended(DOCUMENTS[name](AzureDocuments(account, "plans")))


@pytest.mark.parametrize("name", sorted(set(BLOBS) - {"may_write"}))
async def test_a_refused_request_of_a_blob_is_no_success(refusing, name):
    blob = BlobAddress(refusing.url.rstrip("/"), "vhds", "disk.vhd")

    with pytest.raises(AccessDeniedError):
        await ended(BLOBS[name](AzurePageBlobs({blob.account: refusing}, None, None), blob))


@pytest.mark.parametrize("name", DOCUMENTS)
async def test_a_refused_request_of_a_document_is_no_success(refusing, name):
    with pytest.raises(AccessDeniedError):
        await ended(DOCUMENTS[name](AzureDocuments(refusing, "plans")))


@pytest.mark.parametrize("name", BLOBS)
async def test_a_404_that_is_not_the_services_says_nothing_of_a_blob(elsewhere, name):
    """The service names what is missing by its code, of a HEAD too (recorded). Without one, nothing is missing, deleted or lost."""
    blob = BlobAddress(elsewhere.url.rstrip("/"), "vhds", "disk.vhd")

    with pytest.raises(UnexpectedAnswerError, match="404 without a code"):
        await ended(BLOBS[name](AzurePageBlobs({blob.account: elsewhere}, None, None), blob))


@pytest.mark.parametrize("name", DOCUMENTS)
async def test_a_404_that_is_not_the_services_says_nothing_of_a_document(elsewhere, name):
    with pytest.raises(UnexpectedAnswerError, match="404 without a code"):
        await ended(DOCUMENTS[name](AzureDocuments(elsewhere, "plans")))


async def test_a_snapshot_is_not_deleted_with_its_container():
    """A deleted container can be had back for days: its restore points' rows must not go one by one meanwhile."""
    async with answering(404, {"x-ms-error-code": "ContainerNotFound"}) as client:
        blob = BlobAddress(client.url.rstrip("/"), "heads", "disk.vhd")
        blobs = AzurePageBlobs({blob.account: client}, None, None)
        with pytest.raises(ContainerMissingError):
            await blobs.delete_snapshot(blob, SNAPSHOT)
        await blobs.release_lease(blob, GUARD.lease)
        await blobs.abort_copy(blob, GUARD.lease)


@pytest.mark.parametrize("code", ["ServerBusy", "InternalError", "OperationTimedOut"])
async def test_a_source_that_is_busy_is_a_temporary_failure(code):
    """The service then names the source's own answer beside its refusal of it, as the SDK knows."""
    headers = {"x-ms-error-code": "CannotVerifyCopySource", "x-ms-copy-source-error-code": code}
    async with answering(409, headers) as client:
        blob = BlobAddress(client.url.rstrip("/"), "heads", "disk.vhd")
        with pytest.raises(ServiceUnavailableError, match=f"its source answered {code}.*; temporary failure"):
            await BLOBS["start_copy_of"](AzurePageBlobs({blob.account: client}, None, None), blob)


@pytest.mark.parametrize("name", ["create", "start_copy_of"])
@pytest.mark.parametrize("code", ["LeaseIdMissing", "ConditionNotMet"])
async def test_a_blob_that_must_not_be_there_exists(name, code):
    """Whether the lease or If-None-Match: * is looked at first is not documented: a repeat finds its own leased blob either way."""
    async with answering(412, {"x-ms-error-code": code}) as client:
        blob = BlobAddress(client.url.rstrip("/"), "heads", "disk.vhd")
        with pytest.raises(BlobExistsError):
            await BLOBS[name](AzurePageBlobs({blob.account: client}, None, None), blob)


async def test_a_document_that_must_not_be_there_exists():
    async with answering(412, {"x-ms-error-code": "ConditionNotMet"}) as client:
        assert await AzureDocuments(client, "plans").put_if_absent("plan.json", "{}") is False


async def test_a_copy_over_another_version_does_not_exist_but_has_changed():
    async with answering(412, {"x-ms-error-code": "ConditionNotMet"}) as client:
        blob = BlobAddress(client.url.rstrip("/"), "heads", "disk.vhd")
        with pytest.raises(BlobChangedError):
            await AzurePageBlobs({blob.account: client}, None, None).start_copy_of("copy", "https://x/y", blob, {}, "", '"0x1"')


async def test_a_whole_copy_that_the_account_does_not_permit():
    """Its permitted scope for copy operations is answered as its firewall is."""
    async with answering(403, {"x-ms-error-code": "AuthorizationFailure"}) as client:
        blob = BlobAddress(client.url.rstrip("/"), "heads", "disk.vhd")
        with pytest.raises(CopySourceRefusedError, match="allowedCopyScope"):
            await BLOBS["start_copy_of"](AzurePageBlobs({blob.account: client}, None, None), blob)
        with pytest.raises(AccessDeniedError, match="the account's firewall"):
            await BLOBS["create"](AzurePageBlobs({blob.account: client}, None, None), blob)


async def test_a_blob_is_not_missing_for_a_request_that_lost_its_authorisation():
    """A delete that took it for gone would say that a blob is deleted which is there."""
    async with answering(404, {"x-ms-error-code": "ResourceNotFound"}) as client:
        blob = BlobAddress(client.url.rstrip("/"), "heads", "disk.vhd")
        with pytest.raises(AccessDeniedError, match="no authorisation"):
            await BLOBS["delete_own"](AzurePageBlobs({blob.account: client}, None, None), blob)
        with pytest.raises(AccessDeniedError, match="no authorisation"):
            await AzureDocuments(client, "plans").delete("plan.json")
