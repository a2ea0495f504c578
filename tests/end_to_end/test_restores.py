"""Restores through the real function_app.py, the real SDKs, the emulator and the stand-in for Resource Manager."""

from __future__ import annotations

import json
import re

import pytest
import requests

from backup_core.domain.naming import managed_disk_id
from devhost.disks import vhd_footer
from devhost.machines import machine_id
from devhost.platform import EVERY_SECOND, Platform
from tests.disk import PAGE, Disk, dump

MIB = 1024 * 1024


@pytest.fixture
def attached(platform, calm, machines, name, rng):
    """A protected disk of 16 MiB that a machine uses at LUN 0, with two restore points, and something written since."""
    disk = Disk(platform, name, 16 * MIB)
    vm = machines.make(name, data={0: platform.disk_url(f"{name}.vhd")})
    platform.api("PUT", f"/disks/{name}", {"source": platform.disk_url(f"{name}.vhd"), "machine": {"vm": vm, "lun": 0}})
    disk.lease = machines.lease(platform.disk_url(f"{name}.vhd"))
    disk.disturb(rng, 12)
    disk.back_up()
    disk.disturb(rng, 6)
    disk.back_up()
    disk.disturb(rng, 3)
    yield disk
    machines.delete(name)
    disk.service.close()


def test_a_restore_into_the_machine_is_followed_by_an_increment(attached, platform, machines, rng):
    """After a dry run the first point is restored; the machine reads it, the guest writes, and the next backup is an increment."""
    disk = attached
    first = disk.points()[-1]
    request = {"restorePoint": first["id"], "repoint": True}
    plan = platform.api("POST", f"/disks/{disk.name}/restores", {**request, "dryRun": True}).json()
    run = platform.restore(disk.name, {**request, "planHash": plan["planHash"]})

    assert run["state"] == "Succeeded", run
    url = machines.source(disk.name, 0)
    assert url == run["restore"]["target"]
    disk.moved(url)
    assert disk.read() == disk.moments[first["id"]]
    disk.content = bytearray(disk.read())
    disk.lease = machines.lease(url)
    disk.moments[run["restorePoints"][0]] = bytes(disk.content)
    disk.disturb(rng, 5)
    assert disk.back_up()["kind"] == "incremental"
    disk.check_every_point()


def test_an_os_disk_is_restored_into_its_machine(platform, calm, machines, name, rng):
    """The machine is deallocated, its VHD exchanged, and the machine started again; each phase is reported."""
    disk = Disk(platform, name, 4 * MIB)
    vm = machines.make(name, os=platform.disk_url(f"{name}.vhd"))
    machine = {"vm": vm, "lun": "os"}
    platform.api("PUT", f"/disks/{name}", {"source": platform.disk_url(f"{name}.vhd"), "machine": machine})
    disk.lease = machines.lease(platform.disk_url(f"{name}.vhd"))
    disk.disturb(rng, 6)
    disk.back_up()
    run = platform.restore(name, {"repoint": True})

    assert run["state"] == "Succeeded", run
    assert machines.source(name, "os") == run["restore"]["target"]
    assert machines.power(name) == "running"
    assert "OS disk of VM" in run["restore"]["endState"]
    assert run["restore"]["downtimeSeconds"] >= 0
    actions = [one.rpartition("/")[2] for one in machines.control("GET")["requests"] if one.startswith("POST")]
    assert actions == ["deallocate", "start"]
    machines.delete(name)
    disk.service.close()


def test_a_change_is_undone_when_the_machine_does_not_start(platform, calm, machines, name, rng):
    """In public Azure since 2026-03-31: the change is undone, and the error says why the machine is off."""
    disk = Disk(platform, name, MIB)
    vm = machines.make(name, os=platform.disk_url(f"{name}.vhd"))
    machine = {"vm": vm, "lun": "os"}
    platform.api("PUT", f"/disks/{name}", {"source": platform.disk_url(f"{name}.vhd"), "machine": machine})
    disk.back_up()
    machines.switch(retired=True)
    run = platform.restore(name, {"repoint": True})

    assert (run["state"], run["error"]["code"]) == ("Failed", "MachineRefused")
    assert "no longer start in public Azure since 2026-03-31" in run["error"]["message"]
    assert machines.source(name, "os") == disk.blob.url
    assert "uses the old disk again, the machine is deallocated" in run["restore"]["endState"]
    machines.delete(name)
    disk.service.close()


def test_a_managed_disk_is_swapped_in(platform, calm, machines, name, rng, tmp_path):
    """A fixed VHD becomes a managed disk in the machine; it is not adopted, so the disk is then reported as unprotected."""
    disk = Disk(platform, name, MIB + 512)
    disk.write(MIB, vhd_footer(MIB))
    disk.protect()
    disk.write(0, rng.randbytes(64 * PAGE))
    disk.back_up()
    old = managed_disk_id(machine_id(name), f"{name}-old")
    requests.put(f"{machines.endpoint}{old}", json={"location": "local", "properties": {}}, timeout=9).raise_for_status()
    machines.make(name, data={3: old})
    machine = {"vm": machine_id(name), "lun": 3}
    request = {"target": {"kind": "managedDisk"}, "repoint": True, "adopt": False, "machine": machine}
    run = platform.restore(name, request)

    assert run["state"] == "Succeeded", run
    new = run["restore"]["managedDisk"]
    assert machines.source(name, 3) == new
    assert "NOT backed up" in run["restore"]["endState"]
    with platform.managed_content(new) as blob:
        content = blob.download_blob().readall()
    assert content == bytes(disk.content)
    shown = platform.api("GET", f"/disks/{name}").json()
    assert (shown["protection"], shown["overdue"]) == ("unprotected", True)
    assert "the new disk is not backed up" in shown["protectionNote"]
    refused = platform.api("POST", f"/disks/{name}/backups")
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "NotProtected")
    assert len(disk.points()) == 1
    assert platform.api("DELETE", f"/disks/{name}").json()["protection"] == "stopped"
    machines.delete(name)
    disk.service.close()


def test_a_restore_to_a_new_disk_leaves_the_protection_alone(attached, platform, machines, rng):
    """A write to the live disk is in the next point."""
    disk = attached
    before = platform.api("GET", f"/disks/{disk.name}").json()
    point = disk.points()[0]
    run = platform.restore(disk.name, {"restorePoint": point["id"], "target": {"blob": f"{disk.name}-copy.vhd"}})

    assert run["state"] == "Succeeded", run
    copied = disk.service.get_blob_client("vhds", f"{disk.name}-copy.vhd")
    assert copied.download_blob().readall() == disk.moments[point["id"]]
    assert copied.get_blob_properties().metadata == {}
    after = platform.api("GET", f"/disks/{disk.name}").json()
    assert {key: after[key] for key in ("source", "generation", "newestRestorePoint")} == {
        key: before[key] for key in ("source", "generation", "newestRestorePoint")
    }
    assert machines.source(disk.name, 0) == before["source"]
    disk.write(0, rng.randbytes(PAGE))
    assert disk.back_up()["kind"] == "incremental"
    disk.check_every_point()


def test_bytes_travel_once(attached, platform, calm):
    """A restore copies allocated ranges only, once per copy, and none through the worker; reads to compare are counted apart."""
    disk = attached
    point = disk.points()[-1]
    calm.reset()
    plan = platform.api("POST", f"/disks/{disk.name}/restores", {"restorePoint": point["id"], "dryRun": True}).json()
    calm.reset()
    run = platform.restore(disk.name, {"restorePoint": point["id"], "repoint": True})
    counts = calm.counts()

    assert run["bytesDone"] == plan["allocatedBytes"]
    assert run["bytesStreamed"] == 0
    assert counts["PUT page-from-url"]["requests"] == 2 * run["requestsTotal"]
    assert "PUT page" not in counts
    # Every allocated byte of each copy is read once from each side.
    assert 0 <= counts["GET blob"]["bytesOut"] - 4 * plan["allocatedBytes"] < 20_000


def test_an_older_point_of_a_disk_that_grew_is_restored_in_its_size(attached, platform, machines, rng):
    """The older point is smaller than the live disk: the machine gets the disk as it was then."""
    disk = attached
    point = disk.points()[0]
    disk.blob.resize_blob(20 * MIB, lease=disk.lease)
    run = platform.restore(disk.name, {"restorePoint": point["id"], "repoint": True})

    assert run["state"] == "Succeeded", run
    disk.moved(machines.source(disk.name, 0))
    assert disk.read() == disk.moments[point["id"]]


def test_a_restore_survives_an_outage_of_resource_manager(attached, platform, machines):
    """The outage begins between the two changes of the machine: the run asks for attention, and ends well when Azure answers
    again.
    """
    disk = attached
    machines.faults({"method": "PATCH", "path": disk.name, "status": 503, "code": "ServerBusy", "times": 9999, "skip": 1})
    run = platform.api("POST", f"/disks/{disk.name}/restores", {"repoint": True}).json()["id"]
    while machines.source(disk.name, 0) is not None:
        pass
    machines.faults({"method": "PATCH", "path": disk.name, "status": 503, "code": "ServerBusy", "times": 3})
    ended = platform.wait(run)

    assert ended["state"] == "Succeeded", ended
    assert machines.source(disk.name, 0) == ended["restore"]["target"]
    assert ended["retries"] >= 1


@pytest.mark.parametrize("code", ["AcquireDiskLeaseFailed", "PropertyChangeNotAllowed"])
def test_a_refused_change_is_undone(attached, platform, machines, code):
    """The new disk is refused after it was accepted: the old disk and its lease are back, and backups continue."""
    disk, url = attached, attached.blob.url.partition("?")[0]
    machines.faults({"method": "PATCH", "path": disk.name, "code": code, "operation": True, "skip": 1})
    run = platform.restore(disk.name, {"repoint": True})

    assert (run["state"], run["error"]["code"]) == ("Failed", "MachineRefused")
    assert code in run["error"]["message"]
    assert machines.source(disk.name, 0) == url
    assert "uses the old disk again" in run["restore"]["endState"]
    assert disk.blob.get_blob_properties().lease.state == "leased"
    disk.lease = machines.lease(url)
    assert disk.back_up()["kind"] == "incremental"
    disk.check_every_point()


def test_a_leased_new_disk_is_not_attached(attached, platform, machines, calm):
    """A third party leases the restored blob just before it is attached."""
    disk = attached
    machines.faults({"method": "PATCH", "path": disk.name, "operation": True, "held": True})
    run = platform.api(
        "POST", f"/disks/{disk.name}/restores", {"repoint": True, "target": {"blob": f"{disk.name}-r.vhd"}}
    ).json()
    while machines.machine(disk.name)["properties"]["provisioningState"] != "Updating":
        pass
    lease = disk.service.get_blob_client("vhds", f"{disk.name}-r.vhd").acquire_lease()
    machines.reset()
    ended = platform.wait(run["id"])

    assert (ended["state"], ended["error"]["code"]) == ("Failed", "MachineRefused")
    assert "AcquireDiskLeaseFailed" in ended["error"]["message"]
    assert machines.source(disk.name, 0) == disk.blob.url
    lease.release()


def test_a_restore_fails_visibly_when_its_machine_is_deleted(attached, platform, machines, calm):
    """The machine is deleted between validation and change: the error says so, and names the complete disk."""
    disk = attached
    calm.faults({"verb": "PUT page-from-url", "delayMs": 1500, "times": 1})
    run = platform.api("POST", f"/disks/{disk.name}/restores", {"repoint": True}).json()["id"]
    machines.delete(disk.name)
    ended = platform.wait(run)

    assert (ended["state"], ended["error"]["code"]) == ("Failed", "MachineNotFound")
    assert platform.api("GET", f"/disks/{disk.name}").json()["source"].endswith(f"{disk.name}.vhd")
    machines.make(disk.name)


def test_a_restore_is_canceled_while_it_copies(attached, platform, machines, calm):
    disk = attached
    calm.faults({"verb": "PUT page-from-url", "delayMs": 1200, "times": 2})
    body = {"repoint": True, "target": {"blob": f"{disk.name}-c.vhd"}}
    run = platform.api("POST", f"/disks/{disk.name}/restores", body).json()["id"]
    while platform.api("GET", f"/runs/{run}").json()["phase"] not in ("preparing", "copying"):
        pass
    assert platform.api("POST", f"/runs/{run}/cancel").status_code == 202
    ended = platform.wait(run)

    assert (ended["state"], ended["error"]["code"]) == ("Canceled", "Canceled")
    assert machines.source(disk.name, 0) == disk.blob.url
    assert not disk.service.get_blob_client("vhds", f"{disk.name}-c.vhd").exists()
    with platform.blobs(calm.backup) as client:
        heads = [
            one.name
            for one in client.get_container_client(platform.settings["HEADS_CONTAINER"]).list_blobs(
                name_starts_with=f"{disk.name}/restore-"
            )
        ]
    assert heads == []
    assert len(disk.points()) == 2
    disk.back_up()
    disk.check_every_point()


def test_a_repeated_request_is_one_restore(attached, platform):
    headers = {"Repeatability-Request-ID": "7c9e6679-7425-40de-944b-e07fc1f90ae8"}
    path = f"/disks/{attached.name}/restores"
    first = platform.api("POST", path, {"repoint": True}, headers=headers)
    again = platform.api("POST", path, {"repoint": True}, headers=headers)
    assert platform.wait(first.json()["id"])["state"] == "Succeeded"
    late = platform.api("POST", path, {"repoint": True}, headers=headers)
    other = platform.api("POST", path, {"repoint": False}, headers=headers)

    assert (first.status_code, again.status_code, late.status_code) == (202, 202, 202)
    assert {one.json()["id"] for one in (first, again, late)} == {first.json()["id"]}
    assert (other.status_code, other.json()["error"]["code"]) == (409, "RepeatabilityConflict")
    assert len([point for point in attached.points() if point["kind"] == "restored"]) == 1


def test_a_restore_waits_for_a_backup_and_says_so(attached, platform, machines, calm, rng):
    """The new disk is made during the backup; the machine gets it after the backup has ended; both end well."""
    disk = attached
    disk.write(0, rng.randbytes(9 * MIB))
    calm.faults({"verb": "PUT page-from-url", "url": "heads", "delayMs": 2500, "times": 1})
    backup = platform.api("POST", f"/disks/{disk.name}/backups").json()["id"]
    while platform.api("GET", f"/runs/{backup}").json()["phase"] not in ("planning", "copying"):
        pass
    run = platform.api("POST", f"/disks/{disk.name}/restores", {"repoint": True}).json()["id"]
    seen = []
    ended = platform.wait(run, seen=lambda shown: seen.append((shown["phase"], shown["restore"]["needsAttention"])))

    assert platform.wait(backup)["state"] == ended["state"] == "Succeeded"
    assert any(phase == "queued" and backup in (words or "") for phase, words in seen)
    assert machines.source(disk.name, 0) == ended["restore"]["target"]


def test_restored_disks_by_copy_blob(calm, machines, tmp_path, name, rng):
    """With FULL_COPY=blob the service itself copies both disks; the machine's disk and the next increment are right."""
    settings = {"FULL_COPY": "blob", "CATALOGUE_TABLE": "blobrestore", "BACKUP_SCHEDULE": EVERY_SECOND}
    with Platform(tmp_path, storage=calm, machines=machines, settings=settings) as platform:
        disk = Disk(platform, name, 8 * MIB).protect()
        machines.make(name, data={0: platform.disk_url(f"{name}.vhd")})
        disk.lease = machines.lease(platform.disk_url(f"{name}.vhd"))
        disk.disturb(rng, 8)
        disk.back_up()
        calm.switch(copies={"mode": "timed", "pendingFromBytes": 1, "pendingMs": 400})
        run = platform.restore(name, {"repoint": True, "machine": {"vm": machine_id(name), "lun": 0}})

        assert run["state"] == "Succeeded", run
        assert calm.counts()["PUT copy"]["requests"] >= 2
        disk.moved(machines.source(name, 0))
        disk.lease = machines.lease(disk.blob.url)
        disk.moments[run["restorePoints"][0]] = disk.read()
        disk.content = bytearray(disk.read())
        disk.disturb(rng, 3)
        assert disk.back_up()["kind"] == "incremental"
        disk.check_every_point()
        machines.delete(name)
        disk.service.close()


def test_a_streamed_restore_to_another_account_is_followed_by_increments(calm, machines, tmp_path, name, rng):
    """COPY_MODE is stream, and the target, in another account of the allow-list, is adopted by hand."""
    settings = {
        "COPY_MODE": "stream", "CATALOGUE_TABLE": "elsewhere", "BACKUP_SCHEDULE": EVERY_SECOND,
        "SOURCE_ACCOUNTS": f"{calm.source.blobs} {calm.state.blobs}",
    }  # fmt: skip
    with (
        Platform(tmp_path, storage=calm, machines=machines, settings=settings) as platform,
        platform.blobs(calm.state) as other,
    ):
        other.create_container(name)
        disk = Disk(platform, name, 8 * MIB).protect()
        disk.disturb(rng, 8)
        disk.back_up()
        point = disk.points()[0]
        target = {"account": calm.state.blobs, "container": name, "blob": "back.vhd"}
        run = platform.restore(name, {"target": target, "adopt": True})

        assert run["state"] == "Succeeded", run
        assert run["bytesStreamed"] == run["bytesDone"]
        restored = other.get_blob_client(name, "back.vhd")
        assert restored.download_blob().readall() == disk.moments[point["id"]]
        restored.upload_page(b"\7" * PAGE, 0, PAGE)
        disk.content = bytearray(restored.download_blob().readall())
        disk.moments[run["restorePoints"][0]] = disk.moments[point["id"]]
        assert disk.back_up()["kind"] == "incremental"
        disk.check_every_point()
        disk.service.close()


def test_a_point_is_restored_with_the_source_and_the_registration_gone(attached, platform, calm, machines, name):
    """The disk blob is deleted, and the rows are lost and rebuilt: with a named point and target the bytes are equal."""
    disk = attached
    point = disk.points()[0]
    machines.delete(disk.name)
    disk.blob.delete_blob(delete_snapshots="include")
    assert platform.api("DELETE", f"/disks/{disk.name}").ok
    run = platform.restore(disk.name, {"restorePoint": point["id"], "target": {"blob": f"{name}-back.vhd"}})

    assert run["state"] == "Succeeded", run
    restored = disk.service.get_blob_client("vhds", f"{name}-back.vhd")
    assert restored.download_blob().readall() == disk.moments[point["id"]]
    machines.make(disk.name)


def test_no_secret_in_a_restore(attached, platform, machines, calm):
    """The histories of all its orchestrations, its rows, answers and logs have no key and no signature."""
    run = platform.restore(attached.name, {"repoint": True})
    platform.host.settled(run["id"])
    found = platform.host.family(run["id"])
    histories = [
        platform.host.call(
            "GET", f"/runtime/webhooks/durabletask/instances/{one['instanceId']}?showHistory=true&showHistoryOutput=true"
        ).text
        for one in found
    ]
    everything = "\n".join([json.dumps(run), platform.host.log.read_text(), str(dump(calm, platform)), *histories])

    named = {one["instanceId"].removeprefix(run["id"]): one["name"] for one in found if one["instanceId"].startswith(run["id"])}
    assert named == {"": "restore_disk", "~d1": "deliver_disk", "~h1": "copy_image"}
    assert {one["name"] for one in found} - set(named.values()) == {"wait_for_disk", "repoint_machine"}
    assert len(found) == 6, "the copy of the disk is one more copy_image"
    assert all(len(text) < 64 * 1024 for text in histories)
    for account in (calm.source, calm.backup, calm.state, calm.host):
        assert account.key not in everything
    assert not re.search(r"sig=(?!REDACTED)[A-Za-z0-9%+/]{20}", everything)
    status = next(one for one in found if one["instanceId"] == run["id"])["customStatus"]
    assert (status["percent"], status["state"]) == (100, "Succeeded")
    assert "uses the new disk" in status["end"]
