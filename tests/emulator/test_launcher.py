"""The launcher refuses versions that it was not written for, and its control address works."""

from __future__ import annotations

import json
import shutil
import subprocess

import pytest
from azure.core.exceptions import HttpResponseError, IncompleteReadError, ServiceRequestError, ServiceResponseError

from devhost.storage import EMULATOR, node


def launch(folder):
    return subprocess.run([node(), str(folder / "launcher.js")], capture_output=True, text=True, timeout=60, check=False)


@pytest.fixture
def copy(tmp_path):
    """The launcher's files, beside the real packages."""
    folder = tmp_path / "emulator"
    folder.mkdir()
    for file in [*EMULATOR.glob("*.js"), *EMULATOR.glob("*.json")]:
        shutil.copy(file, folder)
    (folder / "node_modules").symlink_to(EMULATOR / "node_modules")
    return folder


def test_another_version_is_refused(copy):
    """The patches are for exactly one version."""
    package = json.loads((copy / "package.json").read_text())
    package["dependencies"]["azurite"] = "3.36.0"
    (copy / "package.json").write_text(json.dumps(package))

    ended = launch(copy)

    assert ended.returncode == 3
    assert "written for 3.36.0" in ended.stderr


def test_a_changed_method_is_refused_by_name(copy):
    """A patched method whose source differs is named."""
    fingerprints = json.loads((copy / "fingerprints.json").read_text())
    fingerprints["PageBlobHandler.uploadPages"] = "0" * 16
    (copy / "fingerprints.json").write_text(json.dumps(fingerprints))

    ended = launch(copy)

    assert ended.returncode == 3
    assert "PageBlobHandler.uploadPages" in ended.stderr


def test_a_missing_package_is_refused_with_the_remedy(copy):
    (copy / "node_modules").unlink()

    ended = launch(copy)

    assert ended.returncode == 3
    assert "make setup" in ended.stderr


class TestControl:
    @pytest.fixture
    def blob(self, source):
        created = source.page_blob("disk", 64)
        created.upload_page(b"\1" * 64 * 512, 0, 64 * 512)
        return created

    def test_an_injected_answer_comes_once(self, calm, blob):
        calm.faults({"verb": "PUT page", "status": 403, "code": "Injected"})
        with pytest.raises(HttpResponseError) as refused:
            blob.upload_page(b"\2" * 512, 0, 512)

        assert refused.value.status_code == 403
        blob.upload_page(b"\2" * 512, 0, 512)

    def test_a_lost_reply_has_had_its_effect(self, calm, source, blob):
        """The effect without the answer: what a crash between the two looks like."""
        calm.faults({"verb": "PUT page", "loseReply": True})
        with pytest.raises((ServiceRequestError, ServiceResponseError, ConnectionError, Exception)) as lost:
            source.send("PUT", "disk", {"x-ms-page-write": "update", "x-ms-range": "bytes=0-511"}, b"\3" * 512, comp="page")

        assert "Connection" in type(lost.value).__name__
        assert blob.download_blob(offset=0, length=1).readall() == b"\3"

    def test_a_reset_has_had_none(self, calm, source, blob):
        calm.faults({"verb": "PUT page", "reset": True})
        with pytest.raises(Exception, match=r"aborted|reset"):
            source.send("PUT", "disk", {"x-ms-page-write": "update", "x-ms-range": "bytes=0-511"}, b"\3" * 512, comp="page")

        assert blob.download_blob(offset=0, length=1).readall() == b"\1"

    def test_a_truncated_body(self, calm, source, blob):
        calm.faults({"verb": "GET blob", "truncateBytes": 100})
        with pytest.raises(Exception) as broken:  # noqa: PT011  the library's own type
            source.send("GET", "disk")

        assert type(broken.value).__name__ in ("ChunkedEncodingError", "ConnectionError", IncompleteReadError.__name__)

    def test_limits_answer_503(self, calm, source, blob):
        """Requests above the bucket's size are refused, as ServerBusy with Retry-After."""
        calm.switch(limits={"requestsPerSecond": 5, "bytesPerSecond": 1_000_000})
        answers = [source.send("HEAD", "disk")[2] for _ in range(20)]

        refused = [answer for answer in answers if answer.status_code == 503]
        assert refused
        assert refused[0].headers["Retry-After"] == "1"

    def test_counts_per_verb(self, calm, source, blob):
        calm.reset()
        blob.upload_page(b"\1" * 1024, 0, 1024)
        blob.clear_page(0, 512)
        list(blob.list_page_ranges())

        counts = calm.counts()
        assert (counts["PUT page"]["requests"], counts["PUT page"]["bytesIn"]) == (1, 1024)
        assert counts["PUT clear"]["requests"] == 1
        assert counts["GET pagelist"]["requests"] == 1

    @pytest.mark.parametrize(
        ("path", "body"),
        [("switches", {"dif": "writes"}), ("switches", {"diff": "both"}), ("faults", [{"verbs": "PUT page"}]), ("nothing", {})],
    )
    def test_a_misspelt_control_is_refused(self, calm, path, body):
        """A test that sets a switch wrongly must not pass by accident."""
        with pytest.raises(ValueError, match=r"unknown|take|no such"):
            calm.control("POST", path, body)
