"""Timer triggers: fired on schedule, once when an occurrence was missed, and on demand by the admin address.

Each firing gets the schedule's status as from the real listener: `Next` is the due time that is being served. The real
one may fire some milliseconds early, and does not fire again for that due time.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import cycle
from typing import TYPE_CHECKING

from azure.functions import meta
from azure.functions import timer as timer_converter

from devhost.functions.index import schedule_of
from devhost.functions.schedules import Schedule

if TYPE_CHECKING:
    from collections.abc import Iterator

    from devhost.functions.engine import Engine
    from devhost.functions.index import AppFunction

log = logging.getLogger("devhost.functions")

EARLY = "DEVHOST_TIMERS_EARLY"
"""The environment variable with how many seconds early timers fire: one figure, or several with commas, used in turn."""
NEVER = datetime.min.replace(tzinfo=UTC)


@dataclass(frozen=True)
class Status:
    """A timer's `ScheduleStatus`, as the host keeps it between firings and sends it with each."""

    last: datetime
    """When it was last fired, or the due time if it was fired before that; NEVER at first."""
    next: datetime
    """The due time after that."""
    updated: datetime

    @property
    def as_json(self) -> dict[str, str]:
        """In the trigger's form: ISO 8601 with an offset."""
        times = {"Last": self.last, "Next": self.next, "LastUpdated": self.updated}
        return {name: moment.isoformat() for name, moment in times.items()}

    @classmethod
    def of(cls, found: dict[str, str]) -> Status:
        """The status that `found` describes."""
        return cls(*(datetime.fromisoformat(found[name]) for name in ("Last", "Next", "LastUpdated")))


def first_status(schedule: Schedule, now: datetime) -> Status:
    """Of a timer that has never fired."""
    return Status(NEVER, schedule.after(now), NEVER)


def status_after(schedule: Schedule, status: Status, fired: datetime, *, past_due: bool) -> Status:
    """The status after a firing. One before its due time counts as at it, so that it is not served twice."""
    served = fired if past_due else max(fired, status.next)
    return Status(served, schedule.after(served), served)


def status_at_start(schedule: Schedule, kept: Status, now: datetime) -> Status:
    """The status a host starts with that finds `kept`: that, unless the schedule has changed since."""
    since = kept.last if kept.last != NEVER else kept.updated if kept.updated != NEVER else now
    expected = schedule.after(since)
    if kept.next == expected:
        return kept
    return Status(NEVER, expected, since) if now <= expected else Status(NEVER, schedule.after(now), now)


class Timers:
    """The app's timer functions."""

    def __init__(self, engine: Engine, *, on_schedule: bool) -> None:
        """Serve the timers of `engine`'s app; without `on_schedule` they fire on demand only."""
        self.engine, self.on_schedule = engine, on_schedule
        self.schedules = {function.name: Schedule(schedule_of(function)) for function in engine.app.timers}
        self._early = [timedelta(seconds=float(one)) for one in os.environ.get(EARLY, "0").split(",")]

    def start(self) -> None:
        """Begin to follow the schedules."""
        if self.on_schedule:
            for function in self.engine.app.timers:
                self.engine.spawn(self._follow(function, cycle(self._early)))

    def fire_soon(self, name: str) -> bool:
        """Fire the named timer now; False when there is none. Its status is sent as it is, and not changed."""
        function = next((one for one in self.engine.app.timers if one.name.lower() == name.lower()), None)
        if function is None:
            return False
        schedule = self.schedules[function.name]
        status = self._kept(function) or first_status(schedule, datetime.now(UTC))
        self.engine.spawn(self._fire(function, status, past_due=False))
        return True

    async def _follow(self, function: AppFunction, early: Iterator[timedelta]) -> None:
        schedule, now = self.schedules[function.name], datetime.now(UTC)
        kept = self._kept(function)
        status = status_at_start(schedule, kept, now) if kept else first_status(schedule, now)
        # A first status is kept at once: an occurrence that is missed before the first firing is past due as well.
        self._keep(function, status if kept else Status(NEVER, status.next, now))
        past_due = kept is not None and now > status.next
        while True:
            if not past_due:
                await asyncio.sleep(max(0.0, (status.next - next(early) - datetime.now(UTC)).total_seconds()))
            fired = datetime.now(UTC)
            await self._fire(function, status, past_due=past_due)
            status = status_after(schedule, status, fired, past_due=past_due)
            self._keep(function, status)
            past_due = False

    def _kept(self, function: AppFunction) -> Status | None:
        kept = self.engine.hub.planned(function.name)
        return Status.of(json.loads(kept)) if kept else None

    def _keep(self, function: AppFunction, status: Status) -> None:
        self.engine.hub.plan(function.name, json.dumps(status.as_json))

    async def _fire(self, function: AppFunction, status: Status, *, past_due: bool) -> None:
        body = json.dumps({"Schedule": {"AdjustForDST": True}, "IsPastDue": past_due, "ScheduleStatus": status.as_json})
        request = timer_converter.TimerRequestConverter.decode(meta.Datum(type="json", value=body), trigger_metadata=None)
        try:
            await self.engine.invoke(function, {function.trigger.name: request})
        except Exception:
            log.exception("timer function %s failed", function.name)
