"""docs/protocol.md names what is there: each function, planted bug, test and invariant, and leaves none of the last two out."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from devhost.platform import REPOSITORY
from tests.simulator import aftermath, invariants
from tests.simulator.planted import PLANTED

PAGE = (REPOSITORY / "docs" / "protocol.md").read_text()


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


def source_of(folder, place):
    """The lines of `path:function`, or `path:Class.method`, in the folder; empty when it is not there."""
    path, _, name = place.partition(":")
    file = REPOSITORY / folder / path
    if not file.is_file():
        return ""
    text = file.read_text()
    body = ast.parse(text).body
    for part in name.split("."):
        found = [
            one for one in body if isinstance(one, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)) and one.name == part
        ]
        if not found:
            return ""
        body = found[0].body
    return "\n".join(text.splitlines()[found[0].lineno - 1 : found[0].end_lineno])


def cited(text):
    """The guards that a text cites: in comments as `# G7: why` or `# G7, G8: why`, elsewhere as `guard G7` or (G7)."""
    in_comments = re.findall(r"# ((?:G\d+(?:, )?)+):", text)
    return {one for part in in_comments for one in part.split(", ")} | set(re.findall(r"\b(?:guard |\()(G\d+)\b", text))


@pytest.mark.parametrize("place", sorted(set(named("enforced by"))))
def test_the_code_that_enforces_a_guard_exists_and_cites_it(place):
    """So that whoever changes the line finds the rule, and the test that must fail."""
    text = source_of("backup_core", place)

    assert text
    guards = {row["guard"].split()[0] for row in GUARDS if place in named("enforced by", [row])}
    assert guards <= cited(text)


@pytest.mark.parametrize("place", sorted(set(named("test"))))
def test_a_test_of_a_guard_exists(place):
    assert place.partition(":")[2].startswith("test_")
    assert source_of("tests", place)


def test_every_guard_has_a_number_a_reason_and_a_test():
    """In order, without a gap: a number that is cited must keep its meaning."""
    assert [row["guard"].split()[0] for row in GUARDS] == [f"G{number}" for number in range(1, len(GUARDS) + 1)]
    for row in GUARDS:
        assert row["guard"].partition(" ")[2], row
        assert row["rule"], row
        assert row["why"], row
        assert named("enforced by", [row]), row
        assert named("test", [row]), row


def test_every_planted_bug_removes_a_guard_that_is_named():
    listed = {bug for row in (*GUARDS, *ASSUMED) for bug in row["planted bug"].split(", ") if bug}

    assert listed == set(PLANTED)


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
        messages = re.findall(r"violated\(\s*f?\"([^\"]*)", text)
        assert [one for one in messages if not re.match(r"invariant \d+: ", one)] == []
        checked |= {re.match(r"invariant (\d+): ", one)[1] for one in messages}

    assert checked == {row["invariant"] for row in INVARIANTS}


def test_a_number_that_is_cited_is_on_the_list():
    guards = {row["guard"].split()[0] for row in GUARDS}
    for folder in ("backup_core", "devhost", "tests"):
        for file in (REPOSITORY / folder).rglob("*.py"):
            assert cited(file.read_text()) <= guards, file
