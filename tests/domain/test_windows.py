"""Windows: the due time that a timer firing belongs to, early, on time or late."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backup_core.domain.windows import next_window, overdue_since, window_at, window_fired

TWICE_A_DAY = "0 0 */12 * * *"
EVERY_MINUTE = "0 * * * * *"
EVERY_SECOND = "* * * * * *"


def at(text, day=28):
    return datetime.fromisoformat(f"2026-11-{day}T{text}").replace(tzinfo=UTC)


@pytest.mark.parametrize(
    ("schedule", "reported", "moment", "window"),
    [
        # The trigger reports the due time: on time, early, late.
        (TWICE_A_DAY, "2026-11-28T12:00:00+00:00", at("12:00:00.003"), at("12:00:00")),
        (TWICE_A_DAY, "2026-11-28T12:00:00+00:00", at("11:59:59.996"), at("12:00:00")),
        (TWICE_A_DAY, "2026-11-28T12:00:00Z", at("11:59:58.7"), at("12:00:00")),
        (TWICE_A_DAY, "2026-11-28T12:00:00.0000000+00:00", at("11:59:59.996"), at("12:00:00")),
        (TWICE_A_DAY, "2026-11-28T12:00:00+00:00", at("12:00:41"), at("12:00:00")),
        (TWICE_A_DAY, "2026-11-28T13:00:00+01:00", at("11:59:59.996"), at("12:00:00")),
        (TWICE_A_DAY, "2026-11-28T12:00:00", at("11:59:59.996"), at("12:00:00")),
        (EVERY_SECOND, "2026-11-28T12:00:00+00:00", at("12:00:02.4"), at("12:00:00")),
        (EVERY_SECOND, "2026-11-28T12:00:00+00:00", at("11:59:58.7"), at("12:00:00")),
        (EVERY_MINUTE, "2026-11-28T12:00:00+00:00", at("11:59:00"), at("12:00:00")),
        # It reports a distant time: fired by hand, late for hours, after windows that were missed.
        (TWICE_A_DAY, "2026-11-29T00:00:00+00:00", at("12:20:00"), at("12:00:00")),
        (TWICE_A_DAY, "2026-11-28T12:00:00+00:00", at("14:00:00"), at("12:00:00")),
        (TWICE_A_DAY, "2026-11-25T00:00:00+00:00", at("14:00:00"), at("12:00:00")),
        (EVERY_MINUTE, "2026-11-28T12:00:00+00:00", at("12:01:00.1"), at("12:01:00")),
        # It reports nothing: the nearest due time counts, past or near in the future.
        (TWICE_A_DAY, "", at("11:59:59.996"), at("12:00:00")),
        (TWICE_A_DAY, "", at("11:59:00"), at("12:00:00")),
        (TWICE_A_DAY, "", at("11:58:59.9"), at("00:00:00")),
        (TWICE_A_DAY, "", at("12:00:00"), at("12:00:00")),
        (TWICE_A_DAY, "", at("12:00:00.000001"), at("12:00:00")),
        (TWICE_A_DAY, "", at("23:59:59.999999"), at("00:00:00", 29)),
        (EVERY_SECOND, "", at("12:00:00.4"), at("12:00:00")),
        (EVERY_SECOND, "", at("12:00:00.6"), at("12:00:01")),
        (EVERY_SECOND, "", at("12:00:00.5"), at("12:00:00")),
        # A reported text that is no time counts as nothing reported.
        (TWICE_A_DAY, "0001-01-01T00:00:00+00:00", at("11:59:59.996"), at("12:00:00")),
        (TWICE_A_DAY, "0001-01-01T00:00:00+01:00", at("11:00:00"), at("00:00:00")),
        (TWICE_A_DAY, "0001-01-01T00:00:00", at("11:00:00"), at("00:00:00")),
        (TWICE_A_DAY, "2026-99-28T12:00:00Z", at("11:00:00"), at("00:00:00")),
        (TWICE_A_DAY, "soon", at("11:00:00"), at("00:00:00")),
        (TWICE_A_DAY, "None", at("11:00:00"), at("00:00:00")),
    ],
)
def test_a_firing_serves_the_window_it_is_meant_for(schedule, reported, moment, window):
    assert window_fired(schedule, reported, moment) == window


@pytest.mark.parametrize("early", [timedelta(0), timedelta(milliseconds=4), timedelta(seconds=1.3)])
def test_no_window_is_lost_or_served_twice_by_early_firings(early):
    """A day of early and punctual firings serves each window once, whether or not the trigger reports the due time."""
    due = [at("00:00:00") + number * timedelta(minutes=15) for number in range(96)]
    fired = [moment - early * (number % 2) for number, moment in enumerate(due)]

    assert [window_fired("0 */15 * * * *", "", moment) for moment in fired] == due
    assert [window_fired("0 */15 * * * *", one.isoformat(), moment) for one, moment in zip(due, fired, strict=True)] == due


@pytest.mark.parametrize(
    ("moment", "present", "before", "following"),
    [
        (at("12:00:00"), at("12:00:00"), at("00:00:00"), at("00:00:00", 29)),
        (at("11:59:59.999999"), at("00:00:00"), at("12:00:00", 27), at("12:00:00")),
        (at("18:30:00"), at("12:00:00"), at("00:00:00"), at("00:00:00", 29)),
    ],
)
def test_windows_around_a_moment(moment, present, before, following):
    """A disk is overdue by the window before the present one: a run may need all of a window."""
    assert window_at(TWICE_A_DAY, moment) == present
    assert overdue_since(TWICE_A_DAY, moment) == before
    assert next_window(TWICE_A_DAY, moment) == following


@given(
    st.integers(0, 84 * 365 * 86400 * 10**6).map(
        lambda micros: datetime(2016, 1, 1, tzinfo=UTC) + timedelta(microseconds=micros)
    )
)
def test_windows_are_the_latest_due_time(moment):
    window = window_at(TWICE_A_DAY, moment)

    assert timedelta(0) <= moment - window < timedelta(hours=12)
    assert (window.hour % 12, window.minute, window.second) == (0, 0, 0)
    assert window_at(TWICE_A_DAY, window) == window
