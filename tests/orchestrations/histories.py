"""Recorded histories: the pasts that an orchestration may have when new code is deployed, one recording per distinct branch.

They are made from the orchestrations that the other tests run: `make record` lets the Durable SDK replay beside each of them,
and keeps the smallest histories that together take all branches. There is a file per `defaultVersion` of host.json; a file
stays until no run of its version can be alive.
"""

from __future__ import annotations

import dis
import gzip
import json
import sys
from collections import Counter, defaultdict
from dataclasses import asdict
from datetime import timedelta
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory

import coverage
import pytest

from backup_core import orchestrations
from backup_core.domain import disk_delivery, disk_restore, machine_change
from backup_core.orchestrations.registry import ORCHESTRATORS
from devhost.functions.protocol import EventType, format_time, parse_time
from devhost.functions.replay import Ending
from tests.doubles.driver import Driver
from tests.doubles.instance import VERSION
from tests.doubles.replayed import Recording, replayed

FOLDER = Path(__file__).parent / "recorded"
CODE = [
    *sorted(Path(orchestrations.__file__).parent.glob("*.py")),
    *(Path(rule.__file__) for rule in (disk_delivery, disk_restore, machine_change)),
]
"""The orchestrators, and the rules that say their next steps."""
NAMES = {str(path): path.name for path in CODE}
RETURNS = ("RETURN_VALUE", "RETURN_CONST")
"""Instructions that really end a function: a tracer sees a yield and an exception as returns too."""

ADVICE = """
Runs that are in progress while this code is deployed would end so, and fail. Next:
  - if the change can do without another order of calls and without another ending, make it so that the histories replay;
  - else keep the old way for instances that began with it (`if context.version == "{version}"` around both ways), raise
    `defaultVersion` in host.json, and record the new way by `make record`. The old recordings stay until no run of that version
    can be alive; a restore may wait for days."""


def fault(recording, version):
    """Say why today's code does not replay the recording as its original code did; empty when it does."""
    orchestrate = ORCHESTRATORS.get(recording.orchestrator)
    if orchestrate is None:
        return f"{recording.orchestrator}: no orchestrator has this name any more.{ADVICE.format(version=version)}"
    again = replayed(orchestrate, recording.instance, recording.events)
    if again.ending == recording.ending and not again.scheduled:
        return ""
    if again.ending is None or again.scheduled:
        request = ", ".join(f"{one.kind} {one.name}".strip() for one in again.scheduled.values()) or "something else"
        how = f"it waits for {request} where it had ended as {_shown(recording.ending)}"
    elif "Non-Deterministic" in (again.ending.output or ""):
        how = again.ending.output
    else:
        how = f"it ends as {_shown(again.ending)} where it had ended as {_shown(recording.ending)}"
    began = f"{recording.orchestrator} (an instance of version {version}, {recording.instance})"
    return f"{began} no longer replays: {how}.{ADVICE.format(version=version)}"


def _shown(ending):
    return f"{ending.status} {ending.output or ending.next_input or ''}".strip()


LATER = timedelta(minutes=7)
TIMES = {"started", "began", "seconds"}
"""Fields of outputs and of the next execution's input that are times: when something began, and how long it took, for people."""
SCHEDULED = {EventType.TASK_SCHEDULED, EventType.SUB_CREATED, EventType.TIMER_CREATED}


def episodes(events):
    """Yield each episode of the history: the events written before it, and those that arrived for it."""
    begins = [position for position, item in enumerate(events) if item["EventType"] == EventType.ORCHESTRATOR_STARTED]
    for begin, end in pairwise([*begins, len(events)]):
        yield events[:begin], [item for item in events[begin:end] if item["EventType"] not in SCHEDULED]


def differing(recording):
    """Name the first episode that makes other requests when it runs again later; empty when all make the same ones."""
    for past, arrived in episodes(recording.events):
        later = [{**one, "Timestamp": format_time(parse_time(one["Timestamp"]) + LATER)} for one in arrived]
        first, second = (_actions(recording, [*past, *new]) for new in (arrived, later))
        if first != second:
            return f"episode after {len(past)} events of {recording.orchestrator}: {first}\n... and later: {second}"
    return ""


def _actions(recording, events):
    """The last episode's requests and its end, without times."""
    played = replayed(ORCHESTRATORS[recording.orchestrator], recording.instance, events)
    requests = {number: (one.kind, one.name, one.instance, one.input) for number, one in played.scheduled.items()}
    end = played.ending
    return requests, end and (end.status, _timeless(json.loads(end.output or "null")) if end.status == "Completed" else end.output,
                           _timeless(end.next_input))  # fmt: skip


def _timeless(value):
    if isinstance(value, dict):
        return {name: _timeless(one) for name, one in value.items() if name not in TIMES}
    return value


def arcs(recording):
    """The branches that a replay of the whole recording takes, each as (file, line, next line).

    The negated first line of a function stands for its outside. Coverage's own tracers lose generators that are resumed by an
    exception.
    """
    taken = set()

    def enter(frame, _event, _argument):
        # Each call of Microsoft's library comes here too.
        if frame.f_code.co_filename not in NAMES:
            return None
        name, outside = NAMES[frame.f_code.co_filename], -frame.f_code.co_firstlineno
        resumed = frame.f_lineno != frame.f_code.co_firstlineno
        before = frame.f_lineno if resumed else outside

        def within(frame, event, _argument):
            nonlocal before
            if event == "line":
                taken.add((name, before, frame.f_lineno))
                before = frame.f_lineno
            elif event == "return" and dis.opname[frame.f_code.co_code[frame.f_lasti]] in RETURNS:
                taken.add((name, before, outside))
            return within

        return within

    outer = sys.gettrace()
    sys.settrace(enter)
    try:
        replayed(ORCHESTRATORS[recording.orchestrator], recording.instance, recording.events)
    finally:
        sys.settrace(outer)
    return taken


def unseen(taken):
    """The branches and lines of the orchestrators' functions that none of the `taken` branches covers."""
    by_file, files = defaultdict(list), {path.name: str(path) for path in CODE}
    for name, *arc in taken:
        by_file[files[name]].append(tuple(arc))
    with TemporaryDirectory() as folder:
        data = coverage.CoverageData(basename=f"{folder}/taken")
        data.add_arcs(by_file)
        data.close()
        report = Path(folder) / "report.json"
        measured = coverage.Coverage(data_file=f"{folder}/taken", config_file=False, branch=True)
        measured.load()
        measured.json_report(sorted(map(str, CODE)), outfile=str(report))
        measured = json.loads(report.read_text())["files"]
    return [
        f"{Path(file).name}, {function}: {what}"
        for file, found in measured.items()
        for function, gaps in found["functions"].items()
        if function  # else outside of all
        for what in [
            *(f"line {line}" for line in gaps["missing_lines"]),
            *(f"from line {one} to {other if other > 0 else 'the end'}" for one, other in gaps["missing_branches"]),
        ]
    ]


def load(file):
    """The recordings of one version."""
    recordings = []
    for line in gzip.decompress(file.read_bytes()).splitlines() if file.exists() else []:
        fields = json.loads(line)
        fields["calls"] = [tuple(one) for one in fields["calls"]]
        recordings.append(Recording(**{**fields, "ending": Ending(**fields["ending"])}))
    return recordings


def smallest(recordings, known):
    """The recordings that are needed, besides the `known` branches, to take every branch that any of them takes."""
    unique = {
        str([one.orchestrator, *((item["EventType"], item.get("Result")) for item in one.events)]): one for one in recordings
    }
    kept, seen = [], set(known)
    for one in sorted(unique.values(), key=lambda one: len(json.dumps(one.events))):
        taken = arcs(one)
        if taken - seen:
            seen |= taken
            kept.append((one, taken))
    # A later, longer one may have made earlier ones needless.
    takers = Counter(arc for _, taken in kept for arc in taken) + Counter(known)
    needed = []
    for one, taken in reversed(kept):
        if all(takers[arc] > 1 for arc in taken):
            takers.subtract(taken)
        else:
            needed.append(one)
    return needed[::-1]


def main():
    """Add the missing recordings of today's version. The status is 1 when today's code breaks one of them."""
    file = FOLDER / f"{VERSION}.jsonl.gz"
    recordings = load(file)
    broken = next(filter(None, (fault(one, VERSION) for one in recordings)), "")
    if broken:
        print(broken)
        return 1
    Driver.recorded = []
    # This test requires the recordings that are about to be made.
    excluded = f"--ignore={Path(__file__).parent / 'test_recorded_histories.py'}"
    if pytest.main(["-q", "--durations=0", excluded, "tests/activities", "tests/orchestrations"]):
        return 1
    new = smallest(Driver.recorded, {arc for one in recordings for arc in arcs(one)})
    FOLDER.mkdir(exist_ok=True)
    text = "".join(json.dumps(asdict(one)) + "\n" for one in [*recordings, *new])
    file.write_bytes(gzip.compress(text.encode(), mtime=0))
    print(f"{len(new)} recordings added to {file.name}, which has {len(recordings) + len(new)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
