"""The disk in a machine's slot, and its planned change."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from backup_core.domain.errors import MachineRefusedError, SlotTakenError
from backup_core.domain.managed import exchange_fault
from backup_core.domain.ranges import GIB, PAGE
from backup_core.domain.records import Slot
from backup_core.domain.repoint import Change, Machine, MachineDisk

if TYPE_CHECKING:
    from backup_core.domain.managed import ManagedDisk
    from backup_core.protocol.tools import Tools
    from backup_core.steps.restore import StoreChange


async def former_disk(tools: Tools, machine: Machine, lun: int | None) -> ManagedDisk | None:
    """The managed disk that the machine has in a slot; None where it has none or an unmanaged one."""
    present = machine.at(lun)
    return await tools.machines.managed_disk(present.source) if present and present.managed else None


def replaced_disk(request: StoreChange) -> str:
    """The disk that is to be replaced; empty when a managed one is, and nobody has named it."""
    known = request.expected or request.actor.source
    return known if not request.managed_disk or known.startswith("/subscriptions/") else ""


async def planned_change(tools: Tools, request: StoreChange, slot: Slot) -> Change:
    """The change of the machine as it is now. Raises SlotTakenError unless it has the expected disk there, and
    MachineRefusedError where that must not be exchanged, which may be so only since the restore was requested.
    """
    machine = await tools.machines.machine(slot.vm)
    change = change_of(request, slot, machine)
    former = await former_disk(tools, machine, slot.lun)
    if former and (fault := exchange_fault(former, slot.vm)):
        message = f"{fault[1]}; the machine was not changed"
        raise MachineRefusedError(message)
    return change


def change_of(request: StoreChange, slot: Slot, machine: Machine) -> Change:
    """The planned change of the machine. Raises SlotTakenError unless it has the expected disk there."""
    old = present_disk(machine, slot, request.expected or request.actor.source, managed=bool(request.managed_disk))
    if request.managed_disk:
        new = replace(old, name=request.managed_disk.rpartition("/")[2], source=request.managed_disk, size_gb=None)
    else:
        same_size = old.size_gb is not None and old.size_gb * GIB == request.size - PAGE
        new = replace(old, source=request.target, size_gb=old.size_gb if same_size else None)
    return Change(
        disk=request.actor.disk,
        run=request.actor.run,
        slot=slot,
        old=old,
        new=new,
        was_running=machine.power == "running",
        deallocates=slot.lun is None or request.stop_vm,
        target=request.target,
        new_source=request.new_source,
    )


def present_disk(machine: Machine, slot: Slot, source: str, *, managed: bool) -> MachineDisk:
    """The disk the machine has in the slot. Raises SlotTakenError unless it is `source`, the disk that is to be replaced.

    A managed disk cannot be told from its backups: before one is known to be there, only the kind is looked at.
    """
    found = machine.at(slot.lun)
    if found is None:
        message = f"{slot}: there is no disk; expected {source}; correct VM and LUN, nothing was changed"
        raise SlotTakenError(message)
    if found.managed != managed:
        has, wants = ("a managed disk", "page blob") if found.managed else ("an unmanaged disk", "managed disk")
        message = f"{slot}: has {has}, {found.source}; a {wants} cannot take its place; choose the other kind of target"
        raise SlotTakenError(message)
    known = not managed or source.startswith("/subscriptions/")
    if known and not found.is_(replace(found, source=source)):
        message = f"{slot}: has {found.source}, expected {source}; correct the disk's source, VM or LUN; nothing was changed"
        raise SlotTakenError(message)
    return found
