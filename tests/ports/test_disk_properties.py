"""Each property of a managed disk that Azure's SDK knows is decided on, and a restore does with it what was decided."""

from __future__ import annotations

import pytest
from azure.mgmt.compute import models

from backup_core.adapters.machine_models import disk_body, managed_disk_of
from backup_core.domain.disk_properties import FATES, WORDS
from backup_core.domain.managed import SIGN_IN, differences, exchange_fault, replacement
from backup_core.domain.ranges import GIB, PAGE
from backup_core.domain.repoint import Machine, MachineDisk

GROUP = "/subscriptions/s/resourceGroups/g/providers/Microsoft.Compute"
VM, OTHER = f"{GROUP}/virtualMachines/web", f"{GROUP}/virtualMachines/other"
NESTED = {
    "properties": models.DiskProperties,
    "creationData": models.CreationData,
    "encryption": models.Encryption,
    "securityProfile": models.DiskSecurityProfile,
    "supportedCapabilities": models.SupportedCapabilities,
    "sku": models.DiskSku,
}
"""The models whose properties are decided on one by one; others are decided on as a whole."""
SAMPLES = {
    "tags": {"costCenter": "42"},
    "sku.name": "Premium_LRS",
    "supportedCapabilities.diskControllerTypes": "SCSI, NVMe",
    "supportedCapabilities.acceleratedNetwork": True,
    "supportedCapabilities.architecture": "Arm64",
    "supportedCapabilities.supportedSecurityOption": "TrustedLaunchSupported",
    "encryption.type": "EncryptionAtRestWithCustomerKey",
    "encryption.diskEncryptionSetId": "/keys",
    "networkAccessPolicy": "AllowPrivate",
    "diskAccessId": "/access",
    "tier": "P30",
    "publicNetworkAccess": "Disabled",
    "purchasePlan": {"name": "plan", "publisher": "publisher", "product": "product"},
    "creationData.logicalSectorSize": 4096,
    "creationData.performancePlus": True,
    "diskIOPSReadWrite": 5000,
    "diskMBpsReadWrite": 200,
    "diskIOPSReadOnly": 5000,
    "diskMBpsReadOnly": 200,
    "maxShares": 3,
    "burstingEnabled": True,
    "supportsHibernation": True,
    "dataAccessAuthMode": SIGN_IN,
    "optimizedForFrequentAttach": True,
    "availabilityPolicy": {"actionOnDiskDelay": "AutomaticReattach"},
    "managedBy": OTHER,
    "managedByExtended": [VM, OTHER],
    "shareInfo": [{"vmUri": VM}, {"vmUri": OTHER}],
    "encryptionSettingsCollection": {"enabled": True, "encryptionSettings": []},
}
TOGETHER = {"encryption.type": "encryption.diskEncryptionSetId"}
"""The first is nothing without the second: without an encryption set it is Azure's own."""
EDGE = {"name": "losangeles", "type": "EdgeZone"}


def known(model, before=""):
    """The properties of a model of the SDK, by their names in Azure Resource Manager."""
    model()  # fills in the list
    for field in model._attr_to_rest_field.values():
        name = field._rest_name
        if name in NESTED and not before:
            yield from known(NESTED[name], "" if name == "properties" else f"{name}.")
        else:
            yield before + name


def properties(model):
    """Those, where the properties of `properties` may have properties of their own."""
    for name in known(model):
        if name in NESTED:
            yield from known(NESTED[name], f"{name}.")
        else:
            yield name


def decided(*fates):
    return sorted(name for name, fate in FATES.items() if fate in fates)


def resource(*names):
    """A disk of the machine with the sample of each named property, as Azure shows it."""
    found = {"location": "local", "sku": {"name": "Premium_LRS"}, "properties": {"diskSizeBytes": GIB}}
    if any(name.startswith("disk") and name[4:5] in "IM" for name in names):
        found["sku"] = {"name": "UltraSSD_LRS"}
    for name in names:
        above, _, last = name.rpartition(".")
        place = found if above == "sku" or name in ("tags", "managedBy", "managedByExtended") else found["properties"]
        (place.setdefault(above, {}) if above else place)[last] = SAMPLES[name]
    return found


def restored(found, **machine):
    """The former disk, and the one that a restore of the OS disk puts in its place."""
    former = managed_disk_of("/old", found)
    disks = (MachineDisk("os", "/old", managed=True, os_type="Linux"),)
    vm = Machine(VM, "1", "Succeeded", "running", "local", disks, **machine)
    return former, replacement("/new", "run", "", GIB + PAGE, vm, None, former)


def test_every_property_that_the_sdk_knows_is_decided_on():
    """A new version of the SDK may know more: decide what becomes of each (backup_core/domain/disk_properties.py)."""
    assert set(properties(models.Disk)) == set(FATES)


def test_every_decision_that_shows_has_a_sample_here():
    assert set(SAMPLES) == set(decided("kept", "named", "refused"))
    assert set(WORDS) | {"dataAccessAuthMode"} == set(decided("named"))


@pytest.mark.parametrize("name", decided("kept"))
def test_a_property_that_is_kept_is_sent(name):
    found = resource(*{name, TOGETHER.get(name, name)})
    former, made = restored(found)
    body = disk_body(made, "/account", "local")
    above, _, last = name.rpartition(".")
    place = body if above == "sku" or name == "tags" else body["properties"]

    sent = (place[above] if above else place)[last]
    assert sent == (SAMPLES[name] | {"pagekeeper-run": "run"} if name == "tags" else SAMPLES[name])
    assert differences(former, made) == []


@pytest.mark.parametrize("name", decided("named"))
def test_a_property_that_is_not_kept_is_named(name):
    former, made = restored(resource(name))
    said = differences(former, made)

    assert any(name.rpartition(".")[2] in words for words in said), said
    assert name.rpartition(".")[2] not in str(disk_body(made, "/account", "local"))
    assert exchange_fault(former, VM) is None


@pytest.mark.parametrize("name", decided("refused"))
def test_a_property_that_forbids_the_exchange(name):
    former, made = restored(resource(name))
    code, words = exchange_fault(former, VM)

    assert code == ("DiskGuestEncrypted" if name == "encryptionSettingsCollection" else "DiskShared")
    assert "repoint false" in words
    if code == "DiskShared":
        assert OTHER in words
    else:
        assert any(name in one for one in differences(former, made))


def test_values_that_say_as_little_as_none_are_not_named():
    """As Azure shows them of many a disk; the performance of a premium disk is that of its size."""
    nothing = {
        "maxShares": 1,
        "burstingEnabled": False,
        "availabilityPolicy": {"actionOnDiskDelay": "None"},
        "diskIOPSReadWrite": 500,
        "dataAccessAuthMode": "None",
        "encryptionSettingsCollection": {"enabled": False},
        "creationData": {"logicalSectorSize": 512, "performancePlus": False},
        "supportsHibernation": None,
    }
    former, made = restored({"location": "local", "sku": {"name": "Premium_LRS"}, "properties": nothing})

    assert differences(former, made) == []
    assert exchange_fault(former, VM) is None


def test_the_machine_itself_shares_with_nobody():
    """Azure's spelling of an id may differ between two places."""
    found = {"location": "local", "managedBy": VM.upper(), "managedByExtended": [VM], "properties": {"maxShares": 2}}
    former = managed_disk_of("/old", found)

    assert len(former.sharers) == 1
    assert exchange_fault(former, VM) is None


def test_a_disk_is_in_its_machines_edge_zone():
    """It is a place apart from the region: no machine of one place is given a disk of the other."""
    _, made = restored({"location": "local", "properties": {}}, edge_zone=EDGE["name"])

    assert disk_body(made, "", "local")["extendedLocation"] == EDGE
    assert managed_disk_of("/new", disk_body(made, "", "local")).edge_zone == EDGE["name"]
    assert "extendedLocation" not in disk_body(restored({"location": "local", "properties": {}})[1], "", "local")
