# Long: everything that is built is built here, and nowhere else.
"""The app, built from its settings: the only place where clients and credentials are made."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal, get_args

from azure.core.credentials import AzureNamedKeyCredential, AzureSasCredential
from azure.core.exceptions import ResourceExistsError
from azure.core.pipeline.policies import SansIOHTTPPolicy
from azure.core.pipeline.transport import AioHttpTransport
from azure.data.tables.aio import TableServiceClient
from azure.identity.aio import DefaultAzureCredential, ManagedIdentityCredential
from azure.mgmt.compute.aio import ComputeManagementClient
from azure.storage.blob.aio import BlobServiceClient, ExponentialRetry

from backup_core.adapters.answers import code_of
from backup_core.adapters.authority import Authority, BearerAuthority, KeyAuthority, SharedSasAuthority
from backup_core.adapters.catalogue import TableCatalogue
from backup_core.adapters.credentials import Credential
from backup_core.adapters.documents import AzureDocuments
from backup_core.adapters.journal import LogJournal
from backup_core.adapters.machines import RETRY_AFTER_MAX, AzureMachines, ShortRetries
from backup_core.adapters.managed_access import Exporting
from backup_core.adapters.managed_disks import AzureManagedDisks
from backup_core.adapters.pacing import Pacers
from backup_core.adapters.page_blobs import translated
from backup_core.adapters.page_data import PageData
from backup_core.adapters.page_lists import PageLists
from backup_core.adapters.sources import AzureSources
from backup_core.adapters.transport import Transport
from backup_core.api.access import Access
from backup_core.api.context import Api
from backup_core.domain.custody import CustodyLimits
from backup_core.domain.errors import AccessDeniedError, BackupError
from backup_core.domain.identity import Deployment, catalogue_name
from backup_core.domain.naming import account_name
from backup_core.domain.pacing import Rates
from backup_core.domain.ranges import MIB
from backup_core.protocol.claims import claim_container
from backup_core.protocol.copy_route import Copying
from backup_core.protocol.tools import Custody, Limits, Tools
from backup_core.steps.messages import Duty

if TYPE_CHECKING:
    from azure.core.pipeline import PipelineResponse

    from backup_core.settings import Settings


POLLING_SECONDS = 3.0
"""Pause between looks at a change of a disk, snapshot or machine that names none. Access is granted within a second and names
none (azure-cli's recording test_snapshot_access); the SDK would look again after half a minute, and each run grants several.
"""
_PATIENCE: dict[str, Any] = {"connection_timeout": 10, "read_timeout": 30, "retry_total": 3}
"""Of the SDK's small calls: four attempts of half a minute at most, some two minutes with their pauses. The SDK's own defaults
take many minutes, in which a run would have no heartbeat.
"""
_RESOURCE_MANAGER: dict[str, Any] = {"connection_timeout": 10, "read_timeout": 60}
"""The same for Resource Manager, which answers more slowly. A request of its own is sent three times."""
CUSTODY_CONTAINER = "custody"
"""In CUSTODY_ACCOUNT."""
DUTIES: tuple[Duty, ...] = get_args(Duty)
Identity = Literal["source", "writer", "retention", "restore"]
"""The app's identities in Azure, by duty. Settings may give each a managed identity of its own."""


@dataclass
class Stores:
    """The app's own table and containers."""

    _tables: TableServiceClient
    _containers: BlobServiceClient
    _settings: Settings
    _deployment: Deployment
    _records: BlobServiceClient | None = None
    """A container of the account that only an app with custody writes to."""
    _ready: bool = False
    _lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def ready(self) -> None:
        """Create the table and the containers where they are missing, once; an identity without that right relies on those that
        the deployment made. Raises ContainerTakenError when a container belongs to another deployment.
        """
        if self._ready:
            return
        async with self._lock:
            if not self._ready:
                await self._create()
                self._ready = True

    async def repair(self) -> bool:
        """Create missing stores, because an answer said that one is missing; True when any was created, False also when
        that is not possible: then the answer itself is reported.
        """
        async with self._lock:
            try:
                return await self._create()
            except BackupError:
                return False

    async def _create(self) -> bool:
        created = await self._create_one(
            "table", self._settings.catalogue_table, self._tables.create_table, "TableAlreadyExists"
        )
        for name in (self._settings.heads_container, self._settings.plans_container):
            with suppress(AccessDeniedError):
                made = await self._create_one("container", name, self._containers.create_container, "ContainerAlreadyExists")
                created = created or made
            await claim_container(AzureDocuments(self._containers, name), name, self._deployment)
        if self._records:
            with suppress(AccessDeniedError):
                made = await self._create_one(
                    "container", CUSTODY_CONTAINER, self._records.create_container, "ContainerAlreadyExists"
                )
                created = created or made
            await claim_container(AzureDocuments(self._records, CUSTODY_CONTAINER), CUSTODY_CONTAINER, self._deployment)
        return created

    @staticmethod
    async def _create_one(kind: str, name: str, create: Callable[[str], Awaitable[object]], exists: str) -> bool:
        with translated(f"prepare {kind} {name}"):
            try:
                await create(name)
            except ResourceExistsError as error:
                if code_of(error) != exists:
                    raise
                return False
        return True


@dataclass
class Services:
    """The app's ports, built once per process; `stores.ready` before first use."""

    api: Api
    toolboxes: Mapping[Duty, Tools]
    """The tools of each duty."""
    stores: Stores
    _closing: Sequence[Callable[[], Awaitable[None]]]

    def tools_for(self, duty: Duty) -> Tools:
        """The tools of the duty, under its identities."""
        return self.toolboxes[duty]

    async def ready(self) -> None:
        """Create the app's own table and containers where they are missing, once."""
        await self.stores.ready()

    async def close(self) -> None:
        """Close every connection."""
        for close in self._closing:
            await close()


class _SignIn:
    """Credentials for each identity and account: managed identities in the cloud, keys or SAS on the development platform."""

    def __init__(self, settings: Settings) -> None:
        self._keys = {name: key.get_secret_value() for name, key in settings.development_keys.items()}
        common = settings.managed_identity_client_id
        clients: dict[Identity, str] = {
            "source": settings.source_client_id,
            "writer": settings.writer_client_id,
            "retention": settings.retention_client_id,
            "restore": settings.restore_client_id,
        }
        self._clients = {identity: client or common for identity, client in clients.items()}
        self._credentials: dict[str, Credential] = {}

    def token(self, identity: Identity) -> Credential:
        """The identity's credential; identities with the same client share it."""
        client = self._clients[identity]
        if client not in self._credentials:
            patience = {**_PATIENCE, "raw_response_hook": _drop_long_retry_after}
            inner = ManagedIdentityCredential(client_id=client, **patience) if client else DefaultAzureCredential(**patience)
            self._credentials[client] = Credential(inner, client)
        return self._credentials[client]

    def _secret(self, identity: Identity, endpoint: str) -> tuple[str, str]:
        account = account_name(endpoint)
        return account, self._keys.get(f"{identity}@{account}", self._keys.get(account, ""))

    def blob(self, identity: Identity, endpoint: str) -> Any:  # noqa: ANN401  one of the SDK's several credential types
        """The credential of the SDK's blob client."""
        if not self._keys:
            return self.token(identity)
        account, secret = self._secret(identity, endpoint)
        return AzureSasCredential(secret) if "sig=" in secret else {"account_name": account, "account_key": secret}

    def table(self, identity: Identity, endpoint: str) -> Any:  # noqa: ANN401  one of the SDK's several credential types
        """The credential of the SDK's table client."""
        if not self._keys:
            return self.token(identity)
        account, secret = self._secret(identity, endpoint)
        return AzureSasCredential(secret) if "sig=" in secret else AzureNamedKeyCredential(account, secret)

    def data(self, identity: Identity, endpoint: str, client: BlobServiceClient) -> Authority:
        """The authority of the data path."""
        if not self._keys:
            return BearerAuthority(self.token(identity), client)
        account, secret = self._secret(identity, endpoint)
        return SharedSasAuthority(secret) if "sig=" in secret else KeyAuthority(account, secret)

    async def close(self) -> None:
        """Close the credentials."""
        for credential in self._credentials.values():
            await credential.close()


class _Computes:
    """Clients of Azure Resource Manager under an identity, one per subscription, built when one is first needed."""

    def __init__(self, settings: Settings, sign_in: _SignIn, identity: Identity) -> None:
        self._settings, self._sign_in, self._identity = settings, sign_in, identity
        self._clients: dict[str, ComputeManagementClient] = {}

    def __call__(self, subscription: str) -> ComputeManagementClient:
        if subscription not in self._clients:
            endpoint, local = self._settings.arm_endpoint, self._settings.arm_endpoint.startswith("http://")
            # A token must not travel over http: the local stand-in gets none.
            unsigned: dict[str, Any] = {"authentication_policy": SansIOHTTPPolicy()} if local else {}
            self._clients[subscription] = ComputeManagementClient(
                self._sign_in.token(self._identity),
                subscription,
                base_url=endpoint,
                credential_scopes=[f"{endpoint}/.default"],
                retry_policy=ShortRetries(retry_total=2),
                polling_interval=0.2 if local else POLLING_SECONDS,
                **_RESOURCE_MANAGER,
                **unsigned,
            )
        return self._clients[subscription]

    async def close(self) -> None:
        for client in self._clients.values():
            await client.close()


def account_ids(settings: Settings) -> dict[str, str]:
    """The resource ids of the source accounts, by endpoint, as far as they are known."""
    named = {one.rpartition("/")[2].lower(): one for one in settings.source_account_ids}
    names = {endpoint: account_name(endpoint).lower() for endpoint in settings.source_accounts}
    return {endpoint: named[name] for endpoint, name in names.items() if name in named}


def identities(settings: Settings, duty: Duty) -> dict[str, Identity]:
    """The duty's identity, by endpoint."""
    if duty == "backup":
        return {**dict.fromkeys(settings.source_accounts, "source"), settings.backup_account: "writer"}
    return dict.fromkeys((*settings.source_accounts, settings.backup_account), duty)


def build(settings: Settings) -> Services:
    """The app over Azure Storage. Opens no connection."""
    # At INFO the SDK writes several lines for each request: the app's own would be lost among them, and paid for with them.
    logging.getLogger("azure").setLevel(logging.WARNING)
    sign_in = _SignIn(settings)
    tables = TableServiceClient(
        settings.catalogue_account,
        credential=sign_in.table("writer", settings.catalogue_account),
        raw_response_hook=_drop_long_retry_after,
        **_PATIENCE,
    )
    deployment = Deployment(
        catalogue_name(settings.catalogue_account, settings.catalogue_table), frozenset(settings.former_catalogues)
    )
    catalogue = TableCatalogue(tables.get_table_client(settings.catalogue_table))
    computes = {identity: _Computes(settings, sign_in, identity) for identity in get_args(Identity)}
    exporting = Exporting(
        settings.snapshot_group,
        settings.snapshot_access_seconds,
        settings.export_hosts,
        whole_pages=not settings.export_maxresults,
        local=settings.development,
    )
    closing: list[Callable[[], Awaitable[None]]] = [tables.close, *(compute.close for compute in computes.values())]
    accounts: dict[tuple[Identity, str], BlobServiceClient] = {}
    custody, records = None, None
    if endpoint := settings.custody_account:
        records = accounts["retention", endpoint] = _account(endpoint, sign_in.blob("retention", endpoint))
        span = timedelta(days=settings.custody_days)
        custody = Custody(AzureDocuments(records, CUSTODY_CONTAINER), CustodyLimits(span, span, settings.custody_deletions))
    # One for all duties: a blob's limits are the same for all of them.
    pacers = Pacers(
        Rates(settings.blob_requests_per_second, settings.blob_mib_per_second * MIB),
        Rates(settings.account_requests_per_second, settings.account_mib_per_second * MIB),
    )

    def tools(duty: Duty) -> Tools:
        named = identities(settings, duty)
        for endpoint, identity in named.items():
            if (identity, endpoint) not in accounts:
                accounts[identity, endpoint] = _account(endpoint, sign_in.blob(identity, endpoint))
        clients = {endpoint: accounts[identity, endpoint] for endpoint, identity in named.items()}
        transport = Transport(
            {endpoint: sign_in.data(identity, endpoint, clients[endpoint]) for endpoint, identity in named.items()},
            pacers=pacers,
        )
        closing.append(transport.close)
        data, lists = PageData(transport), PageLists(transport)
        sources = computes["source" if duty == "backup" else duty]
        disks = AzureManagedDisks(sources, data, lists, deployment, exporting, time.monotonic)
        blobs = AzureSources(clients, data, lists, disks)
        return Tools(
            blobs=blobs,
            catalogue=catalogue,
            documents=AzureDocuments(clients[settings.backup_account], settings.plans_container),
            source_accounts=settings.source_accounts,
            backup_account=settings.backup_account,
            heads_container=settings.heads_container,
            monotonic=time.monotonic,
            copying=Copying(blobs, settings.copy_mode, time.monotonic),
            machines=AzureMachines(sources),
            journal=LogJournal(),
            deployment=deployment,
            machine_groups=settings.machine_groups,
            disk_groups=settings.disk_groups,
            disk_restore=settings.disk_restore,
            snapshot_group=settings.snapshot_group,
            account_ids=account_ids(settings),
            limits=Limits(in_flight=settings.in_flight, gap_ratio=settings.gap_ratio),
            custody=custody if duty == "retention" else None,
        )

    toolboxes = {duty: tools(duty) for duty in DUTIES}
    stores = Stores(tables, accounts["writer", settings.backup_account], settings, deployment, records)
    api = Api(
        toolboxes["backup"],
        settings.backup_schedule,
        settings.wave_shards,
        settings.full_copy,
        settings.restore_verification,
        settings.prune_after_backup,
        Access(settings.sign_in == "entra", settings.website_auth_enabled, https_only=not settings.development),
        toolboxes["restore"],
        repair=stores.repair,
        prepare=stores.ready,
        address=f"https://{settings.website_hostname}/api" if settings.website_hostname else "",
    )
    closing += [*(client.close for client in accounts.values()), sign_in.close]
    return Services(api, toolboxes, stores, closing)


_PAUSES = {"Retry-After": 1, "retry-after-ms": 1000, "x-ms-retry-after-ms": 1000}
"""The headers by which the SDK waits before it retries, and how many of their units are a second."""


def _drop_long_retry_after(response: PipelineResponse[Any, Any]) -> None:
    """Remove a long Retry-After from an answer of the table service or the identity endpoint: the SDK would wait as long. Its
    short pauses stay; a longer wait is for durable timers.
    """
    headers = response.http_response.headers
    for name, units in _PAUSES.items():
        if not (text := headers.get(name, "0")).isdigit() or int(text[:9]) > RETRY_AFTER_MAX * units:
            del headers[name]


def _account(endpoint: str, credential: Any) -> BlobServiceClient:  # noqa: ANN401  one of the SDK's several credential types
    # The default's first pause is 15 s; these calls are small and the orchestrator retries beyond them.
    retry = ExponentialRetry(initial_backoff=1, increment_base=2, retry_total=_PATIENCE["retry_total"])
    return BlobServiceClient(endpoint, credential=credential, retry_policy=retry, transport=_Plain(**_PATIENCE), **_PATIENCE)


class _Plain(AioHttpTransport):  # type: ignore[misc]  # untyped where it comes from
    """aiohttp that sends a request once. Left to itself it repeats a PUT whose connection broke, below the SDK's own retries: a
    snapshot would be taken twice. No documented switch turns that off; a test holds this one to it.
    """

    async def open(self) -> None:
        """Open the session, and have it repeat nothing by itself."""
        await super().open()
        self.session._retry_connection = False  # noqa: SLF001
