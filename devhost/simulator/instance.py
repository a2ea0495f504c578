"""An orchestration that is stepped from outside, directly or through the Durable SDK's own replay."""

from __future__ import annotations

import json
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Protocol

from azure.durable_functions import Orchestrator
from azure.durable_functions.models import DurableOrchestrationContext

from devhost.functions import protocol
from devhost.functions.protocol import EventType
from devhost.functions.replay import Replay
from devhost.memory.driver import DrivenContext, Task

if TYPE_CHECKING:
    from collections.abc import Callable


class Instance(Protocol):
    """What the simulation does with an orchestration, however it is run."""

    id: str
    waiting: list[Task]
    """Open activities, timers and sub-orchestrations."""
    ended: bool

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
        self.executions = 0
        self._begin(input_)

    def _begin(self, input_: Any) -> None:  # noqa: ANN401  any JSON
        self.executions += 1
        self._input = json.dumps(input_)
        self._past: list[dict[str, Any]] = []
        self._execution = f"{self._seed}:{self.executions}"
        started = protocol.execution_started(self.id, self._execution, "backup_disk", self._input, None, None)
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
        body = {"history": events, "input": json.loads(self._input), "instanceId": self.id, "isReplaying": bool(self._past),
                "parentInstanceId": None, "upperSchemaVersion": 1, "upperSchemaVersionNew": 2,
                "maximumShortTimerDuration": "6.00:00:00", "longRunningTimerIntervalDuration": "3.00:00:00"}  # fmt: skip
        try:
            answer = protocol.answer_of(
                Orchestrator(self._orchestrate).handle(DurableOrchestrationContext.from_json(json.dumps(body)))
            )
        except Exception as error:
            failed = protocol.answer_of_failure(error)
            if failed is None:
                raise
            answer = failed
        replay = Replay(answer, self._execution, _AnyName()).run(events, "backup_disk")
        out = [self._record(sequence, replay.scheduled[sequence]) for sequence in sorted(replay.scheduled)]
        for item in new:
            item["IsPlayed"] = True
        self._past = [*events, *out]
        if replay.ending and replay.ending.status == "ContinuedAsNew":
            self._begin(replay.ending.next_input)
        elif replay.ending:
            if "Non-Deterministic" in (replay.ending.output or ""):
                raise AssertionError(replay.ending.output)
            self.waiting, self.ended = [], True

    def _record(self, sequence: int, scheduled: Any) -> dict[str, Any]:  # noqa: ANN401  a Scheduled
        if scheduled.kind == "timer":
            task = Task("timer", fire_at=scheduled.fire_at)
            event = protocol.event(EventType.TIMER_CREATED, sequence, FireAt=protocol.format_time(scheduled.fire_at))
        else:
            task = Task("activity", scheduled.name, json.loads(scheduled.input))
            event = protocol.event(EventType.TASK_SCHEDULED, sequence, Name=scheduled.name, Version="", Input=None)
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
        if error:
            return protocol.activity_failure(task.name, sequence, error)
        return protocol.event(EventType.TASK_COMPLETED, TaskScheduledId=sequence, Result=json.dumps(result))


class _AnyName(frozenset[str]):
    """Every activity name is known."""

    def __contains__(self, _: object) -> bool:
        return True
