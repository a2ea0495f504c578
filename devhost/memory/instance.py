"""An orchestration that is stepped from outside, directly or through the Durable SDK's own replay, without a Functions host."""

from __future__ import annotations

import json
import uuid
from dataclasses import dataclass, field
from datetime import datetime, timedelta
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
    done: bool = False
    result: Any = None
    error: Exception | None = None


class DrivenContext:
    """The orchestration context of the Durable SDK, as far as this project uses it."""

    def __init__(self, input_: Any, instance_id: str, clock: Callable[[], datetime], seed: str) -> None:  # noqa: ANN401  any JSON
        """`clock` gives the orchestrator's time; `seed` decides the uuids."""
        self.instance_id, self._input, self._clock = instance_id, input_, clock
        self.version: str | None = VERSION
        self._namespace, self._uuids = uuid.uuid5(uuid.NAMESPACE_URL, seed), 0
        self.custom_status: Any = None
        self.next_input: Any = None

    @property
    def current_utc_datetime(self) -> datetime:
        """The orchestrator's time."""
        return self._clock()

    def get_input(self) -> Any:  # noqa: ANN401  any JSON
        """The input, as it comes out of JSON."""
        return json.loads(json.dumps(self._input))

    def new_uuid(self) -> str:
        """The next uuid."""
        self._uuids += 1
        return str(uuid.uuid5(self._namespace, str(self._uuids)))

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
    """What the simulation does with an orchestration, however it is run."""

    id: str
    waiting: list[Task]
    """Open activities, timers and sub-orchestrations."""
    ended: bool
    output: Any
    error: Exception | None

    def settle(self, task: Task, result: Any = None, error: Exception | None = None) -> None:  # noqa: ANN401  any JSON
        """Give an open task its result or failure, and go on as far as that leads."""


class DirectInstance:
    """The plain generator, stepped by hand."""

    def __init__(self, orchestrate: Any, input_: Any, instance_id: str, clock: Callable[[], datetime], seed: str) -> None:  # noqa: ANN401  a generator function, any JSON
        """Start `orchestrate`; `seed` makes its uuids its own."""
        self.id, self._orchestrate, self._clock, self._seed = instance_id, orchestrate, clock, seed
        self.waiting: list[Task] = []
        self.ended = False
        self.output: Any = None
        self.error: Exception | None = None
        self.executions = 0
        self._begin(input_)

    def _begin(self, input_: Any) -> None:  # noqa: ANN401  any JSON
        self.executions += 1
        self._context = DrivenContext(input_, self.id, self._clock, f"{self._seed}:{self.executions}")
        self._generator = self._orchestrate(self._context)
        self._advance(None)

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
                if self.waiting:
                    return
                finished = self._joined()
        except StopIteration as stop:
            self.output = stop.value
            again = self._context.next_input
            if again is not None:
                self._begin(again)
                return
        except Exception as error:  # noqa: BLE001  a failed orchestration has ended; its run's row says why
            self.error = error
        self.waiting, self.ended = [], True

    def _joined(self) -> Task:
        task = self._current
        if task.kind == "all":
            task.error = next((child.error for child in task.children if child.error), None)
            task.result = [child.result for child in task.children]
        task.done = True
        return task

    def settle(self, task: Task, result: Any = None, error: Exception | None = None) -> None:  # noqa: ANN401  any JSON
        """Give an open task its result or failure; the generator goes on when nothing it waits for is open."""
        if task not in self.waiting:
            return
        task.done, task.result = True, json.loads(json.dumps(result))
        task.error = Exception(str(error)) if error else None
        self.waiting.remove(task)
        if not self.waiting:
            self._advance(self._joined())


class ReplayedInstance:
    """The same orchestrator run by the Durable SDK over a history, as the real extension does."""

    def __init__(self, orchestrate: Any, input_: Any, instance_id: str, clock: Callable[[], datetime], seed: str) -> None:  # noqa: ANN401  a generator function, any JSON
        """Start `orchestrate` by replay; `seed` is part of the execution id."""
        self.id, self._clock, self._seed = instance_id, clock, seed
        self._orchestrate = orchestrate
        self.waiting: list[Task] = []
        self._sequence: dict[int, Task] = {}
        self.ended = False
        self.output: Any = None
        self.error: Exception | None = None
        self.past: list[Recording] = []
        """The executions that have ended, oldest first."""
        self._begin(input_)

    @property
    def executions(self) -> int:
        """How many there were, with the one at work."""
        return len(self.past) + (not self.ended)

    def _begin(self, input_: Any) -> None:  # noqa: ANN401  any JSON
        self._input = json.dumps(input_)
        self._past: list[dict[str, Any]] = []
        self._asked: list[tuple[str, Any]] = []
        self._execution = f"{self._seed}:{len(self.past) + 1}"
        name = self._orchestrate.__name__
        started = protocol.execution_started(self.id, self._execution, name, self._input, VERSION, None)
        self._dispatch([started])

    @property
    def history_bytes(self) -> int:
        """Size of the present execution's history as JSON."""
        return len(json.dumps(self._past))

    def _dispatch(self, arrived: list[dict[str, Any]]) -> None:
        stamp = protocol.format_time(self._clock() + timedelta(microseconds=len(self._past)))
        new = [protocol.event(EventType.ORCHESTRATOR_STARTED), *arrived]
        for item in new:
            item["Timestamp"] = stamp
        events = [*self._past, *new]
        replay = replayed(self._orchestrate, self.id, events)
        out = [self._record(sequence, replay.scheduled[sequence]) for sequence in sorted(replay.scheduled)]
        for item in new:
            item["IsPlayed"] = True
        self._past = [*events, *out]
        ending = replay.ending
        if ending is None:
            return
        self.past.append(Recording(self._orchestrate.__name__, self.id, events, self._asked, ending))
        if ending.status == "ContinuedAsNew":
            self._begin(ending.next_input)
            return
        if "Non-Deterministic" in (ending.output or ""):
            raise AssertionError(ending.output)
        self.waiting, self.ended = [], True
        if ending.status == "Completed":
            self.output = None if ending.output is None else json.loads(ending.output)
        else:
            self.error = Exception(ending.output)

    def _record(self, sequence: int, scheduled: Any) -> dict[str, Any]:  # noqa: ANN401  a Scheduled
        if scheduled.kind == "timer":
            task = Task("timer", fire_at=scheduled.fire_at)
            event = protocol.event(EventType.TIMER_CREATED, sequence, FireAt=protocol.format_time(scheduled.fire_at))
        elif scheduled.kind == "sub":
            task = Task("sub", scheduled.name, _plain(scheduled.input), scheduled.instance)
            fields = {"Name": scheduled.name, "Version": VERSION, "InstanceId": scheduled.instance, "Input": None}
            event = protocol.event(EventType.SUB_CREATED, sequence, **fields)
        else:
            task = Task("activity", scheduled.name, _plain(scheduled.input))
            fields = {"Name": scheduled.name, "Version": "", "Input": None}
            event = protocol.event(EventType.TASK_SCHEDULED, sequence, **fields)
            self._asked.append((task.name, task.input))
        self._sequence[sequence] = task
        self.waiting.append(task)
        return event

    def settle(self, task: Task, result: Any = None, error: Exception | None = None) -> None:  # noqa: ANN401  any JSON
        """Append the task's end to the history and replay."""
        if task in self.waiting:
            self._dispatch([self._end(task, result, error)])

    def settle_all(self, results: list[tuple[Task, Any]]) -> None:
        """Append the ends of several tasks, and replay once."""
        self._dispatch([self._end(task, result, None) for task, result in results])

    def _end(self, task: Task, result: Any, error: Exception | None) -> dict[str, Any]:  # noqa: ANN401  any JSON
        self.waiting.remove(task)
        task.done = True
        sequence = next(number for number, one in self._sequence.items() if one is task)
        if task.kind == "timer":
            assert task.fire_at is not None
            return protocol.event(EventType.TIMER_FIRED, TimerId=sequence, FireAt=protocol.format_time(task.fire_at))
        if task.kind == "sub":
            if error:
                return protocol.event(EventType.SUB_FAILED, TaskScheduledId=sequence, Reason=str(error), Details=None)
            return protocol.event(EventType.SUB_COMPLETED, TaskScheduledId=sequence, Result=json.dumps(result))
        if error:
            return protocol.activity_failure(task.name, sequence, error)
        return protocol.event(EventType.TASK_COMPLETED, TaskScheduledId=sequence, Result=json.dumps(result))


class ShadowedInstance(DirectInstance):
    """The plain generator, and beside it the same orchestrator replayed by the SDK, given the same results."""

    def __init__(self, orchestrate: Any, input_: Any, instance_id: str, clock: Callable[[], datetime], seed: str) -> None:  # noqa: ANN401  a generator function, any JSON
        """Start both."""
        self._shadow: ReplayedInstance | None = ReplayedInstance(orchestrate, input_, instance_id, clock, seed)
        self._ends: list[tuple[Task, Any, Exception | None]] = []
        super().__init__(orchestrate, input_, instance_id, clock, seed)

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
