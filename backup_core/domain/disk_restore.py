"""The restore of a disk as a rule: pin, copy, adopt, remove what is not needed, finish.

Nothing is removed before the disk's protection has its final state. Every way ends by `finish`, unless the run had ended
before.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

from backup_core.domain.repoint import Holds

Step = Literal[
    "begin",
    "copy",
    "record_failure",
    "recover",
    "own",
    "snapshot_disk",
    "report",
    "seal",
    "adopt_head",
    "take_backup",
    "commit",
    "close_change",
    "discard_disk",
    "discard_head",
    "discard_snapshot",
    "finish",
    "end",
]
"""`copy`: the new disk and its machine, and beside that the promoted head. `recover`: own the disk in place of a delivery that
crashed, so that its remains may not act any more, and resolve its change of the machine. `close_change`: forget that
change, and have the disk's registration follow the machine. `snapshot_disk`: of an imported disk that no machine gets. A
discard never fails: it answers what is left.
"""
Part = Literal["success", "failed", "canceled"]
End = Literal["Succeeded", "Failed", "Canceled", "ended"]
"""`ended`: the run had ended before; nothing was done."""
MachineHas = Holds | Literal["", "unknown"]
"""The machine's disk; empty when it was not touched."""


@dataclass(frozen=True)
class RestoreGoals:
    """The goals of a restore besides the new disk: change the machine, adopt the disk, import a managed disk."""

    repoints: bool
    adopts: bool
    imports: bool = False

    @property
    def snapshots(self) -> bool:
        """Whether the imported disk gets a snapshot, for backups to continue from."""
        return self.adopts and self.imports


@dataclass(frozen=True)
class Copied:
    """The ends of both parts."""

    delivered: Part | Literal["crashed"]
    promoted: Part | None
    """None when no head was to be promoted."""
    owned: bool = False
    sealed: bool = False
    snapshotted: bool = False
    """Whether an imported disk has its snapshot, equal to the restore point."""
    holds: MachineHas = ""


Result: TypeAlias = RestoreGoals | Copied | Literal["done", "ended", "canceled", "failed"]


@dataclass(frozen=True)
class State:
    """The state of the restore."""

    wanted: RestoreGoals | None = None
    copied: Copied | None = None
    done: frozenset[Step] = frozenset()
    """The steps after the copies that were done."""
    end: End = "Succeeded"
    """The restore's end, as far as it is known."""
    aborted: bool = False
    """Whether a step failed that everything after it needs, but for the end: what is left is named there."""

    @property
    def owned(self) -> bool:
        """Whether the run owns the disk."""
        return "own" in self.done or (self.copied is not None and self.copied.owned)

    @property
    def sealed(self) -> bool:
        """Whether the new disk is complete, and the run may not write it any more."""
        return "seal" in self.done or (self.copied is not None and self.copied.sealed)

    @property
    def snapshotted(self) -> bool:
        """Whether an imported disk has its snapshot, equal to the restore point."""
        return "snapshot_disk" in self.done or (self.copied is not None and self.copied.snapshotted)


def next_step(state: State) -> Step:
    """The next step. `end` is the last one."""
    if state.end == "ended" or "finish" in state.done:
        return "end"
    if state.aborted:
        return "finish"
    if state.wanted is None:
        return "begin"
    if state.copied is None:
        return "copy"
    if state.copied.delivered == "crashed":
        if "record_failure" not in state.done:
            return "record_failure"
        if state.wanted.repoints and "recover" not in state.done:
            return "recover"
    if state.wanted.adopts and state.end == "Succeeded" and "commit" not in state.done:
        return _adopting(state)
    return _cleaning_up(state, state.copied.holds, state.wanted)


def _adopting(state: State) -> Step:
    if not state.owned:
        return "own"
    if state.wanted and state.wanted.snapshots and not state.snapshotted:
        return "snapshot_disk"
    if "report" not in state.done:
        return "report"
    if not state.sealed:
        return "seal"
    steps: tuple[Step, ...] = ("adopt_head", "take_backup", "commit")
    return next(step for step in steps if step not in state.done)


def _cleaning_up(state: State, holds: MachineHas, wanted: RestoreGoals) -> Step:
    committed = "commit" in state.done
    if holds == "new" and not committed and "close_change" not in state.done:
        # The machine writes to the new disk from now on, so backups must be of that one, restore point or none.
        return "close_change"
    if not state.sealed and "discard_disk" not in state.done:
        return "discard_disk"
    if wanted.adopts and not committed and "discard_head" not in state.done:
        return "discard_head"
    if wanted.snapshots and not committed and "discard_snapshot" not in state.done:
        # After the head: a commit that is still in progress would name the snapshot.
        return "discard_snapshot"
    return "finish"


def after(state: State, step: Step, result: Result) -> State:
    """The state once the step had that result."""
    if isinstance(result, RestoreGoals):
        return replace(state, wanted=result)
    if isinstance(result, Copied):
        return replace(state, copied=result, end=_end(result))
    if result == "ended":
        return replace(state, end="ended")
    if result == "failed":
        return replace(state, end="Failed", aborted=step in ("begin", "record_failure", "recover", "close_change"))
    # A machine with the new disk must not continue without backups.
    untouched = state.copied is not None and not state.copied.holds
    if result == "canceled" and (step in ("own", "snapshot_disk") or (step == "report" and untouched)):
        return replace(state, end="Canceled")
    return replace(state, done=state.done | {step})


def _end(copied: Copied) -> End:
    """The delivery's end, and where that succeeded the promotion's."""
    part = copied.promoted if copied.delivered == "success" else copied.delivered
    if part is None or part == "success":
        return "Succeeded"
    return "Canceled" if part == "canceled" else "Failed"
