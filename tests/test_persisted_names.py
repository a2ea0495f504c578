"""Names that are stored, or that others rely on, are frozen: a deployment reads what the one before it wrote."""

from __future__ import annotations

import inspect
import json

import pytest

from backup_core.domain import naming
from backup_core.orchestrations.registry import ORCHESTRATORS
from backup_core.steps.messages import Message
from devhost.platform import REPOSITORY
from tests import persisted_names
from tests.persisted_names import ORCHESTRATIONS, names, shape

LIST = REPOSITORY / "tests" / "persisted_names.json"
UPDATE = ".venv/bin/python -m tests.persisted_names > tests/persisted_names.json"

CHANGED = (
    "Persisted names or types have changed. They may change only with a migration: rows, blobs, histories and scripts that were "
    "made by the version before must continue to work (CONTRIBUTING.md, Persisted names):"
)


def flat(value, path=()):
    """Each leaf by its path."""
    items = value.items() if isinstance(value, dict) else ((one, "") for one in value) if isinstance(value, list) else ()
    leaves = {" / ".join(path): "" if isinstance(value, (dict, list)) else value}
    for name, inner in items:
        leaves |= flat(inner, (*path, name))
    return leaves


def changes(stored, present):
    """Report the names that are gone, different or new, in words. Empty when both lists are the same."""
    before, after = flat(stored), flat(present)
    lost = [f"{one}: {before[one]!r} is now {after.get(one, 'gone')!r}" for one in before if before[one] != after.get(one)]
    new = [f"{one}: {after[one]!r}" for one in after if one not in before]
    words = []
    if lost:
        words += [CHANGED, *lost]
    if new:
        words += ["Names are new. From the first version on that has them they stay:", *new]
    return "\n  ".join([*words, f"If that is so, update the list: {UPDATE}"]) if words else ""


def test_persisted_names_stay():
    report = changes(json.loads(LIST.read_text()), names())
    if report:
        pytest.fail(report, pytrace=False)


def test_a_renamed_field_is_reported_with_the_action_to_take():
    present = json.loads(LIST.read_text())
    present["steps"]["begin_backup"]["takes"]["holder"] = present["steps"]["begin_backup"]["takes"].pop("lease")

    report = changes(json.loads(LIST.read_text()), present)

    assert "steps / begin_backup / takes / lease: 'str' is now 'gone'" in report
    assert "steps / begin_backup / takes / holder: 'str'" in report
    assert "only with a migration" in report
    assert UPDATE in report


def test_a_changed_type_is_reported():
    """A number that becomes text, a word that is left out."""
    present = json.loads(LIST.read_text())
    present["rows"]["run"]["columns"]["percent"] = "str"

    assert "rows / run / columns / percent: 'Edm.Int64' is now 'str'" in changes(json.loads(LIST.read_text()), present)


def test_nothing_that_is_stored_is_left_out():
    """Every message is one of a step, an orchestration or a document; every name that the naming module makes is an example."""
    seen = set()
    for step in persisted_names.BY_NAME.values():
        shape(step.takes, seen=seen)
        shape(step.answers, seen=seen)
    for request, answers in ORCHESTRATIONS.values():
        shape(request, seen=seen)
        if answers:
            shape(answers, seen=seen)
    for kind in (persisted_names.StepOutcome, persisted_names.ImageEnd, persisted_names.CompleteCopy, persisted_names.Cursor):
        shape(kind, seen=seen)

    bases = {base for one in seen for base in one.__mro__}
    assert [one for one in _messages(Message) if one not in bases] == []
    assert set(ORCHESTRATIONS) == set(ORCHESTRATORS)
    makers = {name for name, one in vars(naming).items() if inspect.isfunction(one) and name.endswith(("_name", "_id"))}
    source = inspect.getsource(persisted_names)
    others = {
        "account_name",
        "managed_disk_id",
        "parse_resource_id",
        "is_disk_id",
        "is_point_id",
        "is_resource_id",
        "is_snapshot_id",
        "is_rebuild_id",
    }
    assert [name for name in sorted(makers - others) if f"naming.{name}(" not in source] == []


def _messages(kind):
    found = [one for one in kind.__subclasses__() if one.__module__.startswith("backup_core.")]
    return found + [inner for one in found for inner in _messages(one)]
