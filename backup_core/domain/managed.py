"""A managed disk, and the properties that a new one takes over from the disk it replaces."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from backup_core.domain.disk_properties import DEFAULTS, OF_OS_DISKS, PROVISIONED, WORDS
from backup_core.domain.ranges import MIB, PAGE
from backup_core.domain.repoint import same_disk

if TYPE_CHECKING:
    from backup_core.domain.repoint import Machine

DiskRestore = Literal["upload", "import"]
"""How the managed disk of a restore is made: written by this app, or by Azure of a page blob."""
SKU_DEFAULT = "Standard_LRS"
SKU_INSTEAD = "Premium_LRS"
"""For the kinds of disk that a VHD is not imported to."""
NOT_IMPORTED = ("UltraSSD_LRS", "PremiumV2_LRS")
TRUSTED, CONFIDENTIAL = "TrustedLaunch", "ConfidentialVM"
SIGN_IN = "AzureActiveDirectory"
UPLOAD = "Upload"
UPLOAD_BYTES_MIN = 20 * MIB
"""The smallest disk that Azure takes an upload of."""
READY = "ReadyToUpload"
WRITABLE_STATES = (READY, "ActiveUpload")
READABLE_STATES = ("Unattached", "ActiveSAS")
OPEN_STATES = ("ActiveUpload", "ActiveSAS", "ActiveSASFrozen")
"""Disk states of a disk that somebody has been granted access to."""


@dataclass(frozen=True)
class ManagedDisk:
    """A managed disk as Azure Resource Manager describes it. Empty properties are not set: Azure's default."""

    disk: str
    state: str
    """Provisioning state."""
    run: str
    """The run that made it; empty for a disk that is not ours."""
    size_bytes: int
    """Without the footer of the VHD it was imported from."""
    sku: str = ""
    os_type: str = ""
    """Windows or Linux, of an OS disk."""
    generation: str = ""
    """Hypervisor generation, V1 or V2."""
    source: str = ""
    """URL of the VHD it was imported from."""
    zones: tuple[str, ...] = ()
    edge_zone: str = ""
    """The edge zone it is in, a place apart from the region; empty is the region."""
    security_type: str = ""
    tier: str = ""
    """Performance tier of a premium disk, such as P30."""
    capabilities: tuple[tuple[str, str | bool], ...] = ()
    """Capabilities of an OS disk, in Azure's words: disk controllers, processors, networking."""
    encryption: str = ""
    """Kind of encryption at rest, in Azure's word; with the two below it decides who can read the disk."""
    encryption_set: str = ""
    """Resource id of the disk encryption set."""
    network_access: str = ""
    """AllowAll, AllowPrivate or DenyAll: from where the disk can be exported."""
    disk_access: str = ""
    """Resource id of the disk access whose private endpoints may export it."""
    public_access: str = ""
    access_auth: str = ""
    """Sign-in required beside the address that is granted, in Azure's word (dataAccessAuthMode)."""
    sector_bytes: int = 512
    """Of a logical sector."""
    guest_encrypted: bool = False
    """Whether Azure Disk Encryption is on: the guest encrypts what it writes."""
    machine: str = ""
    """Resource id of the virtual machine that it is attached to."""
    sharers: tuple[str, ...] = ()
    """Resource ids of all virtual machines that a shared disk is attached to."""
    disk_state: str = ""
    """State of its use, in Azure's word: ReadyToUpload, ActiveUpload, ActiveSAS, Unattached, Attached, Reserved."""
    create_option: str = ""
    """The way it was made, in Azure's word: Upload, Import, Copy, Empty."""
    unique: str = ""
    """Azure's unique id: a disk that was deleted and made again under its name has another."""
    tags: tuple[tuple[str, str], ...] = ()
    """Its tags, but that of the run that made it."""
    unkept: tuple[tuple[str, str], ...] = ()
    """Properties that a new disk does not take over: Azure's name for each, and its value as it is shown."""


def replacement(
    disk: str, run: str, source: str, size: int, machine: Machine, lun: int | None, former: ManagedDisk | None
) -> ManagedDisk:
    """The managed disk to be imported from the VHD at `source`, of `size` bytes with its footer, for a slot of the machine.

    It is as `former`, the managed disk in that slot, if there is one: its kind, encryption, network access, tier and tags.
    """
    present, is_os = machine.at(lun), lun is None
    sku = former.sku if former and former.sku else SKU_DEFAULT
    sku = SKU_INSTEAD if sku in NOT_IMPORTED else sku
    content = size - PAGE
    # A tier below the one that the size has by itself is refused: it is kept only where the disk has not become larger.
    keeps_tier = former is not None and sku == former.sku and sku.startswith("Premium") and content <= former.size_bytes
    return ManagedDisk(
        disk,
        "",
        run,
        content,
        sku=sku,
        os_type=present.os_type if present else "",
        generation=machine.generation if is_os else "",
        source=source,
        # A zone-redundant disk is in every zone already: Azure refuses to have it put into one.
        zones=() if sku.endswith("_ZRS") else machine.zones,
        edge_zone=machine.edge_zone,
        # Azure attaches an OS disk only to a VM of the same security type; data disks have none.
        security_type=machine.security_type if is_os and machine.security_type != "Standard" else "",
        tier=former.tier if former and keeps_tier else "",
        # A machine of many newer sizes starts only with an OS disk that says it supports its NVMe controller, or its processor.
        capabilities=former.capabilities if former and is_os else (),
        encryption=former.encryption if former and former.encryption_set else "",
        encryption_set=former.encryption_set if former else "",
        network_access=former.network_access if former else "",
        disk_access=former.disk_access if former else "",
        public_access=former.public_access if former else "",
        tags=former.tags if former else (),
    )


def writing_fault(disk: ManagedDisk, run: str) -> str:
    """Why the disk is not to be written by the upload of `run` (any, where that is empty), in words; empty when it may be."""
    if run not in ("", disk.run):
        return _anothers(disk, run)
    if disk.create_option == UPLOAD and disk.disk_state in WRITABLE_STATES:
        return ""
    return f"expected one made by {UPLOAD}, in state {' or '.join(WRITABLE_STATES)}, found {_made(disk)}"


def reading_fault(disk: ManagedDisk, run: str) -> str:
    """Why the disk itself is not to be read, in words; empty when it was uploaded by `run` (any, where that is empty), and no
    machine has it.
    """
    if run not in ("", disk.run):
        return _anothers(disk, run)
    if disk.create_option == UPLOAD and disk.disk_state in READABLE_STATES and not disk.machine:
        return ""
    return f"expected one made by {UPLOAD}, of no machine, in state {' or '.join(READABLE_STATES)}, found {_made(disk)}"


def _anothers(disk: ManagedDisk, run: str) -> str:
    return f"expected one made by run {run}, found one made by {disk.run or 'somebody else'}"


def _made(disk: ManagedDisk) -> str:
    machine = f", of machine {disk.machine}" if disk.machine else ""
    return f"one made by {disk.create_option or 'nothing known'}{machine}, in state {disk.disk_state or 'unknown'}"


def differences(former: ManagedDisk | None, wanted: ManagedDisk) -> list[str]:
    """Properties of the former disk that the new one cannot have, in words."""
    found = []
    if wanted.security_type == TRUSTED and wanted.os_type:
        found.append(
            "the guest state of a Trusted Launch VM (UEFI variables, vTPM) is not restored: have the recovery keys of what is "
            "sealed by it at hand, such as BitLocker's"
        )
    if former is None:
        return found
    if former.sku and wanted.sku != former.sku:
        found.append(
            f"the new disk is {wanted.sku}, the former one {former.sku}, which a VHD is not imported to: change its kind "
            "afterwards, with the machine deallocated, if you need that"
        )
    if former.access_auth == SIGN_IN:
        found.append(
            "whoever has been granted an address of the new disk can read it; the former one asked for a sign-in as well: set "
            f"dataAccessAuthMode of the new one to {SIGN_IN} afterwards, if you need that"
        )
    if former.tier and not wanted.tier and wanted.sku.startswith("Premium"):
        found.append(f"the new disk has the performance tier of its size, not {former.tier} as the former one")
    if former.guest_encrypted:
        found.append(
            "the new disk has no encryptionSettingsCollection (Azure Disk Encryption), as the former one has: set it on the "
            "new disk before a VM gets that, since the guest is given its keys by it"
        )
    return found + [_unkept(name, value) for name, value in former.unkept if _counts(name, value, former, wanted)]


def _counts(name: str, value: str, former: ManagedDisk, wanted: ManagedDisk) -> bool:
    """Whether it matters that the new disk does not have that property with that value."""
    if value == DEFAULTS.get(name) or (name in OF_OS_DISKS and not wanted.os_type):
        return False
    return name not in PROVISIONED or former.sku in NOT_IMPORTED


def _unkept(name: str, value: str) -> str:
    return f"{name} of the former disk is {value}, which the new one does not take over: {WORDS[name]}"


def exchange_fault(former: ManagedDisk, vm: str) -> tuple[str, str] | None:
    """Why the machine must not be given a new disk in place of the former one: a code, and why in words; None where it may."""
    if others := other_sharers(former, vm):
        words = (
            f"managed disk {former.disk} is shared: {', '.join(others)} would stay on it while {vm} gets the new disk; restore "
            "with repoint false, set maxShares of the new disk, and give it to all of them"
        )
        return "DiskShared", words
    if former.guest_encrypted:
        words = (
            f"managed disk {former.disk} is encrypted by Azure Disk Encryption: the new disk would not have the settings by "
            f"which {vm} is given its keys, and might not start; restore with repoint false, set encryptionSettingsCollection "
            "of the new disk, and exchange it yourself"
        )
        return "DiskGuestEncrypted", words
    return None


def other_sharers(former: ManagedDisk, vm: str) -> list[str]:
    """The machines besides `vm` that have the shared disk: each would stay on it when `vm` gets another one."""
    return [one for one in former.sharers if not same_disk(one, vm)]


def is_attached(disk: ManagedDisk) -> bool:
    """Whether a machine has the disk, running or not."""
    return bool(disk.machine) or disk.disk_state in ("Attached", "Reserved")


def upload_fault(wanted: ManagedDisk) -> str:
    """Why Azure would not take an upload to the disk, in words; empty when it would."""
    if wanted.security_type:
        return f"an OS disk of security type {wanted.security_type} can only be imported"
    if wanted.disk_access and wanted.encryption_set:
        return "a disk with both a disk access and an encryption set can only be imported"
    if wanted.size_bytes < UPLOAD_BYTES_MIN:
        return f"a disk of {wanted.size_bytes} bytes, less than {UPLOAD_BYTES_MIN}, can only be imported"
    if wanted.network_access == "DenyAll":
        return "a disk whose network access policy is DenyAll can only be imported"
    return ""
