"""Managed disks as sources, through the real function_app.py, compared byte for byte with a running machine's writes."""

from __future__ import annotations

import re

import pytest

from devhost.platform import awaited
from tests.disk import PAGE, ManagedDisk, dump

MIB = 1024 * 1024


@pytest.fixture
def managed(platform, machines, name):
    made = ManagedDisk(platform, name, 16 * MIB)
    yield made.protect()
    made.blob.close()


def test_a_managed_disk_of_a_running_machine(managed, platform, calm):
    """A full backup and an increment equal the disk of their moment; then nothing is open, and one snapshot is left."""
    managed.write(0, b"\1" * MIB)
    full = managed.back_up()
    managed.write(5 * MIB, b"\2" * 8 * PAGE)
    increment = managed.back_up()

    assert (full["kind"], increment["kind"]) == ("full", "incremental")
    assert increment["bytesTotal"] == 8 * PAGE
    managed.check_every_point()
    assert [one["properties"]["diskState"] for one in managed.snapshots()] == ["Unattached"]
    assert platform.api("GET", f"/disks/{managed.name}").json()["sourceKind"] == "managedDisk"


@pytest.mark.parametrize(
    ("kind", "footer", "host"),
    [
        ("writes", "constant", "platform"),
        ("writes", "differs", "streaming"),
        ("content", "differs", "platform"),
        ("content", "constant", "streaming"),
    ],
)
def test_seeded_rounds_of_random_changes(request, machines, calm, rng, name, kind, footer, host):
    """Every kept restore point is the disk of its moment, byte for byte; there are never more than two snapshots of it."""
    calm.switch(diff=kind)
    machines.switch(footer=footer)
    disk = ManagedDisk(request.getfixturevalue(host), name, 16 * MIB).protect()
    disk.disturb(rng, 20)
    for round_ in range(4):
        run = disk.back_up(full=round_ == 2)
        assert run["kind"] == ("full" if round_ in (0, 2) else "incremental")
        assert run["bytesStreamed"] == (run["bytesTotal"] if host == "streaming" else 0)
        assert [one["properties"]["diskState"] for one in disk.snapshots()] == ["Unattached"]
        disk.disturb(rng, rng.randrange(1, 12))

    disk.check_every_point()
    disk.blob.close()


def test_an_unwritten_disk_transfers_nothing(managed, calm):
    """The backup takes two snapshots, two grants and as many revokes at most."""
    managed.back_up()
    calm.reset()
    run = managed.back_up()

    assert (run["kind"], run["bytesTotal"], run["requestsTotal"]) == ("incremental", 0, 0)
    assert not {"PUT page", "PUT page-from-url", "PUT clear"} & set(calm.counts())
    managed.check_every_point()


@pytest.mark.parametrize("footer", ["constant", "differs"])
def test_growth(managed, machines, footer):
    machines.switch(footer=footer)
    managed.write(0, b"\1" * PAGE)
    managed.back_up()
    managed.grow(20 * MIB)
    managed.write(18 * MIB, b"\7" * MIB)
    run = managed.back_up()

    assert run["kind"] == "incremental"
    managed.check_every_point()


def test_a_new_disk_of_the_same_name_gets_a_full_backup(managed, platform, machines):
    """The full backup begins a new generation; the former disk's point stays as it is, and its snapshot is deleted."""
    managed.write(0, b"\1" * MIB)
    managed.back_up()
    platform.managed_disk(managed.name, data_bytes=16 * MIB)
    managed.blob = platform.managed_content(managed.id)
    managed.content = bytearray(managed.read())
    managed.write(MIB, b"\2" * MIB)
    run = managed.back_up()

    assert run["kind"] == "full"
    assert "made anew" in run["reason"]
    managed.check_every_point()
    assert len(managed.snapshots()) == 1


def test_a_snapshot_that_is_filled_in_the_background(platform, machines, calm, name):
    """The run waits by durable timers, and reads nothing before."""
    machines.switch(fill_step=0)
    disk = ManagedDisk(platform, name, 16 * MIB, sku={"name": "PremiumV2_LRS"}).protect()
    disk.write(0, b"\1" * MIB)
    run = platform.api("POST", f"/disks/{name}/backups").json()["id"]

    def waits():
        return [one for one in platform.host.family(run) if one["name"] == "wait_for_snapshot"]

    awaited(waits, "the wait for the snapshot")
    (snapshot,) = disk.snapshots()
    assert (snapshot["properties"]["completionPercent"], snapshot["properties"]["diskState"]) == (0, "Unattached")
    machines.fill(snapshot["id"], 100)
    assert platform.wait(run)["state"] == "Succeeded"
    disk.moments[disk.points()[0]["id"]] = bytes(disk.content)

    disk.check_every_point()
    assert len(disk.snapshots()) == 1
    disk.blob.close()


def test_a_private_disk_is_streamed(platform, machines, calm, name):
    disk = ManagedDisk(platform, name, 16 * MIB, properties={"networkAccessPolicy": "AllowPrivate"}).protect()
    disk.write(0, b"\1" * MIB)
    run = disk.back_up()

    assert run["bytesStreamed"] == run["bytesTotal"] == MIB + PAGE
    disk.check_every_point()


def test_a_point_is_restored_to_a_page_blob(managed, platform, calm):
    """The page blob is a fixed VHD, equal to the disk of that moment; the managed disk and its machine are not touched."""
    managed.write(0, b"\1" * MIB)
    managed.back_up()
    content = bytes(managed.content)
    managed.write(0, b"\2" * MIB)
    point = managed.points()[0]["id"]
    target = {"account": platform.storage.source.blobs, "container": "vhds"}
    run = platform.restore(managed.name, {"restorePoint": point, "target": target})

    assert run["state"] == "Succeeded", run
    with platform.blobs(platform.storage.source) as client:
        name = run["restore"]["target"].rpartition("/")[2]
        assert client.get_blob_client("vhds", name).download_blob().readall() == content
    assert managed.read() == bytes(managed.content)
    assert platform.machines.source(managed.name, 0) == managed.id
    managed.write(4 * MIB, b"\3" * MIB)
    assert managed.back_up()["kind"] == "incremental"
    managed.check_every_point()


def test_no_address_of_an_export_is_anywhere_but_in_its_request(managed, platform, calm, machines):
    """No history, row, document, metadata, tag, answer or log has it: of good runs, and of runs whose read is refused."""
    managed.write(0, b"\1" * MIB)
    managed.back_up()
    managed.write(0, b"\2" * MIB)
    calm.faults({"verb": "GET pagelist", "url": "/md-local/", "status": 403, "code": "AuthorizationFailure", "times": 99})
    answer = platform.api("POST", f"/disks/{managed.name}/backups")
    failed = platform.wait(answer.json()["id"])
    calm.reset()
    answers = [
        platform.api("GET", path).text
        for path in (f"/disks/{managed.name}", f"/runs/{failed['id']}", f"/disks/{managed.name}/restore-points", "/runs")
    ]
    histories = [
        platform.host.call(
            "GET", f"/runtime/webhooks/durabletask/instances/{one['instanceId']}?showHistory=true&showHistoryOutput=true"
        ).text
        for one in platform.host.settled(managed.name)
    ]
    everything = "\n".join(
        [*answers, *histories, platform.host.log.read_text(), str(dump(calm, platform)), str(managed.snapshots())]
    )

    assert (failed["state"], failed["error"]["code"]) == ("Failed", "AccessDenied")
    assert [one["properties"]["diskState"] for one in managed.snapshots()] == ["Unattached"] * 2
    assert calm.exports.key not in everything
    assert "abcd?" not in everything
    assert not re.search(r"sig=(?!REDACTED)[A-Za-z0-9%+/]{20}", everything)
    assert len(histories) >= 2


def test_a_broken_managed_disk_does_not_stop_another(managed, platform, machines, calm):
    """The broken disk fails under its name, the other disk gets its point, and nothing stays open."""
    broken = ManagedDisk(platform, f"{managed.name}b", 16 * MIB).protect()
    managed.write(0, b"\1" * MIB)
    machines.faults(
        {"method": "PUT", "path": f"pk-{broken.name}", "status": 403, "code": "RequestDisallowedByPolicy", "times": 99}
    )
    answer = platform.api("POST", f"/disks/{broken.name}/backups")
    managed.back_up()
    failed = platform.wait(answer.json()["id"])

    assert (failed["state"], failed["error"]["code"]) == ("Failed", "ManagedDiskRefused")
    assert [one["properties"]["diskState"] for one in managed.snapshots()] == ["Unattached"]
    assert "policy" in failed["error"]["message"]
    assert broken.snapshots() == []
    managed.check_every_point()
    machines.reset()
    broken.back_up()
    broken.check_every_point()
    broken.blob.close()
