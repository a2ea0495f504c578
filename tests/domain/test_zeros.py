"""Runs of zeros: found wherever they lie, whole pages of them, long enough, and none missed."""

from __future__ import annotations

import random

import pytest

from backup_core.domain.ranges import KIB, MIB, PAGE, PUT_BYTES_MAX, ByteRange
from backup_core.domain.zeros import ZERO_BYTES_MIN, without_zeros

AT = 5 * MIB


def pieces(data, size=None):
    """The puts and clears that a part becomes, as offsets in it."""
    part = ByteRange(AT, AT + (len(data) if size is None else size))
    return [(one.range.start - AT, one.range.end - AT, one.cleared) for one in without_zeros(data, part)]


def made(size, *zeros):
    """Bytes of ones with zeros in the given ranges."""
    data = bytearray(b"\x01") * size
    for start, end in zeros:
        data[start:end] = bytes(end - start)
    return data


def test_without_zeros_there_is_one_put():
    assert pieces(made(PUT_BYTES_MAX)) == [(0, PUT_BYTES_MAX, False)]


@pytest.mark.parametrize("size", [PAGE, 8 * KIB, 128 * KIB + PAGE, ZERO_BYTES_MIN, PUT_BYTES_MAX])
def test_all_zeros_are_one_clear_whatever_their_size(size):
    assert pieces(bytearray(size)) == [(0, size, True)]


@pytest.mark.parametrize("start", [PAGE, 127 * KIB, 128 * KIB + PAGE, 3 * MIB])
def test_a_run_is_cleared_from_its_least_size_on_wherever_it_begins(start):
    end = start + ZERO_BYTES_MIN
    assert pieces(made(PUT_BYTES_MAX, (start, end))) == [(0, start, False), (start, end, True), (end, PUT_BYTES_MAX, False)]
    assert pieces(made(PUT_BYTES_MAX, (start, end - PAGE))) == [(0, PUT_BYTES_MAX, False)]


def test_only_whole_pages_are_cleared():
    data = made(MIB, (PAGE + 1, PAGE + 1 + ZERO_BYTES_MIN + 2 * PAGE))
    start, end = 2 * PAGE, PAGE + ZERO_BYTES_MIN + 2 * PAGE
    assert pieces(data) == [(0, start, False), (start, end, True), (end, MIB, False)]


def test_bytes_of_the_buffer_after_the_part_do_not_count():
    assert pieces(made(PUT_BYTES_MAX, (PAGE, PUT_BYTES_MAX)), PAGE) == [(0, PAGE, False)]
    assert pieces(made(PUT_BYTES_MAX, (0, PAGE)), PAGE) == [(0, PAGE, True)]


@pytest.mark.parametrize("seed", range(30))
def test_pieces_cover_the_part_and_classify_its_bytes_correctly(seed):
    """In random data, each cleared piece is a maximal run of zeros, and no written piece contains a long run."""
    rng = random.Random(seed)
    cuts = sorted(rng.sample(range(PUT_BYTES_MAX // PAGE), rng.randint(2, 12)))
    data = made(PUT_BYTES_MAX, *((a * PAGE, b * PAGE) for a, b in zip(cuts[::2], cuts[1::2], strict=False)))
    at = 0
    for start, end, cleared in pieces(data):
        assert start == at
        at = end
        if cleared:
            assert not any(data[start:end])
            assert end - start >= ZERO_BYTES_MIN
            assert start == 0 or any(data[start - PAGE : start])
            assert end == len(data) or any(data[end : end + PAGE])
        else:
            assert bytes(ZERO_BYTES_MIN + PAGE) not in data[start:end]
    assert at == len(data)
