"""An episode whose history was not written runs a second time, later: it asks for the same as the first time."""

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
def test_every_episode_asks_for_the_same_at_another_moment(number):
    """The same activities, sub-orchestrations and timers with the same inputs and ids, and the same end.

    When a timer fires, the custom status, and the figures in `histories.TIMES` may differ.
    """
    assert not differing(RECORDED[number])


@pytest.mark.parametrize("planted", ["a lease by chance", "a child's id by the clock", "the time in an input"])
def test_what_depends_on_the_moment_is_found(planted, monkeypatch):
    """Seen from the other side: three ways to write it wrong."""
    if planted == "a child's id by the clock":

        def child(self, purpose, attempt=1):
            return f"{self.context.instance_id}~{purpose}{attempt}-{self.context.current_utc_datetime:%H%M}"

        monkeypatch.setattr(restore_disk._Restore, "_child", child)
        suspects = [one for one in RECORDED if one.orchestrator == "restore_disk" and begun_by(one)]
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
def test_no_orchestration_asks_for_chance_or_a_clock(file):
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


def begun_by(recording):
    """Name and id of each child."""
    return [(one["Name"], one["InstanceId"]) for one in recording.events if one["EventType"] == EventType.SUB_CREATED]


def test_a_child_lives_under_an_id_of_its_parent_and_of_nobody_else():
    """The extension's, which is the execution's and the number of the call; or its parent's id, a letter for the purpose, a number
    for the attempt; but a fleet's backups, whose runs nobody else names.
    """
    begun = Counter()
    for recording in RECORDED:
        children = begun_by(recording)
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


def asked_for(node):
    """The arguments of a call that begins a child."""
    return node.args if any(called(node, name) for name in ("call_sub_orchestrator", "sub_orchestration", "Child")) else []


def test_only_what_begins_once_names_its_children():
    """A parent that may itself be a child may be begun twice: the children of both lives need different ids."""
    naming = {
        file
        for file, tree in SOURCES.items()
        for node in ast.walk(tree)
        if (called(node, "call_sub_orchestrator") and file != "calls.py" and (len(node.args) > 2 or node.keywords))
        or (called(node, "Child") and (len(node.args) > 3 or node.keywords))
    }
    started_from_outside = {"restore_disk.py", "backup_fleet.py"}

    assert naming == started_from_outside
    begun = {ast.unparse(argument) for tree in SOURCES.values() for node in ast.walk(tree) for argument in asked_for(node)}
    assert not begun & {f"{file.removesuffix('.py')}.NAME" for file in started_from_outside}
