"""The rule of a machine's change, over every state that any order of results leads to."""

from __future__ import annotations

from dataclasses import replace

from backup_core.domain import machine_change
from backup_core.domain.machine_change import Seen, after, next_step, start
from tools.rules import CHANGE, LEFT, transitions

OWN, BACK, ABANDONED = (transitions(replace(CHANGE, starts=(start,))) for start in CHANGE.starts)
ALL = [*OWN, *BACK, *ABANDONED]
ENDS = [one.before for one in ALL if one.step == "end"]


def test_the_exploration_starts_from_every_initial_state():
    for first, goal in zip(CHANGE.starts, ("new", "old", None), strict=True):
        assert first == replace(start(goal), moves_left=LEFT)
    assert start("new").moves_left == machine_change.MOVES_PER_EXECUTION
    assert start(None).moves_left == machine_change.RESOLVING_MOVES_MAX
    assert {one.step for one in [*OWN, *ABANDONED]} == set(machine_change.Step.__args__)
    assert {state.end for state in ENDS} == {None, *machine_change.End.__args__}


def test_no_final_state_leaves_the_machine_without_a_disk():
    """A run continues until the machine has a disk, or until it loses the right to act. Only a change that an abandoned run left is kept
    stored, and the run that tried to settle it fails.
    """
    without = [state for state in ENDS if state.holds == "nothing"]

    assert without
    assert all(state.abandoned and state.end in ("unresolved", None) for state in without)


def test_no_change_is_closed_while_the_machine_has_neither_disk():
    closing = [one.before for one in ALL if one.step == "close_change"]

    assert closing
    assert {state.holds for state in closing} == {"new", "old", "other"}
    assert all(state.fenced for state in closing if state.end == "reached"), "an earlier request may still be in flight"


def test_a_change_is_closed_at_its_end():
    """A change is closed at its end, except a run's own new disk, which waits for adoption, and a change another run resolves."""
    for one in ALL:
        if one.after and one.after.end and not one.before.end:
            waits = one.after.end in ("lost", "unresolved") or (one.after.holds == "new" and not one.before.abandoned)
            assert next_step(one.after) == ("end" if waits else "close_change"), one
            assert one.after.end != "reached" or one.after.holds == one.after.goal


def test_the_run_waits_for_a_move_that_shows_no_effect_yet():
    for one in [*OWN, *BACK, *ABANDONED]:
        if one.step == "move" and isinstance(one.result, Seen) and not one.result.reached:
            again = one.result.move in ("wait", one.before.last)
            assert (next_step(one.after) == "pause") == again, one


def test_an_abandoned_change_is_left_to_the_next_run_when_azure_does_not_answer():
    for one in ABANDONED:
        if one.step == "move" and one.result == "temporary":
            assert one.after.end == "unresolved", one


def test_no_move_towards_the_new_disk_once_the_goal_is_the_old_disk():
    for one in ALL:
        if one.before.goal == "old" and one.after:
            assert one.after.goal == "old", one


def test_a_rollback_is_reported_or_was_requested():
    """The goal turns back by a requested cancel, or by a final refusal, which is recorded for later executions of the instance."""
    turns = [one for one in OWN if one.after and one.before.goal != one.after.goal]

    assert {(one.step, one.result, next_step(one.after)) for one in turns} == {
        ("report", "cancel", "move"),
        ("move", "final", "record_failure"),
    }


def test_the_old_disk_counts_once_nothing_is_in_flight():
    """The old disk is fenced first, and a later move reads it back."""
    for state in (state for state in ENDS if state.goal == "old" and state.end == "reached"):
        assert state.fenced
        assert state.holds == "old"
    first = after(replace(start("old"), reported=True), "move", Seen("old", reached=True))
    assert next_step(first) == "fence"
    again = after(first, "fence", Seen("old"))
    assert (next_step(again), again.end) == ("report", None)


def test_a_step_that_failed_and_may_succeed_later_is_repeated_after_a_pause():
    for one in OWN:
        if one.result == "temporary" and one.step in ("move", "fence", "look"):
            assert next_step(one.after) == "pause", one


def test_every_move_follows_a_heartbeat():
    """Heartbeats continue through an outage; otherwise the run would count as dead."""
    assert all(one.before.reported for one in OWN if one.step == "move")
    moved = [one.after for one in [*OWN, *BACK] if one.step == "move" and not one.after.end]
    assert not any(state.reported for state in moved)


def test_a_cancel_rolls_back_and_never_ends_the_change():
    canceled = [one for one in OWN if one.result == "cancel"]

    assert {one.before.goal for one in canceled} == {"new", "old"}
    assert all(one.after.goal == "old" and one.after.end is None for one in canceled)


def test_an_abandoned_change_is_fenced_before_it_is_looked_at():
    """The change continues with the new disk only where the machine has it; the registration then follows."""
    for one in ABANDONED:
        if one.step in ("look", "move"):
            assert one.before.fenced
        if one.step == "look" and isinstance(one.result, Seen):
            assert one.after.goal == ("new" if one.result.reached else "old")
    assert not {one.step for one in ABANDONED} & {"report", "record_failure", "continue_as_new"}
