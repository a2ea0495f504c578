"""The cost of a managed disk's backup, compared with a page blob's, and what a cancel or lost answers leave behind."""

from __future__ import annotations

from collections import Counter

import pytest

from backup_core.domain.managed_snapshots import snapshot_id
from backup_core.domain.naming import point_id
from devhost.platform import EVERY_SECOND, Platform, awaited
from tests.conftest import SEED
from tests.disk import PAGE, Disk, ManagedDisk

MIB = 1024 * 1024
HISTORY_BYTES_MAX = 64 * 1024


@pytest.fixture
def managed(platform, machines, name):
    made = ManagedDisk(platform, name, 16 * MIB)
    yield made.protect()
    made.close()


def histories(host, run):
    """The stored history of each instance of the run."""
    query = "?showHistory=true&showHistoryOutput=true"
    found = host.family(run)
    return [host.call("GET", f"/runtime/webhooks/durabletask/instances/{one['instanceId']}{query}").text for one in found]


def closed(disk):
    return {one["properties"]["diskState"] for one in disk.snapshots()} <= {"Unattached"}


def test_an_increments_requests_are_those_of_a_page_blob(managed, platform, machines, calm):
    """An increment sends a page blob's requests to the blobs, and few to Resource Manager.

    They are two snapshot changes, two grants and two ends of access at most.
    """
    blob = Disk(platform, f"{managed.name}b", 16 * MIB).protect()
    sent = {}
    for disk in (managed, blob):
        disk.write(0, b"\1" * 9 * MIB)
        disk.write(12 * MIB, b"\2" * MIB)
        disk.back_up()
        disk.write(0, b"\3" * 9 * MIB)
        disk.clear(12 * MIB, MIB)
        machines.reset()
        calm.reset()
        run = disk.back_up()
        counts = calm.counts()
        sent[disk] = {verb: counts.get(verb, {}).get("requests", 0) for verb in ("PUT page-from-url", "PUT page", "PUT clear")}
        assert (run["kind"], run["bytesTotal"]) == ("incremental", 9 * MIB)
        if disk is managed:
            requests = machines.control("GET")["requests"]
        disk.check_every_point()

    assert sent[managed] == sent[blob] == {"PUT page-from-url": 3, "PUT page": 0, "PUT clear": 1}
    of_snapshots = [one for one in requests if f"/pk-{managed.name}-" in one]
    changes = Counter(one.partition(" ")[0] for one in of_snapshots if not one.endswith("Access"))
    ends = Counter(one.rpartition("/")[2] for one in of_snapshots if one.endswith("Access"))
    assert (changes["PUT"], changes["DELETE"]) == (1, 1)
    assert (ends["beginGetAccess"], ends["endGetAccess"]) == (2, 2)
    assert [one for one in requests if "Access" in one and one not in of_snapshots] == [], "access to a disk in use"
    assert closed(managed)
    blob.close()


@pytest.mark.parametrize("supported", ["true", "false"])
def test_more_than_ten_thousand_ranges(calm, machines, tmp_path, name, supported):
    """Ranges are far apart, close together, and cleared; answers have the requested size, or the service's own.

    The histories stay small.
    """
    calm.switch(diff="content", **({} if supported == "true" else {"exports": {"maxresults": "refused"}}))
    own = {"CATALOGUE_TABLE": f"ranges{supported}", "EXPORT_MAXRESULTS": supported, "GAP_RATIO": "1"}
    settings, apart, close, cleared = {"BACKUP_SCHEDULE": EVERY_SECOND, **own}, 1000, 9000, 40
    with Platform(tmp_path, storage=calm, machines=machines, settings=settings) as platform:
        disk = ManagedDisk(platform, name, 18 * MIB).protect()
        disk.write(0, b"\5" * disk.disk_bytes)
        disk.back_up()
        disk.write(0, (b"\6" * PAGE + b"\5" * 15 * PAGE) * apart)
        disk.write(8 * MIB, (b"\6" * PAGE + b"\5" * PAGE) * close)
        for number in range(cleared):
            disk.clear(17 * MIB + number * 8 * PAGE, PAGE)
        run = disk.back_up(timeout_seconds=240)

        assert (run["kind"], run["rangesTotal"]) == ("incremental", apart + close + cleared)
        assert apart / 2 < run["requestsTotal"] < apart + cleared + close / 100, "what is close together is copied along"
        assert max(map(len, histories(platform.host, run["id"]))) < HISTORY_BYTES_MAX
        assert newest(disk) == bytes(disk.content)
        assert closed(disk)
        disk.close()


def newest(disk):
    """The newest restore point's bytes, read in pieces: the emulator sends no whole blob that lies in so many parts."""
    platform, point, piece = disk.platform, disk.points()[0], MIB // 4
    with platform.blobs(platform.storage.backup) as client:
        heads = platform.settings["HEADS_CONTAINER"]
        snapshot = client.get_blob_client(heads, point["blob"], snapshot=point["snapshot"])
        pieces = [snapshot.download_blob(at, min(piece, disk.size - at)).readall() for at in range(0, disk.size, piece)]
    return b"".join(pieces)


SENT = {
    "planning": {"verb": "GET pagelist", "url": "/md-local/"},
    "copying": {"verb": "PUT page-from-url"},
    "verifying": {"verb": "GET blob", "url": "/md-local/", "skip": 2},  # the plan reads both footers
    "committing": {"verb": "PUT snapshot"},
}
"""A request that a run sends in the phase, and not before."""


def canceled_in(disk, phase):
    """Cancel a run while its request of the phase is in progress; return its end."""
    platform, storage = disk.platform, disk.platform.storage
    if phase in SENT:
        storage.faults({**SENT[phase], "delayMs": 1000})
    run = platform.api("POST", f"/disks/{disk.name}/backups").json()["id"]

    def is_there():
        shown = platform.api("GET", f"/runs/{run}").json()
        assert shown["state"] in ("NotStarted", "Running"), f"{shown['state']} without having reached {phase}"
        return not storage.control("GET")["faults"][0]["times"] if phase in SENT else shown["phase"] == phase

    awaited(is_there, f"phase {phase}")
    assert platform.api("POST", f"/runs/{run}/cancel").status_code in (200, 202)
    ended = platform.wait(run)
    platform.host.settled(run)
    return ended


def test_a_cancel_in_every_phase(platform, machines, calm, name):
    """A cancel in any phase leaves nothing open; it is too late once the point is being committed.

    The next backup is an increment. Each point equals the disk at its snapshot's moment, also when a later run finished its
    target.
    """
    disk = ManagedDisk(platform, name, 8 * MIB, sku={"name": "PremiumV2_LRS"}).protect()
    disk.write(0, b"\1" * MIB)
    disk.back_up()
    contents = dict(disk.moments)
    for number, phase in enumerate(("snapshot", *SENT)):
        disk.write(number * MIB, bytes([2 + number]) * 2 * MIB)
        machines.switch(fill_step=0 if phase == "snapshot" else 100)
        ended = canceled_in(disk, phase)
        calm.reset()
        machines.reset()
        for moment in moments(disk) - contents.keys():
            contents[moment] = bytes(disk.content)

        assert bool(ended["restorePoints"]) == (phase == "committing"), (phase, ended)
        assert ended["state"] == "Canceled" or phase == "committing", (phase, ended)
        assert closed(disk), phase
    run = platform.back_up(name)
    platform.host.settled(run["id"])
    for moment in moments(disk) - contents.keys():
        contents[moment] = bytes(disk.content)
    disk.moments |= {point["id"]: contents[point["id"]] for point in disk.points() if point["id"] not in disk.moments}

    assert run["kind"] == "incremental"
    assert closed(disk)
    disk.check_every_point()
    disk.close()


def moments(disk):
    """Ids of the restore points that the disk's snapshots may become."""
    taken = (one["properties"]["timeCreated"] for one in disk.snapshots())
    return {point_id(snapshot_id(one)) for one in taken}


CHANGES = [
    {"method": "PUT", "path": "snapshots/pk-"},
    {"method": "POST", "path": "beginGetAccess"},
    {"method": "POST", "path": "endGetAccess"},
    {"method": "DELETE", "path": "snapshots/pk-"},
]
"""A run's requests to Resource Manager."""


def test_lost_and_late_answers(managed, machines, calm, rng):
    """An increment is right although two changes at Resource Manager, and a put, are answered late or never.

    Nothing stays open. The next run leaves one snapshot, besides those that Azure itself calls failed.
    """
    managed.write(0, b"\1" * 6 * MIB)
    managed.back_up()
    managed.write(MIB, b"\2" * 6 * MIB)
    machines.switch(operation_seconds=0.5)
    lost = rng.sample(CHANGES, 2)
    machines.faults(*({**one, "operation": True, "after": True, "code": "RetryableError"} for one in lost))
    calm.faults({"verb": "PUT page-from-url", "loseReply": True})
    run = managed.back_up()

    details = f"seed {SEED}, lost {lost}: {run}"
    assert run["kind"] == "incremental", details
    assert run["retries"] > 0, details
    left = [*machines.control("GET")["switches"]["faults"], *calm.control("GET")["faults"]]
    assert [one["times"] for one in left] == [0] * 3, details
    assert closed(managed), details
    machines.reset()
    calm.reset()
    managed.write(0, b"\3" * PAGE)
    assert managed.back_up()["bytesTotal"] == PAGE, details
    managed.check_every_point()
    assert closed(managed), details
    assert [one["properties"]["provisioningState"] for one in managed.snapshots()].count("Succeeded") == 1, details
