"""The benchmark of the limits: its server refuses requests above them, and its page reports the results."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from dataclasses import replace

from backup_core.domain.ranges import MIB
from bench.limits import Diff, Reached, copied, picture, section
from devhost.throttling import BURST_SECONDS, Limited, ThrottlingServer

GOOD = Reached("small", 4, 10.0, 9.5, 4750, 0.05)


def test_a_blob_accepts_requests_within_its_limits_and_counts_the_others():
    blob = Limited()
    burst = int(500 * BURST_SECONDS)

    assert [blob.takes(512, 100.0) for _ in range(burst + 2)] == [True] * burst + [False] * 2
    assert [blob.takes(4 * MIB, 101.0) for _ in range(4)] == [True, True, True, False]
    assert [blob.takes(0, 105.5) for _ in range(burst + 1)] == [True] * burst + [False]
    assert (blob.taken, blob.refused, blob.late, blob.late_refused) == (2 * burst + 3, 4, burst + 1, 1)


async def test_a_diff_is_copied_by_the_real_steps_request_by_request():
    """Ranges of one page and of 5 MiB: each is put once, and the server has seen them all."""
    with ThrottlingServer() as server:
        reached = await copied(server.url, Diff("both", lambda number: 5 * MIB if number == 3 else 512, 20), 4)

    assert (reached.requests, reached.shards) == (21, 4)


def test_the_goals():
    assert GOOD.met
    assert not replace(GOOD, seconds=10.1).met
    assert not replace(GOOD, refused=0.051).met
    assert "| small | 4 | 4,750 | 9.5 | 10.0 | 95.0% | 5.00% | met |" in section([GOOD], 9.5).text
    assert "| missed |" in section([replace(GOOD, seconds=11)], 9.5).text


def test_the_picture_has_a_bar_for_each_diff_and_the_goal():
    drawn = ET.fromstring(picture([GOOD, replace(GOOD, seconds=11)]))
    texts = [one.text for one in drawn.iter("{http://www.w3.org/2000/svg}text")]

    assert texts[1:5] == ["small, 4 shards", "95.0%", "small, 4 shards", "86.4%"]
    assert texts[-1] == "goal: 95%"
    assert {one.get("fill") for one in drawn.iter("{http://www.w3.org/2000/svg}rect")} == {"#ffffff", "#2f6f9f", "#b3472d"}
