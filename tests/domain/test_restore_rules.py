"""The rules of a restore and of its delivery, over every state that any order of results leads to."""

from __future__ import annotations

from dataclasses import replace
from typing import get_args

import pytest

from backup_core.domain import disk_delivery, disk_restore
from backup_core.domain.disk_restore import Copied, RestoreGoals, after, next_step
from tools.diagrams import DOCUMENT, document
from tools.rules import CHANGE, DELIVERY, RESTORE, transitions

RESTORES, DELIVERIES = transitions(RESTORE), transitions(DELIVERY)
ADOPTION = ("adopt_head", "take_backup", "commit")
DISCARDS = ("discard_disk", "discard_head", "discard_snapshot")


def step_states(step):
    """Every state in which `step` is the next step."""
    found = [one.before for one in RESTORES if one.step == step]
    assert found, step
    return found


@pytest.mark.parametrize(("rule", "module"), [(RESTORE, disk_restore), (DELIVERY, disk_delivery)])
def test_every_step_is_taken(rule, module):
    assert {one.step for one in transitions(rule)} == set(get_args(module.Step))


@pytest.mark.parametrize("rule", [RESTORE, DELIVERY, CHANGE], ids=["restore", "delivery", "change"])
def test_every_order_of_results_comes_to_an_end(rule):
    """No path meets a state twice: loops that may take days are counted, and continue as a new execution."""
    ways = {}
    for one in transitions(rule):
        ways.setdefault(one.before, set()).update([] if one.after is None else [one.after])
    ended = set()
    while more := {state for state, following in ways.items() if following <= ended} - ended:
        ended |= more

    assert set(ways) == ended


# -- the restore --------------------------------------------------------------------------------------------------------


def test_every_path_ends_in_finish():
    """Every path has `finish` once, as its last step. Only a run that had ended before has nothing to finish."""
    for one in RESTORES:
        if one.step == "end":
            assert (one.before.end == "ended") != ("finish" in one.before.done)
        if one.after and next_step(one.after) == "end":
            assert one.step == "finish" or one.result == "ended"


def test_no_step_is_taken_twice():
    for one in RESTORES:
        assert one.step not in one.before.done
        assert one.after is None or one.before.done <= one.after.done


def test_a_restore_that_failed_once_has_failed():
    for one in RESTORES:
        if one.before.end == "Failed" and one.after:
            assert one.after.end == "Failed"
        if one.result == "failed":
            assert one.after.end == "Failed"


def test_nothing_is_adopted_unless_both_copies_are_proved_and_the_disk_is_owned():
    for state in [*step_states("adopt_head"), *step_states("take_backup"), *step_states("commit")]:
        assert (state.copied.delivered, state.copied.promoted) == ("success", "success")
        assert state.wanted.adopts
        assert state.owned
        assert state.sealed
        assert state.snapshotted or not state.wanted.imports
        assert "report" in state.done, "the cancel request was read"
    for state in step_states("commit"):
        assert {"adopt_head", "take_backup"} <= state.done


def test_the_snapshot_of_the_new_disk_is_taken_under_ownership():
    assert all(state.owned for state in step_states("seal"))
    assert all(state.owned for state in step_states("snapshot_disk"))
    for one in DELIVERIES:
        if one.step == "snapshot_disk" or (one.step == "seal" and one.before.adopts and not one.before.managed):
            assert "own" in one.before.done


def test_a_managed_disk_is_snapshotted_before_a_machine_has_it():
    """Only then does the snapshot equal the restore point. A disk that is not adopted gets no snapshot."""
    for state in delivery_states("store_change"):
        assert ("snapshot_disk" in state.done) == (state.adopts and state.managed)
    for state in delivery_states("snapshot_disk"):
        assert "seal" in state.done
        assert ("import_disk" in state.done) == state.imports
    assert not any(state.wanted.repoints for state in step_states("snapshot_disk"))


def test_a_snapshot_that_is_not_adopted_is_removed_after_the_head():
    """A commit that is still in progress would name the snapshot."""
    assert all("discard_head" in state.done for state in step_states("discard_snapshot"))
    assert not any("commit" in state.done for state in step_states("discard_snapshot"))
    for state in step_states("finish"):
        if state.copied and not state.aborted and state.wanted.adopts and state.wanted.imports:
            assert ("discard_snapshot" in state.done) != ("commit" in state.done)


def test_a_successful_restore_did_what_was_requested():
    for state in step_states("finish"):
        if state.end == "Succeeded":
            assert state.sealed
            assert not state.aborted
            assert "commit" in state.done or not state.wanted.adopts
            assert state.copied.holds == ("new" if state.wanted.repoints else "")
            assert {"commit", "close_change"} & state.done or not state.wanted.repoints


@pytest.mark.parametrize("step", DISCARDS)
def test_the_registration_follows_the_machine_before_anything_is_discarded(step):
    for state in step_states(step):
        if state.copied.holds == "new":
            assert "close_change" in state.done


@pytest.mark.parametrize("step", DISCARDS)
def test_nothing_is_discarded_before_the_work_on_it_has_ended(step):
    """Nothing that needs the disk's ownership follows a discard, which may give it up."""
    for one in RESTORES:
        if one.step == step:
            assert next_step(one.after) in ("discard_head", "discard_snapshot", "finish")
            assert "commit" not in one.before.done
            assert one.before.end != "Succeeded"


def test_a_sealed_disk_is_never_discarded():
    assert not any(state.sealed for state in step_states("discard_disk"))
    assert not any(state.copied.holds == "new" for state in step_states("discard_disk"))


def test_a_committed_head_is_never_discarded():
    assert not any("commit" in state.done for state in step_states("discard_head"))


def test_an_unfinished_target_is_removed_unless_its_state_is_unknown():
    """A step that aborts the rest means that the run lost its right to act, or that no row can be written."""
    for state in step_states("finish"):
        if state.copied and not state.aborted:
            assert state.sealed or "discard_disk" in state.done
            assert "commit" in state.done or "discard_head" in state.done or not state.wanted.adopts


def test_a_crashed_delivery_is_stopped_before_anything_else():
    """Live parts of the delivery get a request to end; if it may be changing a machine, its right to act is revoked too."""
    for one in RESTORES:
        if one.before.copied and one.before.copied.delivered == "crashed" and one.step not in ("record_failure", "recover"):
            assert one.before.aborted or "record_failure" in one.before.done or one.step == "end"
            if one.step in DISCARDS and one.before.wanted.repoints:
                assert "recover" in one.before.done
    assert not any(state.copied.delivered == "crashed" for state in step_states("report"))


def test_a_cancel_takes_effect_until_the_machine_has_the_new_disk():
    for state in step_states("report"):
        ended = after(state, "report", "canceled").end
        assert ended == ("Succeeded" if state.copied.holds else "Canceled")


def test_a_failure_of_the_other_copy_decides_only_if_the_delivery_succeeded():
    started = after(disk_restore.State(), "begin", RestoreGoals(repoints=False, adopts=True))

    assert after(started, "copy", Copied("success", "failed")).end == "Failed"
    assert after(started, "copy", Copied("canceled", "failed")).end == "Canceled"
    assert after(started, "copy", Copied("failed", "canceled")).end == "Failed"


# -- the delivery -------------------------------------------------------------------------------------------------------


def delivery_states(step):
    found = [one.before for one in DELIVERIES if one.step == step]
    assert found, step
    return found


def test_a_disk_is_used_only_once_it_is_complete():
    for state in delivery_states("repoint"):
        assert {"copy", "seal", "own", "store_change"} <= state.done
        assert "import_disk" in state.done or not state.imports


def test_a_successful_delivery_did_everything_that_was_requested():
    for state in delivery_states("end"):
        if state.end == "success":
            assert ("repoint" in state.done) == state.repoints
            assert ("import_disk" in state.done) == state.imports
            assert ("seal" in state.done) == (state.repoints or state.managed or not state.adopts)


def test_a_failed_delivery_records_its_failure_and_a_canceled_delivery_does_not():
    for state in delivery_states("end"):
        assert ("record_failure" in state.done) == (state.end in ("failed", "timed_out"))


def test_no_delivery_ends_while_the_machine_has_neither_disk():
    """A cancel takes effect at the latest before the first change of the machine, and not after a change in an earlier execution."""
    for one in DELIVERIES:
        if one.result in ("canceled", "stopped"):
            touched = "repoint" in one.before.done or (one.before.resumed and one.step == "report_repointing")
            assert (one.after.end == "success") == touched, one


def test_every_wait_for_an_import_is_bounded():
    assert disk_delivery.State(adopts=False, imports=True, repoints=False).looks_left == disk_delivery.IMPORT_LOOKS_MAX
    last = disk_delivery.after(replace(delivery_states("pause")[0], looks_left=0), "pause", "done")
    assert last.end == "timed_out"
    assert all(state.looks_left > 0 for state in delivery_states("import_disk"))
    assert all(one.before.reported for one in DELIVERIES if one.step == "import_disk"), "a sign of life before each look"


# -- the page -----------------------------------------------------------------------------------------------------------


def test_the_diagrams_are_those_of_the_rules():
    assert DOCUMENT.read_text() == document(), "run: python -m tools.diagrams"
