"""The rule that selects expired restore points, checked by examples and by everything it must never do."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from backup_core.domain.naming import point_id
from backup_core.domain.records import RestorePoint, Retention, pair_of
from backup_core.domain.retention import verdicts

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)


def point(hours_ago, **fields):
    taken = f"{NOW - timedelta(hours=hours_ago):%Y-%m-%dT%H:%M:%S}.0000000Z"
    return RestorePoint(
        disk="vm", point=point_id(taken), kind="full", reason="r", generation=1, head="h", source="s", source_snapshot=taken,
        previous_source_snapshot="", backup_snapshot="b", size=512, write_bytes=0, clear_bytes=0, requests=0, epoch=1, run="r",
        digest="d", page_map="p", verified="v", committed=NOW, **fields,
    )  # fmt: skip


def reasons(points, retention, *, pair=None, pinned=()):
    return {
        int((NOW - datetime.fromisoformat(one.point.source_snapshot[:19] + "+00:00")).total_seconds() // 3600): (
            one.expires,
            one.reason,
        )
        for one in verdicts(points, retention, pair, pinned, NOW)
    }


def test_the_newest_points_and_young_points_are_kept():
    points = [point(hours) for hours in (0, 12, 24, 36, 48, 60)]
    decided = reasons(points, Retention(2, min_age_days=2), pair=pair_of(points[0]))

    assert {hours for hours, (expires, _) in decided.items() if expires} == {48, 60}
    assert decided[0][1] == "it is the newest"
    assert decided[12][1] == "it is one of the newest 2"
    assert decided[24][1] == "it is younger than 2 days"
    assert decided[60][1] == "it is older than 2 days and not one of the newest 2"


def test_a_point_in_doubt_is_kept():
    points = [
        point(-5), point(0), point(50), point(60), point(70, state="quarantined"), point(80, state="lost"),
        point(90, state="deleting"), point(100),
    ]  # fmt: skip
    decided = reasons(points, Retention(1), pair=pair_of(points[2]), pinned={points[3].point})

    assert {hours: reason for hours, (expires, reason) in decided.items() if not expires} == {
        -5: "it is the newest",
        50: "the next backup starts from it",
        60: "it is in use",
        70: "it is quarantined",
        80: "it is lost",
    }
    assert {hours for hours, (expires, _) in decided.items() if expires} == {0, 90, 100}


def test_points_of_a_new_source_do_not_expire_points_of_the_former_source():
    """Each source's points are counted apart for ninety days after the change, then together, so that none is kept for ever."""
    points = [replace(point(hours), source="new" if hours < 30 else "former") for hours in (0, 12, 36, 48, 60)]

    def expired(changed_days_ago):
        since = NOW - timedelta(days=changed_days_ago)
        return [v.point.point for v in verdicts(points, Retention(1), pair_of(points[0]), (), NOW, since) if v.expires]

    assert expired(89) == [points[1].point, points[3].point, points[4].point]
    assert expired(90) == [one.point for one in points[1:]]


def test_a_point_dated_in_the_future_is_kept():
    """A date in the future means that some clock is wrong, and nobody knows which."""
    decided = reasons([point(-9), point(-5), point(-1), point(30)], Retention(1))

    assert [reason for _, reason in decided.values()][:3] == ["it is the newest", *["it is dated in the future"] * 2]
    assert decided[30][0]


def test_a_point_of_the_present_second_is_not_in_the_future():
    """The service reports the time in whole seconds; names of snapshots have a finer time."""

    def of(moment):
        taken = f"2026-11-22T12:00:{moment}Z"
        return replace(point(0), source_snapshot=taken, point=point_id(taken))

    decided = verdicts([point(-9), of("01.0000000"), of("00.9999999"), of("00.5000000")], Retention(1), None, (), NOW)
    assert [one.reason for one in decided[1:]] == [
        "it is dated in the future",
        *["it is older than 0 days and not one of the newest 1"] * 2,
    ]


def test_without_a_retention_everything_is_kept():
    assert not any(expires for expires, _ in reasons([point(hours) for hours in range(0, 9000, 500)], None).values())


states = st.sampled_from(["available", "lost", "quarantined", "deleting"])


@given(
    st.lists(st.tuples(st.integers(-50, 5000), states), unique_by=lambda one: one[0], max_size=25),
    st.integers(1, 30),
    st.integers(0, 200),
    st.integers(0, 24),
    st.sets(st.integers(0, 24), max_size=5),
)
def test_protected_points_never_expire(made, keep, days, pair, pins):
    """These never expire: the newest restorable point, the common pair, and points in use, of the future, young or not available."""
    points = [replace(point(hours), state=state) for hours, state in made]
    pinned = {points[one].point for one in pins if one < len(points)}
    common = pair_of(points[pair]) if pair < len(points) else None
    decided = verdicts(points, Retention(keep, days), common, pinned, NOW)
    expired = [one.point for one in decided if one.expires and one.point.state != "deleting"]
    available = sorted((one for one in points if one.state == "available"), key=lambda one: one.source_snapshot, reverse=True)

    assert [one.point for one in decided] == sorted(points, key=lambda one: one.source_snapshot, reverse=True)
    assert all(one.state == "available" for one in expired)
    assert not {one.point for one in expired} & ({one.point for one in available[:keep]} | pinned)
    assert common is None or common.point not in {one.point for one in expired}
    assert [one.point for one in decided if one.counts] == available[:keep]
    youngest_gone = NOW - timedelta(days=days)
    assert all(datetime.fromisoformat(one.source_snapshot[:19] + "+00:00") <= youngest_gone for one in expired)
    assert decided == verdicts(list(reversed(points)), Retention(keep, days), common, pinned, NOW)
