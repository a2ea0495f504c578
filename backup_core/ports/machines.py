"""Virtual machines and managed disks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

    from backup_core.domain.managed import ManagedDisk
    from backup_core.domain.repoint import Machine, MachineDisk


class Machines(Protocol):
    """Virtual machines and managed disks. A change may outlast its call: then it answers False, and its end has to be read.

    All methods raise MachineMissingError where the object or its group is missing, MachineBusyError while another operation is
    in progress, and MachineRefusedError with Azure's code where a change is refused for good.
    """

    async def machine(self, vm: str) -> Machine:
        """The machine with its disks, and whether it runs."""

    async def put_disk(self, machine: Machine, lun: int | None, disk: MachineDisk | None) -> bool:
        """Give the slot this disk, or none, and keep the rest of the machine as it was read; True once it is done.
        Raises MachineChangedError when the machine is not at the version `machine` was read at.
        """

    async def deallocate(self, vm: str) -> bool:
        """Stop the machine and release its hardware. A repeat is harmless."""

    async def start(self, vm: str) -> bool:
        """Start the machine. A repeat is harmless."""

    async def managed_disk(self, disk: str) -> ManagedDisk | None:
        """The managed disk, or None."""

    async def import_disk(self, wanted: ManagedDisk, account: str, location: str) -> bool:
        """Make a managed disk as described of the VHD that it names as its source, marked as the run's own; True once Azure
        says that it is complete. `account` is the resource id of the storage account of the VHD. Whether a disk that is there
        already is refused is not certain: look first, and read back.
        """

    async def create_for_upload(self, wanted: ManagedDisk, location: str) -> bool:
        """Make an empty managed disk as described, without a source, to be uploaded to. The PageBlobs port writes it as a VHD
        of its size and a footer. It is marked, ended and read back as an imported one. Azure refuses one of a security type
        other than Standard, and one with both a disk access and an encryption set: those can only be imported.
        """

    async def permitted(self, resource: str, actions: Sequence[str]) -> dict[str, bool]:
        """Whether this app may do each of the actions on the resource, as Azure's own list of permissions says."""
