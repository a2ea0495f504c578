"""What the Machines port promises: in memory, and the adapter with the real SDK against the stand-in for Resource Manager."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass

import pytest
import requests

from backup_core import bootstrap
from backup_core.adapters.machines import AzureMachines
from backup_core.domain.errors import (
    AccessDeniedError,
    MachineBusyError,
    MachineChangedError,
    MachineMissingError,
    MachineRefusedError,
    ServiceUnavailableError,
)
from backup_core.domain.naming import BlobAddress, managed_disk_id
from backup_core.domain.repoint import MachineDisk
from backup_core.ports import ManagedDisk
from devhost.disks import vhd_footer
from devhost.machines import machine_id
from devhost.memory.machines import MemoryMachines
from devhost.memory.page_blobs import MemoryPageBlobs
from devhost.memory.world import World
from tests.ports.conftest import local_settings

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
        world = World()
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
    services = bootstrap.build(local_settings(storage, ARM_ENDPOINT=machines.endpoint))
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
    """What fences late changes: even a write that changes nothing gives the machine another version."""
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


async def test_what_is_not_there(cloud, name):
    other = machine_id(f"{name}-none")
    for call in (cloud.port.machine(other), cloud.port.deallocate(other), cloud.port.start(other)):
        with pytest.raises(MachineMissingError):
            await call
    assert await cloud.port.managed_disk(managed_disk_id(cloud.vm, "none")) is None


async def test_a_managed_disk_of_a_vhd(cloud, name):
    wanted = ManagedDisk(managed_disk_id(cloud.vm, f"{name}-disk"), "", "run-1", SIZE, sku="Standard_LRS")
    assert await cloud.port.import_disk(wanted, f"{cloud.url}new.vhd", "local", ()) is True
    found = await cloud.port.managed_disk(wanted.disk)

    assert (found.state, found.run, found.size_bytes, found.sku) == ("Succeeded", "run-1", SIZE, "Standard_LRS")
    with pytest.raises((MachineRefusedError, MachineChangedError)):
        await cloud.port.import_disk(wanted, f"{cloud.url}new.vhd", "local", ())
    with pytest.raises(MachineRefusedError):
        await cloud.port.import_disk(
            ManagedDisk(managed_disk_id(cloud.vm, f"{name}-no"), "", "run-1", SIZE, sku="Standard_LRS"),
            f"{cloud.url}none.vhd",
            "local",
            (),
        )


async def test_permissions(cloud):
    actions = ["Microsoft.Compute/virtualMachines/write", "Microsoft.Compute/virtualMachines/start/action"]
    assert await cloud.port.permitted(cloud.vm, actions) == dict.fromkeys(actions, True)


# -- only the adapter: what Resource Manager may answer -----------------------------------------------------------------------


@pytest.fixture
async def azure(calm, machines, name):
    """The adapter, and a machine without disks."""
    services = bootstrap.build(local_settings(calm, ARM_ENDPOINT=machines.endpoint))
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
    machines.faults({"method": "POST", **fault}, {"method": "POST", **fault}, {"method": "PUT", **fault})
    with pytest.raises(MachineRefusedError, match="AllocationFailed"):
        await azure.start(machine_id(name))
    with pytest.raises(MachineRefusedError, match="AllocationFailed"):
        await azure.deallocate(machine_id(name))
    with pytest.raises(MachineRefusedError, match="AllocationFailed"):
        await azure.put_disk(await azure.machine(machine_id(name)), 3, None)
    assert (await azure.machine(machine_id(name))).state == "Failed"


async def test_an_operation_that_outlasts_the_call(calm, machines, name):
    """It answers that it is not done; the machine shows what is going on, refuses more, and is done in the end."""
    services = bootstrap.build(local_settings(calm, ARM_ENDPOINT=machines.endpoint))
    azure = AzureMachines(services.api.tools.machines._client, wait_seconds=0.3)
    machines.make(name)
    machines.faults({"method": "PUT", "path": name, "operation": True, "held": True})
    before = await azure.machine(machine_id(name))

    assert await azure.put_disk(before, 3, None) is False
    under_way = await azure.machine(machine_id(name))
    assert under_way.state == "Updating"
    with pytest.raises(MachineBusyError):
        await azure.put_disk(under_way, 3, None)
    machines.reset()
    while (await azure.machine(machine_id(name))).state == "Updating":
        pass
    assert (await azure.machine(machine_id(name))).state == "Succeeded"
    machines.delete(name)
    await services.close()


async def test_no_answer_at_all(calm, name):
    services = bootstrap.build(local_settings(calm, ARM_ENDPOINT="http://127.0.0.1:1"))
    with pytest.raises(ServiceUnavailableError, match="no answer"):
        await services.api.tools.machines.machine(machine_id(name))
    await services.close()


async def test_everything_else_of_the_model_is_sent_as_it_was(azure, machines, name):
    """Tags, identity, network: a change of a disk changes a disk; what only Azure may write is left out."""
    more = {"tags": {"owner": "team"}, "zones": ["1"], "identity": {"type": "SystemAssigned", "principalId": "p"}}
    properties = {"hardwareProfile": {"vmSize": "Standard_D2s_v3"}, "networkProfile": {"networkInterfaces": [{"id": "/nic"}]}}
    body = {"id": machine_id(name), "storageProfile": {"dataDisks": []}, "properties": properties, "more": more}
    machines.control("PUT", "machines", body)
    await azure.put_disk(await azure.machine(machine_id(name)), 0, None)
    after = machines.machine(name)

    assert (after["tags"], after["zones"]) == ({"owner": "team"}, ["1"])
    assert after["properties"]["hardwareProfile"] == properties["hardwareProfile"]
    assert after["properties"]["networkProfile"] == properties["networkProfile"]
    assert after["identity"] == {"type": "SystemAssigned"}
    assert "vmId" not in after["properties"]


async def test_what_else_the_machine_says_of_a_disk_comes_back_with_it(azure, machines, name, calm):
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


def _a_disk(machines, name):
    disk = managed_disk_id(machine_id(name), f"{name}-data")
    requests.put(f"{machines.endpoint}{disk}", json={"location": "local", "properties": {}}, timeout=9).raise_for_status()
    return disk


async def test_a_machine_without_a_version_is_not_changed(azure, machines, name):
    from dataclasses import replace  # noqa: PLC0415

    machine = replace(await azure.machine(machine_id(name)), etag="")
    with pytest.raises(MachineRefusedError, match="tells no version"):
        await azure.put_disk(machine, 0, None)


async def test_denied_actions(azure, machines, name):
    machines.switch(actions=["Microsoft.Compute/*"], not_actions=["microsoft.compute/virtualMachines/write"])
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
