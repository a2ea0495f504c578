"""Windows of the schedule: the due time of a timer names the window, whenever it really fires."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from backup_core.domain.ncrontab import parse

FIRING_ERROR_MAX = timedelta(minutes=1)
"""The longest time between a timer's due time and its firing for that window. Real ones have fired 1.3 s early."""
BEGIN_MAX = timedelta(minutes=30)
"""How long after its due time a window's runs may begin: after a deployment the timer fires late, and a crash stalls
work for up to five minutes.
"""
_TICK = timedelta(microseconds=1)


def window_at(schedule: str, moment: datetime) -> datetime:
    """The latest occurrence of the NCRONTAB `schedule` (six fields, UTC) that is not after `moment`."""
    return parse(schedule).before(moment + _TICK)


def window_fired(schedule: str, due_text: str, moment: datetime) -> datetime:
    """The window that a timer which fires at `moment` is meant for.

    `due_text` is the due time that the trigger names (`Next` of its schedule status), or empty. It counts when it is near. Else
    the nearest due time counts when it is near and in the future: the timer fired early. Else the present window counts, for
    a timer that fires late, by hand, or for windows that were missed while the app was down.
    """
    due = _moment(due_text)
    # G52: the due time names the window, however early or late the timer fires.
    if due is not None and abs(due - moment) <= FIRING_ERROR_MAX:
        return due.astimezone(UTC)
    present, upcoming = window_at(schedule, moment), next_window(schedule, moment)
    early = upcoming - moment
    return upcoming if early <= FIRING_ERROR_MAX and early < moment - present else present


def window_begun_by(schedule: str, moment: datetime) -> datetime:
    """The latest window whose runs must have begun by `moment`."""
    return window_at(schedule, moment - BEGIN_MAX)


def overdue_since(schedule: str, moment: datetime) -> datetime:
    """The window before the present one: a disk without a restore point taken since then is overdue.

    A run may need a whole window, so the present one proves nothing yet.
    """
    return window_before(schedule, window_at(schedule, moment))


def window_before(schedule: str, window: datetime) -> datetime:
    """The last occurrence of the schedule before `window`."""
    return parse(schedule).before(window)


def next_window(schedule: str, moment: datetime) -> datetime:
    """The first occurrence of the schedule after `moment`."""
    return parse(schedule).after(moment)


def _moment(text: str) -> datetime | None:
    """The time in `text`, UTC where it names no offset; None for no time."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
