"""The development host reads schedules by another implementation than the product: where both read one, they agree."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from croniter import CroniterBadDateError
from hypothesis import given, settings
from hypothesis import strategies as st

from backup_core.domain.ncrontab import NeverDueError, parse
from devhost.functions.schedules import BOUNDS, Schedule, UnplayableScheduleError

LONG = timedelta(days=49 * 365)
"""croniter looks ahead for fifty years, the product for forty: neither finds what comes later, or one of them does."""


@st.composite
def common(draw):
    """An expression that both languages have."""

    def field(first, last, names):
        def value(number):
            named = [names[number - first], names[number - first].upper()] if names else []
            return draw(st.sampled_from([str(number), f"{number:02d}", *named]))

        def item():
            low, high = sorted((draw(st.integers(first, last)), draw(st.integers(first, last))))
            span = value(low) if low == high or draw(st.booleans()) else f"{value(low)}-{value(high)}"
            room = (high if "-" in span else last) - low
            return span + (f"/{draw(st.integers(1, room))}" if room and draw(st.booleans()) else "")

        every = st.sampled_from(["*", f"*/{draw(st.integers(1, last - first))}"])
        return draw(every) if draw(st.booleans()) else ",".join(item() for _ in range(draw(st.integers(1, 3))))

    return " ".join(field(*bounds) for bounds in BOUNDS)


moments = st.integers(0, 10**9 * 10**6).map(lambda micros: datetime(2024, 1, 1, tzinfo=UTC) + timedelta(microseconds=micros))


@settings(deadline=None)
@given(common(), moments)
def test_both_implementations_agree(expression, moment):
    try:
        played = Schedule(expression).after(moment)
    except CroniterBadDateError:
        played = None
    try:
        read = parse(expression).after(moment)
    except NeverDueError:
        read = None
    if played is None or read is None:
        assert (played or read or moment + LONG) >= moment + timedelta(days=39 * 365)
    else:
        assert played == read


@pytest.mark.parametrize(
    "expression",
    [
        "0 0 2 * *", "0 0 2 * * * *", "0  0 2 * * *", "@daily", "0 0 2 L * *", "0 0 2 ? * *", "0 0 2 * * 5#2", "0 0 2 * * 7", "0 0 2 * * FRI-MON",
        "0 0 22-2 * * *", "9-9 0 2 * * *", "*/0 0 2 * * *", "*/60 0 2 * * *", "0 0 2 * * S", "0 0 2 * January *", "*,5 0 2 * * *", "R 0 2 * * *",
        "0 60 2 * * *", "\u0661 0 2 * * *",
    ],
)  # fmt: skip
def test_an_expression_that_the_two_read_differently_is_refused(expression):
    """The refused expression has another meaning in NCRONTAB than in croniter, or one of them rejects it."""
    with pytest.raises(UnplayableScheduleError, match="cannot play the schedule"):
        Schedule(expression)


def test_both_day_fields_must_match():
    """Both day fields must match, as in NCRONTAB; in cron one of them is enough."""
    friday_the_13th = Schedule("0 0 2 13 * fri").after(datetime(2026, 11, 28, tzinfo=UTC))

    assert friday_the_13th == datetime(2027, 8, 13, 2, tzinfo=UTC)
