"""docs/protocol.md names what is there: each function, planted bug, test and invariant, and leaves none of the last two out."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from devhost.platform import REPOSITORY
from tests.simulator import aftermath, invariants
from tests.simulator.bugs import BACKUP_BUGS, RESTORE_BUGS
from tests.simulator.episode_bugs import EPISODE_BUGS
from tests.simulator.trouble_bugs import TROUBLE_BUGS

PAGE = (REPOSITORY / "docs" / "protocol.md").read_text()
BUGS = {*BACKUP_BUGS, *RESTORE_BUGS, *EPISODE_BUGS, *TROUBLE_BUGS}


def rows(first):
    """The cells of each row of each table whose first column has that heading, by the names of the columns."""
    for table in re.findall(rf"^\| {first} \|.*\n(?:\|.*\n)+", PAGE, re.MULTILINE):
        heading, _, *lines = [[cell.strip() for cell in line.strip("|").split(" |")] for line in table.splitlines()]
        for line in lines:
            assert len(line) == len(heading), line
            yield dict(zip(map(str.strip, heading), line, strict=True))


GUARDS, ASSUMED, INVARIANTS = list(rows("guard")), list(rows("assumption")), list(rows("invariant"))


def named(column, tables=(*GUARDS, *ASSUMED)):
    return [one for row in tables for one in re.findall(r"`([^`]+)`", row.get(column, ""))]


def exists(folder, place):
    """Whether `path:function`, or `path:Class.method`, is in the folder."""
    path, _, name = place.partition(":")
    file = REPOSITORY / folder / path
    if not file.is_file():
        return False
    body = ast.parse(file.read_text()).body
    for part in name.split("."):
        found = [
            one for one in body if isinstance(one, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)) and one.name == part
        ]
        if not found:
            return False
        body = found[0].body
    return True


@pytest.mark.parametrize("place", sorted(set(named("enforced by"))))
def test_what_enforces_a_guard_exists(place):
    assert exists("backup_core", place)


@pytest.mark.parametrize("place", sorted(set(named("test"))))
def test_a_test_of_a_guard_exists(place):
    assert place.partition(":")[2].startswith("test_")
    assert exists("tests", place)


def test_every_guard_has_a_number_a_reason_and_a_test():
    """In order, without a gap: numbers that are cited must go on meaning the same."""
    assert [row["guard"].split()[0] for row in GUARDS] == [f"G{number}" for number in range(1, len(GUARDS) + 1)]
    for row in GUARDS:
        assert row["guard"].partition(" ")[2], row
        assert row["rule"], row
        assert row["why"], row
        assert named("enforced by", [row]), row
        assert named("test", [row]), row


def test_every_planted_bug_removes_a_guard_that_is_named():
    told = {bug for row in (*GUARDS, *ASSUMED) for bug in row["planted bug"].split(", ") if bug}

    assert told == BUGS


def test_every_invariant_is_listed_as_the_simulator_has_it():
    stated = dict(re.findall(r"^ ?(\d+)\. (.+)$", invariants.__doc__, re.MULTILINE))

    assert {row["invariant"]: row["what holds"] for row in INVARIANTS} == stated
    guards = {row["guard"].split()[0] for row in GUARDS}
    for row in INVARIANTS:
        assert set(row["kept by"].split(", ")) <= guards, row


def test_every_violation_that_is_named_has_its_number():
    """Nothing is checked that the list does not say, and everything on the list is checked."""
    checked = set()
    for module in (invariants, aftermath):
        text = Path(module.__file__).read_text()
        told = re.findall(r"violated\(\s*f?\"([^\"]*)", text)
        assert [one for one in told if not re.match(r"invariant \d+: ", one)] == []
        checked |= {re.match(r"invariant (\d+): ", one)[1] for one in told}

    assert checked == {row["invariant"] for row in INVARIANTS}


def test_a_number_that_is_cited_is_on_the_list():
    guards = {row["guard"].split()[0] for row in GUARDS}
    for folder in ("backup_core", "devhost", "tests"):
        for file in (REPOSITORY / folder).rglob("*.py"):
            cited = set(re.findall(r"\bguard (G\d+)\b|\((G\d+)\)", file.read_text()))
            assert {one for pair in cited for one in pair if one} <= guards, file
