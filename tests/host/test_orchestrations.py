"""Features of orchestrations under the host: results, failures, timers, events, sub-orchestrations, continue-as-new."""

from __future__ import annotations

import pytest
import requests


def test_fan_out_and_in(host):
    """Activities run side by side, their results come back in order, the custom status is kept."""
    ended = host.run("fan_out", {"count": 20})

    assert (ended["runtimeStatus"], ended["output"]) == ("Completed", {"sum": sum(n * n for n in range(20)), "one": 9})
    assert ended["customStatus"] == {"phase": "in"}


def test_waves_timers_and_a_sub_orchestration(host):
    ended = host.run("rounds", {"waves": 3})

    assert ended["output"] == sum(n * n for n in range(12)) + 100


def test_a_failed_activity_fails_the_orchestration_with_its_text(host):
    ended = host.run("fails")

    assert ended["runtimeStatus"] == "Failed"
    assert "cannot square 1" in ended["output"]


def test_a_failed_child_can_be_caught(host):
    ended = host.run("parent_of_a_failure")

    assert ended["runtimeStatus"] == "Completed"
    assert ended["output"].startswith("caught:")


def test_retries_end_in_success_or_failure(host):
    assert host.run("retries", {"key": "twice", "failures": 2})["output"] == 3
    assert host.run("retries", {"key": "often", "failures": 9})["runtimeStatus"] == "Failed"


def test_events_and_timers(host):
    """The event wins over a long timer, a short timer over no event; an early event waits for its waiter."""
    raised = host.begin("waits", {"seconds": 60})
    host.until(raised, lambda shown: shown["runtimeStatus"] == "Running")
    answer = host.call("POST", f"/runtime/webhooks/durabletask/instances/{raised}/raiseEvent/approve", {"by": "me"})
    timed = host.begin("waits", {"seconds": 0.1})

    assert answer.status_code == 202
    assert host.until(raised)["output"] == {"by": "me"}
    assert host.until(timed)["output"] == "timer"


def test_continue_as_new_starts_an_empty_history(host):
    instance = host.begin("counts", 0)
    ended = host.until(instance)

    history = host.status(instance, showHistory="true").json()["historyEvents"]
    assert ended["output"] == 5
    assert [event["EventType"] for event in history] == [
        "ExecutionStarted",
        "TaskCompleted",
        "ExecutionCompleted",
    ]


def test_a_running_instance_cannot_be_started_again_and_an_ended_one_is_replaced(host):
    instance = host.begin("waits", {"seconds": 60}, "singleton")
    again = host.call("POST", "/runtime/webhooks/durabletask/orchestrators/waits/singleton", {"seconds": 60})
    host.call("POST", f"/api/client/terminate/{instance}")
    host.until(instance)

    assert again.status_code == 409
    assert "already exists" in again.json()["Message"]
    assert host.begin("fan_out", {"count": 1}, "singleton") == "singleton"
    assert host.until("singleton")["name"] == "fan_out"


def test_terminate_suspend_resume_purge_by_the_durable_client(host):
    instance = host.begin("waits", {"seconds": 60})
    host.until(instance, lambda shown: shown["runtimeStatus"] == "Running")
    host.call("POST", f"/api/client/suspend/{instance}")
    host.until(instance, lambda shown: shown["runtimeStatus"] == "Suspended")
    host.call("POST", f"/api/client/raise/{instance}")
    assert host.status(instance).json()["runtimeStatus"] == "Suspended"
    host.call("POST", f"/api/client/resume/{instance}")

    # The SDK's client encodes an event's data twice (azure-functions-durable-python issue 295).
    assert host.until(instance)["output"] in ({"by": "client"}, '{"by": "client"}')
    assert host.call("POST", f"/api/client/purge/{instance}").text == "1"
    assert host.status(instance).status_code == requests.codes.not_found


def test_terminate(host):
    instance = host.begin("waits", {"seconds": 60})
    host.until(instance, lambda shown: shown["runtimeStatus"] == "Running")
    host.call("POST", f"/api/client/terminate/{instance}")

    assert host.until(instance)["runtimeStatus"] == "Terminated"
    assert host.call("POST", f"/runtime/webhooks/durabletask/instances/{instance}/terminate?reason=x").status_code == 410


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("orchestrators/unknown", {}, 400),
        ("orchestrators/waits/with%23hash", {}, 400),
        ("instances/unknown/terminate", {}, 404),
    ],
)
def test_wrong_management_calls(host, path, body, status):
    assert host.call("POST", f"/runtime/webhooks/durabletask/{path}", body).status_code == status


def test_an_incompatible_change_is_reported(tmp_path):
    """Code that calls another activity at the same place fails the instance, with an error that says so."""
    from tests.host.conftest import SampleHost  # noqa: PLC0415

    old = SampleHost(tmp_path)
    instance = old.begin("changes")
    old.until(instance, lambda shown: shown["runtimeStatus"] == "Running" and "square 1" in old.notes())
    old.kill()
    new = SampleHost(tmp_path, SAMPLE_VERSION="2")
    try:
        new.call("POST", f"/runtime/webhooks/durabletask/instances/{instance}/raiseEvent/go", {})
        ended = new.until(instance)
    finally:
        new.stop()

    assert ended["runtimeStatus"] == "Failed"
    assert "Non-Deterministic workflow detected" in ended["output"]


def test_an_instance_keeps_the_version_it_began_with(tmp_path):
    """After an upgrade a running instance continues with the old version; later instances, also its children, use the new one."""
    from tests.host.conftest import SampleHost  # noqa: PLC0415

    def goes_on(instance):
        new.call("POST", f"/runtime/webhooks/durabletask/instances/{instance}/raiseEvent/go", {})
        return new.until(instance)

    old = SampleHost(tmp_path)
    before = old.begin("versioned")
    old.until(before, lambda shown: shown["runtimeStatus"] == "Running" and "square 1" in old.notes())
    old.kill()
    new = SampleHost(tmp_path, AzureFunctionsJobHost__extensions__durableTask__defaultVersion="2")
    try:
        ended, later = goes_on(before), goes_on(new.begin("versioned"))
    finally:
        new.stop()

    assert ended["output"] == ["1", "2"], ended
    assert later["output"] == ["2", "2"], later


def test_a_long_list_comes_in_pages(host):
    """A list comes in pages of a hundred, as from the extension; the platform reads all pages."""
    started = {host.begin("versioned_child", instance=f"page{number}") for number in range(103)}
    answer = host.call("GET", "/runtime/webhooks/durabletask/instances?instanceIdPrefix=page")

    assert len(answer.json()) == 100
    assert answer.headers["x-ms-continuation-token"]
    assert {one["instanceId"] for one in host.instances("page")} == started
