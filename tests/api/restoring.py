"""Restore requests, and helpers that the tests of restores share."""

from __future__ import annotations

import json

from backup_core.api import restores
from backup_core.api.context import respond
from backup_core.api.http import Request
from backup_core.domain.managed import ManagedDisk
from backup_core.domain.naming import managed_disk_id
from backup_core.domain.repoint import MachineDisk
from tests.scene import VM

MACHINE = {"vm": VM, "lun": 0}


def give_managed_disk(scene):
    """Attach a managed disk to the machine at LUN 0, and make the backups contain a fixed VHD."""
    disk = managed_disk_id(VM, "old")
    scene.machines.disks[disk] = ManagedDisk(disk, "Succeeded", "", 512)
    scene.machines.machines.clear()
    scene.machines.add(VM, MachineDisk("old", disk, managed=True, lun=0))


class Starts:
    def __init__(self):
        self.requests = []

    async def __call__(self, name, instance, request):
        self.requests.append((name, instance, request))


async def post(scene, body=None, *, key="", disk="vm", start=None):
    """The answer to a request for a restore: status, body, headers."""
    headers = {"repeatability-request-id": key} if key else {}
    content = body if isinstance(body, bytes) else json.dumps(body or {}).encode()
    request = Request("https://app.test/api", {"disk": disk}, {}, content, headers, start=start or Starts())
    answer = await respond(scene.api(), restores.post_restore, request)
    return answer.status, json.loads(answer.body), answer.headers


async def refused(scene, body, status, code, **options):
    """The error of a refused request; asserts that nothing was changed and nothing started."""
    before, start = scene.dump(with_runs=True), Starts()
    answer = await post(scene, body, start=start, **options)

    assert (answer[0], answer[1].get("error", {}).get("code")) == (status, code), answer[1]
    assert scene.dump(with_runs=True) == before
    assert start.requests == []
    return answer[1]["error"]
