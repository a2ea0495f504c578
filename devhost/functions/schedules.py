"""When a timer of the development host is due, as croniter reads the expression.

Deliberately not the product's own reading, so that the two can disagree. croniter's language is another one than NCRONTAB:
what the two read alike is taken, everything else is refused.
"""

from __future__ import annotations

import re
from datetime import datetime

from croniter import croniter

_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_WEEKDAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")
BOUNDS: tuple[tuple[int, int, tuple[str, ...]], ...] = (
    (0, 59, ()),
    (0, 59, ()),
    (0, 23, ()),
    (1, 31, ()),
    (1, 12, _MONTHS),
    (0, 6, _WEEKDAYS),
)
"""Of each field: its first and last value, and the names of its values."""
_ITEM = re.compile(r"(?P<first>[0-9]{1,2}|[a-z]{3})(?:-(?P<last>[0-9]{1,2}|[a-z]{3}))?(?:/(?P<step>[1-9][0-9]?))?")
_EVERY = re.compile(r"\*(?:/(?P<step>[1-9][0-9]?))?")


class UnplayableScheduleError(ValueError):
    """The expression is not one that croniter and the real host read alike."""

    def __init__(self, expression: str, part: str) -> None:
        """Name the part that differs."""
        super().__init__(
            f"the development host cannot play the schedule {expression!r}: {part!r} is read differently by croniter and by "
            "the real host, or by neither; use six fields of *, values, ascending ranges and steps"
        )


class Schedule:
    """A timer's due times."""

    def __init__(self, expression: str) -> None:
        """Raise UnplayableScheduleError unless both languages read `expression` alike."""
        fields = expression.split(" ")
        if len(fields) != len(BOUNDS):
            raise UnplayableScheduleError(expression, expression)
        for field, (first, last, names) in zip(fields, BOUNDS, strict=True):
            if not _is_common(field.lower(), first, last, names):
                raise UnplayableScheduleError(expression, field)
        self.expression = expression

    def after(self, moment: datetime) -> datetime:
        """The first due time after `moment`, UTC. Raises croniter's CroniterBadDateError when there is none."""
        due: datetime = croniter(self.expression, moment, second_at_beginning=True, day_or=False).get_next(datetime)
        return due


def _is_common(field: str, first: int, last: int, names: tuple[str, ...]) -> bool:
    if every := _EVERY.fullmatch(field):
        return int(every["step"] or 1) <= last - first

    def value(text: str) -> int:
        return int(text) if text.isdigit() else names.index(text) + first if text in names else -1

    for item in field.split(","):
        match = _ITEM.fullmatch(item)
        if match is None:
            return False
        low = value(match["first"])
        high = value(match["last"]) if match["last"] else last if match["step"] else low
        if not first <= low <= high <= last or int(match["step"] or 1) > max(1, high - low):
            return False
        if match["last"] and low == high:  # croniter takes 9-9 for all values
            return False
    return True
