"""Runs that are under way at an upgrade go on: today's code replays what yesterday's code left, branch by branch."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest

from backup_core.steps import STEPS
from devhost.functions.protocol import EventType
from devhost.memory.instance import VERSION
from tests.orchestrations.histories import FOLDER, arcs, fault, load, unseen

RECORDED = [(file.name.split(".")[0], one) for file in sorted(FOLDER.glob("*.jsonl.gz")) for one in load(file)]
BY_NAME = {step.name: step for step in STEPS}


@pytest.mark.parametrize(
    ("version", "recording"),
    [pytest.param(*one, id=f"{one[0]}-{number}-{one[1].orchestrator}") for number, one in enumerate(RECORDED)],
)
def test_a_run_of_before_goes_on(version, recording):
    """The same calls in the same order to the same end, and every activity that may be queued is still understood."""
    told = fault(recording, version)
    if told:
        pytest.fail(told, pytrace=False)
    for name, asked in recording.asked:
        BY_NAME[name].takes.model_validate(asked)


def test_every_branch_of_the_orchestrators_is_recorded():
    """For the version that begins now: a branch without a recording could break unseen."""
    missing = unseen(set().union(*(arcs(one) for version, one in RECORDED if version == VERSION)))

    assert not missing, "no recorded history goes there; write a test that does, then `make record`:\n" + "\n".join(missing)


@pytest.mark.parametrize("gone", ["keep_house", "repoint_machine"])
def test_a_branch_without_a_recording_is_named(gone):
    """Seen from the other side: the histories of one orchestrator are left out."""
    missing = unseen(set().union(*(arcs(one) for _, one in RECORDED if one.orchestrator != gone)))

    assert [one for one in missing if f"{gone}.py, {gone}: line" in one]
    assert [one for one in missing if one.startswith(f"{gone}.py") and ": from line" in one]


def backup():
    return next(
        (version, one) for version, one in RECORDED if "commit_point" in dict(one.asked) and one.ending.status == "Completed"
    )


@pytest.mark.parametrize("what", ["another call", "another ending", "a call more", "another name", "an answer it cannot read"])
def test_an_incompatible_change_says_what_to_do(what):
    """Seen from the other side: a history that the code cannot have made."""
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
    told = fault(replace(recording, events=events), version)

    assert "raise\n    `defaultVersion` in host.json" in told
    assert {
        "another call": "previous execution scheduled a activity task with sequence ID 0 and name 'begin_otherwise'",
        "another ending": "where it had ended as Failed",
        "a call more": "it waits for activity finish_",
        "another name": "no orchestrator has this name any more",
        "an answer it cannot read": "Non-Deterministic workflow detected",
    }[what] in told
