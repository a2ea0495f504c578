"""Windows of the schedule: the moment a timer was due names the window, whenever it really fires."""

from __future__ import annotations

from datetime import datetime, timedelta

from croniter import croniter


def window_at(schedule: str, moment: datetime) -> datetime:
    """The latest occurrence of the NCRONTAB `schedule` (six fields, UTC) that is not after `moment`."""
    just_after = moment.replace(microsecond=0) + timedelta(seconds=1)
    window: datetime = croniter(schedule, just_after, second_at_beginning=True).get_prev(datetime)
    return window
