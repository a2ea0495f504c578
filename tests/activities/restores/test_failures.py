"""Failures in a restore: it ends in a declared state, reports it, and no restore point has changed."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest

from backup_core.domain.errors import MachineRefusedError, ServiceUnavailableError
from backup_core.domain.records import Slot
from backup_core.domain.repoint import MachineDisk
from backup_core.orchestrations.restore_disk import RestoreFailedError
from tests.activities.acts import (
    FINAL,
    RUN,
    STEPS_OF_A_RESTORE,
    TARGET,
    attached_disk,
    cancel,
    contents_of,
    everything_kept,
    failing,
    into,
    on,
)
from tests.scene import PAGE, SOURCE, VM


@pytest.mark.parametrize("what", ["live disk", "stranger"])
async def test_nothing_that_exists_is_ever_written_to(scene, what):
    """A blob of that name appears after the validation: it is left as it is, down to its version."""
    address = scene.source() if what == "live disk" else scene.source("stranger")
    if what == "stranger":
        scene.blobs.put(address, 32 * PAGE).metadata = {"of": "somebody"}
    before = vars(copy.deepcopy(scene.blobs.blobs[address]))
    with pytest.raises(RestoreFailedError, match=r"BlobExists.*never writes onto anything that exists"):
        await scene.restore(scene.points()[0], target=address.url, **into())

    assert vars(scene.blobs.blobs[address]) == before
    assert attached_disk(scene) == scene.source().url
    assert scene.rows("pin!") == []
    assert not any("restore-" in at.name for at in scene.blobs.blobs), "the promoted head is removed"


AFTER_THE_MACHINE = {"adopt_head", "take_backup_snapshot", "commit_point"}


@pytest.mark.parametrize("step", [step for step in STEPS_OF_A_RESTORE if step != "close_change"])
async def test_a_step_that_fails_leaves_a_declared_end_state(scene, step):
    """The machine has one of its disks and backups are of that one; no pin, no lease, no ownership; the next backup is right."""
    contents = contents_of(scene)
    driver = failing(scene, step, FINAL, times=1 if step == "move_machine" else 99)
    with pytest.raises(RestoreFailedError, match=r"AccessDenied: refused by the test; restore point .* is unchanged"):
        await scene.restore(scene.points()[0], driver=driver, **into())

    everything_kept(scene, contents)
    row = scene.run_row(RUN)
    assert (row.state, row.error.code) == ("Failed", "AccessDenied")
    new = step in AFTER_THE_MACHINE
    assert attached_disk(scene) == (TARGET if new else scene.source().url)
    assert scene.catalogue.rows["vm", "registration"].value.source == attached_disk(scene)
    assert scene.rows("pin!") == []
    assert (scene.head_row().owner, scene.head_row().repoint) == (None, "")
    assert all(blob.lease == "" or blob.lease.startswith(VM) for blob in scene.blobs.blobs.values())
    assert ("uses the new disk" in row.restore.end) == new
    await scene.back_up()
    point = scene.points()[-1]
    assert scene.content(point) == scene.blob(attached_disk(scene)).content()
    assert (point.kind, point.reason.startswith("the disk's source")) == (("full", True) if new else ("incremental", False))


@pytest.mark.parametrize("step", STEPS_OF_A_RESTORE)
async def test_a_temporary_fault_is_waited_out(scene, step):
    driver = failing(scene, step, {"code": "ServiceUnavailable", "retryable": True}, times=2)
    await scene.restore(scene.points()[0], driver=driver, **into())

    assert scene.run_row(RUN).state == "Succeeded"
    assert attached_disk(scene) == TARGET


@pytest.mark.parametrize("moves", [0, 1, 2])
async def test_an_outage_of_the_resource_manager_is_outlasted(scene, moves):
    """For hours, before, between and after the two changes: the run keeps its state, asks for attention, and continues."""
    driver = failing(scene, "move_machine", {"code": "ServiceUnavailable", "retryable": True}, times=60, skip=moves)
    inner, attention = driver._perform, []

    async def perform(name, request):
        if name == "report_progress" and request["attention"]:
            attention.append(request["attention"])
            assert scene.run_row(RUN).state == "Running"
        return await inner(name, request)

    driver._perform = perform
    await scene.restore(scene.points()[0], driver=driver, **into())

    assert scene.run_row(RUN).state == "Succeeded"
    assert attached_disk(scene) == TARGET
    assert "nothing is lost; the run continues as soon as Azure answers" in attention[0]
    assert len(attention) > 5
    assert on(scene).attention == ""


async def test_a_refused_disk_is_undone(scene):
    """The new disk cannot be attached: the old one is back, read back, and the run says why."""
    real, refused = scene.machines.put_disk, []

    async def put_disk(machine, lun, disk):
        if disk and disk.source == TARGET:
            refused.append(disk)
            raise MachineRefusedError("AcquireDiskLeaseFailed")
        return await real(machine, lun, disk)

    scene.machines.put_disk = put_disk
    with pytest.raises(RestoreFailedError, match=r"MachineRefused: AcquireDiskLeaseFailed; .*uses the old disk again"):
        await scene.restore(scene.points()[0], **into())

    assert len(refused) == 1
    assert attached_disk(scene) == scene.source().url
    assert scene.blob(scene.source().url).lease.startswith(VM)
    assert scene.blob(TARGET).content() == scene.content(scene.points()[0]), "the complete disk is kept, and named"
    assert TARGET in on(scene).end
    await scene.back_up()
    assert scene.points()[-1].kind == "incremental"


async def test_a_restore_does_not_end_while_neither_disk_can_be_attached(scene):
    """No end state without a disk: it asks for attention until Azure accepts a disk; then the old disk is back."""
    real, attempts = scene.machines.put_disk, []

    async def put_disk(machine, lun, disk):
        if disk and len(attempts) < 40:
            attempts.append(on(scene).attention)
            raise MachineRefusedError("AcquireDiskLeaseFailed")
        return await real(machine, lun, disk)

    scene.machines.put_disk = put_disk
    with pytest.raises(RestoreFailedError, match=r"uses the old disk again"):
        await scene.restore(scene.points()[0], **into())

    assert len(attempts) == 40
    assert "has no disk there and Azure refuses to give it the old one" in attempts[-1]
    assert attached_disk(scene) == scene.source().url


async def test_after_a_version_conflict_the_machine_is_read_again(scene):
    """Somebody changes the machine between reading and writing: nothing is overwritten, the next look decides."""
    real, raced = scene.machines.put_disk, []

    async def put_disk(machine, lun, disk):
        if not raced:
            raced.append(True)
            scene.machines.change(VM, *scene.machines.machines[VM].disks)
        return await real(machine, lun, disk)

    scene.machines.put_disk = put_disk
    await scene.restore(scene.points()[0], **into())

    assert attached_disk(scene) == TARGET
    assert scene.run_row(RUN).state == "Succeeded"


@pytest.mark.parametrize("step", ["seal_image", "adopt_head", "commit_point"])
async def test_retries_of_a_restore_are_shown_at_its_end(scene, step):
    """Also those after its last report of progress."""
    driver = failing(scene, step, {"code": "ServiceUnavailable", "retryable": True}, times=2)
    await scene.restore(scene.points()[0], driver=driver, **into())

    assert (scene.run_row(RUN).state, scene.run_row(RUN).retries) == ("Succeeded", 2)


@pytest.mark.parametrize("moment", ["before", "between"])
async def test_a_third_disk_that_somebody_attached_stays(scene, moment):
    """It is left with it; backups stay with the old one; the run says so."""
    real, other = scene.machines.machine, MachineDisk("x", f"{SOURCE}/vhds/os.vhd", managed=False, lun=0)
    calls = []

    async def machine(vm):
        calls.append(vm)
        if len(calls) == (1 if moment == "before" else 3):
            keep_os = [disk for disk in scene.machines.machines[VM].disks if disk.lun is None]
            scene.blob(other.source).lease = ""
            scene.machines.change(VM, *[disk for disk in keep_os if disk.source != other.source], other)
        return await real(vm)

    scene.machines.machine = machine
    with pytest.raises(RestoreFailedError, match="SlotTaken"):
        await scene.restore(scene.points()[0], **into())

    assert attached_disk(scene) == other.source
    assert scene.catalogue.rows["vm", "registration"].value.source == scene.source().url
    assert (scene.head_row().owner, scene.head_row().repoint) == (None, "")


async def test_a_restore_into_a_deleted_vm_fails(scene):
    del scene.machines.machines[VM]
    with pytest.raises(RestoreFailedError, match="MachineNotFound"):
        await scene.restore(scene.points()[0], **into())

    assert scene.catalogue.rows["vm", "registration"].value.source == scene.source().url
    assert scene.head_row().owner is None


async def test_a_vm_outside_the_allowed_groups_is_refused(scene):
    """The allow-list is checked again before the machine is changed."""
    other = VM.replace("resourceGroups/web", "resourceGroups/payroll")
    scene.machines.machines[other] = scene.machines.machines[VM]
    with pytest.raises(RestoreFailedError, match=r"MachineRefused.*MACHINE_GROUPS"):
        await scene.restore(scene.points()[0], repoint=True, adopt=True, slot=Slot(other, 0))


async def test_a_target_that_left_the_allow_list_fails_the_restore(scene):
    """The allow-list is checked again: the restore fails with a message, ends its row and releases the disk."""
    with pytest.raises(RestoreFailedError, match=r"SourceUnfit: .*gone\.test.*SOURCE_ACCOUNTS"):
        await scene.restore(scene.points()[0], target="https://gone.test/vhds/x.vhd", **into())

    assert scene.run_row(RUN).state == "Failed"
    assert (scene.rows("pin!"), scene.head_row().owner) == ([], None)
    assert attached_disk(scene) == scene.source().url


async def test_a_promotion_that_fails_after_the_machine_has_its_disk(scene):
    """Backups must be of the disk the machine uses: without a point of its own, the next one is full."""
    driver, inner = scene.driver(), scene.perform

    async def perform(name, request):
        if name == "compare_image" and request["image"]["becomes"] == "head":
            return {"fault": {**FINAL, "message": "refused by the test"}, "value": None}
        return await inner(name, request)

    driver._perform = perform
    with pytest.raises(
        RestoreFailedError, match=r"refused by the test; .*backups continue with the new disk, the next one is full"
    ):
        await scene.restore(scene.points()[0], driver=driver, **into())

    assert scene.catalogue.rows["vm", "registration"].value.source == attached_disk(scene) == TARGET
    assert scene.claims() == {TARGET: "vm"}
    await scene.back_up()
    assert scene.points()[-1].kind == "full"
    assert scene.content(scene.points()[-1]) == scene.blob(TARGET).content()


@pytest.mark.parametrize("becomes", ["disk", "head"])
async def test_a_wrong_byte_in_a_copy_is_never_used(scene, becomes):
    """Full comparison is the default: one byte, anywhere that is allocated, in either copy."""
    driver, inner, damaged = scene.driver(), scene.perform, []

    async def perform(name, request):
        if name == "compare_image" and request["image"]["becomes"] == becomes and not damaged:
            damaged.append(True)
            blob = scene.blobs.blobs[scene.tools.image(request["image"]["destination"])]
            blob.pages[1] = b"\xff" + blob.pages[1][1:]
        return await inner(name, request)

    driver._perform = perform
    with pytest.raises(RestoreFailedError, match=r"VerificationMismatch.*bytes \[512, 1024\)|VerificationMismatch.*bytes \["):
        await scene.restore(scene.points()[0], driver=driver, **into())

    if becomes == "disk":
        assert attached_disk(scene) == scene.source().url
        assert scene.blob(TARGET) is None
    assert len(scene.points()) == 3


@pytest.mark.parametrize("ending", ["failed", "aborted", "another copy", "short"])
async def test_a_copy_that_does_not_end_as_ours_is_never_used(scene, ending):
    """A zero-length blob with full metadata proves nothing."""
    scene.blobs.copies_delayed = True
    request, driver = scene.restore_request(scene.points()[0], **into()), scene.driver()
    inner, looks = scene.perform, []

    async def perform(name, step_input):
        if name == "check_copy":
            looks.append(step_input["image"]["destination"])
            for address, blob in list(scene.blobs.blobs.items()):
                if blob.arriving and len(looks) > 2:
                    ends(address, blob)
        return await inner(name, step_input)

    def ends(address, blob):
        ours = address.url == TARGET
        if not ours or ending in ("another copy", "short"):
            scene.blobs.end_copy(address, "success")
        else:
            scene.blobs.end_copy(address, ending)
        if ours and ending == "another copy":
            blob.copy, blob.metadata = replace(blob.copy, copy_id="other"), {}
        if ours and ending == "short":
            blob.size, blob.pages = 0, {}

    driver._perform = perform
    step_input = request.model_copy(update={"full_copy": "blob"}).model_dump(mode="json")
    with pytest.raises(RestoreFailedError, match="BlobExists" if ending == "another copy" else "CopyFailed"):
        await driver.run("restore_disk", step_input, request.run)

    assert attached_disk(scene) == scene.source().url
    assert len(scene.points()) == 3
    assert scene.rows("pin!") == []


async def test_a_copy_that_stays_pending_can_be_canceled(scene):
    """The service's copy is ended, the blob removed."""
    scene.blobs.copies_delayed = True
    request, driver, looks = scene.restore_request(scene.points()[0], **into()), scene.driver(), []

    async def perform(name, step_input):
        if name == "check_copy":
            looks.append(name)
            if len(looks) == 5:
                await cancel(scene, RUN)
        return await scene.perform(name, step_input)

    driver._perform = perform
    step_input = request.model_copy(update={"full_copy": "blob"}).model_dump(mode="json")
    output = await driver.run("restore_disk", step_input, request.run)

    assert output["state"] == scene.run_row(RUN).state == "Canceled"
    assert scene.blob(TARGET) is None
    assert not any("restore-" in at.name for at in scene.blobs.blobs)


async def test_an_unreachable_source_account_fails_the_restore(scene):
    """It cannot be written: the restore fails in words, and nothing else has changed."""
    contents = contents_of(scene)
    real = scene.blobs.create

    async def create(blob, *rest):
        if blob.account == SOURCE:
            raise ServiceUnavailableError("no answer")
        await real(blob, *rest)

    scene.blobs.create = create
    with pytest.raises(RestoreFailedError, match="ServiceUnavailable: no answer"):
        await scene.restore(scene.points()[0], **into())

    everything_kept(scene, contents)
    assert attached_disk(scene) == scene.source().url
    assert scene.rows("pin!") == []


async def test_a_promoted_head_that_was_changed_after_its_proof_is_not_adopted(scene):
    """The restore adopts exactly the version of the head that was proved."""
    driver, inner = scene.driver(), scene.perform

    async def perform(name, request):
        if name == "adopt_head":
            blob = scene.blobs.blobs[scene.tools.head(request["transfer"]["destination"])]
            blob.etag = '"theirs"'
        return await inner(name, request)

    driver._perform = perform
    with pytest.raises(RestoreFailedError, match=r"HeadAltered.*the next one is full"):
        await scene.restore(scene.points()[0], driver=driver, **into())

    assert scene.catalogue.rows["vm", "registration"].value.source == attached_disk(scene) == TARGET


async def test_a_new_disk_that_another_registration_claimed_is_not_adopted(scene):
    driver, inner = scene.driver(), scene.perform

    async def perform(name, request):
        if name == "commit_point":
            scene.catalogue.claim(TARGET, "other")
        return await inner(name, request)

    driver._perform = perform
    with pytest.raises(RestoreFailedError, match="SourceUnfit"):
        await scene.restore(scene.points()[0], driver=driver, adopt=True)

    assert scene.claims() == {scene.source().url: "vm", TARGET: "other"}
    assert scene.catalogue.rows["vm", "registration"].value.source == scene.source().url
