"""Whatever runs twice, at once, late, or from its beginning again: the run ends as if nothing had been."""

from __future__ import annotations

import asyncio
import hashlib
import re
from datetime import timedelta
from pathlib import Path

import pytest

from backup_core.domain.errors import MachineRefusedError
from backup_core.domain.metadata import from_metadata
from backup_core.domain.records import Slot
from backup_core.orchestrations.restore_disk import RestoreFailedError
from backup_core.steps import STEPS
from backup_core.steps.backup import FleetRequest
from backup_core.steps.housekeeping import CleanupRequest
from tests.activities.acts import RUN, TARGET, attached_disk, cancel, contents_of, everything_kept, into, rebuilt, sane
from tests.activities.lives import (
    Hub,
    child_begun_again,
    delivered_again,
    delivered_late,
    delivered_side_by_side,
)
from tests.activities.ways import (
    NEW,
    OLD,
    WAYS,
    backed_up,
    between_two_disks,
    interrupted,
    keeping_one,
    never_backed_up,
    with_a_managed_disk,
    with_a_vhd,
)
from tests.scene import VM

pytestmark = pytest.mark.slow


def seen(stage):
    """The final state by name, without times, versions, and names made of times."""
    head = stage.head_row()
    registration = stage.rows("registration")[0]
    there = {
        "head": (head.head, head.doubt, head.generation, head.epoch, head.source, head.owner, head.repoint, bool(head.pair)),
        "registration": (registration.source, registration.unprotected, sorted(stage.claims())),
        "pins": stage.rows("pin!"),
        "points": [(one.run, one.kind, one.reason, one.state, _digest(stage.content(one))) for one in stage.points()],
    }
    for address, blob in stage.blobs.blobs.items():
        there[f"blob {address}"] = (_digest(blob.content()), blob.lease, _marked(stage.tools.site(address), blob))
        there[f"snapshots of {address}"] = sorted({_digest(one.content()) for one in blob.snapshots.values()})
    for address, disk in stage.blobs.disks.items():
        there[f"disk {address}"] = (_digest(disk.content()), [_digest(one.content()) for one in disk.snapshots.values()])
    there["open"] = (stage.blobs.open, stage.blobs.open_disks)
    for vm, machine in stage.machines.machines.items():
        there[vm] = (machine.power, machine.state, [(disk.lun, disk.source) for disk in machine.disks])
    for run in stage.rows("run!"):
        end = POINT.sub("point", run.restore.end) if run.restore else ""
        there[run.run] = (run.state, run.phase, run.percent, run.kind, len(run.points), len(run.expired), run.error, end)
    return there


POINT = re.compile(r"[0-9]{8}T[0-9]{13}Z")


def _digest(content):
    return f"{len(content)} bytes {hashlib.sha256(content).hexdigest()[:8]}"


def _marked(site, blob):
    mark = from_metadata(blob.metadata, site)
    return (mark.state, mark.run, mark.kind, mark.epoch) if mark else dict(blob.metadata)


def as_if_nothing_had_been(stage, expected):
    """The stage as it would be, thing by thing."""
    found, wanted = seen(stage), seen(expected)
    differences = [
        f"{name}: {found.get(name)}, not {wanted.get(name)}"
        for name in {**wanted, **found}
        if found.get(name) != wanted.get(name)
    ]
    assert not differences, "; ".join(differences)


# -- what is done, besides the usual ways ---------------------------------------------------------------------------------


async def a_night(stage, **fields):
    """The window of the schedule: each backup is a child of the fleet's orchestration."""
    request = FleetRequest(window="2026-01-09T00:00:00+00:00", wave=4, **fields)
    await stage.driver().run("backup_fleet", request.model_dump(mode="json"), "fleet.20260109T000000Z")
    assert stage.rows("run!")[0].state == "Succeeded"
    assert stage.content(stage.points()[-1]) == stage.blobs.blobs[stage.source()].content()


async def a_night_in_turns(stage):
    """Two disks, one after the other in a lane."""
    stage.protect("other")
    await a_night(stage, lanes=1)
    assert len(stage.points("other")) == 1


async def a_night_by_copy(stage):
    await a_night(stage, full_copy="blob")


async def adopt(stage):
    """A restore whose disk no machine gets, and from which the backups continue."""
    await stage.restore(stage.points()[0], adopt=True)
    assert stage.rows("registration")[0].source == TARGET


async def restore_by_copy(stage):
    driver = stage.driver()
    request = stage.restore_request(stage.points()[0], **into()).model_copy(update={"full_copy": "blob"})
    await driver.run("restore_disk", request.model_dump(mode="json"), request.run)
    sane(stage)


def answering(stage, answer):
    """Let `answer(name, request)` answer in place of a step, where it has one."""
    perform = stage.perform

    async def answered(name, request):
        return answer(name, request) or await perform(name, request)

    stage.perform = answered


def fault(code):
    return {"fault": {"code": code, "message": "refused by the test", "retryable": False}, "value": None}


def canceling(stage, step, run):
    """Cancel the run just before the first delivery of the step."""
    perform, request = stage.perform, []

    async def performed(name, input_):
        if name == step and not request:
            request.append(name)
            assert (await cancel(stage, run))[0] == 202
        return await perform(name, input_)

    stage.perform = performed


async def back_up_an_untrusted_diff(stage):
    refused = {"fault": None, "value": {"refused": "the service refused the diff"}}
    answering(stage, lambda name, request: refused if name == "plan_transfer" and request["base"] else None)
    await stage.back_up()
    assert stage.points()[-1].kind == "full"


async def back_up_and_cancel(stage):
    request, driver = stage.request(), stage.driver()
    canceling(stage, "verify_head", request.run)
    await driver.run("backup_disk", request.model_dump(mode="json"), request.run)


async def cancel_a_copy(stage):
    stage.blobs.copies_delayed = True
    request, driver = stage.request(full=True, full_copy="blob"), stage.driver()
    canceling(stage, "check_copy", request.run)
    await driver.run("backup_disk", request.model_dump(mode="json"), request.run)
    assert stage.run_row(request.run).state == "Canceled"


def as_it_was(stage):
    """The machine has its old disk, the backups continue with it, and nothing is owned or leased."""
    assert attached_disk(stage) == stage.rows("registration")[0].source == str(stage.source())
    assert (stage.rows("pin!"), stage.head_row().owner, stage.head_row().repoint) == ([], None, "")


async def cancel_a_restore(stage):
    """While the machine is about to get its disk."""
    canceling(stage, "move_machine", RUN)
    await stage.restore(stage.points()[0], **into())
    as_it_was(stage)


async def restore_in_vain(stage, step, code="AccessDenied", which=lambda request: True):
    answering(stage, lambda name, request: fault(code) if name == step and which(request) else None)
    with pytest.raises(RestoreFailedError, match=code):
        await stage.restore(stage.points()[0], **into())
    assert attached_disk(stage)


async def a_wrong_byte(stage):
    await restore_in_vain(stage, "compare_image", "VerificationMismatch", lambda request: request["image"]["becomes"] == "disk")
    as_it_was(stage)


async def a_refused_disk(stage):
    """Azure takes the old disk out and does not let the new one in."""
    put = stage.machines.put_disk

    async def refused(machine, lun, disk):
        if disk and disk.source == TARGET:
            message = "refused by the test"
            raise MachineRefusedError(message)
        return await put(machine, lun, disk)

    stage.machines.put_disk = refused
    with pytest.raises(RestoreFailedError, match="MachineRefused"):
        await stage.restore(stage.points()[0], **into())
    as_it_was(stage)


async def an_adoption_in_vain(stage):
    await restore_in_vain(stage, "commit_point")


async def a_managed_disk_that_differs(stage):
    """From its restore point, as its first snapshot shows: no machine gets it, and the snapshot goes."""
    answering(stage, lambda name, _: fault("VerificationMismatch") if name == "compare_snapshot" else None)
    with pytest.raises(RestoreFailedError, match="VerificationMismatch"):
        await stage.restore(stage.points()[0], **into(managed_disk=NEW, old_disk=OLD))
    assert attached_disk(stage) == OLD
    assert [disk.snapshots for disk in stage.blobs.disks.values()] == [{}]


async def an_adoption_of_a_managed_disk_in_vain(stage):
    """The registration follows the machine, and the snapshot that nobody needs goes."""
    answering(stage, lambda name, _: fault("AccessDenied") if name == "commit_point" else None)
    with pytest.raises(RestoreFailedError, match="AccessDenied"):
        await stage.restore(stage.points()[0], **into(managed_disk=NEW, old_disk=OLD))
    assert attached_disk(stage) == stage.rows("registration")[0].source == NEW
    assert [disk.snapshots for disk in stage.blobs.disks.values()] == [{}]


async def adopt_a_managed_disk_by_hand(stage):
    await stage.restore(stage.points()[0], adopt=True, managed_disk=NEW, slot=Slot(VM, 0))
    assert (attached_disk(stage), stage.rows("registration")[0].source) == (OLD, NEW)


async def an_upload_that_differs(stage):
    """As the comparison shows: no machine gets the disk, which stays, closed."""
    answering(stage, lambda name, _: fault("VerificationMismatch") if name == "compare_image" else None)
    with pytest.raises(RestoreFailedError, match="VerificationMismatch"):
        await stage.restore(stage.points()[0], **into(target=NEW, managed_disk=NEW, adopt=False, old_disk=OLD))
    assert attached_disk(stage) == OLD
    assert f"an unfinished disk is left and may be deleted: {NEW}" in stage.rows("run!")[0].restore.end


async def tidy_up(stage):
    stage.world.pass_time(timedelta(hours=25))
    await stage.driver().run("clean_up_disks", CleanupRequest(run_days=180).model_dump(mode="json"), "house.20260109")
    assert not stage.documents.texts.keys() - {"vm/registration.json"}


async def rebuild_everything(stage):
    """Rows are lost; a dry run and what carries it out bring them back."""
    before = {key: row.value for key, row in stage.catalogue.rows.items() if key[1].startswith(("point!", "head"))}
    for key in before:
        del stage.catalogue.rows[key]
    stage.with_limits(rebuilt_points_max=1)
    dry = await rebuilt(stage)
    done = await rebuilt(stage, dryRun=False, planHash=dry["planHash"])
    assert (dry["state"], done["state"], done["value"]) == ("Succeeded", "Succeeded", dry["value"])
    assert {key: stage.catalogue.rows[key].value for key in before} == before


MORE = {
    "a diff that is not trusted": (backed_up, back_up_an_untrusted_diff, 3),
    "a canceled backup": (backed_up, back_up_and_cancel, 2),
    "a canceled Copy Blob": (backed_up, cancel_a_copy, 2),
    "a canceled restore": (backed_up, cancel_a_restore, 2),
    "a restore with a wrong byte": (backed_up, a_wrong_byte, 2),
    "a restore whose disk is refused": (backed_up, a_refused_disk, 2),
    "a restore that cannot be adopted": (backed_up, an_adoption_in_vain, 2),
    "a managed disk that differs": (with_a_managed_disk, a_managed_disk_that_differs, 1),
    "a managed disk that cannot be adopted": (with_a_managed_disk, an_adoption_of_a_managed_disk_in_vain, 1),
    "a managed disk that is adopted by hand": (with_a_managed_disk, adopt_a_managed_disk_by_hand, 2),
    "an upload that differs": (with_a_vhd, an_upload_that_differs, 1),
    "housekeeping": (interrupted, tidy_up, 2),
    "a night, the first": (never_backed_up, a_night, 1),
    "a night, the first by Copy Blob": (never_backed_up, a_night_by_copy, 1),
    "a night": (backed_up, a_night, 3),
    "a night in turns": (never_backed_up, a_night_in_turns, 1),
    "a night that finishes another run": (interrupted, a_night, 4),
    "a night that prunes": (keeping_one, a_night, None),
    "a night that settles a machine": (between_two_disks, a_night, 3),
    "a restore that is adopted": (backed_up, adopt, 3),
    "a restore by Copy Blob": (backed_up, restore_by_copy, 3),
    "a rebuild": (backed_up, rebuild_everything, 2),
}
EVERY = WAYS | MORE


async def breathe(_):
    await asyncio.sleep(0)


async def lived(way, disturb=None, *, side_by_side=False):
    """The stage after the run, and its hub."""
    begin, act, points = EVERY[way]
    stage = await begin()
    contents = contents_of(stage)
    hub = Hub(stage, disturb)
    stage.driver = lambda: hub
    if side_by_side:
        stage.world.before = breathe
    await act(stage)
    if points:
        assert len(stage.points()) == points
        everything_kept(stage, contents)
    return stage, hub


DELIVERIES = {
    "twice": lambda: delivered_again(second_counts=False),
    "twice, the second answer counts": lambda: delivered_again(second_counts=True),
    "at once": lambda: delivered_side_by_side(second_counts=False),
    "at once, the second answer counts": lambda: delivered_side_by_side(second_counts=True),
    "late": delivered_late,
}


@pytest.mark.parametrize("how", DELIVERIES)
@pytest.mark.parametrize("way", EVERY)
async def test_every_activity_runs_twice(way, how):
    """Right after itself, beside itself, or late, and whichever answer counts."""
    expected, _ = await lived(way)
    stage, _ = await lived(way, DELIVERIES[how](), side_by_side="at once" in how)

    as_if_nothing_had_been(stage, expected)


@pytest.mark.parametrize("way", EVERY)
async def test_everything_once_more_after_the_end(way):
    """Nothing changes any more, not even a version."""
    stage, hub = await lived(way)
    before = stage.dump(with_runs=True)
    for call in list(hub.calls):
        await hub.deliver(call.name, call.input)

    assert stage.dump(with_runs=True) == before


@pytest.mark.parametrize("way", EVERY)
async def test_a_child_begins_again(way):
    """Each child of the run at each moment after it began: while it lives, and its first life is forgotten, or after its end. What
    the first life has in progress continues at once, or after everything, in turn.
    """
    expected, undisturbed = await lived(way)
    faults = []
    for child, life in enumerate(undisturbed.begun):
        for moment in range(undisturbed.began[child], undisturbed.moment):
            try:
                stage, _ = await lived(way, child_begun_again(moment, child, orphans_late=(moment + child) % 2 == 0))
                as_if_nothing_had_been(stage, expected)
            except (Exception, AssertionError, pytest.fail.Exception) as error:  # all of them are reported together
                faults.append(f"{life.id} again at {moment}: {error}")
    assert not faults, "\n".join(faults)


async def test_every_step_is_tried():
    """In one of the ways each step runs, and so runs twice."""
    tried = set()
    for way in EVERY:
        _, hub = await lived(way)
        tried |= {call.name for call in hub.calls}

    assert tried == {step.name for step in STEPS}


def test_the_table_names_every_step():
    """`docs/second-lives.md` says for each step what a second life finds."""
    text = (Path(__file__).parents[2] / "docs" / "second-lives.md").read_text()
    assert sorted(re.findall(r"^\| `([a-z_]+)` \|", text, re.MULTILINE)) == sorted(step.name for step in STEPS)
