"""Ids of leases and children: the same in every execution of an instance, different for all others, never too long."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import get_args
from uuid import UUID

import pytest

from backup_core.domain.identity import INSTANCE_ID_LENGTH_MAX, ChildPurpose, LeasePurpose, child_id, lease_id
from backup_core.domain.naming import RUN_ID, cleanup_instance_id, fleet_instance_id, http_run_id, is_disk_id, timer_run_id

WINDOW = datetime(2026, 1, 1, 12, tzinfo=UTC)
LONGEST = http_run_id("d" * 63, WINDOW, "0123abcd")


def test_a_lease_id_is_unique_to_its_instance():
    """A lease id is the same in every execution, and different for another instance, purpose or run."""
    of = [
        (instance, purpose, run)
        for instance in ("vm.1", "vm", "vm.2")
        for purpose in get_args(LeasePurpose)
        for run in ("vm.1", "1", "")
    ]
    leases = [lease_id(*one) for one in of]

    assert leases == [lease_id(*one) for one in of]
    assert len(set(leases)) == len(of)
    assert all(str(UUID(lease)) == lease for lease in leases)


def test_lease_ids_do_not_change_between_versions():
    """With another lease id a run in progress would find its disk owned by another orchestration of itself."""
    assert lease_id("vm.20260101T120000Z.timer", "run", "vm.20260101T120000Z.timer") == "b63e1bbf-a134-5d6f-853f-589d309487a1"


def test_no_two_children_share_an_id():
    """Ids of three generations of every purpose differ, fit, and are never ids that are started from outside."""
    assert len({purpose[0] for purpose in get_args(ChildPurpose)}) == len(get_args(ChildPurpose))
    family, ids = [LONGEST, LONGEST[1:]], set()
    for attempts in (range(1, 10), (1, 9), (1, 11, 999)):
        family = [
            child_id(one, purpose, attempt) for one in family for purpose in get_args(ChildPurpose) for attempt in attempts
        ]
        assert not ids & set(family)
        assert len(set(family)) == len(family)
        ids |= set(family)
        family = family[:: len(family) // 20]

    assert max(map(len, ids)) == INSTANCE_ID_LENGTH_MAX
    assert not any(map(RUN_ID.fullmatch, ids))
    assert not any(re.search(r"[/\\?#@\x00-\x1f]", one) for one in ids), "not taken by Durable Functions"


def test_an_id_that_is_too_long_is_refused():
    """The id is refused before it is sent: the extension's error would not name it."""
    with pytest.raises(ValueError, match="has 101 characters, 100 are allowed"):
        child_id("x" * 98, "blob")


def test_an_id_that_is_started_from_outside_never_looks_like_a_child():
    """No id of a run, fleet or housekeeping has the sign of a child, and no two kinds collide."""
    started = [
        timer_run_id("fleet", WINDOW),
        http_run_id("house", WINDOW, "0123abcd"),
        fleet_instance_id(WINDOW),
        cleanup_instance_id(WINDOW),
    ]

    assert not any("~" in one for one in started)
    assert not is_disk_id("a~b")
    assert not any(RUN_ID.fullmatch(one) for one in started[2:])
    assert not re.fullmatch("[0-9a-f]{8}", "timer"), "a call's run is never a window's"
