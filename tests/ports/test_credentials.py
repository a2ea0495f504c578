"""Tokens, from the real credential of the app, built as in Azure, and an identity endpoint that fails.

The endpoint is App Service's: GET with `resource`, `client_id` and the secret header, answered by JSON ("How to use managed
identities for App Service and Azure Functions").
"""

from __future__ import annotations

import asyncio
import time

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from azure.core.exceptions import ClientAuthenticationError
from azure.identity import CredentialUnavailableError
from azure.storage.blob.aio import BlobServiceClient

from backup_core import bootstrap
from backup_core.adapters.authority import STORAGE_SCOPE, BearerAuthority
from backup_core.adapters.credentials import Credential
from backup_core.adapters.page_blobs import translated
from backup_core.adapters.transport import Ask, Transport, nothing
from backup_core.domain.errors import AccessDeniedError, ServiceUnavailableError
from backup_core.domain.naming import BlobAddress
from backup_core.settings import Settings

CLIENT = "11111111-2222-3333-4444-555555555555"
ATTEMPTS = 4
NOT_ASSIGNED = {"statusCode": 400, "message": "No User Assigned or Delegated Managed Identity found for specified ClientId"}


class Endpoint:
    """An identity endpoint that answers as it is set to."""

    def __init__(self) -> None:
        self.status, self.headers, self.body = 200, {}, {}
        self.breaks = False
        self.requests = []

    async def answer(self, request):
        self.requests.append((dict(request.query), request.headers.get("X-IDENTITY-HEADER")))
        if self.breaks:
            request.transport.abort()
        return web.json_response(self.body, status=self.status, headers=self.headers)


@pytest.fixture
async def endpoint(monkeypatch):
    """The endpoint of an app in Azure, as its environment names it."""
    found = Endpoint()
    server = TestServer(web.Application())
    server.app.router.add_get("/msi/token", found.answer)
    async with server, asyncio.timeout(30):
        monkeypatch.setenv("IDENTITY_ENDPOINT", str(server.make_url("/msi/token")))
        monkeypatch.setenv("IDENTITY_HEADER", "the-header")
        monkeypatch.setitem(bootstrap._PATIENCE, "retry_backoff_factor", 0)
        yield found


@pytest.fixture
async def credential(endpoint):
    """The credential of the identity of sources, as the app builds it."""
    settings = Settings.model_construct(
        development_keys={}, managed_identity_client_id="", source_client_id=CLIENT, writer_client_id="",
        retention_client_id="", restore_client_id="",
    )  # fmt: skip
    sign_in = bootstrap._SignIn(settings)
    yield sign_in.token("source")
    await sign_in.close()


async def test_a_token_is_requested_for_the_identity_of_the_duty(endpoint, credential):
    endpoint.body = {
        "access_token": "secret",
        "expires_on": f"{int(time.time()) + 3600}",
        "resource": "https://storage.azure.com",
        "token_type": "Bearer",
    }

    assert (await credential.get_token(STORAGE_SCOPE)).token == "secret"
    assert (await credential.get_token_info(STORAGE_SCOPE)).token == "secret"

    # The second one is the first one, kept.
    assert endpoint.requests == [
        ({"api-version": "2019-08-01", "resource": "https://storage.azure.com", "client_id": CLIENT}, "the-header")
    ]


@pytest.mark.parametrize(
    ("status", "headers"),
    [
        (429, {"Retry-After": "3600"}),
        (429, {"retry-after-ms": "3600000"}),
        (500, {}),
        (503, {"Retry-After": "Mon, 30 Nov 2026 00:00:00 GMT", "x-ms-retry-after-ms": "3600000"}),
    ],
)
async def test_a_busy_identity_endpoint_is_a_temporary_failure(endpoint, credential, status, headers):
    """The failure is temporary however long the requested wait: a wait inside a step would outlast the heartbeat of its run."""
    endpoint.status, endpoint.headers = status, headers

    with pytest.raises(
        ServiceUnavailableError, match=rf"{CLIENT}: the identity endpoint gave answer {status}.*; temporary failure"
    ):
        await credential.get_token(STORAGE_SCOPE)

    assert len(endpoint.requests) == ATTEMPTS


async def test_a_broken_connection_to_the_identity_endpoint_is_a_temporary_failure(endpoint, credential):
    endpoint.breaks = True

    with pytest.raises(ServiceUnavailableError, match=r"the identity endpoint did not answer .*; temporary failure"):
        await credential.get_token(STORAGE_SCOPE)

    # aiohttp repeats a GET by itself once, when the connection breaks.
    assert ATTEMPTS <= len(endpoint.requests) <= 2 * ATTEMPTS


async def test_an_identity_that_is_not_assigned_is_a_refusal_that_says_so(endpoint, credential):
    endpoint.status, endpoint.body = 400, NOT_ASSIGNED

    with pytest.raises(AccessDeniedError, match=r"No User Assigned.*assign the identity to the app") as refused:
        await credential.get_token(STORAGE_SCOPE)

    assert not refused.value.retryable
    assert len(endpoint.requests) == 1


async def test_a_token_without_an_answer_of_200_is_none(endpoint, credential):
    endpoint.body = {"unexpected": True}

    with pytest.raises(ServiceUnavailableError, match="gave answer 200"):
        await credential.get_token(STORAGE_SCOPE)


class Failing:
    """A credential that fails before it sends a request."""

    def __init__(self, fault: Exception) -> None:
        self.fault = fault

    async def get_token(self, *_, **__):
        raise self.fault


@pytest.mark.parametrize(
    ("fault", "kind", "words"),
    [
        (CredentialUnavailableError("no endpoint in the environment"), AccessDeniedError, "the app has no identity .*assign"),
        (
            ClientAuthenticationError("tried three\nin turn"),
            ServiceUnavailableError,
            r"the identity endpoint gave no token \(tried three\); temporary failure; if it stays, assign",
        ),
    ],
)
async def test_an_app_without_an_identity_is_no_busy_one(fault, kind, words):
    with pytest.raises(kind, match=f"^get a token for {STORAGE_SCOPE} as the app: {words}"):
        await Credential(Failing(fault), "").get_token(STORAGE_SCOPE)


async def test_no_client_takes_the_failure_for_an_answer_of_its_service(endpoint, credential):
    """Neither the SDK's client nor the data path, which requests its tokens itself, does so."""
    endpoint.status = 503
    blob = BlobAddress("https://127.0.0.1:1/account", "vhds", "disk.vhd")
    async with BlobServiceClient(blob.account, credential=credential) as client:
        with pytest.raises(ServiceUnavailableError, match="the identity endpoint gave answer 503"), translated("look"):
            await client.get_blob_client(blob.container, blob.name).get_blob_properties()
        transport = Transport({blob.account: BearerAuthority(credential, client)})
        with pytest.raises(ServiceUnavailableError, match="the identity endpoint gave answer 503"):
            await transport.send(Ask("GET", blob, "read"), nothing)
        await transport.close()
