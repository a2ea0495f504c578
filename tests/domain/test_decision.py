"""The choice of full or incremental backup, case by case: every doubt leads to a full backup that says why."""

from __future__ import annotations

from dataclasses import replace

import pytest

from backup_core.domain.decision import HeadFindings, decide
from backup_core.domain.errors import TooManyFullsError
from backup_core.domain.metadata import HeadMark
from backup_core.domain.records import CommonPair, Head

SOURCE, RUN = "https://s/vhds/vm.vhd", "vm.20260101T000000Z.timer"
BASE, TARGET, OTHER = (f"2026-01-0{day}T00:00:00.0000000Z" for day in (1, 2, 3))
MARK = HeadMark("vm", 3, 5, RUN, "committed", SOURCE, BASE, "", 4096, "full")
DIRTY = replace(MARK, state="applying", target=TARGET, base=BASE, epoch=6, kind="incremental")
HEAD = Head("vm", source=SOURCE, generation=3, head="vm/head", pair=CommonPair("p", BASE, "b", 4096))
FOUND = HeadFindings(head_exists=True, head_unchanged=True, mark=MARK, base_exists=True, target_exists=False)
INTERRUPTED = replace(FOUND, mark=DIRTY, target_exists=True)


@pytest.mark.parametrize(
    ("found", "target"),
    [
        (FOUND, ""),
        (INTERRUPTED, TARGET),
        (replace(INTERRUPTED, mark=replace(DIRTY, state="verified")), TARGET),
        # The commit of the pair died before its mark said so.
        (replace(FOUND, mark=replace(MARK, state="verified")), ""),
    ],
)
def test_a_trusted_head_is_the_base_of_an_increment(found, target):
    decision = decide(HEAD, SOURCE, found, full_requested=False)

    assert (decision.kind, decision.finish_target, decision.automatic) == ("incremental", target, False)


@pytest.mark.parametrize(
    ("head", "found", "reason"),
    [
        ({"doubt": "told so"}, FOUND, "told so"),
        ({}, replace(FOUND, head_exists=False, mark=None), "the backup blob is gone"),
        ({}, replace(FOUND, base_exists=False), "the previous source snapshot is gone"),
        ({}, replace(FOUND, mark=None), "the backup blob's metadata is not what was written"),
        ({}, replace(FOUND, mark=replace(MARK, generation=2)), "the backup blob's metadata is not what was written"),
        ({}, replace(INTERRUPTED, mark=replace(DIRTY, generation=4)), "the backup blob's metadata is not what was written"),
        ({}, replace(INTERRUPTED, mark=replace(DIRTY, base=OTHER)), "an interrupted run started from another restore point"),
        ({}, replace(INTERRUPTED, mark=replace(DIRTY, base="")), "an interrupted run started from another restore point"),
        ({}, replace(INTERRUPTED, target_exists=False), "the source snapshot of an interrupted run is gone"),
        ({}, replace(FOUND, head_unchanged=False), "the backup blob was changed by somebody else"),
        ({}, replace(INTERRUPTED, head_unchanged=False), "the backup blob was changed by somebody else"),
    ],
)
def test_a_head_that_cannot_be_trusted_leads_to_a_full_backup(head, found, reason):
    """The full backup counts as automatic; the third in a row waits for a person."""
    row = replace(HEAD, **head)
    decision = decide(row, SOURCE, found, full_requested=False)

    assert (decision.kind, decision.reason, decision.finish_target, decision.automatic) == ("full", reason, "", True)
    with pytest.raises(TooManyFullsError, match=rf"\({reason}\), after 2 automatic ones"):
        decide(replace(row, automatic_fulls=2), SOURCE, found, full_requested=False)


@pytest.mark.parametrize(
    ("head", "found", "full", "reason"),
    [
        (Head("vm"), None, False, "first backup"),
        (HEAD, INTERRUPTED, True, "asked for"),
        (
            replace(HEAD, source="https://s/vhds/former.vhd"),
            FOUND,
            False,
            "the disk's source blob was changed in its registration",
        ),
    ],
)
def test_a_full_backup_with_another_reason_is_not_counted_as_automatic(head, found, full, reason):
    """The count of automatic full backups does not matter."""
    decision = decide(replace(head, automatic_fulls=2), SOURCE, found, full_requested=full)

    assert (decision.kind, decision.reason, decision.automatic) == ("full", reason, False)
