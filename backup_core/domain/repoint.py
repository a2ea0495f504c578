"""The exchange of a virtual machine's disk: the next move, given what the machine has now.

The same rule leads forward and back: the goal is the new disk, or the old one again. Nothing is remembered between two moves
but the stored change, so a repeated or late move does no harm, and a machine that somebody else changed is left alone.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import unquote, urlsplit

from backup_core.domain.errors import SlotTakenError
from backup_core.domain.records import Slot

Goal = Literal["new", "old"]
Power = Literal["running", "stopped", "deallocated", "changing"]
Holds = Literal["new", "old", "nothing", "other"]
"""The disk that a machine has in the slot of the change."""
Move = Literal["wait", "deallocate", "detach", "attach", "swap", "start", "none"]


@dataclass(frozen=True)
class MachineDisk:
    """A disk of a machine. `source` is the URL of its VHD, or the resource id of a managed disk."""

    name: str
    source: str
    managed: bool
    lun: int | None = None
    """None is the OS disk."""
    caching: str = "None"
    size_gb: int | None = None
    os_type: str = ""
    """Windows or Linux, of an OS disk."""
    model: dict[str, Any] = field(default_factory=dict, compare=False)
    """Its other properties in the machine's model, in Azure's own words; its replacement gets them, and so does it on the way
    back.
    """

    def is_(self, other: MachineDisk) -> bool:
        """Whether both are the same disk."""
        return same_disk(self.source, other.source)


def same_disk(one: str, other: str) -> bool:
    """Whether two sources are the same disk. Resource ids compare without regard to case; URLs by host and path, because a
    machine may still name its VHD by http.
    """
    if "://" in one and "://" in other:
        return _place(one) == _place(other)
    return one.lower() == other.lower()


def _place(url: str) -> tuple[str, str]:
    parts = urlsplit(url)
    return parts.netloc.lower(), unquote(parts.path)


@dataclass(frozen=True)
class Machine:
    """A virtual machine as far as its disks are concerned, at the version `etag`."""

    vm: str
    etag: str
    state: str
    """Provisioning state: Succeeded, Failed, or a word for being changed."""
    power: Power
    location: str
    disks: tuple[MachineDisk, ...]
    zones: tuple[str, ...] = ()
    generation: str = ""
    """Hypervisor generation, V1 or V2, when it is known."""
    security_type: str = ""
    """Standard, TrustedLaunch or ConfidentialVM, when it is known."""
    edge_zone: str = ""
    """The edge zone it is in, a place apart from the region; empty is the region."""

    def at(self, lun: int | None) -> MachineDisk | None:
        """The disk in a slot."""
        return next((disk for disk in self.disks if disk.lun == lun), None)


@dataclass(frozen=True)
class Change:
    """A change of a machine, stored before the first write: enough to complete it, and to undo it."""

    disk: str
    run: str
    slot: Slot
    old: MachineDisk
    new: MachineDisk
    was_running: bool
    deallocates: bool
    """Whether the machine is off meanwhile: always for an OS disk."""
    target: str = ""
    """URL of the restored disk blob; resource id of a managed disk that was uploaded."""
    new_source: str = ""
    """The managed disk that was made of it, as the registration's source, when backups continue from it."""

    @property
    def uploads(self) -> bool:
        """Whether the new disk was uploaded; else it is the target, or was imported from it."""
        return self.new.managed and self.target == self.new.source


def holds(change: Change, machine: Machine) -> Holds:
    """The kind of disk that the machine has in the slot."""
    present = machine.at(change.slot.lun)
    if present is None:
        return "nothing"
    return "new" if present.is_(change.new) else "old" if present.is_(change.old) else "other"


def next_move(change: Change, machine: Machine, goal: Goal) -> Move:
    """The move that brings the machine nearer to the goal. Raises SlotTakenError for a third disk, which somebody else
    attached.

    A disk counts as reached only when the machine's last change succeeded: a refused change may leave the new disk in the
    model. A data disk is taken out before another comes in, because Azure refuses to change the disk of a LUN in place.
    """
    if machine.state not in ("Succeeded", "Failed") or machine.power == "changing":
        return "wait"
    present = holds(change, machine)
    # G36: a third disk is left alone.
    if present == "other":
        found = machine.at(change.slot.lun)
        message = (
            f"{change.slot}: expected {change.old.source} or {change.new.source}, found {found.source if found else 'none'}; "
            "somebody else changed it; nothing was done; look at the machine and repeat the restore if it is still needed"
        )
        raise SlotTakenError(message)
    # G35: reached only when the machine's last change succeeded.
    if present == goal and machine.state == "Succeeded":
        off = machine.power in ("stopped", "deallocated")
        return "start" if change.deallocates and change.was_running and off else "none"
    if change.deallocates and machine.power != "deallocated":
        return "deallocate"
    if change.slot.lun is None:
        return "swap"
    return "attach" if present in ("nothing", goal) else "detach"
