"""Replay of answers against a history: behaviour that tests of whole orchestrations cannot show."""

from __future__ import annotations

from devhost.functions import protocol
from devhost.functions.protocol import EventType
from devhost.functions.replay import Replay

STARTED = [
    protocol.event(EventType.ORCHESTRATOR_STARTED),
    protocol.execution_started("one", "execution", "any", None, None, None),
]
CALL = {"actionType": 0, "functionName": "work", "input": "{}"}
TIMER = {"actionType": 5, "fireAt": "2026-01-01T00:00:00Z", "isCanceled": False}


def play(events, *actions, done=True):
    answer = {"isDone": done, "actions": [list(actions)], "output": "out"}
    return Replay(answer, "execution", {"work"}).run(events, "any")


def test_an_instance_ends_only_when_nothing_is_open():
    """A finished orchestrator with an activity still running is Running until that has ended."""
    race = {"actionType": 11, "compoundActions": [CALL, TIMER]}
    open_ = [
        *STARTED,
        protocol.event(EventType.TASK_SCHEDULED, 0, Name="work"),
        protocol.event(EventType.TIMER_CREATED, 1, FireAt="2026-01-01T00:00:00Z"),
        protocol.event(EventType.TIMER_FIRED, TimerId=1, FireAt="2026-01-01T00:00:00Z"),
    ]

    assert play(open_, race).ending is None
    ended = play([*open_, protocol.event(EventType.TASK_COMPLETED, TaskScheduledId=0, Result="1")], race).ending
    assert (ended.status, ended.output) == ("Completed", '"out"')


def test_retries_take_the_numbers_the_extension_takes():
    """A retry takes one number for the call and one for the timer before the next; the last timer fires at once."""
    retrying = {**CALL, "actionType": 1, "retryOptions": {"maxNumberOfAttempts": 2, "firstRetryIntervalInMilliseconds": 10}}
    events, numbers = list(STARTED), []
    for number, kind in enumerate(["work", "timer", "work", "timer"]):
        replay = play(events, retrying, done=False)
        numbers += sorted(replay.scheduled)
        if kind == "work":
            events += [
                protocol.event(EventType.TASK_SCHEDULED, number, Name="work"),
                protocol.event(EventType.TASK_FAILED, TaskScheduledId=number, Reason="x"),
            ]
        else:
            fire = protocol.format_time(replay.scheduled[number].fire_at)
            events += [
                protocol.event(EventType.TIMER_CREATED, number, FireAt=fire),
                protocol.event(EventType.TIMER_FIRED, TimerId=number, FireAt=fire),
            ]

    assert numbers == [0, 1, 2, 3]


def test_a_changed_orchestrator_is_reported():
    events = [*STARTED, protocol.event(EventType.TASK_SCHEDULED, 0, Name="other")]

    ending = play(events, CALL, done=False).ending
    assert ending.status == "Failed"
    assert "Non-Deterministic" in ending.output
