"""Branches of a restore's orchestrations that run seldom: their messages, and the steps that they still call."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from backup_core.orchestrations.clean_up_disks import CleanupFailedError
from backup_core.orchestrations.registry import ORCHESTRATORS
from backup_core.orchestrations.shard_waves import CALLS_PER_EXECUTION
from backup_core.steps.copying import CopyBlobRequest, ImageCopy
from backup_core.steps.housekeeping import CleanupRequest
from backup_core.steps.messages import Actor, Fault
from backup_core.steps.rebuild import RebuildRequest
from backup_core.steps.restore import (
    BeginRestoreResult,
    CopyImageRequest,
    DeliverRequest,
    RepointRequest,
    RestoreRequest,
    SlotRef,
    WaitRequest,
)
from tests.doubles.driver import Driver

RUN = "vm.20260102T030405Z.0000abcd"
SNAPSHOT = "2026-01-01T00:00:00.0000000Z"
POINT, OTHER = "20260101T0000000000000Z", "https://source.test/vhds/other.vhd"
OLD, NEW = "https://source.test/vhds/vm.vhd", "https://source.test/vhds/new.vhd"
BY = Actor(disk="vm", run=RUN, lease="1" * 36, epoch=0, source=OLD, pin=POINT)
SLOT = SlotRef(vm="/subscriptions/1/resourceGroups/web/providers/Microsoft.Compute/virtualMachines/web-1", lun=0)
BEGUN = BeginRestoreResult(
    state="go", point=POINT, head="vm/000001-x/disk.vhd", snapshot=SNAPSHOT, size=512, source=OLD, target=NEW, slot=SLOT,
    old_disk=OLD,
)  # fmt: skip
IMAGE = ImageCopy(
    actor=BY, source=BEGUN.head, target=SNAPSHOT, destination=NEW, becomes="disk", kind="restored", generation=0, size=512
)
COPIED = {"state": "success", "etag": '"1"', "page_map": "a" * 64}
OWNED = {"state": "owned", "epoch": 9, "source": OLD}
USUAL = {
    "report_progress": {"percent": 50, "cancel": False},
    "plan_transfer": {"plan": "vm/plan.json", "shards": 1, "write_bytes": 512, "ranges": 1, "requests": 1},
    "apply_shard": {"applied": {"write_bytes": 512, "puts": 1}, "at": 512, "done": True},
    "compare_image": {"content": True, "offset": 0, "chain": "a" * 64, "etag": '"1"', "compared": 1, "done": True},
    "open_image": {"etag": '"1"'},
    "seal_image": {"snapshot": SNAPSHOT},
    "own_disk": OWNED,
    "fence_machine": {"done": False, "move": "none", "holds": "old", "power": "running"},
    "begin_restore": BEGUN.model_dump(mode="json"),
    "discard_image": {"left": ""},
    "store_change": {"change": "vm/machine.json", "old_disk": OLD},
}
INSPECTED = {"done": False, "move": "none", "holds": "old", "power": "running"}
LOST = Fault(code="ServiceUnavailable", message="no answer", retryable=True)
REFUSED = Fault(code="MachineRefused", message="not this one", retryable=False)


class Foreign:
    """The answer of another call, which the host mistakes for this call's answer."""

    def __init__(self, answer):
        self.answer = answer


class Script:
    """Steps with scripted answers: a value, a fault, or a list of these in order, whose last one repeats."""

    def __init__(self, orchestrators=None, **answers):
        self.answers = {**USUAL, **answers}
        self.driver = Driver({**ORCHESTRATORS, **(orchestrators or {})}, self.perform, lambda: datetime(2026, 1, 2, tzinfo=UTC))

    async def perform(self, name, request):
        answer = self.answers.get(name, {})
        if isinstance(answer, list):
            answer = answer.pop(0) if len(answer) > 1 else answer[0]
        if isinstance(answer, Foreign):
            return answer.answer
        if isinstance(answer, Fault):
            return {"value": None, "fault": answer.model_dump(mode="json")}
        return {"value": answer, "fault": None}

    async def run(self, name, request, instance=RUN):
        return await self.driver.run(name, request.model_dump(mode="json"), instance)

    def names(self):
        return [name for name, *_ in self.driver.calls]

    def inputs(self, name):
        return [request for called, request, _ in self.driver.calls if called == name]


def answers(output):
    """An orchestration that ends at once, with an output or by an error."""

    def orchestration(_):
        if isinstance(output, Exception):
            raise output
        return output
        yield

    return orchestration


def ends_as_scripted(context):
    """An orchestration that ends with the script's next answer for `end`."""
    return (yield context.call_activity("end", {}))


def image_copy(**fields):
    return CopyImageRequest(**{"image": IMAGE, "wave": 1, "full_copy": "pages", "verification": "full", **fields})


def delivery(**fields):
    return DeliverRequest(request=RestoreRequest(disk="vm", run=RUN), actor=BY, begun=BEGUN.model_copy(update=fields))


# -- copying --------------------------------------------------------------------------------------------------------


async def test_a_copy_of_many_shards_continues_as_new():
    """The copy runs each shard once and in order, and opens the image once."""
    shards = 2 * CALLS_PER_EXECUTION + 1
    script = Script(plan_transfer={**USUAL["plan_transfer"], "shards": shards})
    output = await script.run("copy_image", image_copy())

    assert output["state"] == "success"
    assert output["applied"]["write_bytes"] == shards * 512
    assert [one["shard"] for one in script.inputs("apply_shard")] == list(range(shards))
    assert script.names().count("open_image") == 1
    assert script.driver.executions == 3


async def test_a_copy_that_the_service_gave_up_fails_with_the_services_reason():
    script = Script(
        start_copy={"copy_id": "1"}, check_copy={"status": "failed", "done": 3, "total": 512, "why": "source throttled"}
    )
    output = await script.run("copy_image", image_copy(full_copy="blob"))

    assert output["state"] == "failed"
    assert output["fault"]["code"] == "CopyFailed"
    assert "source throttled" in output["fault"]["message"]
    assert "take_over_copy" not in script.names()


async def test_a_canceled_copy_by_the_service_is_aborted():
    pending = {"status": "pending", "done": 3, "total": 512}
    script = Script(start_copy={"copy_id": "1"}, check_copy=pending, report_progress={"percent": 1, "cancel": True})
    output = await script.run("copy_image", image_copy(full_copy="blob"))

    assert (output["state"], output["fault"]) == ("canceled", None)
    assert script.names()[-1] == "abort_copy"


# -- delivering -----------------------------------------------------------------------------------------------------


async def test_a_managed_disk_that_is_never_complete_fails_the_delivery():
    """The delivery fails after half an hour and says where to look; the machine is not touched."""
    script = Script(import_disk={"done": False})
    output = await script.run("deliver_disk", delivery(managed_disk="/disks/new", repoint=True))

    assert output["fault"]["code"] == "ImportTimedOut"
    assert "/disks/new was not complete after half an hour; look at it in the portal" in output["fault"]["message"]
    assert script.driver._waited.total_seconds() == 1800
    assert not {"own_disk", "store_change", "move_machine"} & set(script.names())


async def test_a_restore_that_another_one_overtook_fails():
    """The registration moved between the copy and the change of the machine: the machine is left alone."""
    script = Script(own_disk={**OWNED, "source": OTHER})
    output = await script.run("deliver_disk", delivery(repoint=True, adopt=True))

    assert output["fault"]["code"] == "SourceMoved"
    assert f"is {OTHER} now" in output["fault"]["message"]
    assert "store_change" not in script.names()


async def test_a_failure_is_reported_even_when_it_cannot_be_recorded():
    """A failed attempt to stop the other half is no second failure."""
    script = Script({"copy_image": answers({"state": "failed", "fault": REFUSED.model_dump()})}, record_failure=REFUSED)
    output = await script.run("deliver_disk", delivery())

    assert (output["state"], output["fault"]["message"]) == ("failed", "not this one")
    assert script.names() == ["record_failure"]


# -- the machine ----------------------------------------------------------------------------------------------------

WAITS = {"done": False, "move": "wait", "holds": "nothing", "power": "running"}


def change(**fields):
    return RepointRequest(**{"actor": BY, "change": "vm/machine.json", "goal": "new", **fields})


async def test_a_machine_that_cannot_be_read_is_read_until_it_can_be():
    """The undo is refused, and the machine's disk is unknown: the change does not end before the disk is known. Requests still
    in flight are fenced.
    """
    old = {"done": True, "move": "none", "holds": "old", "power": "running"}
    script = Script(move_machine=REFUSED, inspect_machine=[REFUSED, REFUSED, old, old])
    output = await script.run("repoint_machine", change())

    assert output["holds"] == "old"
    assert "not this one; going back: not this one" in output["fault"]["message"]
    assert script.names().count("inspect_machine") == 4
    assert script.names().count("fence_machine") == 1
    reported = [one["attention"] for one in script.inputs("report_progress")]
    assert any("cannot be seen" in words for words in reported), reported


async def test_a_lost_progress_report_does_not_stop_the_change():
    done = {"done": True, "move": "none", "holds": "new", "power": "running"}
    script = Script(report_progress=LOST, move_machine=done)
    output = await script.run("repoint_machine", change())

    assert output["holds"] == "new"
    assert output["fault"] is None


async def test_completing_an_interrupted_change_waits_while_the_machine_is_being_changed():
    done = {"done": True, "move": "none", "holds": "old", "power": "running"}
    script = Script(move_machine=[WAITS, WAITS, done], inspect_machine={**WAITS, "holds": "old"})
    output = await script.run("repoint_machine", change(goal=""))

    assert output["holds"] == "old"
    assert script.driver._waited.total_seconds() > 0
    assert script.inputs("close_change")[0]["goal"] == "old"


async def test_completing_an_interrupted_change_does_not_wait_for_ever():
    """The waiting run fails visibly; the change stays open for the next run."""
    script = Script(move_machine=WAITS, inspect_machine=WAITS)
    output = await script.run("repoint_machine", change(goal=""))

    assert output["fault"]["code"] == "MachineBusy"
    assert "being changed without end" in output["fault"]["message"]
    assert not output["fault"]["retryable"]
    assert "close_change" not in script.names()


async def test_an_interrupted_change_that_azure_refuses_to_continue_ends_with_the_present_disk():
    """The machine has one of its two disks: that is the end state."""
    script = Script(move_machine=REFUSED, inspect_machine={**WAITS, "holds": "new", "done": True})
    output = await script.run("repoint_machine", change(goal=""))

    assert (output["holds"], output["fault"]) == ("new", None)
    assert script.inputs("close_change")[0]["goal"] == "new"


async def test_a_long_queue_continues_as_new():
    waiting = {"state": "waiting", "busy": "vm.20260102T000000Z.timer"}
    script = Script(own_disk=[*[waiting] * 60, OWNED])
    output = await script.run("wait_for_disk", WaitRequest(actor=BY))

    assert output["ownership"]["epoch"] == 9
    assert script.driver.executions == 3


async def test_an_interrupted_change_that_cannot_be_completed_ends_the_wait():
    unsettled = {"state": "unsettled", "epoch": 9, "repoint": "vm/machine.json"}
    script = Script(own_disk=unsettled, fence_machine=REFUSED)
    output = await script.run("wait_for_disk", WaitRequest(actor=BY))

    assert output["ownership"] is None
    assert output["fault"]["message"] == "not this one"


async def test_changes_that_are_never_completed_end_the_wait():
    """Each change is completed by a child with an id of its own, in all executions; then the wait fails visibly."""
    unsettled = {"state": "unsettled", "epoch": 9, "repoint": "vm/machine.json"}
    waiting = {"state": "waiting", "busy": "vm.20260102T000000Z.timer"}
    script = Script(own_disk=[unsettled, *[waiting] * 30, unsettled], move_machine={**INSPECTED, "done": True}, close_change={})
    script.answers["inspect_machine"] = INSPECTED
    begun, perform = [], script.driver.run

    async def run(name, request, instance, seed=""):
        begun.append(instance)
        return await perform(name, request, instance, seed)

    script.driver.run = run
    output = await script.run("wait_for_disk", WaitRequest(actor=BY))

    assert len(set(begun)) == len(begun) == 10
    assert begun[0] == RUN
    assert output["fault"]["message"].startswith("disk vm: 9 changes of machines were completed and there is one more")


# -- the restore ----------------------------------------------------------------------------------------------------


async def restored(script, **fields):
    """The restore's end as it is written to its row."""
    script.answers["begin_restore"] = BEGUN.model_copy(update=fields).model_dump(mode="json")
    try:
        await script.run("restore_disk", RestoreRequest(disk="vm", run=RUN))
    except Exception as raised:
        assert type(raised).__name__ == "RestoreFailedError"  # noqa: PT017  whether it raises is part of what is looked at
    return script.inputs("finish_restore")[-1]


async def test_a_broken_delivery_without_a_machine_discards_the_image():
    """The delivery was terminated in the portal, and no machine is part of it: there is no change to complete."""
    script = Script({"deliver_disk": answers(RuntimeError("terminated"))})
    end = await restored(script)

    assert end["state"] == "Failed"
    assert "the delivery of the disk broke: RuntimeError: terminated" in end["fault"]["message"]
    assert "own_disk" not in script.names()
    assert len(script.inputs("discard_image")) == 1


async def test_a_broken_delivery_whose_disk_cannot_be_owned_reports_an_unknown_machine():
    """The machine's state is not known, and the end says so."""
    script = Script(
        {"deliver_disk": answers(RuntimeError("terminated")), "wait_for_disk": answers({"fault": REFUSED.model_dump()})}
    )
    end = await restored(script, repoint=True)

    assert end["state"] == "Failed"
    assert end["fault"]["message"] == "not this one"
    assert f"the new disk may be there, complete or not: {NEW}; look at the machine before you delete it" in end["end"]
    assert "VM web-1 is settled by the next run that owns the disk; look at it" in end["end"], end["end"]


async def test_a_broken_promotion_commits_no_point():
    delivered = {"state": "success", "etag": '"1"', "sealed": True, "snapshot": SNAPSHOT}
    script = Script({"deliver_disk": answers(delivered), "copy_image": answers(RuntimeError("terminated"))})
    end = await restored(script, adopt=True)

    assert end["state"] == "Failed"
    assert "terminated" in end["fault"]["message"]
    assert "commit_point" not in script.names()


async def test_a_cancel_in_the_queue_before_the_adoption_keeps_the_complete_disk():
    """The disk is complete and stays; the registration does too."""
    delivered = {"state": "success", "etag": '"1"'}
    parts = {"deliver_disk": answers(delivered), "copy_image": answers(COPIED), "wait_for_disk": answers({"canceled": True})}
    script = Script(parts)
    end = await restored(script, adopt=True)

    assert end["state"] == "Canceled"
    assert not {"seal_image", "commit_point"} & set(script.names())


async def test_a_half_made_disk_that_cannot_be_removed_is_named():
    script = Script({"deliver_disk": answers({"state": "failed", "fault": REFUSED.model_dump()})}, discard_image=REFUSED)
    end = await restored(script)

    assert end["state"] == "Failed"
    assert NEW in end["end"], end["end"]


async def test_a_broken_change_of_the_machine_does_not_claim_an_untouched_machine():
    """The change was terminated in the portal: the machine's disk is unknown, so the end does not say that it was not touched."""
    machine = answers(RuntimeError("terminated"))
    script = Script({"copy_image": answers(COPIED), "repoint_machine": machine})
    end = await restored(script, repoint=True)

    assert end["state"] == "Failed"
    assert "terminated" in end["fault"]["message"]
    assert "VM web-1 is settled by the next run that owns the disk; look at it" in end["end"], end["end"]
    assert "close_change" not in script.names()


async def test_an_end_that_cannot_be_written_fails_the_orchestration():
    """The step is not repeated: the watch, or the next run of the disk, ends the run."""
    delivered = {"state": "success", "etag": '"1"', "sealed": True}
    script = Script({"deliver_disk": answers(delivered)}, finish_restore=REFUSED)
    with pytest.raises(Exception, match="MachineRefused: not this one"):
        await script.run("restore_disk", RestoreRequest(disk="vm", run=RUN))

    assert script.names().count("finish_restore") == 1


# -- answers of other calls -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "foreign",
    [None, {"id": 1}, {"value": {}, "fault": None, "step": "plan_transfer"}],
    ids=["a timer", "a child", "another step"],
)
async def test_a_step_that_another_call_answered_is_called_again(foreign):
    """The host drops the step's own answer, so it would wait for ever; the other call's answer is not used."""
    script = Script(open_image=[Foreign(foreign), {"etag": '"1"'}])
    output = await script.run("copy_image", image_copy())

    assert output["state"] == "success"
    assert output["retries"] == 1
    assert script.names().count("open_image") == 2


async def test_an_answer_that_names_its_own_step_is_accepted():
    own = Foreign({"value": {"etag": '"1"'}, "fault": None, "step": "open_image"})
    script = Script(open_image=own)
    output = await script.run("copy_image", image_copy())

    assert (output["state"], output["retries"]) == ("success", 0)


async def test_a_child_that_another_call_answered_is_started_again():
    script = Script({"copy_image": ends_as_scripted}, end=[Foreign({"percent": 50}), Foreign({"state": "canceled"})])
    output = await script.run("deliver_disk", delivery())

    assert output["state"] == "canceled"
    assert script.names().count("end") == 2


async def test_a_child_that_is_never_answered_fails_the_caller():
    script = Script({"copy_image": answers({"percent": 50})})
    output = await script.run("deliver_disk", delivery())

    assert output["state"] == "failed"
    assert output["fault"]["message"] == f"copy_image of {RUN}: answered 3 times with what is not its own"


async def test_a_delivery_that_another_call_answered_is_started_again():
    delivered = {"state": "success", "etag": '"1"', "sealed": True, "snapshot": SNAPSHOT}
    script = Script({"deliver_disk": ends_as_scripted}, end=[Foreign(None), Foreign(delivered)])
    output = await restored(script)

    assert output["state"] == "Succeeded"
    assert script.names().count("end") == 2


@pytest.mark.parametrize("canceled", [True, False])
async def test_a_copy_that_was_aborted_before_its_answer_arrived(canceled):
    """A previous run of the episode aborted the copy because of a cancel: this run is canceled too. Without a cancel it fails."""
    seen = {"status": "aborted", "done": 0, "total": 512}
    script = Script(start_copy={"copy_id": "1"}, check_copy=seen, report_progress={"percent": 50, "cancel": canceled})
    end = await script.run("copy_blob", CopyBlobRequest(image=IMAGE), f"{RUN}~b1")

    assert end["state"] == ("canceled" if canceled else "failed")
    assert not any(name == "abort_copy" for name, _, _ in script.driver.calls)


# -- rebuilds and housekeeping ---------------------------------------------------------------------------------------------


async def test_a_rebuild_of_many_disks_continues_as_new():
    """The history stays small, and nothing is counted twice."""
    disks = [f"d{number:03d}" for number in range(201)]
    script = Script(
        list_rebuild_disks=[{"disks": disks, "more": False}, {"disks": disks[200:], "more": False}],
        rebuild_disk=[{"disk": disk, "part": 1, "state": "unchanged", "digest": "", "below": ""} for disk in disks],
        report_rebuild={"goes_on": True},
    )
    output = await script.run("rebuild_catalogue", RebuildRequest(rebuild="catalogue.rebuild.20260102T030405Z.0000abcd"))

    assert output == {"state": "Succeeded", "examined": 201, "different": 0}
    assert [one["disk"] for one in script.inputs("rebuild_disk")] == disks
    assert [one["after"] for one in script.inputs("list_rebuild_disks")] == ["", "d199"]


async def test_a_rebuild_result_for_another_disk_is_not_accepted():
    """A repeated episode may receive the answer to a former request: it calls the step again."""
    mine = {"disk": "vm", "part": 1, "state": "unchanged", "digest": "", "below": ""}
    script = Script(
        list_rebuild_disks={"disks": ["vm"], "more": False},
        rebuild_disk=[mine | {"disk": "other"}, mine | {"part": 2}, mine],
        report_rebuild={"goes_on": True},
    )
    output = await script.run("rebuild_catalogue", RebuildRequest(rebuild="catalogue.rebuild.20260102T030405Z.0000abcd"))

    assert output["examined"] == 1
    assert len(script.inputs("rebuild_disk")) == 3


async def test_a_night_whose_rebuilds_cannot_be_removed_fails():
    script = Script(list_backed_up_disks={"disks": [], "more": False}, clean_up_rebuilds=REFUSED)
    with pytest.raises(CleanupFailedError, match="of rebuilds: MachineRefused"):
        await script.run("clean_up_disks", CleanupRequest(run_days=180), "house.20260109")
