"""The status that orchestrators show: a failed activity's text is cut, and only one function sets a custom status."""

from __future__ import annotations

from pathlib import Path

import pytest

from backup_core import orchestrations
from backup_core.domain.shown import CUT, FAILURE_CHARS_MAX
from backup_core.orchestrations.calls import StepFailedError, attempt, show, sub_orchestration
from backup_core.steps.backup import LIST_DISKS, FleetPage

LONG = "Activity function 'list_disks' failed:  MemoryError: \n " + '{"$type": "System.Exception"}' * 400
PAGE = FleetPage(window="2026-11-28T00:00:00Z")


class Context:
    """An orchestration context that accepts every call; the test answers what is yielded."""

    version, instance_id = "1", "run"

    def __init__(self):
        self.shown = None

    def call_activity(self, *_):
        return None

    task_all = call_sub_orchestrator = call_activity

    def set_custom_status(self, shown):
        self.shown = shown


def test_a_crashed_activitys_error_is_cut():
    """The extension's text has kilobytes of a .NET exception behind it."""
    flow = attempt(Context(), LIST_DISKS, [PAGE])
    next(flow)
    with pytest.raises(StopIteration) as ended:
        flow.throw(Exception(LONG))

    (outcome,) = ended.value.value
    assert outcome.fault.message == LONG[: FAILURE_CHARS_MAX - 1] + CUT


def test_a_failed_childs_error_is_cut():
    flow = sub_orchestration(Context(), "copy_image", PAGE, FleetPage)
    next(flow)
    with pytest.raises(StepFailedError) as failed:
        flow.throw(Exception(LONG))

    assert failed.value.fault.message == "copy_image of run: " + LONG[: FAILURE_CHARS_MAX - 1] + CUT


def test_a_status_that_is_too_long_is_cut():
    """Durable Functions would fail the orchestration for it."""
    context = Context()
    show(context, {"phase": "done", "why": "x" * 20000})

    assert context.shown == {"phase": "done", "why": "x" * (FAILURE_CHARS_MAX - 1) + CUT}


def test_nothing_else_sets_a_custom_status():
    """Only `show` sets a custom status, since any other one could be too long."""
    sources = {file.name: file.read_text() for file in Path(orchestrations.__path__[0]).glob("*.py")}

    assert [name for name, text in sources.items() if ".set_custom_status(" in text] == ["calls.py"]
    assert sources["calls.py"].count(".set_custom_status(") == 1
