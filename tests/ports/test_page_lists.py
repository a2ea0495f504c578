"""Page lists: parsed as a stream, cut at the window, halved on time-out, within little memory for a million ranges."""

from __future__ import annotations

import subprocess
import sys

import pytest

from backup_core.adapters.page_lists import PageListParser
from backup_core.domain.errors import UnexpectedAnswerError
from backup_core.domain.ranges import ByteRange
from devhost.platform import REPOSITORY
from devhost.processes import PATIENCE

WINDOW = ByteRange(0, 1 << 30)
HEAD = b'\xef\xbb\xbf<?xml version="1.0" encoding="utf-8"?>\n'


def parse(*pieces, window=WINDOW):
    parser = PageListParser(window, "list x")
    for piece in pieces:
        parser.feed(piece)
    ranges, marker = parser.finish()
    return [(one.range.start, one.range.end, one.cleared) for one in ranges], marker


def test_ranges_of_both_kinds_and_a_marker():
    """As recorded from the service: a byte-order mark, kinds interleaved, inclusive ends."""
    body = (
        HEAD + b"<PageList><PageRange><Start>0</Start><End>511</End></PageRange><ClearRange><Start>1024</Start>"
        b"<End>2047</End></ClearRange><NextMarker>2!16!MDAw</NextMarker></PageList>"
    )
    expected = ([(0, 512, False), (1024, 2048, True)], "2!16!MDAw")

    assert parse(body) == expected
    assert parse(*[body[at : at + 1] for at in range(len(body))]) == expected


@pytest.mark.parametrize("body", [b"<PageList />", b"<PageList></PageList>", b"<PageList><NextMarker/></PageList>"])
def test_nothing_listed(body):
    assert parse(HEAD + body) == ([], "")


def test_ranges_are_cut_at_the_window():
    body = b"<PageList><PageRange><Start>0</Start><End>4095</End></PageRange></PageList>"

    assert parse(body, window=ByteRange(1024, 2048)) == ([(1024, 2048, False)], "")
    assert parse(body, window=ByteRange(8192, 9216)) == ([], "")


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<PageList><PageRange><Start>0</Start>",
        b"<PageList><PageRange><Start>0</Start><End>511</End></PageRange>",
        b"<Error><Code>x</Code></Error>",
        b"<PageList><PageRange><Start>0</Start></PageRange></PageList>",
        b"<PageList><PageRange><Start>0</Start><End>512</End></PageRange></PageList>",
        b"<PageList><PageRange><Start>512</Start><End>0</End></PageRange></PageList>",
        b"<PageList><PageRange><Start>-512</Start><End>511</End></PageRange></PageList>",
        b"<PageList><PageRange><Start>1e3</Start><End>2047</End></PageRange></PageList>",
        b"<PageList><DataRange><Start>0</Start><End>511</End></DataRange></PageList>",
        b'<!DOCTYPE x [<!ENTITY a "512">]><PageList><PageRange><Start>&a;</Start><End>1023</End></PageRange></PageList>',
        b"{}",
    ],
)
def test_an_answer_that_is_no_page_list_is_refused(body):
    """A cut-off or strange answer is an error, never a short list."""
    with pytest.raises(UnexpectedAnswerError, match=r"list x: .*nothing was assumed"):
        parse(body)


@pytest.mark.timeout(200)
def test_a_million_ranges_are_listed_and_planned_in_little_memory():
    """In a process of its own, against a server that makes the answers up: peak memory is at most 60 MB higher."""
    ended = subprocess.run(
        [sys.executable, "-m", "tests.ports.million"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=180 * PATIENCE,
        check=False,
    )
    print(ended.stdout)

    assert ended.returncode == 0, ended.stdout + ended.stderr
