# Long: one port; the tests of both implementations stand beside those of the adapter alone.
"""The Machines contract, in memory and by the adapter with the real SDK against the stand-in for Resource Manager."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, replace
from types import SimpleNamespace

import pytest
import requests
from aiohttp import web
from aiohttp.test_utils import TestServer
from azure.core.exceptions import HttpResponseError

from backup_core import bootstrap
from backup_core.adapters.arm import _fault
from backup_core.adapters.machines import KIND, AzureMachines
from backup_core.domain.ending import STEP_SECONDS_MAX
from backup_core.domain.errors import (
    AccessDeniedError,
    MachineBusyError,
    MachineChangedError,
    MachineMissingError,
    MachineRefusedError,
    ServiceUnavailableError,
    UnexpectedAnswerError,
)
from backup_core.domain.managed import SIGN_IN, ManagedDisk
from backup_core.domain.naming import BlobAddress, managed_disk_id
from backup_core.domain.repoint import MachineDisk
from bench.services import settings_for
from devhost.disks import vhd_footer
from devhost.machines import GROUP, SUBSCRIPTION, account_id, machine_id
from tests.doubles.machines import MemoryMachines
from tests.doubles.page_blobs import MemoryPageBlobs
from tests.doubles.world import InMemoryServices

ACCOUNT = account_id("source")
MIB = 1024 * 1024
SIZE = MIB + 512


@dataclass
class Cloud:
    """A port, and what a test needs to look and act behind it."""

    port: object
    vm: str
    url: str
    """Where the test's disk blobs are, with a trailing slash."""
    put: object
    lease_state: object

    def disk(self, name, lun=0, **fields):
        return MachineDisk(name, f"{self.url}{name}.vhd", managed=False, lun=lun, caching="ReadOnly", **fields)


@pytest.fixture(params=["memory", "azure"])
async def cloud(request, name):
    """A running machine with an OS disk and a data disk at LUN 0, and a free disk blob."""
    if request.param == "memory":
        world = InMemoryServices()
        blobs = MemoryPageBlobs(world)
        port, account = MemoryMachines(world, blobs), "https://source.test"

        def put(disk):
            blob = blobs.put(BlobAddress(account, "vhds", f"{disk}.vhd"), SIZE)
            blob.pages[SIZE // 512 - 1] = vhd_footer(MIB)

        def lease_state(disk):
            return "leased" if blobs.blobs[BlobAddress(account, "vhds", f"{disk}.vhd")].lease else "available"

        made = Cloud(port, machine_id(name), f"{account}/vhds/", put, lease_state)
        for disk in ("os", "old", "new"):
            put(disk)
        port.add(made.vm, made.disk("os", None, os_type="Linux"), made.disk("old"))
        yield made
        return
    storage, machines = request.getfixturevalue("calm"), request.getfixturevalue("machines")
    services = bootstrap.build(settings_for(storage, ARM_ENDPOINT=machines.endpoint))
    account = services.api.tools.blobs._accounts[storage.source.blobs]
    container = account.get_container_client(name)
    await container.create_container()
    made = Cloud(services.api.tools.machines, machine_id(name), f"{storage.source.blobs}/{name}/", None, None)
    for disk in ("os", "old", "new"):
        blob = container.get_blob_client(f"{disk}.vhd")
        await blob.create_page_blob(SIZE)
        await blob.upload_page(vhd_footer(MIB), MIB, 512)
    machines.make(name, os=f"{made.url}os.vhd", data={0: f"{made.url}old.vhd"})

    async def state(disk):
        return (await container.get_blob_client(f"{disk}.vhd").get_blob_properties()).lease.state

    made.lease_state = state
    yield made
    machines.delete(name)
    await services.close()


async def leased(cloud, disk):
    state = cloud.lease_state(disk)
    return await state if asyncio.iscoroutine(state) else state


async def test_a_machine_as_it_is(cloud):
    machine = await cloud.port.machine(cloud.vm)

    assert (machine.state, machine.power, machine.vm) == ("Succeeded", "running", cloud.vm)
    assert machine.at(0).source == f"{cloud.url}old.vhd"
    assert (machine.at(0).managed, machine.at(0).caching) == (False, "ReadOnly")
    assert (machine.at(None).source, machine.at(None).os_type) == (f"{cloud.url}os.vhd", "Linux")
    assert machine.at(1) is None
    assert await leased(cloud, "old") == "leased", "an attached VHD is leased by its machine"


async def test_a_data_disk_out_and_another_in(cloud):
    """Leases follow; nothing else of the machine changes."""
    before = await cloud.port.machine(cloud.vm)
    assert await cloud.port.put_disk(before, 0, None) is True
    between = await cloud.port.machine(cloud.vm)
    assert between.at(0) is None
    assert await leased(cloud, "old") == "available"
    assert await cloud.port.put_disk(between, 0, cloud.disk("new")) is True
    after = await cloud.port.machine(cloud.vm)

    assert after.at(0).source == f"{cloud.url}new.vhd"
    assert after.at(0).caching == "ReadOnly"
    assert after.at(None) == before.at(None)
    assert await leased(cloud, "new") == "leased"
    assert len({before.etag, between.etag, after.etag}) == 3


async def test_the_same_disk_again_is_another_version(cloud):
    """Even a write that changes nothing gives the machine another version, which fences late changes."""
    before = await cloud.port.machine(cloud.vm)
    await cloud.port.put_disk(before, 0, before.at(0))
    after = await cloud.port.machine(cloud.vm)

    assert after.at(0).source == before.at(0).source
    assert after.etag != before.etag
    with pytest.raises(MachineChangedError):
        await cloud.port.put_disk(before, 0, None)
    assert (await cloud.port.machine(cloud.vm)).at(0).source == before.at(0).source


async def test_a_data_disk_is_not_changed_in_place(cloud):
    machine = await cloud.port.machine(cloud.vm)
    with pytest.raises(MachineRefusedError, match="PropertyChangeNotAllowed"):
        await cloud.port.put_disk(machine, 0, cloud.disk("new"))

    assert (await cloud.port.machine(cloud.vm)).at(0).source == f"{cloud.url}old.vhd"


async def test_an_os_disk_while_the_machine_is_off(cloud):
    with pytest.raises(MachineRefusedError):
        await cloud.port.put_disk(await cloud.port.machine(cloud.vm), None, cloud.disk("new", None))
    assert await cloud.port.deallocate(cloud.vm) is True
    off = await cloud.port.machine(cloud.vm)
    assert off.power == "deallocated"
    assert await cloud.port.put_disk(off, None, cloud.disk("new", None, os_type="Linux")) is True
    assert await cloud.port.start(cloud.vm) is True
    machine = await cloud.port.machine(cloud.vm)

    assert (machine.power, machine.at(None).source, machine.at(None).os_type) == ("running", f"{cloud.url}new.vhd", "Linux")
    assert await leased(cloud, "os") == "available"


async def test_a_blob_that_somebody_leases_cannot_be_attached(cloud):
    """The second machine's disk: its lease is not the machine's to take."""
    machine = await cloud.port.machine(cloud.vm)
    await cloud.port.put_disk(machine, 0, None)
    machine = await cloud.port.machine(cloud.vm)
    with pytest.raises(MachineRefusedError, match="AcquireDiskLeaseFailed"):
        await cloud.port.put_disk(machine, 0, MachineDisk("twice", f"{cloud.url}os.vhd", managed=False, lun=0))


async def test_a_missing_machine_is_an_error_and_a_missing_disk_is_none(cloud, name):
    other = machine_id(f"{name}-none")
    for call in (cloud.port.machine(other), cloud.port.deallocate(other), cloud.port.start(other)):
        with pytest.raises(MachineMissingError):
            await call
    assert await cloud.port.managed_disk(managed_disk_id(cloud.vm, "none")) is None


def wanted(cloud, name, **fields):
    """A managed disk to be made of the free disk blob."""
    fields = {"sku": "Standard_LRS", "source": f"{cloud.url}new.vhd", **fields}
    return ManagedDisk(managed_disk_id(cloud.vm, name), "", "run-1", MIB, **fields)


async def test_a_managed_disk_of_a_vhd(cloud, name):
    disk = wanted(cloud, f"{name}-disk")
    assert await cloud.port.import_disk(disk, ACCOUNT, "local") is True
    found = await cloud.port.managed_disk(disk.disk)

    assert (found.state, found.run, found.size_bytes, found.sku) == ("Succeeded", "run-1", MIB, "Standard_LRS")
    assert found.source == f"{cloud.url}new.vhd"
    with pytest.raises((MachineRefusedError, MachineChangedError)):
        await cloud.port.import_disk(disk, ACCOUNT, "local")
    with pytest.raises(MachineRefusedError):
        await cloud.port.import_disk(wanted(cloud, f"{name}-no", source=f"{cloud.url}none.vhd"), ACCOUNT, "local")


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("no account", "storageAccountId"),
        ("another region", "same region"),
        ("a zone-redundant disk in a zone", "availability zone"),
        ("an ultra disk", "UltraSSD_LRS"),
        ("a premium disk of the second kind", "PremiumV2_LRS"),
    ],
)
async def test_an_import_that_azure_refuses_makes_no_disk(cloud, name, what, words):
    """Nothing is made."""
    fields = {
        "a zone-redundant disk in a zone": {"sku": "Premium_ZRS", "zones": ("1",)},
        "an ultra disk": {"sku": "UltraSSD_LRS"},
        "a premium disk of the second kind": {"sku": "PremiumV2_LRS"},
    }.get(what, {})
    account, region = "" if what == "no account" else ACCOUNT, "elsewhere" if what == "another region" else "local"
    disk = wanted(cloud, f"{name}-disk", **fields)
    with pytest.raises(MachineRefusedError, match=words):
        await cloud.port.import_disk(disk, account, region)

    assert await cloud.port.managed_disk(disk.disk) is None


async def test_the_permitted_actions_are_returned(cloud):
    actions = ["Microsoft.Compute/virtualMachines/write", "Microsoft.Compute/virtualMachines/start/action"]
    assert await cloud.port.permitted(cloud.vm, actions) == dict.fromkeys(actions, True)


# -- only the adapter: what Resource Manager may answer -----------------------------------------------------------------------


@pytest.fixture
async def azure(calm, machines, name):
    """The adapter, and a machine without disks."""
    services = bootstrap.build(settings_for(calm, ARM_ENDPOINT=machines.endpoint))
    machines.make(name)
    yield services.api.tools.machines
    machines.delete(name)
    await services.close()


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [
        (401, "AuthenticationFailed", AccessDeniedError),
        (403, "AuthorizationFailed", AccessDeniedError),
        (404, "ResourceGroupNotFound", MachineMissingError),
        (409, "Conflict", MachineBusyError),
        (409, "AnotherOperationInProgress", MachineBusyError),
        (409, "OperationNotAllowed", MachineRefusedError),
        (400, "InvalidParameter", MachineRefusedError),
        (412, "PreconditionFailed", MachineChangedError),
        (429, "TooManyRequests", ServiceUnavailableError),
        (503, "ServerBusy", ServiceUnavailableError),
    ],
)
async def test_refusals_by_status_and_code(azure, machines, name, status, code, kind):
    machines.faults({"method": "POST", "path": f"{name}/start", "status": status, "code": code, "times": 9})
    with pytest.raises(kind, match=code):
        await azure.start(machine_id(name))


@pytest.mark.parametrize("after", [False, True])
async def test_an_operation_that_fails_after_it_was_accepted(azure, machines, name, after):
    """By polling, either way Azure has: the code inside decides."""
    fault = {"path": name, "code": "AllocationFailed", "operation": True, "after": after}
    machines.faults({"method": "POST", **fault}, {"method": "POST", **fault}, {"method": "PATCH", **fault})
    with pytest.raises(MachineRefusedError, match="AllocationFailed"):
        await azure.start(machine_id(name))
    with pytest.raises(MachineRefusedError, match="AllocationFailed"):
        await azure.deallocate(machine_id(name))
    with pytest.raises(MachineRefusedError, match="AllocationFailed"):
        await azure.put_disk(await azure.machine(machine_id(name)), 3, None)
    assert (await azure.machine(machine_id(name))).state == "Failed"


@pytest.mark.parametrize("code", ["InternalError", "InternalExecutionError", "OperationTimedOut"])
@pytest.mark.parametrize("after", [False, True])
async def test_an_accepted_operation_that_fails_by_azures_own_fault_is_temporary(azure, machines, name, after, code):
    """As a request is that is refused with status 500."""
    machines.faults({"method": "POST", "path": f"{name}/start", "code": code, "operation": True, "after": after})
    with pytest.raises(ServiceUnavailableError, match=f"{code}.*temporary failure"):
        await azure.start(machine_id(name))


async def test_an_accepted_operation_of_which_nothing_is_left_names_what_is_missing(azure, machines, name):
    """The answer that says so has the status 200."""
    machines.faults({"method": "PATCH", "path": name, "code": "ResourceNotFound", "operation": True})
    with pytest.raises(MachineMissingError, match="having accepted it: ResourceNotFound"):
        await azure.put_disk(await azure.machine(machine_id(name)), 3, None)


@pytest.mark.parametrize("code", ["Canceled", ""])
async def test_an_accepted_operation_that_azure_cancels_is_temporary(azure, machines, name, code):
    """Another one took its place."""
    machines.faults({"method": "PATCH", "path": name, "code": code, "operation": True, "canceled": True})
    with pytest.raises(MachineBusyError, match="canceled it for another operation; temporary failure"):
        await azure.put_disk(await azure.machine(machine_id(name)), 3, None)


async def test_an_accepted_operation_that_fails_without_a_reason_is_refused(azure, machines, name):
    """A change of a machine that is refused goes back to the old disk; it is not repeated without end."""
    machines.faults({"method": "PATCH", "path": name, "code": "", "operation": True})
    with pytest.raises(MachineRefusedError, match="without a code"):
        await azure.put_disk(await azure.machine(machine_id(name)), 3, None)


async def test_an_operation_that_azure_does_not_know_is_no_missing_machine(azure, machines, name):
    """Azure answers so for an operation that it has just accepted; the machine is there."""
    machines.faults({"method": "GET", "path": "/operations/", "status": 404, "code": "ResourceNotFound", "retry_after": "60"})
    with pytest.raises(ServiceUnavailableError, match="temporary failure") as caught:
        await azure.start(machine_id(name))

    assert caught.value.wait_seconds == 60


async def test_a_change_of_azures_is_looked_at_every_few_seconds(calm):
    """It names no pause itself; the SDK's own is half a minute."""
    services = bootstrap.build(settings_for(calm, ARM_ENDPOINT="https://management.azure.com"))
    client = services.api.tools.machines._client(SUBSCRIPTION)

    assert client._config.polling_interval == bootstrap.POLLING_SECONDS
    await services.close()


async def test_a_request_that_resource_manager_does_not_answer_is_given_up_in_time(calm, monkeypatch):
    """The SDK waits five minutes, three times over: several such steps would outlast the heartbeat of their run."""
    assert 3 * sum(bootstrap._RESOURCE_MANAGER.values()) < STEP_SECONDS_MAX / 2
    monkeypatch.setitem(bootstrap._RESOURCE_MANAGER, "read_timeout", 0.1)
    server, ended = TestServer(web.Application()), asyncio.Event()

    async def never(_):
        await ended.wait()
        return web.Response()

    server.app.router.add_route("*", "/{path:.*}", never)
    async with server:
        services = bootstrap.build(settings_for(calm, ARM_ENDPOINT=str(server.make_url("/")).rstrip("/")))
        async with asyncio.timeout(20):
            with pytest.raises(ServiceUnavailableError, match="no answer"):
                await services.api.tools.machines.machine(machine_id("vm"))
        ended.set()
        await services.close()


async def test_an_operation_that_outlasts_the_call(calm, machines, name):
    """The call returns "not done"; the machine shows the change in progress, refuses more changes, and is done in the end."""
    services = bootstrap.build(settings_for(calm, ARM_ENDPOINT=machines.endpoint))
    azure = AzureMachines(services.api.tools.machines._client, wait_seconds=0.3)
    machines.make(name)
    machines.faults({"method": "PATCH", "path": name, "operation": True, "held": True})
    before = await azure.machine(machine_id(name))

    assert await azure.put_disk(before, 3, None) is False
    updating = await azure.machine(machine_id(name))
    assert updating.state == "Updating"
    with pytest.raises(MachineBusyError):
        await azure.put_disk(updating, 3, None)
    machines.reset()
    while (await azure.machine(machine_id(name))).state == "Updating":
        pass
    assert (await azure.machine(machine_id(name))).state == "Succeeded"
    machines.delete(name)
    await services.close()


@pytest.mark.parametrize(
    ("status", "code", "kind"), [(429, "TooManyRequests", ServiceUnavailableError), (409, "Conflict", MachineBusyError)]
)
async def test_a_long_retry_after_is_left_to_a_timer(azure, machines, name, status, code, kind):
    """It is not slept out within the call; the run waits that long, but never so long that it would be taken for dead."""
    for retry_after, waited in (("120", 120), ("86400", 300)):
        machines.faults({"method": "POST", "path": f"{name}/start", "status": status, "code": code, "retry_after": retry_after})
        with pytest.raises(kind) as error:
            await azure.start(machine_id(name))
        assert error.value.wait_seconds == waited
    assert await azure.start(machine_id(name))


async def test_a_short_retry_after_is_waited_for(azure, machines, name):
    machines.faults({"method": "POST", "path": f"{name}/start", "status": 429, "code": "TooManyRequests", "retry_after": "1"})

    assert await azure.start(machine_id(name))


async def test_no_answer_at_all(calm, name):
    services = bootstrap.build(settings_for(calm, ARM_ENDPOINT="http://127.0.0.1:1"))
    with pytest.raises(ServiceUnavailableError, match="no answer"):
        await services.api.tools.machines.machine(machine_id(name))
    await services.close()


FAR = "/subscriptions/11111111-2222-3333-4444-555555555555/resourceGroups/far/providers"
NAMED = {
    "identity": {
        "type": "UserAssigned",
        "userAssignedIdentities": {f"{FAR}/Microsoft.ManagedIdentity/userAssignedIdentities/i": {}},
    },
    "tags": {"owner": "team"},
    "zones": ["1"],
}
IMAGE = f"{FAR}/Microsoft.Compute/galleries/g/images/i/versions/1.0.0"
CARD = {"id": f"{FAR}/Microsoft.Network/networkInterfaces/card"}


def make_a_machine_that_names_much(machines, name):
    """Identity, image and network card are in a group where this app has no rights."""
    properties = {"hardwareProfile": {"vmSize": "Standard_D2s_v3"}, "networkProfile": {"networkInterfaces": [CARD]}}
    storage = {"dataDisks": [], "imageReference": {"id": IMAGE}}
    machines.control(
        "PUT",
        "machines",
        {"id": machine_id(name), "storageProfile": storage, "properties": properties, "more": NAMED},
    )


async def test_a_change_of_a_disk_needs_no_rights_on_other_resources_of_the_machine(azure, machines, name):
    """Only the disks are sent, since the whole model needs rights on all that it names. The rest stays as it was."""
    make_a_machine_that_names_much(machines, name)
    before = machines.machine(name)
    disk = MachineDisk("d", _a_disk(machines, name, zones=["1"]), managed=True, lun=4)
    await azure.put_disk(await azure.machine(machine_id(name)), 4, disk)
    after = machines.machine(name)

    assert [one["managedDisk"]["id"] for one in after["properties"]["storageProfile"]["dataDisks"]] == [disk.source]
    assert after["properties"]["storageProfile"]["imageReference"] == {"id": IMAGE}
    for part in ("hardwareProfile", "networkProfile"):
        assert after["properties"][part] == before["properties"][part]
    assert all(after[part] == NAMED[part] for part in NAMED)


@pytest.mark.parametrize("part", ["identity", "image", "network"])
def test_the_stand_in_looks_at_everything_that_a_whole_model_names(machines, name, part):
    """As Azure does; and it is content where the caller has the rights."""
    make_a_machine_that_names_much(machines, name)
    model = machines.machine(name)
    body = {
        "identity": {"location": "local", "identity": model["identity"], "properties": {"storageProfile": {}}},
        "image": {"properties": {"storageProfile": {"imageReference": {"id": IMAGE}}}},
        "network": {"properties": {"storageProfile": {}, "networkProfile": {"networkInterfaces": [CARD]}}},
    }[part]
    refused = requests.put(f"{machines.endpoint}{machine_id(name)}", json=body, timeout=9)
    assert (refused.status_code, refused.json()["error"]["code"]) == (403, "LinkedAuthorizationFailed")
    assert FAR in refused.json()["error"]["message"]

    machines.switch(elsewhere=[FAR.removesuffix("/providers")], actions=["*"])
    assert requests.put(f"{machines.endpoint}{machine_id(name)}", json=body, timeout=9).ok
    machines.delete(name)


async def test_a_disk_of_another_group_is_named_in_the_refusal(azure, machines, name):
    """The advice is Azure's own: which action, on which resource."""
    other = _a_disk(machines, name).replace("resourceGroups/demo", "resourceGroups/far")
    with pytest.raises(
        AccessDeniedError,
        match=r"LinkedAuthorizationFailed: grant the app's identity Microsoft.Compute/disks/write on .*/far/\S*, ",
    ):
        await azure.put_disk(await azure.machine(machine_id(name)), 0, MachineDisk("d", other, managed=True, lun=0))


async def test_each_verb_needs_its_right(azure, machines, name):
    """The stand-in gives what the role of the deployment gives, and each action that is taken from it is missed."""
    vm = machine_id(name)
    calls = {
        "virtualMachines/read": lambda: azure.machine(vm),
        "virtualMachines/start/action": lambda: azure.start(vm),
        "virtualMachines/deallocate/action": lambda: azure.deallocate(vm),
        "locations/operations/read": lambda: azure.start(vm),
        "disks/write": lambda: azure.import_disk(wanted(Cloud(azure, vm, "", None, None), name), ACCOUNT, "local"),
    }
    for action, call in calls.items():
        machines.switch(not_actions=[f"Microsoft.Compute/{action}"])
        with pytest.raises(AccessDeniedError, match=action):
            await call()
    machines.switch(not_actions=[])
    machine = await azure.machine(vm)
    machines.switch(not_actions=["Microsoft.Compute/virtualMachines/write"])
    with pytest.raises(AccessDeniedError, match="virtualMachines/write"):
        await azure.put_disk(machine, 0, None)


@pytest.mark.parametrize(
    ("status", "code", "message", "advice"),
    [
        (409, "OperationNotAllowed", "VMs with unmanaged disks are retired.", "no longer start in public Azure"),
        (409, "OperationNotAllowed", "It cannot be created in an availability zone.", "sku and zone"),
        (409, "OperationNotAllowed", "exceeding approved Total Cores quota", "more quota"),
        (409, "OperationNotAllowed", "Something new.", "correct what Azure names"),
        (409, "OperationNotAllowed", "", "correct what Azure names"),
        (400, "BadRequest", "Security type of VM is not compatible with that of the OS Disk", "securityProfile"),
        (400, "BadRequest", "Required parameter 'storageAccountId' is missing (null).", "SOURCE_ACCOUNT_IDS"),
        (400, "BadRequest", "The account does not belong to the same region.", "target.account"),
        (409, "ScopeLocked", "The scope cannot perform write.", "remove the lock"),
        (403, "RequestDisallowedByPolicy", "Disallowed by policy.", "exemption"),
    ],
)
async def test_advice_by_code_and_message(azure, machines, name, status, code, message, advice):
    fault = {"method": "POST", "path": f"{name}/start", "status": status, "code": code, "message": message}
    machines.faults(fault)
    with pytest.raises(MachineRefusedError, match=advice) as refused:
        await azure.start(machine_id(name))

    assert ("2026-03-31" in str(refused.value)) == ("unmanaged" in message)


async def test_a_linked_refusal_in_words_that_nobody_knows_yet(azure, machines, name):
    fault = {
        "method": "POST",
        "path": f"{name}/start",
        "status": 403,
        "code": "LinkedAuthorizationFailed",
        "message": "New words.",
    }
    machines.faults(fault)
    with pytest.raises(AccessDeniedError, match=r"what Azure names \(New words\.\)"):
        await azure.start(machine_id(name))


@pytest.mark.parametrize("code", ["DenyAssignmentAuthorizationFailed", "LinkedAuthorizationFailed"])
async def test_a_deny_assignment_is_not_answered_by_a_role(azure, machines, name, code):
    """The client may have every right: what a managed application or a deployment stack denies, no role gives."""
    message = (
        "The client has permission to perform action 'Microsoft.Compute/virtualMachines/start/action' on scope '/x'; however, the "
        "access is denied because of the deny assignment with name 'managed'."
    )
    machines.faults({"method": "POST", "path": f"{name}/start", "status": 403, "code": code, "message": message})
    with pytest.raises(AccessDeniedError, match=r"deny assignment forbids it: no role helps; .* excluded from it") as refused:
        await azure.start(machine_id(name))

    assert "grant" not in str(refused.value)


# -- only the adapter: managed disks ------------------------------------------------------------------------------------------


@pytest.fixture
async def azure_cloud(calm, machines, name):
    """A machine of the adapter's, with an OS disk, and a free disk blob."""
    services = bootstrap.build(settings_for(calm, ARM_ENDPOINT=machines.endpoint))
    container = services.api.tools.blobs._accounts[calm.source.blobs].get_container_client(name)
    await container.create_container()
    blob = container.get_blob_client("new.vhd")
    await blob.create_page_blob(SIZE)
    await blob.upload_page(vhd_footer(MIB), MIB, 512)
    yield Cloud(services.api.tools.machines, machine_id(name), f"{calm.source.blobs}/{name}/", None, None)
    await services.close()


TRAITS = {
    "sku": "Premium_LRS",
    "os_type": "Linux",
    "generation": "V2",
    "zones": ("2",),
    "security_type": "TrustedLaunch",
    "tier": "P30",
    "encryption": "EncryptionAtRestWithCustomerKey",
    "encryption_set": f"{GROUP}/providers/Microsoft.Compute/diskEncryptionSets/keys",
    "network_access": "AllowPrivate",
    "disk_access": f"{GROUP}/providers/Microsoft.Compute/diskAccesses/access",
    "public_access": "Disabled",
    "capabilities": (("architecture", "x64"), ("diskControllerTypes", "SCSI, NVMe")),
    "tags": (("costCenter", "42"),),
}


IMPORTED = {"state": "Succeeded", "disk_state": "Unattached", "create_option": "Import"}
"""What Azure adds to a disk."""


async def test_an_imported_disk_has_every_requested_trait(azure_cloud, name):
    disk = wanted(azure_cloud, f"{name}-disk", **TRAITS)
    await azure_cloud.port.import_disk(disk, ACCOUNT, "local")
    found = await azure_cloud.port.managed_disk(disk.disk)

    assert found.unique
    assert found == replace(disk, **IMPORTED, unique=found.unique)


@pytest.mark.parametrize("trait", ["encryption_set", "disk_access"])
async def test_a_missing_right_on_a_resource_of_the_disk_is_reported(azure_cloud, name, trait):
    """A key or an access in another group: Azure says what is missing."""
    far = TRAITS[trait].replace("resourceGroups/demo", "resourceGroups/far")
    disk = wanted(azure_cloud, f"{name}-disk", **{**TRAITS, trait: far})
    with pytest.raises(AccessDeniedError, match="/far/"):
        await azure_cloud.port.import_disk(disk, ACCOUNT, "local")

    assert await azure_cloud.port.managed_disk(disk.disk) is None


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"tier": "P30"}, "a tier is for premium disks"),
        ({"sku": "Premium_LRS", "tier": "P0"}, "not a tier"),
        ({"network_access": "AllowPrivate"}, "go together"),
        ({"disk_access": TRAITS["disk_access"]}, "go together"),
        ({"encryption": "EncryptionAtRestWithCustomerKey"}, "needs a diskEncryptionSetId"),
        ({"security_type": "TrustedLaunch", "os_type": "Linux", "generation": "V1"}, "needs osType and hyperVGeneration V2"),
    ],
)
async def test_disks_that_contradict_themselves(azure_cloud, name, fields, words):
    with pytest.raises(MachineRefusedError, match=words):
        await azure_cloud.port.import_disk(wanted(azure_cloud, f"{name}-disk", **fields), ACCOUNT, "local")


async def test_the_account_of_another_blob(azure_cloud, name):
    with pytest.raises(MachineRefusedError, match="is not the storage account of"):
        await azure_cloud.port.import_disk(wanted(azure_cloud, f"{name}-disk"), account_id("another"), "local")


@pytest.mark.parametrize("lists_keys", [False, True])
async def test_an_import_works_whether_or_not_azure_requires_the_right_to_list_the_accounts_keys(
    azure_cloud, machines, name, lists_keys
):
    """When Azure requires it, the refusal names the action; a role that has it helps."""
    machines.switch(import_lists_keys=lists_keys)
    disk = wanted(azure_cloud, f"{name}-disk")
    if lists_keys:
        with pytest.raises(AccessDeniedError, match=r"storageAccounts/listKeys/action.*storageAccounts/source"):
            await azure_cloud.port.import_disk(disk, ACCOUNT, "local")
        machines.switch(actions=["*"])

    assert await azure_cloud.port.import_disk(disk, ACCOUNT, "local") is True


async def test_a_disk_that_is_there_where_the_condition_is_ignored(azure_cloud, machines, name):
    """It stays what it was: of another origin it is refused, of the same one it is the same."""
    machines.switch(ignores_if_none_match=True)
    disk = wanted(azure_cloud, f"{name}-disk")
    await azure_cloud.port.import_disk(disk, ACCOUNT, "local")
    with pytest.raises(MachineRefusedError, match="PropertyChangeNotAllowed"):
        await azure_cloud.port.import_disk(replace(disk, run="run-2", source=f"{azure_cloud.url}x.vhd"), ACCOUNT, "local")
    await azure_cloud.port.import_disk(disk, ACCOUNT, "local")

    usual = {"encryption": "EncryptionAtRestWithPlatformKey", "network_access": "AllowAll", "public_access": "Enabled"}
    found = await azure_cloud.port.managed_disk(disk.disk)
    assert found == replace(disk, **IMPORTED, zones=(), unique=found.unique, **usual)


def _a_machine(machines, name, security_type="", zones=()):
    storage = {"osDisk": {"name": "os", "osType": "Linux", "createOption": "Attach", "managedDisk": {"id": _a_disk(
        machines, f"{name}-os", security_type, zones)}}}  # fmt: skip
    properties = {"securityProfile": {"securityType": security_type}} if security_type else {}
    body = {"id": machine_id(name), "storageProfile": storage, "properties": properties, "power": "deallocated"}
    machines.control("PUT", "machines", body | {"more": {"zones": list(zones)} if zones else {}})


@pytest.mark.parametrize("security_type", ["", "TrustedLaunch"])
async def test_an_os_disk_is_of_the_machines_security_type(azure_cloud, machines, name, security_type):
    _a_machine(machines, name, security_type)
    machine = await azure_cloud.port.machine(machine_id(name))
    assert (machine.security_type, machine.generation) == (security_type, "V2" if security_type else "V1")
    other = "" if security_type else "TrustedLaunch"
    disk = MachineDisk("d", _a_disk(machines, f"{name}-other", other), managed=True)
    with pytest.raises(MachineRefusedError, match="Security type of VM is not compatible"):
        await azure_cloud.port.put_disk(machine, None, disk)
    fitting = MachineDisk("d", _a_disk(machines, f"{name}-fitting", security_type), managed=True)

    assert await azure_cloud.port.put_disk(machine, None, fitting) is True
    machines.delete(name)


async def test_an_os_disk_has_to_support_the_machines_disk_controller(azure_cloud, machines, name):
    able = {"supportedCapabilities": {"diskControllerTypes": "SCSI, NVMe"}}
    disks = {end: machines.make_disk(f"{name}-{end}", data_bytes=MIB, properties=more) for end, more in
             (("os", able), ("scsi", {}), ("able", able))}  # fmt: skip
    machines.make(name, os=disks["os"], power="deallocated", controller="NVMe")
    machine = await azure_cloud.port.machine(machine_id(name))
    with pytest.raises(MachineRefusedError, match=r"disk controller types.*compare supportedCapabilities"):
        await azure_cloud.port.put_disk(machine, None, MachineDisk("d", disks["scsi"], managed=True))

    assert await azure_cloud.port.put_disk(machine, None, MachineDisk("d", disks["able"], managed=True)) is True
    machines.delete(name)


async def test_the_access_mode_of_a_disk_is_read(azure_cloud, machines, name):
    disk = machines.make_disk(name, data_bytes=MIB, properties={"dataAccessAuthMode": SIGN_IN})

    assert (await azure_cloud.port.managed_disk(disk)).access_auth == SIGN_IN


async def test_all_machines_of_a_shared_disk_are_read(azure_cloud, machines, name):
    disk = machines.make_disk(name, data_bytes=MIB, properties={"maxShares": 2})
    for vm in (name, f"{name}-b"):
        machines.make(vm, data={0: disk})
    found = await azure_cloud.port.managed_disk(disk)
    with pytest.raises(ValueError, match="already owned"):
        machines.make(f"{name}-c", data={0: disk})
    machines.delete(name)

    assert set(found.sharers) == {machine_id(name), machine_id(f"{name}-b")}
    assert found.unkept == (("maxShares", "2"),)
    assert (await azure_cloud.port.managed_disk(disk)).sharers == (machine_id(f"{name}-b"),)
    machines.delete(f"{name}-b")


async def test_a_disk_of_another_edge_zone_is_not_attached(azure_cloud, machines, name):
    edge = {"name": "losangeles", "type": "EdgeZone"}
    disk = machines.make_disk(name, data_bytes=MIB, extendedLocation=edge)
    with pytest.raises(ValueError, match="extended location"):
        machines.make(name, data={0: disk})

    assert (await azure_cloud.port.managed_disk(disk)).edge_zone == edge["name"]


async def test_a_disk_of_another_zone_or_machine_is_not_attached(azure_cloud, machines, name):
    _a_machine(machines, name, zones=["1"])
    _a_machine(machines, f"{name}-2")
    machine = await azure_cloud.port.machine(machine_id(name))
    for other, words in ((f"{name}-zone-2", "availability zone"), (f"{name}-2-os", "already owned")):
        found = _a_disk(machines, other, zones=["2"]) if "zone" in other else managed_disk_id(machine_id(name), f"{other}-data")
        with pytest.raises(MachineRefusedError, match=words):
            await azure_cloud.port.put_disk(machine, 0, MachineDisk("d", found, managed=True, lun=0))
    machines.delete(name)
    machines.delete(f"{name}-2")


def _patched(machines, name, storage):
    body = {"properties": {"storageProfile": storage}}
    return requests.patch(f"{machines.endpoint}{machine_id(name)}", json=body, timeout=9)


async def test_the_origin_of_a_disk_is_not_sent_when_it_is_attached(azure, machines, name):
    """Azure says it of a data disk that was made with the machine, and refuses it of one that is attached."""
    made_from = {"id": f"{GROUP}/providers/Microsoft.Compute/snapshots/s"}
    disk = {"lun": 2, "name": "d", "createOption": "Copy", "caching": "None", "sourceResource": made_from}
    body = {"dataDisks": [disk | {"managedDisk": {"id": _a_disk(machines, name)}}]}
    machines.control("PUT", "machines", {"id": machine_id(name), "storageProfile": body})
    found = (await azure.machine(machine_id(name))).at(2)
    await azure.put_disk(await azure.machine(machine_id(name)), 2, None)

    refused = _patched(machines, name, {"dataDisks": [body["dataDisks"][0] | {"createOption": "Attach"}]})
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "InvalidParameter")
    assert await azure.put_disk(await azure.machine(machine_id(name)), 2, found) is True


# -- only the adapter: versions, permissions ----------------------------------------------------------------------------------


async def test_the_other_settings_of_a_disk_are_kept_when_it_is_attached_again(azure, machines, name, calm):
    """deleteOption, writeAcceleratorEnabled and what Azure will add: kept by the old disk and by what takes its place."""
    machines.control("PUT", "machines", {"id": machine_id(name), "storageProfile": {"dataDisks": [
        {"lun": 2, "name": "d", "createOption": "Attach", "caching": "ReadWrite", "deleteOption": "Detach", "diskSizeGB": 7,
         "writeAcceleratorEnabled": False, "managedDisk": {"id": _a_disk(machines, name)}}]}})  # fmt: skip
    before = machines.machine(name)["properties"]["storageProfile"]["dataDisks"]
    disk = (await azure.machine(machine_id(name))).at(2)
    await azure.put_disk(await azure.machine(machine_id(name)), 2, None)
    assert machines.machine(name)["properties"]["storageProfile"]["dataDisks"] == []
    await azure.put_disk(await azure.machine(machine_id(name)), 2, disk)

    assert machines.machine(name)["properties"]["storageProfile"]["dataDisks"] == before


def _a_disk(machines, name, security_type="", zones=()):
    """An empty managed disk."""
    disk = managed_disk_id(machine_id(name), f"{name}-data")
    properties = {"creationData": {"createOption": "Empty"}, "osType": "Linux", "hyperVGeneration": "V2"}
    properties |= {"securityProfile": {"securityType": security_type}} if security_type else {}
    body = {"location": "local", "properties": properties, "zones": list(zones)}
    requests.put(f"{machines.endpoint}{disk}", json=body, timeout=9).raise_for_status()
    return disk


async def test_a_machine_without_a_version_is_not_changed(azure, machines, name):
    machine = replace(await azure.machine(machine_id(name)), etag="")
    with pytest.raises(MachineRefusedError, match="returned no version"):
        await azure.put_disk(machine, 0, None)


async def test_denied_actions(azure, machines, name):
    allowed = ["Microsoft.Compute/*", "Microsoft.Authorization/permissions/read"]
    machines.switch(actions=allowed, not_actions=["microsoft.compute/virtualMachines/write"])
    write, start = "Microsoft.Compute/virtualMachines/write", "Microsoft.Compute/virtualMachines/start/action"

    assert await azure.permitted(machine_id(name), [write, start, "Microsoft.Network/x"]) == {
        write: False, start: True, "Microsoft.Network/x": False,
    }  # fmt: skip


async def test_no_token_travels_to_the_stand_in(azure, machines, name):
    """It speaks http: the client sends no authorisation there, and errors hold none."""
    machines.faults({"method": "GET", "path": name, "status": 403, "code": "AuthorizationFailed"})
    with pytest.raises(AccessDeniedError) as refused:
        await azure.machine(machine_id(name))

    assert "Bearer" not in str(refused.value) + json.dumps(machines.control("GET"))


@pytest.mark.parametrize(
    "body", ["<html>", "[]", "{}", '{"value": null}', '{"value": {"a": 1}}', '{"value": [5]}', '{"value": "x"}']
)
async def test_a_list_of_permissions_that_is_none(body):
    """From a proxy, for instance: not known, and no fault of this program."""

    async def send_request(_):
        return SimpleNamespace(raise_for_status=lambda: None, json=lambda: json.loads(body))

    port = AzureMachines(lambda _: SimpleNamespace(send_request=send_request))
    with pytest.raises(UnexpectedAnswerError, match="cannot be read"):
        await port.permitted(machine_id("web"), ["Microsoft.Compute/virtualMachines/write"])


@pytest.mark.parametrize("reason", [None, "", "\n", "  "])
def test_an_answer_without_a_reason(reason):
    error = HttpResponseError(message="x")
    error.status_code, error.reason = 409, reason

    assert "Azure answered 409 without a code (" in str(_fault(error, "give it a disk", KIND))
