"""Episodes as the real extension runs them: messages go out before the history, so an episode may run again, at another moment."""

from __future__ import annotations

import sqlite3
import time
from contextlib import closing

import pytest
import requests

from tests.host.conftest import SampleHost

pytestmark = pytest.mark.development_host

INSTANCES = "/runtime/webhooks/durabletask/instances"


@pytest.fixture
def faulty(host):
    yield host
    host.faults()


def test_each_commit_refused_in_turn(faulty):
    """Waves, timers and a child: the episode runs again, what was sent twice counts once, the result is the same."""
    refused = 0
    while True:
        faulty.faults({"fault": "refuseCommit", "skip": refused, "seconds": 0.05})
        ended = faulty.run("rounds", {"waves": 2})
        assert ended["output"] == sum(n * n for n in range(8)) + 100, f"commit {refused} refused"
        if faulty.rules()[0]["times"]:
            break
        refused += 1

    assert refused >= 8


def test_the_messages_of_an_uncommitted_episode_are_delivered(faulty):
    """The activities of both episodes run; the answer that comes first is taken for the call of the second."""
    faulty.faults({"fault": "refuseCommit", "name": "stamped", "seconds": 0.5})
    before = len(faulty.notes())
    ended = faulty.run("stamped")

    first, second = [note.removeprefix("echo ") for note in faulty.notes()[before:]]
    assert first < second
    assert ended["output"] == first


def test_late_messages_of_an_uncommitted_episode_change_nothing(faulty):
    """Activities of the uncommitted episode begin after the end, and their answers change nothing."""
    faulty.faults({"fault": "refuseCommit", "name": "stamped", "late": True})
    before = len(faulty.notes())
    instance = faulty.begin("stamped")
    ended = faulty.until(instance)
    faulty.until_notes(before + 2)

    second, first = [note.removeprefix("echo ") for note in faulty.notes()[before:]]
    assert first < second == ended["output"]
    assert faulty.status(instance).json() == ended


def test_two_workers_run_the_same_episode(faulty):
    """Both send, one commits."""
    faulty.faults({"fault": "runTwice", "name": "stamped"})
    before = len(faulty.notes())
    instance = faulty.begin("stamped")
    ended = faulty.until(instance)
    faulty.until_notes(before + 2)

    both = {note.removeprefix("echo ") for note in faulty.notes()[before:]}
    history = faulty.status(instance, showHistory="true").json()["historyEvents"]
    assert len(both) == 2
    assert ended["output"] in both
    assert [event["EventType"] for event in history].count("ExecutionStarted") == 1


def test_an_answer_that_comes_twice_counts_once(faulty):
    faulty.faults({"fault": "repeatMessage", "name": "TaskCompleted", "times": 100})
    ended = faulty.run("rounds", {"waves": 2})

    assert ended["output"] == sum(n * n for n in range(8)) + 100
    assert faulty.rules()[0]["times"] < 100


def test_an_activity_that_is_delivered_again_after_the_end(faulty):
    faulty.faults({"fault": "repeatActivity", "name": "echo", "late": True, "times": 100})
    before = len(faulty.notes())
    instance = faulty.begin("stamped")
    ended = faulty.until(instance)
    faulty.until_notes(before + 2)

    first, second = faulty.notes()[before:]
    assert first == second
    assert faulty.rules()[0]["times"] == 99, "a repetition is not repeated"
    assert faulty.status(instance).json() == ended


def test_an_answer_that_is_delayed_past_the_end(faulty):
    """The run waits for it, is terminated, and stays so when the answer comes."""
    faulty.faults({"fault": "holdAnswer", "name": "echo", "late": True})
    before = len(faulty.notes())
    instance = faulty.begin("stamped")
    faulty.until_notes(before + 1)
    shown = faulty.status(instance).json()
    faulty.call("POST", f"{INSTANCES}/{instance}/terminate?reason=enough")
    ended = faulty.until(instance)

    assert shown["runtimeStatus"] == "Running"
    assert (ended["runtimeStatus"], ended["output"]) == ("Terminated", "enough")
    assert faulty.run("stamped")["runtimeStatus"] == "Completed"
    assert faulty.status(instance).json() == ended


def test_a_child_on_the_id_of_a_living_instance_replaces_it(host):
    """The instance's history is lost, and its parent keeps waiting; a start from outside is refused."""
    waiting = host.begin("starts", {"child": "waits", "input": {"seconds": 600}, "id": "taken"})
    host.until("taken", lambda shown: shown["runtimeStatus"] == "Running")
    refused = host.call("POST", "/runtime/webhooks/durabletask/orchestrators/stamped/taken", {})
    other = host.run("starts", {"child": "child", "input": {"n": 3}, "id": "taken"})
    replaced = host.until("taken")

    assert refused.status_code == requests.codes.conflict
    assert (other["output"], replaced["name"], replaced["output"]) == (9, "child", 9)
    assert host.status(waiting).json()["runtimeStatus"] == "Running"
    host.call("POST", f"{INSTANCES}/{waiting}/terminate?reason=tidy")
    host.until(waiting)


def test_a_terminated_parent_leaves_its_child_running(host):
    parent = host.begin("starts", {"child": "waits", "input": {"seconds": 600}, "id": "orphan"})
    host.until("orphan", lambda shown: shown["runtimeStatus"] == "Running")
    host.call("POST", f"{INSTANCES}/{parent}/terminate?reason=tidy")
    host.until(parent)

    assert host.status("orphan").json()["runtimeStatus"] == "Running"
    host.call("POST", f"{INSTANCES}/orphan/raiseEvent/approve", {"by": "me"})
    assert host.until("orphan")["output"] == {"by": "me"}


def test_the_work_of_a_dead_worker_pauses_until_its_message_is_visible(tmp_path):
    invisible = 3.0
    host = SampleHost(tmp_path, DEVHOST_INVISIBLE_SECONDS=f"{invisible:g}")
    try:
        instance = host.begin("fan_out", {"count": 1, "seconds": 1.0})
        host.until_notes(1)
        host.kill()
        killed = time.time()
        with closing(sqlite3.connect(tmp_path / "hub.sqlite")) as hub:
            ((visible_at,),) = hub.execute("SELECT visible_at FROM work").fetchall()
        host.start()
        host.until_notes(2)
        # It is renewed before a third of its time is over; whoever comes next waits until then.
        assert killed < visible_at <= time.time()
        assert host.until(instance)["output"]["sum"] == 0
    finally:
        host.stop()


@pytest.mark.parametrize("rule", [{"fault": "unknown"}, {"fault": "runTwice", "instance": "x"}])
def test_an_unknown_fault_is_refused(host, rule):
    assert host.call("POST", "/admin/devhost/faults", [rule]).status_code == requests.codes.bad_request
