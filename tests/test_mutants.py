"""The list of guards matches the code and the tests, and the mutation run reports each guard whose fault no test notices."""

from __future__ import annotations

import ast
import re
import subprocess
import sys

import pytest

from tests.mutants.guard import REPOSITORY, Guard
from tests.mutants.guards import GUARDS

GUARD = Guard(
    "domain/tiers.py", "the smallest tier", "size - PAGE <= ", "size <= ",
    ("domain/test_restoring.py::test_the_restored_disk_keeps_the_tier_or_gets_one_that_fits",),
)  # fmt: skip


@pytest.mark.parametrize("guard", GUARDS, ids=lambda guard: f"{guard.file}: {guard.protects}")
def test_a_guard_is_in_the_code_once_and_its_tests_exist(guard):
    ast.parse(guard.broken((REPOSITORY / guard.path).read_text()))
    assert guard.tests
    for test in guard.tests:
        file, _, name = test.partition("::")
        text = (REPOSITORY / "tests" / file).read_text()
        assert not name or re.search(rf"^(?:async )?def {re.escape(name.partition('[')[0])}\(", text, re.MULTILINE), test


def test_each_guard_has_words_of_its_own():
    """A failure names the guard by these words, and ONLY selects it by them."""
    assert len({(guard.file, guard.protects) for guard in GUARDS}) == len(GUARDS)


@pytest.mark.parametrize("source", ["", "size - PAGE <= 1 and size - PAGE <= 2"])
def test_a_guard_that_is_not_there_once_is_named(source):
    with pytest.raises(ValueError, match=r"backup_core/domain/tiers.py: occurs [02] times, expected once: 'size - PAGE <= '"):
        GUARD.broken(source)


def test_the_run_reports_faults_that_no_test_notices():
    """The run breaks three guards: a test notices the first; no test notices the others, one of which says why."""
    before = (REPOSITORY / GUARD.path).read_text()
    comment = '"""Performance tiers of premium page blobs."""'
    script = f"""
from dataclasses import replace
from tests.mutants.__main__ import run
from tests.mutants.guard import Guard

guard = {GUARD!r}
missed = replace(guard, protects="missed", text={comment!r}, instead="")
raise SystemExit(run([guard, missed, replace(missed, protects="harmless", survives="it is a comment")]))
"""
    ended = subprocess.run(
        [sys.executable, "-c", script], cwd=REPOSITORY, capture_output=True, text=True, check=False, timeout=200
    )
    verdicts = [line.split()[0] for line in ended.stdout.splitlines()]

    assert verdicts[:3] == ["killed", "SURVIVED", "SURVIVED"], ended
    assert "domain/tiers.py: harmless: it is a comment" in ended.stdout
    assert "3 guards broken: 1 noticed, 1 that no test can notice, 1 wrong" in ended.stdout
    assert "WRONG: domain/tiers.py: missed" in ended.stderr
    assert "harmless" not in ended.stderr
    assert ended.returncode == 1
    assert (REPOSITORY / GUARD.path).read_text() == before
