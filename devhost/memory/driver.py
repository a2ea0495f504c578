"""Runs the plain orchestrator generators over the real activities, without a Functions host: for tests and the simulator."""

from __future__ import annotations

import json
import uuid
from collections.abc import Awaitable, Callable, Generator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

Perform = Callable[[str, dict[str, Any]], Awaitable[Any]]
"""Runs an activity by name: its JSON answer, or raises."""


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


class ContinueAsNewError(Exception):
    """Carries the next input out of an execution."""

    def __init__(self, input_: Any) -> None:  # noqa: ANN401  any JSON
        super().__init__("continued as new")
        self.input = input_


class DrivenContext:
    """The orchestration context of the Durable SDK, as far as this project uses it."""

    def __init__(self, input_: Any, instance_id: str, clock: Callable[[], datetime], seed: str) -> None:  # noqa: ANN401  any JSON
        """`clock` gives the orchestrator's time; `seed` decides the uuids."""
        self.instance_id, self._input, self._clock = instance_id, input_, clock
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


class Driver:
    """Runs one instance to its end, every task in order; records what was called."""

    def __init__(
        self,
        orchestrators: dict[str, Callable[[Any], Generator[Any, Any, Any]]],
        perform: Perform,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """`orchestrators` by name; activities run by `perform`."""
        self.orchestrators, self._perform, self._base = orchestrators, perform, clock
        self._waited = timedelta()
        self.calls: list[tuple[str, dict[str, Any], Any]] = []
        self.executions = 0
        self.custom_status: Any = None

    def _clock(self) -> datetime:
        return self._base() + self._waited

    async def run(self, name: str, input_: Any, instance_id: str, seed: str = "") -> Any:  # noqa: ANN401  any JSON
        """The orchestration's output; raises what it raised."""
        while True:
            self.executions += 1
            context = DrivenContext(input_, instance_id, self._clock, seed or f"{instance_id}:{self.executions}")
            try:
                output = await self._drive(self.orchestrators[name](context), context)
            except ContinueAsNewError as again:
                input_ = again.input
                continue
            return json.loads(json.dumps(output))

    async def _drive(self, generator: Generator[Any, Any, Any], context: DrivenContext) -> Any:  # noqa: ANN401  any JSON
        try:
            task = next(generator)
            while True:
                await self._settle(task)
                self.custom_status = context.custom_status
                task = generator.throw(task.error) if task.error else generator.send(task.result)
        except StopIteration as stop:
            self.custom_status = context.custom_status
            if context.next_input is not None:
                raise ContinueAsNewError(context.next_input) from None
            return stop.value

    async def _settle(self, task: Task) -> None:
        if task.done:
            return
        try:
            match task.kind:
                case "all":
                    for child in task.children:
                        await self._settle(child)
                    task.error = next((child.error for child in task.children if child.error), None)
                    task.result = [child.result for child in task.children]
                case "timer":
                    assert task.fire_at is not None
                    self._waited += max(timedelta(), task.fire_at - self._clock())
                case "sub":
                    task.result = await self.run(task.name, task.input, task.instance)
                case _:
                    asked = json.loads(json.dumps(task.input))
                    task.result = await self._perform(task.name, asked)
                    self.calls.append((task.name, asked, task.result))
        except Exception as error:  # noqa: BLE001  failures reach an orchestrator as plain exceptions with text
            task.error = Exception(f"{type(error).__name__}: {error}")
        task.done = True
