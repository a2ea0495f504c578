# Long: one port, and what Azure refuses of it, read beside the emulator's.
"""Virtual machines in memory, whose disks hold the lease of their blobs as in Azure."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from backup_core.adapters.machine_models import RUN_TAG
from backup_core.domain.errors import MachineBusyError, MachineChangedError, MachineMissingError, MachineRefusedError
from backup_core.domain.managed import NOT_IMPORTED, UPLOAD, WRITABLE_STATES
from backup_core.domain.naming import DiskAddress, parse_resource_id
from backup_core.domain.ranges import PAGE
from backup_core.domain.repoint import Machine, MachineDisk
from tests.doubles.azure_disks import unique

if TYPE_CHECKING:
    from collections.abc import Sequence

    from backup_core.domain.managed import ManagedDisk
    from tests.doubles.page_blobs import Blob, MemoryPageBlobs
    from tests.doubles.world import InMemoryServices

LOCATION = "local"
"""The region of every machine and account."""


class MemoryMachines:
    """The Machines port. Tests may look into `machines` and act as a third party on it."""

    def __init__(self, world: InMemoryServices, blobs: MemoryPageBlobs) -> None:
        """No machines in `world`; their unmanaged disks are blobs of `blobs`."""
        self._world, self._blobs = world, blobs
        self.machines: dict[str, Machine] = {}
        self.disks: dict[str, ManagedDisk] = {}
        self.accounts: dict[str, str] = {}
        """The storage account that each disk was imported from, by its resource id."""
        self.signs = False
        """An import gives the disk a footer of its own."""
        self.ignores_condition = False
        """A request for a disk to upload to that is there takes it over: it has the tags of the later one."""
        self.slow = False
        """Changes stay in progress until `finish`."""
        self.denied: set[str] = set()
        """Actions that `permitted` reports as not permitted."""
        self._changing: dict[str, Machine] = {}
        blobs.cloud.uploads.holder = self._holder

    # -- what tests and third parties do ------------------------------------------------------------------------------

    def add(self, vm: str, *disks: MachineDisk, power: str = "running") -> Machine:
        """Make a machine with these disks, which takes their leases."""
        machine = Machine(vm, self._etag(), "Succeeded", power, LOCATION, ())  # type: ignore[arg-type]
        for disk in disks:
            self._lease(machine, disk)
        self.machines[vm] = replace(machine, disks=disks)
        return self.machines[vm]

    def change(self, vm: str, *disks: MachineDisk) -> None:
        """Somebody else gives the machine these disks."""
        machine = self.machines[vm]
        for disk in machine.disks:
            self._release(machine, disk)
        for disk in disks:
            self._lease(machine, disk)
        self.machines[vm] = replace(machine, disks=disks, etag=self._etag())

    def finish(self, vm: str) -> None:
        """Complete the changes in progress."""
        if vm in self._changing:
            self.machines[vm] = replace(self._changing.pop(vm), etag=self._etag())

    @property
    def changing(self) -> list[str]:
        """Machines that are being changed."""
        return list(self._changing)

    # -- helpers --------------------------------------------------------------------------------------------------------

    def _holder(self, disk: DiskAddress) -> tuple[str, str] | None:
        """The machine that has the disk, and its power."""
        for one in self.machines.values():
            if any(at.managed and self._address(at.source) == disk for at in one.disks):
                return one.vm, one.power
        return None

    def _address(self, disk: str) -> DiskAddress:
        at = parse_resource_id(disk.lower())
        return DiskAddress(at.subscription, at.group, at.name)

    def _etag(self) -> str:
        return f'"{self._world.tick()}"'

    def _blob(self, disk: MachineDisk) -> Blob | None:
        return None if disk.managed else next((one for at, one in self._blobs.blobs.items() if at.url == disk.source), None)

    def _lease_of(self, machine: Machine, disk: MachineDisk) -> str:
        return f"{machine.vm}:{disk.lun}"

    def _lease(self, machine: Machine, disk: MachineDisk) -> None:
        if disk.managed:
            if disk.source not in self.disks:
                message = f"managed disk {disk.source} does not exist"
                raise MachineRefusedError(message)
            return
        blob = self._blob(disk)
        if blob is None or blob.lease not in ("", self._lease_of(machine, disk)):
            message = f"AcquireDiskLeaseFailed: the lease of {disk.source} cannot be acquired"
            raise MachineRefusedError(message)
        blob.lease = self._lease_of(machine, disk)

    def _release(self, machine: Machine, disk: MachineDisk) -> None:
        blob = self._blob(disk)
        if blob and blob.lease == self._lease_of(machine, disk):
            blob.lease = ""

    def _found(self, vm: str) -> Machine:
        if vm not in self.machines:
            message = f"VM {vm} does not exist"
            raise MachineMissingError(message)
        return self.machines[vm]

    def _idle(self, vm: str) -> Machine:
        machine = self._found(vm)
        if machine.state not in ("Succeeded", "Failed"):
            message = f"VM {vm}: another operation is in progress"
            raise MachineBusyError(message)
        return machine

    def _changed(self, machine: Machine) -> bool:
        """The machine as it will be: at once, or after a while."""
        if self.slow:
            updating = replace(self.machines[machine.vm], state="Updating", etag=self._etag())
            self.machines[machine.vm], self._changing[machine.vm] = updating, machine
            return False
        self.machines[machine.vm] = replace(machine, etag=self._etag())
        return True

    # -- the port ---------------------------------------------------------------------------------------------------------

    async def machine(self, vm: str) -> Machine:
        """The machine. ValueError for what is no resource id of one, as the adapter has it."""
        parse_resource_id(vm)
        await self._world.before("machine")
        machine = self._found(vm)
        await self._world.after("machine")
        return machine

    async def put_disk(self, machine: Machine, lun: int | None, disk: MachineDisk | None) -> bool:
        """Give the slot this disk, or none."""
        await self._world.before("put_disk")
        found = self._idle(machine.vm)
        if found.etag != machine.etag:
            message = f"VM {machine.vm} was changed in between"
            raise MachineChangedError(message)
        present = found.at(lun)
        if lun is None and disk is None:
            message = f"VM {machine.vm}: an OS disk cannot be taken out"
            raise MachineRefusedError(message)
        if lun is not None and present and disk and not present.is_(disk):
            message = f"PropertyChangeNotAllowed: the disk at LUN {lun} of {machine.vm} cannot be changed in place"
            raise MachineRefusedError(message)
        if lun is None and present and disk and not present.is_(disk) and found.power != "deallocated":
            message = f"OperationNotAllowed: the OS disk of {machine.vm} is in use"
            raise MachineRefusedError(message)
        self._refuse_attachment(found, lun, disk)
        if disk and not (present and present.is_(disk)):
            self._lease(found, disk)
        if present and not (disk and present.is_(disk)):
            self._release(found, present)
        others = tuple(one for one in found.disks if one.lun != lun)
        done = self._changed(replace(found, disks=(*others, disk) if disk else others, state="Succeeded"))
        await self._world.after("put_disk")
        return done

    def _refuse_attachment(self, machine: Machine, lun: int | None, disk: MachineDisk | None) -> None:
        """Refuse an attachment that Azure refuses, as the emulator does (devhost/arm/refusals.py).

        Refused are managed disks mixed with page blobs, a disk of another machine or zone, and an OS disk of another security
        type.
        """
        if disk and any(one.managed != disk.managed for one in machine.disks if one.lun != lun):
            message = "OperationNotAllowed: Addition of a managed disk to a VM with blob based disks is not supported."
            raise MachineRefusedError(message)
        managed = self.disks.get(disk.source) if disk and disk.managed else None
        if managed is None:
            return
        others = [owner for owner in self._owners(managed) if owner != machine.vm]
        if len(others) >= int(dict(managed.unkept).get("maxShares", "1")):
            message = f"ConflictingUserInput: disk {managed.disk} is already owned by VM {others[0]}."
            raise MachineRefusedError(message)
        state = self._state(managed)
        if state in (*WRITABLE_STATES, "ActiveSAS"):
            message = f"OperationNotAllowed: disk {managed.disk} cannot be attached while it is {state}."
            raise MachineRefusedError(message)
        if not managed.sku.endswith("_ZRS") and managed.zones != machine.zones:
            message = f"BadRequest: disk {managed.disk} is not in the same availability zone as the VM."
            raise MachineRefusedError(message)
        if lun is None and managed.security_type != machine.security_type:
            message = "Security type of VM is not compatible with the security type of attached OS Disk."
            raise MachineRefusedError(message)

    async def deallocate(self, vm: str) -> bool:
        """Stop the machine."""
        await self._world.before("deallocate")
        done = self._changed(replace(self._idle(vm), power="deallocated"))
        await self._world.after("deallocate")
        return done

    async def start(self, vm: str) -> bool:
        """Start the machine."""
        await self._world.before("start")
        for disk in self._idle(vm).disks:
            if disk.managed and self._blobs.cloud.uploads.granted(self._address(disk.source)):
                message = f"OperationNotAllowed: {vm} cannot start while access to its disk {disk.source} is granted."
                raise MachineRefusedError(message)
        done = self._changed(replace(self._idle(vm), power="running"))
        await self._world.after("start")
        return done

    async def managed_disk(self, disk: str) -> ManagedDisk | None:
        """The managed disk."""
        await self._world.before("managed_disk")
        found = self.disks.get(disk)
        if found is None:
            return None
        return replace(found, disk_state=self._state(found), unique=self._unique(found), sharers=self._owners(found))

    def _owners(self, disk: ManagedDisk) -> tuple[str, ...]:
        """The machines that have the disk."""
        return tuple(one.vm for one in self.machines.values() if any(at.source == disk.disk for at in one.disks))

    def _state(self, disk: ManagedDisk) -> str:
        address = self._address(disk.disk)
        return self._blobs.cloud.uploads.state(address) if address in self._blobs.disks else disk.disk_state

    def _unique(self, disk: ManagedDisk) -> str:
        made = self._blobs.disks.get(self._address(disk.disk))
        return unique(made) if made else ""

    async def import_disk(self, wanted: ManagedDisk, account: str, location: str) -> bool:
        """Make a managed disk."""
        await self._world.before("import_disk")
        fault = self._unfit(wanted) or self._not_imported(wanted, account, location)
        if fault:
            raise MachineRefusedError(fault)
        self.disks[wanted.disk] = replace(wanted, state="Succeeded", create_option="Import")
        self.accounts[wanted.disk] = account
        self._fill(wanted)
        await self._world.after("import_disk")
        return True

    def _fill(self, wanted: ManagedDisk) -> None:
        """The content of a new disk is the VHD it was made of, footer and all."""
        vhd = next(one for address, one in self._blobs.blobs.items() if address.url == wanted.source)
        made = self._blobs.put_disk(self._address(wanted.disk), vhd.size - PAGE)
        made.metadata, made.create_option = {RUN_TAG: wanted.run}, "Import"
        last, signed = vhd.size // PAGE - 1, made.pages
        made.pages = {**vhd.pages, **({page: data[:-1] + b"\1" for page, data in signed.items()} if self.signs else {})}
        made.changed = dict.fromkeys(made.pages, self._world.tick())
        assert set(signed) == {last}

    async def create_for_upload(self, wanted: ManagedDisk, location: str) -> bool:  # noqa: ARG002  any region takes an upload
        """Make a managed disk to be uploaded to."""
        await self._world.before("create_for_upload")
        found = self.disks.get(wanted.disk)
        if found and self.ignores_condition and (found.create_option, found.size_bytes) == (UPLOAD, wanted.size_bytes):
            self.disks[wanted.disk] = replace(found, run=wanted.run)
            self._blobs.disks[self._address(wanted.disk)].metadata = {RUN_TAG: wanted.run}
            await self._world.after("create_for_upload")
            return True
        if fault := self._unfit(wanted) or self._not_uploaded(wanted):
            raise MachineRefusedError(fault)
        self.disks[wanted.disk] = replace(wanted, state="Succeeded", create_option=UPLOAD)
        tags = {**dict(wanted.tags), RUN_TAG: wanted.run}
        self._blobs.cloud.uploads.make(self._address(wanted.disk), wanted.size_bytes, tags)
        await self._world.after("create_for_upload")
        return True

    def _unfit(self, wanted: ManagedDisk) -> str:
        """Why Azure would not make the disk."""
        if wanted.disk in self.disks:
            return f"managed disk {wanted.disk} exists"
        if wanted.zones and wanted.sku.endswith("_ZRS"):
            return f"OperationNotAllowed: A disk with sku '{wanted.sku}' cannot be created in an availability zone."
        return ""

    def _not_uploaded(self, wanted: ManagedDisk) -> str:
        if wanted.size_bytes <= 0 or wanted.size_bytes % self._blobs.cloud.uploads.unit:
            return f"InvalidParameter: uploadSizeBytes {wanted.size_bytes + PAGE} is no whole number of MiB, and a footer."
        if wanted.security_type:
            return f"BadRequest: Security Type '{wanted.security_type}' is not supported for CreateOption 'Upload'."
        if wanted.disk_access and wanted.encryption_set:
            return "BadRequest: An upload to a disk with both a diskAccessId and a diskEncryptionSetId is not supported."
        return ""

    def _not_imported(self, wanted: ManagedDisk, account: str, location: str) -> str:
        if not account:
            return "BadRequest: Required parameter 'storageAccountId' is missing (null)."
        if location != LOCATION:
            return f"BadRequest: the account of {wanted.source} does not belong to the same region as the disk"
        if wanted.sku in NOT_IMPORTED:
            return f"InvalidParameter: a disk with sku '{wanted.sku}' cannot be created by Import"
        if all(at.url != wanted.source for at in self._blobs.blobs):
            return f"BlobNotFound: {wanted.source} cannot be imported"
        return ""

    async def permitted(self, resource: str, actions: Sequence[str]) -> dict[str, bool]:
        """The permissions that the test has set."""
        await self._world.before("permitted")
        parse_resource_id(resource)
        return {action: action not in self.denied for action in actions}
