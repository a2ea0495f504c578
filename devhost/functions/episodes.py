"""One episode of an orchestration: what it read, what it sends, and then what it commits.

As in the real extension, an episode's messages go out before its history is committed. A worker that dies in between, or
whose commit is refused because another worker was first, leaves messages of an episode that officially never was: the
episode runs again later, from the same history, and sends its messages a second time.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from devhost.functions import protocol
from devhost.functions.protocol import Event, EventType

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence
    from sqlite3 import Row

    from devhost.functions.hub import Hub, Instance, Work
    from devhost.functions.replay import Replay, Scheduled

_ANSWERS = {
    EventType.TASK_COMPLETED: "TaskScheduledId",
    EventType.TASK_FAILED: "TaskScheduledId",
    EventType.SUB_COMPLETED: "TaskScheduledId",
    EventType.SUB_FAILED: "TaskScheduledId",
    EventType.TIMER_FIRED: "TimerId",
}


@dataclass
class Read:
    """The visible messages: `delivered` events, and the rows of those that are too `early`."""

    delivered: list[Event] = field(default_factory=list)
    early: list[int] = field(default_factory=list)


def read(rows: Sequence[Row], instance: Instance, past: Sequence[Event]) -> Read:
    """Sort the messages of an instance for its next episode; the start goes first, and is delivered once.

    Messages for another execution are dropped. The answer to a call that the history does not hold is early when it was sent
    after the last commit: the episode that made the call has not been committed and will run again. An older one is
    delivered; replay ignores it, as it ignores the second answer to a call.
    """
    found = Read()
    scheduled = {item["EventId"] for item in past if item["EventId"] >= 0}
    for row in rows:
        if row["execution"] not in (None, instance.execution):
            continue
        item: Event = json.loads(row["event"])
        key = _ANSWERS.get(item["EventType"])
        if key and item[key] not in scheduled and (not past or item["Timestamp"] > instance.updated):
            found.early.append(row["number"])
        elif item["EventType"] != EventType.EXECUTION_STARTED:
            found.delivered.append(item)
        elif not past and not _has_start(found.delivered):
            found.delivered.insert(0, item)
    if not past and not _has_start(found.delivered):
        # The start is in the hands of another worker, or of one that died.
        return Read(early=[row["number"] for row in rows if row["execution"] in (None, instance.execution)])
    return found


def _has_start(events: Sequence[Event]) -> bool:
    return bool(events) and events[0]["EventType"] == EventType.EXECUTION_STARTED


class Child(NamedTuple):
    """An instance to be created: the arguments of `Hub.create`."""

    instance: str
    name: str
    raw_input: str
    version: str | None
    parent: tuple[str, str, int]


@dataclass
class Sent:
    """The messages of an episode: activities, the instances that have something to read, and its own history events."""

    work: list[Work] = field(default_factory=list)
    woken: set[str] = field(default_factory=set)
    children: list[Child] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    has_timers: bool = False
    late: str | None = None


@dataclass(frozen=True)
class Episode:
    """The orchestrator's answer to `new` messages (rows `numbers`) after `past`, not yet sent, not yet committed."""

    instance: Instance
    past: list[str]
    new: list[Event]
    numbers: Collection[int]
    replay: Replay
    version: str | None
    """The version of children that name none."""

    def send(self, hub: Hub, late: str | None = None) -> Sent:
        """Send all messages but those that begin children; a transaction of its own, before the commit. Activities wait for the
        end of instance `late`.
        """
        sent, ending = Sent(late=late), self.replay.ending
        for sequence in sorted(self.replay.scheduled):
            sent.events.append(self._schedule(hub, sequence, self.replay.scheduled[sequence], sent))
        if ending and ending.status != "ContinuedAsNew":
            self._post_to_parent(hub, ending.status, ending.output, sent)
        return sent

    def commit(self, hub: Hub, sent: Sent) -> list[str] | None:
        """Write history and status, delete the messages read. Returns what the history now holds.

        None, and nothing is written, when the history is not the one this episode began with.
        """
        if not hub.is_unchanged(self.instance, len(self.past)):
            return None
        instance, ending, out = self.instance, self.replay.ending, sent.events
        status = self._custom_status()
        hub.consume(self.numbers)
        if ending and ending.status == "ContinuedAsNew":
            hub.restart(instance, json.dumps(ending.next_input), status)
            sent.woken.add(instance.id)
            for item in self.replay.carried_events:
                hub.post(instance.id, item)
            return []
        if ending:
            number = protocol.STATUS_NUMBERS[ending.status]
            fields = {"OrchestrationStatus": number, "Result": ending.output}
            out = [*out, protocol.event(EventType.EXECUTION_COMPLETED, ending.sequence, **fields)]
        for item in self.new:
            item["IsPlayed"] = item["EventType"] != EventType.ORCHESTRATOR_STARTED
        texts = [json.dumps(item) for item in [*self.new, *out, protocol.event(EventType.ORCHESTRATOR_COMPLETED)]]
        hub.append(instance.id, len(self.past), texts)
        running = "Suspended" if self.replay.suspended else "Running"
        hub.update(
            instance.id,
            status=ending.status if ending else running,
            output=ending.output if ending else self.replay.pause_reason,
            custom_status=status,
        )
        return self.past + texts

    def _schedule(self, hub: Hub, sequence: int, task: Scheduled, sent: Sent) -> Event:
        instance = self.instance
        if task.kind == "activity":
            work = hub.add_work(instance.id, instance.execution, sequence, task.name, task.input, late=sent.late)
            sent.work.append(work)
            return protocol.event(EventType.TASK_SCHEDULED, sequence, Name=task.name, Version="", Input=None)
        if task.kind == "timer":
            assert task.fire_at is not None
            fire_at, at = protocol.format_time(task.fire_at), task.fire_at.timestamp()
            fired = protocol.event(EventType.TIMER_FIRED, TimerId=sequence, FireAt=fire_at)
            hub.post(instance.id, fired, execution=instance.execution, visible_at=at)
            sent.has_timers = True
            return protocol.event(EventType.TIMER_CREATED, sequence, FireAt=fire_at)
        parent, version = (instance.id, instance.execution, sequence), task.version or self.version
        # A living instance of that id is replaced without a word. An id that begins with @ is an entity's: the caller waits.
        if not task.instance.startswith("@"):
            sent.children.append(Child(task.instance, task.name, json.dumps(task.input), version, parent))
        return protocol.event(
            EventType.SUB_CREATED, sequence, Name=task.name, Version=version, InstanceId=task.instance, Input=None
        )

    def _post_to_parent(self, hub: Hub, status: str, output: str | None, sent: Sent) -> None:
        instance = self.instance
        if instance.parent is None:
            return
        if status == "Completed":
            message = protocol.event(EventType.SUB_COMPLETED, TaskScheduledId=instance.parent_task, Result=output)
        else:
            message = protocol.child_failure(instance.parent_task or 0, status, output)
        hub.post(instance.parent, message, execution=instance.parent_execution)
        sent.woken.add(instance.parent)

    def _custom_status(self) -> str | None:
        wanted = self.replay.answer.get("customStatus")
        return self.instance.custom_status if wanted is None else protocol.written(wanted)
