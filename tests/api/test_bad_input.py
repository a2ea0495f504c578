"""Every wrong request over HTTP: a clear, typed error that names what was wrong, and nothing changed."""

from __future__ import annotations

import pytest
import requests

from devhost.platform import DISKS_CONTAINER
from tests.disk import dump

ENVELOPE = {"code", "message", "target", "details"}
HOSTILE_IDS = {
    "upper case": "Disk",
    "quote": "a'b",
    "double quote": 'a"b',
    "hash": "a%23b",
    "question mark": "a%3Fb",
    "encoded slash": "a%2Fb",
    "backslash": "a%5Cb",
    "control character": "a%01b",
    "newline": "a%0Ab",
    "null": "a%00b",
    "unicode": "d%C3%AFsk",
    "space": "a%20b",
    "300 characters": "a" * 300,
    "64 characters": "a" * 64,
    "leading hyphen": "-a",
    "dot": "a.b",
    "odata": "a%27%20or%20%271%27%20eq%20%271",
    "traversal": "..%2F..%2Fadmin",
}


@pytest.fixture
def unchanged(platform, calm):
    """Asserts that blobs and rows are the same after the test as before."""
    before = dump(calm, platform)
    yield
    assert dump(calm, platform) == before


def refused(answer, status, code):
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code), answer.text
    assert set(answer.json()["error"]) == ENVELOPE
    assert answer.headers["x-ms-error-code"] == code
    assert answer.headers["Content-Type"].startswith("application/json")
    return answer.json()["error"]


@pytest.mark.parametrize("kind", HOSTILE_IDS)
@pytest.mark.parametrize("call", ["GET disk", "PUT disk", "POST backups", "GET points"])
def test_hostile_disk_ids(platform, unchanged, kind, call):
    method, what = call.split()
    path = f"/disks/{HOSTILE_IDS[kind]}" + {"disk": "", "backups": "/backups", "points": "/restore-points"}[what]
    body = {"source": platform.disk_url("none.vhd")} if method == "PUT" else None

    error = refused(platform.api(method, path, body), 400, "InvalidDiskId")
    assert error["target"] == "disk"


def test_an_unescaped_slash_is_another_route(platform, unchanged):
    assert platform.api("GET", "/disks/a/b").status_code == requests.codes.not_found


@pytest.mark.parametrize(("method", "path"), [("GET", ""), ("POST", "/backups"), ("GET", "/restore-points")])
def test_unknown_disks(platform, unchanged, method, path):
    error = refused(platform.api(method, f"/disks/never-registered{path}"), 404, "DiskNotFound")

    assert "never-registered" in error["message"]


BODIES = {
    "not JSON": (b"{source:", "InvalidJson"),
    "empty source": (b'{"source": ""}', "InvalidRequest"),
    "truncated": (b'{"source": "x"', "InvalidJson"),
    "NaN": (b'{"source": NaN}', "InvalidJson"),
    "not UTF-8": (b'{"source": "\xff"}', "InvalidJson"),
    "deeply nested": (b"[" * 50_000, "InvalidJson"),
    "array": (b"[]", "InvalidRequest"),
    "null": (b"null", "InvalidRequest"),
    "string": (b'"x"', "InvalidRequest"),
    "source missing": (b"{}", "InvalidRequest"),
    "source a number": (b'{"source": 5}', "InvalidRequest"),
    "source null": (b'{"source": null}', "InvalidRequest"),
    "source a list": (b'{"source": ["x"]}', "InvalidRequest"),
    "source too long": (b'{"source": "' + b"x" * 3000 + b'"}', "InvalidRequest"),
    "description too long": (b'{"source": "x", "description": "' + b"x" * 501 + b'"}', "InvalidRequest"),
    "unknown field": (b'{"source": "x", "sauce": 1}', "InvalidRequest"),
}


@pytest.mark.parametrize("kind", BODIES)
def test_malformed_bodies(platform, unchanged, name, kind):
    body, code = BODIES[kind]

    refused(platform.api("PUT", f"/disks/{name}", data=body), 400, code)


def test_a_huge_body(platform, unchanged, name):
    refused(platform.api("PUT", f"/disks/{name}", data=b" " * 70_000), 413, "BodyTooLarge")


def test_every_error_in_a_body_is_reported(platform, unchanged, name):
    """The answer lists all errors at once, each with the field it is in."""
    error = refused(platform.api("PUT", f"/disks/{name}", {"source": 1, "description": 2, "more": 3}), 400, "InvalidRequest")

    assert {detail["target"] for detail in error["details"]} == {"source", "description", "more"}


@pytest.mark.parametrize("body", [{"kind": "differential"}, {"kind": 1}, {"kind": None}, {"type": "full"}])
def test_wrong_backups(disk, platform, unchanged, body):
    refused(platform.api("POST", f"/disks/{disk.name}/backups", body), 400, "InvalidRequest")


class TestSources:
    """Sources that cannot be protected are refused."""

    def put(self, platform, name, url):
        return platform.api("PUT", f"/disks/{name}", {"source": url})

    def test_missing(self, platform, unchanged, name):
        refused(self.put(platform, name, platform.disk_url("missing.vhd")), 400, "SourceNotFound")

    def test_a_block_blob(self, platform, calm, name):
        with platform.blobs(calm.source) as client:
            client.get_blob_client(DISKS_CONTAINER, name).upload_blob(b"x" * 512)
        before = dump(calm, platform)

        error = refused(self.put(platform, name, platform.disk_url(name)), 400, "SourceUnfit")
        assert "not a page blob" in error["message"]
        assert dump(calm, platform) == before

    def test_created_before_2016(self, platform, calm, name):
        with platform.blobs(calm.source) as client:
            client.get_blob_client(DISKS_CONTAINER, name).create_page_blob(512)
        calm.control(
            "POST", "created", {"account": "source", "container": DISKS_CONTAINER, "blob": name, "at": "2015-12-31T23:59:59Z"}
        )

        error = refused(self.put(platform, name, platform.disk_url(name)), 400, "SourceUnfit")
        assert "2016" in error["message"]

    def test_an_empty_blob(self, platform, calm, name):
        with platform.blobs(calm.source) as client:
            client.get_blob_client(DISKS_CONTAINER, name).create_page_blob(0)

        refused(self.put(platform, name, platform.disk_url(name)), 400, "SourceUnfit")

    @pytest.mark.parametrize(
        "url",
        [
            "https://elsewhere.blob.core.windows.net/vhds/disk.vhd",
            "http://169.254.169.254/metadata/instance",
            "file:///etc/passwd",
            "disk.vhd",
            "{source}.evil.example/vhds/disk.vhd",
            "{source}@evil.example/vhds/disk.vhd",
            "{backup}/heads/disk.vhd",
            "{source}",
            "{source}/",
            "{source}/vhds",
            "{source}/vhds/",
            "{source}//disk.vhd",
            "{source}/UPPER/disk.vhd",
            "{source}/vhds/../other/disk.vhd",
            "{source}/vhds/%2e%2e/disk.vhd",
            "{source}/vhds/./disk.vhd",
            "{source}/vhds/%2e/disk.vhd",
            "{source}/vhds//disk.vhd",
            "{source}/vhds/%2fdisk.vhd",
            "{source}/vhds/a/%2Fdisk.vhd",
            "{source}/vhds/disk.vhd.",
            "{source}/vhds/disk.vhd/",
            "{source}/vhds/a./disk.vhd",
            "{source}/vhds/a%00b",
            "{source}/vhds/a%0d%0ab",
            "{source}/vhds/%EF%BF%BF",
            "{source}/vhds/%FF",
            "https://[bad/vhds/disk.vhd",
            "{source}/vhds/disk.vhd?snapshot=2026-01-01T00:00:00.0000000Z",
            "{source}/vhds/disk.vhd?sv=2021&sig=secret",
            "{source}/vhds/disk.vhd#part",
        ],
    )
    def test_sources_outside_the_allow_list(self, platform, unchanged, calm, name, url):
        """Another account, a metadata address, a snapshot, a SAS, a path trick: refused before any request is sent."""
        calm.reset()
        error = refused(
            self.put(platform, name, url.format(source=calm.source.blobs, backup=calm.backup.blobs)), 400, "InvalidSource"
        )

        assert error["target"] == "source"
        assert not any(word in error["message"] for word in ("secret", "codec", "IPv6")), error

    def test_already_protected_under_another_id(self, disk, platform, unchanged, name):
        error = refused(self.put(platform, "another-id", platform.disk_url(disk.blob.blob_name)), 409, "SourceAlreadyProtected")

        assert disk.name in error["message"]


@pytest.mark.parametrize(
    "run",
    [
        "x",
        "vm.20260101T000000Z",
        "vm.20260101T000000Z.zzzzzzzz",
        "a%23b",
        "a" * 300,
        "VM.20260101T000000Z.timer",
        "vm.20260001T000000Z.timer",
        "vm.%D9%A2%D9%A00260101T000000Z.timer",
    ],
)
def test_malformed_run_ids(platform, unchanged, run):
    refused(platform.api("GET", f"/runs/{run}"), 400, "InvalidRunId")


def test_unknown_runs(platform, unchanged):
    refused(platform.api("GET", "/runs/vm.20260101T000000Z.timer"), 404, "RunNotFound")


@pytest.mark.parametrize(
    ("path", "query"),
    [
        ("/runs", "state=Done"),
        ("/runs", "disk=A%27"),
        ("/runs", "after=x"),
        ("/runs", "top=0"),
        ("/runs", "from=yesterday"),
        ("/runs", "to=2026-01-01"),
        ("/runs", "from=9999-12-31T23:59:59Z"),
        ("/disks", "after=%23"),
        ("/disks", "top=x"),
    ],
)
def test_wrong_filters(platform, unchanged, path, query):
    refused(platform.api("GET", f"{path}?{query}"), 400, "InvalidQuery")


@pytest.mark.parametrize("point", ["x", "20261122", "20261122T1523544760000Z'", "20261322T1523544760000Z", "a" * 300])
def test_malformed_point_ids(disk, platform, unchanged, point):
    refused(platform.api("GET", f"/disks/{disk.name}/restore-points/{point}"), 400, "InvalidRestorePointId")


def test_unknown_points(disk, platform, unchanged):
    refused(platform.api("GET", f"/disks/{disk.name}/restore-points/20261122T1523544760000Z"), 404, "RestorePointNotFound")


@pytest.mark.parametrize(
    "query", ["top=0", "top=1001", "top=-1", "top=ten", "top=%D9%A3", "top=9999999999999999999999", "after=x", "after=20261122"]
)
def test_wrong_pages(disk, platform, unchanged, query):
    refused(platform.api("GET", f"/disks/{disk.name}/restore-points?{query}"), 400, "InvalidQuery")
