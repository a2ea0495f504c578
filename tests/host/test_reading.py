"""The selection of visible messages that an episode reads, and of those that wait."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from devhost.functions import protocol
from devhost.functions.episodes import read
from devhost.functions.hub import Hub
from devhost.functions.protocol import EventType

BEFORE, COMMIT, AFTER = "2026-01-01T00:00:01", "2026-01-01T00:00:02", "2026-01-01T00:00:03"
SCHEDULED = protocol.event(EventType.TASK_SCHEDULED, 0, Name="work")
STARTED = protocol.event(EventType.EXECUTION_STARTED)


@pytest.fixture
def instance(tmp_path):
    hub = Hub(tmp_path / "hub.sqlite")
    hub.create("one", "any", None, None)
    yield replace(hub.instance("one"), execution="execution", updated=COMMIT)
    hub.close()


def answer(task, at=AFTER):
    return {**protocol.event(EventType.TASK_COMPLETED, TaskScheduledId=task, Result="1"), "Timestamp": at}


def rows(*events, execution="execution"):
    return [{"number": number, "execution": execution, "event": json.dumps(one)} for number, one in enumerate(events, 1)]


def test_the_answer_to_a_call_that_is_not_committed_waits(instance):
    """The episode that made it has sent, and will run again."""
    found = read(rows(answer(0), answer(1)), instance, [STARTED, SCHEDULED])

    assert [one["TaskScheduledId"] for one in found.delivered] == [0]
    assert found.early == [2]


def test_an_answer_to_a_call_that_no_commit_made_is_read_and_ignored(instance):
    """The answer's call is in no commit, and no later episode will make it."""
    assert read(rows(answer(1, BEFORE)), instance, [STARTED, SCHEDULED]).early == []


def test_messages_before_the_start_wait_for_it(instance):
    raised = protocol.event(EventType.EVENT_RAISED, Name="go", Input="1")

    assert read(rows(raised, answer(0)), instance, []).early == [1, 2]
    with_start = read(rows(raised, answer(0), STARTED, STARTED), instance, [])
    assert [one["EventType"] for one in with_start.delivered] == [EventType.EXECUTION_STARTED, EventType.EVENT_RAISED]
    assert with_start.early == [2]


def test_a_second_start_and_the_messages_of_another_execution_are_dropped(instance):
    found = read([*rows(STARTED), *rows(answer(0), execution="former")], instance, [STARTED, SCHEDULED])

    assert (found.delivered, found.early) == ([], [])
