"""Timer functions: on schedule, on demand, early, and once for an occurrence that was missed; each firing gets its status."""

from __future__ import annotations

import json
import sqlite3
from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest

from devhost.functions.schedules import Schedule
from devhost.functions.timers import EARLY, NEVER, Status, first_status, status_after, status_at_start
from tests.host.conftest import SampleHost

SECOND = timedelta(seconds=1)
TWELVE = datetime(2026, 11, 28, 12, tzinfo=UTC)
HOURLY = Schedule("0 0 * * * *")


def statuses(host):
    """The status that each firing got, with its time."""
    found = [json.loads(note.removeprefix("status ")) for note in host.notes() if note.startswith("status ")]
    return [{name: datetime.fromisoformat(text) for name, text in one.items()} for one in found]


def test_on_demand(host):
    """The admin address fires the timer, as the real host's does; an unknown name is not found."""
    host.fire("tick")
    host.until_notes(lambda notes: "tick past_due=False" in notes and statuses(host))

    (status,) = statuses(host)
    assert status["Last"] == status["LastUpdated"] == NEVER
    assert (status["Next"].month, status["Next"].day) == (1, 1)
    assert status["Next"] > status["at"]
    assert host.call("POST", "/admin/functions/nothing", {}).status_code == 404


def test_on_schedule_and_past_due(tmp_path):
    """The timer fires when due; an occurrence missed while the host was down is caught up once, marked past due."""
    host = SampleHost(tmp_path, timers="schedule", SAMPLE_SCHEDULE="* * * * * *")
    missed = Status(TWELVE.replace(year=2020), TWELVE.replace(year=2020) + SECOND, TWELVE.replace(year=2020))
    try:
        host.until_notes(lambda notes: "tick past_due=False" in notes)
        host.kill()
        with sqlite3.connect(tmp_path / "hub.sqlite") as hub:
            hub.execute("UPDATE timer_status SET status=?", (json.dumps(missed.as_json),))
        before = len(statuses(host))
        host.start()
        host.until_notes(lambda notes: len(statuses(host)) > before + 1)
    finally:
        host.stop()

    assert host.notes().count("tick past_due=True") == 1
    late, regular = statuses(host)[before : before + 2]
    assert (late["Last"], late["Next"]) == (missed.last, missed.next)
    assert regular["Last"] > missed.next
    assert regular["Next"] == regular["Last"].replace(microsecond=0) + SECOND


def test_early_firings_serve_each_due_time_once(tmp_path):
    """Firings come early and on time; `Next` is the due time, and no due time is repeated or skipped."""
    host = SampleHost(tmp_path, timers="schedule", SAMPLE_SCHEDULE="* * * * * *", **{EARLY: "0.5,0"})
    try:
        host.until_notes(lambda notes: len(statuses(host)) >= 4)
    finally:
        host.stop()

    firings = statuses(host)
    assert any(one["at"] < one["Next"] for one in firings)
    assert all(later["Next"] > earlier["Next"] for earlier, later in pairwise(firings))
    for earlier, later in pairwise(firings):
        assert later["Last"] >= earlier["Next"]


# -- the status, as the real listener keeps it ---------------------------------------------------------------------------


def test_the_first_status():
    """The status before the first firing has the host's spelling of never."""
    status = first_status(HOURLY, TWELVE + SECOND)

    never = "0001-01-01T00:00:00+00:00"
    assert status.as_json == {"Last": never, "Next": "2026-11-28T13:00:00+00:00", "LastUpdated": never}
    assert Status.of(status.as_json) == status


@pytest.mark.parametrize(
    ("fired", "past_due", "last", "upcoming"),
    [
        (TWELVE, False, TWELVE, TWELVE + 3600 * SECOND),
        (TWELVE - 0.004 * SECOND, False, TWELVE, TWELVE + 3600 * SECOND),
        (TWELVE + 2 * SECOND, False, TWELVE + 2 * SECOND, TWELVE + 3600 * SECOND),
        (TWELVE + 3 * 3600 * SECOND, True, TWELVE + 3 * 3600 * SECOND, TWELVE + 4 * 3600 * SECOND),
    ],
)
def test_the_status_after_a_firing(fired, past_due, last, upcoming):
    before = Status(NEVER, TWELVE, NEVER)

    assert status_after(HOURLY, before, fired, past_due=past_due) == Status(last, upcoming, last)


@pytest.mark.parametrize(
    ("kept", "at_start"),
    [
        (Status(TWELVE, TWELVE + 3600 * SECOND, TWELVE), Status(TWELVE, TWELVE + 3600 * SECOND, TWELVE)),
        (Status(NEVER, TWELVE, TWELVE - SECOND), Status(NEVER, TWELVE, TWELVE - SECOND)),
        # The schedule has changed: nothing of the former one is past due.
        (Status(TWELVE, TWELVE + 60 * SECOND, TWELVE), Status(NEVER, TWELVE + 3600 * SECOND, TWELVE)),
        (Status(NEVER, TWELVE + SECOND, NEVER), Status(NEVER, TWELVE + 3600 * SECOND, TWELVE + 1800 * SECOND)),
        (Status(TWELVE - 7200 * SECOND, TWELVE, TWELVE), Status(NEVER, TWELVE + 3600 * SECOND, TWELVE + 1800 * SECOND)),
    ],
)
def test_the_status_at_a_start(kept, at_start):
    assert status_at_start(HOURLY, kept, TWELVE + 1800 * SECOND) == at_start
