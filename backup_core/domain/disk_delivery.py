"""The delivery of a restored disk as a rule: copied and proved, sealed, imported, given to its machine; or left on the way.

A managed disk is uploaded, which is its copy, or imported from the copy. A disk that is adopted is snapshotted before any
machine has it: a page blob when it is sealed, a managed disk by its own step.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from backup_core.domain.repoint import same_disk

IMPORT_LOOKS_MAX = 60
"""Polls of an import, which takes minutes, because Azure copies a VHD's pages by reference. With the pauses half an hour."""

Step = Literal[
    "copy",
    "seal",
    "report_importing",
    "import_disk",
    "pause",
    "own",
    "snapshot_disk",
    "report_repointing",
    "store_change",
    "repoint",
    "report_promoting",
    "record_failure",
    "end",
]
REPORTS: tuple[Step, ...] = ("report_importing", "report_repointing", "report_promoting")
Result = Literal["done", "pending", "resumed", "canceled", "stopped", "failed"]
"""`pending`: not complete yet. `resumed`: done, and an earlier life of this delivery has begun to change the machine.
`stopped`: another part of the run has failed.
"""
End = Literal["success", "canceled", "failed", "timed_out"]


@dataclass(frozen=True)
class State:
    """The known state of the delivery, and its tasks: `adopts`, `imports` or `uploads`, and `repoints`."""

    adopts: bool
    imports: bool
    repoints: bool
    uploads: bool = False
    """Whether the copy itself is a managed disk."""
    done: frozenset[Step] = frozenset()
    """The steps that were done; after `seal` the disk is complete, after `own` no backup runs any more, and after
    `snapshot_disk` the managed disk has its first snapshot, which equals the restore point.
    """
    resumed: bool = False
    reported: bool = False
    """Whether progress was reported since the last other step."""
    pausing: bool = False
    looks_left: int = IMPORT_LOOKS_MAX
    end: End = "success"

    @property
    def managed(self) -> bool:
        """Whether the new disk is a managed one."""
        return self.imports or self.uploads


def next_step(state: State) -> Step:
    """The next step. `end` is the last one."""
    if state.end != "success":
        return "end" if state.end == "canceled" or "record_failure" in state.done else "record_failure"
    if "copy" not in state.done:
        return "copy"
    # G33: an adopted disk is snapshotted after the disk is owned.
    if "seal" not in state.done and ("own" in state.done or state.managed or not state.adopts):
        # The snapshot of an adopted disk must be newer than every other restore point's. Once the disk is owned no backup runs.
        # What is uploaded or imported is sealed without one.
        return "seal"
    if state.imports and "import_disk" not in state.done:
        return _importing(state)
    # G59: a managed disk is snapshotted before a machine has it.
    return _repointing(state) if state.repoints else "end"


def _importing(state: State) -> Step:
    if state.pausing:
        return "pause"
    return "import_disk" if state.reported else "report_importing"


def _repointing(state: State) -> Step:
    if "own" not in state.done:
        return "own"
    if state.adopts and state.managed and "snapshot_disk" not in state.done:
        return "snapshot_disk"
    if "store_change" not in state.done:
        return "store_change" if state.reported else "report_repointing"
    if "repoint" not in state.done:
        return "repoint"
    return "end" if state.reported or not state.adopts else "report_promoting"


def wrong_disk(source: str, wanted: str) -> str:
    """Why the machine's disk, read back, is not the requested one; empty when it is, or when none
    was read. The stored change does not count.
    """
    if not source or same_disk(source, wanted):
        return ""
    return f"the machine has {source}, expected {wanted}, read back after its change; look at the machine"


def after(state: State, step: Step, result: Result) -> State:
    """The state once the step had that result."""
    # The last moment to leave is before the machine is touched, unless an earlier life of the delivery has touched it.
    stays = step == "report_promoting" or (step == "report_repointing" and state.resumed)
    if result == "failed" or (result == "stopped" and not stays):
        return replace(state, end="failed")
    if result == "canceled" and not stays:
        return replace(state, end="canceled")
    state = replace(state, reported=step in REPORTS)
    if step == "pause":
        return replace(state, pausing=False, end=state.end if state.looks_left else "timed_out")
    if result == "pending":
        return replace(state, pausing=True, looks_left=state.looks_left - 1)
    return replace(state, done=state.done | {step}, resumed=state.resumed or result == "resumed")
