"""Windows of the schedule: the moment a timer was due names the window, whenever it really fires."""

from __future__ import annotations

from datetime import datetime, timedelta

from croniter import croniter


def window_at(schedule: str, moment: datetime) -> datetime:
    """The latest occurrence of the NCRONTAB `schedule` (six fields, UTC) that is not after `moment`."""
    just_after = moment.replace(microsecond=0) + timedelta(seconds=1)
    window: datetime = croniter(schedule, just_after, second_at_beginning=True).get_prev(datetime)
    return window


def overdue_since(schedule: str, moment: datetime) -> datetime:
    """The window before the present one: a disk without a restore point taken since then is overdue.

    A run may need all of a window, so the present one proves nothing yet.
    """
    before: datetime = croniter(schedule, window_at(schedule, moment), second_at_beginning=True).get_prev(datetime)
    return before


def next_window(schedule: str, moment: datetime) -> datetime:
    """The first occurrence of the schedule after `moment`."""
    following: datetime = croniter(schedule, moment, second_at_beginning=True).get_next(datetime)
    return following
