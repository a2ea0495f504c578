"""Explores the rules of a restore: every result that a step may have, and every state that any order of results leads to."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any, get_args

from backup_core.domain import disk_delivery, disk_restore, machine_change
from backup_core.domain.disk_restore import Copied, MachineHas, Part, RestoreGoals
from backup_core.domain.machine_change import Seen
from backup_core.domain.repoint import Holds, Move

HOLDS: tuple[Holds, ...] = get_args(Holds)
MOVES: tuple[Move, ...] = ("wait", "deallocate", "detach", "attach", "swap", "start")


def change_results(state: machine_change.State, step: machine_change.Step) -> Iterator[machine_change.Result]:
    """Every result that a step of a machine's change may have in a state."""
    if step in ("pause", "record_failure", "report", "close_change"):
        yield "done"
    if step in ("continue_as_new", "end", "pause"):
        return
    yield "temporary"
    yield "final"
    if step == "report":
        yield "cancel"
    if step in ("fence", "look"):
        yield from map(Seen, HOLDS)
    if step == "move":
        yield from (Seen(holds, move=move) for holds in HOLDS for move in MOVES if move == "wait" or holds != "other")
    if step in ("look", "move"):
        yield Seen(state.goal or "new", reached=True)


def delivery_results(state: disk_delivery.State, step: disk_delivery.Step) -> Iterator[disk_delivery.Result]:
    """Every result that a step of a delivery may have."""
    if step == "end":
        return
    yield "done"
    if step in ("pause", "record_failure"):
        return
    yield "failed"
    if step in ("copy", "own", "repoint", *disk_delivery.REPORTS) or (step == "snapshot_disk" and not state.resumed):
        yield "canceled"
    if step in disk_delivery.REPORTS:
        yield "stopped"
    if step == "own":
        yield "resumed"
    if step == "import_disk":
        yield "pending"


def restore_results(state: disk_restore.State, step: disk_restore.Step) -> Iterator[disk_restore.Result]:
    """Every result that a step of a restore may have in a state."""
    match step:
        case "begin":
            yield from (
                RestoreGoals(repoints=repoints, adopts=adopts, imports=imports)
                for repoints, adopts, imports in product((True, False), repeat=3)
            )
            yield from ("ended", "failed")
        case "copy" if state.wanted:
            yield from delivered(state.wanted)
        case "own" | "report" | "recover" | "snapshot_disk":
            yield from ("done", "canceled", "failed")
        case "finish" | "discard_disk" | "discard_head" | "discard_snapshot":
            yield "done"
        case "end":
            return
        case _:
            yield from ("done", "failed")


def delivered(wanted: RestoreGoals) -> Iterator[Copied]:
    """Every way in which both copies may end: each end of the delivery's rule, or a crash, beside each end of the head."""
    promoted: tuple[Part | None, ...] = get_args(Part) if wanted.adopts else (None,)
    yield from (Copied("crashed", one, holds="unknown" if wanted.repoints else "") for one in promoted)
    for delivery in {one.before for one in transitions(DELIVERY) if one.step == "end"}:
        if (delivery.adopts, delivery.managed, delivery.repoints) == (wanted.adopts, wanted.imports, wanted.repoints):
            end: Part = "failed" if delivery.end == "timed_out" else delivery.end
            facts = {"owned": "own" in delivery.done, "sealed": "seal" in delivery.done}
            facts["snapshotted"] = "snapshot_disk" in delivery.done
            yield from (Copied(end, one, holds=has, **facts) for one in promoted for has in _left_with(delivery))


def _left_with(delivery: disk_delivery.State) -> tuple[MachineHas, ...]:
    """The disks that the machine may have after that end of the delivery."""
    if "repoint" in delivery.done:
        return ("new",)
    # A change that does not reach its goal answers what the machine has then.
    return ("old", "other", "unknown") if "store_change" in delivery.done else ("",)


@dataclass(frozen=True)
class Rule:
    """A rule, and how to explore it."""

    starts: tuple[Any, ...]
    next_step: Callable[[Any], str]
    after: Callable[[Any, Any, Any], Any]
    results: Callable[[Any, Any], Iterator[Any]]


@dataclass(frozen=True)
class Transition:
    """A step in a state, one of its results, and the state that follows; a last step has neither."""

    before: Any
    step: str
    result: Any = None
    after: Any = None


LEFT = 3
"""Moves and polls that are left at the beginning: they matter only when none is left."""
CHANGE = Rule(
    tuple(machine_change.State(abandoned=goal is None, goal=goal, moves_left=LEFT, reported=goal is None)
          for goal in ("new", "old", None)),
    machine_change.next_step, machine_change.after, change_results,
)  # fmt: skip
DELIVERY = Rule(
    tuple(
        disk_delivery.State(adopts, imports, repoints, uploads, looks_left=LEFT)
        for adopts, imports, repoints, uploads in product((False, True), repeat=4)
        if not (imports and uploads)
    ),
    disk_delivery.next_step, disk_delivery.after, delivery_results,
)  # fmt: skip
RESTORE = Rule((disk_restore.State(),), disk_restore.next_step, disk_restore.after, restore_results)


def transitions(rule: Rule) -> list[Transition]:
    """Every transition of a rule from its starts."""
    open_, seen, found = list(rule.starts), set[Any](), list[Transition]()
    while open_:
        state = open_.pop()
        if state in seen:
            continue
        seen.add(state)
        step = rule.next_step(state)
        answers = list(rule.results(state, step))
        found += [Transition(state, step, one, rule.after(state, step, one)) for one in answers] or [Transition(state, step)]
        open_ += [rule.after(state, step, one) for one in answers]
    return found
