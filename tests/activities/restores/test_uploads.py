"""Restores to managed disks by an upload: written, closed for good, read back; nothing is deleted, nothing stays open."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from datetime import timedelta

import pytest

from backup_core.activities import verification
from backup_core.activities.housekeeping import clean_up_disk
from backup_core.adapters.machine_models import RUN_TAG
from backup_core.domain.ending import HEARTBEAT_MAX
from backup_core.domain.errors import AccessDeniedError, CleanupError, MachineRefusedError
from backup_core.domain.managed import ManagedDisk
from backup_core.domain.naming import managed_disk_id, run_key
from backup_core.domain.records import Run, Slot
from backup_core.domain.repoint import MachineDisk
from backup_core.orchestrations.restore_disk import RestoreFailedError
from tests.activities.acts import (
    AGAIN,
    FINAL,
    RUN,
    STEPS_OF_A_RESTORE,
    attached_disk,
    before_step,
    cancel,
    contents_of,
    everything_kept,
    failing,
    into,
    names,
    on,
    sane,
    stopped_before,
)
from tests.activities.restores.managed import KINDS, NEW, NIGHT, OLD, machine_with_managed_disk
from tests.scene import GROUP, PAGE, VM

UPLOADED = into(target=NEW, managed_disk=NEW, old_disk=OLD)
STEPS = [*(one for one in STEPS_OF_A_RESTORE if one != "close_change"), "take_source_snapshot", "compare_snapshot"]
BEFORE_CLOSED = ("plan_transfer", "open_image", "apply_shard", "compare_image")


@pytest.fixture(params=KINDS)
async def stage(request):
    return await machine_with_managed_disk(request.param, UPLOADED, vhd=True)


def address(scene):
    return scene.tools.upload(NEW, RUN)


def new(scene):
    return scene.blobs.disks[address(scene)]


def nothing_is_open(scene):
    assert scene.blobs.open == set()
    assert scene.blobs.open_disks == set()


@pytest.mark.parametrize("signs", [False, True])
async def test_the_next_backup_is_an_increment_and_all_points_stay(stage, signs):
    """The machine has the point's bytes, but for a footer that Azure writes anew; no page blob is made besides the head, and no
    import is requested.
    """
    stage.blobs.cloud.uploads.signs = signs
    contents, first, blobs = contents_of(stage), stage.points()[0], len(stage.blobs.blobs)
    await stage.restore(first, **stage.wanted)

    sane(stage)
    nothing_is_open(stage)
    assert attached_disk(stage) == stage.claims().popitem()[0] == NEW
    assert new(stage).content()[:-PAGE] == contents[first.point][:-PAGE]
    assert (new(stage).content() != contents[first.point]) == signs
    assert len(stage.blobs.blobs) == blobs + 1, "the head"
    assert (stage.port_calls["import_disk"], stage.port_calls["create_for_upload"]) == (0, 1)
    assert f"the new managed disk {NEW} is complete and equal" in on(stage).end
    stage.blobs.poke(address(stage), 4, [bytes([77]) * PAGE])
    await stage.back_up()
    assert (stage.points()[-1].kind, stage.points()[-1].write_bytes) == ("incremental", PAGE)
    sane(stage)
    everything_kept(stage, contents)


@pytest.mark.parametrize("ready", [False, True])
async def test_an_upload_whose_access_expires_before_it_is_compared(stage, ready):
    """It is ended all the same, whatever Azure calls the disk until then."""
    contents, first = contents_of(stage), stage.points()[0]
    stage.blobs.cloud.uploads.ready_when_expired = ready
    later = before_step(stage, "compare_image", lambda _: stage.world.pass_time(timedelta(days=1)))
    await stage.restore(first, driver=later, **stage.wanted)

    assert new(stage).content() == contents[first.point]
    nothing_is_open(stage)
    sane(stage)


async def test_the_steps_of_an_upload(stage):
    driver = stage.driver()
    await stage.restore(stage.points()[0], driver=driver, **(stage.wanted | {"adopt": False}))

    assert names(driver)[1:6] == ["plan_transfer", "open_image", "apply_shard", "compare_image", "seal_image"]
    assert "import_disk" not in names(driver)
    assert attached_disk(stage) == NEW
    nothing_is_open(stage)


async def test_by_hand_no_machine_is_touched(stage):
    before = attached_disk(stage)
    await stage.restore(stage.points()[0], target=NEW, managed_disk=NEW, slot=Slot(VM, 0), adopt=True)

    assert (attached_disk(stage), stage.rows("registration")[0].source) == (before, NEW)
    nothing_is_open(stage)
    await stage.back_up()
    assert stage.points()[-1].kind == "incremental"
    assert stage.content(stage.points()[-1]) == stage.bytes_of(NEW)


async def test_a_disk_that_is_not_adopted_is_complete_all_the_same(stage):
    contents, first = contents_of(stage), stage.points()[0]
    await stage.restore(first, target=NEW, managed_disk=NEW, slot=Slot(VM, 0))

    assert new(stage).content() == contents[first.point]
    assert "complete and equal" in on(stage).end
    nothing_is_open(stage)


async def test_one_copy_blob_is_for_blobs_only(stage):
    """FULL_COPY=blob makes the head so; the disk is written by pages."""
    request, driver = stage.restore_request(stage.points()[0], **stage.wanted), stage.driver()
    step_input = request.model_copy(update={"full_copy": "blob"})
    await driver.run("restore_disk", step_input.model_dump(mode="json"), step_input.run)

    assert names(driver).count("start_copy") == 1
    assert "apply_shard" in names(driver)
    sane(stage)


async def test_a_late_write_finds_the_disk_closed(stage):
    """A delivery of the copying that comes once the comparison has begun, and one that comes when the machine has the disk."""
    late, refused = [], []

    async def keep(name, request):
        if name == "apply_shard" and request["image"]["destination"] == NEW:
            late.append(request)
        if name == "store_change":
            for one in late:
                for shard in list(stage.documents.texts):
                    if shard.endswith("-end.json") or "cursor" in shard:
                        stage.documents.texts.pop(shard)
                refused.append(await stage.perform("apply_shard", one))
        return await stage.perform(name, request)

    driver = stage.driver()
    driver._perform = keep
    await stage.restore(stage.points()[0], driver=driver, **stage.wanted)

    assert refused
    assert {answer["fault"]["code"] for answer in refused} <= {"Fenced"}
    sane(stage)


@pytest.mark.parametrize("place", ["compare_image", "own_disk"])
async def test_a_disk_that_differs_from_its_restore_point_is_given_to_no_machine(stage, place):
    before = attached_disk(stage)
    driver = before_step(stage, place, lambda _: stage.blobs.poke(address(stage), 2, [b"\xff" * PAGE]))
    with pytest.raises(RestoreFailedError, match="VerificationMismatch"):
        await stage.restore(stage.points()[0], driver=driver, **stage.wanted)

    assert attached_disk(stage) == before
    assert "complete" not in on(stage).end
    assert NEW in on(stage).end, "it is left, and named"
    nothing_is_open(stage)
    await stage.back_up()


async def test_a_footer_that_azure_refuses_fails_the_restore(stage):
    """At the end of the upload. The disk is named as left."""
    before = attached_disk(stage)
    driver = before_step(stage, "compare_image", lambda _: stage.blobs.poke(address(stage), 32, [b"\1" * PAGE]))
    with pytest.raises(RestoreFailedError, match="InvalidVhd"):
        await stage.restore(stage.points()[0], driver=driver, **stage.wanted)

    assert attached_disk(stage) == before
    assert f"an unfinished disk is left and may be deleted: {NEW}" in on(stage).end


async def test_a_disk_of_that_name_that_somebody_else_made_is_left_alone(stage):
    """Neither written nor closed: somebody may be uploading to it."""
    made = ManagedDisk(NEW, "Succeeded", "another", 32 * PAGE, create_option="Upload")

    def strange(_):
        stage.machines.disks[NEW] = made
        stage.blobs.cloud.uploads.make(address(stage), 32 * PAGE, {})
        stage.blobs.cloud.uploads.grant(address(stage), write=True, seconds=600)

    driver = before_step(stage, "open_image", strange)
    with pytest.raises(RestoreFailedError, match="was not made by"):
        await stage.restore(stage.points()[0], driver=driver, **stage.wanted)

    assert stage.blobs.open_disks == {address(stage)}
    assert new(stage).pages == {}
    assert "no disk of this restore is left" in on(stage).end


async def test_somebody_attaches_the_disk_while_it_is_compared(stage, monkeypatch):
    """Nobody knows what they write: it is not used."""
    compared = verification.compared

    async def attached(tools, image, *args, **options):
        reached = await compared(tools, image, *args, **options)
        if image.destination == NEW:
            stage.blobs.cloud.uploads.revoke(address(stage))
            machine = stage.machines.machines[VM]
            disk = MachineDisk("new", NEW, managed=True, lun=7)
            stage.machines.machines[VM] = replace(machine, disks=(*machine.disks, disk))
        return reached

    monkeypatch.setattr(verification, "compared", attached)
    with pytest.raises(RestoreFailedError, match="changed by somebody else while it was compared"):
        await stage.restore(stage.points()[0], **(stage.wanted | {"adopt": False}))

    assert attached_disk(stage) != NEW
    assert "complete" not in on(stage).end


async def test_a_disk_that_azure_makes_slowly_is_waited_for(stage):
    """By retries of the step."""
    driver, looks = stage.driver(), []
    managed_disk = stage.machines.managed_disk

    async def creating(disk):
        found = await managed_disk(disk)
        if found and disk == NEW:
            looks.append(disk)
        return replace(found, state="Creating") if found and disk == NEW and len(looks) < 3 else found

    stage.machines.managed_disk = creating
    await stage.restore(stage.points()[0], driver=driver, **stage.wanted)

    assert names(driver).count("open_image") > 2
    sane(stage)


async def test_a_long_comparison_continues_step_by_step(stage):
    stage.with_limits(verify_seconds=-1.0, window_bytes=8 * PAGE)
    driver = stage.driver()
    await stage.restore(stage.points()[0], driver=driver, **stage.wanted)

    assert names(driver).count("compare_image") > 4
    sane(stage)
    nothing_is_open(stage)


@pytest.mark.parametrize("step", STEPS)
async def test_a_failure_at_each_step(stage, step):
    """The machine has one of the two disks, it is the one that is backed up, and nothing stays open."""
    before, contents = attached_disk(stage), contents_of(stage)
    driver = failing(stage, step, FINAL)
    with pytest.raises(RestoreFailedError):
        await stage.restore(stage.points()[0], driver=driver, **stage.wanted)

    assert attached_disk(stage) in (before, NEW)
    assert (attached_disk(stage) == NEW) == (step in ("adopt_head", "take_backup_snapshot", "commit_point"))
    registered = stage.rows("registration")[0].source
    assert registered == (NEW if attached_disk(stage) == NEW else str(stage.source()))
    assert stage.head_row().owner is None
    nothing_is_open(stage)
    if NEW in stage.machines.disks:
        assert NEW in on(stage).end
    everything_kept(stage, contents)
    await stage.back_up()
    assert stage.content(stage.points()[-1]) == stage.bytes_of(registered)


@pytest.mark.parametrize("step", STEPS)
async def test_a_cancel_at_each_step(stage, step):
    """A cancel counts until the machine is touched; later the restore is completed."""
    before = attached_disk(stage)
    driver = before_step(stage, step, lambda _: cancel(stage, RUN))
    await stage.restore(stage.points()[0], driver=driver, **stage.wanted)
    ended = stage.run_row(RUN).state

    assert (attached_disk(stage) == NEW) == (ended == "Succeeded")
    assert attached_disk(stage) == (NEW if ended == "Succeeded" else before)
    nothing_is_open(stage)
    await stage.back_up()


@pytest.mark.parametrize("step", STEPS)
async def test_a_restore_that_dies_at_each_step_leaves_nothing_open(stage, step):
    """The next backup brings it to an end, and a night ends the access that it had."""
    contents = contents_of(stage)
    await stopped_before(stage, step, **stage.wanted)
    stage.world.pass_time(HEARTBEAT_MAX + timedelta(minutes=1))
    await stage.back_up()
    stage.world.pass_time(timedelta(minutes=1))
    await clean_up_disk(stage.tools, NIGHT)

    registered = stage.rows("registration")[0].source
    assert registered == (NEW if attached_disk(stage) == NEW else str(stage.source()))
    assert stage.content(stage.points()[-1]) == stage.bytes_of(registered)
    nothing_is_open(stage)
    everything_kept(stage, contents)


async def test_the_night_keeps_the_access_of_a_restore_that_uploads(stage):
    await stopped_before(stage, "compare_image", **stage.wanted)
    assert stage.blobs.open_disks == {address(stage)}
    await clean_up_disk(stage.tools, NIGHT)

    assert stage.blobs.open_disks == {address(stage)}


async def test_the_night_keeps_the_access_of_an_operators_export(stage):
    """A disk that a restore has completed is its owner's."""
    await stage.restore(stage.points()[0], target=NEW, managed_disk=NEW, slot=Slot(VM, 0))
    stage.blobs.cloud.uploads.grant(address(stage), write=False, seconds=3600)
    stage.world.pass_time(timedelta(minutes=40))
    await clean_up_disk(stage.tools, NIGHT)

    assert stage.blobs.open_disks == {address(stage)}


@pytest.mark.parametrize("groups", [(), (f"{GROUP}-of-other-disks".lower(),)])
async def test_the_night_closes_disks_wherever_restores_make_them(groups):
    """In a machine's group, which need not be one whose disks may be protected: an app may back up page blobs alone."""
    stage = await machine_with_managed_disk("page blob", UPLOADED, vhd=True)
    stage.tools = replace(stage.tools, disk_groups=groups)
    await stopped_before(stage, "compare_image", **(stage.wanted | {"adopt": False}))
    assert stage.blobs.open_disks == {address(stage)}
    stage.world.pass_time(HEARTBEAT_MAX + timedelta(minutes=1))
    await clean_up_disk(stage.tools, NIGHT)

    nothing_is_open(stage)


async def test_the_night_closes_each_disk_that_azure_lets_it_close(stage):
    """Azure does not end an upload that is no VHD. Access to snapshots may be refused too: each is named, and the rest is done."""
    spoilt = managed_disk_id(VM, "spoilt")
    for run, disk in ((AGAIN, spoilt), (RUN, NEW)):
        wanted = {"target": disk, "managed_disk": disk, "adopt": False, "run": run}
        await stopped_before(stage, "compare_image", **(stage.wanted | wanted))
    stage.blobs.poke(stage.tools.upload(spoilt, AGAIN), 32, [b"\1" * PAGE])
    stage.world.pass_time(HEARTBEAT_MAX + timedelta(minutes=1))

    async def refused(_):
        message = "a lock"
        raise AccessDeniedError(message)

    stage.blobs.close_access = refused
    with pytest.raises(CleanupError, match=rf"access: AccessDenied: a lock; uploads:.*{spoilt}.*InvalidVhd"):
        await clean_up_disk(stage.tools, NIGHT)

    assert stage.blobs.open_disks == {stage.tools.upload(spoilt, AGAIN)}


async def test_a_disk_that_the_night_cannot_close_is_named_until_it_is_deleted(stage):
    """Each night names the action that ends its access; afterwards, the night reports nothing."""
    await stopped_before(stage, "compare_image", **(stage.wanted | {"adopt": False}))
    stage.blobs.poke(address(stage), 32, [b"\1" * PAGE])
    stage.world.pass_time(HEARTBEAT_MAX + timedelta(minutes=1))
    for _ in range(2):
        with pytest.raises(CleanupError, match=rf"{NEW}.*InvalidVhd.*delete the disk, and restore again"):
            await clean_up_disk(stage.tools, NIGHT)
    del stage.blobs.disks[address(stage)]
    stage.machines.disks.pop(NEW, None)
    await clean_up_disk(stage.tools, NIGHT)

    assert stage.blobs.open_disks == set()


def late_read(stage):
    """Open the disk for reading, as a late delivery of the comparison does that finds the restore at work."""
    stage.blobs.cloud.uploads.grant(address(stage), write=False, seconds=3600)


@pytest.mark.parametrize("move", [1, 2, 3])
@pytest.mark.parametrize("adopt", [True, False])
async def test_a_disk_that_a_late_comparison_opens_again_is_attached_all_the_same(stage, move, adopt):
    """Azure attaches no disk that is open: the access ends first."""

    def opens(_):
        if attached_disk(stage) != NEW:
            late_read(stage)

    driver = before_step(stage, "move_machine", opens, move)
    await stage.restore(stage.points()[0], driver=driver, **(stage.wanted | {"adopt": adopt}))

    assert attached_disk(stage) == NEW
    nothing_is_open(stage)


@pytest.mark.parametrize("method", ["put_disk", "start"])
async def test_a_disk_that_is_opened_again_while_it_is_attached_is_tried_again(stage, monkeypatch, method):
    """Refused in the moment between the look and the change: a temporary failure."""
    change, left = getattr(stage.machines, method), [1]

    async def opened_before(*args):
        machine = stage.machines.machines[VM]
        if left[0] and (method == "start" or machine.at(0) is None):
            left[0] -= 1
            late_read(stage)
        return await change(*args)

    monkeypatch.setattr(stage.machines, method, opened_before)
    await stage.restore(stage.points()[0], **(stage.wanted | {"stop_vm": method == "start"}))

    assert left == [0]
    assert attached_disk(stage) == NEW
    assert stage.machines.machines[VM].power == "running"
    sane(stage)
    nothing_is_open(stage)


async def test_a_refused_way_back_is_final_whoever_reads_the_new_disk(stage, monkeypatch):
    """The machine refuses the new disk, and once the old one: the second refusal is reported as it is."""
    before, put_disk, left, codes = attached_disk(stage), stage.machines.put_disk, [1], []

    async def refuses(machine, lun, disk):
        if disk is not None and (disk.source == NEW or left[0]):
            left[0] -= disk.source != NEW
            late_read(stage)
            message = "no"
            raise MachineRefusedError(message)
        return await put_disk(machine, lun, disk)

    async def perform(name, request):
        answer = await stage.perform(name, request)
        if name == "move_machine" and answer["fault"]:
            codes.append((request["goal"], answer["fault"]["code"]))
        if name == "move_machine" and request["goal"] == "new":
            return answer if not answer["fault"] else {**answer, "fault": {**answer["fault"], "retryable": False}}
        return answer

    driver = stage.driver()
    driver._perform = perform
    monkeypatch.setattr(stage.machines, "put_disk", refuses)
    with pytest.raises(RestoreFailedError):
        await stage.restore(stage.points()[0], driver=driver, **stage.wanted)

    assert codes == [("new", "MachineBusy"), ("old", "MachineRefused")]
    assert attached_disk(stage) == before


@pytest.mark.parametrize("found", [None, "another"])
async def test_a_disk_that_is_not_the_runs_own_any_more_is_given_to_no_machine(stage, found):
    """Deleted after it was proved, or made anew by somebody under its name: the machine keeps what it has, all the time."""
    before, machines = attached_disk(stage), stage.machines

    def changed(_):
        if found:
            machines.disks[NEW] = replace(machines.disks[NEW], run=found)
        else:
            del machines.disks[NEW], stage.blobs.disks[address(stage)]

    driver = before_step(stage, "move_machine", changed)
    with pytest.raises(RestoreFailedError, match="changed by somebody else since it was proved"):
        await stage.restore(stage.points()[0], driver=driver, **(stage.wanted | {"adopt": False}))

    assert attached_disk(stage) == before
    assert stage.port_calls["put_disk"] == 1, "the fence of the way back"
    assert "no disk of this restore is left" in on(stage).end


@pytest.mark.parametrize("verification", ["full", "sampled"])
@pytest.mark.parametrize("place", ["open_image", "apply_shard", "compare_image", "seal_image"])
async def test_two_restores_to_one_name_at_once(stage, monkeypatch, place, verification):
    """The later one's request for the disk lands when the first is at `place`; Azure may not refuse it. At most one succeeds, with
    its own restore point, whatever the other one writes meanwhile.
    """
    stage.machines.ignores_condition = True
    first, last = (stage.points()[n] for n in (0, -1))
    contents, late, create = contents_of(stage), [], stage.machines.create_for_upload
    plain = {"target": NEW, "managed_disk": NEW, "slot": Slot(VM, 0)}

    async def kept(name, request):
        if name == place:
            raise KeyboardInterrupt
        if name == "apply_shard":
            late.append(request)
        return await stage.perform(name, request)

    async def made_late(wanted, location):
        if wanted.run == AGAIN:
            earlier = stage.driver()
            earlier._perform = kept
            request = stage.restore_request(last, **plain)
            with pytest.raises(KeyboardInterrupt):
                await earlier.run("restore_disk", request.model_dump(mode="json"), request.run)
        return await create(wanted, location)

    async def beside(name, request):
        if name == "compare_image":
            for one in late:
                for text in [text for text in stage.documents.texts if f"/{RUN}/" in text and "shard" in text]:
                    del stage.documents.texts[text]
                await stage.perform("apply_shard", one)
        return await stage.perform(name, request)

    monkeypatch.setattr(stage.machines, "create_for_upload", made_late)
    request = stage.restore_request(first, run=AGAIN, **plain)
    request = request.model_copy(update={"verification": verification})
    driver = stage.driver()
    driver._perform = beside
    with suppress(RestoreFailedError):
        await driver.run("restore_disk", request.model_dump(mode="json"), request.run)

    ended = stage.run_row(AGAIN)
    assert ended.state == ("Succeeded" if place in ("open_image", "apply_shard") else "Failed"), ended
    if ended.state == "Succeeded":
        assert new(stage).content() == contents[first.point]
    else:
        assert "somebody else has made it, and uses it; nothing was written" in ended.error.message


async def test_a_disk_that_is_exchanged_before_it_is_compared_is_left_alone(stage):
    """Somebody deletes it, and uploads to another of its name: that is neither written, closed nor read."""
    uploads = stage.blobs.cloud.uploads

    def exchange(_):
        stage.machines.disks[NEW] = replace(stage.machines.disks[NEW], run="another")
        uploads.make(address(stage), 32 * PAGE, {RUN_TAG: "another"})
        uploads.grant(address(stage), write=True, seconds=600)

    driver = before_step(stage, "compare_image", exchange)
    with pytest.raises(RestoreFailedError, match=f"it is gone, or was not made by {RUN}"):
        await stage.restore(stage.points()[0], driver=driver, **stage.wanted)

    assert uploads.state(address(stage)) == "ActiveUpload"
    assert new(stage).pages == {}
    assert "no disk of this restore is left" in on(stage).end


@pytest.mark.parametrize("step", ["compare_image", "seal_image"])
async def test_a_disk_that_is_made_anew_once_it_was_compared_is_not_used(stage, monkeypatch, step):
    """The disk was deleted, and a late delivery of this run made it again: it has the tag and name, but no content."""
    compared = verification.compared

    def exchange(_=None):
        stage.blobs.cloud.uploads.make(address(stage), 32 * PAGE, {RUN_TAG: RUN})
        new(stage).upload = ""

    async def exchanged(tools, image, *args, **options):
        reached = await compared(tools, image, *args, **options)
        if image.destination == NEW and step == "compare_image":
            exchange()
        return reached

    monkeypatch.setattr(verification, "compared", exchanged)
    driver = before_step(stage, "seal_image" if step == "seal_image" else "none", exchange)
    with pytest.raises(RestoreFailedError, match=r"HeadAltered: .* it was made anew: its unique id was"):
        await stage.restore(stage.points()[0], driver=driver, **(stage.wanted | {"adopt": False}))

    assert attached_disk(stage) != NEW
    assert "complete" not in on(stage).end
    nothing_is_open(stage)


@pytest.mark.parametrize("state", ["Succeeded", "Failed"])
async def test_the_night_finds_a_dead_restore_among_many_runs(stage, state):
    """However many backups there were since, and however they ended."""
    await stopped_before(stage, "compare_image", **(stage.wanted | {"adopt": False}))
    stage.world.pass_time(HEARTBEAT_MAX + timedelta(minutes=1))
    for minute in range(60):
        run = f"vm.20260103T00{minute:02d}00Z.timer"
        stage.catalogue._store(Run("vm", run, state, "timer", full=False, created=stage.world.now), run_key(run))
    await clean_up_disk(stage.tools, NIGHT)

    nothing_is_open(stage)
