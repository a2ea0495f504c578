"""Requests for restores: everything is checked before anything is changed, a dry run shows the plan, and a refusal changes nothing."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from datetime import timedelta

import pytest

from backup_core.activities.restore_run import begin_restore
from backup_core.api import restores, runs
from backup_core.api.context import respond
from backup_core.api.http import Request
from backup_core.domain.ending import HEARTBEAT_MAX
from backup_core.domain.errors import AccessDeniedError
from backup_core.domain.naming import point_key, run_key, snapshot_time
from backup_core.domain.records import Run
from backup_core.operations.restores import PAST_RUNS_MAX
from backup_core.steps.restore import BeginRestore
from tests.api.restoring import MACHINE, Starts, give_managed_disk, post, refused
from tests.scene import OTHER, PAGE, SOURCE, VM

KEY = "3f2504e0-4f89-41d3-9a0c-0305e82c3301"


# -- accepted ---------------------------------------------------------------------------------------------------------


async def test_a_restore_is_accepted_and_runs(scene):
    """The answer is 202 with the run's address, row and orchestration input; the restore does what was requested."""
    start = Starts()
    status, shown, headers = await post(scene, {"restorePoint": scene.points()[0].point, "repoint": True}, start=start)

    assert status == 202
    assert headers["Operation-Location"] == f"https://app.test/api/runs/{shown['id']}"
    assert (shown["operation"], shown["state"]) == ("restore", "NotStarted")
    assert shown["restore"]["machine"] == MACHINE
    assert shown["restore"]["oldDisk"] == scene.source().url
    assert "must have unmounted" in shown["restore"]["warnings"][0]
    assert "2026-03-31" in shown["restore"]["warnings"][1]
    assert any(f'vhd_uri = "{shown["restore"]["target"]}"' in step for step in shown["restore"]["nextSteps"])
    ((name, instance, body),) = start.requests
    assert (name, instance) == ("restore_disk", shown["id"])
    await scene.driver().run(name, body, instance)
    request = Request("https://app.test/api", {"run": shown["id"]})
    ended = json.loads((await respond(scene.api(), runs.get_run, request)).body)
    assert (ended["state"], ended["percent"], ended["phase"]) == ("Succeeded", 100, "done")
    assert ended["restorePoints"] == [scene.points()[-1].point]
    assert "uses the new disk" in ended["restore"]["endState"]
    assert scene.machines.machines[VM].at(0).source == ended["restore"]["target"]


async def test_the_default_target_is_new_for_each_run_and_beside_the_disk(scene):
    one, two = [(await post(scene))[1]["restore"]["target"] for _ in range(2)]

    assert one.startswith(f"{SOURCE}/vhds/vm-restored-")
    assert one.endswith(".vhd")
    assert one != two


@pytest.mark.parametrize("which", ["latest", "by time", "at its very time", "by id"])
async def test_the_requested_point_is_chosen(scene, which):
    first, last = scene.points()
    between = snapshot_time(last.source_snapshot) - timedelta(microseconds=1)
    body, wanted = {
        "latest": ({}, last),
        "by time": ({"time": between.isoformat()}, first),
        "at its very time": ({"time": snapshot_time(last.source_snapshot).isoformat()}, last),
        "by id": ({"restorePoint": first.point}, first),
    }[which]

    assert (await post(scene, body))[1]["restore"]["restorePoint"] == wanted.point


async def test_the_same_key_twice_is_one_restore(scene):
    start = Starts()
    first, again = [(await post(scene, {"repoint": True}, key=KEY, start=start)) for _ in range(2)]

    assert first[0] == again[0] == 202
    assert first[1]["id"] == again[1]["id"]
    assert first[1]["restore"]["target"] == again[1]["restore"]["target"]
    assert again[2]["Repeatability-Result"] == "accepted"
    assert len(scene.rows("run!")) == 3
    await refused(scene, {"repoint": False}, 409, "RepeatabilityConflict", key=KEY)


async def test_to_another_account_of_the_allow_list(scene):
    scene.blobs.put(scene.source("x"), PAGE)
    from backup_core.domain.naming import BlobAddress  # noqa: PLC0415

    scene.blobs.put(BlobAddress(OTHER, "disks", "x.vhd"), PAGE)
    status, shown, _ = await post(scene, {"target": {"account": OTHER, "container": "disks", "blob": "back/vm.vhd"}})

    assert (status, shown["restore"]["target"]) == (202, f"{OTHER}/disks/back/vm.vhd")


async def test_a_disk_whose_registration_is_gone(scene):
    """The disk's points and a target are enough; without a target the error says that one is needed."""
    del scene.catalogue.rows["vm", "registration"]
    assert (await post(scene))[0] == 202
    for key in [key for key in scene.catalogue.rows if key[1].startswith("point!")]:
        row = scene.catalogue.rows[key]
        scene.catalogue.rows[key] = replace(row, value=replace(row.value, source="https://gone.test/vhds/vm.vhd"))
    error = await refused(scene, {}, 400, "TargetNeeded")
    assert error["target"] == "target"
    status, shown, _ = await post(scene, {"target": {"account": SOURCE, "container": "vhds"}})
    assert (status, shown["restore"]["target"].startswith(f"{SOURCE}/vhds/vm-restored-")) == (202, True)


# -- dry run ------------------------------------------------------------------------------------------------------------


async def test_a_dry_run_shows_the_whole_plan_and_changes_nothing(scene):
    before, start = scene.dump(with_runs=True), Starts()
    status, plan, _ = await post(scene, {"dryRun": True, "repoint": True}, start=start)

    assert status == 200
    assert scene.dump(with_runs=True) == before
    assert start.requests == []
    allocated = 4 * PAGE
    assert (plan["allocatedBytes"], plan["bytesToCopy"], plan["logicalBytes"]) == (allocated, 2 * allocated, 32 * PAGE)
    assert 0 < plan["expectedSeconds"]["low"] <= plan["expectedSeconds"]["high"]
    assert "60 MiB/s" in plan["expectedSeconds"]["basis"]
    assert "keeps running" in plan["downtime"]
    assert plan["machine"] == MACHINE
    assert any("in place of " + scene.source().url in step for step in plan["steps"])
    states = {one["action"]: one["state"] for one in plan["permissions"]}
    assert set(states.values()) == {"granted"}
    assert "Microsoft.Compute/virtualMachines/write" in states


@pytest.mark.parametrize("slow", ["many ranges", "a request that hangs"])
async def test_a_dry_run_counts_for_a_bounded_time(scene, slow):
    """A partial count is marked as such; its hash equals that of a whole count."""
    request = {"dryRun": True, "target": {"blob": "new.vhd"}}
    _, whole, _ = await post(scene, request)
    listed = scene.blobs.allocated
    scene.with_limits(window_bytes=4 * PAGE)
    if slow == "many ranges":
        ticks = iter(range(0, 1000, 15))
        scene.tools = replace(scene.tools, monotonic=lambda: float(next(ticks)))
    else:
        scene.with_limits(plan_seconds=1.0)

        async def hangs(blob, snapshot, window):
            if window.start:
                await asyncio.Event().wait()
            async for one in listed(blob, snapshot, window):
                yield one

        scene.blobs.allocated = hangs
    status, plan, _ = await post(scene, request)

    assert status == 200
    assert (whole["isLowerBound"], whole["allocatedBytes"], whole["countedToBytes"]) == (False, 4 * PAGE, 32 * PAGE)
    assert (plan["isLowerBound"], plan["allocatedBytes"], plan["countedToBytes"]) == (True, 3 * PAGE, 4 * PAGE)
    assert plan["expectedSeconds"]["high"] >= whole["expectedSeconds"]["high"]
    assert f"counted up to byte {4 * PAGE} of {32 * PAGE}" in plan["expectedSeconds"]["basis"]
    digest = slice(restores.DIGEST_LENGTH)
    assert plan["planHash"][digest] == whole["planHash"][digest]


async def test_a_plan_without_a_machine(scene):
    _, plan, _ = await post(scene, {"dryRun": True})

    assert (plan["machine"], plan["adopt"], plan["downtime"]) == (None, False, "none: no machine is changed")
    assert plan["bytesToCopy"] == plan["allocatedBytes"]


async def test_the_expected_time_learns_from_past_restores(scene):
    row = scene.restore_request(scene.points()[0])
    await scene.driver().run("restore_disk", row.model_dump(mode="json"), row.run)
    ended = scene.run_row(row.run)
    key = next(key for key in scene.catalogue.rows if key[1].endswith(row.run))
    timed = replace(ended, started=ended.ended - timedelta(seconds=40))
    scene.catalogue.rows[key] = replace(scene.catalogue.rows[key], value=timed)
    _, plan, _ = await post(scene, {"dryRun": True})

    assert "1 past restores of this disk" in plan["expectedSeconds"]["basis"]


WORLD = {
    "the point": lambda scene: _edit(scene, point_key(scene.points()[-1].point), digest="other"),
    "the registration": lambda scene: _edit(scene, "registration", description="changed"),
    "the machine": lambda scene: scene.machines.change(VM, *scene.machines.machines[VM].disks),
}


def _edit(scene, key, **fields):
    row = scene.catalogue.rows["vm", key]
    scene.catalogue._store(replace(row.value, **fields), key)


@pytest.mark.parametrize("change", [None, *WORLD])
@pytest.mark.parametrize("named", [True, False])
async def test_a_plan_is_valid_until_the_world_changes(scene, change, named):
    request = {"repoint": True} | ({"target": {"blob": "mine.vhd"}} if named else {})
    _, plan, _ = await post(scene, {**request, "dryRun": True})
    if change is None:
        status, shown, _ = await post(scene, {**request, "planHash": plan["planHash"]})
        assert (status, shown["restore"]["target"]) == (202, plan["target"]), "the name in the plan"
        return
    WORLD[change](scene)
    await refused(scene, {**request, "planHash": plan["planHash"]}, 412, "PlanChanged")


async def test_another_request_is_another_plan(scene):
    hashes = set()
    for body in (
        {},
        {"repoint": True},
        {"adopt": True},
        {"restorePoint": scene.points()[0].point},
        {"repoint": True, "stopVm": True},
    ):
        hashes.add((await post(scene, {**body, "dryRun": True}))[1]["planHash"])

    assert len(hashes) == 5


@pytest.mark.parametrize("what", ["write", "machine", "deallocate"])
async def test_a_missing_permission_is_listed_and_refused(scene, what):
    """The dry run lists the missing permission; the real call is refused before anything happens."""
    request = {"repoint": True, "stopVm": True}
    if what == "write":
        scene.blobs.closed.add((SOURCE, "vhds"))
        wanted = f"write blobs in {SOURCE}/vhds"
    else:
        wanted = f"Microsoft.Compute/virtualMachines/{'write' if what == 'machine' else 'deallocate/action'}"
        scene.machines.denied.add(wanted)
    _, plan, _ = await post(scene, {**request, "dryRun": True})
    assert {one["action"]: one["state"] for one in plan["permissions"]}[wanted] == "denied"
    error = await refused(scene, request, 403, "PermissionMissing")
    assert wanted in error["message"]


async def test_permissions_that_cannot_be_read_are_unknown(scene):

    async def closed(*_):
        raise AccessDeniedError("no right to list permissions")

    scene.machines.permitted = closed
    _, plan, _ = await post(scene, {"repoint": True, "dryRun": True})
    states = {one["action"]: one["state"] for one in plan["permissions"]}
    assert states["Microsoft.Compute/virtualMachines/write"] == "unknown"
    assert (await post(scene, {"repoint": True}))[0] == 202


# -- refused ------------------------------------------------------------------------------------------------------------

BODIES = {
    "unknown field": {"repiont": True},
    "repoint a word": {"repoint": "yes"},
    "adopt a number": {"adopt": 1},
    "point a number": {"restorePoint": 5},
    "point and time": {"restorePoint": "20261122T1523544760000Z", "time": "2026-01-01T00:00:00Z"},
    "time a number": {"time": 1_700_000_000},
    "time without zone": {"time": "2026-01-01T00:00:00"},
    "time no time": {"time": "yesterday"},
    "time too late": {"time": "9999-12-31T23:59:59Z"},
    "target a string": {"target": "restored.vhd"},
    "kind unknown": {"target": {"kind": "blockBlob"}},
    "blob empty": {"target": {"blob": ""}},
    "blob too long": {"target": {"blob": "x" * 1025}},
    "disk for a page blob": {"target": {"disk": "x"}},
    "target unknown field": {"target": {"name": "x"}},
    "machine a string": {"repoint": True, "machine": VM},
    "machine without lun": {"repoint": True, "machine": {"vm": VM}},
    "lun negative": {"repoint": True, "machine": {"vm": VM, "lun": -1}},
    "lun too large": {"repoint": True, "machine": {"vm": VM, "lun": 64}},
    "lun a bool": {"repoint": True, "machine": {"vm": VM, "lun": True}},
    "lun a word": {"repoint": True, "machine": {"vm": VM, "lun": "zero"}},
    "vm a name": {"repoint": True, "machine": {"vm": "web-1", "lun": 0}},
    "vm a url": {"repoint": True, "machine": {"vm": "https://evil.example" + VM, "lun": 0}},
    "vm with a path": {"repoint": True, "machine": {"vm": VM + "/../other", "lun": 0}},
    "vm too long": {"repoint": True, "machine": {"vm": VM + "x" * 500, "lun": 0}},
    "stopVm without repoint": {"stopVm": True},
    "plan hash too long": {"planHash": "x" * 65},
    "adopt false but repoint": {"repoint": True, "adopt": False},
}


@pytest.mark.parametrize("kind", BODIES)
async def test_wrong_bodies(scene, kind):
    await refused(scene, BODIES[kind], 400, "InvalidRequest")


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [(b"{", 400, "InvalidJson"), (b"[]", 400, "InvalidRequest"), (b'{"x": ' + b" " * 70_000 + b"1}", 413, "BodyTooLarge"),
     (b"[" * 40_000, 400, "InvalidJson"), (b'{"adopt": NaN}', 400, "InvalidJson"), (b'{"time": "\xff"}', 400, "InvalidJson")],
)  # fmt: skip
async def test_malformed_bodies(scene, body, status, code):
    await refused(scene, body, status, code)


@pytest.mark.parametrize("disk", ["Disk", "a'b", "", "-", "a" * 64, "../x", "a#b"])
async def test_hostile_disk_ids(scene, disk):
    await refused(scene, {}, 400, "InvalidDiskId", disk=disk)


@pytest.mark.parametrize("point", ["x", "20261322T1523544760000Z", "' or 1 eq 1", ""])
async def test_malformed_points(scene, point):
    await refused(scene, {"restorePoint": point}, 400, "InvalidRestorePointId")


async def test_unknown_points_and_disks(scene):
    await refused(scene, {"restorePoint": "20201122T1523544760000Z"}, 404, "RestorePointNotFound")
    await refused(scene, {}, 404, "DiskNotFound", disk="other")
    scene.protect("empty")
    await refused(scene, {}, 404, "RestorePointNotFound", disk="empty")


async def test_a_time_before_the_oldest_names_the_oldest(scene):
    error = await refused(scene, {"time": "2020-01-01T00:00:00Z"}, 404, "RestorePointNotFound")

    assert scene.points()[0].point in error["message"]


@pytest.mark.parametrize("state", ["lost", "quarantined", "deleting"])
async def test_points_that_are_not_available(scene, state):
    point = scene.points()[0]
    _edit(scene, point_key(point.point), state=state)
    error = await refused(scene, {"restorePoint": point.point}, 409, "RestorePointUnavailable")

    assert state in error["message"]
    assert (await post(scene))[0] == 202, "the latest one that can be restored is another"


async def test_a_point_whose_backup_is_gone_or_short(scene):
    point = scene.points()[0]
    snapshot = scene.head_blob().snapshots[point.backup_snapshot]
    snapshot.size -= PAGE
    await refused(scene, {"restorePoint": point.point}, 409, "RestorePointUnavailable")
    del scene.head_blob().snapshots[point.backup_snapshot]
    error = await refused(scene, {"restorePoint": point.point}, 409, "RestorePointUnavailable")
    assert "rebuild" in error["message"]


async def test_a_target_that_exists(scene):
    for name in ("vm.vhd", "os.vhd"):
        error = await refused(scene, {"target": {"blob": name}}, 409, "TargetExists")
        assert "never writes onto anything that exists" in error["message"]


@pytest.mark.parametrize(
    ("target", "code", "at"),
    [
        ({"account": "https://backup.test"}, "InvalidTarget", "target.account"),
        ({"account": "https://evil.test"}, "InvalidTarget", "target.account"),
        ({"account": SOURCE + ".evil.test"}, "InvalidTarget", "target.account"),
        ({"account": SOURCE + "/vhds"}, "InvalidTarget", "target.account"),
        ({"account": "http://169.254.169.254"}, "InvalidTarget", "target.account"),
        ({"container": "UPPER"}, "InvalidTarget", "target.blob"),
        ({"container": "a/../b"}, "InvalidTarget", "target.blob"),
        ({"container": "none"}, "InvalidTarget", "target.container"),
        ({"blob": "a/../b.vhd"}, "InvalidTarget", "target.blob"),
        ({"blob": "a\x00b"}, "InvalidTarget", "target.blob"),
        ({"blob": "a\\b"}, "InvalidTarget", "target.blob"),
        ({"blob": "a\r\nb"}, "InvalidTarget", "target.blob"),
    ],
)
async def test_targets_outside_the_allow_list(scene, monkeypatch, target, code, at):
    real = scene.blobs.listed

    async def listed(account, container, prefix):
        if container == "none":
            from backup_core.domain.errors import BlobMissingError  # noqa: PLC0415

            raise BlobMissingError("no container")
        async for one in real(account, container, prefix):
            yield one

    monkeypatch.setattr(scene.blobs, "listed", listed)
    error = await refused(scene, {"target": target}, 400, code)
    assert error["target"] == at


async def test_names_that_look_like_urls_are_names(scene):
    """A query or a fragment in a blob's name is part of the name, not of an address."""
    for name in ("a?sv=1&sig=x", "a#b", "a%2e%2e"):
        status, shown, _ = await post(scene, {"target": {"blob": name}})
        assert status == 202
        assert "?" not in shown["restore"]["target"].removeprefix("https://")


async def test_repointing_without_a_known_machine_is_refused(scene):
    _edit(scene, "registration", machine=None)
    error = await refused(scene, {"repoint": True}, 400, "MachineNeeded")
    assert error["target"] == "machine"
    await refused(scene, {"target": {"kind": "managedDisk"}}, 400, "MachineNeeded")


@pytest.mark.parametrize(
    ("case", "status", "code", "words"),
    [
        ("another group", 400, "MachineRefused", "MACHINE_GROUPS"),
        ("gone", 400, "MachineNotFound", "does not exist"),
        ("no disk there", 409, "SlotTaken", "there is no disk"),
        ("another disk", 409, "SlotTaken", "has https://source.test/vhds/os.vhd, expected https://source.test/vhds/vm.vhd"),
        ("a managed disk", 409, "SlotTaken", "a page blob cannot take its place"),
    ],
)
async def test_machines_that_do_not_use_the_disk(scene, case, status, code, words):
    body = {"repoint": True, "machine": dict(MACHINE)}
    if case == "another group":
        body["machine"]["vm"] = VM.replace("resourceGroups/web", "resourceGroups/payroll")
    elif case == "gone":
        body["machine"]["vm"] = VM.replace("web-1", "web-2")
    elif case == "no disk there":
        body["machine"]["lun"] = 5
    elif case == "another disk":
        body["machine"]["lun"] = "os"
    else:
        give_managed_disk(scene)
    error = await refused(scene, body, status, code)

    assert words in error["message"]


async def test_an_unprotected_disk_is_not_adopted(scene):
    _edit(scene, "registration", protected=False)
    await refused(scene, {"adopt": True}, 409, "NotProtected")
    status, shown, _ = await post(scene, {"repoint": True})
    assert (status, shown["restore"]["adopt"]) == (202, False)


async def test_a_restore_that_runs_is_found_behind_many_newer_runs(scene):
    """It has pinned its point; backups were requested since, as many as a call looks at."""
    first = (await post(scene, {"repoint": True}))[1]["id"]
    begin = BeginRestore(disk="vm", run=first, lease="00000000-0000-0000-0000-000000000001")
    assert (await begin_restore(scene.tools, begin)).state == "go"
    for number in range(PAST_RUNS_MAX):
        name = f"vm.29990101T00{number:02d}00Z.timer"
        scene.catalogue._store(Run("vm", name, "Skipped", "timer", full=False, created=scene.world.now), run_key(name))
    status, shown, _ = await post(scene, {"repoint": True, "target": {"blob": "another.vhd"}})

    assert (status, shown["error"]["code"]) == (409, "RestoreRunning")


async def test_a_second_restore_that_changes_the_source_is_refused_while_one_runs(scene):
    first = (await post(scene, {"repoint": True}))[1]
    before = scene.dump(with_runs=True)
    status, shown, headers = await post(scene, {"adopt": True})

    assert (status, shown["error"]["code"]) == (409, "RestoreRunning")
    assert headers["Location"].endswith(first["id"])
    assert scene.dump(with_runs=True) == before
    assert (await post(scene))[0] == 202, "one that changes nothing may run beside it"


async def test_a_dead_restore_blocks_no_other(scene):
    """The orchestration of the other restore was terminated long ago; it no longer blocks."""
    first = (await post(scene, {"repoint": True}))[1]
    key = next(key for _, key in scene.catalogue.rows if key.endswith(first["id"]) and key.startswith("run!"))
    scene.catalogue._store(replace(scene.run_row(first["id"]), state="Running"), key)
    assert (await post(scene, {"adopt": True}))[0] == 409
    scene.world.pass_time(HEARTBEAT_MAX + timedelta(minutes=1))
    assert (await post(scene, {"adopt": True}))[0] == 202


async def test_a_repeatability_key_does_not_turn_a_dry_run_into_a_run(scene):
    """A key names what was started; a dry run starts nothing, neither under a new key nor under a used one."""
    before = scene.dump(with_runs=True)
    assert (await post(scene, {"dryRun": True}, key=KEY))[0] == 200
    assert scene.dump(with_runs=True) == before
    await post(scene, {}, key=KEY)
    status, plan, _ = await post(scene, {"dryRun": True}, key=KEY)
    assert (status, "planHash" in plan) == (200, True)


@pytest.mark.parametrize("key", ["x", "' or 1", "3f2504e0"])
async def test_keys_are_uuids(scene, key):
    await refused(scene, {}, 400, "InvalidHeader", key=key)
