"""Unchanged gaps copied along: fewer requests, the same restore point, and distinguished from changes."""

from __future__ import annotations

from dataclasses import replace

import pytest

from backup_core.domain.ranges import ByteRange
from backup_core.protocol.page_maps import touched
from backup_core.steps.backup import Transfer
from tests.scene import PAGE, Scene

PAGES = 200


async def scene_of(*, gap_ratio=2.0, gaps_min=1, **options):
    """An allocated disk with one restore point, then every second page of its first half written."""
    scene = Scene(**options).with_limits(gap_ratio=gap_ratio, gaps_min=gaps_min)
    scene.protect(pages=PAGES)
    scene.write(0, *[1] * PAGES)
    await scene.back_up()
    scene.port_calls.clear()
    for page in range(0, PAGES // 2, 2):
        scene.write(page, 2)
    return scene


def newest(scene):
    """The newest point, once it is what the source holds, page by page and allocation by allocation."""
    point = scene.points()[-1]
    source = scene.blobs.blobs[scene.source()]
    head = scene.blobs.blobs[scene.tools.head(point.head)].snapshots[point.backup_snapshot]
    assert (head.content(), set(head.pages)) == (source.content(), set(source.pages))
    return point


@pytest.mark.parametrize("diff", ["writes", "content"])
@pytest.mark.parametrize("copy_mode", ["auto", "stream"])
async def test_small_gaps_are_copied_along_and_not_counted_as_changed(diff, copy_mode):
    scene = await scene_of(diff=diff, copy_mode=copy_mode)
    await scene.back_up()

    assert scene.port_calls["copy_from_url"] + scene.port_calls["write"] == 1
    point = newest(scene)
    assert (point.kind, point.requests, point.write_bytes) == ("incremental", 1, PAGES // 4 * PAGE)


@pytest.mark.parametrize("limits", [{"gap_ratio": 0.0}, {"gap_ratio": 0.9}, {"gaps_min": 50}], ids=str)
async def test_no_gap_is_copied_beyond_the_budget_or_for_little(limits):
    """49 gaps of a page between 50 changes of a page."""
    scene = await scene_of(**limits)
    await scene.back_up()

    assert scene.port_calls["copy_from_url"] == PAGES // 4
    assert newest(scene).requests == PAGES // 4


async def test_a_cleared_gap_and_one_that_was_never_written_stay_as_they_are():
    scene = Scene().with_limits(gaps_min=1)
    scene.protect(pages=64)
    scene.write(0, *[1] * 20, *[None] * 2, *[1] * 20)
    await scene.back_up()
    scene.port_calls.clear()
    scene.write(4, 2, 1, 2, None, 2, 1, 2)  # 4 and 6 with 5, 8 and 10 with 9, 7 cleared
    scene.write(18, 2, 2, None, None, 2, 2)  # 18 to 19, 22 to 23, nothing between
    await scene.back_up()

    point = newest(scene)
    assert point.clear_bytes == 3 * PAGE
    assert scene.port_calls["clear"] == 2


async def test_a_gap_allocated_on_one_side_only_is_not_copied():
    """A diff by content shows no zeros that were written where nothing was, or cleared where zeros were."""
    scene = Scene(diff="content").with_limits(gaps_min=1)
    scene.protect(pages=16)
    scene.write(0, 1, 1, 1, 0, 1, 1, None, 1, 1)
    await scene.back_up()
    scene.write(0, 2, 1, 2, None, 2, 1, 0, 1, 2)
    scene.port_calls.clear()
    await scene.back_up()

    point = scene.points()[-1]
    head = scene.blobs.blobs[scene.tools.head(point.head)].snapshots[point.backup_snapshot]
    assert scene.content(point) == scene.blobs.blobs[scene.source()].content()
    assert 6 not in head.pages
    assert scene.port_calls["copy_from_url"] == 3, "0 to 2; 4; 8"


async def test_shards_cut_gaps_as_the_plan_did_however_often_they_are_called():
    """Time is always up, so each shard continues from its cursor again and again; the sums are those of the plan."""
    scene = (await scene_of()).with_limits(shard_bytes_max=20 * PAGE, in_flight=1)
    for page in range(101, 160, 3):
        scene.write(page, None)
    for page in range(160, 199, 3):
        scene.write(page, 3)
    ticks = iter(range(0, 10**9, 1000))
    scene.tools = replace(scene.tools, monotonic=lambda: float(next(ticks)))
    driver = await scene.back_up()

    results = [answer["value"] for name, _, answer in driver.calls if name == "apply_shard"]
    assert [one["done"] for one in results].count(False) > 3
    point = newest(scene)
    assert point.requests < 60
    assert point.write_bytes == (PAGES // 4 + 13) * PAGE


async def test_a_disk_that_has_grown_copies_no_gap_of_its_new_part():
    scene = await scene_of()
    scene.blobs.blobs[scene.source()].size += 64 * PAGE
    scene.write(PAGES + 1, 4, None, 4, None, 4)
    await scene.back_up()

    assert newest(scene).requests == 4


async def test_a_full_backup_copies_no_gap():
    scene = Scene().with_limits(gaps_min=1)
    scene.protect(pages=PAGES)
    for page in range(0, PAGES, 2):
        scene.write(page, 1)
    await scene.back_up()

    assert newest(scene).requests == PAGES // 2


async def test_the_verification_takes_copied_gaps_for_changed():
    """They equal the source by being copied: a sample of them would say nothing of what the diff leaves alone."""
    scene, found = await scene_of(), []

    async def perform(name, request):
        if name == "verify_head":
            transfer = Transfer.model_validate(request["transfer"])
            found.extend([one async for one in touched(scene.tools, transfer, ByteRange(0, PAGES * PAGE))])
        return await scene.perform(name, request)

    request, driver = scene.request(), scene.driver()
    driver._perform = perform
    await driver.run("backup_disk", request.model_dump(mode="json"), request.run)

    assert sum(one.size for one in found) == (PAGES // 2 - 1) * PAGE
