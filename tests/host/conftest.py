"""The sample app under the host, and waiting on its instances."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from devhost.platform import Host, Workers, awaited

SAMPLE = Path(__file__).parent / "sample_app"
ENDED = ("Completed", "Failed", "Terminated")


class Sample:
    """A client of a host that serves the sample app."""

    def __init__(self, folder, timers="demand", **environment):
        folder.mkdir(parents=True, exist_ok=True)
        self.notes_file = folder / "notes"
        self.notes_file.touch()
        settings = {"SAMPLE_LOG": str(self.notes_file), "SAMPLE_SCHEDULE": "0 0 0 1 1 *", **environment}
        super().__init__(folder, {**os.environ, **settings}, timers=timers, app=SAMPLE)

    def notes(self):
        return self.notes_file.read_text().splitlines()

    def begin(self, name, request=None, instance=""):
        answer = self.call("POST", f"/api/start/{name}" + (f"/{instance}" if instance else ""), request)
        assert answer.status_code == 202, answer.text
        return answer.json()["id"]

    def status(self, instance, **query):
        return self.call("GET", f"/runtime/webhooks/durabletask/instances/{instance}", params=query)

    def until(self, instance, accept=lambda shown: shown["runtimeStatus"] in ENDED, seconds=60):
        def reached():
            answer = self.status(instance)
            return answer.status_code in (200, 202) and accept(answer.json()) and answer.json()

        return awaited(reached, f"the wanted state of {instance}", timeout_seconds=seconds)

    def until_notes(self, accept):
        """Wait for `accept(notes)`, or for a number of notes."""
        enough = accept if callable(accept) else lambda notes: len(notes) >= accept
        awaited(lambda: enough(self.notes()), "the sample app's notes")

    def run(self, name, request=None):
        return self.until(self.begin(name, request))


class SampleHost(Sample, Host):
    """One process."""


class SampleWorkers(Sample, Workers):
    """Two processes of one hub."""


@pytest.fixture(scope="module")
def host(tmp_path_factory):
    running = SampleHost(tmp_path_factory.mktemp("host"))
    yield running
    running.stop()
