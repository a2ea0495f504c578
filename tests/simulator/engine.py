# Long: one state machine, as the host's was recorded.
"""Durable Functions' treatment of orchestrations and activities, as it was recorded from Microsoft's own extension.

An episode's messages go out before its history is written. When that is refused (its worker died, or another one has the
partition), the episode runs again from the same history, at once or minutes later, and both sets of messages are delivered: at
the same time, or one of them after everything has ended. The first answer to a number is taken, whichever episode made the
call; the other is dropped. A child that is begun again under the id of a living one replaces it: its history is gone, its
activities run on.
"""

from __future__ import annotations

import asyncio
import contextvars
import math
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from backup_core.activities.runner import run_step
from backup_core.domain.ending import HEARTBEAT_MAX
from backup_core.orchestrations.registry import ORCHESTRATORS
from backup_core.steps import STEPS
from tests.doubles.instance import DirectInstance
from tests.doubles.replayed import ReplayedInstance

if TYPE_CHECKING:
    from tests.doubles.instance import Instance, Task, Unwritten
    from tests.simulator.stage import Stage

BY_NAME = {step.name: step for step in STEPS}
REFUSED, REFUSED_WITH_CHILDREN, REFUSED_AGAIN, ANSWERED_TWICE = 0.06, 0.2, 0.3, 0.03
"""How often a commit is refused, one that begins children, a refused one once more, and an answer delivered twice."""
INVISIBLE = (0, 0, 1, 2, 5)
"""Minutes until a message is delivered again: at once when another worker runs the same episode, else once it is visible."""
INVISIBLE_LONG = (10, 20)
"""After crashes that repeat."""

caller: contextvars.ContextVar[Call] = contextvars.ContextVar("caller")
"""The delivery that a port call belongs to."""


class WorkerCrashError(BaseException):
    """The process that ran an activity is gone; not an Exception, so that no code of the product can catch it."""


@dataclass(eq=False)
class Call:
    """One delivery of an activity. A zombie's result is wanted by nobody, but it still runs."""

    instance: Instance
    task: Task
    began: datetime
    work: asyncio.Task[Any] | None = None
    zombie: bool = False
    process: str = ""
    """Where it runs. What a process keeps of managed disks is its own, and goes with it."""
    held_until: int = 0
    """Step before which nothing it sent arrives: a request may be in flight for a long time."""


@dataclass(eq=False)
class Message:
    """A message in flight, which arrives at a step of the history or once it is visible."""

    deliver: Callable[[], None]
    due: float
    """A step; or infinity: after everything else has ended."""
    visible: datetime | None = None
    begins_child_of: Instance | None = None


class Engine:
    """The orchestrations and activities of one history."""

    def __init__(self, stage: Stage) -> None:
        """An engine without any."""
        self.stage, self.rng, self.world = stage, stage.rng, stage.world
        self.instances: list[Instance] = []
        self.children: dict[Instance, tuple[Instance, Task]] = {}
        """Sub-orchestrations, and the task of another that waits for each."""
        self.calls: list[Call] = []
        self._begun = 0
        self.messages: list[Message] = []
        self.step = 0
        self.quiet = False

    # -- orchestrations -------------------------------------------------------------------------------------------------

    def start(self, name: str, request: Any, instance: str, skew: timedelta, seed: str) -> None:  # noqa: ANN401  any JSON
        """Start an orchestration from outside; its clocks are wrong by `skew`. The id of a living one is refused;
        but whoever starts looks first and starts then, so that of two at one moment the later replaces the other.
        """
        if self._living(instance) and (not self.stage.repeats or self.rng.random() < 0.7):
            self.stage.count("starts refused")
            return
        # Not played: a run of a fleet that its former life begins after the present one has. The fleet then waits for ever, and
        # nobody misses its end: its runs end, the next window is another fleet's. What begins once alone names its children.
        self.messages = [one for one in self.messages if one.begins_child_of is None or one.begins_child_of.id != instance]
        self._arrives(self._created(name, request, instance, skew, seed), None)

    def _living(self, instance: str) -> Instance | None:
        return next((one for one in self.instances if one.id == instance and not one.ended), None)

    def _created(self, name: str, request: Any, instance: str, skew: timedelta, seed: str) -> Instance:  # noqa: ANN401  any JSON
        living = self._living(instance)
        if living:
            self.stage.count("living orchestrations replaced")
            self.stage.note(f"!! {living.id} is replaced")
            self._remove(living)
        kind = ReplayedInstance if self.stage.replayed else DirectInstance
        created: Instance = kind(ORCHESTRATORS[name], request, instance, lambda: self.world.now + skew, seed)
        self.instances.append(created)
        return created

    def forget_ended(self) -> None:
        """Look after those at work only."""
        self.instances = [instance for instance in self.instances if not instance.ended]

    def at_work(self) -> list[Instance]:
        """Instances that nobody waits for."""
        return [one for one in self.instances if one not in self.children]

    def timers(self) -> list[tuple[Instance, Task]]:
        """Timers that are set."""
        return [
            (instance, task)
            for instance in self.instances
            for task in instance.waiting
            if task.kind == "timer" and not task.sent
        ]

    def fire(self, instance: Instance, task: Task) -> None:
        """The time of a timer has come."""
        task.sent = True
        self.world.pass_time(timedelta(seconds=5))
        self._arrives(instance, task)

    def terminate(self, instance: Instance) -> None:
        """Somebody terminates an orchestration in the portal; its own children and activities run on."""
        waiting = self.children.get(instance)
        self._remove(instance)
        if waiting:
            self._arrives(*waiting, None, Exception("terminated in the portal"))

    def _remove(self, instance: Instance) -> None:
        self.instances.remove(instance)
        self.children.pop(instance, None)
        for call in self.calls:
            if call.instance is instance:
                call.zombie = True
                call.held_until = self.step + self.rng.randrange(200)

    # -- episodes ---------------------------------------------------------------------------------------------------------

    def _arrives(
        self,
        instance: Instance,
        task: Task | None,
        result: Any = None,  # noqa: ANN401  any JSON
        error: Exception | None = None,
        refused: float = REFUSED,
    ) -> None:
        """A message for an orchestration begins an episode. Now and then its commit is refused, and the message comes again."""
        if instance not in self.instances:
            return
        chance = self.rng.random() if self._may_refuse() else 1
        if chance < max(refused, REFUSED_WITH_CHILDREN):
            unwritten = instance.rehearse(task, result, error)
            if any(one.kind == "sub" for one in unwritten.tasks) or (chance < refused and (unwritten.tasks or unwritten.ended)):
                self._refuse(instance, unwritten, lambda: self._arrives(instance, task, result, error, REFUSED_AGAIN))
                return
        if task is None:
            instance.begin()
        else:
            instance.complete_task(task, result, error)

    def _may_refuse(self) -> bool:
        if not self.stage.repeats or self.quiet:
            return False
        if not self.stage.gentle:
            return True
        # Where no run may fail, none may stand still for so long that it is taken for dead.
        rows = [row for (_, key), row in self.stage.catalogue.rows.items() if key.startswith("run!")]
        return all(self.world.now - row.changed < HEARTBEAT_MAX / 3 for row in rows if row.value.state == "Running")

    def _refuse(self, instance: Instance, unwritten: Unwritten, again: Callable[[], None]) -> None:
        """The episode's messages go out without its history; the message that began it is delivered again."""
        self.stage.count("commits refused")
        self.stage.note(f"!! a commit of {instance.id} is refused")
        for task in unwritten.tasks:
            task.sent = True
            deliver: Callable[[], None] = lambda task=task: self._send(instance, task)  # type: ignore[misc]  # noqa: E731
            begins = instance if task.kind == "sub" else None
            self.messages.append(Message(deliver, self._when(), begins_child_of=begins))
        if unwritten.ended and instance in self.children:
            parent, waited = self.children[instance]
            self.stage.count("unwritten ends reported")
            self._post(lambda: self._arrives(parent, waited, unwritten.output, unwritten.error), self._when())
        minutes = self.rng.choice(INVISIBLE if self.stage.gentle or self.rng.random() < 0.9 else INVISIBLE_LONG)
        due = self.step + self.rng.choice([1, 1, self.rng.randrange(1, 100)])
        self.messages.append(Message(again, due, self.world.now + timedelta(minutes=minutes)))

    def _when(self) -> float:
        """At once, later, or after everything else has ended."""
        return self.rng.choice([0, 0, self.step + self.rng.randrange(40), self.step + self.rng.randrange(300), math.inf])

    def _post(self, deliver: Callable[[], None], due: float) -> None:
        self.messages.append(Message(deliver, due))

    # -- messages -----------------------------------------------------------------------------------------------------------

    def turn(self) -> None:
        """Deliver the results that are ready, and send the calls that follow from them."""
        now = self.world.now
        for call in [call for call in self.calls if call.work and call.work.done()]:
            self.calls.remove(call)
            self._finished(call)
        for message in [one for one in self.messages if one.due <= self.step and (one.visible or now) <= now]:
            if message in self.messages:  # what came before it may have replaced its sender
                self.world.tick()  # whatever is repeated is repeated at another moment
                self._deliver(message)
        # An end may end the one that waited for it, too.
        while ended := [child for child in self.children if child.ended]:
            for child in ended:
                parent, task = self.children.pop(child)
                self._arrives(parent, task, child.output, child.error)
        while unsent := [(instance, task) for instance in self.instances for task in instance.waiting if _is_to_be_sent(task)]:
            for instance, task in unsent:
                task.sent = True
                self._send(instance, task)

    def _deliver(self, message: Message) -> None:
        self.messages.remove(message)
        message.deliver()

    def wait_for_visibility(self) -> None:
        """Time passes until a message that a lost worker had is visible again."""
        hidden = [message.visible for message in self.messages if message.visible]
        if hidden:
            self.world.pass_time(max(timedelta(), min(hidden) - self.world.now))

    def deliver_last(self) -> bool:
        """Deliver a message still in flight, when nothing else is left to do; False when there is none."""
        if any(message.visible for message in self.messages):
            self.wait_for_visibility()
        elif self.messages:
            self._deliver(self.rng.choice(self.messages))
        else:
            return False
        return True

    def _send(self, instance: Instance, task: Task) -> None:
        match task.kind:
            case "activity":
                self.start_call(instance, task)
            case "sub":
                self._start_child(instance, task)
            case _:
                self._arrives(instance, task)

    def _start_child(self, parent: Instance, task: Task) -> None:
        self.stage.count("sub-orchestrations")
        name = f"{self.stage.seed}:{task.instance}:{self.stage.report.counts['sub-orchestrations']}"
        child = self._created(task.name, task.input, task.instance, timedelta(), name)
        self.children[child] = (parent, task)
        self._arrives(child, None)

    # -- activities -----------------------------------------------------------------------------------------------------------

    def start_call(self, instance: Instance, task: Task, *, zombie: bool = False) -> None:
        """Deliver an activity."""
        self._begun += 1
        call = Call(instance, task, self.world.now, zombie=zombie, process=f"worker {self._begun % 2}")
        self.stage.search_for_signatures(task.input)
        context = contextvars.copy_context()
        context.run(caller.set, call)
        work = run_step(BY_NAME[task.name], lambda _: self.stage.tools, task.input)
        call.work = asyncio.get_running_loop().create_task(work, context=context)
        self.calls.append(call)

    def _finished(self, call: Call) -> None:
        assert call.work is not None
        if call.work.cancelled():
            return
        error = call.work.exception()
        self.stage.search_for_signatures(error or call.work.result())
        if call.zombie:
            return
        if isinstance(error, WorkerCrashError):
            return  # the call was delivered again when the worker crashed
        if not self.quiet and self.rng.random() < 0.02:
            self.stage.count("crash before checkpoint")
            self.start_call(call.instance, call.task)
            return
        self.stage.note(f"{call.task.name} -> {error or _short(call.work.result())}")
        result = None if error else call.work.result()
        failed = error if isinstance(error, Exception) else None
        if self.stage.repeats and not self.quiet and self.rng.random() < ANSWERED_TWICE:
            self.stage.count("answers delivered twice")
            self._post(lambda: self._arrives(call.instance, call.task, result, failed), self._when())
        self._arrives(call.instance, call.task, result, failed)

    def crash(self, call: Call) -> None:
        """Its worker dies; it is delivered again."""
        assert call.work is not None
        zombie, call.zombie = call.zombie, True
        self.stage.blobs.processes.pop(call.process, None)
        call.work.cancel()
        if not zombie:
            self.start_call(call.instance, call.task)

    def abandon(self, call: Call) -> None:
        """Its worker is gone for the extension, which delivers again; what it had sent may still arrive, and more."""
        call.held_until = self.step + self.rng.randrange(200)
        if not call.zombie:
            call.zombie = True
            self.start_call(call.instance, call.task)

    def duplicate(self) -> None:
        """An activity is delivered a second time while it runs."""
        live = [call for call in self.calls if not call.zombie]
        if live:
            call = self.rng.choice(live)
            self.stage.count("duplicate delivery")
            self.start_call(call.instance, call.task, zombie=True)

    async def close(self) -> None:
        """End every activity that runs still."""
        for call in self.calls:
            if call.work:
                call.work.cancel()
        await asyncio.sleep(0)
        await asyncio.gather(*(call.work for call in self.calls if call.work), return_exceptions=True)


def _is_to_be_sent(task: Task) -> bool:
    return not task.sent and task.kind != "timer"


def _short(answer: dict[str, Any]) -> str:
    if answer.get("fault"):
        return f"{answer['fault']['code']}: {answer['fault']['message'][:100]}"
    return ", ".join(
        f"{key}={value}" for key, value in (answer["value"] or {}).items() if isinstance(value, (int, str)) and value
    )[:140]
