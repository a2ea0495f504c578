"""Permissions of the app for a restore, tested by harmless requests."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from backup_core.domain.errors import BackupError
from backup_core.domain.naming import parse_resource_id

if TYPE_CHECKING:
    from backup_core.operations.restores import RestoreInputs
    from backup_core.protocol.tools import Tools


FOLLOWING = "Microsoft.Compute/locations/operations/read"
"""Needed to see how an accepted change of a machine ends, besides the right to it; and the same for disks."""
FOLLOWING_DISKS = "Microsoft.Compute/locations/diskOperations/read"
UPLOADING = ["Microsoft.Compute/disks/beginGetAccess/action", "Microsoft.Compute/disks/endGetAccess/action"]
"""Besides the right to make disks."""


@dataclass(frozen=True)
class Probe:
    """The result of a harmless request for a permission."""

    action: str
    state: Literal["granted", "denied", "unknown"]


async def probes_of(tools: Tools, inputs: RestoreInputs) -> list[Probe]:
    """The state of each permission, by harmless requests; unknown where a request fails."""
    probes = [Probe("read the backup snapshot", "granted")]
    if not inputs.restoring.uploads:
        probes.append(await _writes(tools, inputs.restoring.target))
    if inputs.machine is None:
        return probes
    actions = ["Microsoft.Compute/virtualMachines/write", FOLLOWING] if inputs.restoring.repoint else []
    if inputs.restoring.repoint and (inputs.restoring.stop_vm or (inputs.restoring.slot and inputs.restoring.slot.lun is None)):
        actions += ["Microsoft.Compute/virtualMachines/deallocate/action", "Microsoft.Compute/virtualMachines/start/action"]
    actions += ["Microsoft.Compute/disks/write", FOLLOWING_DISKS] if inputs.restoring.managed_disk else []
    actions += UPLOADING if inputs.restoring.uploads else []
    probes.append(Probe("Microsoft.Compute/virtualMachines/read", "granted"))
    try:
        permitted = await tools.machines.permitted(inputs.machine.vm, actions)
    except BackupError:
        return probes + [Probe(action, "unknown") for action in actions]
    probes += [Probe(action, "granted" if permitted[action] else "denied") for action in actions]
    return probes + [await _linked(tools, *one) for one in _links(inputs)]


async def _writes(tools: Tools, target: str) -> Probe:
    blob = tools.disk_blob(target)
    name = f"write blobs in {blob.account}/{blob.container}"
    try:
        return Probe(name, "granted" if await tools.blobs.may_write(blob.account, blob.container) else "denied")
    except BackupError:
        return Probe(name, "unknown")


def _links(inputs: RestoreInputs) -> list[tuple[str, str]]:
    """Actions that a restore needs on other resources, each with the resource's id. They are the resources that the new disk
    names, and the machine's data disks of other groups: the list of data disks is sent whole.
    """
    made, slot, machine = inputs.made, inputs.restoring.slot, inputs.machine
    named = [
        ("Microsoft.Compute/diskEncryptionSets/read", made.encryption_set if made else ""),
        ("Microsoft.Compute/diskAccesses/read", made.disk_access if made else ""),
    ]
    if inputs.restoring.repoint and machine and slot and slot.lun is not None:
        group = parse_resource_id(machine.vm).group_id
        others = [one.source for one in machine.disks if one.managed and one.lun not in (None, slot.lun)]
        named += [("Microsoft.Compute/disks/write", one) for one in others if parse_resource_id(one).group_id != group]
    return [(action, resource) for action, resource in named if resource]


async def _linked(tools: Tools, action: str, resource: str) -> Probe:
    name = f"{action} on {resource}"
    try:
        permitted = await tools.machines.permitted(resource, [action])
    except BackupError:
        return Probe(name, "unknown")
    return Probe(name, "granted" if permitted[action] else "denied")
