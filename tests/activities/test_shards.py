"""Copying a shard: what a crash repeats, where a call that ran out of time continues, and which way the bytes take."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from backup_core.domain.errors import CopySourceUnreachableError
from backup_core.domain.naming import cursor_name, shard_end_name
from backup_core.domain.records import Owner
from backup_core.orchestrations.backup_disk import BackupFailedError
from backup_core.protocol import copy_route
from backup_core.protocol.listings import BATCH, BATCHES_AHEAD, in_order
from tests.scene import PAGE, SOURCE, Scene

PAGES = 200
WAVE, IN_FLIGHT = 10, 4


class CrashError(BaseException):
    """The worker is gone: nothing of the product may catch it."""


def scene_of(**options):
    """A disk whose every second page is written: a hundred requests in one shard."""
    scene = Scene(**options).with_limits(wave_requests=WAVE, in_flight=IN_FLIGHT)
    scene.protect(pages=PAGES)
    for page in range(0, PAGES, 2):
        scene.write(page, 1 + page % 250)
    return scene


async def run(scene, perform=None, **fields):
    request, driver = scene.request(**fields), scene.driver()
    if perform:
        driver._perform = perform
    await driver.run("backup_disk", request.model_dump(mode="json"), request.run)
    return driver


@pytest.mark.parametrize("crash_at", [1, 7, WAVE, WAVE + 1, 37, 60, 99])
async def test_a_crash_inside_a_shard_repeats_no_more_than_a_wave(crash_at):
    """Kill the worker at a put: all but the wave in flight is left as it is, and the point is right."""
    puts = 0

    async def before(name):
        nonlocal puts
        if name == "copy_from_url":
            puts += 1
            if puts == crash_at:
                raise CrashError

    scene = scene_of(before=before)

    async def perform(name, request):
        try:
            return await scene.perform(name, request)
        except CrashError:
            return await scene.perform(name, request)

    await run(scene, perform)

    assert puts <= PAGES // 2 + WAVE
    assert scene.content(scene.points()[0]) == scene.blobs.blobs[scene.source()].content()


async def test_the_cursor_is_never_ahead_of_the_acknowledged_writes():
    """Whatever is stored as done is on the head at that moment."""
    scene = scene_of()
    checked = 0

    async def before(name):
        nonlocal checked
        if name != "put_document" or not scene.rows("head"):
            return
        for text in [text for name, text in scene.documents.texts.items() if name.count("/") == 3]:
            at = int(text.partition('"at":')[2].partition(",")[0])
            (head,) = [blob for address, blob in scene.blobs.blobs.items() if address.container == "heads"]
            assert head.content()[:at] == scene.blobs.blobs[scene.source()].content()[:at]
            checked += 1

    scene.world.before = before
    await run(scene)

    assert checked > 5


async def test_a_slow_store_delays_the_copying():
    """However long a cursor takes to be stored, no more than a wave is ahead of what is stored."""
    scene, sent, ahead = scene_of(), 0, []

    def stored():
        cursors = [text for name, text in scene.documents.texts.items() if name.count("/") == 3]
        return int(cursors[0].partition('"puts":')[2].partition(",")[0]) if cursors else 0

    async def before(name):
        nonlocal sent
        if name == "put_document":
            for _ in range(500):
                await asyncio.sleep(0)
        if name == "copy_from_url":
            sent += 1
            ahead.append(sent - stored())

    scene.world.before = before
    await run(scene)

    assert max(ahead) == WAVE


async def test_a_shard_that_runs_out_of_time_is_called_again_from_there():
    """No request is repeated, progress is reported in between, and every call comes further even when time is always up."""
    scene = scene_of()
    ticks = iter(range(0, 10**9, 1000))
    scene.tools = replace(scene.tools, monotonic=lambda: float(next(ticks)))
    driver = await run(scene)

    calls = [answer["value"] for name, _, answer in driver.calls if name == "apply_shard"]
    assert len(calls) == PAGES // 2 // IN_FLIGHT
    assert [call["done"] for call in calls] == [False] * (len(calls) - 1) + [True]
    assert [call["at"] for call in calls] == sorted({call["at"] for call in calls})
    assert scene.port_calls["copy_from_url"] == PAGES // 2
    point = scene.points()[0]
    assert (point.requests, point.write_bytes) == (PAGES // 2, PAGES // 2 * PAGE)


async def test_each_shard_has_its_own_cursor():
    """Several shards side by side, each longer than a wave, each interrupted: none takes another's cursor for its own."""
    scene = scene_of().with_limits(shard_requests_max=30)
    ticks = iter(range(0, 10**9, 1000))
    scene.tools = replace(scene.tools, monotonic=lambda: float(next(ticks)))
    await run(scene, wave=4)

    stored = [name for name in scene.documents.texts if name.count("/") == 3]
    assert len([name for name in stored if not name.endswith("-end.json")]) == 4
    assert scene.port_calls["copy_from_url"] == PAGES // 2
    assert scene.content(scene.points()[0]) == scene.blobs.blobs[scene.source()].content()


# -- several shards in one call -------------------------------------------------------------------------------------


def many_shards(**options):
    """The disk in shards of ten requests."""
    return scene_of(**options).with_limits(shard_requests_max=10)


def calls_of(driver):
    """The shards of each call, and what it answered."""
    shards = [(request, answer["value"]) for name, request, answer in driver.calls if name == "apply_shard"]
    return [([request["shard"], *request["then"]], answer) for request, answer in shards]


async def test_as_a_shard_ends_the_next_begins():
    """With time enough, one wave of calls copies them all, and reports them together."""
    scene = many_shards()
    driver = await run(scene, wave=4)

    hands = calls_of(driver)
    assert [hand for hand, _ in hands] == [list(range(call, PAGES // 2 // 10, 4)) for call in range(4)]
    assert all(answer["done"] and answer["shards_before"] == len(hand) - 1 for hand, answer in hands)
    assert scene.port_calls["copy_from_url"] == PAGES // 2
    point = scene.points()[0]
    assert (point.requests, point.write_bytes) == (PAGES // 2, PAGES // 2 * PAGE)


async def test_no_call_waits_for_the_slowest_shard_of_another():
    """The first shard hangs until every shard of all other calls is done."""
    scene, gate, hung, answers = many_shards(), asyncio.Event(), [], {}
    copy = scene.blobs.copy_from_url

    async def watched(source, snapshot, part, head, fence):
        if part.start == 0:
            hung.append(part)
            await gate.wait()
        await copy(source, snapshot, part, head, fence)

    async def perform(name, request):
        if name != "apply_shard":
            return await scene.perform(name, request)
        if not answers:
            hands = [list(range(call, PAGES // 2 // 10, 4)) for call in range(4)]
            first, *others = [
                asyncio.create_task(scene.perform(name, {**request, "shard": hand[0], "then": hand[1:]})) for hand in hands
            ]
            answers.update(zip(range(1, 4), await asyncio.gather(*others), strict=True))
            assert hung
            gate.set()
            answers[0] = await first
        return answers[request["shard"]]

    scene.blobs.copy_from_url = watched
    async with asyncio.timeout(20):
        await run(scene, perform, wave=4)

    assert all(answer["value"]["done"] for answer in answers.values())
    assert scene.content(scene.points()[0]) == scene.blobs.blobs[scene.source()].content()


async def test_the_rest_of_a_call_that_runs_out_of_time_is_distributed_anew():
    """Each ends one shard or a part of it; the rest is dealt anew, nothing is done twice, and the sums are the plan's."""
    scene = many_shards()
    ticks = iter(range(0, 10**9, 1000))
    scene.tools = replace(scene.tools, monotonic=lambda: float(next(ticks)))
    driver = await run(scene, wave=3)

    left, hands = set(range(PAGES // 2 // 10)), calls_of(driver)
    while left:
        wave, hands = hands[: min(3, len(left))], hands[min(3, len(left)) :]
        assert sorted(shard for hand, _ in wave for shard in hand) == sorted(left)
        assert all(answer["shards_before"] == 0 for _, answer in wave)
        left -= {hand[0] for hand, answer in wave if answer["done"]}
    assert not hands
    assert {answer["done"] for _, answer in calls_of(driver)} == {True, False}
    assert scene.port_calls["copy_from_url"] == PAGES // 2
    point = scene.points()[0]
    assert (point.requests, point.write_bytes) == (PAGES // 2, PAGES // 2 * PAGE)


async def test_the_time_is_that_of_the_call():
    """Not of each shard: one that is begun late is left at its cursor."""
    seconds = 0

    async def before(name):
        nonlocal seconds
        seconds += 6 * (name == "copy_from_url")

    scene = many_shards(before=before)
    scene.tools = replace(scene.tools, monotonic=lambda: float(seconds))
    driver = await run(scene, wave=1)

    (first, answer), *_ = calls_of(driver)
    assert first == list(range(PAGES // 2 // 10))
    assert (answer["shards_before"], answer["done"]) == (1, False)
    assert answer["before"]["puts"] == 10
    assert 0 < answer["applied"]["puts"] < 10
    assert scene.points()[0].requests == scene.port_calls["copy_from_url"] == PAGES // 2


async def test_a_call_of_several_shards_that_is_repeated_answers_the_same():
    """Also after it failed at its last shard: what is done is found, and counted once."""
    scene, answers = many_shards(), []
    failures = ["apply_shard"]

    async def perform(name, request):
        if name == "apply_shard" and failures:
            failures.clear()
            last = {**request, "then": [*request["then"], 10**6]}
            with pytest.raises(IndexError):
                await scene.perform(name, last)
            sent = scene.port_calls["copy_from_url"]
            answer = await scene.perform(name, request)
            assert scene.port_calls["copy_from_url"] == sent > 0
        else:
            answer = await scene.perform(name, request)
        if name == "apply_shard":
            answers.append((answer, await scene.perform(name, request)))
        return answer

    await run(scene, perform, wave=2)

    assert answers
    assert all(first == second for first, second in answers)
    assert sum(one["value"]["before"]["puts"] + one["value"]["applied"]["puts"] for one, _ in answers) == PAGES // 2


async def test_a_call_whose_run_loses_the_disk_begins_no_further_shard():
    """No request is sent that the service would refuse; a managed disk that is uploaded has no fence."""
    scene, answers = many_shards(), []
    put = scene.documents.put_if_absent

    async def lost(name, text):
        stored = await put(name, text)
        if name.endswith("-end.json"):
            row = scene.catalogue.rows["vm", "head"]
            await scene.catalogue.put_head(replace(row.value, owner=Owner("another", "lease", row.value.epoch + 1)), row.etag)
        return stored

    async def perform(name, request):
        if name == "apply_shard":
            scene.documents.put_if_absent = lost
        answer = await scene.perform(name, request)
        if name == "apply_shard":
            answers.append(answer)
        return answer

    with pytest.raises(BackupFailedError):
        await run(scene, perform, wave=1)

    assert answers[0]["fault"]["code"] == "NotOwner"
    assert scene.port_calls["copy_from_url"] == 10


async def test_a_call_of_an_earlier_version_is_of_one_shard():
    """It was sent before the deployment, and its answer is read by the code before or after it."""
    scene, shards = many_shards(), []

    async def perform(name, request):
        if name != "apply_shard":
            return await scene.perform(name, request)
        answer = await scene.perform(name, {key: value for key, value in request.items() if key != "then"})
        shards.append(request["shard"])
        assert (answer["value"]["shards_before"], answer["value"]["before"]["puts"]) == (0, 0)
        return {**answer, "value": {key: answer["value"][key] for key in ("applied", "at", "done")}}

    await run(scene, perform, wave=4)

    assert shards == list(range(PAGES // 2 // 10))
    assert scene.points()[0].requests == PAGES // 2


async def test_a_finished_shard_that_is_called_again_does_nothing():
    """A wave begun again after continue-as-new: what is done stays done, and the sums are the same."""
    scene, answers = scene_of(), []

    async def perform(name, request):
        answer = await scene.perform(name, request)
        if name == "apply_shard":
            sent = scene.port_calls["copy_from_url"]
            answers.extend([answer, await scene.perform(name, request)])
            assert scene.port_calls["copy_from_url"] == sent
        return answer

    await run(scene, perform)

    assert answers[0] == answers[1]


async def test_small_shards_store_no_cursor():
    """A shard that fits into one wave stores only that it is done."""
    scene = Scene()
    scene.protect()
    scene.write(0, 1, None, 2)
    await run(scene)

    (plan,) = [name for name in scene.documents.texts if name.endswith("-from-nothing.json")]
    assert shard_end_name(plan, 0) in scene.documents.texts
    assert cursor_name(plan, 0) not in scene.documents.texts


# -- which way the bytes take -----------------------------------------------------------------------------------------


async def test_by_default_no_byte_passes_the_worker():
    scene = scene_of()
    await run(scene)

    assert scene.rows("run!")[0].bytes_streamed == 0
    assert scene.port_calls["write"] == 0


async def test_streamed_bytes_are_reported():
    scene = scene_of(copy_mode="stream")
    await run(scene)

    assert scene.rows("run!")[0].bytes_streamed == PAGES // 2 * PAGE
    assert scene.port_calls["copy_from_url"] == 0


async def test_auto_falls_back_and_remembers():
    """A source that the backup account cannot read is tried a few times at once, then not for an hour."""
    scene = scene_of()
    now = 0.0
    scene.tools = replace(scene.tools, copying=copy_route.Copying(scene.blobs, "auto", lambda: now))
    scene.blobs.unreachable.add(SOURCE)
    await run(scene)

    assert scene.port_calls["copy_from_url"] <= IN_FLIGHT
    assert scene.rows("run!")[0].bytes_streamed == PAGES // 2 * PAGE
    assert scene.content(scene.points()[0]) == scene.blobs.blobs[scene.source()].content()
    before = scene.port_calls["copy_from_url"]
    scene.write(3, 9)
    await run(scene)
    assert scene.port_calls["copy_from_url"] == before
    now += copy_route.REMEMBERED_SECONDS
    scene.blobs.unreachable.clear()
    scene.write(5, 9)
    await run(scene)
    assert scene.port_calls["copy_from_url"] == before + 1


@pytest.mark.parametrize("mode", ["auto", "server"])
async def test_a_source_that_is_not_reached_in_time(mode):
    """Streamed where that is permitted; else it is retried, since the source may only be slow."""
    scene, calls = scene_of(copy_mode=mode), []
    fetch = scene.blobs.copy_from_url

    async def slow(*args):
        calls.append(args)
        if mode == "auto" or len(calls) < 3:
            message = "500 CannotVerifyCopySource"
            raise CopySourceUnreachableError(message)
        await fetch(*args)

    scene.blobs.copy_from_url = slow
    await run(scene)

    assert (len(calls) == 1) == (mode == "auto")
    assert (scene.rows("run!")[0].bytes_streamed > 0) == (mode == "auto")
    assert scene.content(scene.points()[0]) == scene.blobs.blobs[scene.source()].content()


async def test_explicit_server_mode_fails_in_words():
    """Nothing is streamed behind the operator's back; no point, nothing else changed."""
    scene = scene_of(copy_mode="server")
    scene.blobs.unreachable.add(SOURCE)
    with pytest.raises(BackupFailedError, match=r"CopySourceRefused.*COPY_MODE is 'server'"):
        await run(scene)

    assert scene.points() == []
    assert scene.port_calls["write"] == 0
    assert scene.head_row().owner is None


# -- windows side by side ----------------------------------------------------------------------------------------------


async def test_parts_come_in_order_while_several_are_listed():
    """Later parts are begun before the first has ended, and still come after it."""
    begun = []
    gate, ahead = asyncio.Event(), asyncio.Event()

    async def listed(part):
        begun.append(part)
        if part == 3:
            ahead.set()
        if part == 0:
            await gate.wait()
        for number in range(3):
            yield part, number

    async def collect():
        return [one async for one in in_order(range(6), listed, 4)]

    collecting = asyncio.create_task(collect())
    await ahead.wait()
    assert not collecting.done()
    gate.set()

    assert await collecting == [(part, number) for part in range(6) for number in range(3)]
    assert begun == list(range(6))


async def test_a_listing_is_not_far_ahead_of_its_reader():
    """A million ranges in one part do not gather in memory while nobody reads them."""
    made = 0

    async def listed(_):
        nonlocal made
        while True:
            made += 1
            yield made

    items = in_order(range(2), listed, 2)
    await anext(items)
    for _ in range(100):
        await asyncio.sleep(0)

    assert made <= 2 * (BATCHES_AHEAD + 2) * BATCH
    await items.aclose()


async def test_a_failing_part_fails_the_listing_in_its_place():
    async def listed(part):
        yield part
        if part == 1:
            raise ValueError("broken")

    seen = []

    async def collect():
        async for one in in_order(range(4), listed, 3):
            seen.append(one)  # noqa: PERF401  what came before the failure counts

    with pytest.raises(ValueError, match="broken"):
        await collect()

    assert seen == [0, 1]
    assert len(asyncio.all_tasks()) == 1
