"""The calls an operator makes, over HTTP."""

from __future__ import annotations

import requests

from backup_core import __version__
from backup_core.api.catalogue import HEALTH_PROBE
from backup_core.api.routes import ROUTES
from devhost.platform import awaited


def test_protect_show_change(disk, platform):
    created = platform.api("GET", f"/disks/{disk.name}")
    changed = platform.api(
        "PUT", f"/disks/{disk.name}", {"source": platform.disk_url(disk.blob.blob_name), "description": "web"}
    )

    assert created.status_code == changed.status_code == requests.codes.ok
    assert (changed.json()["description"], changed.json()["created"]) == ("web", created.json()["created"])
    assert created.json()["newestRestorePoint"] is None


def test_a_backup_is_accepted_and_followed(disk, platform):
    """202 with Operation-Location and Retry-After; the run is there at once; its end names the point."""
    accepted = platform.api("POST", f"/disks/{disk.name}/backups")

    assert accepted.status_code == requests.codes.accepted
    location = accepted.headers["Operation-Location"]
    assert location == f"{platform.host.origin}/api/runs/{accepted.json()['id']}"
    assert accepted.headers["Retry-After"].isdigit()
    assert requests.get(location, timeout=10).status_code == requests.codes.ok
    ended = platform.wait(accepted.json()["id"])
    shown = platform.api("GET", f"/disks/{disk.name}").json()
    assert ended["restorePoints"] == [shown["newestRestorePoint"]]
    assert shown["running"] is None


def test_a_second_backup_while_one_runs_is_409_with_its_url(disk, platform, calm):
    disk.write(0, b"\1" * 1024 * 1024)
    calm.faults({"verb": "PUT page-from-url", "delayMs": 1500, "times": 1})
    first = platform.api("POST", f"/disks/{disk.name}/backups").json()["id"]
    while platform.api("GET", f"/runs/{first}").json()["phase"] not in ("copying", "planning", "verifying"):
        pass
    second = platform.api("POST", f"/disks/{disk.name}/backups")

    assert second.status_code == requests.codes.conflict
    assert second.json()["error"]["code"] == "BackupRunning"
    assert second.headers["Location"].endswith(f"/api/runs/{first}")
    assert platform.api("GET", f"/disks/{disk.name}").json()["running"].endswith(first)
    assert platform.wait(first)["state"] == "Succeeded"


def test_restore_points_are_paged_newest_first(disk, platform):
    for _ in range(3):
        disk.back_up()
    everything = [point["id"] for point in disk.points()]
    pages, url = [], f"{platform.host.origin}/api/disks/{disk.name}/restore-points?top=2"
    while url:
        page = requests.get(url, timeout=10).json()
        pages += [point["id"] for point in page["value"]]
        url = page["nextLink"]

    assert pages == everything == sorted(everything, reverse=True)


def test_points_by_id_and_by_time(disk, platform):
    for _ in range(3):
        disk.back_up()
    newest, middle, oldest = disk.points()
    one = platform.api("GET", f"/disks/{disk.name}/restore-points/{middle['id']}").json()
    between = {"from": middle["taken"][:26] + "Z", "to": newest["taken"][:26] + "Z"}

    assert one == middle
    assert platform.api("GET", f"/disks/{disk.name}/restore-points", params=between).json()["value"] == [middle]
    assert oldest["taken"] < middle["taken"] < newest["taken"]


def test_runs_by_disk_state_and_time(disk, platform):
    ran = [disk.back_up()["id"] for _ in range(3)]
    disk.blob.delete_blob(delete_snapshots="include")
    failed = platform.api("POST", f"/disks/{disk.name}/backups").json()["id"]
    platform.wait(failed)

    def listed(**query):
        return [run["id"] for run in platform.api("GET", "/runs", params={"disk": disk.name, **query}).json()["value"]]

    assert set(listed()) == {*ran, failed}
    assert listed(state="Failed") == [failed]
    assert set(listed(state="Succeeded")) == set(ran)
    assert listed(to="2026-01-01T00:00:00Z") == []
    assert set(listed(**{"from": "2026-01-01T00:00:00+00:00"})) == {*ran, failed}
    pages, url = [], f"{platform.host.origin}/api/runs?top=3"
    while url and len(pages) < 2000:
        page = requests.get(url, timeout=20).json()
        pages += [run["id"] for run in page["value"]]
        url = page["nextLink"]
    assert {*ran, failed} <= set(pages), "all disks together, page by page"
    assert len(pages) == len(set(pages))


def test_protection_stops_and_points_stay(disk, platform):
    """DELETE frees the source, refuses backups, keeps the points; PUT takes it up again, with an increment."""
    disk.back_up()
    listed = [one["id"] for one in platform.api("GET", "/disks", params={"top": "1000"}).json()["value"]]
    stopped = platform.api("DELETE", f"/disks/{disk.name}")

    assert disk.name in listed
    assert stopped.json()["protected"] is False
    assert platform.api("DELETE", f"/disks/{disk.name}").status_code == requests.codes.ok
    assert disk.name not in [one["id"] for one in platform.api("GET", "/disks", params={"top": "1000"}).json()["value"]]
    refused = platform.api("POST", f"/disks/{disk.name}/backups")
    assert (refused.status_code, refused.json()["error"]["code"]) == (requests.codes.conflict, "NotProtected")
    assert len(disk.points()) == 1
    disk.protect()
    assert disk.back_up()["kind"] == "incremental"
    disk.check_every_point()


def test_disks_are_paged(disk, platform, name):
    pages, url = [], f"{platform.host.origin}/api/disks?top=1"
    while url:
        page = requests.get(url, timeout=20).json()
        pages += [one["id"] for one in page["value"]]
        url = page["nextLink"]

    assert pages == sorted(set(pages))
    assert disk.name in pages


def test_health_reports_the_state_of_both_stores(platform, calm):
    """Health is ok when both stores answer; otherwise it names the store that does not."""

    def becomes(status):
        """The answer, once health has this status; the last result is cached for some seconds (HEALTH_SECONDS)."""
        awaited(lambda: platform.api("GET", "/health").json()["status"] == status, f"health to be {status}")
        return platform.api("GET", "/health")

    assert becomes("ok").json() == {
        "version": __version__,
        "status": "ok",
        "checks": {"catalogue": "ok", "backupAccount": "ok"},
    }
    calm.faults({"url": HEALTH_PROBE, "status": 403, "code": "AuthorizationFailure", "times": 99})
    sick = becomes("unhealthy")

    assert sick.status_code == requests.codes.service_unavailable
    assert sick.json() == {
        "version": __version__,
        "status": "unhealthy",
        "checks": {"catalogue": "ok", "backupAccount": "failed"},
    }
    calm.reset()
    assert becomes("ok").ok


def test_functions_need_a_key_but_health_does_not(platform):
    """In the cloud every route has the function level; only health is anonymous."""
    import importlib.util  # noqa: PLC0415
    import os  # noqa: PLC0415
    import sys  # noqa: PLC0415

    from devhost.platform import REPOSITORY  # noqa: PLC0415

    before = dict(os.environ)
    os.environ.update(platform.settings)
    try:
        spec = importlib.util.spec_from_file_location("function_app_levels", REPOSITORY / "function_app.py")
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        spec.loader.exec_module(module)
    finally:
        os.environ.clear()
        os.environ.update(before)
    levels = {
        function.get_function_name(): function.get_trigger().auth_level.name
        for function in module.app.get_functions()
        if function.get_trigger().type == "httpTrigger"
    }

    assert levels.pop("health") == "ANONYMOUS"
    assert set(levels.values()) == {"FUNCTION"}
    assert len(levels) == len(ROUTES) - 1


def test_a_run_is_canceled_while_it_copies(disk, platform, calm):
    """The run ends as Canceled, with an error message; the next run commits a correct point."""
    disk.write(0, b"\1" * 9 * 1024 * 1024)
    disk.back_up()
    disk.write(0, b"\2" * 9 * 1024 * 1024)
    calm.faults({"verb": "PUT page-from-url", "delayMs": 1500, "times": 1})
    run = platform.api("POST", f"/disks/{disk.name}/backups").json()["id"]
    while platform.api("GET", f"/runs/{run}").json()["phase"] not in ("planning", "copying"):
        pass
    request = platform.api("POST", f"/runs/{run}/cancel")
    ended = platform.wait(run)

    assert request.status_code == requests.codes.accepted
    assert request.json()["cancelRequested"]
    assert (ended["state"], ended["error"]["code"], ended["restorePoints"]) == ("Canceled", "Canceled", [])
    assert platform.api("POST", f"/runs/{run}/cancel").status_code == requests.codes.ok
    assert len(disk.points()) == 1
    disk.back_up()
    disk.check_every_point()


def test_a_repeated_request_is_one_run(disk, platform):
    headers = {"Repeatability-Request-ID": "7c9e6679-7425-40de-944b-e07fc1f90ae7"}
    first = platform.api("POST", f"/disks/{disk.name}/backups", headers=headers)
    again = platform.api("POST", f"/disks/{disk.name}/backups", headers=headers)
    platform.wait(first.json()["id"])
    other = platform.api("POST", f"/disks/{disk.name}/backups", {"kind": "full"}, headers=headers)

    assert first.status_code == again.status_code == requests.codes.accepted
    assert first.json()["id"] == again.json()["id"]
    assert (other.status_code, other.json()["error"]["code"]) == (requests.codes.conflict, "RepeatabilityConflict")
    assert len(disk.points()) == 1


def test_the_first_backup_on_registration(platform, calm, name):
    from tests.disk import Disk  # noqa: PLC0415

    disk = Disk(platform, name, 1024 * 1024)
    disk.write(0, b"\1" * 512)
    answer = platform.api("PUT", f"/disks/{name}", {"source": platform.disk_url(f"{name}.vhd"), "firstBackup": True})
    ended = platform.wait(answer.headers["Operation-Location"].rpartition("/")[2])

    assert (answer.status_code, ended["state"]) == (requests.codes.created, "Succeeded")
    shown = platform.api("GET", f"/disks/{name}").json()
    assert (shown["lastStatus"], shown["newestRestorePoint"]) == ("Succeeded", ended["restorePoints"][0])
    disk.service.close()


def test_the_catalogue_comes_back_from_the_blobs(disk, platform, calm):
    """All rows of a disk are deleted from the table; two calls later they are there as they were, and an increment follows."""
    from azure.core.credentials import AzureNamedKeyCredential  # noqa: PLC0415
    from azure.data.tables import TableClient  # noqa: PLC0415

    for number in range(3):
        disk.write(number * 1024 * 1024, bytes([number + 1]) * 1024 * 1024)
        disk.back_up()
    credential = AzureNamedKeyCredential(calm.state.name, calm.state.key)
    with TableClient(calm.state.tables, "pagekeeper", credential=credential) as table:

        def rows():
            found = table.query_entities("PartitionKey eq @disk", parameters={"disk": disk.name})
            return {row["RowKey"]: dict(row) for row in found if not row["RowKey"].startswith(("run!", "window!"))}

        while "owner" in rows()["head"]:
            pass  # a run's row ends before the run releases the disk
        before = rows()
        for key in before:
            table.delete_entity(disk.name, key)
        assert disk_is_unknown(platform, disk)
        dry = platform.rebuild()
        assert rows() == {}
        done = platform.rebuild(dryRun=False, planHash=dry["planHash"])

        assert rows() == before
    assert [one["disk"] for one in done["value"] if one["disk"] == disk.name] == [disk.name]
    done["value"] = [one for one in done["value"] if one["disk"] == disk.name]
    assert len(done["value"][0]["adopted"]) == 3
    assert disk.back_up()["kind"] == "incremental"
    disk.check_every_point()


def disk_is_unknown(platform, disk):
    return platform.api("GET", f"/disks/{disk.name}").status_code == requests.codes.not_found


def test_a_timer_run_during_a_backup_is_skipped_and_never_succeeded(calm, tmp_path, name):
    """The window's run is in the list as Skipped, names the run that was in progress, and makes no restore point."""
    from devhost.platform import EVERY_SECOND, Platform  # noqa: PLC0415
    from tests.disk import Disk  # noqa: PLC0415

    # A platform of its own: the timer backs up every disk there is.
    settings = {"BACKUP_SCHEDULE": EVERY_SECOND, "CATALOGUE_TABLE": "skipped"}
    with Platform(tmp_path, storage=calm, settings=settings) as platform:
        disk = Disk(platform, name, 1024 * 1024).protect()
        disk.write(0, b"\1" * 1024)
        calm.faults({"verb": "PUT page-from-url", "delayMs": 2500, "times": 1})
        in_progress = platform.api("POST", f"/disks/{name}/backups").json()["id"]
        while platform.api("GET", f"/runs/{in_progress}").json()["phase"] not in ("planning", "copying"):
            pass
        platform.host.fire("scheduled_backup")
        while not (skipped := platform.api("GET", "/runs", params={"disk": name, "state": "Skipped"}).json()["value"]):
            pass

        assert platform.wait(in_progress)["state"] == "Succeeded"
        assert [(one["trigger"], one["restorePoints"]) for one in skipped] == [("timer", [])]
        assert in_progress in skipped[0]["reason"]
        assert len(disk.points()) == 1
        assert platform.api("GET", f"/disks/{name}").json()["lastStatus"] == "Succeeded"
        disk.service.close()
