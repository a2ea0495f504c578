"""An upgrade in the middle of a run: the old code is stopped, and newer code with renamed steps continues with the same hub."""

from __future__ import annotations

import json
import shutil

import pytest

from devhost.platform import REPOSITORY, Platform, awaited
from tests.disk import PAGE, Disk

pytestmark = pytest.mark.development_host

MIB = 1024 * 1024
RENAMED = {
    "backup.py": ('COMMIT_POINT = Step("commit_point", CommitPoint, CommitResult)', "commit_point", "commit_restore_point"),
    "restore.py": (
        'ADOPT_HEAD = Step("adopt_head", AdoptHead, OpenResult, _adopting)',
        "adopt_head",
        "adopt_backup_blob",
    ),
}
"""In each file of steps: a step as it is declared, its name, and what the newer version calls it."""


@pytest.fixture(scope="module")
def newer(tmp_path_factory):
    """The next version's code: two steps have other names, and `defaultVersion` is raised."""
    app = tmp_path_factory.mktemp("newer")
    shutil.copy(REPOSITORY / "function_app.py", app)
    shutil.copytree(REPOSITORY / "backup_core", app / "backup_core", ignore=shutil.ignore_patterns("__pycache__"))
    host = json.loads((REPOSITORY / "host.json").read_text())
    version = host["extensions"]["durableTask"]["defaultVersion"]
    host["extensions"]["durableTask"]["defaultVersion"] = str(int(version) + 1)
    (app / "host.json").write_text(json.dumps(host))
    for name, (declared, former, present) in RENAMED.items():
        file = app / "backup_core" / "steps" / name
        text = file.read_text()
        assert declared in text
        renamed = declared.replace(f'"{former}"', f'"{present}"').removesuffix(")") + f', former=(("{version}", "{former}"),))'
        file.write_text(text.replace(declared, renamed))
    return app


def called(platform, instance):
    """The activities that the instance's history records as completed."""
    path = f"/runtime/webhooks/durabletask/instances/{instance}"
    shown = platform.host.call("GET", path, params={"showHistory": "true"}).json()
    return [one["FunctionName"] for one in shown["historyEvents"] if one["EventType"] == "TaskCompleted"]


def upgrade_at(platform, step, newer):
    """Stop the old code once the answer of a step is delayed; start the newer code."""
    awaited(lambda: not platform.host.rules()[0]["times"], f"the answer of {step} is delayed")
    platform.host.stop()
    platform.host.deploy(newer)
    platform.host.start()


def delay_answer(platform, step):
    """Delay the answer of a step's next call: the orchestration waits there."""
    platform.host.faults({"fault": "holdAnswer", "name": step, "times": 1, "seconds": 3})


BACKUP = [
    "begin_backup",
    "take_source_snapshot",
    "open_head",
    "verify_head",
    "take_backup_snapshot",
    "commit_point",
    "finish_run",
]
RESTORE = ["begin_restore", "open_image", "own_disk", "seal_image", "adopt_head", "commit_point", "finish_restore"]


def some(rng, steps):
    """The renamed steps, and another step of the seed's choice."""
    renamed = [former for _, former, _ in RENAMED.values() if former in steps]
    return [*renamed, rng.choice([step for step in steps if step not in renamed])]


def test_a_backup_continues_under_newer_code(calm, tmp_path, rng, newer):
    """An upgrade at a renamed step, or at another, leads to one point, byte for byte. Later backups call a renamed step by its new name."""
    for number, step in enumerate(some(rng, BACKUP)):
        settings = {"CATALOGUE_TABLE": f"upgrade{number}"}
        with Platform(tmp_path / step, storage=calm, settings=settings) as platform:
            disk = Disk(platform, f"upgraded{number}", 2 * MIB).protect()
            disk.disturb(rng, 10)
            content = bytes(disk.content)
            delay_answer(platform, step)
            run = platform.api("POST", f"/disks/{disk.name}/backups").json()["id"]
            upgrade_at(platform, step, newer)
            ended = platform.wait(run)
            assert (ended["state"], ended["retries"]) == ("Succeeded", 0), (step, ended)
            disk.moments[ended["restorePoints"][0]] = content
            platform.host.settled(run)
            assert "commit_point" in called(platform, run)

            disk.write(0, b"\1" * PAGE)
            after = disk.back_up()
            assert after["kind"] == "incremental"
            platform.host.settled(after["id"])
            assert {"commit_point", "commit_restore_point"} & set(called(platform, after["id"])) == {"commit_restore_point"}
            disk.check_every_point()
            disk.service.close()


def test_a_restore_continues_under_newer_code(calm, machines, tmp_path, rng, newer):
    """An upgrade at a renamed step, or at another, leaves the point's bytes in the machine, and backups continue as increments."""
    for number, step in enumerate(some(rng, RESTORE)):
        name = f"reupgraded{number}"
        settings = {"CATALOGUE_TABLE": f"reupgrade{number}"}
        with Platform(tmp_path / step, storage=calm, machines=machines, settings=settings) as platform:
            disk = Disk(platform, name, 2 * MIB)
            vm = machines.make(name, data={0: platform.disk_url(f"{name}.vhd")})
            platform.protect(name, f"{name}.vhd", machine={"vm": vm, "lun": 0})
            disk.lease = machines.lease(disk.blob.url)
            disk.disturb(rng, 10)
            content = bytes(disk.content)
            disk.back_up()
            disk.disturb(rng, 3)
            platform.host.settled(f"{name}.")
            delay_answer(platform, step)
            run = platform.api("POST", f"/disks/{name}/restores", {"repoint": True}).json()["id"]
            upgrade_at(platform, step, newer)
            ended = platform.wait(run)
            assert (ended["state"], ended["retries"]) == ("Succeeded", 0), (step, ended)
            url = machines.source(name, 0)
            assert url == ended["restore"]["target"]
            disk.moved(url)
            assert disk.read() == content
            disk.content, disk.lease = bytearray(content), machines.lease(url)
            disk.moments[ended["restorePoints"][0]] = content
            disk.write(0, b"\1" * PAGE)
            assert disk.back_up()["kind"] == "incremental"
            disk.check_every_point()
            machines.delete(name)
            disk.service.close()
