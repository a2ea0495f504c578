"""Settings to a working app: the only place where clients and credentials are built."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from azure.core.credentials import AzureNamedKeyCredential, AzureSasCredential
from azure.core.exceptions import ResourceExistsError
from azure.core.pipeline.policies import SansIOHTTPPolicy
from azure.data.tables.aio import TableServiceClient
from azure.identity.aio import DefaultAzureCredential, ManagedIdentityCredential
from azure.mgmt.compute.aio import ComputeManagementClient
from azure.storage.blob.aio import BlobServiceClient, ExponentialRetry

from backup_core.activities.copying import Copying
from backup_core.activities.tools import Limits, Tools
from backup_core.adapters.authority import Authority, BearerAuthority, KeyAuthority, SharedSasAuthority
from backup_core.adapters.catalogue import TableCatalogue
from backup_core.adapters.journal import LogJournal
from backup_core.adapters.machines import AzureMachines
from backup_core.adapters.page_blobs import AzureDocuments, AzurePageBlobs, translated
from backup_core.adapters.page_data import PageData
from backup_core.adapters.page_lists import PageLists
from backup_core.adapters.transport import Transport
from backup_core.api.context import Api

if TYPE_CHECKING:
    from azure.core.credentials_async import AsyncTokenCredential

    from backup_core.settings import Settings


@dataclass
class Services:
    """The app's ports, built once per process; `ready` before first use."""

    tools: Tools
    api: Api
    _tables: TableServiceClient
    _accounts: Mapping[str, BlobServiceClient]
    _transport: Transport
    _computes: _Computes
    _settings: Settings
    _ready: bool = False
    _lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def ready(self) -> None:
        """Create the table and the containers where they are missing, once."""
        if self._ready:
            return
        async with self._lock:
            if self._ready:
                return
            with translated("prepare the catalogue and the backup containers"):
                await self._tables.create_table_if_not_exists(self._settings.catalogue_table)
                for name in (self._settings.heads_container, self._settings.plans_container):
                    try:
                        await self._accounts[self._settings.backup_account].create_container(name)
                    except ResourceExistsError:
                        continue
            self._ready = True

    async def close(self) -> None:
        """Close every connection."""
        await self._transport.close()
        await self._tables.close()
        await self._computes.close()
        for client in self._accounts.values():
            await client.close()


class _SignIn:
    """Credentials for each account: one identity in the cloud, keys or SAS on the development platform."""

    def __init__(self, settings: Settings) -> None:
        self._keys = {name: key.get_secret_value() for name, key in settings.development_keys.items()}
        self._identity: AsyncTokenCredential | None = None
        if not self._keys:
            client = settings.managed_identity_client_id
            self._identity = ManagedIdentityCredential(client_id=client) if client else DefaultAzureCredential()

    def _secret(self, endpoint: str) -> tuple[str, str]:
        account = account_name(endpoint)
        return account, self._keys.get(account, "")

    def blob(self, endpoint: str) -> Any:  # noqa: ANN401  one of the SDK's several credential types
        if self._identity:
            return self._identity
        account, secret = self._secret(endpoint)
        return AzureSasCredential(secret) if "sig=" in secret else {"account_name": account, "account_key": secret}

    def table(self, endpoint: str) -> Any:  # noqa: ANN401  one of the SDK's several credential types
        if self._identity:
            return self._identity
        account, secret = self._secret(endpoint)
        return AzureSasCredential(secret) if "sig=" in secret else AzureNamedKeyCredential(account, secret)

    def machines(self) -> AsyncTokenCredential:
        return self._identity or DefaultAzureCredential()

    def data(self, endpoint: str, client: BlobServiceClient) -> Authority:
        if self._identity:
            return BearerAuthority(self._identity, client)
        account, secret = self._secret(endpoint)
        return SharedSasAuthority(secret) if "sig=" in secret else KeyAuthority(account, secret)


class _Computes:
    """Clients of Azure Resource Manager, one per subscription, built when one is first needed."""

    def __init__(self, settings: Settings, sign_in: _SignIn) -> None:
        self._settings, self._sign_in = settings, sign_in
        self._clients: dict[str, ComputeManagementClient] = {}

    def __call__(self, subscription: str) -> ComputeManagementClient:
        if subscription not in self._clients:
            endpoint, local = self._settings.arm_endpoint, self._settings.arm_endpoint.startswith("http://")
            # A token must not travel over http: the local stand-in gets none.
            unsigned: dict[str, Any] = {"authentication_policy": SansIOHTTPPolicy(), "polling_interval": 0.2} if local else {}
            self._clients[subscription] = ComputeManagementClient(
                self._sign_in.machines(),
                subscription,
                base_url=endpoint,
                credential_scopes=[f"{endpoint}/.default"],
                retry_total=2,
                **unsigned,
            )
        return self._clients[subscription]

    async def close(self) -> None:
        for client in self._clients.values():
            await client.close()


def account_name(endpoint: str) -> str:
    """The account of an endpoint: the path of a local one, else the first label of the host."""
    parts = urlsplit(endpoint)
    return parts.path.strip("/") or (parts.hostname or "").split(".")[0]


def build(settings: Settings) -> Services:
    """The app over Azure Storage. Opens no connection."""
    # At INFO the SDK writes several lines for each request: the app's own would be lost among them, and paid for with them.
    logging.getLogger("azure").setLevel(logging.WARNING)
    sign_in = _SignIn(settings)
    endpoints = (*settings.source_accounts, settings.backup_account)
    clients = {
        endpoint: BlobServiceClient(
            endpoint,
            credential=sign_in.blob(endpoint),
            # The default's first pause is 15 s; these calls are small and the orchestrator retries beyond them.
            retry_policy=ExponentialRetry(initial_backoff=1, increment_base=2, retry_total=4),
        )
        for endpoint in endpoints
    }
    transport = Transport({endpoint: sign_in.data(endpoint, client) for endpoint, client in clients.items()})
    blobs = AzurePageBlobs(clients, PageData(transport), PageLists(transport))
    tables = TableServiceClient(settings.catalogue_account, credential=sign_in.table(settings.catalogue_account))
    catalogue = TableCatalogue(tables.get_table_client(settings.catalogue_table))
    backups = clients[settings.backup_account]
    computes = _Computes(settings, sign_in)
    tools = Tools(
        blobs=blobs,
        catalogue=catalogue,
        documents=AzureDocuments(backups, settings.plans_container),
        source_accounts=settings.source_accounts,
        backup_account=settings.backup_account,
        heads_container=settings.heads_container,
        monotonic=time.monotonic,
        copying=Copying(blobs, settings.copy_mode, time.monotonic),
        machines=AzureMachines(computes),
        journal=LogJournal(),
        machine_groups=settings.machine_groups,
        limits=Limits(in_flight=settings.in_flight),
    )
    api = Api(
        tools,
        settings.backup_schedule,
        settings.wave_shards,
        settings.full_copy,
        settings.restore_verification,
        settings.prune_after_backup,
    )
    return Services(tools, api, tables, clients, transport, computes, settings)
