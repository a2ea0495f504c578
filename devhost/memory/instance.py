"""An orchestration that is stepped from outside, directly or through the Durable SDK's own replay, without a Functions host."""

from __future__ import annotations

import json
import uuid
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from azure.durable_functions import Orchestrator
from azure.durable_functions.models import DurableOrchestrationContext

from devhost.functions import protocol
from devhost.functions.protocol import EventType
from devhost.functions.replay import Replay

if TYPE_CHECKING:
    from collections.abc import Callable

    from devhost.functions.replay import Ending


VERSION: str = json.loads((Path(__file__).parents[2] / "host.json").read_text())["extensions"]["durableTask"]["defaultVersion"]
"""What instances carry that begin now."""


@dataclass(frozen=True)
class Recording:
    """An execution that has ended: its history as the extension keeps it, and its end."""

    orchestrator: str
    instance: str
    events: list[dict[str, Any]]
    asked: list[tuple[str, Any]]
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


@dataclass(eq=False)
class Task:
    """Something an orchestrator asked for."""

    kind: str
    name: str = ""
    input: Any = None
    instance: str = ""
    fire_at: datetime | None = None
    children: list[Task] = field(default_factory=list)
    number: int = -1
    """Counts the tasks of an execution in the order they were asked for; answers are addressed to it."""
    execution: str = ""
    """The execution that asked: an answer to any other is dropped."""
    sent: bool = False
    """For the engine: its message is out, or its timer is set."""
    done: bool = False
    result: Any = None
    error: Exception | None = None


@dataclass(frozen=True)
class Unwritten:
    """What an episode did whose history was never written: its messages are out all the same."""

    tasks: list[Task]
    ended: bool = False
    """Whether it ended its instance: then whoever waits is told `output` or `error`."""
    output: Any = None
    error: Exception | None = None


class DrivenContext:
    """The orchestration context of the Durable SDK, as far as this project uses it."""

    def __init__(self, input_: Any, instance_id: str, seed: str) -> None:  # noqa: ANN401  any JSON
        """`seed` makes the uuids its own."""
        self.instance_id, self._input, self._seed = instance_id, input_, seed
        self.version: str | None = VERSION
        self.current_utc_datetime = datetime.min.replace(tzinfo=UTC)
        """When the present episode began: a repeated one has another time."""
        self._uuids = 0
        self.custom_status: Any = None
        self.next_input: Any = None

    def get_input(self) -> Any:  # noqa: ANN401  any JSON
        """The input, as it comes out of JSON."""
        return json.loads(json.dumps(self._input))

    def new_uuid(self) -> str:
        """The next uuid. As in the SDK it depends on the episode's time, so that a repeated episode has another one."""
        self._uuids += 1
        name = f"{self._seed}_{self.instance_id}_{self.current_utc_datetime}_{self._uuids}"
        return str(uuid.uuid5(uuid.NAMESPACE_URL, name))

    def call_activity(self, name: str, input_: Any) -> Task:  # noqa: ANN401  any JSON
        """Ask for an activity."""
        return Task("activity", name, input_)

    def call_sub_orchestrator(self, name: str, input_: Any, instance_id: str) -> Task:  # noqa: ANN401  any JSON
        """Ask for a sub-orchestration."""
        return Task("sub", name, input_, instance_id)

    def task_all(self, tasks: list[Task]) -> Task:
        """All of them."""
        return Task("all", children=tasks)

    def create_timer(self, fire_at: datetime) -> Task:
        """A timer."""
        return Task("timer", fire_at=fire_at)

    def set_custom_status(self, status: Any) -> None:  # noqa: ANN401  any JSON
        """What the portal shows."""
        json.dumps(status)
        self.custom_status = status

    def continue_as_new(self, input_: Any) -> None:  # noqa: ANN401  any JSON
        """Start over with another input."""
        self.next_input = json.loads(json.dumps(input_))


class Instance(Protocol):
    """What the simulation does with an orchestration, however it is run. Each call is an episode."""

    id: str

    @property
    def waiting(self) -> list[Task]:
        """Open activities, timers and sub-orchestrations."""

    @property
    def ended(self) -> bool:
        """Whether it has."""

    @property
    def output(self) -> Any:  # noqa: ANN401  any JSON
        """What it ended with."""

    @property
    def error(self) -> Exception | None:
        """What it failed with."""

    def begin(self) -> None:
        """Run the first episode."""

    def settle(self, task: Task, result: Any = None, error: Exception | None = None) -> None:  # noqa: ANN401  any JSON
        """Give a task its result or failure, and go on as far as that leads. The first answer to a number counts, whoever
        asked; one to a task that is yet to be asked for is kept for it.
        """

    def rehearse(self, task: Task | None = None, result: Any = None, error: Exception | None = None) -> Unwritten:  # noqa: ANN401  any JSON
        """What the episode that `settle` (or `begin`, without a task) would run asks for now. The instance stays as it is: the
        episode's commit was refused.
        """


@dataclass(frozen=True)
class _Answer:
    number: int
    result: Any
    error: Exception | None


class _Execution:
    """A generator from its input on: what it has asked for, by number, and how it ended."""

    def __init__(self, orchestrate: Any, input_: Any, instance_id: str, name: str) -> None:  # noqa: ANN401  a generator function, any JSON
        self.name, self._input = name, input_
        self._context = DrivenContext(input_, instance_id, name)
        self._generator = orchestrate(self._context)
        self.asked: list[Task] = []
        self.waiting: list[Task] = []
        self.ended = False
        self.output: Any = None
        self.error: Exception | None = None

    @property
    def next_input(self) -> Any:  # noqa: ANN401  any JSON
        """What it continues as new with."""
        return self._context.next_input if self.ended and self.error is None else None

    def play(self, moment: datetime, answer: _Answer | None) -> None:
        """One episode: the first, or the one that begins with an answer."""
        self._context.current_utc_datetime = moment
        if answer is None:
            self._advance(None)
            return
        task = self.asked[answer.number]
        task.done, task.result, task.error = True, answer.result, answer.error
        self.waiting.remove(task)
        if not self.waiting:
            self._advance(self._joined())

    def _advance(self, finished: Task | None) -> None:
        try:
            while True:
                if finished is None:
                    task = next(self._generator)
                elif finished.error:
                    task = self._generator.throw(finished.error)
                else:
                    task = self._generator.send(finished.result)
                self._current: Task = task
                self.waiting = [one for one in (task.children if task.kind == "all" else [task]) if not one.done]
                for one in self.waiting:
                    self._number(one)
                if self.waiting:
                    return
                finished = self._joined()
        except StopIteration as stop:
            self.output = stop.value
        except Exception as error:  # noqa: BLE001  a failed orchestration has ended; its run's row says why
            self.error = error
        self.waiting, self.ended = [], True

    def _number(self, task: Task) -> None:
        if task.number < 0:
            task.number, task.execution = len(self.asked), self.name
            self.asked.append(task)

    def _joined(self) -> Task:
        task = self._current
        if task.kind == "all":
            task.error = next((child.error for child in task.children if child.error), None)
            task.result = [child.result for child in task.children]
        task.done = True
        return task


class DirectInstance:
    """The plain generator, stepped by hand."""

    def __init__(self, orchestrate: Any, input_: Any, instance_id: str, clock: Callable[[], datetime], seed: str) -> None:  # noqa: ANN401  a generator function, any JSON
        """An instance of `orchestrate` that is yet to begin; `seed` makes its uuids its own."""
        self.id, self._orchestrate, self._clock, self._seed = instance_id, orchestrate, clock, seed
        self.executions = 0
        self._early: list[tuple[Task, Any, Exception | None]] = []
        self._next_execution(input_)

    def _next_execution(self, input_: Any) -> None:  # noqa: ANN401  any JSON
        self.executions += 1
        self._input = input_
        self._history: list[tuple[datetime, _Answer | None]] = []
        self._execution = self._fresh(input_, f"{self._seed}:{self.executions}")

    def _fresh(self, input_: Any, name: str) -> _Execution:  # noqa: ANN401  any JSON
        return _Execution(self._orchestrate, input_, self.id, name)

    @property
    def waiting(self) -> list[Task]:
        """Open activities, timers and sub-orchestrations."""
        return self._execution.waiting

    @property
    def ended(self) -> bool:
        """Whether it has."""
        return self._execution.ended

    @property
    def output(self) -> Any:  # noqa: ANN401  any JSON
        """What it ended with."""
        return self._execution.output

    @property
    def error(self) -> Exception | None:
        """What it failed with."""
        return self._execution.error

    def begin(self) -> None:
        """Run the first episode."""
        self._episode(None)

    def settle(self, task: Task, result: Any = None, error: Exception | None = None) -> None:  # noqa: ANN401  any JSON
        """Give a task its result or failure; the generator goes on when nothing it waits for is open."""
        answer = self._answer(task, result, error)
        if answer:
            self._episode(answer)
        elif self._yet_to_be_asked(task):
            self._early.append((task, result, error))

    def rehearse(self, task: Task | None = None, result: Any = None, error: Exception | None = None) -> Unwritten:  # noqa: ANN401  any JSON
        """What the episode would ask for now; the instance stays as it is."""
        answer = self._answer(task, result, error) if task else None
        if task and not answer:
            return Unwritten([])
        twin, moment = self._fresh(self._input, self._execution.name), self._clock()
        for episode in self._history:
            twin.play(*episode)
        known = len(twin.asked)
        twin.play(moment, answer)
        tasks = twin.asked[known:]
        while twin.next_input is not None:
            twin = self._fresh(twin.next_input, f"{twin.name}, unwritten at {moment}")
            twin.play(moment, None)
            tasks += twin.asked
        return Unwritten(tasks, twin.ended, twin.output, twin.error)

    def _episode(self, answer: _Answer | None) -> None:
        moment = self._clock()
        self._history.append((moment, answer))
        self._execution.play(moment, answer)
        while (again := self._execution.next_input) is not None:
            self._next_execution(again)
            self._history.append((moment, None))
            self._execution.play(moment, None)
        early, self._early = self._early, []
        for kept in early:
            self.settle(*kept)

    def _answer(self, task: Task, result: Any, error: Exception | None) -> _Answer | None:  # noqa: ANN401  any JSON
        """The answer, when the task's number is open."""
        if task.execution != self._execution.name or all(one.number != task.number for one in self.waiting):
            return None
        return _Answer(task.number, json.loads(json.dumps(result)), Exception(str(error)) if error else None)

    def _yet_to_be_asked(self, task: Task) -> bool:
        return task.execution == self._execution.name and not self.ended and task.number >= len(self._execution.asked)


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
        """How many there were, with the one at work."""
        return len(self.past) + (not self.ended)

    @property
    def history_bytes(self) -> int:
        """Size of the present execution's history as JSON."""
        return len(json.dumps(self._past))

    def _next_execution(self, input_: Any) -> None:  # noqa: ANN401  any JSON
        self._input = json.dumps(input_)
        self._past: list[dict[str, Any]] = []
        self._asked: list[tuple[str, Any]] = []
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
                self.settle(*kept)
            return
        self.past.append(Recording(self._orchestrate.__name__, self.id, events, self._asked, ending))
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
        self._asked.append((task.name, task.input))
        return protocol.event(EventType.TASK_SCHEDULED, task.number, Name=task.name, Version="", Input=None)

    def settle(self, task: Task, result: Any = None, error: Exception | None = None) -> None:  # noqa: ANN401  any JSON
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
        """What the episode would ask for now; the instance stays as it is."""
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
        asked = self._sequence[task.number]
        if asked in self.waiting:
            self.waiting.remove(asked)
        return _event(task, result, error)


def _tasks(replay: Replay, execution: str) -> list[Task]:
    """What a replay has scheduled beyond its history."""
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

    def settle(self, task: Task, result: Any = None, error: Exception | None = None) -> None:  # noqa: ANN401  any JSON
        """Give both the end of the task: the shadow once all it waits for has ended, as it goes on at a first failure."""
        if self._shadow and task in self.waiting:
            twin = next((one for one in self._shadow.waiting if _same(one, task) and one not in self._told), None)
            if twin is None:
                self._shadow = None
            else:
                self._ends.append((twin, result, error))
                if len(self.waiting) == 1:
                    ends, self._ends = sorted(self._ends, key=lambda end: end[2] is not None), []
                    for end in ends:
                        self._shadow.settle(*end)
        super().settle(task, result, error)

    @property
    def _told(self) -> list[Task]:
        return [twin for twin, _, _ in self._ends]


def _same(one: Task, other: Task) -> bool:
    return (one.kind, one.name, one.instance) == (other.kind, other.name, other.instance)


def _plain(input_: Any) -> Any:  # noqa: ANN401  any JSON
    return json.loads(input_) if isinstance(input_, str) else input_


class _AnyName(frozenset[str]):
    """Every activity name is known."""

    def __contains__(self, _: object) -> bool:
        return True
