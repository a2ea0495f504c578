"""The change of a machine's disk as a rule: the next step, from what is known, and what a step's result adds to that.

One rule leads forward to the new disk, back to the old one, and resolves a change that an abandoned run left.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

from backup_core.domain.repoint import Goal, Holds, Move

MOVES_PER_EXECUTION = 16
"""Moves before the instance continues as new, so that its history stays small."""
RESOLVING_MOVES_MAX = 40
"""Moves for a change that an abandoned run left. With the pauses between them about two hours: then the run that asked
fails visibly.
"""

Step = Literal["report", "fence", "look", "move", "record_failure", "pause", "close_change", "continue_as_new", "end"]
"""`fence` rejects every earlier request that may still be in flight. `close_change` forgets the stored change; when the machine
has the new disk, the disk's registration follows it.
"""
End = Literal["reached", "kept", "lost", "unresolved"]
"""`reached`: the goal was read back. `kept`: the change was refused, and the machine keeps its disk. `lost`: the run may not
act any more. `unresolved`: the change stays stored for the next run.
"""


@dataclass(frozen=True)
class Seen:
    """The disk in the machine's slot, as a step read it."""

    holds: Holds
    reached: bool = False
    """Whether the goal was read back."""
    move: Move = "none"
    """The last action towards the goal."""


Result: TypeAlias = Seen | Literal["done", "cancel", "temporary", "final"]
"""`temporary` and `final` are failures: whether a later attempt of the step may succeed."""


@dataclass(frozen=True)
class State:
    """The state of the change. Made by `start`."""

    abandoned: bool
    """Whether an abandoned run left the change. It is not canceled, and it has no progress of its own to report."""
    goal: Goal | None
    """None until an abandoned change was read."""
    moves_left: int
    holds: Holds | Literal["unknown"] = "unknown"
    last: Move | None = None
    """The move before the next one; None after a turn."""
    reported: bool = False
    """Whether progress was reported since the last move: the report is the heartbeat, and returns the request to cancel."""
    fenced: bool = False
    reached: bool = False
    """Whether the old disk was read back, which counts once the machine is fenced and it is read back again."""
    refused: bool = False
    """Whether Azure refuses the way back for good."""
    pausing: bool = False
    unreported: bool = False
    """Whether the reason for the way back has still to be recorded for the other parts of the run."""
    end: End | None = None
    """End of the change; None with no moves left: it was never done."""
    closed: bool = False
    """Whether nothing has to be closed at the end."""


def start(goal: Goal | None) -> State:
    """The state at the beginning of an execution; without a goal an abandoned change is resolved."""
    if goal is None:
        return State(abandoned=True, goal=None, moves_left=RESOLVING_MOVES_MAX, reported=True)
    return State(abandoned=False, goal=goal, moves_left=MOVES_PER_EXECUTION)


def next_step(state: State) -> Step:
    """The next step. `end` is the last one."""
    if state.end:
        return "end" if state.closed else "close_change"
    if state.pausing:
        return "pause"
    if state.unreported:
        return "record_failure"
    if state.refused or (state.fenced and state.goal is None):
        return "look"
    if (state.abandoned or state.reached) and not state.fenced:
        return "fence"
    if state.moves_left == 0:
        return "end" if state.abandoned else "continue_as_new"
    return "move" if state.reported else "report"


def after(state: State, step: Step, result: Result) -> State:
    """The state once the step had that result."""
    if isinstance(result, Seen):
        return _seen(state, step, result)
    if result in ("temporary", "final"):
        return _failed(state, step, final=result == "final")
    match step:
        # G36: what cannot continue goes back to the old disk.
        case "report" if result == "cancel" and state.goal == "new":
            return replace(state, reported=True, goal="old", last=None)
        case "report":
            return replace(state, reported=True)
        case "pause":
            return replace(state, pausing=False)
        case "record_failure":
            return replace(state, unreported=False)
    return replace(state, closed=True)


def _seen(state: State, step: Step, seen: Seen) -> State:
    state = replace(state, holds=seen.holds)
    if step == "move":
        return _moved(state, seen)
    if step == "fence":
        return replace(state, fenced=True, reached=False, last=None, reported=state.abandoned)
    if state.abandoned:
        return replace(state, goal="new" if seen.reached else "old")
    if seen.holds in ("old", "other"):
        # G37: also where the way back was refused, a move towards the new disk may still be in flight.
        return replace(state, end="kept") if state.fenced else replace(state, refused=False, reached=True)
    return replace(state, refused=False, pausing=True, reported=False)


def _moved(state: State, seen: Seen) -> State:
    moved = replace(state, last=seen.move, moves_left=state.moves_left - 1, reported=state.abandoned)
    if not seen.reached:
        return replace(moved, pausing=seen.move in ("wait", state.last))
    if state.goal == "old" and not state.fenced:
        # A move towards the new disk may still be in flight, from a worker that died.
        return replace(moved, reached=True)
    # A new disk waits for its adoption, which closes the change.
    return replace(moved, end="reached", closed=not state.abandoned and state.goal == "new")


def _failed(state: State, step: Step, *, final: bool) -> State:
    if step == "record_failure":
        return replace(state, unreported=False)
    if step == "report" and not final:
        # A row that cannot be written now is no reason to stop half-way.
        return replace(state, reported=True)
    if step in ("report", "close_change") or (state.abandoned and step != "move"):
        # Another run owns the disk, or nothing can be written: that run, or the next one, resolves the change.
        return replace(state, holds="unknown", end="lost", closed=True)
    if state.abandoned:
        unresolved = not final or state.holds == "nothing"
        return replace(state, end="unresolved" if unresolved else "kept", closed=unresolved)
    again = replace(state, reported=False, reached=False, moves_left=state.moves_left - (step == "move"))
    if step == "look":
        return replace(again, refused=False, pausing=True)
    if not final:
        return replace(again, pausing=True)
    if state.goal == "new":
        return replace(again, goal="old", unreported=True, last=None)
    # A machine that takes no write from this app takes none that is in flight.
    return replace(again, refused=True, fenced=state.fenced or step == "fence")
