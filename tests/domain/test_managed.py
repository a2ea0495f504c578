"""What a new managed disk takes over from the one whose place it takes."""

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


def test_a_data_disk_is_as_its_former_one():
    """In the machine's zone; without security type, which only OS disks have."""
    assert made() == replace(FORMER, disk="/new", state="", run="run", source=URL, zones=("2",))


def test_an_os_disk_has_what_the_machine_has():
    disk = made(lun=None)

    assert (disk.os_type, disk.generation, disk.security_type) == ("Linux", "V2", "TrustedLaunch")
    assert made(lun=None, security_type="Standard").security_type == "", "Standard is said by saying nothing"


def test_an_os_disk_supports_what_its_former_one_did():
    """Else a machine with such a disk controller or processor does not take it; a data disk needs to support nothing."""
    nvme = (("architecture", "Arm64"), ("diskControllerTypes", "SCSI, NVMe"))

    assert made(replace(FORMER, capabilities=nvme), lun=None).capabilities == nvme
    assert made(replace(FORMER, capabilities=nvme)).capabilities == ()
    assert made(former=None, lun=None).capabilities == ()


def test_a_disk_that_asked_for_a_sign_in_to_be_read_does_not_any_more():
    """Said before it happens: this app reads and writes the new one by its address alone."""
    (words,) = differences(replace(FORMER, access_auth=SIGN_IN), made(replace(FORMER, access_auth=SIGN_IN)))

    assert "dataAccessAuthMode" in words
    assert made(replace(FORMER, access_auth=SIGN_IN)).access_auth == ""
    assert differences(replace(FORMER, access_auth="None"), made()) == []


def test_the_guest_state_of_trusted_launch_is_not_given_back():
    """Of an OS disk, and said before it happens; a data disk has none."""
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
def test_what_is_not_imported_to_is_premium_instead(sku):
    """And that is said; its tier is not one of premium disks."""
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


def test_encryption_without_a_set_is_azures_own():
    """Its word need not be said, and would be refused with some kinds of disk."""
    assert made(replace(FORMER, encryption="EncryptionAtRestWithPlatformKey", encryption_set="")).encryption == ""
