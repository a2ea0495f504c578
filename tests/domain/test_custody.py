"""Custody applies a retention that keeps fewer points only after a delay."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as some

from backup_core.domain.custody import CustodyLimits, CustodyRecord, followed, keeps_more
from backup_core.domain.records import Retention

LIMITS = CustodyLimits()
NOW = datetime(2026, 1, 1, tzinfo=UTC)
LONG, SHORT = Retention(30, 90), Retention(1, 0)
RETENTIONS = some.none() | some.builds(Retention, some.integers(1, 50), some.integers(0, 50))


def keeps(retention, number, days):
    """Whether the retention keeps a point that is the number-th newest and so many days old."""
    return retention is None or number <= retention.keep_last or days < retention.min_age_days


@given(RETENTIONS, RETENTIONS, some.integers(1, 60), some.integers(0, 60))
def test_a_point_that_either_retention_keeps_is_kept(one, other, number, days):
    both = keeps_more(one, other)
    assert keeps(both, number, days) >= (keeps(one, number, days) or keeps(other, number, days))


@given(some.lists(some.tuples(some.timedeltas(timedelta(), timedelta(days=6, hours=23)), RETENTIONS), max_size=8))
def test_no_point_is_kept_for_less_time_until_the_delay_is_over(calls):
    """The delay applies to every sequence of registrations."""
    record, now = CustodyRecord(applied=LONG), NOW
    for after, registered in sorted(calls, key=lambda call: call[0]):
        now = NOW + after
        record = followed(record, registered, now, LIMITS)
        assert keeps_more(record.applied, LONG) == record.applied


def test_a_shorter_retention_is_applied_after_the_delay_and_a_longer_one_at_once():
    seen = followed(CustodyRecord(applied=LONG), SHORT, NOW, LIMITS)
    assert (seen.applied, seen.shorter, seen.since) == (LONG, SHORT, NOW)
    assert followed(seen, SHORT, NOW + timedelta(days=6, hours=23), LIMITS) == seen
    assert followed(seen, SHORT, NOW + timedelta(days=7), LIMITS) == CustodyRecord(applied=SHORT)
    assert followed(seen, Retention(40, 100), NOW, LIMITS) == CustodyRecord(applied=Retention(40, 100))


def test_the_delay_begins_anew_with_another_retention():
    seen = followed(CustodyRecord(applied=LONG), Retention(10, 10), NOW, LIMITS)
    other = followed(seen, SHORT, NOW + timedelta(days=6), LIMITS)
    assert (other.since, other.applied) == (NOW + timedelta(days=6), LONG)
    assert followed(other, SHORT, NOW + timedelta(days=8), LIMITS).applied == LONG


def test_a_shorter_retention_that_is_undone_in_time_has_no_effect():
    seen = followed(CustodyRecord(applied=LONG), SHORT, NOW, LIMITS)
    assert followed(seen, LONG, NOW + timedelta(days=3), LIMITS) == CustodyRecord(applied=LONG)


@pytest.mark.parametrize("registered", [SHORT, LONG])
def test_an_unknown_disk_keeps_everything_at_first(registered):
    assert followed(CustodyRecord(), registered, NOW, LIMITS).applied is None
