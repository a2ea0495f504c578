# Long: the parts of one platform, started and ended together.
"""The whole local platform: the storage emulator and a Functions host serving the repository's function_app.py.

The host is the development host, or another one that HOST_COMMAND names: see "Another host" in docs/architecture.md.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeVar

import requests
from azure.core.exceptions import ResourceExistsError
from azure.storage.blob import BlobClient, BlobServiceClient

from backup_core.domain.events import PREFIX as EVENT_PREFIX
from devhost.machines import GROUP, Machines, account_id
from devhost.processes import PATIENCE, Child
from devhost.storage import Storage

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from types import TracebackType

    from devhost.storage import Account

REPOSITORY = Path(__file__).parent.parent
SAMPLE_SETTINGS = REPOSITORY / "local.settings.sample.json"
HOST_COMMAND = "PAGEKEEPER_HOST_COMMAND"
"""The environment variable with the command of another host, as a shell would split it."""
INVISIBLE_SECONDS = 0.5
"""How long the work of a killed host is stalled here, on the development host; five minutes in Azure."""
DISKS_CONTAINER = "vhds"
Part = TypeVar("Part", Storage, Machines, "Host")
Found = TypeVar("Found")
EVERY_SECOND = "* * * * * *"
"""A schedule whose windows are a second long, so that each time the timer is fired by hand is a window of its own."""


def awaited(look: Callable[[], Found], what: str, *, timeout_seconds: float = 30.0) -> Found:
    """The first thing `look` finds that is not empty.

    Raises TimeoutError after `timeout_seconds` times PATIENCE; it says `what` was waited for.
    """
    deadline = time.monotonic() + timeout_seconds * PATIENCE
    while not (found := look()):
        if time.monotonic() > deadline:
            message = f"{what}: not within {timeout_seconds * PATIENCE:g} s; see the host's log"
            raise TimeoutError(message)
        time.sleep(0.05)
    return found


class RunFailedError(Exception):
    """A run did not end as it should; the text is its last state."""


def host_command() -> list[str]:
    """The command that starts a host: the development host's, unless HOST_COMMAND names another."""
    return shlex.split(os.environ.get(HOST_COMMAND, "")) or [sys.executable, "-m", "devhost.functions"]


class Host:
    """The Functions host as a child process, and its HTTP interface."""

    def __init__(self, folder: Path, environment: Mapping[str, str], *, timers: str, app: Path = REPOSITORY) -> None:
        """Serve `app` with the hub in `folder`."""
        self._folder, self._environment, self._timers, self._app = folder, environment, timers, app
        folder.mkdir(parents=True, exist_ok=True)
        self._child: Child | None = None
        self.origin = ""
        self.start()

    def deploy(self, app: Path) -> None:
        """Serve the code of another app from the next start on, with the same hub."""
        self._app = app

    def start(self) -> None:
        """Start the process; a hub left by an earlier one is resumed."""

        def is_ready(line: str) -> bool:
            match = re.fullmatch(r"ready (\d+)\n", line)
            if match:
                self.origin = f"http://127.0.0.1:{match.group(1)}"
            return match is not None

        port = self.origin.rpartition(":")[2] or "0"
        self._child = Child(
            [*host_command(), str(self._app), "--hub", str(self._folder / "hub.sqlite"),
             "--port", port, "--timers", self._timers, "--tied"],
            self.log,
            folder=REPOSITORY,
            environment={"DEVHOST_INVISIBLE_SECONDS": f"{INVISIBLE_SECONDS:g}", **self._environment},
            is_ready=is_ready,
        )  # fmt: skip

    @property
    def log(self) -> Path:
        """The log of the host and the app."""
        return self._folder / "host.log"

    @property
    def runs(self) -> bool:
        """Whether the process was started and not ended."""
        return self._child is not None

    @property
    def pid(self) -> int:
        """The process id."""
        assert self._child is not None
        return self._child.pid

    def kill(self) -> None:
        """Kill -9."""
        child, self._child = self._child, None
        assert child is not None
        child.kill()

    def stop(self) -> None:
        """End the process, if it runs."""
        child, self._child = self._child, None
        if child:
            child.stop()

    def call(self, method: str, path: str, body: object = None, **options: Any) -> requests.Response:  # noqa: ANN401  requests' own options
        """An HTTP call of the app or of the host."""
        if body is not None:
            options["json"] = body
        return requests.request(method, self.origin + path, timeout=60, **options)

    def fire(self, timer: str) -> None:
        """Fire a timer function as the real host's admin address does."""
        answer = self.call("POST", f"/admin/functions/{timer}", {})
        answer.raise_for_status()

    def faults(self, *rules: Mapping[str, Any]) -> None:
        """Have the development host follow these rules, which devhost/functions/faults.py describes, and no others."""
        self.call("POST", "/admin/devhost/faults", list(rules)).raise_for_status()

    def rules(self) -> list[dict[str, Any]]:
        """The rules of `faults`, with what is left of them."""
        found: list[dict[str, Any]] = self.call("GET", "/admin/devhost/faults").json()
        return found

    def delivered(self, prefix: str) -> None:
        """Wait until the development host has delivered every message and activity of these instances, the late ones too."""

        def nothing_is_queued() -> bool:
            counts = self.call("GET", "/admin/devhost/queued", params={"instances": prefix}).json()
            return not any(counts.values())

        awaited(nothing_is_queued, f"delivery of all that is queued for {prefix!r}")

    def events(self) -> list[dict[str, Any]]:
        """The app's events in its log, oldest first."""
        lines = (line.partition(EVENT_PREFIX + "{") for line in self.log.read_text().splitlines())
        return [json.loads("{" + fields) for _, begins, fields in lines if begins]

    def instances(self, prefix: str = "") -> list[dict[str, Any]]:
        """Orchestration instances, oldest first."""
        path, found, token = "/runtime/webhooks/durabletask/instances", list[dict[str, Any]](), ""
        while True:
            headers = {"x-ms-continuation-token": token} if token else {}
            answer = self.call("GET", path, params={"instanceIdPrefix": prefix}, headers=headers)
            found += answer.json()
            token = answer.headers.get("x-ms-continuation-token", "")
            if not token:
                return sorted(found, key=lambda one: str(one["createdTime"]))

    def family(self, instance: str) -> list[dict[str, Any]]:
        """The instance and all its descendants."""
        found = self.instances()
        known = {instance}
        while more := {one["instanceId"] for one in found if one.get("parentInstanceId") in known} - known:
            known |= more
        return [one for one in found if one["instanceId"] in known]

    def settled(self, prefix: str, *, timeout_seconds: float = 60.0) -> list[dict[str, Any]]:
        """Instances, once there are some and none of them runs: a run's row ends before its orchestration does."""

        def ended() -> list[dict[str, Any]]:
            found = self.instances(prefix)
            return [] if any(one["runtimeStatus"] in ("Pending", "Running") for one in found) else found

        return awaited(ended, f"the end of all orchestrations under {prefix!r}", timeout_seconds=timeout_seconds)


class Workers(Host):
    """Several host processes on one hub, as an app scaled out has them. Calls go to those that run, in turn."""

    def __init__(
        self, folder: Path, environment: Mapping[str, str], *, timers: str, app: Path = REPOSITORY, count: int = 2
    ) -> None:
        """Serve `app` with the hub in `folder` by `count` processes; the first one's timers follow their schedules."""
        self._others: list[Host] = []
        self._turn = 0
        super().__init__(folder, environment, timers=timers, app=app)
        self._others = [Host(folder, environment, timers="demand", app=app) for _ in range(count - 1)]

    def _next(self) -> Host:
        running = [one for one in (self, *self._others) if one.runs]
        self._turn += 1
        return running[self._turn % len(running)]

    def call(self, method: str, path: str, body: object = None, **options: Any) -> requests.Response:  # noqa: ANN401  requests' own options
        """An HTTP call of one of them."""
        chosen = self._next()
        return super().call(method, path, body, **options) if chosen is self else chosen.call(method, path, body, **options)

    def kill(self) -> None:
        """Kill -9 of one of them."""
        chosen = self._next()
        super().kill() if chosen is self else chosen.kill()

    def deploy(self, app: Path) -> None:
        """Serve the code of another app from the next starts on."""
        super().deploy(app)
        for one in self._others:
            one.deploy(app)

    def start(self) -> None:
        """Start those that do not run."""
        if not self.runs:
            super().start()
        for one in self._others:
            if not one.runs:
                one.start()

    def stop(self) -> None:
        """End them all."""
        for one in self._others:
            one.stop()
        super().stop()


class Platform:
    """Storage, machines and host together, with the settings of local.settings.sample.json pointed at them."""

    def __init__(
        self,
        folder: Path,
        *,
        timers: str = "demand",
        storage: Storage | None = None,
        machines: Machines | None = None,
        settings: Mapping[str, str] | None = None,
        app: Path = REPOSITORY,
        workers: int = 1,
    ) -> None:
        """Start all, serving `app`; given `storage` and `machines` are left running. `settings` override the sample's."""
        self._own: list[Storage | Machines | Host] = []
        # The parts run in folders of their own, where a relative path would be another one.
        folder = folder.resolve()
        try:
            self.storage = storage or self._owned(Storage(folder / "storage"))
            self.machines = machines or self._owned(Machines(folder / "machines", [self.storage.source, self.storage.exports]))
            self.settings = self._settings(settings or {})
            self._container(self.storage.source, DISKS_CONTAINER)
            environment = {**os.environ, **self.settings}
            if workers > 1:
                self.host = self._owned(Workers(folder / "host", environment, timers=timers, app=app, count=workers))
            else:
                self.host = self._owned(Host(folder / "host", environment, timers=timers, app=app))
        except BaseException:
            self.stop()
            raise

    def _owned(self, part: Part) -> Part:
        self._own.append(part)
        return part

    def _settings(self, overrides: Mapping[str, str]) -> dict[str, str]:
        sample: dict[str, str] = json.loads(SAMPLE_SETTINGS.read_text())["Values"]
        source, backup, state = self.storage.source, self.storage.backup, self.storage.state
        local = {
            "AzureWebJobsStorage": self.storage.host.connection_string,
            "SOURCE_ACCOUNTS": source.blobs,
            "BACKUP_ACCOUNT": backup.blobs,
            "CATALOGUE_ACCOUNT": state.tables,
            "SOURCE_ACCOUNT_IDS": account_id(source.name),
            "MACHINE_GROUPS": GROUP,
            "DISK_GROUPS": GROUP,
            "EXPORT_HOSTS": "127.0.0.1",
            "ARM_ENDPOINT": self.machines.endpoint,
            "DEVELOPMENT": "true",
            "DEVELOPMENT_KEYS": json.dumps({account.name: account.key for account in (source, backup, state)}),
        }
        table = overrides.get("CATALOGUE_TABLE", "").lower()
        # Containers belong to one catalogue: another table on the same storage is another deployment.
        own = {"HEADS_CONTAINER": f"{table}-heads", "PLANS_CONTAINER": f"{table}-plans"} if table else {}
        return {**sample, **local, **own, **overrides}

    def __enter__(self) -> Self:
        """Use as a context."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Stop everything this platform started."""
        self.stop()

    def stop(self) -> None:
        """End what this platform started, in the reverse order."""
        while self._own:
            self._own.pop().stop()

    # -- storage --------------------------------------------------------------------------------------------------

    def blobs(self, account: Account) -> BlobServiceClient:
        """An SDK client of one account."""
        return BlobServiceClient(account.blobs, credential=account.credential)

    def _container(self, account: Account, name: str) -> None:
        with self.blobs(account) as client:
            try:
                client.create_container(name)
            except ResourceExistsError:
                return

    def disk_url(self, name: str) -> str:
        """The URL of a source disk."""
        return f"{self.storage.source.blobs}/{DISKS_CONTAINER}/{name}"

    def managed_disk(
        self,
        name: str,
        *,
        data_bytes: int = 0,
        vhd: str = "",
        machine: str = "",
        lun: int = 0,
        properties: Mapping[str, object] | None = None,
        **more: object,
    ) -> str:
        """A managed disk of zeros, or with the content of the VHD that is the source disk `vhd`; its id.

        With a `machine`, it is the data disk at `lun` of a running machine of that name. The rest: see Machines.make_disk.
        """
        url = self.disk_url(vhd) if vhd else ""
        disk = self.machines.make_disk(name, data_bytes=data_bytes, vhd=url, properties=properties, **more)
        if machine:
            self.machines.make(machine, data={lun: disk})
        return disk

    def managed_content(self, disk: str) -> BlobClient:
        """The page blob that holds a managed disk's data and footer, as its guest writes it: also while a machine runs."""
        return BlobClient.from_blob_url(self.machines.content(disk), credential=self.storage.exports.credential)

    # -- the app, as an operator uses it ----------------------------------------------------------------------------

    def api(self, method: str, path: str, body: object = None, **options: Any) -> requests.Response:  # noqa: ANN401  requests' own options
        """A call under /api."""
        return self.host.call(method, "/api" + path, body, **options)

    def protect(self, disk: str, blob: str, **fields: Any) -> None:  # noqa: ANN401  fields of the body
        """Register a disk."""
        answer = self.api("PUT", f"/disks/{disk}", {"source": self.disk_url(blob), **fields})
        if answer.status_code not in (200, 201):
            raise RunFailedError(answer.text)

    def points(self, disk: str) -> list[dict[str, Any]]:
        """The disk's restore points, newest first."""
        answer = self.api("GET", f"/disks/{disk}/restore-points")
        answer.raise_for_status()
        value: list[dict[str, Any]] = answer.json()["value"]
        return value

    def restore(self, disk: str, body: Mapping[str, Any], **options: Any) -> dict[str, Any]:  # noqa: ANN401  wait's own options
        """Restore a disk by HTTP and wait for the run's end, whatever it is."""
        answer = self.api("POST", f"/disks/{disk}/restores", dict(body))
        if answer.status_code != requests.codes.accepted:
            raise RunFailedError(answer.text)
        return self.wait(answer.json()["id"], **options)

    def back_up(self, disk: str, *, full: bool = False, timeout_seconds: float = 120.0) -> dict[str, Any]:
        """Back a disk up by HTTP and wait for the run's end; raises RunFailedError unless it succeeded."""
        answer = self.api("POST", f"/disks/{disk}/backups", {"kind": "full"} if full else None)
        if answer.status_code != requests.codes.accepted:
            raise RunFailedError(answer.text)
        run = self.wait(answer.json()["id"], timeout_seconds=timeout_seconds)
        if run["state"] != "Succeeded":
            raise RunFailedError(json.dumps(run))
        return run

    def rebuild(self, **request: Any) -> dict[str, Any]:  # noqa: ANN401  fields of the body
        """Rebuild the catalogue, or make a dry run of it, and wait for its end, whatever it is."""
        answer = self.api("POST", "/catalogue/rebuild", request)
        if answer.status_code != requests.codes.accepted:
            raise RunFailedError(answer.text)
        path = f"/catalogue/rebuilds/{answer.json()['id']}"

        def ended() -> dict[str, Any]:
            shown: dict[str, Any] = self.api("GET", path).json()
            return shown if shown["state"] != "Running" else {}

        return awaited(ended, "the rebuild's end", timeout_seconds=120)

    def wait(
        self, run: str, *, timeout_seconds: float = 120.0, seen: Callable[[dict[str, Any]], None] = lambda _: None
    ) -> dict[str, Any]:
        """The run once it has ended; `seen` is shown each state on the way.

        Raises RunFailedError with its last state after `timeout_seconds` times PATIENCE.
        """
        deadline = time.monotonic() + timeout_seconds * PATIENCE
        while True:
            answer = self.api("GET", f"/runs/{run}")
            if answer.status_code == requests.codes.ok:
                shown: dict[str, Any] = answer.json()
                seen(shown)
                if shown["state"] not in ("NotStarted", "Running"):
                    return shown
            if time.monotonic() > deadline:
                message = f"run {run} did not end within {timeout_seconds * PATIENCE:g} s: {answer.text}"
                raise RunFailedError(message)
            time.sleep(0.05)
