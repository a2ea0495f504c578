"""The checks of `make lint` that could pass without having looked: each is shown to fail, or to say that it did not run."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from devhost.platform import REPOSITORY
from tools import audit


def packages(*found):
    return json.dumps({"dependencies": list(found), "fixes": []})


GOOD = {"name": "aiohttp", "version": "3.14.5", "vulns": []}
BAD = {
    "name": "yarl",
    "version": "1.0",
    "vulns": [{"id": "PYSEC-1", "fix_versions": ["1.1"], "aliases": [], "description": ""}],
}
SKIPPED = {"name": "six", "skip_reason": "Dependency not found on PyPI"}


def test_a_known_vulnerability_fails_and_says_what_to_do():
    status, words = audit.judged(packages(GOOD, BAD, SKIPPED))

    assert status == 1
    assert "yarl 1.0: PYSEC-1, fixed in 1.1" in words
    assert "make lock" in words


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (packages(SKIPPED, SKIPPED), "knows no advisories"),
        (packages(GOOD, SKIPPED), "1 of 2 packages are unknown to the advisories: six"),
        ("ConnectionError: no route", "broke off: ConnectionError"),
        ("", "broke off"),
        ("[]", "broke off"),
    ],
)
def test_what_was_not_checked_is_told_loudly(answer, why):
    status, words = audit.judged(answer)

    assert status == 0
    assert "WERE NOT CHECKED" in words
    assert "!!!!!!" in words
    assert why in words


def test_a_clean_audit_is_quiet():
    assert audit.judged(packages(GOOD)) == (0, "audit: 1 packages, no known vulnerability")


def test_bandit_finds_a_planted_fault(tmp_path):
    """As make lint calls it: medium severity and up."""
    (tmp_path / "planted.py").write_text(
        "import subprocess\n\ndef run(text):\n    subprocess.Popen(text, shell=True)\n    eval(text)\n"
    )
    ended = subprocess.run(
        [sys.executable, "-m", "bandit", "-q", "-ll", "-r", str(tmp_path)], capture_output=True, text=True, check=False
    )

    assert ended.returncode == 1
    assert "B307" in ended.stdout
    assert "B602" in ended.stdout


def test_lint_calls_both():
    text = (REPOSITORY / "Makefile").read_text()
    lint = text[text.index("\nlint:") : text.index("\nformat:")]

    assert "tools/audit.py" in lint
    assert "bandit -q -ll -c pyproject.toml -r backup_core function_app.py devhost tools" in lint
