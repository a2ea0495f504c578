"""Full backups by one Copy Blob of the service: started once, waited for, checked, taken over; every other end is reported."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import timedelta

import pytest

from backup_core.domain.ending import HEARTBEAT_MAX, PAUSE_SECONDS_MAX
from backup_core.domain.naming import image_copy_name
from backup_core.orchestrations.backup_disk import BackupFailedError
from backup_core.orchestrations.copy_blob import REPLACED_MAX
from backup_core.ports import CopyState
from backup_core.protocol.fencing import fence_off
from tests.activities.acts import cancel, names, stop_before
from tests.scene import PAGE, SOURCE, Scene


@pytest.fixture
def scene():
    stage = Scene()
    stage.protect().sequence_number = 4711
    stage.write(0, 1, 2, None, 4)
    stage.blobs.copies_delayed = True
    return stage


def new_head(scene):
    return [address for address in scene.blobs.blobs if address.container == "heads"][-1]


async def run(scene, looks, ending, **fields):
    """A run whose copy stays pending for so many looks, and then `ending` happens."""
    request, driver = scene.request(full_copy="blob", **fields), scene.driver()
    seen = 0

    async def perform(name, step_input):
        nonlocal seen
        if name == "check_copy":
            seen += 1
            if seen == looks:
                await ending(step_input)
        return await scene.perform(name, step_input)

    driver._perform = perform
    driver.run_id = request.run
    try:
        driver.output = await driver.run("backup_disk", request.model_dump(mode="json"), request.run)
    finally:
        driver.looks = seen
    return driver


async def succeed(scene):
    scene.blobs.end_copy(new_head(scene), "success")


async def test_a_full_backup_by_copy_blob_then_an_increment(scene):
    """No page is copied by the app; the head's number is the run's, whatever the source had; the next is incremental."""
    driver = await run(scene, 3, lambda _: succeed(scene))

    assert driver.output["state"] == "Succeeded"
    assert not {"plan_transfer", "open_head", "apply_shard"} & set(names(driver))
    (point,) = scene.points()
    assert (point.kind, point.requests, point.write_bytes) == ("full", 1, 32 * PAGE)
    assert scene.content(point) == scene.blobs.blobs[scene.source()].content()
    assert scene.head_blob().sequence_number == scene.head_row().epoch + 1, "fenced before it was compared"
    assert "pagekeeper_run" in scene.head_blob().metadata
    scene.write(5, 55)
    await scene.back_up(full_copy="blob")
    assert scene.points()[-1].kind == "incremental"
    assert scene.content(scene.points()[-1]) == scene.blobs.blobs[scene.source()].content()


async def test_looks_grow_apart_and_history_stays_small(scene):
    """Timers from seconds to five minutes, a heartbeat at each look, continue-as-new after so many."""
    driver = await run(scene, 100, lambda _: succeed(scene))

    assert driver.looks == 100
    assert driver.executions == 1 + 5  # the run, and the waiting in five parts
    waits = driver._waited.total_seconds()
    assert waits > 90 * PAUSE_SECONDS_MAX * 0.8
    assert names(driver).count("start_copy") == 1
    assert timedelta(seconds=PAUSE_SECONDS_MAX) < HEARTBEAT_MAX / 2


async def known_copy(scene, run):
    """The copy that the run has stored as complete."""
    return json.loads(await scene.tools.documents.get(image_copy_name("vm", run, "head")))["copy_id"]


async def each_copy(scene, *endings):
    """A run whose copies end so, one after another; how it was driven."""
    request, driver, left = scene.request(full_copy="blob"), scene.driver(), list(endings)

    async def perform(name, step_input):
        if name == "check_copy" and left:
            scene.blobs.end_copy(new_head(scene), left.pop(0))
        return await scene.perform(name, step_input)

    driver._perform = perform
    driver.run_id = request.run
    driver.output = await driver.run("backup_disk", request.model_dump(mode="json"), request.run)
    return driver


@pytest.mark.parametrize(("endings", "status"), [(["failed"] * (REPLACED_MAX + 1), "failed"), (["aborted"], "aborted")])
async def test_a_copy_that_ends_badly_fails_the_run(scene, endings, status):
    """It leaves a blob with metadata and no content: never taken for a backup. Who aborts it is not contradicted."""
    with pytest.raises(BackupFailedError, match=rf"CopyFailed.*ended it as {status}"):
        await each_copy(scene, *endings)

    assert scene.port_calls["start_copy"] == len(endings)
    assert scene.points() == []
    assert scene.head_row().owner is None
    scene.blobs.copies_delayed = False
    await scene.back_up(full_copy="blob")
    assert scene.content(scene.points()[-1]) == scene.blobs.blobs[scene.source()].content()


async def test_a_copy_that_failed_is_begun_again_over_itself(scene):
    """Onto the same blob, twice at most, and counted among the run's retries."""
    driver = await each_copy(scene, "failed", "failed", "success")

    assert driver.output["state"] == "Succeeded"
    assert scene.port_calls["start_copy"] == REPLACED_MAX + 1
    assert [address.container for address in scene.blobs.blobs].count("heads") == 1
    assert scene.run_row(driver.run_id).retries == 2
    assert scene.content(scene.points()[0]) == scene.blobs.blobs[scene.source()].content()


async def once_more(scene, step_input):
    """Whether another delivery of the step returns the existing copy, and leaves it as it is."""
    blob = scene.blobs.blobs[new_head(scene)]
    before = blob.etag
    answer = await scene.perform("start_copy", step_input)
    return (answer["value"]["copy_id"], scene.blobs.blobs[new_head(scene)].etag) == (blob.copy.copy_id, before)


ENDS = ["pending", "success", "aborted", "failed"]


@pytest.mark.parametrize(
    ("status", "late"),
    [(end, late) for end in ENDS for late in ("the first", "the second", "over what is there")][:-1],
)
async def test_a_copy_is_begun_over_no_other_than_the_one_that_failed(scene, status, late):
    """In progress, complete, ended by somebody, or begun anew already: what is there is found again and stays. A late delivery of
    the first beginning finds the second copy, and never begins a third.
    """
    request, driver, begun, found = scene.request(full_copy="blob"), scene.driver(), [], []

    async def perform(name, step_input):
        if name == "start_copy":
            begun.append(step_input)
        if name == "check_copy" and len(begun) == 1:
            scene.blobs.end_copy(new_head(scene), "failed")
        if name == "check_copy" and len(begun) == 2 and not found:
            if status != "pending":
                scene.blobs.end_copy(new_head(scene), status)
            current = scene.blobs.blobs[new_head(scene)].copy.copy_id
            replaces = {"the first": "", "the second": begun[1]["replaces"], "over what is there": current}[late]
            found.append(await once_more(scene, {**begun[0], "replaces": replaces}))
            if status == "pending":
                await succeed(scene)
        if name == "check_copy" and len(begun) == 3:
            await succeed(scene)
        return await scene.perform(name, step_input)

    driver._perform = perform
    running = driver.run("backup_disk", request.model_dump(mode="json"), request.run)
    if status == "aborted":
        with pytest.raises(BackupFailedError, match="ended it as aborted"):
            await running
    else:
        assert (await running)["state"] == "Succeeded"

    assert found == [True]


async def test_a_failed_copy_that_is_not_this_runs_is_not_begun_over(scene):
    """Somebody copied onto the blob, or took its mark away: it is left as it is."""
    request, driver = scene.request(full_copy="blob"), scene.driver()

    async def perform(name, step_input):
        if name == "check_copy":
            scene.blobs.end_copy(new_head(scene), "failed")
            TRICKS["other metadata"](scene.blobs.blobs[new_head(scene)])
        return await scene.perform(name, step_input)

    driver._perform = perform
    with pytest.raises(BackupFailedError, match=r"BlobExists.*no copy that run"):
        await driver.run("backup_disk", request.model_dump(mode="json"), request.run)

    assert scene.blobs.blobs[new_head(scene)].copy.status == "failed"


@pytest.mark.parametrize("ending", ["pending", "success", "failed"])
async def test_two_deliveries_that_begin_again_begin_one_copy(scene, ending):
    """Both find the failed one; the later request names a version that is gone, and its delivery continues with the other's copy."""
    before, answers = scene.world.before, []
    request, driver, begun = scene.request(full_copy="blob"), scene.driver(), []

    async def overtaken(name):
        if name == "start_copy" and len(begun) == 2 and not answers:
            answers.append("")
            answers[0] = (await scene.perform("start_copy", begun[1]))["value"]["copy_id"]
            if ending != "pending":
                scene.blobs.end_copy(new_head(scene), ending)
        await before(name)

    async def perform(name, step_input):
        if name == "start_copy":
            begun.append(step_input)
            if len(begun) == 2:
                answer = await scene.perform(name, step_input)
                answers.append(answer["value"]["copy_id"])
                return answer
        if name == "check_copy":
            state = scene.blobs.blobs[new_head(scene)]
            if state.arriving:
                scene.blobs.end_copy(new_head(scene), "failed" if len(begun) == 1 else "success")
        return await scene.perform(name, step_input)

    scene.world.before, driver._perform = overtaken, perform
    output = await driver.run("backup_disk", request.model_dump(mode="json"), request.run)

    assert output["state"] == "Succeeded"
    assert len(answers) == 2
    assert answers[0] == answers[1]
    assert scene.content(scene.points()[0]) == scene.blobs.blobs[scene.source()].content()


async def test_a_copy_that_takes_too_long_is_ended(scene):
    async def ending(_):
        return

    with pytest.raises(BackupFailedError, match=r"CopyFailed.*not complete after 2 days.*FULL_COPY"):
        await run(scene, 0, ending)

    assert scene.blobs.blobs[new_head(scene)].copy.status == "aborted"


async def test_a_cancel_ends_the_copy(scene):
    request, driver = scene.request(full_copy="blob"), scene.driver()

    async def perform(name, step_input):
        if name == "check_copy" and len([one for one in driver.calls if one[0] == "check_copy"]) == 2:
            await cancel(scene, request.run)
        return await scene.perform(name, step_input)

    driver._perform = perform
    output = await driver.run("backup_disk", request.model_dump(mode="json"), request.run)

    assert output["state"] == scene.run_row(request.run).state == "Canceled"
    assert scene.blobs.blobs[new_head(scene)].copy.status == "aborted"


TRICKS = {
    "another copy": lambda blob: replace_copy(blob, copy_id="other"),
    "another size": lambda blob: setattr(blob, "size", 512),
    "other metadata": lambda blob: blob.metadata.update(pagekeeper_target="2020-01-01T00:00:00.0000000Z"),
    "still pending": lambda blob: replace_copy(blob, status="pending"),
}


def replace_copy(blob, **fields):
    blob.copy = replace(blob.copy, **fields)


@pytest.mark.parametrize("trick", TRICKS)
async def test_only_the_runs_own_complete_copy_is_taken_over(scene, trick):
    """Id, status, size and mark are looked at again, under no assumption from the waiting."""
    scene.blobs.copies_delayed = False
    request, driver = scene.request(full_copy="blob"), scene.driver()

    async def perform(name, step_input):
        if name == "take_over_copy":
            TRICKS[trick](scene.blobs.blobs[new_head(scene)])
        return await scene.perform(name, step_input)

    driver._perform = perform
    with pytest.raises(BackupFailedError, match="CopyFailed"):
        await driver.run("backup_disk", request.model_dump(mode="json"), request.run)

    assert scene.points() == []
    blob = scene.blobs.blobs[new_head(scene)]
    assert (blob.lease, blob.sequence_number) == ("", 4711), "what is not ours is not touched"


async def test_a_copy_whose_number_stays_what_it_was_is_not_taken_over(scene):
    """The number is read back: at another one than the run's epoch nothing would be fenced."""
    scene.blobs.copies_delayed = False

    async def in_vain(blob, number, guard):
        return scene.blobs.blobs[blob].etag

    scene.blobs.set_sequence_number = in_vain
    with pytest.raises(BackupFailedError, match=r"CopyFailed.* at 4711"):
        await scene.back_up(full_copy="blob")

    assert scene.points() == []


async def test_every_step_of_it_twice(scene):
    """A second delivery finds the copy, the lease and the number as they are."""
    scene.blobs.copies_delayed = False
    request, driver = scene.request(full_copy="blob"), scene.driver()

    async def twice(name, step_input):
        first = await scene.perform(name, step_input)
        second = await scene.perform(name, step_input)
        if name in ("start_copy", "check_copy"):
            assert first == second
        return second

    driver._perform = twice
    await driver.run("backup_disk", request.model_dump(mode="json"), request.run)

    assert scene.port_calls["start_copy"] == 2
    assert scene.content(scene.points()[0]) == scene.blobs.blobs[scene.source()].content()


@pytest.mark.parametrize("number", [4711, 1])
async def test_a_copy_that_was_taken_over_is_known_by_its_id(scene, number):
    """The number was set, so the service says nothing of the copy any more: late deliveries of all its steps answer as before, also
    where the source's number was the run's epoch and nothing was set.
    """
    scene.blobs.copies_delayed = False
    scene.blobs.blobs[scene.source()].sequence_number = number
    request, driver, answers = scene.request(full_copy="blob"), scene.driver(), {}

    async def perform(name, step_input):
        answer = await scene.perform(name, step_input)
        if "copy" in name:
            answers[name] = (step_input, answer)
        if name == "take_over_copy":
            for known, (again, first) in answers.items():
                assert await scene.perform(known, again) == first
        return answer

    driver._perform = perform
    output = await driver.run("backup_disk", request.model_dump(mode="json"), request.run)

    assert output["state"] == "Succeeded"
    assert set(answers) == {"start_copy", "check_copy", "take_over_copy"}
    assert await known_copy(scene, request.run) == answers["start_copy"][1]["value"]["copy_id"]


async def test_a_blob_whose_copy_the_service_forgot_is_not_taken_over(scene):
    """Somebody has set a property of it before this run saw the copy complete: nothing says that it is."""
    scene.blobs.copies_delayed = False
    request, driver = scene.request(full_copy="blob"), scene.driver()

    async def perform(name, step_input):
        if name == "take_over_copy":
            scene.blobs.blobs[new_head(scene)].copy = None
            scene.blobs.blobs[new_head(scene)].sequence_number = step_input["image"]["actor"]["epoch"]
        return await scene.perform(name, step_input)

    driver._perform = perform
    with pytest.raises(BackupFailedError, match=r"CopyFailed.*found copy  \(none\)"):
        await driver.run("backup_disk", request.model_dump(mode="json"), request.run)

    assert scene.points() == []


async def test_two_deliveries_take_over_one_copy(scene):
    """One reads the blob; the other takes it over and closes it for its comparison; the first continues with the state it finds."""
    answers, before, between = [], scene.world.before, []

    async def overtaken(name):
        if name == "set_sequence_number" and between:
            step_input = between.pop()
            answers.append(await scene.perform("take_over_copy", step_input))
            actor, head = step_input["image"]["actor"], new_head(scene)
            await fence_off(scene.tools, head, actor["epoch"] + 1, actor["lease"])
        await before(name)

    scene.world.before = overtaken
    request, driver = scene.request(full_copy="blob"), scene.driver()

    async def perform(name, step_input):
        if name == "check_copy":
            await succeed(scene)
        if name == "take_over_copy":
            between.append(step_input)
            answers.append(await scene.perform(name, step_input))
            return answers[-1]
        return await scene.perform(name, step_input)

    driver._perform = perform
    output = await driver.run("backup_disk", request.model_dump(mode="json"), request.run)

    assert output["state"] == "Succeeded"
    assert [answer["fault"] for answer in answers] == [None, None]


@pytest.mark.parametrize("step", ["start_copy", "check_copy", "take_over_copy", "verify_head"])
async def test_a_run_that_died_while_copying_is_taken_over(scene, step):
    """Another generation: nothing was ever committed on the blob it leaves."""
    scene.blobs.copies_delayed = step in ("start_copy", "check_copy")
    await stop_before(scene, step, full_copy="blob")
    scene.world.pass_time(HEARTBEAT_MAX + timedelta(minutes=1))
    scene.blobs.copies_delayed = False
    await scene.back_up(full_copy="blob")

    (point,) = scene.points()
    assert scene.content(point) == scene.blobs.blobs[scene.source()].content()


async def test_a_waiting_that_breaks_fails_the_run_visibly(scene):
    """The sub-orchestration is terminated, or has a fault of its own: the run ends, and releases the disk."""
    request, driver = scene.request(full_copy="blob"), scene.driver()

    def broken(_):
        raise RuntimeError("terminated in the portal")
        yield

    driver.orchestrators = driver.orchestrators | {"copy_blob": broken}
    with pytest.raises(BackupFailedError, match=r"Unexpected: copy_blob of .*terminated in the portal"):
        await driver.run("backup_disk", request.model_dump(mode="json"), request.run)

    assert scene.run_row(request.run).state == "Failed"
    assert scene.head_row().owner is None


async def test_an_unreadable_source_fails_in_words(scene):
    scene.blobs.unreachable.add(SOURCE)
    with pytest.raises(BackupFailedError, match="CopySourceRefused"):
        await run(scene, 1, lambda _: succeed(scene))
    assert scene.points() == []


async def test_a_blob_that_lies_there_already_is_not_taken_for_the_copy(scene):
    """Somebody made a blob of that name, with a copy of its own: it is left as it is."""
    request, driver = scene.request(full_copy="blob"), scene.driver()

    async def perform(name, step_input):
        if name == "start_copy":
            foreign = scene.blobs.put(scene.tools.head(step_input["destination"]), 512)
            foreign.copy = CopyState("theirs", "success", 512, 512)
        return await scene.perform(name, step_input)

    driver._perform = perform
    with pytest.raises(BackupFailedError, match="BlobExists"):
        await driver.run("backup_disk", request.model_dump(mode="json"), request.run)

    assert (scene.blobs.blobs[new_head(scene)].size, scene.blobs.blobs[new_head(scene)].lease) == (512, "")


async def test_another_copy_onto_the_blob_is_noticed_while_waiting(scene):
    """Somebody's, with the metadata of what was copied: it is not begun over."""

    async def ending(_):
        await succeed(scene)
        blob = scene.blobs.blobs[new_head(scene)]
        replace_copy(blob, copy_id="other")
        blob.metadata = {}

    with pytest.raises(BackupFailedError, match=r"BlobExists.*no copy that run"):
        await run(scene, 2, ending)

    assert scene.blobs.blobs[new_head(scene)].copy.copy_id == "other"


async def test_an_earlier_wait_continues_with_the_copy_of_another(scene):
    """An orchestration that was begun twice: what one of its lives waited for failed, and the other has begun it again."""
    request, driver, other = scene.request(full_copy="blob"), scene.driver(), []

    async def perform(name, step_input):
        if name == "check_copy" and not other:
            scene.blobs.end_copy(new_head(scene), "failed")
            image = {**step_input["image"], "replaces": step_input["copy_id"]}
            other.append((await scene.perform("start_copy", image))["value"]["copy_id"])
            await succeed(scene)
        return await scene.perform(name, step_input)

    driver._perform = perform
    output = await driver.run("backup_disk", request.model_dump(mode="json"), request.run)

    assert output["state"] == "Succeeded"
    assert scene.port_calls["start_copy"] == 2
    assert scene.head_blob().copy is None, "the service forgets a copy on whose blob the number was set"
    assert await known_copy(scene, request.run) == other[0]
