"""The events that the app writes to its log, as Application Insights gets them from the real host."""

from __future__ import annotations

import json

from devhost.platform import awaited
from tests.disk import PAGE
from tests.infra import kql
from tests.infra.test_telemetry import QUERIES, raised


def event_of(platform, wanted):
    """The newest event that satisfies `wanted`, once there is one: a watch or a night reports the disks of all tests."""
    found = awaited(lambda: [one for one in platform.host.events() if wanted(one)], "an event", timeout_seconds=180)
    return found[-1]


def test_a_run_has_a_line_per_phase_and_one_for_its_end(disk, platform):
    """There is one line each, however often the run's orchestrator was replayed."""
    disk.write(0, b"\1" * PAGE)
    run = disk.back_up()

    events = [one for one in platform.host.events() if one.get("run") == run["id"]]
    assert [one["phase"] for one in events if one["event"] == "phase"] == [
        "waiting", "preparing", "snapshot", "planning", "copying", "verifying", "committing", "cleaning",
    ]  # fmt: skip
    ends = [one for one in events if one["event"] == "run"]
    assert [(one["state"], one["disk"], one["kind"], one["bytes_done"]) for one in ends] == [
        ("Succeeded", disk.name, "full", PAGE)
    ]


def test_the_watch_reports_the_state_of_each_disk(disk, platform):
    """By its own timer the watch reports the disk as the API shows it, and then its own end."""
    disk.back_up()
    platform.host.fire("watch_disks")

    seen = event_of(platform, lambda one: one["event"] == "disk" and one["disk"] == disk.name)
    fleet = event_of(platform, lambda one: one["event"] == "fleet")
    shown = platform.api("GET", f"/disks/{disk.name}").json()
    assert (seen["protection"], seen["newest_point"]) == (shown["protection"], shown["newestRestorePoint"])
    assert seen["last_status"] == "Succeeded"
    assert fleet["disks"] >= 1


def test_workbook_and_alerts_read_the_fields_that_runs_really_log(disk, calm, platform):
    """Every field that a query names is in the lines of backups, a watch and a night.

    Alerts fire for a failed run, a failed cleaning and a lost point, and not for a good run.
    """
    disk.write(0, b"\1" * PAGE)
    good = disk.back_up()["id"]
    calm.faults({"verb": "DELETE blob", "url": disk.name, "status": 409, "code": "BlobImmutableDueToPolicy", "times": 1})
    warned = disk.back_up()["id"]
    calm.faults()
    with platform.blobs(platform.storage.backup) as client:
        first = disk.points()[-1]
        client.get_blob_client(platform.settings["HEADS_CONTAINER"], first["blob"], snapshot=first["snapshot"]).delete_blob()
    disk.blob.delete_blob(delete_snapshots="include")
    failed = platform.wait(platform.api("POST", f"/disks/{disk.name}/backups").json()["id"])
    platform.host.fire("watch_disks")
    seen = event_of(
        platform, lambda one: one["event"] == "disk" and one["disk"] == disk.name and one["last_status"] == "Failed"
    )
    event_of(platform, lambda one: one["event"] == "fleet")
    platform.host.fire("housekeeping")
    lost = event_of(platform, lambda one: one["event"] == "lost" and one["disk"] == disk.name)
    warning = event_of(platform, lambda one: one["event"] == "warning" and one["run"] == warned)

    events = platform.host.events()
    for name, query in QUERIES:
        kind = kql.event(query)
        lines = [one for one in events if one["event"] == kind]
        assert lines or kind == "cleanup", f"{name}: no event of kind {kind}"  # a clean night has nothing to report
        for line in lines:
            assert kql.fields(query) <= set(line), name
    assert raised("warning", warning) == {"run-warning"}
    assert raised("lost", lost) == {"points-lost"}
    assert all(len(json.dumps(one)) < 1024 for one in events if one.get("state") != "Failed"), (
        "the handbook's cost model says so"
    )
    ends = {one["run"]: one for one in events if one["event"] == "run"}
    assert raised("run", ends[good]) == set()
    assert failed["state"] == "Failed"
    assert raised("run", ends[failed["id"]]) == {"run-failed"}
    assert (ends[failed["id"]]["code"], ends[failed["id"]]["message"]) == (failed["error"]["code"], failed["error"]["message"])
    assert seen["last_code"] == failed["error"]["code"] == "BlobMissing"
