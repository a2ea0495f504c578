"""Shared fixtures: the real platform, started once per session, and disks made for one test."""

from __future__ import annotations

import os
import random
import re
import uuid

import hypothesis
import pytest
import schemathesis

from devhost.machines import Machines
from devhost.platform import EVERY_SECOND, HOST_COMMAND, Platform
from devhost.processes import PATIENCE
from devhost.storage import Storage
from tests.disk import Disk

# How long an example takes says nothing of what is tested, and much of the machine.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")

# Set for the workers of a parallel run as well, which inherit it.
SEED = int(os.environ.setdefault("PAGEKEEPER_SEED", str(random.randrange(10**9))))


def pytest_report_header():
    return f"seed: {SEED} (PAGEKEEPER_SEED={SEED} repeats this run's random choices)"


def pytest_collection_modifyitems(config, items):
    """On a slower host each test may take longer as well; what only the development host can do is skipped on another.

    What needs the emulator is marked, so that `make quick` can leave it out.
    """
    for item in items:
        if "storage" in item.fixturenames:
            item.add_marker("platform")
        if os.environ.get(HOST_COMMAND) and item.get_closest_marker("development_host"):
            item.add_marker(pytest.mark.skip(reason="needs the development host's faults on demand"))
        own = item.get_closest_marker("timeout")
        seconds = own.args[0] if own else config.getoption("timeout") or float(config.getini("timeout"))
        item.add_marker(pytest.mark.timeout(seconds * PATIENCE), append=False)


@pytest.fixture
def rng(request):
    """Random choices of one test, repeated by PAGEKEEPER_SEED."""
    print(f"seed {SEED}")
    return random.Random(f"{SEED}:{request.node.nodeid}")


def described(platform):
    """Check every answer of the API that a test gets against its schema in /openapi.json."""
    schema = schemathesis.openapi.from_dict(platform.api("GET", "/openapi.json").json())
    known = [(re.compile(re.sub(r"{\w+}", "[^/]+", path)), path) for path in schema]
    call = platform.api

    def api(method, path, body=None, **options):
        answer = call(method, path, body, **options)
        for pattern, template in known:
            if pattern.fullmatch(path.partition("?")[0]) and method in schema[template]:
                schema[template][method].validate_response(answer)
        return answer

    platform.api = api


@pytest.fixture(scope="session")
def storage(tmp_path_factory):
    """The emulator, shared by all tests; each test uses names of its own."""
    with Storage(tmp_path_factory.mktemp("storage")) as running:
        yield running


@pytest.fixture
def calm(storage):
    """No faults, default switches and zero counts, before and after."""
    storage.reset()
    yield storage
    storage.reset()


@pytest.fixture(scope="session")
def all_machines(storage, tmp_path_factory):
    """The stand-in for Resource Manager, shared by all tests; each test uses machines of its own."""
    with Machines(tmp_path_factory.mktemp("machines"), [storage.source, storage.exports]) as running:
        yield running


@pytest.fixture
def machines(all_machines):
    """No faults and default switches, before and after."""
    all_machines.reset()
    yield all_machines
    all_machines.reset()


@pytest.fixture(scope="session")
def platform(storage, all_machines, tmp_path_factory):
    """The app under the development host, shared by the tests that do not kill it."""
    folder, settings = tmp_path_factory.mktemp("platform"), {"BACKUP_SCHEDULE": EVERY_SECOND}
    with Platform(folder, storage=storage, machines=all_machines, settings=settings) as running:
        assert running.api("GET", "/health").ok
        described(running)
        yield running


@pytest.fixture(scope="session")
def streaming(storage, all_machines, tmp_path_factory):
    """The same app with COPY_MODE=stream."""
    settings = {"BACKUP_SCHEDULE": EVERY_SECOND, "COPY_MODE": "stream", "CATALOGUE_TABLE": "streaming"}
    with Platform(tmp_path_factory.mktemp("streaming"), storage=storage, machines=all_machines, settings=settings) as running:
        described(running)
        yield running


@pytest.fixture(scope="session")
def two_workers(storage, all_machines, tmp_path_factory):
    """The same app by two processes on one hub."""
    folder = tmp_path_factory.mktemp("workers")
    settings = {"BACKUP_SCHEDULE": EVERY_SECOND, "CATALOGUE_TABLE": "workers", "DEVHOST_INVISIBLE_SECONDS": "2"}
    with Platform(folder, storage=storage, machines=all_machines, settings=settings, workers=2) as running:
        described(running)
        yield running


@pytest.fixture(params=["server", "stream"])
def any_disk(request, calm, name):
    """A protected disk of 16 MiB, under both ways the bytes may take; `copy_verb` is the emulator's name for the way."""
    host = request.getfixturevalue({"server": "platform", "stream": "streaming"}.get(request.param, request.param))
    made = Disk(host, name, 16 * 1024 * 1024).protect()
    made.copy_verb = "PUT page" if request.param == "stream" else "PUT page-from-url"
    yield made
    made.service.close()


@pytest.fixture
def disk(platform, calm, name):
    """A protected disk of 16 MiB."""
    made = Disk(platform, name, 16 * 1024 * 1024).protect()
    yield made
    made.service.close()


@pytest.fixture
def name():
    """A name nothing else uses: for a disk, a blob, a container."""
    return f"t{uuid.uuid4().hex[:12]}"
