"""Whether a managed disk can be protected, and what its backup and restore need. Each rule in words."""

from __future__ import annotations

from typing import TYPE_CHECKING

from backup_core.domain.managed import CONFIDENTIAL, TRUSTED
from backup_core.domain.managed_snapshots import MANAGED_DISK_BYTES_MAX
from backup_core.domain.naming import parse_resource_id
from backup_core.domain.ranges import GIB
from backup_core.domain.repoint import same_disk

if TYPE_CHECKING:
    from backup_core.domain.managed import ManagedDisk
    from backup_core.domain.repoint import Machine

SECTOR_BYTES = 512


def faults(disk: ManagedDisk, machine: Machine | None, snapshot_group: str) -> list[str]:
    """Why the disk, which `machine` uses if any, cannot be protected: found, expected, and what to do. `snapshot_group` is the
    id of the group that is to keep its snapshots; empty is its own.
    """
    found = []
    if _is_ephemeral(disk, machine):
        found.append(
            "it is an ephemeral OS disk, which Azure takes no snapshots of; expected a persistent disk: there is nothing on it "
            "that outlasts its VM"
        )
    if disk.sector_bytes != SECTOR_BYTES:
        found.append(
            f"it has sectors of {disk.sector_bytes} bytes; expected {SECTOR_BYTES}: others are not exported as a VHD; copy its "
            "content to a disk with logical sectors of 512 bytes"
        )
    if not 0 < disk.size_bytes <= MANAGED_DISK_BYTES_MAX:
        found.append(
            f"it has {disk.size_bytes} bytes; expected at most {MANAGED_DISK_BYTES_MAX // GIB} GiB: with its footer a backup "
            "would not fit a page blob; spread its content over smaller disks"
        )
    if disk.network_access == "DenyAll":
        found.append(
            "its network access policy is DenyAll; expected AllowAll or AllowPrivate: its snapshots cannot be exported; change "
            "the policy of the disk"
        )
    if disk.security_type.startswith(CONFIDENTIAL) or (machine and machine.security_type == CONFIDENTIAL):
        found.append(
            "it is a disk of a confidential VM; expected another security type: its content is of no use without a guest state "
            "that this app does not export; protect it by Azure Backup"
        )
    if snapshot_group and not snapshot_group.startswith(f"/subscriptions/{parse_resource_id(disk.disk).subscription.lower()}/"):
        found.append(
            f"SNAPSHOT_GROUP is {snapshot_group}; expected a resource group of its own subscription: Azure keeps incremental "
            "snapshots there alone; leave SNAPSHOT_GROUP empty, or give this subscription an app of its own"
        )
    return found


def warnings(disk: ManagedDisk, machine: Machine | None) -> list[str]:
    """Needs of a backup of the disk, and losses of a restore of it, in words."""
    found = private_export(disk)
    if disk.security_type == TRUSTED and disk.os_type:
        found.append(
            f"{disk.disk} is the OS disk of a Trusted Launch VM: a restore does not bring back its guest state (UEFI "
            "variables, vTPM); keep the recovery keys of what is sealed by it, such as BitLocker's"
        )
    if disk.guest_encrypted:
        found.append(
            f"{disk.disk} is encrypted by Azure Disk Encryption: its backups are as encrypted, and of no use without the "
            "secrets in its key vault; keep those for as long as the backups"
        )
    if len(disk.sharers) > 1:
        found.append(
            f"{disk.disk} is shared by {len(disk.sharers)} VMs: a backup has what each of them had written by its moment, as "
            "after a power failure; a restore makes a new disk, and gives it to none of them"
        )
    others = [one for one in machine.disks if not same_disk(one.source, disk.disk)] if machine else []
    if machine and others:
        found.append(
            f"VM {machine.vm} has {len(others)} more disks: each disk is backed up as of a moment of its own; what spans "
            "several, such as a volume or a database with its log, is not consistent among them"
        )
    return found


def private_export(disk: ManagedDisk) -> list[str]:
    """Warnings for the operator about a disk that is not exported publicly. Empty for one that is."""
    if disk.network_access != "AllowPrivate" and disk.public_access != "Disabled":
        return []
    access = disk.disk_access or "no disk access is named"
    message = (
        f"{disk.disk} is exported through a private endpoint only ({access}): the app needs a network path to it, and streams "
        "every byte; a disk access of another resource group takes the right Microsoft.Compute/diskAccesses/read on it"
    )
    return [message]


def _is_ephemeral(disk: ManagedDisk, machine: Machine | None) -> bool:
    os = machine.at(None) if machine else None
    return os is not None and same_disk(os.source, disk.disk) and bool(os.model.get("diffDiskSettings"))
