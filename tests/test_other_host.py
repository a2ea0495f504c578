"""The host's command is a setting, and what the platform gives a host is what the design says."""

from __future__ import annotations

import json
import sys

import pytest
import requests
from azure.core.exceptions import HttpResponseError
from azure.data.tables import TableServiceClient
from azure.storage.blob import BlobServiceClient

from devhost.platform import HOST_COMMAND, REPOSITORY, Platform
from devhost.processes import Child, ChildFailedError

TELLING = """
import json, os, pathlib, sys
pathlib.Path({told!r}).write_text(json.dumps([sys.argv[1:], os.environ["AzureWebJobsStorage"]]))
os.execv(sys.executable, [sys.executable, "-m", "devhost.functions", *sys.argv[1:]])
"""
"""A host that says what it was given, and is the development host from then on."""


def test_another_host_serves_the_platform(calm, tmp_path, monkeypatch):
    """It gets the documented command line, and storage of its own with all three services."""
    other, told = tmp_path / "another host.py", tmp_path / "told"
    other.write_text(TELLING.format(told=str(told)))
    monkeypatch.setenv(HOST_COMMAND, f"{sys.executable} '{other}'")
    with Platform(tmp_path, storage=calm, settings={"CATALOGUE_TABLE": "another"}) as platform:
        assert platform.api("GET", "/health").ok
        given, connection = json.loads(told.read_text())

    hub = str(tmp_path / "host" / "hub.sqlite")
    assert given == [str(REPOSITORY), "--hub", hub, "--port", "0", "--timers", "demand", "--tied"]
    with (
        BlobServiceClient.from_connection_string(connection) as blobs,
        TableServiceClient.from_connection_string(connection) as tables,
    ):
        assert blobs.get_account_information()["account_kind"]
        assert list(tables.list_tables()) == []
    queues = dict(part.split("=", 1) for part in connection.split(";"))["QueueEndpoint"]
    assert requests.get(f"{queues}?comp=list", timeout=10).headers["Server"].startswith("Azurite-Queue")


def test_a_host_that_is_none_is_told(tmp_path, calm, monkeypatch):
    """Its output is in the error."""
    monkeypatch.setenv(HOST_COMMAND, f"{sys.executable} -c 'print(\"no such host\")'")

    with pytest.raises(ChildFailedError, match="no such host"):
        Platform(tmp_path, storage=calm, settings={"CATALOGUE_TABLE": "another"})


def test_a_process_whose_output_ends_before_it_is_ready_has_failed(tmp_path):
    """Also while it has not ended yet: its exit status comes a moment later."""
    closing = "import os, sys; print('not yet', flush=True); os.close(1); os.close(2); sys.stdin.read()"
    with pytest.raises(ChildFailedError, match="not yet"):
        Child([sys.executable, "-c", closing], tmp_path / "log", folder=tmp_path, environment={}, is_ready=lambda _: False)


def test_what_the_host_stores_is_no_request_of_the_app(calm):
    """Its account is not counted, and disturbed only by a fault that names it."""
    with TableServiceClient.from_connection_string(calm.host.connection_string, retry_total=0) as tables:
        calm.reset()
        calm.faults({"verb": "GET table", "status": 503, "times": 9})
        assert list(tables.list_tables()) == []
        assert calm.counts() == {}
        calm.faults({"verb": "GET table", "url": "/host/", "status": 503, "times": 1})
        with pytest.raises(HttpResponseError):
            list(tables.list_tables())
