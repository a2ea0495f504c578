"""NCRONTAB: every recording of the real library, the grammar's corners, and a slow obvious model."""

from __future__ import annotations

import gzip
import json
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backup_core.domain.ncrontab import NeverDueError, NotNcrontabError, parse

RECORDED = [
    json.loads(line)
    for line in gzip.decompress((Path(__file__).parent / "recorded" / "ncrontab.jsonl.gz").read_bytes()).splitlines()
]
"""What NCrontab.Signed 3.3.0 made of each expression: its canonical form, null where it is refused, and next occurrences,
null where there is none within twelve years.
"""
YEARS_LOOKED_AHEAD = 12
SECOND = timedelta(seconds=1)
FAULT_OF_3_3_0 = {
    "0,30 0 2 * * *", "30,0 0 2 * * *", "*/0 0 2 * * *", "*/-5 0 2 * * *", "*/59 0 2 * * *", "0-30/10 0 2 * * *",
    "30-0/10 0 2 * * *", "* * 19 * * *", "* 18-29 0,10 */7 * *", "* 4,6,15 * * * *", "* */24 22/5 * * *",
    "* 34-26,33 */11 */3 * mon", "* 59-50/1 7 * * 4-mon", "* 8,21 */20 */9 * *", "* 45 * */25 3/2 1-6/2,mon,5-Sun",
    "* 17-13 8-21/5,8,2-3/3 */22 4-MAR *", "*/8 15,49-56,19/1 4,2-13 * * *", "*/11 45 18 * 11-6,july-3 mon-TUE,0",
    "*/6 */39 9 * 1,3 *",
}  # fmt: skip
"""Where the recorded version keeps the seconds of the start although minute or hour move on, and so passes over the first
occurrences of that minute. 3.3.3, in WebJobs.Extensions since 5.1.0, starts a new minute at its first second; so does the product.
"""


def at(text):
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def iter_after(schedule, moment):
    for _ in range(1000):
        moment = schedule.after(moment)
        yield moment


def occurrences(schedule, start, count, *, seconds_kept=False):
    """The next occurrences, as recorded; with `seconds_kept`, those that the recorded version's bug gives."""
    found, moment = [], start
    if seconds_kept:
        kept = next((one for one in schedule.fields[0] if one > start.second), 0)
        moment = next(one for one in iter_after(schedule, start) if one.second >= kept)
        found, count = [f"{moment:%Y-%m-%dT%H:%M:%S}"], count - 1
    for _ in range(count):
        try:
            moment = schedule.after(moment)
        except NeverDueError:
            return [*found, None]
        if moment > start.replace(year=start.year + YEARS_LOOKED_AHEAD):
            return [*found, None]
        found.append(f"{moment:%Y-%m-%dT%H:%M:%S}")
    return found


@pytest.mark.parametrize("recorded", RECORDED, ids=lambda one: repr(one["expression"]))
def test_expressions_are_parsed_as_the_real_library_parses_them(recorded):
    if recorded["canonical"] is None:
        with pytest.raises(NotNcrontabError):
            parse(recorded["expression"])
        return
    schedule = parse(recorded["expression"])
    assert schedule.canonical == recorded["canonical"]
    got = {start: occurrences(schedule, at(start), len(found)) for start, found in recorded["next"].items()}
    if recorded["expression"] in FAULT_OF_3_3_0:
        at_midnight = "2027-03-01T00:00:00"
        assert got[at_midnight] != recorded["next"][at_midnight]
        got[at_midnight] = occurrences(schedule, at(at_midnight), 4, seconds_kept=True)
    assert got == recorded["next"]


def test_the_recordings_are_all_there():
    assert (len(RECORDED), sum(one["canonical"] is None for one in RECORDED)) == (389, 54)


@pytest.mark.parametrize(
    ("expression", "canonical"),
    [
        ("007 0 2 * * *", "7 0 2 * * *"),
        ("0000000000000000000005 0 2 * * *", "5 0 2 * * *"),
        ("5\t 0 2 * * *", "5 0 2 * * *"),
        ("0 0 2 * * 1\n", "0 0 2 * * 1"),
        ("0 0 2 * * 1\r\n", "0 0 2 * * 1"),
        ("   0   0 2    * * *", "0 0 2 * * *"),
        ("*/+5 0 2 * * *", "0,5,10,15,20,25,30,35,40,45,50,55 0 2 * * *"),
        ("*/05 0 2 * * *", "0,5,10,15,20,25,30,35,40,45,50,55 0 2 * * *"),
        ("*/\t30 0 2 * * *", "0,30 0 2 * * *"),
        ("*/2147483647 0 2 * * *", "0 0 2 * * *"),
        ("5/2147483642 0 2 * * *", "5 0 2 * * *"),
        ("*/-2147483648 0 2 * * *", "* 0 2 * * *"),
        ("5/0 0 2 * * *", "5-59 0 2 * * *"),
        ("59/5 0 2 * * *", "59 0 2 * * *"),
        ("3-3 0 2 * * *", "3 0 2 * * *"),
        ("0 0 2 * m *", "0 0 2 * 3 *"),
        ("0 0 2 * ma-MAY *", "0 0 2 * 3-5 *"),
        ("0 0 2 * a,au,N *", "0 0 2 * 4,8,11 *"),
        ("0 0 2 * * w,th,f,sa,s", "0 0 2 * * 0,3-6"),
        ("0 0 2 * * sat-sun", "0 0 2 * * *"),
        ("0 0 2 * * Sun-2", "0 0 2 * * 0-2"),
        ("*,5/7,3-4 0 2 * * *", "* 0 2 * * *"),
    ],
)
def test_unusual_expressions_are_accepted(expression, canonical):
    """Unusual expressions are accepted by the library's public source; no recording shows them."""
    assert parse(expression).canonical == canonical


@pytest.mark.parametrize(
    "expression",
    [
        "*\t 0 2 * * *", "0\t0 2 * * * *", "\t5 0 2 * * *", "/5 0 2 * * *", "5/ 0 2 * * *", "*/* 0 2 * * *", "*/a 0 2 * * *",
        "*/5-7 0 2 * * *", "*/+-5 0 2 * * *", "** 0 2 * * *", "5* 0 2 * * *", "5-* 0 2 * * *", "1,,2 0 2 * * *", ", 0 2 * * *",
        "2147483648 0 2 * * *", "*/2147483648 0 2 * * *", "*/-2147483649 0 2 * * *", "5/2147483643 0 2 * * *",
        "1" + "0" * 5000 + " 0 2 * * *", "0 0 2 0/5 * *", "0 0 2 * 0-3 *", "0 0 2 * * 0-7", "55-60 0 2 * * *", "60/5 0 2 * * *",
        "0 0 2 mon * *", "0 0 2 * mon *", "0 0 2 * * jan", "0 0 2 * * SUNDAYX", "0 0 2 * * \u017fun", "0 0 2 * * M\u00adon", "0 0 2 * * MON\t",
        "\u0661 0 2 * * *", "0\u00a00 2 * * *", "0 0 2 * * 1-MON-", "0 0 2 * * *;", "*\n", "@every 5m", "0 0 2 * * 1L", "0 0 2 L-3 * *",
    ],
)  # fmt: skip
def test_unusual_expressions_are_refused(expression):
    with pytest.raises(NotNcrontabError):
        parse(expression)


@pytest.mark.parametrize("found", ["0 0 2 * *", "0 0 2 * * * *", "", "   ", "00:05:00"])
def test_six_fields_are_expected(found):
    with pytest.raises(NotNcrontabError, match="six fields"):
        parse(found)


@pytest.mark.parametrize(
    ("expression", "expected_text"),
    [
        ("0 0 2 * * FRI-MON", "weekday 'FRI-MON' runs backwards: the host reverses it, into Monday to Friday"),
        ("0 0 22-2 * * *", "hour '22-2' runs backwards: the host reverses it, into 2 to 22"),
        ("0 0 2 * NOV-MAR/2 *", "into March to November"),
        ("*/0 0 2 * * *", "second '*/0' has a step of 0: the host takes it for 1, every value from 0 to 59"),
        ("0 5-9/-3 2 * * *", "minute '5-9/-3' has a step of -3: the host takes it for 1, every value from 5 to 9"),
        ("0 0 2 * * MON,3/0", "weekday '3/0' has a step of 0: the host takes it for 1, every value from Wednesday to Saturday"),
    ],
)
def test_a_pitfall_says_what_it_would_mean(expression, expected_text):
    assert [expected_text in one for one in parse(expression).pitfalls] == [True]


@pytest.mark.parametrize("expression", ["0 0 */12 * * *", "0 0 2 * * MON-FRI", "5-5 0-59/61 0/5 1-31/2 * *", "0 0 2 * * 0-6"])
def test_an_expression_that_means_what_it_seems_has_no_pitfall(expression):
    assert parse(expression).pitfalls == ()


# -- occurrences ----------------------------------------------------------------------------------------------------


@st.composite
def expressions(draw):
    """Any accepted expression, sparse ones and reversed ranges included."""

    def items(first, last, names):
        def value(number):
            name = names[number - first] if names else ""
            return draw(st.sampled_from([str(number), f"0{number}", *([name, name[:3].upper()] if name else [])]))

        def item():
            kind = draw(st.sampled_from(["*", "value", "range"]))
            one, other = draw(st.integers(first, last)), draw(st.integers(first, last))
            span = {"*": "*", "value": value(one), "range": f"{value(one)}-{value(other)}"}[kind]
            step = draw(st.sampled_from([None, None, -1, 0, 1, 2, 5, 40, 100]))
            low, high = (first, last) if kind == "*" else (min(one, other), max(one, other)) if kind == "range" else (one, one)
            if kind == "value" and step is not None:
                high = last
            return span + (f"/{step}" if step is not None else ""), set(range(low, high + 1, max(1, step or 1)))

        parts = [item() for _ in range(draw(st.integers(1, 3)))]
        return ",".join(text for text, _ in parts), set().union(*(found for _, found in parts))

    months = [
        "January",
        "February",
        "March",
        "April",
        "May",
        "June",
        "July",
        "August",
        "September",
        "October",
        "November",
        "December",
    ]
    days = ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"]
    drawn = [items(0, 59, ()), items(0, 59, ()), items(0, 23, ()), items(1, 31, ()), items(1, 12, months), items(0, 6, days)]
    return " ".join(text for text, _ in drawn), [found for _, found in drawn]


moments = st.integers(0, 80 * 365 * 86400 * 10**6).map(
    lambda micros: datetime(2020, 1, 1, tzinfo=UTC) + timedelta(microseconds=micros)
)


def is_due(sets, moment):
    """The model: a moment is due when each of its six parts is in its field."""
    parts = (moment.second, moment.minute, moment.hour, moment.day, moment.month, (moment.weekday() + 1) % 7)
    return all(part in found for part, found in zip(parts, sets, strict=True))


@settings(deadline=None)
@given(expressions(), moments)
def test_occurrences_are_due_and_nothing_between_them_is(drawn, moment):
    """Occurrences agree with the model: day by day for the date, then second by second of that day."""
    expression, sets = drawn
    schedule = parse(expression)
    assert [set(found) for found in schedule.fields] == sets
    try:
        found = schedule.after(moment)
    except NeverDueError:
        assert not any(
            is_due([{0}, {0}, {0}, *sets[3:]], datetime(2000, 1, 1, tzinfo=UTC) + timedelta(days=day)) for day in range(146097)
        )
        return
    assert found > moment and is_due(sets, found)
    day = moment.replace(microsecond=0)
    for number in range((found.date() - moment.date()).days):
        later = day.replace(hour=0, minute=0, second=0) + timedelta(days=number)
        of_day = is_due([{0}, {0}, {0}, *sets[3:]], later)
        last = (max(sets[2]), max(sets[1]), max(sets[0]))
        assert not of_day or (number == 0 and last <= (moment.hour, moment.minute, moment.second))
    begin = max(moment.replace(microsecond=0) + SECOND, found.replace(hour=0, minute=0, second=0))
    earlier = next(t for t in (begin + number * SECOND for number in range(86400)) if is_due(sets, t))
    assert earlier == found
    assert schedule.before(found + timedelta(microseconds=1)) == found


@settings(deadline=None)
@given(expressions(), moments)
def test_next_and_previous_occurrences_are_consistent(drawn, moment):
    """The occurrence before the next one is not after the moment, and the one after the last is not before it."""
    schedule = parse(drawn[0])
    try:
        upcoming, last = schedule.after(moment), schedule.before(moment)
    except NeverDueError:
        return
    assert last < moment < upcoming
    assert schedule.before(upcoming) in (last, moment)
    assert schedule.after(last) in (upcoming, moment)


def test_the_end_of_february_over_a_century():
    """29 February on a given weekday: every 28 years, after 40 across 2100; 30 February never comes, nor 31 April."""
    for weekday in range(7):
        schedule, moment, seen = parse(f"0 0 2 29 2 {weekday}"), datetime(1990, 1, 1, tzinfo=UTC), []
        for _ in range(16):
            moment = schedule.after(moment)
            seen.append(moment)
        assert all((one.month, one.day, one.isoweekday() % 7) == (2, 29, weekday) for one in seen)
        assert [schedule.before(later) for later in seen[1:]] == seen[:-1]
        assert len(seen) == 16 and seen == sorted(set(seen))
        # No 29 February of that weekday was passed over.
        years = range(seen[0].year, seen[-1].year + 1, 4)
        leap = [year for year in years if year % 100 or year % 400 == 0]
        assert [one.year for one in seen] == [year for year in leap if date(year, 2, 29).isoweekday() % 7 == weekday]
    for never in ("0 0 2 30 2 *", "0 0 2 31 2,4,6,9,11 *"):
        for look in (parse(never).after, parse(never).before):
            with pytest.raises(NeverDueError, match="never due within 40 years"):
                look(datetime(2026, 1, 1, tzinfo=UTC))


def test_the_turn_of_a_year_and_the_ends_of_the_calendar():
    yearly = parse("59 59 23 31 12 *")
    assert yearly.after(at("2026-12-31T23:59:58")) == at("2026-12-31T23:59:59")
    assert yearly.after(at("2026-12-31T23:59:59")) == at("2027-12-31T23:59:59")
    assert yearly.before(at("2027-01-01T00:00:00")) == at("2026-12-31T23:59:59")
    assert parse("* * * * * *").after(at("2026-12-31T23:59:59.999999")) == at("2027-01-01T00:00:00")
    assert yearly.before(at("9999-12-31T00:00:00")) == at("9998-12-31T23:59:59")
    with pytest.raises(NeverDueError):
        parse("0 0 0 1 1 *").after(at("9999-06-01T00:00:00"))
    with pytest.raises(NeverDueError):
        yearly.before(at("0001-06-01T00:00:00"))
