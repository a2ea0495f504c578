"""The app's own table and containers: made when missing, made again when they were removed while it runs; a conflict is read by its code."""

from __future__ import annotations

import asyncio
import json
from datetime import timedelta

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from backup_core import bootstrap
from backup_core.activities.runner import run_step
from backup_core.api import disks
from backup_core.api.context import respond
from backup_core.api.http import Request
from backup_core.domain.errors import (
    ContainerMissingError,
    ContainerTakenError,
    RowExistsError,
    ServiceUnavailableError,
    TableMissingError,
)
from backup_core.domain.identity import Deployment
from backup_core.domain.records import Head
from backup_core.protocol.claims import claim_container
from backup_core.steps.backup import LIST_DISKS, FleetPage
from backup_core.steps.housekeeping import LIST_BACKED_UP_DISKS, DiskPage
from bench.services import settings_for
from tests.doubles.documents import MemoryDocuments
from tests.doubles.world import InMemoryServices


@pytest.fixture
async def app(calm, name):
    settings = settings_for(calm, HEADS_CONTAINER=name, PLANS_CONTAINER=f"{name}p", CATALOGUE_TABLE=name)
    services = bootstrap.build(settings)
    services.settings = settings
    await services.ready()
    yield services
    await services.close()


async def perform(app, step, request):
    return await run_step(step, app.tools_for, request.model_dump(mode="json"), app.stores)


async def test_a_removed_table_is_made_again(app):
    """No row of it is taken for missing meanwhile: a run would begin from nothing."""
    tools = app.api.tools
    await tools.catalogue.put_head(Head("vm"), None)
    await app.stores._tables.delete_table(app.settings.catalogue_table)
    for reading in (
        tools.catalogue.head("vm"),
        tools.catalogue.source_holder("x"),
        tools.catalogue.now(),
        tools.catalogue.disks(),
    ):
        with pytest.raises(TableMissingError):
            await reading
    page = FleetPage(window="2026-01-01T00:00:00+00:00")
    first = await perform(app, LIST_DISKS, page)

    assert (first["fault"]["code"], first["fault"]["retryable"]) == ("TableMissing", True)
    assert (await perform(app, LIST_DISKS, page))["value"] == {"runs": [], "disks": 0, "lanes": 0}


async def test_a_removed_container_is_made_again(app):
    await app.stores._containers.delete_container(app.settings.heads_container)
    first = await perform(app, LIST_BACKED_UP_DISKS, DiskPage(after=""))

    assert (first["fault"]["code"], first["fault"]["retryable"]) == ("ContainerMissing", True)
    assert (await perform(app, LIST_BACKED_UP_DISKS, DiskPage(after="")))["value"] == {"disks": [], "more": False}


async def test_a_call_raises_an_error_that_requests_a_retry(app):
    await app.stores._tables.delete_table(app.settings.catalogue_table)
    request = Request("https://app.test/api", {}, {}, b"", {})
    first, again = [await respond(app.api, disks.get_disks, request) for _ in range(2)]

    assert (first.status, json.loads(first.body)["error"]["code"], again.status) == (503, "TableMissing", 200)
    assert "Retry-After" in first.headers


async def test_a_document_is_not_missing_because_its_container_is(app):
    """Else a plan would be made anew in the middle of its copying."""
    await app.stores._containers.delete_container(app.settings.plans_container)
    with pytest.raises(ContainerMissingError):
        await app.api.tools.documents.get("vm/plan.json")


async def test_a_container_that_cannot_be_made_again_is_not_retryable(app, calm):
    await app.stores._containers.delete_container(app.settings.heads_container)
    calm.faults({"verb": "PUT container", "status": 403, "code": "AuthorizationPermissionMismatch", "times": 9})
    fault = (await perform(app, LIST_BACKED_UP_DISKS, DiskPage(after="")))["fault"]

    assert (fault["code"], fault["retryable"]) == ("ContainerMissing", False)


async def test_a_snapshot_is_requested_once(app, calm):
    """The SDK would repeat a request whose answer was lost, and there would be two."""
    tools = app.api.tools
    blob = tools.head("vm/1/disk.vhd")
    await tools.blobs.create(blob, 512, 0, {})
    calm.faults({"verb": "PUT snapshot", "loseReply": True})
    with pytest.raises(ServiceUnavailableError):
        await tools.blobs.snapshot(blob, {})

    assert len(await tools.blobs.snapshots(blob)) == 1


async def test_a_container_being_deleted_is_not_there(app, calm):
    """The status is 409 as for an existing container: only the code differs."""
    app.stores._ready = False
    calm.faults({"verb": "PUT container", "status": 409, "code": "ContainerBeingDeleted", "times": 9})
    with pytest.raises(ServiceUnavailableError):
        await app.ready()


async def test_a_container_belongs_to_one_catalogue(app, calm, name):
    """Another deployment is refused, by words that name both and the way on; whoever says that it takes over gets it for good."""

    def beside(**fields):
        settings = settings_for(calm, HEADS_CONTAINER=name, PLANS_CONTAINER=f"{name}p", CATALOGUE_TABLE=f"{name}new", **fields)
        return bootstrap.build(settings)

    mine, theirs = f"{calm.state.name}/{name}", f"{calm.state.name}/{name}new"
    stranger, heir = beside(), beside(FORMER_CATALOGUES=f"other/table {mine}")
    former, late = bootstrap.build(app.settings), bootstrap.build(app.settings)
    try:
        with pytest.raises(ContainerTakenError, match=f"(?s){mine}.*{theirs}.*FORMER_CATALOGUES"):
            await stranger.ready()
        assert (await perform(stranger, LIST_BACKED_UP_DISKS, DiskPage(after="")))["fault"]["code"] == "ContainerTaken"
        await former.ready()
        await heir.ready()
        await stranger.ready()
        with pytest.raises(ContainerTakenError, match=f"(?s){theirs}.*{mine}"):
            await late.ready()
    finally:
        for services in (stranger, heir, former, late):
            await services.close()


async def test_of_two_first_claims_one_is_refused():
    """Both find a container that names nobody; the store decides."""
    documents = MemoryDocuments(InMemoryServices())
    look, found = documents.get, []

    async def meanwhile(request):
        if not found:
            found.append(await look(request))
            await claim_container(documents, "heads", Deployment("a/table"))
            return None
        return await look(request)

    documents.get = meanwhile
    with pytest.raises(ContainerTakenError, match="a/table"):
        await claim_container(documents, "heads", Deployment("b/table"))


async def test_of_two_that_take_over_one_container_one_is_refused():
    """Both succeed the same lost catalogue, and read at the same moment that the container is its."""
    documents = MemoryDocuments(InMemoryServices())
    await claim_container(documents, "heads", Deployment("lost/table"))
    look, found = documents.get, []

    async def meanwhile(request):
        text = await look(request)
        if not found:
            found.append(text)
            await claim_container(documents, "heads", Deployment("a/table", former=("lost/table",)))
        return text

    documents.get = meanwhile
    with pytest.raises(ContainerTakenError, match="a/table"):
        await claim_container(documents, "heads", Deployment("b/table", former=("lost/table",)))
    await claim_container(documents, "heads", Deployment("a/table"))


async def test_a_document_is_replaced_at_its_version_only(app, calm):
    """The service decides: between the reading and the writing somebody else may write."""
    documents = app.api.tools.documents
    assert not await documents.replace("vm/x.json", "mine", "former")
    await documents.put("vm/x.json", "former")
    assert not await documents.replace("vm/x.json", "mine", "other")
    calm.faults({"verb": "PUT blob", "status": 412, "code": "ConditionNotMet"})
    assert not await documents.replace("vm/x.json", "mine", "former")
    assert await documents.get("vm/x.json") == "former"
    download = documents._container.download_blob

    async def then_another_writes(name):
        stream = await download(name)
        await documents.put(name, "theirs")
        return stream

    documents._container.download_blob = then_another_writes
    assert not await documents.replace("vm/x.json", "mine", "former")
    documents._container.download_blob = download
    assert await documents.get("vm/x.json") == "theirs"
    assert await documents.replace("vm/x.json", "mine", "theirs")
    assert await documents.get("vm/x.json") == "mine"


async def test_conflicts_are_read_by_their_code(app, calm):
    """A row, claim or document that cannot be written now does not exist for that; a lease that cannot be released is taken."""
    tools = app.api.tools
    blob = tools.head("vm/1/disk.vhd")
    await tools.blobs.create(blob, 512, 0, {})
    busy = [
        ("POST table", "TableBeingDeleted", lambda: tools.catalogue.put_head(Head("vm"), None)),
        ("POST table", "TableBeingDeleted", lambda: tools.catalogue.claim_source("https://s/c/b", "vm")),
        ("PUT blob", "ContainerBeingDeleted", lambda: tools.documents.put_if_absent("vm/x.json", "{}")),
        ("PUT lease", "SystemInUse", lambda: tools.blobs.release_lease(blob, "3f2504e0-4f89-41d3-9a0c-0305e82c3301")),
    ]
    for verb, code, act in busy:
        calm.faults({"verb": verb, "status": 409, "code": code, "times": 9})
        with pytest.raises(ServiceUnavailableError, match=code):
            await act()
        calm.faults()
        await act()
    with pytest.raises(RowExistsError):
        await tools.catalogue.put_head(Head("vm"), None)
    await tools.documents.put_if_absent("vm/x.json", "other")
    assert await tools.documents.get("vm/x.json") == "{}"


async def test_an_app_with_custody_keeps_its_records_in_a_container_of_its_own(app, calm, name):
    """Made when it is missing, and of one catalogue as the others; only the nightly clean-up is handed it."""
    settings = settings_for(
        calm, HEADS_CONTAINER=name, PLANS_CONTAINER=f"{name}p", CATALOGUE_TABLE=name, CUSTODY_ACCOUNT=calm.state.blobs,
        PRUNE_AFTER_BACKUP="false", CUSTODY_DAYS="3", CUSTODY_DELETIONS="5",
    )  # fmt: skip
    services = bootstrap.build(settings)
    try:
        await services.ready()
        custody = services.tools_for("retention").custody
        await custody.documents.put("vm.json", "{}")
        assert (custody.limits.delay, custody.limits.age_min, custody.limits.deletions_max) == (
            timedelta(days=3), timedelta(days=3), 5,
        )  # fmt: skip
        assert await custody.documents.get("vm.json") == "{}"
        assert await app.tools_for("retention").documents.get("vm.json") is None
    finally:
        await services.close()
    assert app.tools_for("retention").custody is None


async def test_a_long_retry_after_of_the_table_service_is_left_to_a_timer(calm, monkeypatch):
    """Waited for inside a step, it would outlast the heartbeat of its run."""
    monkeypatch.setitem(bootstrap._PATIENCE, "retry_backoff_factor", 0)
    paths = []

    async def busy(request):
        paths.append(request.path)
        return web.Response(status=503, headers={"Retry-After": "3600", "x-ms-error-code": "ServerBusy"})

    server = TestServer(web.Application())
    server.app.router.add_route("*", "/{path:.*}", busy)
    async with server, asyncio.timeout(20):
        services = bootstrap.build(settings_for(calm, CATALOGUE_ACCOUNT=str(server.make_url("/state"))))
        with pytest.raises(ServiceUnavailableError):
            await services.api.tools.catalogue.head("vm")
        await services.close()

    assert len(paths) == 4
