"""Timer triggers: fired on schedule, once when an occurrence was missed, and on demand by the admin address."""

from __future__ import annotations

import asyncio
import json
import logging
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from azure.functions import meta
from azure.functions import timer as timer_converter
from croniter import croniter

from devhost.functions import protocol
from devhost.functions.index import schedule_of

if TYPE_CHECKING:
    from devhost.functions.engine import Engine
    from devhost.functions.index import AppFunction

log = logging.getLogger("devhost.functions")


class Timers:
    """The app's timer functions."""

    def __init__(self, engine: Engine, *, on_schedule: bool) -> None:
        """Serve the timers of `engine`'s app; without `on_schedule` they fire on demand only."""
        self.engine, self.on_schedule = engine, on_schedule
        self.schedules = {function.name: schedule_of(function) for function in engine.app.timers}

    def start(self) -> None:
        """Begin to follow the schedules."""
        if self.on_schedule:
            for function in self.engine.app.timers:
                self.engine.spawn(self._follow(function))

    def fire_soon(self, name: str) -> bool:
        """Fire the named timer now; False when there is none."""
        function = next((one for one in self.engine.app.timers if one.name.lower() == name.lower()), None)
        if function is None:
            return False
        self.engine.spawn(self._fire(function, past_due=False))
        return True

    async def _follow(self, function: AppFunction) -> None:
        planned = self.engine.hub.planned(function.name)
        if planned is not None and protocol.parse_time(planned) < datetime.now(UTC):
            await self._fire(function, past_due=True)
        while True:
            upcoming = self._next(function)
            self.engine.hub.plan(function.name, protocol.format_time(upcoming))
            await asyncio.sleep(max(0.0, (upcoming - datetime.now(UTC)).total_seconds()))
            await self._fire(function, past_due=False)

    def _next(self, function: AppFunction) -> datetime:
        schedule = croniter(self.schedules[function.name], datetime.now(UTC), second_at_beginning=True)
        upcoming: datetime = schedule.get_next(datetime)
        return upcoming

    async def _fire(self, function: AppFunction, *, past_due: bool) -> None:
        moment = protocol.now()
        planned = protocol.format_time(self._next(function))
        status = {"Last": moment, "LastUpdated": moment, "Next": planned}
        body = json.dumps({"Schedule": {"AdjustForDST": True}, "IsPastDue": past_due, "ScheduleStatus": status})
        request = timer_converter.TimerRequestConverter.decode(meta.Datum(type="json", value=body), trigger_metadata=None)
        try:
            await self.engine.invoke(function, {function.trigger.name: request})
        except Exception:
            log.exception("timer function %s failed", function.name)
