"""PUT of a managed disk: refusals change nothing, warnings are reported, and answers name the kind of the source."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from backup_core.api import disks, points
from backup_core.api.context import respond
from backup_core.api.http import Request
from backup_core.domain.errors import AccessDeniedError
from backup_core.domain.managed import ManagedDisk
from backup_core.domain.repoint import MachineDisk
from tests.scene import GROUP, PAGE, VM, Scene

GIB = 1024**3


@pytest.fixture
def scene():
    stage = Scene(managed=True)
    for name in ("vm", "other"):
        stage.blobs.put_disk(stage.disk(name), 32 * PAGE)
        describe(stage, name)
    return stage


def describe(scene, name="vm", **fields):
    """Set Azure's description of the disk."""
    at = str(scene.disk(name))
    scene.machines.disks[at] = ManagedDisk(at, "Succeeded", "", 32 * PAGE, network_access="AllowAll", **fields)


def attach(scene, **fields):
    """Attach the disk to a machine that has one more disk."""
    describe(scene, machine=VM)
    used = [MachineDisk("data", str(scene.disk()), managed=True, lun=0), MachineDisk("more", str(scene.disk("other")), True, 1)]
    machine = scene.machines.add(VM, *used)
    scene.machines.machines[VM] = replace(machine, disks=tuple(used), **fields)


async def put(scene, source=None, disk="vm", **fields):
    body = json.dumps({"source": str(source or scene.disk()), **fields}).encode()
    answer = await respond(scene.api(), disks.put_disk, Request("https://app.test/api", {"disk": disk}, {}, body))
    return answer.status, json.loads(answer.body)


async def test_a_managed_disk_is_registered_by_its_resource_id(scene):
    status, shown = await put(scene)

    assert (status, shown["sourceKind"], shown["source"], shown["warnings"]) == (201, "managedDisk", str(scene.disk()), [])
    assert scene.claims() == {str(scene.disk()): "vm"}
    assert not scene.blobs.open


async def test_every_spelling_is_the_same_disk(scene):
    """Each spelling updates the same registration, and is refused under another id."""
    await put(scene)
    upper = str(scene.disk()).upper().replace("/SUBSCRIPTIONS", "/subscriptions")
    assert (await put(scene, upper))[0] == 200
    status, shown = await put(scene, upper, disk="again")

    assert (status, shown["error"]["code"]) == (409, "SourceAlreadyProtected")
    assert "disk vm" in shown["error"]["message"]


async def test_answers_name_the_kind_of_the_source(scene):
    """Restore points name it too: a disk may have had a source of the other kind."""
    await put(scene)
    await scene.back_up()
    answer = await respond(scene.api(), points.get_points, Request("https://app.test/api", {"disk": "vm"}, {}, b""))

    assert [one["sourceKind"] for one in json.loads(answer.body)["value"]] == ["managedDisk"]
    blob = Scene()
    blob.blobs.put(blob.source(), 512)
    assert (await put(blob, blob.source()))[1]["sourceKind"] == "pageBlob"


REFUSALS = {
    "group": (lambda scene: setattr(scene, "tools", replace(scene.tools, disk_groups=())), "InvalidSource", "DISK_GROUPS"),
    "missing": (lambda scene: scene.machines.disks.clear(), "SourceNotFound", "does not exist"),
    "4k": (lambda scene: describe(scene, sector_bytes=4096), "SourceUnfit", "sectors of 4096 bytes; expected 512"),
    "large": (
        lambda scene: scene.machines.disks.update(
            {str(scene.disk()): ManagedDisk(str(scene.disk()), "Succeeded", "", 8192 * GIB)}
        ),
        "SourceUnfit",
        "expected at most 8191 GiB",
    ),
    "denied": (
        lambda scene: scene.machines.disks.update(
            {str(scene.disk()): ManagedDisk(str(scene.disk()), "Succeeded", "", GIB, network_access="DenyAll")}
        ),
        "SourceUnfit",
        "expected AllowAll or AllowPrivate",
    ),
    "confidential disk": (lambda scene: describe(scene, security_type="ConfidentialVM_VMGuestStateOnlyEncryptedWithPlatformKey"),
                          "SourceUnfit", "confidential VM"),
    "confidential machine": (lambda scene: attach(scene, security_type="ConfidentialVM"), "SourceUnfit", "confidential VM"),
    "snapshot group": (
        lambda scene: setattr(scene, "tools", replace(scene.tools, snapshot_group=GROUP.lower().replace("1", "9"))),
        "SourceUnfit",
        "SNAPSHOT_GROUP",
    ),
}  # fmt: skip


@pytest.mark.parametrize("why", REFUSALS)
async def test_a_disk_that_cannot_be_protected_is_refused_and_nothing_changes(scene, why):
    arrange, code, message = REFUSALS[why]
    arrange(scene)
    before = scene.dump(with_runs=True)
    status, shown = await put(scene)

    assert (status, shown["error"]["code"], shown["error"]["target"]) == (400, code, "source")
    assert message in shown["error"]["message"]
    assert str(scene.disk()) in shown["error"]["message"]
    assert scene.dump(with_runs=True) == before


async def test_an_ephemeral_disk_is_refused(scene):
    attach(scene)
    os = MachineDisk("os", str(scene.disk()), managed=True, model={"diffDiskSettings": {"option": "Local"}})
    scene.machines.machines[VM] = replace(scene.machines.machines[VM], disks=(os,))
    status, shown = await put(scene)

    assert (status, "ephemeral" in shown["error"]["message"]) == (400, True)


async def test_limits_of_a_later_restore_are_reported_as_warnings(scene):
    attach(scene)
    describe(scene, machine=VM, security_type="TrustedLaunch", os_type="Linux", guest_encrypted=True)
    scene.machines.disks[str(scene.disk())] = replace(scene.machines.disks[str(scene.disk())], network_access="AllowPrivate")
    status, shown = await put(scene)

    assert status == 201
    assert len(shown["warnings"]) == 4
    for message in ("private endpoint", "guest state", "Azure Disk Encryption", "1 more disks"):
        assert any(message in words for words in shown["warnings"]), message


async def test_a_machine_that_may_not_be_read_is_reported(scene):
    attach(scene)

    async def refused(_):
        raise AccessDeniedError("grant the role")

    scene.machines.machine = refused
    status, shown = await put(scene)

    assert (status, len(shown["warnings"])) == (201, 1)
    assert "could not be read (AccessDenied: grant the role)" in shown["warnings"][0]


async def test_a_disk_of_an_instance_of_a_scale_set_is_registered(scene):
    """Such an instance is no virtual machine of its own: volumes of AKS are attached to them. Nothing is asked of it."""
    instance = VM.replace("/virtualMachines/", "/virtualMachineScaleSets/nodes/virtualMachines/")
    describe(scene, machine=instance)
    status, shown = await put(scene)

    assert (status, len(shown["warnings"])) == (201, 1)
    assert f"{instance}, which uses the disk, is no virtual machine" in shown["warnings"][0]


async def test_a_disk_that_replaces_a_page_blob_keeps_its_points(scene):
    """The first backup of the new source is a full backup of a new generation."""
    scene.managed = False
    scene.protect()
    await scene.back_up()
    assert (await put(scene))[1]["error"]["code"] == "SourceChanged"
    status, shown = await put(scene, followsOn=True)
    await scene.back_up()

    assert (status, shown["sourceKind"]) == (200, "managedDisk")
    first, second = scene.points()
    assert (first.source, second.source) == (str(scene.source()), str(scene.disk()))
    assert second.kind == "full"
    assert scene.content(second) == scene.blobs.disks[scene.disk()].content()
    assert scene.claims() == {str(scene.disk()): "vm"}
