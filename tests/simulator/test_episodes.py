"""Episodes that run twice, as the simulator plays them: by hand and through the Durable SDK's replay alike."""

from __future__ import annotations

import itertools
from datetime import UTC, datetime, timedelta

import pytest

from tests.doubles.instance import DirectInstance
from tests.doubles.replayed import ReplayedInstance

INSTANCE = "someone"


def two_steps(context):
    first = yield context.call_activity("first", {"moment": context.current_utc_datetime.isoformat()})
    second = yield context.call_activity("second", {"first": first, "uuid": str(context.new_uuid())})
    yield context.create_timer(context.current_utc_datetime + timedelta(seconds=5))
    return {"first": first, "second": second}


def starts_over(context):
    times = context.get_input()["times"]
    if times == 2:
        return "over"
    yield context.call_activity("first", {"times": times})
    context.continue_as_new({"times": times + 1})
    return None


@pytest.fixture(params=[DirectInstance, ReplayedInstance])
def begun(request):
    def begun(orchestrate, input_=None):
        clock = itertools.count()
        begins = datetime(2026, 1, 1, tzinfo=UTC)
        instance = request.param(orchestrate, input_, INSTANCE, lambda: begins + timedelta(minutes=next(clock)), "seed")
        instance.begin()
        return instance

    return begun


def request(task):
    return (task.kind, task.name, task.number, task.execution)


def test_a_refused_episode_runs_again_at_another_moment(begun):
    """The repeated episode makes the same calls under the same numbers. Values that depend on its time differ; before it
    nothing has happened.
    """
    instance = begun(two_steps)
    (first,) = instance.waiting

    unwritten = instance.rehearse(first, 1)
    assert instance.waiting == [first]
    instance.complete_task(first, 1)

    (ghost,), (second,) = unwritten.tasks, instance.waiting
    assert request(ghost) == request(second)
    assert ghost.input["first"] == second.input["first"] == 1
    assert ghost.input["uuid"] != second.input["uuid"]


def test_the_first_answer_to_a_number_is_taken(begun):
    """A refused episode's answer counts for the call with its number; the other one is dropped, and a third."""
    instance = begun(two_steps)
    (first,) = instance.waiting
    (ghost,) = instance.rehearse(first, 1).tasks
    instance.complete_task(first, 1)
    (second,) = instance.waiting

    instance.complete_task(ghost, "ghost's")
    instance.complete_task(second, "own")
    instance.complete_task(first, 2)
    (timer,) = instance.waiting
    instance.complete_task(timer)

    assert instance.ended
    assert instance.output == {"first": 1, "second": "ghost's"}


def test_an_early_answer_waits_for_its_call(begun):
    """A call of a refused episode may be answered before the episode has run again."""
    instance = begun(two_steps)
    (first,) = instance.waiting
    (ghost,) = instance.rehearse(first, 1).tasks

    instance.complete_task(ghost, "early")
    assert instance.waiting == [first]
    instance.complete_task(first, 1)

    assert [task.kind for task in instance.waiting] == ["timer"]


def test_an_end_that_was_never_written_is_reported(begun):
    instance = begun(two_steps)
    for answer in (1, 2):
        (task,) = instance.waiting
        instance.complete_task(task, answer)
    (timer,) = instance.waiting

    unwritten = instance.rehearse(timer)

    assert unwritten.ended
    assert unwritten.output == {"first": 1, "second": 2}
    assert not instance.ended


def test_answers_to_another_execution_are_dropped(begun):
    """An episode that continues as new twice begins two executions; only the written one's answers count."""
    instance = begun(starts_over, {"times": 0})
    (first,) = instance.waiting
    (ghost,) = instance.rehearse(first).tasks
    instance.complete_task(first)
    (again,) = instance.waiting

    instance.complete_task(ghost)
    instance.complete_task(first)
    assert instance.waiting == [again]
    assert ghost.input == again.input == {"times": 1}
    instance.complete_task(again)

    assert (instance.ended, instance.output) == (True, "over")
