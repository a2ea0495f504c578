"""Runs that are in progress at an upgrade continue: today's code replays the histories of yesterday's code, branch by branch."""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import cache

import pytest

from backup_core.orchestrations.calls import _outcome
from backup_core.steps import BY_NAME, STEPS
from backup_core.steps.messages import StepOutcome
from devhost.functions.protocol import EventType
from tests.doubles.instance import VERSION
from tests.orchestrations.histories import FOLDER, arcs, fault, load, unseen

RECORDED = [(file.name.split(".")[0], one) for file in sorted(FOLDER.glob("*.jsonl.gz")) for one in load(file)]


@pytest.mark.parametrize(
    ("version", "recording"),
    [pytest.param(*one, id=f"{one[0]}-{number}-{one[1].orchestrator}") for number, one in enumerate(RECORDED)],
)
def test_a_run_of_a_former_version_continues(version, recording):
    """The replay makes the same calls in the same order to the same end, and every queued activity is still understood."""
    problem = fault(recording, version)
    if problem:
        pytest.fail(problem, pytrace=False)
    for name, request in recording.calls:
        BY_NAME[name].takes.model_validate(request)


def test_a_former_name_is_removed_one_version_after_its_last_use():
    """The previous version may have runs in progress, so its histories are kept; a name that no kept history calls is removed."""
    kept = {version for version, _ in RECORDED}
    called = {
        (version, item["Name"])
        for version, one in RECORDED
        for item in one.events
        if item["EventType"] == EventType.TASK_SCHEDULED
    }
    former = {pair for step in STEPS for pair in step.former}

    assert {VERSION, str(int(VERSION) - 1)} - {"0"} <= kept
    assert {name for _, name in called} <= set(BY_NAME)
    assert former <= called, "no recorded orchestration of that version calls it by that name"


def test_a_renamed_step_is_called_by_the_name_of_the_orchestrations_version():
    step = replace(STEPS[0], name="newest", former=(("1", "oldest"), ("2", "older")))

    assert step.names == ("newest", "oldest", "older")
    assert [step.name_for(version) for version in ("1", "2", "3", None)] == ["oldest", "older", "newest", "newest"]


def test_an_answer_is_known_by_any_name_of_its_step():
    """Histories contain the former version's answers under the names that its activities had."""
    step = replace(STEPS[0], name="newest", former=(("1", "oldest"),))
    said = StepOutcome(value={}, step="oldest")

    assert _outcome(step, said.model_dump(mode="json")) == said
    assert _outcome(step, said.model_copy(update={"step": "other"}).model_dump(mode="json")).fault.code == "AnswerLost"


@cache
def branches():
    """Version, orchestrator and branches of each recording."""
    return [(version, one.orchestrator, arcs(one)) for version, one in RECORDED]


def test_every_branch_of_the_orchestrators_is_recorded():
    """Each branch of the present version has a recording: without one a later change could break it unseen."""
    missing = unseen(set().union(*(taken for version, _, taken in branches() if version == VERSION)))

    assert not missing, "no recorded history takes this branch; write a test that does, then `make record`:\n" + "\n".join(
        missing
    )


@pytest.mark.parametrize("gone", ["clean_up_disks", "repoint_machine"])
def test_a_branch_without_a_recording_is_named(gone):
    """Counter-check: without the histories of one orchestrator, its branches are named."""
    missing = unseen(set().union(*(taken for _, orchestrator, taken in branches() if orchestrator != gone)))

    assert [one for one in missing if f"{gone}.py, {gone}: line" in one]
    assert [one for one in missing if one.startswith(f"{gone}.py") and ": from line" in one]


def backup():
    return next(
        (version, one) for version, one in RECORDED if "commit_point" in dict(one.calls) and one.ending.status == "Completed"
    )


@pytest.mark.parametrize("what", ["another call", "another ending", "a call more", "another name", "an answer it cannot read"])
def test_an_incompatible_change_says_what_to_do(what):
    """Counter-check: a history that the code cannot have made fails with advice."""
    version, recording = backup()
    events = copy.deepcopy(recording.events)
    calls = [item for item in events if item["EventType"] == EventType.TASK_SCHEDULED]
    if what == "another call":
        calls[0]["Name"] = "begin_otherwise"
    elif what == "another ending":
        recording = replace(recording, ending=replace(recording.ending, status="Failed"))
    elif what == "a call more":
        del events[events.index(calls[-1]) :]
    elif what == "another name":
        recording = replace(recording, orchestrator="backup_it")
    else:
        answer = next(item for item in events if item["EventType"] == EventType.TASK_COMPLETED)
        answer["Result"] = '{"value": {"unknown": 1}, "fault": null}'
    problem = fault(replace(recording, events=events), version)

    assert "raise\n    `defaultVersion` in host.json" in problem
    assert {
        "another call": "previous execution scheduled a activity task with sequence ID 0 and name 'begin_otherwise'",
        "another ending": "where it had ended as Failed",
        "a call more": "it waits for activity finish_",
        "another name": "no orchestrator has this name any more",
        "an answer it cannot read": "Non-Deterministic workflow detected",
    }[what] in problem
