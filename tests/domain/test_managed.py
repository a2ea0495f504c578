"""The properties that a new managed disk takes over from the disk it replaces."""

from __future__ import annotations

from dataclasses import replace

import pytest

from backup_core.domain.managed import SIGN_IN, ManagedDisk, differences, replacement
from backup_core.domain.ranges import GIB, PAGE
from backup_core.domain.repoint import Machine, MachineDisk

VM = "/subscriptions/s/resourceGroups/g/providers/Microsoft.Compute/virtualMachines/web"
FORMER = ManagedDisk(
    "/old",
    "Succeeded",
    "",
    GIB,
    sku="Premium_LRS",
    tier="P30",
    encryption="EncryptionAtRestWithCustomerKey",
    encryption_set="/keys",
    network_access="AllowPrivate",
    disk_access="/access",
    public_access="Disabled",
    tags=(("costCenter", "42"),),
)
URL = "https://a/vhds/new.vhd"


def machine(**fields):
    disks = (
        MachineDisk("os", "/os", managed=True, os_type="Linux"),
        MachineDisk("data", "/old", managed=True, lun=0),
    )
    return replace(Machine(VM, "1", "Succeeded", "running", "local", disks, ("2",), "V2", "TrustedLaunch"), **fields)


def made(former=FORMER, lun=0, size=GIB + PAGE, **fields):
    return replacement("/new", "run", URL, size, machine(**fields), lun, former)


def test_a_data_disk_has_the_properties_of_its_former_disk():
    """The new data disk is in the machine's zone, and has no security type, which only OS disks have."""
    assert made() == replace(FORMER, disk="/new", state="", run="run", source=URL, zones=("2",))


def test_an_os_disk_has_the_security_type_and_generation_of_the_machine():
    disk = made(lun=None)

    assert (disk.os_type, disk.generation, disk.security_type) == ("Linux", "V2", "TrustedLaunch")
    assert made(lun=None, security_type="Standard").security_type == "", "Standard is said by saying nothing"


def test_an_os_disk_supports_the_same_hardware_as_its_former_disk():
    """Without this support a machine with such a disk controller or processor rejects the disk; a data disk needs none."""
    nvme = (("architecture", "Arm64"), ("diskControllerTypes", "SCSI, NVMe"))

    assert made(replace(FORMER, capabilities=nvme), lun=None).capabilities == nvme
    assert made(replace(FORMER, capabilities=nvme)).capabilities == ()
    assert made(former=None, lun=None).capabilities == ()


def test_a_disk_that_required_sign_in_for_export_no_longer_does():
    """The plan warns of the change: this app reads and writes the new disk by its SAS address alone."""
    (words,) = differences(replace(FORMER, access_auth=SIGN_IN), made(replace(FORMER, access_auth=SIGN_IN)))

    assert "dataAccessAuthMode" in words
    assert made(replace(FORMER, access_auth=SIGN_IN)).access_auth == ""
    assert differences(replace(FORMER, access_auth="None"), made()) == []


def test_the_guest_state_of_trusted_launch_is_not_restored():
    """The plan warns that an OS disk loses its guest state; a data disk has none."""
    (words,) = differences(None, made(former=None, lun=None))

    assert "guest state" in words
    assert differences(None, made(former=None)) == []
    assert differences(None, made(former=None, lun=None, security_type="Standard")) == []


def test_without_a_former_managed_disk_everything_is_azures_default():
    disk = made(former=None)

    assert disk == ManagedDisk("/new", "", "run", GIB, sku="Standard_LRS", source=URL, zones=("2",))
    assert differences(None, disk) == []


@pytest.mark.parametrize(
    ("sku", "zones"),
    [("Premium_ZRS", ()), ("StandardSSD_ZRS", ()), ("Premium_LRS", ("2",)), ("StandardSSD_LRS", ("2",)), ("", ("2",))],
)
def test_a_zone_redundant_disk_is_in_no_zone(sku, zones):
    assert made(replace(FORMER, sku=sku)).zones == zones


@pytest.mark.parametrize("sku", ["UltraSSD_LRS", "PremiumV2_LRS"])
def test_a_disk_type_that_cannot_be_imported_becomes_premium(sku):
    """The plan warns of it; the former tier is not kept, because premium disks have other tiers."""
    former = replace(FORMER, sku=sku, tier="")
    disk = made(former)

    assert (disk.sku, disk.tier) == ("Premium_LRS", "")
    (words,) = differences(former, disk)
    assert "Premium_LRS" in words
    assert sku in words


@pytest.mark.parametrize(
    ("former", "size", "tier"),
    [
        (FORMER, GIB + PAGE, "P30"),
        (FORMER, PAGE + PAGE, "P30"),
        (FORMER, GIB + 2 * PAGE, ""),
        (replace(FORMER, sku="StandardSSD_LRS", tier=""), GIB + PAGE, ""),
        (replace(FORMER, sku="StandardSSD_LRS"), GIB + PAGE, ""),
    ],
)
def test_the_tier_of_a_premium_disk_is_kept_unless_the_disk_becomes_larger(former, size, tier):
    """A tier below that of the disk's own size is refused by Azure."""
    disk = made(former, size=size)

    assert disk.tier == tier
    assert any("performance tier" in words for words in differences(former, disk)) == (
        former.sku == "Premium_LRS" and tier != former.tier
    )


def test_encryption_without_a_set_is_azures_default():
    """The default encryption is not sent: Azure would refuse it for some kinds of disk."""
    assert made(replace(FORMER, encryption="EncryptionAtRestWithPlatformKey", encryption_set="")).encryption == ""
