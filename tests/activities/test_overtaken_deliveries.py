"""Two deliveries of one step, of which the slower does part of its work when the faster has ended: it disturbs nothing."""

from __future__ import annotations

import pytest

from backup_core.activities.images import hold_own
from backup_core.domain.errors import BlobExistsError
from backup_core.steps.messages import RunRef
from tests.activities.acts import RUN, TARGET, before_step


def overtaken(scene, step, port, method):
    """A driver whose `step` is delivered twice: one comes to its first call of the method, then the other runs to its end, whose
    answer counts.
    """
    driver, answers = scene.driver(), []

    async def perform(name, asked):
        if name != step or answers:
            return await scene.perform(name, asked)
        real = getattr(port, method)

        async def slow(*args, **fields):
            setattr(port, method, real)
            found = await real(*args, **fields) if method == "properties" else None
            answers.append(await scene.perform(name, asked))
            return found or await real(*args, **fields)

        setattr(port, method, slow)
        driver.slower = await scene.perform(name, asked)
        return answers[0]

    driver._perform = perform
    return driver


async def test_both_go_on_with_the_older_source_snapshot(scene):
    """Each has taken one: whichever answer counts, and whatever a later delivery finds, it is the same."""
    request, driver = scene.request(), overtaken(scene, "take_source_snapshot", scene.blobs, "snapshot")
    await driver.run("backup_disk", request.model_dump(mode="json"), request.run)

    (target,) = [answer["value"] for name, _, answer in driver.calls if name == "take_source_snapshot"]
    assert driver.slower["value"] == target
    assert scene.run_row(request.run).state == "Succeeded"


async def test_a_head_is_marked_verified_once(scene):
    """The slower one has read the head before it was marked: marked again it would be another version than the one to commit."""
    request, driver = scene.request(), overtaken(scene, "verify_head", scene.blobs, "properties")
    await driver.run("backup_disk", request.model_dump(mode="json"), request.run)

    assert scene.run_row(request.run).state == "Succeeded"


@pytest.mark.parametrize("method", ["snapshot", "set_metadata"])
async def test_a_disk_is_sealed_once(restorable, method):
    """The slower one is refused, for the lease is let go of: it finds done what it was to do."""
    driver = overtaken(restorable, "seal_image", restorable.blobs, method)
    await restorable.restore(restorable.points()[0], driver, adopt=True)

    assert driver.slower["fault"] is None
    assert restorable.run_row(RUN).state == "Succeeded"
    assert restorable.blob(TARGET).lease == ""


async def test_a_copy_is_taken_over_once(restorable):
    """Later the number is the one by which it was shut for its comparison: it is not set back."""
    taken = []
    driver = before_step(restorable, "seal_image", lambda _: restorable.perform("take_over_copy", taken[0]))
    perform = driver._perform

    async def noted(name, asked):
        if name == "take_over_copy" and asked["image"]["becomes"] == "disk":
            taken.append(asked)
        return await perform(name, asked)

    driver._perform = noted
    request = restorable.restore_request(restorable.points()[0], adopt=True)
    asked = request.model_copy(update={"full_copy": "blob"}).model_dump(mode="json")
    await driver.run("restore_disk", asked, request.run)

    assert taken
    assert restorable.run_row(RUN).state == "Succeeded"


async def test_a_disk_that_was_let_go_of_is_not_held_again(restorable):
    """A late delivery that still opens it: the machine is about to take its own lease."""
    await restorable.restore(restorable.points()[0])
    by = RunRef(disk="vm", run=RUN, lease="00000000-0000-0000-0000-00000000000b", epoch=0, source="")
    with pytest.raises(BlobExistsError, match="may have completed it already"):
        await hold_own(restorable.tools, restorable.tools.image(TARGET), by)

    assert restorable.blob(TARGET).lease == ""
