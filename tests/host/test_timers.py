"""Timer functions: on schedule, on demand, and once for an occurrence that was missed."""

from __future__ import annotations

import sqlite3
import time

from tests.host.conftest import SampleHost


def wait_for_note(host, text, seconds=20):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if text in host.notes():
            return
        time.sleep(0.05)
    raise AssertionError(f"{text!r} not in {host.notes()}")


def test_on_demand(host):
    """The admin address fires it, as the real host's does; an unknown name is not found."""
    host.fire("tick")
    wait_for_note(host, "tick past_due=False")

    assert host.call("POST", "/admin/functions/nothing", {}).status_code == 404


def test_on_schedule_and_past_due(tmp_path):
    """It fires when due; an occurrence missed while the host was down is made up for once, marked past due."""
    host = SampleHost(tmp_path, timers="schedule", SAMPLE_SCHEDULE="* * * * * *")
    try:
        wait_for_note(host, "tick past_due=False")
        host.kill()
        with sqlite3.connect(tmp_path / "hub.sqlite") as hub:
            hub.execute("UPDATE timers SET next='2020-01-01T00:00:00.0000000Z'")
        host.start()
        wait_for_note(host, "tick past_due=True")
    finally:
        host.stop()

    assert host.notes().count("tick past_due=True") == 1
