"""The simulation of windows: what an account takes, what the page says, and the picture."""

from __future__ import annotations

import struct
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backup_core.domain.pacing import ACCOUNT_RATES, BLOB_RATES
from bench.fleet import (
    GOAL,
    PICTURE,
    STEPS_SECONDS,
    Disk,
    Figures,
    fleet,
    least,
    measured,
    ordered,
    picture,
    placed,
    played,
    section,
)
from bench.page import PAGE, Section

disks = st.lists(
    st.builds(Disk, st.uuids().map(str), st.floats(1, 1e12), st.floats(1, 1e7), st.just(())), min_size=1, max_size=80
)


@given(disks, st.integers(1, 64))
def test_a_window_copies_everything_within_the_limits(some, active):
    """Never more disks than may be, never more than the account takes, and in the end all bytes; never below the bound."""
    window = played(some, active)

    assert len(window.ends) == len(some)
    assert window.ends[-1] >= least(some) * (1 - 1e-9)
    assert max(one.active for one in window.moments) == min(len(some), active)
    assert max(one.bytes for one in window.moments) <= ACCOUNT_RATES.bytes * (1 + 1e-6)
    assert max(one.requests for one in window.moments) <= ACCOUNT_RATES.requests * (1 + 1e-6)
    pairs = list(zip(window.moments, window.moments[1:], strict=False))
    copied = sum(one.bytes * (then.at - one.at) for one, then in pairs)
    assert copied == pytest.approx(sum(one.bytes for one in some), rel=1e-3, abs=1e6)


def test_one_disk_takes_its_steps_and_its_copying():
    window = played([Disk("one", 600 * BLOB_RATES.bytes, 1, ())])

    assert window.ends == (pytest.approx(STEPS_SECONDS + 600),)


def test_a_hundred_disks_that_fill_the_account_share_it():
    """All at once, each at a share of its pace."""
    some = [Disk(f"{n}", 600 * BLOB_RATES.bytes, 1, ()) for n in range(100)]

    assert played(some, 100).ends[-1] == pytest.approx(STEPS_SECONDS + least(some), rel=1e-6)
    assert least(some) == pytest.approx(600 * 100 * BLOB_RATES.bytes / ACCOUNT_RATES.bytes)


def test_the_goals():
    good = Figures(10, 1, 100.0, 100 * GOAL, 5.0)

    assert "| 10 | 1 | 1.7 min | 1.8 min | 1.10 | met |" in section([good], []).text
    assert section([good], []).met
    assert "| missed |" in (missed := section([Figures(10, 1, 100.0, 111.0, 5.0)], [])).text
    assert not missed.met


def test_the_section_replaces_itself_and_nothing_else():
    before, other = "# Performance\n\nText.\n", "\n## Fleets of others\n\nMore.\n"
    once = placed(before, Section("Fleet", "Old.", met=True)) + other

    assert placed(once, Section("Fleet", "New.", met=True)) == f"{before}\n## Fleet\n\nNew.\n{other}"


def test_the_page_says_what_the_command_finds_today():
    """The simulation is the same everywhere: an order or a limit that changes changes the page, by `make fleet`."""
    assert f"## Fleet\n\n{section(*measured()).text}\n" in PAGE.read_text(), (
        "docs/performance.md is not today's; run make fleet"
    )
    drawn = pixels(picture(played(ordered(fleet(100)))))
    assert pixels(PICTURE.read_bytes()) == drawn, "docs/pictures/fleet.png is not today's; run make fleet"


def pixels(data):
    """The rows of a PNG, by the format's own lengths and checksums."""
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    parts, at = {}, 8
    while at < len(data):
        length, kind = struct.unpack(">I4s", data[at : at + 8])
        content = data[at + 8 : at + 8 + length]
        assert struct.unpack(">I", data[at + 8 + length : at + 12 + length])[0] == zlib.crc32(kind + content)
        parts[kind], at = content, at + 12 + length
    assert list(parts) == [b"IHDR", b"IDAT", b"IEND"]
    width, height = struct.unpack(">II", parts[b"IHDR"][:8])
    rows = zlib.decompress(parts[b"IDAT"])
    assert len(rows) == height * (1 + 3 * width)
    return rows
