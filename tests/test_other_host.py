"""The host's command is a setting, and the platform starts each host with the documented command line and storage."""

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

RECORDING_HOST = """
import json, os, pathlib, sys
pathlib.Path({record!r}).write_text(json.dumps([sys.argv[1:], os.environ["AzureWebJobsStorage"]]))
os.execv(sys.executable, [sys.executable, "-m", "devhost.functions", *sys.argv[1:]])
"""
"""A host that records its arguments and its storage account, then becomes the development host."""


def test_another_host_serves_the_platform(calm, tmp_path, monkeypatch):
    """The host gets the documented command line, and storage of its own with all three services."""
    other, record = tmp_path / "another host.py", tmp_path / "record"
    other.write_text(RECORDING_HOST.format(record=str(record)))
    monkeypatch.setenv(HOST_COMMAND, f"{sys.executable} '{other}'")
    with Platform(tmp_path, storage=calm, settings={"CATALOGUE_TABLE": "another"}) as platform:
        assert platform.api("GET", "/health").ok
        given, connection = json.loads(record.read_text())

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


def test_a_host_that_does_not_start_is_reported_with_its_output(tmp_path, calm, monkeypatch):
    monkeypatch.setenv(HOST_COMMAND, f"{sys.executable} -c 'print(\"no such host\")'")

    with pytest.raises(ChildFailedError, match="no such host"):
        Platform(tmp_path, storage=calm, settings={"CATALOGUE_TABLE": "another"})


def test_a_process_whose_output_ends_before_it_is_ready_has_failed(tmp_path):
    """The process still runs when its output ends: its exit status comes a moment later."""
    closing = "import os, sys; print('not yet', flush=True); os.close(1); os.close(2); sys.stdin.read()"
    with pytest.raises(ChildFailedError, match="not yet"):
        Child([sys.executable, "-c", closing], tmp_path / "log", folder=tmp_path, environment={}, is_ready=lambda _: False)


def test_requests_to_the_hosts_own_account_are_not_counted(calm):
    """A fault applies to the host's account only if it names that account."""
    with TableServiceClient.from_connection_string(calm.host.connection_string, retry_total=0) as tables:
        calm.reset()
        calm.faults({"verb": "GET table", "status": 503, "times": 9})
        assert list(tables.list_tables()) == []
        assert calm.counts() == {}
        calm.faults({"verb": "GET table", "url": "/host/", "status": 503, "times": 1})
        with pytest.raises(HttpResponseError):
            list(tables.list_tables())
