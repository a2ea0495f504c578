"""A restore in words: its plan before it begins, and the operator's next steps after it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from backup_core.api.answers import slot_shown
from backup_core.api.plan_answers import EstimateAnswer, PermissionAnswer, RestorePlanAnswer
from backup_core.domain.estimate import estimate

if TYPE_CHECKING:
    from collections.abc import Sequence

    from backup_core.domain.managed import DiskRestore
    from backup_core.domain.records import RestorePoint, Restoring, Run
    from backup_core.operations.allocation import Allocation
    from backup_core.operations.permissions import Probe


def shown_plan(
    wanted: Restoring,
    point: RestorePoint,
    allocated: Allocation,
    past: Sequence[Run],
    probes: Sequence[Probe],
    plan_hash: str,
    *,
    full: bool,
    source: str,
) -> RestorePlanAnswer:
    """The plan; `allocated` is the amount of one copy, `source` is the disk's present source."""
    copied = allocated.bytes
    restores = [run for run in past if run.restore and run.state == "Succeeded" and run.started and run.ended]
    rates = [(run.bytes_done, (run.ended - run.started).total_seconds()) for run in restores if run.started and run.ended]
    # The first snapshot of a managed disk that is adopted is compared as well.
    times = (2 if wanted.adopt and wanted.managed_disk else 1) if full else 0
    expected = estimate(copied, allocated.requests, times * copied, rates)
    most = expected if allocated.whole else estimate(*allocated.at_most, times * allocated.at_most[0], rates)
    return RestorePlanAnswer(
        disk=point.disk,
        restore_point=point.point,
        source=point.source,
        taken=point.source_snapshot,
        logical_bytes=point.size,
        allocated_bytes=copied,
        is_lower_bound=not allocated.whole,
        counted_to_bytes=allocated.counted_to,
        bytes_to_copy=copied * (2 if wanted.adopt else 1),
        target=wanted.target,
        managed_disk=wanted.managed_disk or None,
        method=_method(wanted),
        machine=slot_shown(wanted.slot) if wanted.repoint else None,
        adopt=wanted.adopt,
        steps=_steps(wanted, point),
        expected_seconds=EstimateAnswer(low=expected.low, high=most.high, basis=_basis(expected.basis, allocated)),
        downtime=_downtime(wanted, restores),
        permissions=[PermissionAnswer(action=probe.action, state=probe.state) for probe in probes],
        warnings=[*_succession(point, source), *warnings(wanted)],
        plan_hash=plan_hash,
    )


def _method(wanted: Restoring) -> DiskRestore | None:
    if not wanted.managed_disk:
        return None
    return "upload" if wanted.uploads else "import"


def _basis(basis: str, allocated: Allocation) -> str:
    if allocated.whole:
        return basis
    return f"{basis}; counted up to byte {allocated.counted_to} of {allocated.size}, and for the most all that follows"


def _steps(wanted: Restoring, point: RestorePoint) -> list[str]:
    steps = [
        f"keep restore point {point.point} from its retention until the restore has ended",
        f"copy it to the new {'managed ' if wanted.uploads else ''}disk {wanted.target}, compare the two",
    ]
    if wanted.adopt:
        steps[-1] += "" if wanted.managed_disk else ", snapshot it"
        steps.append("beside that, copy it to a new backup blob, compare the two")
    if _method(wanted) == "import":
        steps.append(f"import that as managed disk {wanted.managed_disk}")
    if wanted.repoint:
        steps.append("wait until no backup is at work on the disk")
    if wanted.adopt and wanted.managed_disk:
        steps.append(
            "take the first snapshot of the managed disk, before anybody writes to it; compare that with the restore point"
        )
    if wanted.repoint:
        if _stops(wanted):
            steps.append("deallocate the machine")
        steps.append(f"give it to the {wanted.slot} in place of {wanted.old_disk}, read that back")
        if _stops(wanted):
            steps.append("start the machine again, if it was running")
    if wanted.adopt:
        steps.append("register the new disk as the disk's source: the next backup is an increment on it")
    elif wanted.repoint and wanted.managed_disk:
        steps.append("show the disk as unprotected: the new disk is not backed up until it is registered")
    return steps


def _stops(wanted: Restoring) -> bool:
    return wanted.stop_vm or (wanted.slot is not None and wanted.slot.lun is None)


def _downtime(wanted: Restoring, restores: Sequence[Run]) -> str:
    if not wanted.repoint:
        return "none: no machine is changed"
    known = [run.restore.downtime_seconds for run in restores if run.restore and run.restore.downtime_seconds is not None]
    basis = (
        f"{min(known)} to {max(known)} s in past restores of this disk" if known else "no past restore of this disk is known"
    )
    if _stops(wanted):
        return f"the machine is off from its deallocation until it has started again; {basis}"
    return f"the machine keeps running, without the disk between two changes of its configuration; {basis}"


def _succession(point: RestorePoint, source: str) -> list[str]:
    if point.source == source:
        return []
    return [f"the restore point is of {point.source}, which the disk had as its source before {source}"]


def warnings(wanted: Restoring) -> list[str]:
    """Warnings for the operator before the restore begins."""
    if not wanted.repoint:
        return []
    found = []
    if not _stops(wanted):
        found.append(
            "the machine keeps running: the guest must have unmounted the disk before, or it loses what it has not written"
        )
    if not wanted.managed_disk:
        found.append(
            "VMs with unmanaged disks no longer start in public Azure since 2026-03-31: convert it, and restore to a managed "
            "disk there"
        )
    return found


def next_steps(restore: Restoring) -> list[str]:
    """Next steps of the operator after the restore. One is to delete the blob that a managed disk was made of. Another is to
    change Terraform or Bicep, so that the next apply does not put the old disk back.
    """
    slot, needless = restore.slot, []
    if restore.managed_disk and not restore.uploads:
        delete = f'az storage blob delete --auth-mode login --blob-url "{restore.target}"'
        needless = [f"once the run has succeeded, delete the page blob that the managed disk was imported from: {delete}"]
    if not restore.repoint or slot is None:
        name = restore.managed_disk.rpartition("/")[2]
        known = f"Terraform: terraform import azurerm_managed_disk.{name} {restore.managed_disk}"
        return [*needless, known] if restore.managed_disk else []
    vm = slot.vm.rpartition("/")[2]
    if restore.managed_disk:
        place = "storageProfile.osDisk" if slot.lun is None else f"storageProfile.dataDisks[lun {slot.lun}]"
        terraform = (
            f"set os_managed_disk_id of the VM to {restore.managed_disk}"
            if slot.lun is None
            else f"set managed_disk_id of the VM's azurerm_virtual_machine_data_disk_attachment at lun {slot.lun} to "
            f"{restore.managed_disk}"
        )
        name = restore.managed_disk.rpartition("/")[2]
        imported = f"Terraform: terraform import azurerm_managed_disk.{name} {restore.managed_disk}; {terraform}"
        return [
            *needless,
            imported,
            f"Bicep: in the VM {vm}, {place}.managedDisk.id: '{restore.managed_disk}', and the same .name",
        ]
    block = "storage_os_disk" if slot.lun is None else f"storage_data_disk with lun = {slot.lun}"
    place = "storageProfile.osDisk" if slot.lun is None else f"storageProfile.dataDisks[lun {slot.lun}]"
    return [
        f'Terraform: azurerm_virtual_machine {vm}, {block}: vhd_uri = "{restore.target}"',
        f"Bicep: in the VM {vm}, {place}.vhd.uri: '{restore.target}'",
    ]
