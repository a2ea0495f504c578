"""The declared end state of a restore, in words."""

from __future__ import annotations

from dataclasses import dataclass

from backup_core.domain.records import Slot


@dataclass
class RestoreEnd:
    """The facts of a restore's end, collected while it runs."""

    point: str = ""
    target: str = ""
    managed_disk: str = ""
    slot: tuple[str, int | None] | None = None
    """Machine and LUN, when the machine was to get the disk."""
    complete: bool = False
    removed: bool = False
    """The unfinished disk was removed, or its remains are named in `left`; otherwise no removal was tried."""
    left: str = ""
    left_head: str = ""
    left_snapshot: str = ""
    """Of the managed disk that was not adopted."""
    imported: bool = True
    """Whether the managed disk is complete, and equal where its snapshot was compared."""
    old_disk: str = ""
    holds: str = ""
    power: str = ""
    adopted: str = ""
    """The restore point of the new generation."""
    follows: bool = False
    """The registration followed the machine without a point."""
    unprotected: bool = False
    """The new disk is a managed one that was not to be adopted."""


def end_words(end: RestoreEnd) -> str:
    """The end state, sentence by sentence: the point, the disk, the machine, the protection."""
    if not end.target:
        return "nothing was begun; restore points, machines and the disk's protection are unchanged"
    parts = [f"restore point {end.point} is unchanged", _disk(end), *_machine(end), _protection(end)]
    if end.left_head:
        parts.append(f"an unfinished backup blob is left and may be deleted: {end.left_head}")
    if end.left_snapshot:
        parts.append(f"a snapshot of the managed disk is left, which the night removes: {end.left_snapshot}")
    return "; ".join(parts)


def _disk(end: RestoreEnd) -> str:
    uploaded = end.target == end.managed_disk
    if end.complete and uploaded:
        words = f"the new managed disk {end.managed_disk}"
        return f"{words} is complete and equal to it" if end.imported else f"{words} was not used: delete it"
    if end.complete:
        managed = f" (managed disk {end.managed_disk})" if end.managed_disk and end.imported else ""
        words = f"the new disk {end.target}{managed} is complete and equal to it"
        if managed or not end.managed_disk:
            return words
        return f"{words}; managed disk {end.managed_disk}, if it is there, was not used: delete it"
    if end.removed and not end.left:
        return "no disk of this restore is left" if uploaded else "the unfinished disk was removed"
    if end.holds in ("nothing", "unknown") or not end.removed:
        # It may be complete, and the machine's.
        return f"the new disk may be there, complete or not: {end.target}; look at the machine before you delete it"
    return f"an unfinished disk is left and may be deleted: {end.left}"


def _machine(end: RestoreEnd) -> list[str]:
    if end.slot is None:
        return ["no machine was changed"]
    slot = Slot(*end.slot)
    match end.holds:
        case "new":
            return [f"{slot} uses the new disk, the machine is {end.power}", f"the old disk {end.old_disk} is kept"]
        case "old":
            return [f"{slot} uses the old disk again, the machine is {end.power}"]
        case "other":
            return [f"{slot} was given another disk by somebody else and is left with it"]
        case "nothing" | "unknown":
            return [f"{slot} is settled by the next run that owns the disk; look at it"]
    return [f"{slot} was not touched"]


def _protection(end: RestoreEnd) -> str:
    if end.adopted:
        return f"backups continue from the new disk, the next one is an increment on restore point {end.adopted}"
    if end.follows and end.unprotected:
        return "the machine's disk is a managed disk now and is NOT backed up by this app"
    if end.follows:
        return "backups continue with the new disk, the next one is full"
    if end.holds == "new":
        return "the next run of the disk registers the new one and backs it up in full"
    return "the disk's protection is unchanged"
