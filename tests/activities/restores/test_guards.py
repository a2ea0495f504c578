"""The guards of a restore, one by one: each of these fails when its line is taken out."""

from __future__ import annotations

from dataclasses import replace

import pytest

from backup_core.domain.errors import AccessDeniedError, FencedError, MachineRefusedError, RowChangedError
from backup_core.domain.managed import ManagedDisk
from backup_core.domain.naming import managed_disk_id
from backup_core.domain.ranges import ByteRange
from backup_core.domain.records import Registration
from backup_core.domain.repoint import MachineDisk
from backup_core.orchestrations.restore_disk import RestoreFailedError
from backup_core.ports import Fence
from tests.activities.acts import (
    AGAIN,
    FINAL,
    RUN,
    TARGET,
    attached_disk,
    before_step,
    cancel,
    contents_of,
    failing,
    into,
    sane,
    stop_before,
    stopped_before,
)
from tests.scene import PAGE, VM

MACHINE_STEPS = ("move_machine", "fence_machine", "inspect_machine")


def target_of(scene):
    return next(at for at in scene.blobs.blobs if at.url == TARGET)


# -- the right to act -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("why", ["another execution", "ended", "unpinned"])
async def test_only_the_execution_that_pinned_may_act_and_only_while_its_run_lives(scene, why):
    died = await stopped_before(scene, "compare_image")
    calls = [
        (name, request)
        for name, request, _ in died.calls
        if name in ("plan_transfer", "open_image", "apply_shard", "report_progress")
    ]
    if why == "ended":
        scene.catalogue._store(
            replace(scene.run_row(RUN), state="Canceled"),
            next(k for _, k in scene.catalogue.rows if k.endswith(RUN) and k.startswith("run!")),
        )
    if why == "unpinned":
        await scene.catalogue.unpin(scene.rows("pin!")[0])
    before = scene.dump(with_runs=True)
    for name, request in calls:
        image = request if "actor" in request else request["image"]
        actor = image["actor"] | ({"lease": "00000000-0000-0000-0000-000000000009"} if why == "another execution" else {})
        late = request | ({"actor": actor} if "actor" in request else {"image": image | {"actor": actor}})
        answer = await scene.perform(name, late)
        assert answer["fault"]["code"] == "NotOwner", name

    assert {name for name, _ in calls} == {"plan_transfer", "open_image", "apply_shard", "report_progress"}
    assert scene.dump(with_runs=True) == before


async def test_a_second_orchestration_of_a_run_steps_back(scene):
    """Another lease for the same run: it neither begins nor owns."""
    await stopped_before(scene, "move_machine")
    request = {"disk": "vm", "run": RUN, "lease": "00000000-0000-0000-0000-000000000009"}
    before = scene.dump(with_runs=True)

    assert (await scene.perform("begin_restore", request))["value"]["state"] == "ended"
    assert "another orchestration" in (await scene.perform("own_disk", request))["fault"]["message"]
    assert scene.dump(with_runs=True) == before


async def test_a_closed_change_moves_nothing(scene):
    """The disk is still owned, but the change was settled: a move that comes late does not touch the machine."""
    driver, late = scene.driver(), []

    async def perform(name, request):
        answer = await scene.perform(name, request)
        if name == "commit_point":
            move = next(one for step, one, _ in driver.calls if step == "move_machine")
            machine = scene.machines.machines[VM]
            late.extend([await scene.perform(step, move | {"goal": "old"}) for step in MACHINE_STEPS])
            await scene.perform("store_change", next(one for step, one, _ in driver.calls if step == "store_change"))
            assert scene.head_row().repoint == "", "it is not begun again"
            assert scene.machines.machines[VM] == machine
        return answer

    driver._perform = perform
    await scene.restore(scene.points()[0], driver=driver, **into())

    assert [one["fault"]["code"] if one["fault"] else one["value"]["holds"] for one in late] == ["NotOwner", "new", "new"]
    assert attached_disk(scene) == TARGET


async def test_another_restores_change_is_left_to_it(scene):
    """The head row names the change in progress; a request for another change moves nothing, and does not report success."""
    driver = await stopped_before(scene, "move_machine", 2)
    move = next(request for name, request, _ in driver.calls if name == "move_machine")
    row = scene.catalogue.rows["vm", "head"]
    scene.catalogue.rows["vm", "head"] = replace(row, value=replace(row.value, repoint=f"vm/{AGAIN}/machine.json"))
    machine = scene.machines.machines[VM]

    for step in MACHINE_STEPS:
        assert (await scene.perform(step, move))["fault"]["code"] == "NotOwner", step
        assert scene.machines.machines[VM] == machine


async def test_only_this_change_is_settled(scene):
    """A call that comes late, for a change that is over, leaves the present one noted."""
    driver = await stopped_before(scene, "move_machine", 2)
    (move,) = [request for name, request, _ in driver.calls if name == "move_machine"]
    row = scene.catalogue.rows["vm", "head"]
    present = f"vm/{AGAIN}/machine.json"
    scene.catalogue.rows["vm", "head"] = replace(row, value=replace(row.value, repoint=present))
    settle = {"actor": move["actor"], "change": move["change"], "goal": "old"}

    assert (await scene.perform("close_change", settle))["fault"] is None
    assert scene.head_row().repoint == present
    scene.catalogue.rows["vm", "head"] = row
    stranger = settle | {"actor": move["actor"] | {"epoch": 99}}
    assert (await scene.perform("close_change", stranger))["fault"]["code"] == "NotOwner"
    assert scene.head_row().repoint == move["change"]


async def test_a_managed_disk_is_not_imported_late(scene):
    """The restore has ended, somebody has deleted the disk: it is not made anew."""
    old, new = managed_disk_id(VM, "old"), managed_disk_id(VM, "new")
    scene.machines.disks[old] = ManagedDisk(old, "Succeeded", "", 512)
    scene.machines.machines.clear()
    scene.machines.add(VM, MachineDisk("old", old, managed=True, lun=0))
    done = await scene.restore(scene.points()[0], **into(managed_disk=new, adopt=False, old_disk=old))
    request = next(request for name, request, _ in done.calls if name == "import_disk")
    assert attached_disk(scene) == new
    scene.machines.machines.clear()
    scene.machines.add(VM, MachineDisk("old", old, managed=True, lun=0))
    del scene.machines.disks[new]

    assert (await scene.perform("import_disk", request))["fault"]["code"] == "NotOwner"
    assert new not in scene.machines.disks


def test_only_machines_of_the_allow_list_are_changed(scene):
    with pytest.raises(MachineRefusedError, match="MACHINE_GROUPS"):
        scene.tools.slot(VM.replace("resourceGroups/web", "resourceGroups/payroll"), 0)


# -- images -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("becomes", ["disk", "head"])
async def test_a_late_write_of_the_copying_does_not_change_the_compared_image(scene, becomes):
    """A put under the run's own lease, still in flight when the comparison begins, is refused by the blob."""
    driver, refused = scene.driver(), []

    async def perform(name, request):
        answer = await scene.perform(name, request)
        if name == "compare_image" and request["image"]["becomes"] == becomes:
            image = request["image"]
            blob, fence = scene.tools.image(image["destination"]), Fence(image["actor"]["lease"], image["actor"]["epoch"])
            with pytest.raises(FencedError):
                await scene.blobs.clear(blob, ByteRange(0, PAGE), fence)
            refused.append(blob)
        return answer

    driver._perform = perform
    await scene.restore(scene.points()[0], driver=driver, **into())

    assert len(refused) == 1
    assert scene.run_row(RUN).state == "Succeeded"


async def test_a_copy_that_changes_while_it_is_compared_is_not_used(scene):
    """Even to the same bytes: what was compared first may not be what is there at the end."""
    scene.with_limits(verify_seconds=-1.0, batch_reads=1)

    def rewrite(_):
        blob = scene.blobs.blobs[target_of(scene)]
        scene.blobs.poke(target_of(scene), 0, [blob.pages[0]])

    with pytest.raises(RestoreFailedError, match=r"HeadAltered.*changed by somebody else while it was compared"):
        await scene.restore(scene.points()[0], driver=before_step(scene, "compare_image", rewrite, count=2))

    assert scene.blob(TARGET) is None


@pytest.mark.parametrize("snapshots", [True, False])
async def test_only_the_version_that_was_compared_is_sealed(scene, snapshots):
    """Somebody breaks the lease and writes between comparison and seal: no machine gets that disk."""
    fields = into() if snapshots else {}
    driver = before_step(scene, "seal_image", lambda _: scene.blobs.poke(target_of(scene), 3, [b"\xee" * PAGE]))
    with pytest.raises(RestoreFailedError, match="BlobChanged"):
        await scene.restore(scene.points()[0], driver=driver, **fields)

    assert attached_disk(scene) == scene.source().url
    assert scene.blob(TARGET) is None or not scene.blob(TARGET).snapshots


async def test_a_head_that_was_adopted_is_never_discarded(scene):
    """The commit happened, its reply was lost for good: the run fails, but what the catalogue names stays."""
    driver = scene.driver()

    async def perform(name, request):
        answer = await scene.perform(name, request)
        if name == "commit_point":
            blob = scene.blobs.blobs[scene.tools.head(request["transfer"]["destination"])]
            blob.metadata["pagekeeper_state"] = "verified"
            return {"fault": {**FINAL, "message": "the reply was lost"}, "value": None}
        return answer

    driver._perform = perform
    with pytest.raises(RestoreFailedError, match="the reply was lost"):
        await scene.restore(scene.points()[0], driver=driver, **into())

    newest = scene.points()[-1]
    assert newest.kind == "restored"
    assert scene.content(newest) == scene.content(scene.points()[0])
    await scene.back_up()
    sane(scene)


@pytest.mark.parametrize("fields", [into(), {"adopt": True}], ids=["into the machine", "adopted alone"])
async def test_a_head_that_was_committed_is_never_discarded(scene, fields):
    """Though the catalogue names another one by then: it holds a restore point."""

    def another_head(request):
        row = scene.catalogue.rows["vm", "head"]
        if request["image"]["becomes"] == "head":
            scene.catalogue.rows["vm", "head"] = replace(row, value=replace(row.value, head="vm/another"))

    driver = before_step(scene, "discard_image", another_head)
    inner = driver._perform

    async def perform(name, request):
        answer = await inner(name, request)
        lost = {"fault": {**FINAL, "message": "the reply was lost"}, "value": None}
        return lost if name == "commit_point" else answer

    driver._perform = perform
    with pytest.raises(RestoreFailedError, match="the reply was lost"):
        await scene.restore(scene.points()[0], driver=driver, **fields)

    newest = scene.points()[-1]
    assert newest.kind == "restored"
    assert scene.head_row().head == "vm/another"
    assert scene.content(newest) == scene.content(scene.points()[0])


@pytest.mark.parametrize(
    "fields", [into(), {"adopt": True}, into(adopt=False)], ids=["into the machine", "adopted alone", "not adopted"]
)
async def test_after_a_restore_no_head_is_leased(scene, fields):
    """Neither the new one nor the one that the disk had before, whose points are still there."""
    former = scene.head_row().head
    await scene.restore(scene.points()[0], **fields)

    leases = {at.name: blob.lease for at, blob in scene.blobs.blobs.items() if at.container == "heads"}
    assert leases == {former: "", scene.head_row().head: ""}
    assert (former != scene.head_row().head) == fields["adopt"]


async def copied_only(scene):
    """A restore that died before it compared its disk: the image."""
    driver = await stopped_before(scene, "compare_image", adopt=False)
    return next(request for name, request, _ in driver.calls if name == "open_image")


@pytest.mark.parametrize("why", ["its restore has ended", "somebody else leases it"])
async def test_an_image_is_discarded_by_its_restore_alone(scene, why):
    image = await copied_only(scene)
    if why == "somebody else leases it":
        scene.blob(TARGET).lease = "00000000-0000-0000-0000-000000000009"
    else:
        await scene.catalogue.unpin(scene.rows("pin!")[0])
    answer = await scene.perform("discard_image", {"image": image})

    assert (answer["fault"] or {}).get("code") == ("NotOwner" if why == "its restore has ended" else None)
    assert answer["fault"] or answer["value"]["left"] == TARGET
    assert scene.blob(TARGET) is not None


async def test_an_image_that_was_given_up_is_not_made_anew(scene):
    """Nor compared, be it there again: a second life of the copying comes after the discard."""
    image = await copied_only(scene)
    assert (await scene.perform("discard_image", {"image": image}))["value"]["left"] == ""

    for step, request in (("open_image", image), ("compare_image", {"image": image, "full": True})):
        assert (await scene.perform(step, request))["fault"]["code"] == "NotOwner", step
        assert scene.blob(TARGET) is None


async def test_a_disk_of_unknown_origin_is_not_sealed(scene):
    """It carries nothing of the restore, and no snapshot of it is recorded: it may be anybody's."""
    driver = await stopped_before(scene, "seal_image")
    scene.blob(TARGET).metadata, lease = {}, scene.blob(TARGET).lease
    (opened,) = [request for name, request, _ in driver.calls if name == "open_image" and request["becomes"] == "disk"]
    answer = await scene.perform("seal_image", {"image": opened, "etag": scene.blob(TARGET).etag, "snapshots": True})

    assert "it is left alone" in answer["fault"]["message"]
    assert (scene.blob(TARGET).lease, scene.blob(TARGET).snapshots) == (lease, {})


async def test_a_head_is_not_discarded_while_its_machine_is_to_be_settled(scene):
    """The ownership, which a commit needs, cannot be given up before: so a commit may still be in progress."""
    driver = await stopped_before(scene, "commit_point")
    (head,) = [request for name, request, _ in driver.calls if name == "open_image" and request["becomes"] == "head"]
    owner = scene.head_row().owner
    assert scene.head_row().repoint
    answer = await scene.perform("discard_image", {"image": head})

    assert answer["value"]["left"].endswith(head["destination"])
    assert scene.blobs.blobs[scene.tools.head(head["destination"])]
    assert scene.head_row().owner == owner


async def test_a_restore_that_gave_its_head_up_does_not_own_the_disk_again(scene):
    """Its ownership went with the head: a step that comes late would have both."""
    driver = await stopped_before(scene, "commit_point", adopt=True)
    (head,) = [request for name, request, _ in driver.calls if name == "open_image" and request["becomes"] == "head"]
    request = next(request for name, request, _ in driver.calls if name == "own_disk")
    assert (await scene.perform("discard_image", {"image": head}))["value"]["left"] == ""
    assert scene.head_row().owner is None

    assert (await scene.perform("own_disk", request))["fault"]["code"] == "NotOwner"
    assert scene.head_row().owner is None


async def test_a_head_of_another_run_is_not_adopted(scene):
    """By its mark; its version is the one that was proved."""

    def another(request):
        scene.blobs.blobs[scene.tools.head(request["transfer"]["destination"])].metadata["pagekeeper_run"] = AGAIN

    with pytest.raises(RestoreFailedError, match="HeadAltered"):
        await scene.restore(scene.points()[0], driver=before_step(scene, "adopt_head", another), adopt=True)

    assert len(scene.points()) == 3


async def test_only_the_restore_itself_notes_its_failure(scene):
    driver = await stopped_before(scene, "compare_image")
    actor = next(request for name, request, _ in driver.calls if name == "open_image")["actor"]
    fault = {"code": "Unexpected", "message": "refused by the test", "retryable": False}
    request = {"actor": actor | {"lease": "00000000-0000-0000-0000-000000000009"}, "fault": fault}

    assert (await scene.perform("record_failure", request))["fault"]["code"] == "NotOwner"
    assert scene.run_row(RUN).error is None


@pytest.mark.parametrize("fields", [into(), {"adopt": True}], ids=["into the machine", "adopted alone"])
async def test_a_commit_that_hangs_makes_no_point_of_a_head_that_is_discarded(scene, fields):
    """Another delivery of it failed for good, so the restore fails and removes its head; right after that the hung one continues."""
    commit, delete, hung = scene.catalogue.commit, scene.blobs.delete_own, []

    async def hangs(*request, **changed):
        if request[0] and not hung:
            hung.append((request, changed))
            raise AccessDeniedError("refused by the test")
        return await commit(*request, **changed)

    async def then_it_goes_on(*request, **how):
        await delete(*request, **how)
        with pytest.raises(RowChangedError):
            await commit(*hung[0][0], **hung[0][1])

    scene.catalogue.commit, scene.blobs.delete_own = hangs, then_it_goes_on
    contents = contents_of(scene)
    with pytest.raises(RestoreFailedError, match="AccessDenied"):
        await scene.restore(scene.points()[0], **fields)

    assert contents_of(scene) == contents
    assert [name for name in scene.blobs.blobs if "restore-" in name.name] == []
    scene.catalogue.commit, scene.blobs.delete_own = commit, delete
    await scene.back_up()
    assert scene.points()[-1].run != RUN


async def test_a_pending_copy_that_cannot_be_watched_is_ended_and_removed(scene):
    scene.blobs.copies_delayed = True
    request = scene.restore_request(scene.points()[0])
    driver = failing(scene, "check_copy", FINAL)
    step_input = request.model_copy(update={"full_copy": "blob"}).model_dump(mode="json")
    with pytest.raises(RestoreFailedError, match=r"AccessDenied.*the unfinished disk was removed"):
        await driver.run("restore_disk", step_input, request.run)

    assert scene.blob(TARGET) is None


async def test_work_beside_a_failed_one_ends_at_its_next_report(scene):
    """The machine's disk cannot be made: no run continues to copy a head for it."""
    driver, inner, head = scene.driver(), scene.perform, []

    async def perform(name, request):
        if name == "compare_image" and request["image"]["becomes"] == "disk":
            return {"fault": {**FINAL, "message": "refused by the test"}, "value": None}
        if name in ("compare_image", "apply_shard") and request["image"]["becomes"] == "head":
            head.append(name)
        return await inner(name, request)

    driver._perform = perform
    with pytest.raises(RestoreFailedError, match="refused by the test"):
        await scene.restore(scene.points()[0], driver=driver, **into())

    assert "compare_image" not in head
    assert not any("restore-" in at.name for at in scene.blobs.blobs)


async def test_the_promotion_does_not_change_the_run_that_is_shown(scene):
    """Phase and numbers are those of the machine's disk; the head beside it only gives signs of life."""
    driver, seen = scene.driver(), []

    async def perform(name, request):
        before = scene.run_row(RUN)
        answer = await scene.perform(name, request)
        if name == "report_progress" and request["in_parallel"]:
            after = scene.run_row(RUN)
            seen.append((before.phase, after.phase))
            assert replace(after) == before
        return answer

    driver._perform = perform
    await scene.restore(scene.points()[0], driver=driver, **into())

    assert seen
    assert {after for _, after in seen} == {"promoting"}


# -- ownership and adoption ----------------------------------------------------------------------------------------------


async def test_a_head_whose_number_a_stranger_raised_stops_no_restore(scene):
    """It can no longer be fenced, and nothing is built upon it: the restore begins a generation of its own."""
    scene.head_blob().sequence_number = 4711
    await scene.restore(scene.points()[0], **into())

    assert scene.run_row(RUN).state == "Succeeded"
    await scene.back_up()
    sane(scene)


async def test_a_snapshot_that_is_not_the_newest_is_not_adopted(scene):
    """Points are in the order of their source snapshots: whatever made this one older, it does not become the pair."""
    newer = "2999-01-01T00:00:00.0000000Z"

    def a_newer_pair(_):
        row = scene.catalogue.rows["vm", "head"]
        pair = replace(row.value.pair, source_snapshot=newer, point="29990101T0000000000000Z")
        scene.catalogue.rows["vm", "head"] = replace(row, value=replace(row.value, pair=pair))

    with pytest.raises(RestoreFailedError, match="is not newer than the newest restore point"):
        await scene.restore(scene.points()[0], driver=before_step(scene, "commit_point", a_newer_pair), adopt=True)

    assert len(scene.points()) == 3


async def test_the_registration_beside_the_backups_moves_too(scene):
    """A rebuild brings the new source back, not the old one."""
    await scene.restore(scene.points()[0], **into())

    assert f'"{TARGET}"' in scene.documents.texts["vm/registration.json"]


async def test_a_disk_whose_protection_was_stopped_is_not_taken_up_by_a_restore(scene):
    row = scene.catalogue.rows["vm", "registration"]
    stopped = Registration(**{**vars(row.value), "protected": False})
    scene.catalogue._store(stopped, "registration")
    await scene.restore(scene.points()[0], **into(adopt=False))

    assert attached_disk(scene) == TARGET
    assert scene.catalogue.rows["vm", "registration"].value == stopped
    assert scene.head_row().repoint == ""


async def test_a_cancel_of_an_adoption_before_it_begins(scene):
    driver = before_step(scene, "report_progress", lambda _: None)
    inner = driver._perform

    async def perform(name, request):
        if name == "report_progress" and request["phase"] == "adopting":
            await cancel(scene, RUN)
        return await inner(name, request)

    driver._perform = perform
    await scene.restore(scene.points()[0], driver=driver, adopt=True)

    assert scene.run_row(RUN).state == "Canceled"
    assert len(scene.points()) == 3
    assert scene.catalogue.rows["vm", "registration"].value.source == scene.source().url


async def test_a_cancel_while_it_waits_for_the_disk(scene):
    """The backup in progress continues; the new disk is removed, the machine was not touched."""
    backup = await stop_before(scene, "verify_head")
    machine = scene.machines.machines[VM]
    driver = scene.driver()

    async def perform(name, request):
        if name == "report_progress" and request["phase"] == "queued":
            await cancel(scene, RUN)
        return await scene.perform(name, request)

    driver._perform = perform
    await scene.restore(scene.points()[0], driver=driver, **into())

    assert scene.run_row(RUN).state == "Canceled"
    assert scene.head_row().owner.run == backup.run
    assert scene.machines.machines[VM] == machine
    assert scene.blob(TARGET) is None
