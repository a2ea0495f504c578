"""Managed disks that restores make, by an import or an upload: described by their machine, found again by the run's tag."""

from __future__ import annotations

from typing import TYPE_CHECKING

from backup_core.domain.errors import HeadAlteredError, MachineChangedError, MachineRefusedError, ServiceUnavailableError
from backup_core.domain.managed import OPEN_STATES, is_attached, reading_fault, replacement
from backup_core.protocol.machines import former_disk

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from backup_core.domain.errors import BackupError
    from backup_core.domain.managed import ManagedDisk
    from backup_core.protocol.tools import Tools
    from backup_core.steps.copying import SlotRef


CLOSED = "closed"
"""Stands for the version of a managed disk whose upload has ended, where its unique id is not known."""


async def wanted_disk(
    tools: Tools, disk: str, run: str, source: str, size: int, slot: SlotRef | None
) -> tuple[ManagedDisk, str]:
    """The managed disk to be made for the slot, and its region. `source` is the VHD that it is imported from; empty for an
    upload. `size` is with the footer.
    """
    assert slot is not None
    place = tools.slot(slot.vm, slot.lun)
    machine = await tools.machines.machine(place.vm)
    former = await former_disk(tools, machine, place.lun)
    return replacement(disk, run, source, size, machine, place.lun, former), machine.location


async def make_disk_once(
    tools: Tools, disk: str, run: str, source: str, make: Callable[[], Awaitable[object]]
) -> ManagedDisk | None:
    """The run's managed disk as it is read back, made by `make` where there is none; None while Azure does not show it. Raises
    MachineRefusedError where a disk of that name is not this run's, or could not be made.
    """
    found = await tools.machines.managed_disk(disk)
    if found is None:
        refused: BackupError | None = None
        try:
            await make()
        except (MachineRefusedError, MachineChangedError) as error:
            # The refusal may be for this run's own disk: an earlier request made it, and its answer was lost.
            refused = error
        found = await tools.machines.managed_disk(disk)
        if refused and (found is None or found.state == "Failed"):
            raise refused
        if found is None:
            return None
    # G19: a disk of that name counts only if this run made it.
    if found.run != run or (found.source and found.source != source):
        maker = f"{run} of {source}" if source else f"{run} for an upload"
        message = f"managed disk {disk} exists and was not made by {maker}; it is left alone; name another one"
        raise MachineRefusedError(message)
    if found.state == "Failed":
        what = f"import {source}" if source else "make it"
        message = f"managed disk {disk}: Azure could not {what}; delete the disk, and restore again"
        raise MachineRefusedError(message)
    return found


async def close_upload(tools: Tools, disk: str, run: str, *, ends: bool = False) -> ManagedDisk | None:
    """End all access to the managed disk itself, if the run has made it, and so its upload for good; the disk as it is then.
    None where it is not the run's. One that `ends` has been written, whatever its state. Raises ManagedDiskRefusedError when
    Azure does not take what was written.
    """
    # G72: nobody else's access is ended.
    await tools.blobs.close_disk(tools.upload(disk, run), ends=ends)
    return await made_by(tools, disk, run)


async def made_by(tools: Tools, disk: str, run: str) -> ManagedDisk | None:
    """The managed disk, if the run has made it."""
    found = await tools.machines.managed_disk(disk)
    return found if found and found.run == run else None


async def end_upload(tools: Tools, disk: str, run: str) -> str:
    """End the upload of the run's managed disk for good; what stands for its version then. Raises HeadAlteredError where it is
    not the run's.
    """
    found = await close_upload(tools, disk, run, ends=True)
    if found is None:
        message = (
            f"managed disk {disk}: it is gone, or was not made by {run}; somebody else changed it; not used; restore again"
        )
        raise HeadAlteredError(message)
    return found.unique or CLOSED


async def require_at_rest(tools: Tools, disk: str, run: str, version: str) -> None:
    """Raise HeadAlteredError unless the run's managed disk has that version, can be read, and is at rest. At rest, nobody can
    write it any more: it is uploaded, and no machine has it.
    """
    # G71: no version tells of a change, but what cannot be written has none.
    found = await made_by(tools, disk, run)
    if fault := _unrest(found, run, version):
        message = f"managed disk {disk}: changed by somebody else while it was compared: {fault}; not used; restore again"
        raise HeadAlteredError(message)


async def is_open(tools: Tools, disk: str) -> bool:
    """Whether somebody has access to the managed disk itself."""
    found = await tools.machines.managed_disk(disk)
    return found is not None and found.disk_state in OPEN_STATES


async def seal_upload(tools: Tools, disk: str, run: str, version: str = "") -> None:
    """End the access to the proved disk, so that a machine can have it. That includes access that a late delivery of the
    comparison has opened since. A disk that a machine has already was sealed by an earlier delivery. Raises HeadAlteredError
    for a disk of another version than `version`, where that is known, and ServiceUnavailableError while somebody reads the
    disk.
    """
    found = await close_upload(tools, disk, run)
    if found and is_attached(found):
        return
    if fault := _unrest(found, run, version):
        message = f"managed disk {disk}: changed by somebody else since it was proved: {fault}; not used; restore again"
        raise HeadAlteredError(message)
    if found and found.disk_state != "Unattached":
        message = f"managed disk {disk} is {found.disk_state}, expected Unattached: somebody reads it; temporary failure"
        raise ServiceUnavailableError(message)


def _unrest(found: ManagedDisk | None, run: str, version: str) -> str:
    """Why the run's managed disk is not as it was compared, in words."""
    if found is None:
        return f"it is gone, or was not made by {run}"
    if version not in ("", CLOSED, found.unique):
        return f"it was made anew: its unique id was {version}, and is {found.unique}"
    return reading_fault(found, run)
