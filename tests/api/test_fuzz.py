"""The API answers thousands of generated and hostile requests, by callers with and without the roles they need.

No failure of the server, no undescribed answer, no nonsense accepted, no call done without its role, no secret disclosed, and
no connection to anywhere but the accounts and machines of the settings. 2,000 requests here, more by `make fuzz`.
"""

from __future__ import annotations

import base64
import copy
import json
import os
import random
import socket
import threading
from collections import Counter

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, given, seed, settings
from hypothesis.strategies import integers
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import content_type_conformance, response_schema_conformance, status_code_conformance

from backup_core.api.access import READER
from backup_core.api.openapi import document
from backup_core.api.routes import ROUTES
from devhost.machines import machine_id
from devhost.platform import DISKS_CONTAINER, Platform
from tests.conftest import SEED
from tests.disk import PAGE, Disk

pytestmark = pytest.mark.timeout(3600)
REQUESTS = int(os.environ.get("PAGEKEEPER_FUZZ", "2000"))
SCHEMA = schemathesis.openapi.from_dict(document(ROUTES, "http://127.0.0.1/api"))
CHECKS = [not_a_server_error, content_type_conformance, response_schema_conformance, status_code_conformance]
CASES = [
    (route, mode)
    for route in ROUTES
    for mode in GenerationMode
    if mode is GenerationMode.POSITIVE or route.parameters or route.takes  # without either nothing can be wrong
]
PER_CASE = REQUESTS // 2 // len(CASES)
UUID = "3f2504e0-4f89-41d3-9a0c-0305e82c3301"

NUMBERS = [0, -1, 1, 2**31, 2**63, -(2**63), 2**64, 10**40, 0.5, -0.0, 1e308]
WORDS = [
    "", " ", "null", "true", "latest", "../../etc/passwd", "..%2f..%2fadmin", "a'b", "a' or '1' eq '1", 'a"b', "a\\b", "a/b", "a#b", "a?b=c",
    "a\r\nX-Injected: 1", "a\nb", "a\x00b", "a\tb", "\u202etxt.exe", "\ufeffvm", "\u00e4\u00f6\u00fc", "\U0001f4be" * 40, "A" * 70_000, "%00", "%s%n%x", "{{7*7}}",
    "${jndi:ldap://127.0.0.1/x}", "<script>alert(1)</script>", "'; DROP TABLE pagekeeper; --", "$(reboot)", "`id`", "|| sleep 9", "~", ".", "..", "-", "vm.",
    "vm.20260101T000000Z.timer", "20261122T1523544760000Z", "2026-11-22T12:00:00Z", "9999-99-99T99:99:99Z", "NaN", "Infinity", "1e999", "0x10", "\ud7ff", "\uffff",
]  # fmt: skip
URLS = [
    "http://169.254.169.254/metadata/identity/oauth2/token?resource=https://storage.azure.com/", "http://127.0.0.1:1/vhds/x.vhd", "http://localhost/vhds/x.vhd",
    "http://[::1]/vhds/x.vhd", "http://0/vhds/x.vhd", "http://2130706433/vhds/x.vhd", "https://evil.example/vhds/x.vhd", "//evil.example/vhds/x.vhd", "file:///etc/passwd",
    "gopher://127.0.0.1:1/_x", "ftp://evil.example/x", "javascript:alert(1)", "data:text/plain,x", "{source}.evil.example/vhds/x.vhd", "{source}@evil.example/vhds/x.vhd",
    "{source}:1/vhds/x.vhd", "{source}/../backup/heads/x.vhd", "{source}%2f..%2fbackup/heads/x", "{source}/vhds/%2e%2e/x", "{source}/vhds/x.vhd?sig=c2VjcmV0", "{source}/vhds/x.vhd#f",
    "{backup}/heads/x.vhd", "{state}/pagekeeper()", "{source}/$root/x.vhd", "{source}/$logs/x.vhd", "{source}/vhds/" + "x" * 1025, "{source}/vhds/missing.vhd", "{source}/vhds/{disk}.vhd",
]  # fmt: skip
OBJECTS = [None, True, False, [], {}, [[]], {"a": {"b": {}}}, [None] * 2000, {"kind": "pageBlob"}, {"vm": "x", "lun": 0}]


class Proxy:
    """A proxy that receives each request that leaves the machine, from clients that honour HTTPS_PROXY. It forwards nothing and only counts."""

    def __init__(self):
        self.requests = []
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port = self._listening.getsockname()[1]
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self):
        while True:
            try:
                connection, _ = self._listening.accept()
            except OSError:
                return
            self.requests.append(connection.recv(200))
            connection.close()

    def close(self):
        self._listening.close()


class Fire:
    """The app with sign-in by roles, one real disk with a restore point and a machine, and the results of all requests."""

    def __init__(self, storage, machines, folder):
        self.rng, self.sent, self.generated, self.statuses = random.Random(SEED), 0, 0, Counter()
        self.proxy, self.connections = Proxy(), folder / "connections"
        proxied = f"http://127.0.0.1:{self.proxy.port}"
        environment = {
            "CATALOGUE_TABLE": "fire", "SIGN_IN": "entra", "WEBSITE_AUTH_ENABLED": "True", "DEVHOST_CONNECTIONS": str(self.connections),
            "HTTP_PROXY": proxied, "HTTPS_PROXY": proxied, "ALL_PROXY": proxied, "NO_PROXY": "127.0.0.1",
        }  # fmt: skip
        self.platform = Platform(folder, storage=storage, machines=machines, settings=environment)
        self.base = f"{self.platform.host.origin}/api"
        self.session = requests.Session()
        self.session.trust_env = False
        self.everything = {"x-ms-client-principal": self.principal(READER)}
        call = self.platform.api
        self.platform.api = lambda method, path, body=None, **options: call(
            method, path, body, **{"headers": self.everything, **options}
        )
        self.disk = Disk(self.platform, "fire", 1024 * 1024).protect()
        self.disk.write(0, b"\1" * PAGE)
        self.point = self.disk.back_up()["restorePoints"][0]
        machines.make("fire", data={0: self.platform.disk_url("fire.vhd")})

    def close(self):
        self.disk.service.close()
        self.session.close()
        self.platform.stop()
        self.proxy.close()

    # -- callers ----------------------------------------------------------------------------------------------------------

    @staticmethod
    def principal(roles):
        return base64.b64encode(json.dumps({"claims": [{"typ": "roles", "val": role} for role in roles]}).encode()).decode()

    def caller(self, rng):
        """(roles, headers) of somebody: mostly an operator, now and then a caller without the role."""
        chance = rng.random()
        if chance < 0.7:
            return set(READER), self.everything
        if chance < 0.8:
            return set(), {}
        if chance < 0.85:
            return set(), {"x-ms-client-principal": rng.choice(["x", "e30=", "W10=", "bnVsbA==", self.principal(["Owner"])])}
        roles = [rng.choice(READER)]
        return set(roles), {"x-ms-client-principal": self.principal(roles)}

    # -- rules for each answer --------------------------------------------------------------------------------------

    def judge(self, route, roles, answer):
        self.sent += 1
        self.statuses[answer.status_code] += 1
        exchange = f"{answer.request.method} {answer.request.url[:300]} {str(answer.request.body)[:300]} -> {answer.status_code} {answer.text[:300]}"
        assert answer.status_code < 500, exchange
        if route.roles and not roles & set(route.roles):
            assert answer.status_code in (400, 401, 403, 404, 413), exchange
            assert answer.status_code >= 400, exchange
        storage = self.platform.storage
        for account in (storage.source, storage.backup, storage.state):
            assert account.key not in answer.text, exchange
        assert "X-Injected" not in answer.headers, exchange
        if answer.status_code < 400 and route.name == "put_disk":
            assert answer.json()["source"].startswith(f"{storage.source.blobs}/{DISKS_CONTAINER}/"), exchange
        if answer.status_code < 400 and route.name == "post_restore":
            shown = answer.json()
            target = shown["restore"]["target"] if "restore" in shown else shown["target"]
            assert target.startswith(f"{storage.source.blobs}/"), exchange

    # -- hostile by hand ----------------------------------------------------------------------------------------------------

    def template(self, route):
        """A valid, meaningful request of the route."""
        body = {
            "put_disk": {
                "source": self.platform.disk_url("fire.vhd"), "description": "d", "verification": "sampled",
                "retention": {"keepLast": 3, "minAgeDays": 1}, "machine": {"vm": machine_id("fire"), "lun": 0}, "firstBackup": False,
            },
            "post_backup": {"kind": "auto"},
            "post_restore": {
                "restorePoint": self.point, "repoint": False, "stopVm": False, "adopt": False,
                # An empty hash is refused; a dry run takes no notice of one.
                **({"dryRun": True, "planHash": "0" * 62} if self.rng.random() < 0.8 else {"dryRun": False}),
                "machine": {"vm": machine_id("fire"), "lun": 0},
                "target": {
                    "kind": "pageBlob", "account": self.platform.storage.source.blobs, "container": DISKS_CONTAINER,
                    "blob": f"fire-{self.sent}.vhd",
                },
            },
            "post_rebuild": {"dryRun": True},
        }.get(route.name)  # fmt: skip
        return {
            "path": {
                "disk": "fire",
                "point": self.point,
                "run": "fire.20260101T000000Z.timer",
                "rebuild": "catalogue.rebuild.20260101T000000Z.0123abcd",
            },
            "query": {one.name: "" for one in route.parameters if one.place == "query"},
            "headers": {one.name: UUID for one in route.parameters if one.place == "header"},
            "body": body,
        }

    def value(self):
        kind = self.rng.choice([NUMBERS, WORDS, WORDS, URLS, URLS, OBJECTS])
        value = copy.deepcopy(self.rng.choice(kind))
        if isinstance(value, str):
            storage = self.platform.storage
            for name, filled in (
                ("source", storage.source.blobs),
                ("backup", storage.backup.blobs),
                ("state", storage.state.tables),
                ("disk", "fire"),
            ):
                value = value.replace("{" + name + "}", filled)
        return value

    def places(self, part, path=()):
        """The paths of all values in a request that can be replaced."""
        for key, value in part.items():
            yield (*path, key)
            if isinstance(value, dict):
                yield from self.places(value, (*path, key))

    def hostile(self):
        """One request, mostly with one to three things in it that should not be there."""
        route = self.rng.choice(ROUTES)
        request = self.template(route)
        places = [
            place for place in self.places(request)
            if place[0] == "body" or (len(place) == 2 and (place[0] != "path" or "{" + place[1] + "}" in route.path))
        ]  # fmt: skip
        for place in self.rng.sample(places, min(self.rng.choice([0, 1, 1, 1, 1, 1, 2, 3]), len(places))):
            inside = request
            for key in place[:-1]:
                inside = inside.get(key) if isinstance(inside, dict) else None
            if isinstance(inside, dict):
                inside[place[-1]] = self.value()
        if isinstance(request["body"], dict) and self.rng.random() < 0.1:
            request["body"][str(self.value())[:50]] = self.value()
        return route, request

    def send(self, route, request):
        roles, headers = self.caller(self.rng)
        path = route.path
        for name, value in request["path"].items():
            path = path.replace("{" + name + "}", requests.utils.quote(str(value)[:4000], safe=""))
        query = {name: str(value)[:4000] for name, value in request["query"].items() if value != ""}
        sent = {name: str(value) for name, value in request["headers"].items()}
        sent = {
            name: value.encode("ascii", "ignore").decode().translate({10: "", 13: "", 0: ""}).strip()[:4000]
            for name, value in sent.items()
        }
        body = None
        if request["body"] is not None:
            body = json.dumps(request["body"]).encode()
            if self.rng.random() < 0.05:
                cut = self.rng.randrange(len(body) + 1)
                body = body[:cut] + self.rng.choice([b"", b"\xff", b"\x00", b"}", b"[" * 10_000])
        answer = self.session.request(
            route.method, f"{self.base}/{path}", params=query, data=body, headers=sent | headers, timeout=30
        )
        # A path segment that is empty or dots is another address: the host's own answer, not this route's.
        if answer.status_code in (404, 405) and "x-ms-error-code" not in answer.headers:
            self.sent += 1
        else:
            self.judge(route, roles, answer)


def generated_calls(fire, route, mode):
    """Requests that the description permits, or forbids."""

    @seed(SEED)
    @settings(max_examples=PER_CASE, deadline=None, suppress_health_check=list(HealthCheck), database=None)
    @given(case=SCHEMA[f"/{route.path}"][route.method].as_strategy(generation_mode=mode), who=integers(0, 2**32))
    def call(case, who):
        roles, headers = fire.caller(random.Random(who))
        answer = case.call(base_url=fire.base, headers=headers)
        case.validate_response(answer, checks=CHECKS)
        fire.judge(route, roles, answer)

    call()


@pytest.fixture(scope="module")
def fire(storage, all_machines, tmp_path_factory):
    """The app, after all requests: each test here looks at what they did, whichever tests run beside it."""
    print(f"seed {SEED}, {REQUESTS} requests")
    storage.reset()
    all_machines.reset()
    made = Fire(storage, all_machines, tmp_path_factory.mktemp("fire"))
    try:
        for route, mode in CASES:
            generated_calls(made, route, mode)
        made.generated = made.sent
        while made.sent < REQUESTS:
            made.send(*made.hostile())
        yield made
    finally:
        made.close()


def test_hostile_requests(fire):
    """The API withstands requests generated from the description, valid and invalid, and attacks written by hand."""
    print(f"{fire.generated} generated, {fire.sent - fire.generated} by hand: {dict(sorted(fire.statuses.items()))}")

    assert fire.statuses[200] > REQUESTS // 50, "some of them must have meant something"
    assert fire.statuses[400] > REQUESTS // 5
    assert "failed unexpectedly" not in fire.platform.host.log.read_text()


def test_no_request_was_sent_to_any_other_host(fire):
    """Neither the interpreter's own record of the app's process nor the closed proxy shows a request."""
    storage, machines = fire.platform.storage, fire.platform.machines
    known = {url.split("/")[2] for url in (storage.source.blobs, storage.state.tables, machines.endpoint, fire.base)}
    recorded = [json.loads(line) for line in fire.connections.read_text().splitlines()]
    contacted = {f"{host}:{port}" for what, host, port in recorded if what == "connect"}

    assert contacted <= known
    assert contacted, "the recorder works"
    assert {host for what, host, _ in recorded if what == "look up"} <= {"127.0.0.1"}
    assert fire.proxy.requests == []


def test_the_real_disk_is_as_it_was(fire):
    """The disk's point is unchanged; everything that the requests protected or restored came from it."""
    with fire.platform.blobs(fire.platform.storage.backup) as client:
        point = next(one for one in fire.disk.points() if one["id"] == fire.point)
        snapshot = client.get_blob_client(fire.platform.settings["HEADS_CONTAINER"], point["blob"], snapshot=point["snapshot"])
        assert snapshot.download_blob().readall() == fire.disk.moments[fire.point]


def test_a_connection_elsewhere_would_be_recorded(tmp_path):
    """The recorder sees what any library opens."""
    import subprocess  # noqa: PLC0415
    import sys  # noqa: PLC0415

    file = tmp_path / "connections"
    code = (
        "import pathlib, socket, sys; from devhost.functions.connections import record; record(pathlib.Path(sys.argv[1])); "
        "s = socket.socket(); s.settimeout(0.1)\n"
        "try: s.connect(('127.0.0.1', 9))\nexcept OSError: pass\n"
        "try: socket.getaddrinfo('evil.invalid', 443)\nexcept OSError: pass\n"
    )
    subprocess.run([sys.executable, "-c", code, str(file)], check=True)

    assert [json.loads(line) for line in file.read_text().splitlines()] == [
        ["connect", "127.0.0.1", 9],
        ["look up", "evil.invalid", 443],
    ]
