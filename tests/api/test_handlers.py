"""What only shows with ports in hand: unfit sources the emulator cannot hold, a start that fails, a broken store."""

from __future__ import annotations

import json

import pytest

from backup_core.api import disks, runs
from backup_core.api.context import respond
from backup_core.api.http import Request
from backup_core.domain.errors import AccessDeniedError, ServiceUnavailableError
from tests.scene import Scene


@pytest.fixture
def scene():
    return Scene()


@pytest.fixture
def api(scene):
    return scene.api()


def ask(body=None, *, headers=None, start=None, **route):
    content = b"" if body is None else json.dumps(body).encode()
    options = {"start": start} if start else {}
    return Request("https://app.test/api", route, {}, content, headers or {}, **options)


async def test_an_unaligned_source_is_refused(api, scene):
    scene.blobs.put(scene.source(), 1000)
    before = scene.dump()
    answer = await respond(api, disks.put_disk, ask({"source": scene.source().url}, disk="vm"))

    assert (answer.status, json.loads(answer.body)["error"]["code"]) == (400, "SourceUnfit")
    assert "1000 bytes" in answer.body
    assert scene.dump() == before


async def test_a_moved_source_frees_the_old_one(api, scene):
    scene.protect()
    scene.blobs.put(scene.source("other"), 512)
    answer = await respond(api, disks.put_disk, ask({"source": scene.source("other").url}, disk="vm"))

    assert answer.status == 200
    assert list(scene.catalogue.claims) == [scene.source("other").url]


async def test_a_start_that_fails_is_a_failed_run(api, scene):
    """Nothing is left NotStarted for ever, and the caller is told."""
    scene.protect()

    async def start(*_):
        raise RuntimeError("no durable extension; code=SECRETSECRET")

    answer = await respond(api, runs.post_backup, ask(disk="vm", start=start))

    assert answer.status == 500
    assert "SECRET" not in answer.body
    (run,) = scene.rows("run!")
    assert (run.state, run.error.code) == ("Failed", "StartFailed")
    assert "SECRET" not in run.error.message


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (ServiceUnavailableError("busy"), 503, "ServiceUnavailable"),
        (AccessDeniedError("denied"), 502, "AccessDenied"),
        (ValueError("bug with sig=abcdefghijklmnop"), 500, "InternalError"),
    ],
)
async def test_failures_of_the_stores(api, scene, error, status, code):
    """Each with its own answer; a bug tells nothing but that it is one."""

    async def broken(*_):
        raise error

    answer = await respond(api, broken, ask())

    assert (answer.status, json.loads(answer.body)["error"]["code"]) == (status, code)
    assert "sig=abc" not in answer.body
