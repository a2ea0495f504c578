"""PUT of a disk: an error means that nothing was registered; what fails after that is a warning in the answer."""

from __future__ import annotations

import json

import pytest

from backup_core.api import disks
from backup_core.api.context import respond
from backup_core.api.http import Request
from backup_core.domain.errors import AccessDeniedError, RowChangedError, ServiceUnavailableError
from backup_core.domain.naming import registration_name
from tests.scene import Scene


@pytest.fixture
def scene():
    stage = Scene()
    stage.blobs.put(stage.source(), 512)
    stage.blobs.put(stage.source("other"), 512)
    return stage


async def start(*_):
    return None


async def put(scene, disk="vm", source="vm", started=start, **fields):
    body = json.dumps({"source": scene.source(source).url, **fields}).encode()
    answer = await respond(
        scene.api(), disks.put_disk, Request("https://app.test/api", {"disk": disk}, {}, body, {}, start=started)
    )
    return answer.status, json.loads(answer.body)


def failing(error):
    async def refused(*_):
        raise error

    return refused


@pytest.mark.parametrize("call", ["claim_source", "put_registration"])
@pytest.mark.parametrize("known", [False, True])
async def test_an_error_registers_nothing(scene, call, known):
    """An error leaves neither a row, which would list the disk, nor a claim, which would take its source."""
    if known:
        assert (await put(scene))[0] == 201
    before = scene.dump(with_runs=True)
    setattr(scene.catalogue, call, failing(RowChangedError("the row was changed")))
    status, shown = await put(scene, source="other" if known else "vm")

    assert (status, shown["error"]["code"]) == (409, "Conflict")
    assert scene.dump(with_runs=True) == before


async def test_the_claim_of_a_faster_caller_stays(scene):
    """Two calls register one disk with one source at once: the slower one is refused, and takes nothing from the other."""
    write = scene.catalogue.put_registration

    async def overtaken(registration, etag):
        scene.catalogue.put_registration = write
        assert (await put(scene))[0] == 201
        return await write(registration, etag)

    scene.catalogue.put_registration = overtaken
    status, _ = await put(scene)

    assert status == 409
    assert scene.claims() == {scene.source().url: "vm"}


async def test_a_copy_beside_the_backups_that_fails_is_a_warning(scene):
    """When the copy cannot be stored, the disk is protected all the same, with a warning."""
    scene.documents.put = failing(AccessDeniedError("a firewall, with sig=abcdefghijklmnop"))
    status, shown = await put(scene)

    assert (status, shown["protected"]) == (201, True)
    warning = shown["warnings"][-1]
    assert "housekeeping makes the copy" in warning
    assert "AccessDenied" in warning
    assert "abcdefgh" not in warning
    assert registration_name("vm") not in scene.documents.texts


async def test_the_former_source(scene):
    assert (await put(scene))[0] == 201
    scene.catalogue.release_source = failing(ServiceUnavailableError("busy"))
    status, shown = await put(scene, source="other")

    assert (status, shown["source"]) == (200, scene.source("other").url)
    assert "frees the former source" in shown["warnings"][-1]


async def test_the_first_backup(scene):
    """When the first backup cannot be started, its run is shown as failed and the disk is registered."""
    status, shown = await put(scene, firstBackup=True, started=failing(RuntimeError("no extension; code=SECRETSECRETSECRET")))

    assert (status, shown["protected"]) == (201, True)
    assert "no first backup was started; POST /api/disks/vm/backups (RuntimeError" in shown["warnings"][-1]
    assert "SECRET" not in json.dumps(shown)
    assert [run.error.code for run in scene.rows("run!")] == ["StartFailed"]
