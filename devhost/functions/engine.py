# Long: one pump: what it reads, plays, sends and writes belongs together.
"""Runs orchestrations by replay and activities at least once, over the hub, beside other workers of the same hub.

One pump per instance reads its messages, has the orchestrator replayed, sends what the episode asks for and then commits
history and status. What a worker has taken is invisible to the others while it lives; what it held when it died becomes
visible again after some time and runs again.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import json
import logging
import os
import sqlite3
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import azure.functions as func

from devhost.functions import protocol
from devhost.functions.episodes import Episode, read
from devhost.functions.faults import Faults
from devhost.functions.partitions import Partitions
from devhost.functions.protocol import EventType
from devhost.functions.replay import Replay

if TYPE_CHECKING:
    from collections.abc import Collection, Coroutine, Sequence

    from devhost.functions.episodes import Child
    from devhost.functions.faults import Rule
    from devhost.functions.hub import Hub, Instance, Work
    from devhost.functions.index import App, AppFunction
    from devhost.functions.protocol import Event

log = logging.getLogger("devhost.functions")

POLL_SECONDS, ALONE_SECONDS = 0.02, 0.25
"""How often the hub is asked whether another worker changed it; and by the only worker, which waits for another to come."""
AGAIN_SECONDS = 1.0
"""How long the messages of a refused episode rest; the real extension waits two seconds at first."""
EARLY_SECONDS = 0.2
"""How long an answer rests to a call that is not yet committed."""


class InvocationContext(func.Context):  # type: ignore[misc]  # azure.functions ships no types
    """The `context` of a function that declares it."""

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
    """One worker of the hub. Everything that touches the hub runs on one event loop."""

    def __init__(self, app: App, hub: Hub, origin: str) -> None:
        """Serve `app` from `hub`; `origin` is the host's own http address."""
        cores = os.cpu_count() or 1
        self.app, self.hub, self.origin = app, hub, origin
        self._threads = ThreadPoolExecutor(max_workers=8, thread_name_prefix="function")
        self._activity_slots = asyncio.Semaphore(app.durable.get("maxConcurrentActivityFunctions") or 10 * cores)
        self._orchestrator_slots = asyncio.Semaphore(app.durable.get("maxConcurrentOrchestratorFunctions") or 5 * cores)
        self._pumps: set[str] = set()
        self._kicked: set[str] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        # (execution, history as JSON) of live instances, so that an episode need not read the past again.
        self._past: dict[str, tuple[str, list[str]]] = {}
        self.partitions, self.faults = Partitions(hub, app.invisible_seconds), Faults(hub)
        self._early: dict[str, set[int]] = {}
        self._held: dict[str, asyncio.Event] = {}
        self._activities: set[int] = set()
        self._stirred = asyncio.Event()

    # -- life -----------------------------------------------------------------------------------------

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Run `work` beside everything else, kept alive until done."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def start(self) -> None:
        """Join the hub's workers, and look for what is to be done until the process ends."""
        self.partitions.renew(time.time())
        self.spawn(self._watch())

    async def _watch(self) -> None:
        """Begin this worker's messages to itself at once, and poll the hub for all others.

        That is what other workers sent, timers that are due, and what a dead worker held.
        """
        due = 0.0
        while True:
            try:
                moved = self.partitions.renew_in_time()
                if moved or self._stirred.is_set() or self.hub.has_changed() or due <= time.time():
                    self._stirred.clear()
                    due = self._look()
            except sqlite3.OperationalError:
                log.exception("the hub could not be looked through; it is tried again")
            pause = min(POLL_SECONDS if self.partitions.shared else ALONE_SECONDS, max(0.0, due - time.time()))
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stirred.wait(), pause)

    def _look(self) -> float:
        """Begin what is visible, and return the moment (POSIX seconds) at which more will be."""
        now = time.time()
        self.hub.release_late()
        for instance_id in self.hub.readable(now):
            self.wake(instance_id)
        for work in self.hub.visible_work(now):
            self._begin(work)
        return self.hub.next_visible(now)

    def wake(self, instance_id: str) -> None:
        """Have the instance's messages read soon: here, or by the worker whose partition it is in."""
        if not self.partitions.has(instance_id):
            return
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
            log.exception("an episode of %s broke; its messages are delivered again", instance_id)
        finally:
            self._pumps.discard(instance_id)
            if instance_id in self._kicked:
                self.wake(instance_id)

    # -- episodes -------------------------------------------------------------------------------------

    async def _dispatch(self, instance_id: str) -> bool:
        """Read what is visible and run an episode. False when there was nothing to read."""
        if not self.hub.messages(instance_id, time.time()):
            return False
        with self.hub:
            rows = self.hub.take_messages(instance_id, time.time(), self.partitions.until("messages"))
            self._repeat(rows)
        await self._read(instance_id, rows)
        return True

    def _repeat(self, rows: Sequence[sqlite3.Row]) -> None:
        for row in rows:
            item = json.loads(row["event"])
            if not row["copy"] and (
                rule := self.faults.met("repeatMessage", row["id"], protocol.EVENT_NAMES[item["EventType"]])
            ):
                late, at = self._when(rule, row["id"])
                self.hub.post(row["id"], item, execution=row["execution"], visible_at=at, late=late, copy=True)
                self._stirred.set()

    def _when(self, rule: Rule, instance_id: str) -> tuple[str | None, float]:
        """When something is visible under a rule: after the end of an instance, or at a moment (POSIX seconds)."""
        return (self.hub.root(instance_id) if rule.late else None), time.time() + rule.seconds

    async def _read(self, instance_id: str, rows: Sequence[sqlite3.Row]) -> None:
        numbers = {row["number"] for row in rows}
        instance = self.hub.instance(instance_id)
        if instance is None or instance.ended:
            with self.hub:
                self.hub.consume(numbers)
            self._past.pop(instance_id, None)
            self._early.pop(instance_id, None)
            return
        past = self._history(instance)
        events = [json.loads(text) for text in past]
        found = read(rows, instance, events)
        if found.early:
            self._early.setdefault(instance_id, set()).update(found.early)
            self._put_off(found.early, EARLY_SECONDS)
        numbers.difference_update(found.early)
        if found.delivered:
            new = [protocol.event(EventType.ORCHESTRATOR_STARTED), *found.delivered]
            episode = self._episode(instance, past, events, new, numbers)
            with self.partitions.holding("messages", numbers):
                if self.faults.met("runTwice", instance.id, instance.name):
                    again = [protocol.event(EventType.ORCHESTRATOR_STARTED), *map(dict, found.delivered)]
                    await asyncio.gather(episode, self._episode(instance, past, events, again, numbers))
                else:
                    await episode
        elif numbers:
            with self.hub:
                self.hub.consume(numbers)

    async def _episode(
        self, instance: Instance, past: list[str], events: list[Event], new: list[Event], numbers: Collection[int]
    ) -> None:
        answer = await self._ask(instance, past, new)
        replay = Replay(answer, instance.execution, self.app.activities.keys()).run([*events, *new], instance.name)
        if problem := protocol.custom_status_problem(answer):
            replay.fail(instance.name, problem)
            answer["customStatus"] = None
        self._finish(Episode(instance, past, new, numbers, replay, self.app.version))

    def _finish(self, episode: Episode) -> None:
        """Send the episode's messages, then commit it. A crash in between leaves the messages of an episode that never was."""
        instance = episode.instance
        with self.hub as hub:
            refusal = self.faults.met("refuseCommit", instance.id, instance.name)
            sent = episode.send(hub, hub.root(instance.id) if refusal and refusal.late else None)
            sent.woken.update(child.instance for child in sent.children if self._begin_child(child, instance.id))
        with self.hub as hub:
            history = None if refusal else episode.commit(hub, sent)
            if history is not None and (early := self._early.pop(instance.id, None)):
                hub.hide_messages(early, 0.0)  # its calls are committed now
                sent.woken.add(instance.id)
        if history is None:
            log.warning("the commit of an episode of %s was refused: the episode runs again", instance.id)
            self._put_off(episode.numbers, refusal.seconds if refusal else AGAIN_SECONDS)
        if history and not episode.replay.ending:
            self._past[instance.id] = (instance.execution, history)
        else:
            self._past.pop(instance.id, None)
        if not sent.late:
            for activity in sent.work:
                self._begin(activity)
        if sent.has_timers or episode.replay.ending:
            self._stirred.set()
        for instance_id in sent.woken:
            self.wake(instance_id)

    def _begin_child(self, child: Child, parent: str) -> bool:
        """Create it in this transaction; or later, under a rule, and answer False."""
        rule = self.faults.met("holdChild", parent, child.name)
        if rule:
            self.spawn(self._begin_late(child, self._held.setdefault(child.name, asyncio.Event()), rule.seconds))
            return False
        self.hub.create(*child)
        if held := self._held.pop(child.name, None):
            held.set()
        return True

    async def _begin_late(self, child: Child, next_one: asyncio.Event, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(next_one.wait(), seconds)
        with self.hub:
            self.hub.create(*child)
        self.wake(child.instance)

    def _put_off(self, numbers: Collection[int], seconds: float) -> None:
        """Make messages visible again after so many seconds."""
        with self.hub as hub:
            hub.hide_messages(numbers, time.time() + seconds)
        self._stirred.set()

    def _history(self, instance: Instance) -> list[str]:
        execution, past = self._past.get(instance.id, ("", []))
        if execution != instance.execution or len(past) != self.hub.length(instance.id):
            past = self.hub.history(instance.id)
        return past

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

    # -- instances, from outside --------------------------------------------------------------------------

    def start_new(self, instance_id: str, name: str, raw_input: str | None, version: str | None = None) -> None:
        """Create the instance and run it."""
        with self.hub:
            self.hub.create(instance_id, name, raw_input, version or self.app.version)
        self.wake(instance_id)

    def send(self, instance_id: str, item: Event) -> None:
        """Send an event to the instance's present execution."""
        with self.hub:
            self.hub.post(instance_id, item)
        self.wake(instance_id)

    # -- activities ---------------------------------------------------------------------------------------

    def _begin(self, work: Work) -> None:
        if work.number not in self._activities and self.partitions.has(str(work.number)):
            self._activities.add(work.number)
            self.spawn(self._run(work))

    async def _run(self, work: Work) -> None:
        """Run an activity and send its answer, whatever has become of the instance; then forget the work.

        A crash before that has it run, and answered, again.
        """
        try:
            async with self._activity_slots:
                with self.hub:
                    taken = self.hub.take_work(work.number, self.partitions.worker, time.time(), self.partitions.until("work"))
                    if taken and not work.copy and (rule := self.faults.met("repeatActivity", work.id, work.name)):
                        late, at = self._when(rule, work.id)
                        request = (work.id, work.execution, work.task, work.name, work.input)
                        self.hub.add_work(*request, visible_at=at, late=late, copy=True)
                        self._stirred.set()
                if taken:
                    with self.partitions.holding("work", [work.number]):
                        await self._activity(work)
        finally:
            self._activities.discard(work.number)

    async def _activity(self, work: Work) -> None:
        function = self.app.activities.get(work.name.lower())
        if function is None:
            log.error("activity %s of %s is not in the app: its caller waits until an app has it", work.name, work.id)
            return
        answer = await self._result(function, work)
        with self.hub:
            rule = self.faults.met("holdAnswer", work.id, work.name)
            late, at = self._when(rule, work.id) if rule else (None, 0.0)
            self.hub.post(work.id, answer, execution=work.execution, visible_at=at, late=late)
        if rule:
            self._stirred.set()
        with self.hub:
            self.hub.finish_work(work.number, self.partitions.worker)
        self.wake(work.id)

    async def _result(self, function: AppFunction, work: Work) -> Event:
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
