# Long: one state machine over a history.
"""Plays an orchestrator's answer against its history and says what is to be scheduled, or how the execution ended.

The extension awaits the actions of an answer in order and numbers what it schedules; the SDK counts the same numbers on its
own. This module gives the same numbers, so that both sides agree which completion belongs to which task. Pure: no clock, no
store; the time is the timestamp of the history's orchestrator-started events.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Generator, Iterable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from devhost.functions.protocol import ActionType, Event, EventType, parse_time

SHORT_TIMER_MAX = timedelta(days=6)
LONG_TIMER_STEP = timedelta(days=3)


class NonDeterministicError(Exception):
    """The history holds a task the orchestrator's code did not ask for at that place."""

    def __init__(self, kind: str, sequence: int, name: str | None, instead: str) -> None:
        called = f" and name '{name}'" if name else ""
        super().__init__(
            f"Non-Deterministic workflow detected: a previous execution scheduled a {kind} task with sequence ID "
            f"{sequence}{called}, but the current replay {instead}. Was the orchestrator's code changed after this "
            "instance had started?"
        )


class OrchestratorError(Exception):
    """The orchestrator failed, or asked for something impossible; the text becomes the instance's output."""


@dataclass
class Scheduled:
    """A task that history does not hold yet, under its sequence number."""

    kind: str
    name: str = ""
    input: Any = None
    instance: str = ""
    version: str | None = None
    fire_at: datetime | None = None


@dataclass
class Ending:
    """The end of an execution: status, sequence number of the closing event, output JSON or the next input."""

    status: str
    sequence: int
    output: str | None = None
    next_input: Any = None


class Future:
    """A value that arrives once; continuations run at once, in the order they were added."""

    __slots__ = ("_waiters", "error", "settled")

    def __init__(self, *, settled: bool = False) -> None:
        self.settled = settled
        self.error: Exception | None = None
        self._waiters: list[Callable[[Future], None]] = []

    def settle(self, error: Exception | None = None) -> None:
        """Give the value, or the error; only the first time counts."""
        if self.settled:
            return
        self.settled, self.error = True, error
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            waiter(self)

    def then(self, continuation: Callable[[Future], None]) -> None:
        """Call `continuation` once settled, at once if it is."""
        if self.settled:
            continuation(self)
        else:
            self._waiters.append(continuation)


Awaiting = Generator[Future, Future, None]


def _drive(steps: Awaiting) -> Future:
    """Run a generator of futures to its end; the result settles with what it raised."""
    result = Future()

    def advance(_: Future | None) -> None:
        try:
            waited = next(steps) if _ is None else steps.send(_)
            while waited.settled:
                waited = steps.send(waited)
            waited.then(advance)
        except StopIteration:
            result.settle()
        except Exception as error:  # noqa: BLE001  the outcome of the orchestrator, kept as a value
            result.settle(error)

    advance(None)
    return result


def _when_all(futures: list[Future]) -> Future:
    result, missing = Future(settled=not futures), len(futures)

    def one_less(_: Future) -> None:
        nonlocal missing
        missing -= 1
        if not missing:
            result.settle()

    for future in futures:
        future.then(one_less)
    return result


def _when_any(futures: list[Future]) -> Future:
    if not futures:
        message = "The tasks argument contains no tasks. (Parameter 'tasks')"
        raise OrchestratorError(message)
    result = Future()
    for future in futures:
        future.then(lambda _: result.settle())
    return result


@dataclass
class Replay:
    """One dispatch: feed the history with `run`, then read `scheduled`, `ending`, `suspended`, `carried_events`."""

    answer: dict[str, Any]
    execution: str
    activities: Collection[str]
    scheduled: dict[int, Scheduled] = field(default_factory=dict)
    ending: Ending | None = None
    suspended: bool = False
    pause_reason: str | None = None
    """Of the last suspension or resumption: the extension shows it as output."""
    carried_events: list[Event] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._next = 0
        self._open: dict[int, Future] = {}
        self._now: datetime | None = None
        self._body: Future | None = None
        self._continuing = False
        self._next_input: Any = None
        self._waiting: dict[str, list[Future]] = {}
        self._early: dict[str, int] = {}
        self._held_events: list[Event] = []
        self._held_tasks: dict[int, Scheduled] = {}

    def run(self, events: Iterable[Event], orchestrator: str) -> Replay:
        """Play the events in order; afterwards the outcome is in the fields."""
        try:
            for item in events:
                if item["EventType"] == EventType.ORCHESTRATOR_STARTED:
                    self._now = parse_time(item["Timestamp"])
                else:
                    self._play(item)
            if self.suspended and not self.ending:
                self.scheduled.clear()  # the SDK does not know of the suspension; nothing of its answer is acted on
            else:
                self._close(orchestrator)
        except NonDeterministicError as error:
            self.scheduled.clear()
            self.ending = Ending("Failed", self._next, output=str(error))
        return self

    def fail(self, orchestrator: str, text: str) -> None:
        """The execution fails with that text, unless it was terminated; nothing of the answer is acted on."""
        self.scheduled.clear()
        if self.ending and self.ending.status == "Terminated":
            return
        self.ending = Ending("Failed", self._next, output=f"Orchestrator function '{orchestrator}' failed: {text}")

    def _close(self, orchestrator: str) -> None:
        # An execution ends only when no activity, sub-orchestration or uncancelled timer is open.
        if self.ending or self._open or not self._body or not self._body.settled:
            return
        if self._body.error:
            text = f"Orchestrator function '{orchestrator}' failed: {self._body.error}"
            self.ending = Ending("Failed", self._next, output=text)
        elif self._continuing:
            self.ending = Ending("ContinuedAsNew", self._next, next_input=self._next_input)
        else:
            output = self.answer.get("output")
            self.ending = Ending("Completed", self._next, output=None if output is None else json.dumps(output))

    # -- actions ------------------------------------------------------------------------------------

    def _actions(self) -> Awaiting:
        for action in self.answer["actions"][0]:
            yield self._invoke(action)  # a task's failure is the SDK's business: here it only ends the wait
        if self.answer.get("error"):
            raise OrchestratorError(self.answer["error"])
        if not self.answer.get("isDone"):
            yield Future()

    def _invoke(self, action: dict[str, Any]) -> Future:
        kind = action["actionType"]
        simple = {
            ActionType.CALL_ACTIVITY: self._activity,
            ActionType.CALL_SUB: self._sub,
            ActionType.CREATE_TIMER: self._timer_action,
            ActionType.WAIT_FOR_EVENT: self._wait,
            ActionType.CONTINUE_AS_NEW: self._continue,
        }
        if kind in simple:
            return simple[kind](action)
        if kind == ActionType.CALL_ACTIVITY_WITH_RETRY:
            return _drive(self._retrying(action, self._activity))
        if kind == ActionType.CALL_SUB_WITH_RETRY:
            return _drive(self._retrying(action, self._sub))
        if kind in (ActionType.WHEN_ANY, ActionType.WHEN_ALL):
            children = [self._invoke(child) for child in action["compoundActions"]]
            return _when_any(children) if kind == ActionType.WHEN_ANY else _when_all(children)
        message = f"action type {kind} is not supported by this development host"
        raise OrchestratorError(message)

    def _schedule(self, task: Scheduled) -> tuple[int, Future]:
        sequence, future = self._next, Future()
        self._next += 1
        self.scheduled[sequence] = task
        self._open[sequence] = future
        return sequence, future

    def _activity(self, action: dict[str, Any]) -> Future:
        name = action["functionName"]
        if name.lower() not in self.activities:
            message = f"The function '{name}' doesn't exist, is disabled, or is not an activity function."
            raise OrchestratorError(message)
        return self._schedule(Scheduled("activity", name=name, input=action.get("input")))[1]

    def _sub(self, action: dict[str, Any]) -> Future:
        instance = action.get("instanceId") or f"{self.execution}:{self._next}"
        task = Scheduled(
            "sub",
            name=action["functionName"],
            input=action.get("input"),
            instance=instance,
            version=action.get("version"),
        )
        return self._schedule(task)[1]

    def _continue(self, action: dict[str, Any]) -> Future:
        self._continuing, self._next_input = True, action.get("input")
        return Future(settled=True)

    def _timer_action(self, action: dict[str, Any]) -> Future:
        fire_at = parse_time(action["fireAt"])
        assert self._now is not None
        if fire_at - self._now > SHORT_TIMER_MAX:
            return _drive(self._long_timer(fire_at))
        sequence, future = self._schedule(Scheduled("timer", fire_at=fire_at))
        if action.get("isCanceled"):
            del self._open[sequence]
            future.settle(OrchestratorError("timer cancelled"))
        return future

    def _timer(self, fire_at: datetime) -> Future:
        return self._schedule(Scheduled("timer", fire_at=fire_at))[1]

    def _long_timer(self, fire_at: datetime) -> Awaiting:
        assert self._now is not None
        while self._now < fire_at:
            yield self._timer(min(fire_at, self._now + LONG_TIMER_STEP))

    def _retrying(self, action: dict[str, Any], call: Callable[[dict[str, Any]], Future]) -> Awaiting:
        options = action["retryOptions"]
        attempts = options["maxNumberOfAttempts"]
        pause = timedelta(milliseconds=options["firstRetryIntervalInMilliseconds"])
        error: Exception | None = None
        for attempt in range(1, attempts + 1):
            outcome = yield call(action)
            if outcome.error is None:
                return
            error = outcome.error
            assert self._now is not None
            # The extension sets one more timer after the last attempt: it fires at once, but takes a number.
            yield self._timer(self._now if attempt == attempts else self._now + pause)
        if error is not None:
            raise error

    def _wait(self, action: dict[str, Any]) -> Future:
        name, future = action["externalEventName"].lower(), Future()
        if self._early.get(name):
            self._early[name] -= 1
            future.settle()
        else:
            self._waiting.setdefault(name, []).append(future)
        return future

    # -- history ------------------------------------------------------------------------------------

    def _play(self, item: Event) -> None:
        kind = item["EventType"]
        if self.suspended and kind not in (EventType.RESUMED, EventType.EXECUTION_TERMINATED):
            if kind != EventType.SUSPENDED:
                self._held_events.append(item)
            return
        if kind in _EXPECTED:
            self._expect(item, _EXPECTED[kind])
        elif kind in (EventType.TASK_COMPLETED, EventType.SUB_COMPLETED):
            self._settle(item["TaskScheduledId"])
        elif kind in (EventType.TASK_FAILED, EventType.SUB_FAILED):
            self._settle(item["TaskScheduledId"], OrchestratorError(item.get("Reason") or ""))
        elif kind == EventType.TIMER_FIRED:
            self._settle(item["TimerId"])
        elif kind == EventType.EXECUTION_STARTED:
            self._body = _drive(self._actions())
        elif kind == EventType.EVENT_RAISED:
            self._raised(item)
        elif kind == EventType.EXECUTION_TERMINATED:
            self.ending = self.ending or Ending("Terminated", self._next, output=item.get("Input"))
        elif kind == EventType.SUSPENDED:
            self.suspended, self.pause_reason = True, item.get("Reason")
            self._held_tasks.update(self.scheduled)
            self.scheduled.clear()
        elif kind == EventType.RESUMED:
            self.pause_reason = item.get("Reason")
            self._resume()

    def _resume(self) -> None:
        self.suspended = False
        self.scheduled.update(self._held_tasks)
        self._held_tasks.clear()
        held, self._held_events = self._held_events, []
        for item in held:
            self._play(item)

    def _raised(self, item: Event) -> None:
        if self._continuing:
            self.carried_events.append(item)
            return
        waiting = self._waiting.get(item["Name"].lower())
        if waiting:
            waiting.pop().settle()  # last waiter first, as the extension does
        else:
            self._early[item["Name"].lower()] = self._early.get(item["Name"].lower(), 0) + 1

    def _expect(self, item: Event, kind: str) -> None:
        sequence, name = item["EventId"], item.get("Name")
        task = self.scheduled.get(sequence)
        if task is None:
            raise NonDeterministicError(kind, sequence, name, "hasn't scheduled this task")
        if task.kind != kind or (name is not None and task.name.lower() != name.lower()):
            raise NonDeterministicError(kind, sequence, name, f"scheduled a {task.kind} task '{task.name}' there")
        del self.scheduled[sequence]

    def _settle(self, sequence: int, error: Exception | None = None) -> None:
        future = self._open.pop(sequence, None)
        if future:
            future.settle(error)


_EXPECTED = {
    EventType.TASK_SCHEDULED: "activity",
    EventType.TIMER_CREATED: "timer",
    EventType.SUB_CREATED: "sub",
}
