"""An orchestration that is run by the Durable SDK's own replay over a history, as the real extension does, without a host."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from azure.durable_functions import Orchestrator
from azure.durable_functions.models import DurableOrchestrationContext

from devhost.functions import protocol
from devhost.functions.protocol import EventType
from devhost.functions.replay import Replay
from tests.doubles.instance import VERSION, DirectInstance, Task, Unwritten

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from devhost.functions.replay import Ending


@dataclass(frozen=True)
class Recording:
    """An execution that has ended: its history as the extension keeps it, and its end."""

    orchestrator: str
    instance: str
    events: list[dict[str, Any]]
    calls: list[tuple[str, Any]]
    """Name and input of each activity; the extension's own history leaves inputs out."""
    ending: Ending


def replayed(orchestrate: Any, instance: str, events: list[dict[str, Any]]) -> Replay:  # noqa: ANN401  a generator function
    """The history played by the Durable SDK: what it schedules beyond the history, and how it ends."""
    started = next(item for item in events if item["EventType"] == EventType.EXECUTION_STARTED)
    body = {"history": events, "input": json.loads(started["Input"]), "instanceId": instance, "isReplaying": len(events) > 2,
            "parentInstanceId": None, "upperSchemaVersion": 1, "upperSchemaVersionNew": 2,
            "maximumShortTimerDuration": "6.00:00:00", "longRunningTimerIntervalDuration": "3.00:00:00"}  # fmt: skip
    try:
        context = DurableOrchestrationContext.from_json(json.dumps(body))
        answer = protocol.answer_of(Orchestrator(orchestrate).handle(context))
    except Exception as error:
        failed = protocol.answer_of_failure(error)
        if failed is None:
            raise
        answer = failed
    execution = started["OrchestrationInstance"]["ExecutionId"]
    return Replay(answer, execution, _AnyName()).run(events, orchestrate.__name__)


class ReplayedInstance:
    """The same orchestrator run by the Durable SDK over a history, as the real extension does."""

    def __init__(self, orchestrate: Any, input_: Any, instance_id: str, clock: Callable[[], datetime], seed: str) -> None:  # noqa: ANN401  a generator function, any JSON
        """An instance of `orchestrate` that is yet to begin; `seed` is part of the execution id."""
        self.id, self._clock, self._seed = instance_id, clock, seed
        self._orchestrate = orchestrate
        self.waiting: list[Task] = []
        self.ended = False
        self.output: Any = None
        self.error: Exception | None = None
        self.past: list[Recording] = []
        """The executions that have ended, oldest first."""
        self._early: list[tuple[Task, Any, Exception | None]] = []
        self._next_execution(input_)

    @property
    def executions(self) -> int:
        """The number of executions, the present one included."""
        return len(self.past) + (not self.ended)

    @property
    def history_bytes(self) -> int:
        """Size of the present execution's history as JSON."""
        return len(json.dumps(self._past))

    def _next_execution(self, input_: Any) -> None:  # noqa: ANN401  any JSON
        self._input = json.dumps(input_)
        self._past: list[dict[str, Any]] = []
        self._calls: list[tuple[str, Any]] = []
        self._sequence: dict[int, Task] = {}
        self._execution = f"{self._seed}:{len(self.past) + 1}"

    def begin(self) -> None:
        """Run the first episode."""
        self._dispatch([self._started(self._execution, self._input)])

    def _started(self, execution: str, input_: str) -> dict[str, Any]:
        return protocol.execution_started(self.id, execution, self._orchestrate.__name__, input_, VERSION, None)

    def _played(self, past: list[dict[str, Any]], arrived: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], Replay]:
        """The history with what arrived, and where its replay leads."""
        stamp = protocol.format_time(self._clock() + timedelta(microseconds=len(past)))
        new = [protocol.event(EventType.ORCHESTRATOR_STARTED), *arrived]
        for item in new:
            item["Timestamp"] = stamp
        events = [*past, *new]
        replay = replayed(self._orchestrate, self.id, events)
        for item in new:
            item["IsPlayed"] = True
        if replay.ending and "Non-Deterministic" in (replay.ending.output or ""):
            raise AssertionError(replay.ending.output)
        return events, replay

    def _dispatch(self, arrived: list[dict[str, Any]]) -> None:
        events, replay = self._played(self._past, arrived)
        self._past = [*events, *(self._record(task) for task in _tasks(replay, self._execution))]
        ending = replay.ending
        if ending is None:
            early, self._early = self._early, []
            for kept in early:
                self.complete_task(*kept)
            return
        self.past.append(Recording(self._orchestrate.__name__, self.id, events, self._calls, ending))
        if ending.status == "ContinuedAsNew":
            self.waiting = []
            self._next_execution(ending.next_input)
            self.begin()
            return
        self.waiting, self.ended = [], True
        self.output, self.error = _end(ending)

    def _record(self, task: Task) -> dict[str, Any]:
        self._sequence[task.number] = task
        self.waiting.append(task)
        if task.kind == "timer":
            assert task.fire_at is not None
            return protocol.event(EventType.TIMER_CREATED, task.number, FireAt=protocol.format_time(task.fire_at))
        if task.kind == "sub":
            fields = {"Name": task.name, "Version": VERSION, "InstanceId": task.instance, "Input": None}
            return protocol.event(EventType.SUB_CREATED, task.number, **fields)
        self._calls.append((task.name, task.input))
        return protocol.event(EventType.TASK_SCHEDULED, task.number, Name=task.name, Version="", Input=None)

    def complete_task(self, task: Task, result: Any = None, error: Exception | None = None) -> None:  # noqa: ANN401  any JSON
        """Append the task's end to the history and replay. A second one is there too, and the SDK leaves it."""
        if task.execution != self._execution or self.ended:
            return
        if task.number in self._sequence:
            self._dispatch([self._answer(task, result, error)])
        else:
            self._early.append((task, result, error))

    def settle_all(self, results: list[tuple[Task, Any]]) -> None:
        """Append the ends of several tasks, and replay once."""
        self._dispatch([self._answer(task, result, None) for task, result in results])

    def rehearse(self, task: Task | None = None, result: Any = None, error: Exception | None = None) -> Unwritten:  # noqa: ANN401  any JSON
        """The calls that the episode would make now; the instance stays as it is."""
        if task is None:
            arrived = self._started(self._execution, self._input)
        elif any(one.number == task.number for one in self.waiting) and task.execution == self._execution:
            arrived = _event(task, result, error)
        else:
            return Unwritten([])
        _, replay = self._played(self._past, [arrived])
        execution, tasks = self._execution, _tasks(replay, self._execution)
        while replay.ending and replay.ending.status == "ContinuedAsNew":
            execution = f"{execution}, unwritten at {self._clock()}"
            _, replay = self._played([], [self._started(execution, json.dumps(replay.ending.next_input))])
            tasks += _tasks(replay, execution)
        return Unwritten(tasks, replay.ending is not None, *(_end(replay.ending) if replay.ending else ()))

    def _answer(self, task: Task, result: Any, error: Exception | None) -> dict[str, Any]:  # noqa: ANN401  any JSON
        request = self._sequence[task.number]
        if request in self.waiting:
            self.waiting.remove(request)
        return _event(task, result, error)


def _tasks(replay: Replay, execution: str) -> list[Task]:
    """The tasks that a replay has scheduled beyond its history."""
    tasks = []
    for number, scheduled in sorted(replay.scheduled.items()):
        input_ = None if scheduled.kind == "timer" else _plain(scheduled.input)
        task = Task(scheduled.kind, scheduled.name, input_, scheduled.instance, scheduled.fire_at)
        task.number, task.execution = number, execution
        tasks.append(task)
    return tasks


def _event(task: Task, result: Any, error: Exception | None) -> dict[str, Any]:  # noqa: ANN401  any JSON
    if task.kind == "timer":
        assert task.fire_at is not None
        return protocol.event(EventType.TIMER_FIRED, TimerId=task.number, FireAt=protocol.format_time(task.fire_at))
    if task.kind == "sub":
        if error:
            return protocol.event(EventType.SUB_FAILED, TaskScheduledId=task.number, Reason=str(error), Details=None)
        return protocol.event(EventType.SUB_COMPLETED, TaskScheduledId=task.number, Result=json.dumps(result))
    if error:
        return protocol.activity_failure(task.name, task.number, error)
    return protocol.event(EventType.TASK_COMPLETED, TaskScheduledId=task.number, Result=json.dumps(result))


def _end(ending: Ending) -> tuple[Any, Exception | None]:
    if ending.status == "Completed":
        return None if ending.output is None else json.loads(ending.output), None
    return None, Exception(ending.output)


class ShadowedInstance(DirectInstance):
    """The plain generator, and beside it the same orchestrator replayed by the SDK, given the same results."""

    def __init__(self, orchestrate: Any, input_: Any, instance_id: str, clock: Callable[[], datetime], seed: str) -> None:  # noqa: ANN401  a generator function, any JSON
        """Both, yet to begin."""
        self._shadow: ReplayedInstance | None = ReplayedInstance(orchestrate, input_, instance_id, clock, seed)
        self._ends: list[tuple[Task, Any, Exception | None]] = []
        super().__init__(orchestrate, input_, instance_id, clock, seed)

    def begin(self) -> None:
        """Run the first episode of both."""
        if self._shadow:
            self._shadow.begin()
        super().begin()

    @property
    def recordings(self) -> list[Recording]:
        """The ended executions of the shadow; none when the two went different ways."""
        return self._shadow.past if self._shadow else []

    def complete_task(self, task: Task, result: Any = None, error: Exception | None = None) -> None:  # noqa: ANN401  any JSON
        """Give both the end of the task: the shadow once all it waits for has ended, as it continues at a first failure."""
        if self._shadow and task in self.waiting:
            twin = next((one for one in self._shadow.waiting if _same(one, task) and one not in self._told), None)
            if twin is None:
                self._shadow = None
            else:
                self._ends.append((twin, result, error))
                if len(self.waiting) == 1:
                    ends, self._ends = sorted(self._ends, key=lambda end: end[2] is not None), []
                    for end in ends:
                        self._shadow.complete_task(*end)
        super().complete_task(task, result, error)

    @property
    def _told(self) -> list[Task]:
        return [twin for twin, _, _ in self._ends]


def _same(one: Task, other: Task) -> bool:
    return (one.kind, one.name, one.number) == (other.kind, other.name, other.number)


def _plain(input_: Any) -> Any:  # noqa: ANN401  any JSON
    return json.loads(input_) if isinstance(input_, str) else input_


class _AnyName(frozenset[str]):
    """Every activity name is known."""

    def __contains__(self, _: object) -> bool:
        return True
