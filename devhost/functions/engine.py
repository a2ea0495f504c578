"""Runs orchestrations by replay and activities at least once, over the hub.

One pump per instance reads its messages, has the orchestrator replayed, and commits history, new work, new messages and the
status in one transaction. What was in flight when the process died is found in the hub at the next start and runs again.
"""

from __future__ import annotations

import asyncio
import heapq
import inspect
import json
import logging
import os
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import azure.functions as func

from devhost.functions import protocol
from devhost.functions.protocol import EventType
from devhost.functions.replay import Replay, Scheduled

if TYPE_CHECKING:
    from collections.abc import Coroutine, Sequence

    from devhost.functions.hub import Hub, Instance, Work
    from devhost.functions.index import App, AppFunction
    from devhost.functions.protocol import Event

log = logging.getLogger("devhost.functions")


class InvocationContext(func.Context):  # type: ignore[misc]  # azure.functions ships no types
    """What a function that declares `context` receives."""

    def __init__(self, function: AppFunction) -> None:
        """A fresh invocation of `function`."""
        self._function, self._id = function, str(uuid.uuid4())

    @property
    def invocation_id(self) -> str:
        """A unique id of this invocation."""
        return self._id

    @property
    def function_name(self) -> str:
        """The function's name."""
        return self._function.name

    @property
    def function_directory(self) -> str:
        """Empty: this host has one directory."""
        return ""


class Engine:
    """The dispatcher. Everything that touches the hub runs on one event loop."""

    def __init__(self, app: App, hub: Hub, origin: str) -> None:
        """Serve `app` from `hub`; `origin` is the host's own http address."""
        cores = os.cpu_count() or 1
        self.app, self.hub, self.origin = app, hub, origin
        self._threads = ThreadPoolExecutor(max_workers=8, thread_name_prefix="function")
        self._activity_slots = asyncio.Semaphore(app.durable.get("maxConcurrentActivityFunctions") or 10 * cores)
        self._orchestrator_slots = asyncio.Semaphore(app.durable.get("maxConcurrentOrchestratorFunctions") or 5 * cores)
        self._pumps: set[str] = set()
        self._kicked: set[str] = set()
        self._alarms: list[tuple[float, str]] = []
        self._alarm_set = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        # (execution, history as JSON) of live instances, so that a dispatch need not read the past again.
        self._past: dict[str, tuple[str, list[str]]] = {}

    # -- life -----------------------------------------------------------------------------------------

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Run `work` beside everything else, kept alive until done."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def start(self) -> None:
        """Pick up what an earlier process left: unread messages, unfinished activities, timers."""
        for instance_id, at in self.hub.waiting():
            self._alarm(at, instance_id)
        for work in self.hub.open_work():
            self.spawn(self._run(work))
        self.spawn(self._clock())

    def _alarm(self, at: float, instance_id: str) -> None:
        heapq.heappush(self._alarms, (at, instance_id))
        self._alarm_set.set()

    async def _clock(self) -> None:
        while True:
            while self._alarms and self._alarms[0][0] <= time.time():
                self.wake(heapq.heappop(self._alarms)[1])
            self._alarm_set.clear()
            pause = max(0.0, self._alarms[0][0] - time.time()) if self._alarms else None
            try:
                await asyncio.wait_for(self._alarm_set.wait(), pause)
            except TimeoutError:
                continue

    def wake(self, instance_id: str) -> None:
        """Have the instance's messages read soon."""
        self._kicked.add(instance_id)
        if instance_id not in self._pumps:
            self._pumps.add(instance_id)
            self.spawn(self._pump(instance_id))

    async def _pump(self, instance_id: str) -> None:
        try:
            while instance_id in self._kicked:
                self._kicked.discard(instance_id)
                async with self._orchestrator_slots:
                    while await self._dispatch(instance_id):
                        pass
        except Exception:
            log.exception("dispatch of %s broke; it is tried again at its next message", instance_id)
        finally:
            self._pumps.discard(instance_id)
            if instance_id in self._kicked:
                self.wake(instance_id)

    # -- one dispatch ---------------------------------------------------------------------------------

    async def _dispatch(self, instance_id: str) -> bool:
        rows = self.hub.messages(instance_id, time.time())
        if not rows:
            return False
        numbers = [row["number"] for row in rows]
        instance = self.hub.instance(instance_id)
        if instance is None or instance.ended:
            with self.hub:
                self.hub.consume(numbers)
            self._past.pop(instance_id, None)
            return True
        execution, past = self._past.get(instance_id, ("", []))
        if execution != instance.execution:
            past = self.hub.history(instance_id)
        new = [json.loads(row["event"]) for row in rows if row["execution"] in (None, instance.execution)]
        # The start goes first, whatever arrived before it, and only once.
        starts = [item for item in new if item["EventType"] == EventType.EXECUTION_STARTED]
        others = [item for item in new if item["EventType"] != EventType.EXECUTION_STARTED]
        if not past and not starts:
            return False
        new = [protocol.event(EventType.ORCHESTRATOR_STARTED), *([] if past else starts[:1]), *others]
        answer = await self._ask(instance, past, new)
        events = [*map(json.loads, past), *new]
        replay = Replay(answer, instance.execution, self.app.activities.keys()).run(events, instance.name)
        if problem := protocol.custom_status_problem(answer):
            replay.fail(instance.name, problem)
            answer["customStatus"] = None
        self._commit(instance, past, new, replay, numbers)
        return True

    async def _ask(self, instance: Instance, past: Sequence[str], new: Sequence[Event]) -> dict[str, Any]:
        function = self.app.orchestrators.get(instance.name.lower())
        if function is None:
            message = f"The function '{instance.name}' doesn't exist, is disabled, or is not an orchestrator function."
            return {"actions": [[]], "error": message}
        trigger = protocol.orchestrator_trigger(instance.id, instance.parent, instance.input, past, new)
        name = function.trigger.name
        try:
            text = await asyncio.get_running_loop().run_in_executor(self._threads, lambda: function.call(**{name: trigger}))
            return protocol.answer_of(text)
        except Exception as error:
            answer = protocol.answer_of_failure(error)
            if answer is None:
                log.exception("orchestrator %s broke outside the Durable SDK", function.name)
                answer = {"actions": [[]], "error": f"{type(error).__name__}: {error}"}
            return answer

    def _commit(self, instance: Instance, past: list[str], new: list[Event], replay: Replay, numbers: list[int]) -> None:
        for item in new:
            item["IsPlayed"] = item["EventType"] != EventType.ORCHESTRATOR_STARTED
        status = self._custom_status(instance, replay.answer)
        work: list[Work] = []
        woken: set[str] = set()
        alarms: list[tuple[float, str]] = []
        ending = replay.ending
        with self.hub as hub:
            out = [
                self._record(instance, sequence, replay.scheduled[sequence], work, woken, alarms)
                for sequence in sorted(replay.scheduled)
            ]
            hub.consume(numbers)
            if ending and ending.status == "ContinuedAsNew":
                hub.restart(instance, json.dumps(ending.next_input), status)
                for item in replay.carried_events:
                    hub.post(instance.id, item)
                self._past.pop(instance.id, None)
                woken.add(instance.id)
            else:
                if ending:
                    number = protocol.STATUS_NUMBERS[ending.status]
                    out.append(
                        protocol.event(
                            EventType.EXECUTION_COMPLETED, ending.sequence, OrchestrationStatus=number, Result=ending.output
                        )
                    )
                    woken |= self._tell_parent(instance, ending.status, ending.output)
                texts = [json.dumps(item) for item in [*new, *out, protocol.event(EventType.ORCHESTRATOR_COMPLETED)]]
                hub.append(instance.id, len(past), texts)
                running = "Suspended" if replay.suspended else "Running"
                hub.update(
                    instance.id,
                    status=ending.status if ending else running,
                    output=ending.output if ending else replay.pause_reason,
                    custom_status=status,
                )
                if ending:
                    self._past.pop(instance.id, None)
                else:
                    self._past[instance.id] = (instance.execution, past + texts)
        for activity in work:
            self.spawn(self._run(activity))
        for at, instance_id in alarms:
            self._alarm(at, instance_id)
        for instance_id in woken:
            self.wake(instance_id)

    def _record(
        self,
        instance: Instance,
        sequence: int,
        task: Scheduled,
        work: list[Work],
        woken: set[str],
        alarms: list[tuple[float, str]],
    ) -> Event:
        if task.kind == "activity":
            work.append(self.hub.add_work(instance.id, instance.execution, sequence, task.name, task.input))
            return protocol.event(EventType.TASK_SCHEDULED, sequence, Name=task.name, Version="", Input=None)
        if task.kind == "timer":
            assert task.fire_at is not None
            fire_at, at = protocol.format_time(task.fire_at), task.fire_at.timestamp()
            fired = protocol.event(EventType.TIMER_FIRED, TimerId=sequence, FireAt=fire_at)
            self.hub.post(instance.id, fired, execution=instance.execution, visible_at=at)
            alarms.append((at, instance.id))
            return protocol.event(EventType.TIMER_CREATED, sequence, FireAt=fire_at)
        parent, version = (instance.id, instance.execution, sequence), task.version or self.app.version
        # A living instance of that id is replaced without a word. An id that begins with @ is an entity's: the caller waits.
        if not task.instance.startswith("@"):
            self.hub.create(task.instance, task.name, json.dumps(task.input), version, parent)
            self._past.pop(task.instance, None)
            woken.add(task.instance)
        return protocol.event(
            EventType.SUB_CREATED, sequence, Name=task.name, Version=version, InstanceId=task.instance, Input=None
        )

    def _tell_parent(self, instance: Instance, status: str, output: str | None) -> set[str]:
        if instance.parent is None:
            return set()
        if status == "Completed":
            told = protocol.event(EventType.SUB_COMPLETED, TaskScheduledId=instance.parent_task, Result=output)
        else:
            told = protocol.child_failure(instance.parent_task or 0, status, output)
        self.hub.post(instance.parent, told, execution=instance.parent_execution)
        return {instance.parent}

    @staticmethod
    def _custom_status(instance: Instance, answer: dict[str, Any]) -> str | None:
        if answer.get("customStatus") is None:
            return instance.custom_status
        return protocol.written(answer["customStatus"])

    # -- instances, from outside --------------------------------------------------------------------------

    def start_new(self, instance_id: str, name: str, raw_input: str | None, version: str | None = None) -> None:
        """Create the instance and run it."""
        with self.hub:
            self.hub.create(instance_id, name, raw_input, version or self.app.version)
        self._past.pop(instance_id, None)
        self.wake(instance_id)

    def send(self, instance_id: str, item: Event) -> None:
        """Send an event to the instance's present execution."""
        with self.hub:
            self.hub.post(instance_id, item)
        self.wake(instance_id)

    # -- activities ---------------------------------------------------------------------------------------

    async def _run(self, work: Work) -> None:
        async with self._activity_slots:
            instance = self.hub.instance(work.id)
            wanted = instance and instance.execution == work.execution and not instance.ended
            told = await self._activity(work) if wanted else None
            with self.hub:
                self.hub.finish_work(work.number)
                if told:
                    self.hub.post(work.id, told, execution=work.execution)
        if told:
            self.wake(work.id)

    async def _activity(self, work: Work) -> Event:
        function = self.app.activities[work.name.lower()]
        try:
            value = await self.invoke(function, {function.trigger.name: protocol.activity_argument(work.input)})
            return protocol.event(EventType.TASK_COMPLETED, TaskScheduledId=work.task, Result=protocol.activity_result(value))
        except Exception as error:  # noqa: BLE001  any failure of the app's code is history, as in the real host
            log.warning("activity %s of %s failed: %s: %s", work.name, work.id, type(error).__name__, error)
            return protocol.activity_failure(function.name, work.task, error)

    async def invoke(self, function: AppFunction, arguments: dict[str, Any]) -> Any:  # noqa: ANN401  what the app returns
        """Run a function as the worker would: a coroutine on the loop, a plain function on a thread."""
        for name in function.client_parameters:
            arguments[name] = protocol.client_binding(self.origin, self.app.hub)
        if function.wants_context:
            arguments["context"] = InvocationContext(function)
        if function.is_async:
            return await function.call(**arguments)
        value = await asyncio.get_running_loop().run_in_executor(self._threads, lambda: function.call(**arguments))
        return await value if inspect.isawaitable(value) else value
