"""Zeros that pass the worker: cleared, proved once, and never read again by each backup of the disk."""

from __future__ import annotations

from dataclasses import replace

import pytest

from backup_core.domain.metadata import PageMapDigest
from backup_core.domain.ranges import PAGE, ByteRange
from backup_core.domain.sampling import Samples
from backup_core.domain.zeros import ZERO_BYTES_MIN
from backup_core.orchestrations.backup_disk import BackupFailedError
from backup_core.protocol.copy_route import Copying
from tests.scene import SOURCE, Scene

RUN = ZERO_BYTES_MIN // PAGE
PAGES = 4 * RUN
NO_SAMPLES = Samples(least=0, most=0, elsewhere=0)


def scene_of(**options):
    """A disk of data, a long run of zeros, data, a page of zeros, and a page of data."""
    scene = Scene(copy_mode="stream", **options)
    scene.protect(pages=PAGES)
    scene.write(0, *[1] * 5, *[0] * RUN, *[2] * 5, *[0], *[3])
    return scene


def stream(scene):
    """From now on all bytes pass the worker."""
    scene.tools = replace(scene.tools, copying=Copying(scene.blobs, "stream", lambda: 0.0))


def reads_of(scene):
    """Counts of the reads of each range from now on, of the source and of other blobs."""
    found, read = [], scene.blobs.read

    async def noted(blob, snapshot, part):
        found.append((blob == scene.source(), part))
        return await read(blob, snapshot, part)

    scene.blobs.read = noted
    return found


@pytest.mark.parametrize("diff", ["writes", "content"])
async def test_a_backup_and_its_restored_disk_are_never_larger_than_the_source(diff):
    """Of the same bytes; the long run takes no space."""
    scene = scene_of(diff=diff)
    await scene.back_up()
    (point,) = scene.points()
    await scene.restore(point)

    source = scene.blobs.blobs[scene.source()]
    restored = scene.blob(f"{SOURCE}/vhds/restored.vhd")
    assert scene.content(point) == restored.content() == source.content()
    assert set(restored.pages) == set(scene.head_blob().pages) == set(source.pages) - set(range(5, 5 + RUN))
    assert (point.requests, point.write_bytes) == (1, (RUN + 12) * PAGE), "the point shows what changed"


async def test_zeros_over_data_are_cleared():
    scene = scene_of()
    await scene.back_up()
    scene.write(0, *[0] * 5)
    await scene.back_up()

    assert scene.content(scene.points()[-1]) == scene.blobs.blobs[scene.source()].content()
    assert min(scene.head_blob().pages) == 5 + RUN


async def test_a_put_that_copies_a_gap_along_keeps_its_zeros():
    """Were they cleared, a delivery that does the shard again would cut the diff otherwise than the plan."""
    scene = Scene().with_limits(gaps_min=1, gap_ratio=10**6)
    scene.protect(pages=PAGES)
    scene.write(0, *[1] * 102, *[0] * RUN, 1)
    await scene.back_up()
    stream(scene)
    scene.write(0, *[2, None] * 50)
    scene.write(101, 2)
    scene.write(102 + RUN, 2)
    answers = []

    async def perform(name, request):
        answer = await scene.perform(name, request)
        if name == "apply_shard":
            scene.documents.texts = {name: text for name, text in scene.documents.texts.items() if "-end." not in name}
            answers.extend([answer["value"], (await scene.perform(name, request))["value"]])
        return answer

    request, driver = scene.request(), scene.driver()
    driver._perform = perform
    await driver.run("backup_disk", request.model_dump(mode="json"), request.run)

    assert answers[0] == answers[1]
    assert answers[0]["applied"]["puts"] == 51, "one for both ends of the gap"
    assert set(scene.head_blob().pages) == set(scene.blobs.blobs[scene.source()].pages)


# -- what only the source has -----------------------------------------------------------------------------------------


async def test_zeros_are_read_whole_once_and_by_samples_afterwards():
    scene = scene_of().with_limits(samples=NO_SAMPLES)
    await scene.back_up()
    scene.write(PAGES - 1, 9)
    found = reads_of(scene)
    await scene.back_up()

    assert found == [(True, ByteRange((PAGES - 1) * PAGE, PAGES * PAGE))], "what was copied"
    scene.write(5, *[0] * RUN, 9)
    found.clear()
    await scene.back_up()
    assert (False, ByteRange(5 * PAGE, (5 + RUN) * PAGE)) not in found
    assert found == [(True, ByteRange(5 * PAGE, (6 + RUN) * PAGE))]


async def test_zeros_that_are_new_are_read_whole():
    scene = scene_of().with_limits(samples=NO_SAMPLES)
    await scene.back_up()
    scene.write(2 * RUN, *[0] * RUN)
    found = reads_of(scene)
    await scene.back_up()

    assert found == [(True, ByteRange(2 * RUN * PAGE, 3 * RUN * PAGE))] * 2, "once to copy, once to prove"


async def test_data_where_the_base_had_zeros_is_found_by_the_samples():
    """A diff that hides the page: it is found as likely as any other page that a diff hides."""
    scene = scene_of()
    await scene.back_up()
    scene.write(7, 9)
    scene.write(0, 9)
    del scene.blobs.blobs[scene.source()].changed[7]
    with pytest.raises(BackupFailedError, match="VerificationMismatch"):
        await scene.back_up()


@pytest.mark.parametrize(("side", "verification"), [("source", "sampled"), ("backup", "sampled"), ("backup", "full")])
async def test_one_sided_data_is_proved_piece_by_piece_within_the_time(side, verification):
    """Forty lone pages in one window, and time for one each: every call comes further, and none is read twice."""
    lone = range(0, 80, 2)
    scene = Scene(copy_mode="stream").with_limits(batch_reads=1, samples=NO_SAMPLES)
    scene.protect(pages=100)
    row = scene.catalogue.rows["vm", "registration"]
    scene.catalogue.rows["vm", "registration"] = replace(row, value=replace(row.value, verification=verification))
    await scene.back_up()
    if side == "source":
        for page in lone:
            scene.write(page, 0)
    ticks = iter(range(0, 10**9, 1000))
    scene.tools = replace(scene.tools, monotonic=lambda: float(next(ticks)))
    calls, found = [], reads_of(scene)

    async def perform(name, request):
        if name == "verify_head" and not calls:
            found.clear()
            if side == "backup":
                scene.head_blob().pages.update(dict.fromkeys(lone, bytes(PAGE)))
        answer = await scene.perform(name, request)
        if name == "verify_head":
            calls.append(answer["value"])
            assert len(calls) < 100, "it comes no further"
        return answer

    request, driver = scene.request(), scene.driver()
    driver._perform = perform
    await driver.run("backup_disk", request.model_dump(mode="json"), request.run)

    assert found == [(side == "source", ByteRange(page * PAGE, (page + 1) * PAGE)) for page in lone]
    assert [call["proved"] for call in calls[:40]] == [(page + 1) * PAGE for page in lone]
    assert [call["reads"] for call in calls[:40]] == list(range(1, 41))
    whole = PageMapDigest(PageMapDigest.START)
    for page in lone:
        whole.add(page * PAGE, (page + 1) * PAGE) if side == "backup" else None
    assert calls[-1]["chain"] == whole.finish()


async def test_data_is_found_wherever_the_proof_was_gone_on_with():
    """In the last of the lone pages, by the last of the calls."""
    scene = Scene().with_limits(batch_reads=1, samples=NO_SAMPLES)
    scene.protect(pages=100)
    await scene.back_up()
    ticks = iter(range(0, 10**9, 1000))
    scene.tools = replace(scene.tools, monotonic=lambda: float(next(ticks)))

    async def perform(name, request):
        if name == "verify_head":
            scene.head_blob().pages.update(dict.fromkeys(range(0, 80, 2), bytes(PAGE)) | {78: b"x" * PAGE})
        return await scene.perform(name, request)

    request, driver = scene.request(), scene.driver()
    driver._perform = perform
    with pytest.raises(BackupFailedError, match=r"VerificationMismatch.*has none"):
        await driver.run("backup_disk", request.model_dump(mode="json"), request.run)

    assert [name for name, *_ in driver.calls].count("verify_head") == 40
