"""NCRONTAB, the schedule language of the Functions host: read as the host reads it, which differs from cron.

Six fields, separated by spaces: second, minute, hour, day of the month, month, weekday (0 is Sunday). A moment is due when all
six match, both day fields included. A field is a list of `*`, a value or a range, each with a step if wanted; months and
weekdays may be named by any beginning of their English name. `L`, `W`, `#`, `?`, macros and 7 for Sunday do not exist.
"""

from __future__ import annotations

import operator
import re
from calendar import monthrange
from dataclasses import dataclass
from datetime import MAXYEAR, MINYEAR, datetime, timedelta
from functools import lru_cache

_INT_MAX = 2**31 - 1
# The host reads numbers with .NET's int.Parse: white space other than the separating space may surround them.
_VALUE = re.compile(r"([0-9]+)[\t-\r]*\0*")
_STEP = re.compile(r"[\t-\r]*([+-]?[0-9]+)[\t-\r]*\0*")
_SECOND = timedelta(seconds=1)
_YEARS_MAX = 40
"""29 February falls on a given weekday every 28 years, and after 40 where a century's last year is no leap year."""


class NotNcrontabError(ValueError):
    """The host would refuse the expression. The text names the field, and what was expected and found."""


class NeverDueError(ValueError):
    """The schedule has no occurrence there: its days are in none of its months, or the calendar ends."""


@dataclass(frozen=True)
class _Field:
    name: str
    first: int
    last: int
    names: tuple[str, ...] = ()


_MONTHS = (
    "January", "February", "March", "April", "May", "June",
    "July", "August", "September", "October", "November", "December",
)  # fmt: skip
_WEEKDAYS = ("Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday")
_FIELDS = (
    _Field("second", 0, 59),
    _Field("minute", 0, 59),
    _Field("hour", 0, 23),
    _Field("day", 1, 31),
    _Field("month", 1, 12, _MONTHS),
    _Field("weekday", 0, 6, _WEEKDAYS),
)


@dataclass(frozen=True)
class Ncrontab:
    """A schedule: for each field the values it matches, ascending."""

    fields: tuple[tuple[int, ...], ...]
    pitfalls: tuple[str, ...]
    """Misleading spellings, each with the meaning that the host gives it."""

    @property
    def canonical(self) -> str:
        """The expression in the host's own spelling: numbers and ranges, no names and no steps."""
        return " ".join(_spelled(values, field) for values, field in zip(self.fields, _FIELDS, strict=True))

    def after(self, moment: datetime) -> datetime:
        """The first occurrence after `moment`. Raises NeverDueError when there is none within 40 years."""
        return self._nearest(moment.replace(microsecond=0) + _SECOND, back=False)

    def before(self, moment: datetime) -> datetime:
        """The last occurrence before `moment`. Raises NeverDueError when there is none within 40 years."""
        whole = moment.replace(microsecond=0)
        return self._nearest(whole if moment > whole else whole - _SECOND, back=True)

    def _nearest(self, start: datetime, *, back: bool) -> datetime:
        """The nearest occurrence from `start` on, forward or back in time; `start` may be one itself."""
        seconds, minutes, hours, days, months, weekdays = (values[::-1] if back else values for values in self.fields)
        is_reached = operator.le if back else operator.ge
        begin = (start.year, start.month, start.day, start.hour, start.minute, start.second)
        years = (
            range(start.year, max(MINYEAR, start.year - _YEARS_MAX) - 1, -1)
            if back
            else range(start.year, min(MAXYEAR, start.year + _YEARS_MAX) + 1)
        )
        occurrences = (
            datetime(year, month, day, hour, minute, second, tzinfo=start.tzinfo)
            for year in years
            for month in months
            if is_reached((year, month), begin[:2])
            for day in days
            if is_reached((year, month, day), begin[:3])
            and day <= monthrange(year, month)[1]
            and datetime(year, month, day, tzinfo=start.tzinfo).isoweekday() % 7 in weekdays
            for hour in hours
            if is_reached((year, month, day, hour), begin[:4])
            for minute in minutes
            if is_reached((year, month, day, hour, minute), begin[:5])
            for second in seconds
            if is_reached((year, month, day, hour, minute, second), begin)
        )
        found = next(occurrences, None)
        if found is None:
            message = f"the schedule '{self.canonical}' is never due within {_YEARS_MAX} years of {start:%Y-%m-%d}"
            raise NeverDueError(message)
        return found


@lru_cache(maxsize=64)
def parse(expression: str) -> Ncrontab:
    """The schedule that `expression` describes. Raises NotNcrontabError for what the host refuses.

    The host also takes five fields, without seconds; an app's settings always have six, so five are refused here.
    """
    parts = [part for part in expression.split(" ") if part]
    if len(parts) != len(_FIELDS):
        message = (
            "expected an NCRONTAB expression of six fields, separated by spaces (second minute hour day month weekday), "
            f"such as '0 0 */12 * * *'; found {len(parts)} in {expression[:200]!r}"
        )
        raise NotNcrontabError(message)
    read = [_read_field(part, field) for part, field in zip(parts, _FIELDS, strict=True)]
    return Ncrontab(tuple(values for values, _ in read), tuple(pitfall for _, some in read for pitfall in some))


def _read_field(text: str, field: _Field) -> tuple[tuple[int, ...], list[str]]:
    values, pitfalls = set[int](), list[str]()
    for item in text.split(","):
        found, some = _read_item(item, field)
        values.update(found)
        pitfalls += some
    return tuple(sorted(values)), pitfalls


def _read_item(item: str, field: _Field) -> tuple[range, list[str]]:
    """The values of one item of a list, and its pitfalls."""
    span, slash, step_text = item.partition("/")
    step = _step(step_text, item, field) if slash else 1
    first_text, dash, last_text = span.partition("-")
    pitfalls: list[str] = []
    if span == "*":
        first, last = field.first, field.last
    else:
        first = _value(first_text, item, field)
        last = _value(last_text, item, field) if dash else field.last if slash else first
        if first > last:
            first, last = last, first
            pitfalls.append(
                f"{field.name} {item!r} runs backwards: the host reverses it, into "
                f"{_named(first, field)} to {_named(last, field)}; write the two parts with a comma instead"
            )
    if first < field.first or last > field.last:
        message = f"{field.name} {item[:200]!r}: expected values from {field.first} to {field.last}"
        raise NotNcrontabError(message)
    if step < 1:
        pitfalls.append(
            f"{field.name} {item!r} has a step of {step}: the host takes it for 1, every value from "
            f"{_named(first, field)} to {_named(last, field)}"
        )
    if first - field.first + step > _INT_MAX:  # the host's own counting overflows
        raise _unreadable(item, field)
    return range(first, last + 1, max(step, 1)), pitfalls


def _step(text: str, item: str, field: _Field) -> int:
    match = _STEP.fullmatch(text)
    if match is None:
        raise _unreadable(item, field)
    return _int(match[1], item, field)


def _value(text: str, item: str, field: _Field) -> int:
    if match := _VALUE.fullmatch(text):
        return _int(match[1], item, field)
    if text and text.isascii():
        for number, name in enumerate(field.names, field.first):
            if name.lower().startswith(text.lower()):
                return number
    raise _unreadable(item, field)


def _int(digits: str, item: str, field: _Field) -> int:
    number = digits.lstrip("+-").lstrip("0") or "0"
    if len(number) > len(str(_INT_MAX)):
        raise _unreadable(item, field)
    value = -int(number) if digits.startswith("-") else int(number)
    if not -_INT_MAX - 1 <= value <= _INT_MAX:
        raise _unreadable(item, field)
    return value


def _unreadable(item: str, field: _Field) -> NotNcrontabError:
    return NotNcrontabError(
        f"{field.name} {item[:200]!r} is not NCRONTAB: expected *, a value or a range, each with a step if wanted, "
        f"of {field.first} to {field.last}{', or names' if field.names else ''}"
    )


def _named(value: int, field: _Field) -> str:
    return field.names[value - field.first] if field.names else str(value)


def _spelled(values: tuple[int, ...], field: _Field) -> str:
    if len(values) == field.last - field.first + 1:
        return "*"
    begins = [value for value in values if value - 1 not in values]
    ends = [value for value in values if value + 1 not in values]
    return ",".join(str(one) if one == other else f"{one}-{other}" for one, other in zip(begins, ends, strict=True))
