"""The retention that custody applies: never one that keeps less than it knows, before the delay is over."""

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
    """Whether a point that is the number-th newest and so many days old stays."""
    return retention is None or number <= retention.keep_last or days < retention.min_age_days


@given(RETENTIONS, RETENTIONS, some.integers(1, 60), some.integers(0, 60))
def test_what_either_keeps_stays(one, other, number, days):
    both = keeps_more(one, other)
    assert keeps(both, number, days) >= (keeps(one, number, days) or keeps(other, number, days))


@given(some.lists(some.tuples(some.timedeltas(timedelta(), timedelta(days=6, hours=23)), RETENTIONS), max_size=8))
def test_nothing_is_kept_less_long_until_the_delay_is_over(calls):
    """Whatever is registered meanwhile, in whatever order."""
    record, now = CustodyRecord(applied=LONG), NOW
    for after, registered in sorted(calls, key=lambda call: call[0]):
        now = NOW + after
        record = followed(record, registered, now, LIMITS)
        assert keeps_more(record.applied, LONG) == record.applied


def test_a_shorter_one_is_applied_after_the_delay_and_a_longer_one_at_once():
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


def test_undoing_it_in_time_leaves_nothing():
    seen = followed(CustodyRecord(applied=LONG), SHORT, NOW, LIMITS)
    assert followed(seen, LONG, NOW + timedelta(days=3), LIMITS) == CustodyRecord(applied=LONG)


@pytest.mark.parametrize("registered", [SHORT, LONG])
def test_a_disk_that_is_not_known_keeps_everything_at_first(registered):
    assert followed(CustodyRecord(), registered, NOW, LIMITS).applied is None
