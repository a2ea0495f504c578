"""Restores that are canceled, die, are delivered twice or late: a declared end state, and the next run puts things right."""

from __future__ import annotations

from datetime import timedelta

import pytest

from backup_core.domain.ending import HEARTBEAT_MAX
from backup_core.domain.errors import MachineChangedError, MachineRefusedError, ServiceUnavailableError
from backup_core.orchestrations.restore_disk import RestoreFailedError
from tests.activities.acts import (
    AGAIN,
    RUN,
    STEPS_OF_A_RESTORE,
    TARGET,
    attached_disk,
    cancel,
    contents_of,
    everything_kept,
    into,
    on,
    sane,
    stopped_before,
)
from tests.scene import SOURCE, VM

ALL = ["begin_restore", *STEPS_OF_A_RESTORE, "finish_restore"]
UNDONE = {
    "begin_restore",
    "plan_transfer",
    "open_image",
    "apply_shard",
    "compare_image",
    "own_disk",
    "seal_image",
    "store_change",
}


@pytest.mark.parametrize("step", [step for step in ALL if step != "close_change"])
async def test_a_restore_that_dies_is_put_right_by_the_next_backup(scene, step):
    """Terminated in the portal before any of its steps: the machine has one of its disks, backups are of that one."""
    contents = contents_of(scene)
    await stopped_before(scene, step)
    scene.world.pass_time(HEARTBEAT_MAX + timedelta(minutes=1))
    driver = await scene.back_up()

    assert driver.output["state"] == "Succeeded"
    everything_kept(scene, contents)
    sane(scene)
    assert scene.run_row(RUN).ended_for_good or step == "begin_restore"
    if step != "begin_restore":
        assert scene.run_row(RUN).error.code == "Abandoned" or scene.run_row(RUN).state == "Succeeded"
    assert (attached_disk(scene) == TARGET) == (step not in UNDONE and step != "move_machine")
    await scene.back_up()
    assert scene.points()[-1].kind == "incremental"


@pytest.mark.parametrize(("count", "goal"), [(1, "old"), (2, "old"), (3, "new"), (4, "new")])
async def test_a_change_of_the_machine_that_was_interrupted_is_brought_to_an_end(scene, count, goal):
    """Back while it has no disk, forward once it has the new one."""
    await stopped_before(scene, "move_machine", count if count < 4 else 3)
    if count == 2:
        assert attached_disk(scene) is None
    scene.world.pass_time(HEARTBEAT_MAX + timedelta(minutes=1))
    await scene.back_up()

    assert attached_disk(scene) == (TARGET if goal == "new" else scene.source().url)
    sane(scene)
    assert scene.points()[-1].kind == ("full" if goal == "new" else "incremental")


async def test_the_next_restore_brings_it_to_an_end_too(scene):
    await stopped_before(scene, "move_machine", 2)
    scene.world.pass_time(HEARTBEAT_MAX + timedelta(minutes=1))
    await scene.restore(scene.points()[1], run=AGAIN, target=f"{SOURCE}/vhds/again.vhd", **into())

    assert attached_disk(scene) == f"{SOURCE}/vhds/again.vhd"
    await scene.back_up()
    sane(scene)
    assert scene.points()[-1].kind == "incremental"


async def test_a_machine_that_cannot_be_settled_fails_the_backup_visibly(scene):
    """Nothing is backed up as if all were well while nobody knows which disk the machine uses."""
    await stopped_before(scene, "move_machine", 2)
    scene.world.pass_time(HEARTBEAT_MAX + timedelta(minutes=1))
    real = scene.machines.machine

    async def down(_):
        raise ServiceUnavailableError("no answer")

    scene.machines.machine = down
    with pytest.raises(Exception, match=r"a restore that died was changing a machine|no answer"):
        await scene.back_up()
    scene.machines.machine = real
    await scene.back_up()

    assert attached_disk(scene) == scene.source().url
    sane(scene)


@pytest.mark.parametrize("step", ALL)
async def test_every_phase_can_be_canceled(scene, step):
    """Points unchanged, pin released, half-made blobs removed, machine untouched or put back; too late once it is adopted."""
    contents = contents_of(scene)
    driver, answers = scene.driver(), []

    async def perform(name, request):
        if name == step and not answers:
            answers.append((await cancel(scene, RUN))[0])
        return await scene.perform(name, request)

    driver._perform = perform
    await scene.restore(scene.points()[0], driver=driver, **into())

    row = scene.run_row(RUN)
    late = {"adopt_head", "take_backup_snapshot", "commit_point", "finish_restore"}
    assert row.state == ("Succeeded" if step in late | {"close_change"} else "Canceled")
    everything_kept(scene, contents)
    assert scene.rows("pin!") == []
    assert (scene.head_row().owner, scene.head_row().repoint) == (None, "")
    assert scene.catalogue.rows["vm", "registration"].value.source == attached_disk(scene)
    if row.state == "Canceled":
        assert attached_disk(scene) == scene.source().url
        assert row.error.code == "Canceled"
        assert "is unchanged" in row.restore.end or "nothing was begun" in row.restore.end
        assert not any("restore-" in at.name for at in scene.blobs.blobs)
        assert scene.blob(TARGET) is None or TARGET in row.restore.end
    await scene.back_up()
    sane(scene)


@pytest.mark.parametrize("count", [1, 2, 3])
async def test_a_cancel_between_the_changes_of_the_machine_puts_the_old_disk_back(scene, count):
    driver, left = scene.driver(), [count]

    async def perform(name, request):
        if name == "move_machine" and request["goal"] == "new":
            left[0] -= 1
            if left[0] == 0:
                await cancel(scene, RUN)
        return await scene.perform(name, request)

    driver._perform = perform
    await scene.restore(scene.points()[0], driver=driver, **into())

    state = scene.run_row(RUN).state
    assert state == ("Canceled" if count < 3 else "Succeeded") or (state, attached_disk(scene)) == ("Canceled", TARGET)
    assert attached_disk(scene) == (scene.source().url if count < 3 else TARGET)
    await scene.back_up()
    sane(scene)


async def test_a_cancel_while_the_head_is_promoted_after_the_machine_has_its_disk(scene):
    """The machine keeps the new disk, backups follow it; only the increment is given up."""
    driver, done = scene.driver(), []

    async def perform(name, request):
        if name == "compare_image" and request["image"]["becomes"] == "head" and attached_disk(scene) == TARGET and not done:
            done.append(True)
            await cancel(scene, RUN)
        answer = await scene.perform(name, request)
        if name == "report_progress" and request["in_parallel"] and done:
            answer["value"]["cancel"] = True
        return answer

    scene.with_limits(verify_seconds=-1.0, batch_reads=1)
    driver._perform = perform
    await scene.restore(scene.points()[0], driver=driver, **into())

    assert done
    assert (scene.run_row(RUN).state, attached_disk(scene)) == ("Canceled", TARGET)
    assert "backups continue with the new disk, the next one is full" in on(scene).end
    await scene.back_up()
    sane(scene)


async def test_each_step_delivered_twice_changes_nothing_more(scene):
    """Each delivery of a step finds what an earlier one did."""
    driver = scene.driver()

    async def twice(name, request):
        first = await scene.perform(name, request)
        second = await scene.perform(name, request)
        return first if name in ("move_machine", "fence_machine") and second["fault"] else second

    driver._perform = twice
    await scene.restore(scene.points()[0], driver=driver, **into())

    assert scene.run_row(RUN).state == "Succeeded"
    assert len([point for point in scene.points() if point.kind == "restored"]) == 1
    assert len(scene.blob(TARGET).snapshots) == 1
    await scene.back_up()
    sane(scene)
    assert scene.points()[-1].kind == "incremental"


async def test_each_step_delivered_late_is_refused(scene):
    """Each recorded call comes again after the restore and another backup have ended: it bounces, nothing differs."""
    done = await scene.restore(scene.points()[0], **into())
    await scene.back_up()
    before = (scene.dump(with_runs=True), scene.machines.machines[VM])
    calls = list(done.calls)
    assert {name for name, *_ in calls} >= set(ALL) - {"close_change"}
    for name, request, _ in calls:
        answer = await scene.perform(name, request)
        if name not in ("begin_restore", "finish_restore"):
            # Refused by the check of ownership: the versions and leases that would refuse it too are the second line.
            assert answer["fault"]["code"] == ("RestorePointUnavailable" if name == "own_disk" else "NotOwner"), name
        assert (scene.dump(with_runs=True), scene.machines.machines[VM]) == before, name


async def test_a_change_decided_long_ago_is_refused_by_the_machine(scene):
    """A worker hangs between reading and writing; the run goes back to the old disk, which is there: its change lands never."""
    real, hung = scene.machines.put_disk, []

    async def put_disk(machine, lun, disk):
        if not hung:
            hung.append((machine, lun, disk))
            raise MachineRefusedError("reported to another delivery of the same move")
        return await real(machine, lun, disk)

    scene.machines.put_disk = put_disk
    with pytest.raises(RestoreFailedError, match="uses the old disk again"):
        await scene.restore(scene.points()[0], **into())
    assert hung[0][2] is None, "it was about to take the old disk out"
    with pytest.raises(MachineChangedError):
        await real(*hung[0])

    assert attached_disk(scene) == scene.source().url


async def test_a_delivery_that_hung_does_not_act_on_a_machine_that_changed_meanwhile(scene):
    """The former owner hangs, and continues when the next run has settled the machine. It must not mistake that state for the
    one that it was to change.
    """
    driver = await stopped_before(scene, "move_machine", 2)
    (request,) = [request for name, request, _ in driver.calls if name == "move_machine"]
    head = scene.catalogue.head

    async def hangs(disk):
        row = await head(disk)
        scene.catalogue.head = head
        scene.world.pass_time(HEARTBEAT_MAX + timedelta(minutes=1))
        await scene.back_up()
        return row

    scene.catalogue.head = hangs
    answer = await scene.perform("move_machine", request)

    assert answer["fault"]["code"] == "MachineChanged"
    sane(scene)


async def test_a_delivery_terminated_in_the_portal_leaves_the_old_disk(scene):
    """Only that orchestration, in the middle of the change: the parent takes the disk anew, and settles the machine."""
    driver, real, moves = scene.driver(), scene.driver().orchestrators["deliver_disk"], []

    def deliver(context):
        flow = real(context)
        task = next(flow)
        try:
            while True:
                if task.kind == "sub" and task.name == "repoint_machine":
                    raise RuntimeError("terminated in the portal")
                task = flow.send((yield task))
        except StopIteration as stop:
            return stop.value

    async def perform(name, request):
        if name in ("move_machine", "fence_machine", "inspect_machine"):
            moves.append(name)
        return await scene.perform(name, request)

    driver._perform = perform
    driver.orchestrators = driver.orchestrators | {"deliver_disk": deliver}
    with pytest.raises(Exception, match=r"the delivery of the disk broke: .*terminated in the portal"):
        await scene.restore(scene.points()[0], driver=driver, **into())

    assert "fence_machine" in moves
    await scene.back_up()
    sane(scene)
    assert attached_disk(scene) == scene.source().url
