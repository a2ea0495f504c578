"""An episode whose history was not written runs a second time, later: it makes the same requests as the first time."""

from __future__ import annotations

import ast
import re
from collections import Counter
from pathlib import Path

import pytest

from backup_core import orchestrations
from backup_core.domain.naming import RUN_ID
from backup_core.orchestrations import backup_disk, restore_disk
from devhost.functions.protocol import EventType
from tests.orchestrations.histories import FOLDER, differing, load

pytestmark = pytest.mark.slow

RECORDED = [one for file in sorted(FOLDER.glob("*.jsonl.gz")) for one in load(file)]
SOURCES = {path.name: ast.parse(path.read_text()) for path in sorted(Path(orchestrations.__file__).parent.glob("*.py"))}


@pytest.mark.parametrize("number", [pytest.param(n, id=f"{n}-{one.orchestrator}") for n, one in enumerate(RECORDED)])
def test_a_repeated_episode_makes_the_same_requests_at_another_moment(number):
    """A repeated episode schedules the same activities, sub-orchestrations and timers with the same inputs and ids, and the
    same end.

    The times of timers, the custom status, and the figures in `histories.TIMES` may differ.
    """
    assert not differing(RECORDED[number])


@pytest.mark.parametrize("planted", ["a lease by chance", "a child's id by the clock", "the time in an input"])
def test_an_orchestration_that_depends_on_the_moment_is_found(planted, monkeypatch):
    """Counter-check: three ways to write an orchestration wrong are found."""
    if planted == "a child's id by the clock":

        def child(self, purpose, attempt=1):
            return f"{self.context.instance_id}~{purpose}{attempt}-{self.context.current_utc_datetime:%H%M}"

        monkeypatch.setattr(restore_disk._Restore, "_child", child)
        suspects = [one for one in RECORDED if one.orchestrator == "restore_disk" and children_of(one)]
    else:
        made = backup_disk._Backup.__init__

        def make(self, context, request):
            made(self, context, request)
            self.lease = str(context.new_uuid()) if planted == "a lease by chance" else context.current_utc_datetime.isoformat()

        monkeypatch.setattr(backup_disk._Backup, "__init__", make)
        suspects = [one for one in RECORDED if one.orchestrator == "backup_disk"]

    # A continued execution has its lease from its input.
    fresh = [one for one in suspects if not re.search(r'checkpoint\\*": {', one.events[1]["Input"])]
    assert fresh
    assert all(map(differing, fresh))


# -- the source ---------------------------------------------------------------------------------------------------------

FORBIDDEN = {"new_uuid", "new_guid", "uuid1", "uuid4", "utcnow", "today", "urandom", "getrandom", "monotonic", "perf_counter"}
MODULES = {"uuid", "random", "secrets", "time", "os"}
TIMES_SHOWN = {
    ("kit.py", "progress_shown"): "the time left, in the custom status",
    ("backup_disk.py", "__init__"): "when it began, in the custom status",
    ("repoint_machine.py", "__init__"): "the beginning of the downtime, carried into the next execution",
    ("repoint_machine.py", "_ended"): "the downtime, shown to people",
}
"""Where an episode's time is used for anything but a timer."""


def functions(tree):
    return [one for one in ast.walk(tree) if isinstance(one, ast.FunctionDef)]


def called(node, name):
    return isinstance(node, ast.Call) and name in (getattr(node.func, "id", ""), getattr(node.func, "attr", ""))


@pytest.mark.parametrize("file", SOURCES)
def test_no_orchestration_uses_chance_or_a_clock(file):
    for node in ast.walk(SOURCES[file]):
        names = {getattr(node, "attr", ""), getattr(node, "id", "")}
        assert not names & FORBIDDEN, f"{file}:{node.lineno}: {names}"
        if isinstance(node, ast.Import | ast.ImportFrom):
            modules = {getattr(node, "module", "") or "", *(one.name for one in node.names)}
            assert not modules & MODULES, f"{file}:{node.lineno}: {modules}"
        assert not (called(node, "now") and isinstance(node.func, ast.Attribute)), f"{file}:{node.lineno}: a worker's clock"


def test_the_time_of_an_episode_is_for_timers_and_for_people():
    """Every use of it is a timer's, or is named here with its reason."""
    used = set()
    for file, tree in SOURCES.items():
        for function in functions(tree):
            timers = [one for one in ast.walk(function) if called(one, "create_timer")]
            in_timers = {id(inner) for timer in timers for inner in ast.walk(timer)}
            for node in ast.walk(function):
                if called(node, "now") and id(node) not in in_timers:
                    used.add((file, function.name))
                if isinstance(node, ast.Attribute) and node.attr == "current_utc_datetime":
                    assert (file, function.name) == ("calls.py", "now"), f"{file}:{node.lineno}"

    assert used == set(TIMES_SHOWN)


# -- sub-orchestrations --------------------------------------------------------------------------------------------------


def children_of(recording):
    """Name and id of each child."""
    return [(one["Name"], one["InstanceId"]) for one in recording.events if one["EventType"] == EventType.SUB_CREATED]


def test_a_childs_id_derives_from_its_parents_id():
    """A child's id is the extension's, made of the execution and the number of the call, or extends its parent's id.

    An extended id adds a letter for the purpose and a number for the attempt. A fleet's backups have the ids of their runs.
    """
    begun = Counter()
    for recording in RECORDED:
        children = children_of(recording)
        execution = recording.events[1]["OrchestrationInstance"]["ExecutionId"]
        assert len(set(children)) == len({instance for _, instance in children}), "one id for two of its children"
        for name, instance in children:
            if name == "backup_disk" and (run := RUN_ID.fullmatch(instance)):
                assert (recording.orchestrator in ("backup_fleet", "backup_lane"), run["tail"]) == (True, "timer")
            elif re.fullmatch(re.escape(execution) + ":[0-9]+", instance):
                begun["extension"] += 1
            else:
                assert re.fullmatch(re.escape(recording.instance) + "~[a-z][1-9][0-9]*", instance)
                begun["parent"] += 1
    assert min(begun["extension"], begun["parent"]) > 0


def child_arguments(node):
    """The arguments of a call that starts a child."""
    return node.args if any(called(node, name) for name in ("call_sub_orchestrator", "sub_orchestration", "Child")) else []


def test_only_an_orchestration_that_starts_once_names_its_children():
    """A parent that may itself be a child may be started twice: the children of both runs need different ids."""
    naming = {
        file
        for file, tree in SOURCES.items()
        for node in ast.walk(tree)
        if (called(node, "call_sub_orchestrator") and file != "calls.py" and (len(node.args) > 2 or node.keywords))
        or (called(node, "Child") and (len(node.args) > 3 or node.keywords))
    }
    started_from_outside = {"restore_disk.py", "backup_fleet.py"}

    assert naming == started_from_outside
    begun = {
        ast.unparse(argument) for tree in SOURCES.values() for node in ast.walk(tree) for argument in child_arguments(node)
    }
    assert not begun & {f"{file.removesuffix('.py')}.NAME" for file in started_from_outside}
