"""Runs orchestrations over the real activities to their end, without a Functions host: for tests."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Generator
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, ClassVar

from tests.doubles.instance import DirectInstance
from tests.doubles.replayed import ShadowedInstance

if TYPE_CHECKING:
    from tests.doubles.instance import Task
    from tests.doubles.replayed import Recording

Perform = Callable[[str, dict[str, Any]], Awaitable[Any]]
"""Runs an activity by name: its JSON answer, or raises."""


class Driver:
    """Runs one instance to its end, every task in order; records what was called."""

    recorded: ClassVar[list[Recording] | None] = None
    """Where a list is given, the Durable SDK replays each execution too, and the product's histories are put here."""

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

    def _clock(self) -> datetime:
        return self._base() + self._waited

    async def run(self, name: str, input_: Any, instance_id: str, seed: str = "") -> Any:  # noqa: ANN401  any JSON
        """The orchestration's output; raises what it raised."""
        kind = DirectInstance if self.recorded is None else ShadowedInstance
        instance = kind(self.orchestrators[name], input_, instance_id, self._clock, seed or instance_id)
        instance.begin()
        while not instance.ended:
            for task in list(instance.waiting):
                await self._complete_task(instance, task)
        self.executions += instance.executions
        stand_in = not self.orchestrators[name].__module__.startswith("backup_core.")
        if self.recorded is not None and isinstance(instance, ShadowedInstance) and not stand_in:
            self.recorded.extend(instance.recordings)
        if instance.error:
            raise instance.error
        return json.loads(json.dumps(instance.output))

    async def _complete_task(self, instance: DirectInstance, task: Task) -> None:
        result, error = None, None
        try:
            match task.kind:
                case "timer":
                    assert task.fire_at is not None
                    self._waited += max(timedelta(), task.fire_at - self._clock())
                case "sub":
                    result = await self.run(task.name, task.input, task.instance)
                case _:
                    request = json.loads(json.dumps(task.input))
                    result = await self._perform(task.name, request)
                    self.calls.append((task.name, request, result))
        except Exception as raised:  # noqa: BLE001  failures reach an orchestrator as plain exceptions with text
            error = Exception(f"{type(raised).__name__}: {raised}")
        instance.complete_task(task, result, error)
