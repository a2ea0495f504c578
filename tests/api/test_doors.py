"""HTTP input and output: addresses in answers, empty guard fields, unusual bodies, and the load that anonymous callers may cause."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace

import pytest

from backup_core.api import catalogue, disks, points, runs
from backup_core.api.context import respond
from backup_core.api.http import Request
from backup_core.api.routes import ROUTES
from backup_core.domain.errors import ContainerMissingError, HostUnknownError
from backup_core.domain.naming import rebuilt_name
from backup_core.domain.rebuild import Found, Rebuild
from backup_core.protocol.rebuilds import FOUND, store_rebuild
from devhost.disks import vhd_footer
from tests.scene import PAGE, Scene

MIB = 1 << 20


@pytest.fixture
def scene():
    return Scene()


def request_of(query=None, body=b"", headers=None, **route):
    return Request("https://app.test/api", route, query or {}, body, headers or {})


async def shown(api, handler, request):
    answer = await respond(api, handler, request)
    return answer.status, json.loads(answer.body)


# -- addresses in answers -------------------------------------------------------------------------------------------------------


async def many(scene):
    """A scene with two of everything that is listed."""
    scene.protect("vm")
    scene.protect("vn")
    scene.write(0, 1)
    await scene.back_up("vm")
    scene.write(1, 1)
    await scene.back_up("vm")
    await store_rebuild(scene.tools, Rebuild(REBUILD, "Succeeded", scene.world.now))
    for disk in ("vm", "vn"):
        scene.documents._store(rebuilt_name(REBUILD, disk, 1), FOUND.dump_json(Found(disk, "different")).decode())


REBUILD = "catalogue.rebuild.20260101T000000Z.0123abcd"
LISTS = {
    "get_disks": (disks.get_disks, {}),
    "get_restore_points": (points.get_points, {"state": "available", "from": "2020-01-01T00:00:00Z"}),
    "get_rebuild": (catalogue.get_rebuild, {}),
    "get_runs": (runs.get_runs, {"disk": "vm", "state": "Succeeded", "to": "2100-01-01T00:00:00+00:00"}),
}


def test_every_list_is_covered():
    assert {route.name for route in ROUTES if any(one.name == "top" for one in route.parameters)} == set(LISTS)


@pytest.mark.parametrize("name", LISTS)
async def test_the_link_to_the_next_page_repeats_known_parameters_only(scene, name):
    """A function key that was sent in the query must not come back in the answer."""
    await many(scene)
    handler, filters = LISTS[name]
    sent = {**filters, "top": "1", "code": "SECRETKEY", "x": "1", "after2": "y"}
    status, page = await shown(scene.api(), handler, request_of(sent, disk="vm", rebuild=REBUILD))

    assert status == 200
    address, _, query = page["nextLink"].partition("?")
    given = dict(part.split("=") for part in query.split("&"))
    assert set(given) == {*filters, "top", "after"}
    assert "SECRET" not in address
    route = next(one for one in ROUTES if one.name == name)
    assert set(given) <= {one.name for one in route.parameters}


HOSTS = (
    {"Host": "evil.example"},
    {"Host": "evil.example:80", "X-Forwarded-Host": "evil.example"},
    {"X-Forwarded-Host": "evil.example"},
)


@pytest.mark.parametrize("headers", HOSTS)
def test_addresses_do_not_follow_a_forged_host(disk, platform, headers):
    """The addresses of runs, next pages and the OpenAPI description ignore the Host header."""
    accepted = platform.host.call("POST", f"/api/disks/{disk.name}/backups", headers=headers)
    platform.wait(accepted.json()["id"])
    page = platform.host.call("GET", f"/api/disks/{disk.name}", headers=headers)
    described = platform.host.call("GET", "/api/openapi.json", headers=headers)

    assert accepted.status_code == 202
    assert accepted.headers["Operation-Location"].endswith(f"/api/runs/{accepted.json()['id']}")
    for answer in (accepted, page, described):
        assert "evil" not in answer.text + json.dumps(dict(answer.headers))


@pytest.mark.parametrize(
    ("address", "url", "base"),
    [
        ("https://app.azurewebsites.net/api", "https://evil.example/api/disks", "https://app.azurewebsites.net/api"),
        ("https://app.azurewebsites.net/api", "http://127.0.0.1:7071/api/disks", "https://app.azurewebsites.net/api"),
        ("", "http://127.0.0.1:7071/api/disks", "http://127.0.0.1:7071/api"),
        ("", "http://localhost/api/disks", "http://localhost/api"),
        ("", "http://localhost.evil.example/api/disks", "/api"),
        ("", "http://127.0.0.1@evil.example/api/disks", "/api"),
        ("", "https://evil.example/api/disks", "/api"),
    ],
)
def test_addresses_use_the_platforms_own_name_or_a_loopback_address(scene, address, url, base):
    assert replace(scene.api(), address=address).base(url) == base


# -- guards ---------------------------------------------------------------------------------------------------------------------

BODIES = {
    "restores": ("POST", "/disks/{disk}/restores", {"restorePoint": "latest"}),
    "rebuild": ("POST", "/catalogue/rebuild", {"dryRun": False}),
}


@pytest.mark.parametrize("call", BODIES)
@pytest.mark.parametrize("value", ["", None])
def test_an_empty_plan_hash_is_refused(disk, platform, call, value):
    """A script whose dry run failed sends an empty hash, and believes to be guarded."""
    method, path, body = BODIES[call]
    disk.back_up()
    answer = platform.api(method, path.format(disk=disk.name), {**body, "planHash": value})

    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "InvalidRequest")
    assert answer.json()["error"]["details"][0]["target"] == "planHash"
    assert platform.api("GET", "/runs", params={"disk": disk.name}).json()["value"][0]["operation"] == "backup"


@pytest.mark.parametrize("path", ["/disks/{disk}/backups", "/disks/{disk}/restores"])
def test_an_empty_repeatability_key_is_refused(disk, platform, path):
    answer = platform.api("POST", path.format(disk=disk.name), headers={"Repeatability-Request-ID": ""})

    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "InvalidHeader")


@pytest.mark.parametrize("field", ["account", "container", "blob", "disk"])
def test_an_empty_target_is_refused(disk, platform, field):
    """An empty target would have sent the restore to a place that nobody named."""
    answer = platform.api("POST", f"/disks/{disk.name}/restores", {"target": {field: ""}})

    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "InvalidRequest")


@pytest.mark.parametrize("name", ["disk", "state", "from", "to", "after", "top"])
def test_an_empty_filter_is_refused(platform, name):
    """A filter from an unset variable would have listed everything."""
    answer = platform.api("GET", f"/runs?{name}=")

    assert (answer.status_code, answer.json()["error"]["target"]) == (400, name)


# -- bodies -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kind",
    ["multipart/form-data", "multipart/form-data; boundary=x", "text/xml", "application/json; charset=utf-16", "x/y", "klingon", ";;=",
     "application/json; charset=klingon", "image/png"],
)  # fmt: skip
def test_a_body_with_another_content_type_is_not_read(disk, platform, kind):
    answer = platform.api("POST", f"/disks/{disk.name}/backups", data=b"{}", headers={"Content-Type": kind})

    assert answer.status_code in (415, 202) if kind == ";;=" else answer.status_code == 415
    assert kind == ";;=" or answer.json()["error"]["code"] == "UnsupportedMediaType"


@pytest.mark.parametrize(
    "kind",
    [
        "application/json",
        "Application/JSON; Charset=UTF-8",
        "application/problem+json",
        "application/x-www-form-urlencoded",
        "text/plain",
    ],
)
def test_content_types_that_clients_use_for_json_are_accepted(platform, kind):
    answer = platform.api("POST", "/catalogue/rebuild", data=b'{"dryRun": 0.5}', headers={"Content-Type": kind})

    assert (answer.status_code, answer.json()["error"]["details"][0]["target"]) == (400, "dryRun")


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32", "utf-16-le"])
def test_json_is_utf_8(platform, encoding):
    answer = platform.api("POST", "/catalogue/rebuild", data='{"dryRun": true}'.encode(encoding))

    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "InvalidJson")


def test_answers_end_with_a_newline(platform):
    """The newline puts a terminal's prompt on a line of its own."""
    for method, path in (("GET", "/health"), ("GET", "/disks"), ("GET", "/runs/x"), ("GET", "/openapi.json")):
        assert platform.api(method, path).text.endswith("}\n")


# -- anonymous callers ------------------------------------------------------------------------------------------------------------------


async def test_health_is_checked_at_most_once_in_some_seconds(scene):
    """However many strangers ask, the stores are checked once, and nothing of anybody's is listed."""
    api, moments = scene.api(), [0.0]
    api = replace(api, tools=replace(api.tools, monotonic=lambda: moments[0]))
    answers = await asyncio.gather(*(respond(api, catalogue.get_health, request_of()) for _ in range(50)))

    assert {one.status for one in answers} == {200}
    assert scene.port_calls["now"] == 1
    assert scene.port_calls["properties"] == 1
    assert not [name for name in scene.port_calls if name in ("listed", "snapshots", "folders", "disks")]
    moments[0] = 10.0
    await respond(api, catalogue.get_health, request_of())
    assert scene.port_calls["now"] == 2


@pytest.mark.parametrize("error", [ContainerMissingError("gone"), HostUnknownError("gone")])
async def test_health_fails_without_the_backups_container(error):
    async def before(name):
        if name == "properties":
            raise error

    scene = Scene(before=before)
    status, answer = await shown(scene.api(), catalogue.get_health, request_of())

    assert (status, answer["checks"]) == (503, {"catalogue": "ok", "backupAccount": "failed"})


# -- registration -------------------------------------------------------------------------------------------------------------


async def put(scene, size, end):
    blob = scene.blobs.put(scene.source(), size)
    if end:
        scene.blobs.poke(scene.source(), size // PAGE - 1, [end])
    assert blob
    return await shown(
        scene.api(), disks.put_disk, request_of(body=json.dumps({"source": scene.source().url}).encode(), disk="vm")
    )


async def test_a_disk_that_could_never_become_managed_gets_a_warning(scene):
    """The warning comes when the disk is protected, not on the day of the restore."""
    status, answer = await put(scene, MIB + PAGE, None)

    assert status == 201
    (warning,) = answer["warnings"]
    assert "not to a managed disk" in warning
    assert "not the footer of a VHD" in warning


async def test_a_fixed_vhd_is_registered_without_a_warning(scene):
    assert (await put(scene, MIB + PAGE, vhd_footer(MIB)))[1]["warnings"] == []


async def test_a_vhd_of_another_size_gets_a_warning(scene):
    (warning,) = (await put(scene, MIB + PAGE, vhd_footer(2 * MIB)))[1]["warnings"]

    assert f"its footer says {2 * MIB} bytes" in warning


async def test_an_account_without_a_host_is_a_permanent_error():
    async def before(name):
        if name == "properties":
            raise HostUnknownError("look at it: no host has that name")

    scene = Scene(before=before)
    status, answer = await put(scene, MIB, None)

    assert (status, answer["error"]["code"], answer["error"]["target"]) == (400, "HostUnknown", "source")
    assert scene.rows("registration") == []


async def test_the_answer_names_the_first_backup(scene):
    """The caller gets the run to wait for."""
    scene.blobs.put(scene.source(), MIB)

    async def start(*_):
        return

    body = json.dumps({"source": scene.source().url, "firstBackup": True}).encode()
    request = Request("https://app.test/api", {"disk": "vm"}, {}, body, {}, start=start)
    answer = await respond(scene.api(), disks.put_disk, request)

    assert json.loads(answer.body)["running"] == answer.headers["Operation-Location"]


async def test_a_disk_that_carries_pagekeeper_metadata_gets_a_warning(scene):
    """The disk was rolled back by a copy of our snapshot; every later snapshot of it inherits the metadata."""
    blob = scene.blobs.put(scene.source(), MIB + PAGE)
    scene.blobs.poke(scene.source(), MIB // PAGE, [vhd_footer(MIB)])
    blob.metadata = {"Pagekeeper_run": "vm.20260101T000001Z.timer"}
    body = json.dumps({"source": scene.source().url}).encode()
    (warning,) = (await shown(scene.api(), disks.put_disk, request_of(body=body, disk="vm")))[1]["warnings"]

    assert "carries metadata of this app" in warning
