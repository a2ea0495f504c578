"""Behaviour that needs ports in memory: unfit sources that the emulator cannot store, a start that fails, a broken store."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import timedelta

import pytest

from backup_core.api import disks, runs
from backup_core.api.context import respond
from backup_core.api.http import Request
from backup_core.domain.errors import AccessDeniedError, ServiceUnavailableError
from backup_core.domain.records import Slot
from backup_core.orchestrations.backup_disk import BackupFailedError
from backup_core.orchestrations.restore_disk import RestoreFailedError
from tests.scene import VM, Scene


@pytest.fixture
def scene():
    return Scene()


@pytest.fixture
def api(scene):
    return scene.api()


def request_of(body=None, *, headers=None, start=None, **route):
    content = b"" if body is None else json.dumps(body).encode()
    options = {"start": start} if start else {}
    return Request("https://app.test/api", route, {}, content, headers or {}, **options)


async def test_an_unaligned_source_is_refused(api, scene):
    scene.blobs.put(scene.source(), 1000)
    before = scene.dump()
    answer = await respond(api, disks.put_disk, request_of({"source": scene.source().url}, disk="vm"))

    assert (answer.status, json.loads(answer.body)["error"]["code"]) == (400, "SourceUnfit")
    assert "1000 bytes" in answer.body
    assert scene.dump() == before


async def test_a_moved_source_frees_the_old_one(api, scene):
    scene.protect()
    scene.blobs.put(scene.source("other"), 512)
    answer = await respond(api, disks.put_disk, request_of({"source": scene.source("other").url}, disk="vm"))

    assert answer.status == 200
    assert list(scene.claims()) == [scene.source("other").url]


async def test_a_start_that_fails_is_a_failed_run(api, scene):
    """No run is left NotStarted for ever, and the caller gets an error."""
    scene.protect()

    async def start(*_):
        raise RuntimeError("no durable extension; code=SECRETSECRET")

    answer = await respond(api, runs.post_backup, request_of(disk="vm", start=start))

    assert answer.status == 500
    assert "SECRET" not in answer.body
    (run,) = scene.rows("run!")
    assert (run.state, run.error.code) == ("Failed", "StartFailed")
    assert "SECRET" not in run.error.message


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (ServiceUnavailableError("busy"), 503, "ServiceUnavailable"),
        (AccessDeniedError("denied"), 502, "AccessDenied"),
        (ValueError("bug with sig=abcdefghijklmnop"), 500, "InternalError"),
    ],
)
async def test_failures_of_the_stores(api, scene, error, status, code):
    """Each failure has its own answer; a bug discloses nothing but that there is a bug."""

    async def broken(*_):
        raise error

    answer = await respond(api, broken, request_of())

    assert (answer.status, json.loads(answer.body)["error"]["code"]) == (status, code)
    assert "sig=abc" not in answer.body


# -- repeated requests --------------------------------------------------------------------------------------------

KEY = "3f2504e0-4f89-41d3-9a0c-0305e82c3301"


class Starts:
    """A starter that keeps the started orchestrations, and fails the first `failures` times."""

    def __init__(self, failures=0):
        self.instances, self.failures = [], failures

    async def __call__(self, name, instance, request):
        if self.failures:
            self.failures -= 1
            raise RuntimeError("no extension")
        if instance not in self.instances:
            self.instances.append(instance)


async def post(api, start, body=None, key=KEY):
    answer = await respond(
        api, runs.post_backup, request_of(body, headers={"repeatability-request-id": key}, start=start, disk="vm")
    )
    return answer, json.loads(answer.body)


async def test_the_same_request_twice_is_one_run(api, scene):
    """A repeat names the same run while it waits, runs, or has ended; a lost start is made up for."""
    scene.protect()
    start = Starts()
    first, shown = await post(api, start)
    again, same = await post(api, start)

    assert (first.status, again.status) == (202, 202)
    assert first.headers["Repeatability-Result"] == again.headers["Repeatability-Result"] == "accepted"
    assert same["id"] == shown["id"]
    assert start.instances == [shown["id"]]
    request = scene.request(run=shown["id"])
    await scene.driver().run("backup_disk", request.model_dump(mode="json"), request.run)
    ended, third = await post(api, start)
    assert (ended.status, third["id"], third["state"]) == (202, shown["id"], "Succeeded")
    assert len(scene.rows("run!")) == 1


async def test_the_same_key_with_another_body_is_refused(api, scene):
    scene.protect()
    start = Starts()
    await post(api, start)
    before = scene.dump(with_runs=True)
    answer, shown = await post(api, start, {"kind": "full"})

    assert (answer.status, shown["error"]["code"]) == (409, "RepeatabilityConflict")
    assert scene.dump(with_runs=True) == before
    assert len(start.instances) == 1


async def test_another_key_is_another_request(api, scene):
    scene.protect()
    start = Starts()
    _, one = await post(api, start)
    _, two = await post(api, start, key="3f2504e0-4f89-41d3-9a0c-0305e82c3302")

    assert one["id"] != two["id"]


@pytest.mark.parametrize("key", ["x", "' or 1 eq 1", "3f2504e0-4f89-41d3-9a0c-0305e82c330", "\x00"])
async def test_keys_are_uuids(api, scene, key):
    scene.protect()
    before = scene.dump(with_runs=True)
    answer, shown = await post(api, Starts(), key=key)

    assert (answer.status, shown["error"]["code"], shown["error"]["target"]) == (
        400,
        "InvalidHeader",
        "Repeatability-Request-ID",
    )
    assert scene.dump(with_runs=True) == before


async def test_a_lost_start_is_made_up_for_by_the_repeat(api, scene):
    """After a crash between the row and the start, the repeated request starts the run that exists."""
    scene.protect()
    start = Starts()

    async def died(*_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        await post(api, died)
    (run,) = scene.rows("run!")
    assert run.state == "NotStarted"
    _, shown = await post(api, start)

    assert start.instances == [shown["id"]] == [run.run]


@pytest.mark.parametrize("written", [True, False])
@pytest.mark.parametrize("keyed", [True, False])
async def test_a_run_whose_row_write_got_no_answer(api, scene, written, keyed):
    """The run is started if its row exists. Otherwise nothing is started, and the error says to repeat the request."""
    scene.protect()
    start, name = Starts(), "begin_request" if keyed else "put_run"
    write = getattr(scene.catalogue, name)

    async def unanswered(*row):
        if written:
            await write(*row)
        raise ServiceUnavailableError("no answer; temporary failure")

    setattr(scene.catalogue, name, unanswered)
    answer = await respond(
        api, runs.post_backup, request_of(disk="vm", start=start, headers={"repeatability-request-id": KEY} if keyed else None)
    )

    assert answer.status == (202 if written else 503)
    assert start.instances == [run.run for run in scene.rows("run!")]
    assert len(start.instances) == written
    assert written or "repeat the request" in answer.body


async def test_two_equal_requests_at_once_are_one_run(api, scene, monkeypatch):
    """Both requests read before either has written."""
    scene.protect()
    start, looked = Starts(), []
    request = scene.catalogue.request

    async def blind(disk, key):
        looked.append(key)
        return None if len(looked) <= 2 else await request(disk, key)

    monkeypatch.setattr(scene.catalogue, "request", blind)
    _, one = await post(api, start)
    _, two = await post(api, start)

    assert one["id"] == two["id"]
    assert len(scene.rows("run!")) == 1


# -- the answer for a disk ---------------------------------------------------------------------------------------


async def shown_disk(api):
    return json.loads((await respond(api, disks.get_disk, request_of(disk="vm"))).body)


async def test_the_first_backup_on_registration(api, scene):
    """The first backup starts on request, and only while there is neither a restore point nor a run."""
    scene.blobs.put(scene.source(), 32 * 512)
    start = Starts()
    body = {"source": scene.source().url, "firstBackup": True}
    created = await respond(api, disks.put_disk, request_of(body, start=start, disk="vm"))

    assert created.status == 201
    assert created.headers["Operation-Location"] == f"https://app.test/api/runs/{start.instances[0]}"
    again = await respond(api, disks.put_disk, request_of(body, start=start, disk="vm"))
    assert (again.status, "Operation-Location" in again.headers) == (200, False)
    request = scene.request(run=start.instances[0])
    await scene.driver().run("backup_disk", request.model_dump(mode="json"), request.run)
    await respond(api, disks.put_disk, request_of(body, start=start, disk="vm"))
    assert len(start.instances) == 1


async def test_registration_alone_starts_no_backup(api, scene):
    scene.blobs.put(scene.source(), 512)
    start = Starts()
    created = await respond(api, disks.put_disk, request_of({"source": scene.source().url}, start=start, disk="vm"))

    assert (created.status, start.instances) == (201, [])


async def test_recovery_point_age_and_last_status(api, scene):
    """The age is measured from the source snapshot; the status reports a failed run and ignores a skipped run."""
    scene.protect()
    fresh = await shown_disk(api)
    assert (fresh["lastSuccess"], fresh["rpoSeconds"], fresh["lastStatus"], fresh["overdue"]) == (None, None, None, False)
    await scene.back_up()
    scene.world.pass_time(timedelta(hours=3))
    shown = await shown_disk(api)

    assert shown["lastStatus"] == "Succeeded"
    assert 3 * 3600 <= shown["rpoSeconds"] <= 3 * 3600 + 1
    assert shown["lastSuccess"][:19] == scene.points()[0].source_snapshot[:19]
    assert shown["nextBackup"] == "2026-01-01T12:00:00Z"
    del scene.blobs.blobs[scene.source()]
    with pytest.raises(BackupFailedError):
        await scene.back_up()
    failed = await shown_disk(api)
    assert (failed["lastStatus"], failed["lastSuccess"]) == ("Failed", shown["lastSuccess"])


@pytest.mark.parametrize("tokens", [("00000000", "ffffffff"), ("ffffffff", "00000000")])
async def test_the_last_backup_is_the_one_that_ended_last(api, scene, tokens):
    """The order of ids does not count: two runs may be requested in one second, and the later may fail sooner."""
    scene.protect()
    await scene.back_up(run=f"vm.20260101T000000Z.{tokens[0]}")
    del scene.blobs.blobs[scene.source()]
    with pytest.raises(BackupFailedError):
        await scene.back_up(run=f"vm.20260101T000000Z.{tokens[1]}")

    assert (await shown_disk(api))["lastStatus"] == "Failed"


async def test_a_run_dated_in_the_future_hides_no_later_one(api, scene):
    """After one wrong clock, the status still follows later runs."""
    scene.protect()
    first = await scene.back_up()
    key, row = next((key, row) for key, row in scene.catalogue.rows.items() if first.output["run"] in key[1])
    scene.catalogue.rows[key] = replace(row, value=replace(row.value, ended=scene.world.now + timedelta(days=400)))
    del scene.blobs.blobs[scene.source()]
    with pytest.raises(BackupFailedError):
        await scene.back_up()

    assert (await shown_disk(api))["lastStatus"] == "Failed"


async def test_overdue(api, scene):
    """A disk is overdue after a whole window without a restore point; a stopped disk never is."""
    scene.protect()
    scene.world.pass_time(timedelta(hours=1))
    await scene.back_up()
    for hours, overdue in ((0, False), (12, False), (10, False), (3, True)):
        scene.world.pass_time(timedelta(hours=hours))
        assert (await shown_disk(api))["overdue"] is overdue
    await respond(api, disks.delete_disk, request_of(disk="vm"))
    stopped = await shown_disk(api)
    assert (stopped["overdue"], stopped["nextBackup"]) == (False, None)


async def test_a_disk_never_backed_up_is_overdue_in_time(api, scene):
    scene.protect()
    scene.world.pass_time(timedelta(hours=13))
    assert (await shown_disk(api))["overdue"] is False
    scene.world.pass_time(timedelta(hours=12))
    assert (await shown_disk(api))["overdue"] is True


async def test_a_disk_that_returned_to_its_former_source_is_not_overdue(api, scene):
    """The age counts from the newest restore point, not from the return to the source of that point."""
    scene.protect()
    await scene.back_up()
    scene.world.pass_time(timedelta(hours=1))
    row = scene.catalogue.rows["vm", "registration"]
    scene.catalogue.rows["vm", "registration"] = replace(row, value=replace(row.value, source_since=scene.world.now))

    assert (await shown_disk(api))["overdue"] is False


# -- machines and restores ----------------------------------------------------------------------------------------------


async def test_a_disk_names_its_machine(api, scene):
    """The machine is stored with the registration and shown; its resource group must be on the allow-list."""
    scene.blobs.put(scene.source(), 512)
    request = {"source": scene.source().url, "machine": {"vm": VM, "lun": "os"}}
    created = await respond(api, disks.put_disk, request_of(request, disk="vm"))

    assert json.loads(created.body)["machine"] == {"vm": VM, "lun": "os"}
    assert scene.catalogue.rows["vm", "registration"].value.machine == Slot(VM, None)
    before = scene.dump()
    other = {"vm": VM.replace("resourceGroups/web", "resourceGroups/x"), "lun": 0}
    refused = await respond(api, disks.put_disk, request_of({**request, "machine": other}, disk="vm"))
    assert (refused.status, json.loads(refused.body)["error"]["code"]) == (400, "MachineRefused")
    for wrong in (VM, {"vm": VM}, {"vm": "x", "lun": 0}, {"vm": VM, "lun": 64}):
        answer = await respond(api, disks.put_disk, request_of({**request, "machine": wrong}, disk="vm"))
        assert (answer.status, json.loads(answer.body)["error"]["code"]) == (400, "InvalidRequest")
    assert scene.dump() == before


async def test_an_unprotected_disk_stays_so_until_its_protection_is_resumed(api, scene):
    """A change of the description does not clear the error status."""
    scene.protect()
    row = scene.catalogue.rows["vm", "registration"]
    scene.catalogue._store(replace(row.value, unprotected="the machine uses a managed disk"), "registration")
    request = {"source": scene.source().url, "description": "other"}
    shown = json.loads((await respond(api, disks.put_disk, request_of(request, disk="vm"))).body)
    assert (shown["protection"], shown["protectionNote"], shown["overdue"]) == (
        "unprotected",
        "the machine uses a managed disk",
        True,
    )
    refused = await respond(api, runs.post_backup, request_of(disk="vm", start=Starts()))
    assert (refused.status, "managed disk" in refused.body) == (409, True)
    stopped = json.loads((await respond(api, disks.delete_disk, request_of(disk="vm"))).body)
    assert (stopped["protection"], stopped["overdue"]) == ("stopped", False)
    shown = json.loads((await respond(api, disks.put_disk, request_of(request, disk="vm"))).body)
    assert (shown["protection"], shown["protectionNote"]) == ("protected", None)


async def test_a_failed_restore_is_not_shown_as_the_last_backup(api, scene):
    scene.protect()
    await scene.back_up()
    request = scene.restore_request(scene.points()[0], target="https://gone.test/vhds/x.vhd")
    with pytest.raises(RestoreFailedError):
        await scene.driver().run("restore_disk", request.model_dump(mode="json"), request.run)

    assert (await shown_disk(api))["lastStatus"] == "Succeeded"
