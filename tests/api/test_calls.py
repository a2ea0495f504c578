"""The calls an operator makes, over HTTP."""

from __future__ import annotations

import requests


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
    calm.faults({"verb": "PUT page", "delayMs": 1500, "times": 1})
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


def test_health_tells_the_truth(platform, calm):
    """Green when both stores answer; red, and which, when one does not."""
    assert platform.api("GET", "/health").json() == {"status": "ok", "checks": {"catalogue": "ok", "backupAccount": "ok"}}
    calm.faults({"verb": "GET list", "status": 403, "code": "AuthorizationFailure", "times": 99})
    sick = platform.api("GET", "/health")

    assert sick.status_code == requests.codes.service_unavailable
    assert sick.json() == {"status": "unhealthy", "checks": {"catalogue": "ok", "backupAccount": "failed"}}


def test_functions_need_a_key_but_health_does_not(platform):
    """In the cloud: every route has the function level, health alone is anonymous."""
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
    assert len(levels) == 5
