"""Orchestrations as Microsoft's extension runs them when commits are refused.

Activities run twice or late. Children are begun a second time, in place of the first one or after its end.
Instances run side by side, one task at a time in the order in which it was scheduled, so that a disturbance has a number.
"""

from __future__ import annotations

import asyncio
import json
from collections import deque
from dataclasses import dataclass, field
from datetime import timedelta

from backup_core.orchestrations.registry import ORCHESTRATORS
from tests.doubles.instance import DirectInstance

STEPS_MAX = 3000


@dataclass
class Life:
    """One life of an instance: what it was begun with, and whose call it answers."""

    name: str
    input: object
    id: str
    parent: tuple[Life, object] | None
    instance: DirectInstance
    tasks: dict[int, object] = field(default_factory=dict)
    """The tasks it has scheduled, by identity."""


@dataclass
class Call:
    """An activity that was delivered."""

    name: str
    input: dict
    answer: object


class Hub:
    """All instances of a run. Each task that ends is a moment, numbered from 0; `disturb(hub, life, task)` decides at each how
    the task ends; an undisturbed run has none.
    """

    def __init__(self, scene, disturb=None):
        self.scene, self._disturb = scene, disturb
        self._waited = timedelta()
        self.lives = {}
        self.begun, self.began = [], []
        """Every life of a child, in order, and its moment."""
        self.calls = []
        self.moment = 0
        self.queue = deque()
        self.late = deque()
        """What is done when everything has ended."""

    def _clock(self):
        return self.scene.world.now + self._waited

    def begin(self, name, input_, instance_id, parent=None):
        """A new life of the instance; the one that is there, if any, is forgotten."""
        life = Life(
            name,
            input_,
            instance_id,
            parent,
            DirectInstance(ORCHESTRATORS[name], input_, instance_id, self._clock, instance_id),
        )
        self.lives[instance_id] = life
        life.instance.begin()
        if parent:
            self.begun.append(life)
            self.began.append(self.moment)
        self._ask(life)
        return life

    def begin_again(self, life):
        """The same child once more, from its beginning."""
        return self.begin(life.name, life.input, life.id, life.parent)

    def lives_on(self, life):
        """Whether no later life has replaced this one."""
        return self.lives[life.id] is life

    def _ask(self, life):
        """Put the tasks it waits for on the queue, and complete its parent's task when it has ended."""
        for task in life.instance.waiting:
            if id(task) not in life.tasks:
                life.tasks[id(task)] = task
                self.queue.append((life, task))
        if life.instance.ended and life.parent and self.lives_on(life):
            above, call = life.parent
            self.complete_task(above, call, json.loads(json.dumps(life.instance.output)), life.instance.error)

    def complete_task(self, life, task, result=None, error=None):
        """Give a task its end, unless its instance was replaced."""
        if self.lives_on(life):
            life.instance.complete_task(task, result, error)
            self._ask(life)

    async def deliver(self, name, request):
        """One delivery of an activity: its answer and its error."""
        try:
            answer, error = await self.scene.perform(name, json.loads(json.dumps(request))), None
        except Exception as raised:
            answer, error = None, Exception(f"{type(raised).__name__}: {raised}")
        self.calls.append(Call(name, request, answer))
        return answer, error

    async def run(self, name, input_, instance_id):
        """The orchestration's output; raises what it raised."""
        first = self.begin(name, input_, instance_id)
        while self.queue or self.late:
            if not self.queue:
                await self.late.popleft()()
                continue
            assert self.moment < STEPS_MAX
            life, task = self.queue.popleft()
            if self._disturb:
                await self._disturb(self, life, task)
            else:
                await self.carry_out(life, task)
            self.moment += 1
        instance = self.lives[first.id].instance
        assert instance.ended
        if instance.error:
            raise instance.error
        return instance.output

    async def carry_out(self, life, task, before_its_answer=None):
        """Do the task as if nothing had happened; what is to happen before its answer arrives happens then."""
        match task.kind:
            case "timer":
                self._waited += max(timedelta(), task.fire_at - self._clock())
                end = (None, None)
            case "sub":
                if self.lives_on(life):
                    self.begin(task.name, task.input, task.instance, (life, task))
                end = None
            case _:
                end = await self.deliver(task.name, task.input)
        if before_its_answer:
            before_its_answer()
        if end:
            self.complete_task(life, task, *end)


# -- what is done to a run -------------------------------------------------------------------------------------------------


def delivered_again(*, second_counts):
    """Every activity runs once more right after itself."""

    async def disturb(hub, life, task):
        if task.kind != "activity":
            await hub.carry_out(life, task)
            return
        first = await hub.deliver(task.name, task.input)
        second = await hub.deliver(task.name, task.input)
        hub.complete_task(life, task, *(second if second_counts else first))

    return disturb


def delivered_side_by_side(*, second_counts):
    """Every activity runs twice at the same time, each continuing by one request in turn."""

    async def disturb(hub, life, task):
        if task.kind != "activity":
            await hub.carry_out(life, task)
            return
        ends = await asyncio.gather(*(hub.deliver(task.name, task.input) for _ in range(2)))
        hub.complete_task(life, task, *ends[1 if second_counts else 0])

    return disturb


def delivered_late():
    """At each moment, everything that has run before runs once more; its answers are dropped."""

    async def disturb(hub, life, task):
        for call in list(hub.calls):
            await hub.scene.perform(call.name, json.loads(json.dumps(call.input)))
        await hub.carry_out(life, task)

    return disturb


def child_begun_again(moment, child, *, orphans_late):
    """Begin the `child`th child again at the moment, after the effect of that moment's task and before its answer.

    The tasks of its first life are still done: before those of its second life, or after everything.
    """

    async def disturb(hub, life, task):
        def again():
            if hub.moment == moment:
                hub.begin_again(hub.begun[child])

        if orphans_late and not hub.lives_on(life) and task.kind == "activity":

            async def later():
                await hub.deliver(task.name, task.input)

            hub.late.append(later)
        else:
            await hub.carry_out(life, task, again)

    return disturb
