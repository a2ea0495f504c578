"""Names, metadata, progress, decisions, redaction."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backup_core.domain.identity import Deployment
from backup_core.domain.metadata import (
    HeadMark,
    PageMapDigest,
    Site,
    described,
    from_metadata,
    from_point_metadata,
    to_metadata,
    to_point_metadata,
)
from backup_core.domain.naming import (
    BlobAddress,
    disk_of_run,
    http_run_id,
    is_disk_id,
    point_id,
    point_key,
    run_key,
    snapshot_time,
    timer_run_id,
)
from backup_core.domain.progress import _BACKUP_SPAN, _PHASE_SPAN, _RESTORE_SPAN, eta_seconds, percent, verifying_from
from backup_core.domain.records import RestorePoint
from backup_core.domain.redaction import redacted

HEAD = Site(Deployment("backup/pagekeeper"), BlobAddress("https://backup.blob.core.windows.net", "heads", "h"))
B = "2026-01-01T00:00:01.0000000Z"
moments = st.integers(0, 84 * 365 * 86400 * 10**6).map(
    lambda micros: datetime(2016, 1, 1, tzinfo=UTC) + timedelta(microseconds=micros)
)
MARK = HeadMark(
    "vm", 3, 5, "vm.20260101T000000Z.timer", "applying", "https://s/c/b", "2026-01-01T00:00:00.0000001Z", "", 4096, "full"
)


def snapshot_of(moment, ticks=0):
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{moment.microsecond:06d}{ticks}Z"


@given(moments, moments)
def test_newer_points_and_runs_sort_first(one, other):
    """Row keys are made so that a listing is newest first."""
    if one == other:
        return
    older, newer = sorted((one, other))
    assert point_key(point_id(snapshot_of(newer))) < point_key(point_id(snapshot_of(older)))
    if older.replace(microsecond=0) < newer.replace(microsecond=0):
        assert run_key(timer_run_id("vm", newer)) < run_key(timer_run_id("vm", older))


def test_points_a_tick_apart_sort_correctly():
    moment = datetime(2026, 1, 1, tzinfo=UTC)

    assert point_key(point_id(snapshot_of(moment, 1))) < point_key(point_id(snapshot_of(moment, 0)))


@given(st.from_regex(r"[a-z0-9][a-z0-9-]{0,62}", fullmatch=True), moments)
def test_run_ids_name_their_disk_and_fit_an_instance_id(disk, moment):
    for run in (timer_run_id(disk, moment), http_run_id(disk, moment, "0123abcd")):
        assert disk_of_run(run) == disk
        assert len(run) <= 100
        assert not set(run) & set("/\\#?")


@given(st.text(max_size=70))
def test_only_plain_ids_are_disk_ids(text):
    if is_disk_id(text):
        assert text.isascii()
        assert len(text) <= 63
        assert set(text) <= set("abcdefghijklmnopqrstuvwxyz0123456789-")


@pytest.mark.parametrize("text", ["", "a\n", "-a", "a_b", "a.b", "A", "a" * 64])
def test_invalid_disk_ids_are_refused(text):
    assert not is_disk_id(text)


def test_marks_survive_metadata():
    verified = MARK.verified("ab" * 32)

    assert from_metadata(to_metadata(MARK, HEAD), HEAD) == MARK
    assert from_metadata(to_metadata(verified, HEAD), HEAD) == verified
    assert all(name.isidentifier() and value.isascii() for name, value in to_metadata(verified, HEAD).items())


@pytest.mark.parametrize("lost", ["schema", "disk", "generation", "epoch", "run", "state", "source", "target", "size", "kind"])
def test_an_incomplete_mark_is_ignored(lost):
    """A mark that was not written whole by this version proves nothing."""
    metadata = to_metadata(MARK, HEAD)
    del metadata[f"pagekeeper_{lost}"]

    assert from_metadata(metadata, HEAD) is None


@pytest.mark.parametrize(
    ("name", "value"),
    [("state", "done"), ("size", "big"), ("schema", "2"), ("blob", "backup/heads/rescued.vhd"), ("deployment", "backup/other")],
)
def test_an_unknown_mark_is_ignored(name, value):
    assert from_metadata(to_metadata(MARK, HEAD) | {f"pagekeeper_{name}": value}, HEAD) is None


POINT = described(
    RestorePoint(
        disk="vm", point="20260101T0000000000001Z", kind="full", reason="first backup", generation=3, head="h",
        source="https://s/c/b", source_snapshot="2026-01-01T00:00:00.0000001Z", previous_source_snapshot="",
        backup_snapshot=B, size=4096, write_bytes=512, clear_bytes=0, requests=1, epoch=5, run="r", digest="",
        page_map="ab" * 32, verified="v", committed=datetime(2026, 1, 1, tzinfo=UTC),
    )
)  # fmt: skip


def test_points_survive_metadata():
    """A backup snapshot says everything of its point except its address, which is the snapshot's own."""
    for point in (POINT, described(replace(POINT, automatic_fulls=2, previous_source_snapshot="2025-01-01T00:00:00.0000001Z"))):
        carried = to_point_metadata(point, HEAD)

        assert from_point_metadata(carried, HEAD, B) == point
        assert all(name.isidentifier() and value.isascii() for name, value in carried.items())
        assert sum(len(name) + len(value) for name, value in carried.items()) < 8192, "the service's limit (Set Blob Metadata)"
    assert from_metadata(to_point_metadata(POINT, HEAD), HEAD) is None, "a point is no mark"
    assert from_point_metadata(to_metadata(MARK, HEAD), HEAD, B) is None


@pytest.mark.parametrize(
    "fields", [{"kind": "mirrored"}, {"disk": "../x"}, {"point": "20251231T0000000000000Z"}, {"source_snapshot": "now"}]
)
def test_a_description_that_no_version_of_this_app_writes(fields):
    """A complete description with a correct digest is still no point when no version of this app writes it."""
    assert from_point_metadata(to_point_metadata(described(replace(POINT, **fields)), HEAD), HEAD, B) is None


@pytest.mark.parametrize("name", sorted(set(to_point_metadata(POINT, HEAD)) - {"pagekeeper_deployment"}))
def test_every_field_of_a_point_counts(name):
    """A missing or changed field makes the description invalid."""
    carried = to_point_metadata(POINT, HEAD)

    assert from_point_metadata({key: value for key, value in carried.items() if key != name}, HEAD, B) is None
    assert from_point_metadata(carried | {name: carried[name] + "1"}, HEAD, B) is None


@given(st.lists(st.integers(0, 100), unique=True, min_size=1), st.integers(0, 5))
def test_page_map_digests_do_not_depend_on_how_ranges_are_cut(pages, cut):
    """Touching ranges count as one, however the service cut them; other pages give another digest."""
    whole, pieces, other = (PageMapDigest(PageMapDigest.START) for _ in range(3))
    starts = sorted(pages)
    runs, first = [], starts[0]
    for a, b in zip(starts, [*starts[1:], None], strict=True):
        if b != a + 1:
            runs.append((first, a + 1))
            first = b
    for start, end in runs:
        whole.add(start, end)
    for page in starts:
        pieces.add(page, page + 1)
        other.add(page + 1, page + 2)

    digest = whole.finish()
    assert pieces.finish() == digest
    assert other.finish() != digest


@given(
    st.sampled_from(sorted(_PHASE_SPAN)),
    st.integers(0, 100),
    st.integers(0, 100),
    st.integers(0, 99),
    st.integers(0, 1),
    st.integers(0, 10**6),
    st.integers(0, 10**7),
)
def test_percent_stays_within_bounds_and_never_decreases(phase, done, total, before, rounds, copies, reads):
    value = percent(phase, done, total, before, rounds_left=rounds, verifying=verifying_from(copies, reads))

    assert before <= value <= 99


def test_a_long_verification_has_its_share():
    """The percentage and the time left show two hours of reading after a minute of copying."""
    begins = verifying_from(copies=100, reads=100_000)

    assert (
        percent("copying", 100, 100, 0, verifying=begins) == percent("verifying", 0, 100, 0, verifying=begins) == begins == 13
    )
    assert percent("verifying", 50, 100, 0, verifying=begins) == 54
    assert verifying_from(copies=100_000, reads=100) == 86
    assert eta_seconds(datetime(2026, 1, 1, tzinfo=UTC), datetime(2026, 1, 1, 0, 10, tzinfo=UTC), 20) == 2400


@pytest.mark.parametrize("spans", [_BACKUP_SPAN, {k: v for k, v in _RESTORE_SPAN.items() if k != "undoing"}])
def test_phases_follow_each_other(spans):
    spans = list(spans.values())

    assert all(a[1] == b[0] for a, b in pairwise(spans))


TOKEN = "eyJ0eXAiOiJKV1QiLCJhbGciOiJSUzI1NiJ9.eyJhdWQiOiJodHRwczovL3N0b3JhZ2UifQ.abcDEF_-123"
SIGNATURE = "q+L/zK1SZFPTOtr0KBHBeksoGMGwUVErCz4I6tq/K1S="
KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="


@pytest.mark.parametrize(
    "text",
    [
        f"https://a.test/c/b?sv=1&sig={KEY.replace('+', '%2B').replace('/', '%2F').replace('=', '%3D')}&sp=r",
        f"AccountKey={KEY};EndpointSuffix=x",
        "Authorization: Bearer eyJ0eXAiOiJKV1QiLCJhbGciOi.secret",
        "GET /x?code=abcdefgh1234",
        f"signed with {SIGNATURE}",
        f"signed with {quote(SIGNATURE, safe='')}",
        f"the key is {KEY} here",
        '{"sig": "abc/def+ghi="}',
        json.dumps(json.dumps({"sig": "abc/def+ghi="})),
        r'{"url": "https://a.test/c/b?sv=1\u0026sig\u003dabc/def\u0026sp=r"}',
        "https://a.test/c/b?sv=1&amp;sig=abc/def&amp;sp=r",
        f"the key is {quote(KEY, safe='')} here",
        f"got {TOKEN}.",
        f"token={TOKEN}&x=1",
        "host key AbCdEfGhIjKlMnOpQrStUvWxYz0123456789AbCdEfGhIjKlMnOpAzFuAA== was sent",
    ],
)
def test_secrets_are_redacted(text):
    clean = redacted(text)

    assert "REDACTED" in clean
    for secret in (KEY, "eyJ", "abcdefgh1234", "abc/def", "Eby8", "AbCd", SIGNATURE[:8]):
        assert secret not in clean


@pytest.mark.parametrize("times", [0, 1, 2, 3])
@pytest.mark.parametrize("name", ["sig", "Signature", "code", "AccountKey", "access_token"])
def test_secrets_are_redacted_however_often_they_are_encoded(times, name):
    """Secrets in nested URLs are redacted; the text beside the secret stays readable."""
    text = f"https://a.test/c/b?sv=1&{name}={quote('q+L/zK1SZF', safe='')}&sp=rw"
    for _ in range(times):
        text = quote(text, safe="")
    clean = redacted(text)

    assert "zK1SZF" not in clean
    assert clean.endswith("rw")
    assert "a.test" in clean


def test_ordinary_text_is_left_alone():
    text = "disk vm: snapshot 2026-01-01T00:00:00.0000000Z of https://a.test/c/b is gone; digest " + "ab" * 32

    assert redacted(text) == text


@given(st.datetimes())
def test_the_moment_of_a_snapshot_is_its_name(moment):
    """To the microsecond; the seventh decimal is beyond that."""
    assert snapshot_time(f"{moment.isoformat(timespec='microseconds')}7Z") == moment.replace(tzinfo=UTC)


@pytest.mark.parametrize("text", ["", "2026-02-30T00:00:00.0000000Z", "2026-01-01T24:00:00.0000000Z", "2026-01-01T00:00:00Z"])
def test_text_that_is_no_snapshot_name_has_no_moment(text):
    with pytest.raises(ValueError):  # noqa: PT011  of whichever part
        snapshot_time(text)
