"""An orchestration that is stepped from outside as the plain generator it is, without a Functions host."""

from __future__ import annotations

import json
import uuid
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable


VERSION: str = json.loads((Path(__file__).parents[2] / "host.json").read_text())["extensions"]["durableTask"]["defaultVersion"]
"""What instances carry that begin now."""


@dataclass(eq=False)
class Task:
    """A call that an orchestrator has scheduled."""

    kind: str
    name: str = ""
    input: Any = None
    instance: str = ""
    fire_at: datetime | None = None
    children: list[Task] = field(default_factory=list)
    number: int = -1
    """The task's number in its execution, in the order of the calls; answers are addressed to it."""
    execution: str = ""
    """The execution that made the call: an answer to any other is dropped."""
    sent: bool = False
    """For the engine: its message is out, or its timer is set."""
    done: bool = False
    result: Any = None
    error: Exception | None = None


@dataclass(frozen=True)
class Unwritten:
    """The messages and the end of an episode whose history was never written: its messages are sent all the same."""

    tasks: list[Task]
    ended: bool = False
    """Whether the episode ended its instance: then the parent receives `output` or `error`."""
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
        """Schedule an activity."""
        return Task("activity", name, input_)

    def call_sub_orchestrator(self, name: str, input_: Any, instance_id: str = "") -> Task:  # noqa: ANN401  any JSON
        """Schedule a sub-orchestration."""
        return Task("sub", name, input_, instance_id)

    def task_all(self, tasks: list[Task]) -> Task:
        """All of them."""
        return Task("all", children=tasks)

    def create_timer(self, fire_at: datetime) -> Task:
        """A timer."""
        return Task("timer", fire_at=fire_at)

    def set_custom_status(self, status: Any) -> None:  # noqa: ANN401  any JSON
        """Accept the status that the portal would show."""
        json.dumps(status)
        self.custom_status = status

    def continue_as_new(self, input_: Any) -> None:  # noqa: ANN401  any JSON
        """Start over with another input."""
        self.next_input = json.loads(json.dumps(input_))


class Instance(Protocol):
    """An orchestration as the simulation runs it. Each call is an episode."""

    id: str

    @property
    def waiting(self) -> list[Task]:
        """Open activities, timers and sub-orchestrations."""

    @property
    def ended(self) -> bool:
        """Whether the instance has ended."""

    @property
    def output(self) -> Any:  # noqa: ANN401  any JSON
        """The instance's output."""

    @property
    def error(self) -> Exception | None:
        """The instance's error."""

    def begin(self) -> None:
        """Run the first episode."""

    def complete_task(self, task: Task, result: Any = None, error: Exception | None = None) -> None:  # noqa: ANN401  any JSON
        """Deliver a task's result or failure, and run until the next open task.

        The first answer to a number counts, whichever episode made the call. An answer to a future task is kept for it.
        """

    def rehearse(self, task: Task | None = None, result: Any = None, error: Exception | None = None) -> Unwritten:  # noqa: ANN401  any JSON
        """The calls that the next episode of `complete_task` would make, or of `begin` without a task. Changes nothing."""


@dataclass(frozen=True)
class Answer:
    """The end of the task with this number."""

    number: int
    result: Any
    error: Exception | None


class Execution:
    """A generator from its input on: its calls, by number, and its end."""

    def __init__(self, orchestrate: Any, input_: Any, instance_id: str, name: str) -> None:  # noqa: ANN401  a generator function, any JSON
        self.name, self._input = name, input_
        self._context = DrivenContext(input_, instance_id, name)
        self._generator = orchestrate(self._context)
        self.calls: list[Task] = []
        self.waiting: list[Task] = []
        self.ended = False
        self.output: Any = None
        self.error: Exception | None = None

    @property
    def next_input(self) -> Any:  # noqa: ANN401  any JSON
        """The input with which it continues as new."""
        return self._context.next_input if self.ended and self.error is None else None

    def play(self, moment: datetime, answer: Answer | None) -> None:
        """One episode: the first, or the one that begins with an answer."""
        self._context.current_utc_datetime = moment
        if answer is None:
            self._advance(None)
            return
        task = self.calls[answer.number]
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
            task.number, task.execution = len(self.calls), self.name
            task.instance = task.instance or f"{task.execution}:{task.number}"
            self.calls.append(task)

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
        self._history: list[tuple[datetime, Answer | None]] = []
        self._execution = self._fresh(input_, f"{self._seed}:{self.executions}")

    def _fresh(self, input_: Any, name: str) -> Execution:  # noqa: ANN401  any JSON
        return Execution(self._orchestrate, input_, self.id, name)

    @property
    def waiting(self) -> list[Task]:
        """Open activities, timers and sub-orchestrations."""
        return self._execution.waiting

    @property
    def ended(self) -> bool:
        """Whether the instance has ended."""
        return self._execution.ended

    @property
    def output(self) -> Any:  # noqa: ANN401  any JSON
        """The instance's output."""
        return self._execution.output

    @property
    def error(self) -> Exception | None:
        """The instance's error."""
        return self._execution.error

    def begin(self) -> None:
        """Run the first episode."""
        self._episode(None)

    def complete_task(self, task: Task, result: Any = None, error: Exception | None = None) -> None:  # noqa: ANN401  any JSON
        """Deliver a task's result or failure; the generator continues when no task that it waits for is open."""
        answer = self._answer(task, result, error)
        if answer:
            self._episode(answer)
        elif self._is_early(task):
            self._early.append((task, result, error))

    def rehearse(self, task: Task | None = None, result: Any = None, error: Exception | None = None) -> Unwritten:  # noqa: ANN401  any JSON
        """The calls that the episode would make now; the instance stays as it is."""
        answer = self._answer(task, result, error) if task else None
        if task and not answer:
            return Unwritten([])
        twin, moment = self._fresh(self._input, self._execution.name), self._clock()
        for episode in self._history:
            twin.play(*episode)
        known = len(twin.calls)
        twin.play(moment, answer)
        tasks = twin.calls[known:]
        while twin.next_input is not None:
            twin = self._fresh(twin.next_input, f"{twin.name}, unwritten at {moment}")
            twin.play(moment, None)
            tasks += twin.calls
        return Unwritten(tasks, twin.ended, twin.output, twin.error)

    def _episode(self, answer: Answer | None) -> None:
        moment = self._clock()
        self._history.append((moment, answer))
        self._execution.play(moment, answer)
        while (again := self._execution.next_input) is not None:
            self._next_execution(again)
            self._history.append((moment, None))
            self._execution.play(moment, None)
        early, self._early = self._early, []
        for kept in early:
            self.complete_task(*kept)

    def _answer(self, task: Task, result: Any, error: Exception | None) -> Answer | None:  # noqa: ANN401  any JSON
        """The answer, when the task's number is open."""
        if task.execution != self._execution.name or all(one.number != task.number for one in self.waiting):
            return None
        return Answer(task.number, json.loads(json.dumps(result)), Exception(str(error)) if error else None)

    def _is_early(self, task: Task) -> bool:
        return task.execution == self._execution.name and not self.ended and task.number >= len(self._execution.calls)
